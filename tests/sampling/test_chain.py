"""The Markov chain of the decoding experiments: its exact denoiser and its numbers against enumeration, and the loss of parallel steps."""

import itertools

import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks.chain import Chain, path_nats, random_order_nats

CHAIN = Chain(symbols=3, length=4)
TEXTS_NL = np.array([text for text in itertools.product(range(3), repeat=4) if all(a != b for a, b in itertools.pairwise(text))], np.int32)


def posterior(z_L):
    """p(x_i | revealed tokens) by listing the texts. -> [L, K]"""
    fits_NL = TEXTS_NL[np.all((z_L == CHAIN.symbols) | (z_L == TEXTS_NL), axis=1)]
    return np.eye(CHAIN.symbols)[fits_NL].mean(axis=0)


def test_the_denoiser_and_the_entropy_are_those_of_the_texts():
    masks_ML = np.array(list(itertools.product([False, True], repeat=4)))
    z_BL = np.concatenate([np.where(masks_ML, CHAIN.symbols, text_L) for text_L in TEXTS_NL])
    found_BLV = np.exp(np.asarray(CHAIN.log_p(jnp.asarray(z_BL))))
    np.testing.assert_allclose(found_BLV[..., :3], np.stack([posterior(z_L) for z_L in z_BL]), atol=1e-5)
    assert not found_BLV[..., 3].any() and CHAIN.entropy == pytest.approx(np.log(len(TEXTS_NL)))
    first = CHAIN.length * np.log(3)  # every token alone is uniform
    last = sum(
        -np.sum(p_K[p_K > 0] * np.log(p_K[p_K > 0]))
        for text_L in TEXTS_NL
        for i in range(4)
        for p_K in [posterior(np.where(np.arange(4) == i, CHAIN.symbols, text_L))[i]]
    ) / len(TEXTS_NL)
    assert CHAIN.correlation == pytest.approx(first - last)
    texts_BL = CHAIN.texts(2000, seed=3)
    counts_N = np.unique(texts_BL @ 4 ** np.arange(4), return_counts=True)[1]
    assert not CHAIN.violations(texts_BL).any() and len(counts_N) == len(TEXTS_NL) and counts_N.min() > 50
    assert CHAIN.violations(np.array([[0, 0, 0, 1]])) == [2]


def test_one_token_a_step_loses_nothing_and_parallel_steps_what_the_law_says():
    """In any order, for every text; all at once the total correlation; every second token first, then the rest, less than neighbours."""
    entropy = np.full(len(TEXTS_NL), CHAIN.entropy)
    for steps, loses in ((4, 0.0), (1, 4 * np.log(3) - CHAIN.entropy)):
        np.testing.assert_allclose(random_order_nats(CHAIN.log_p, 3, TEXTS_NL, steps), entropy + loses, atol=1e-4)
    found = {rule: path_nats(CHAIN.process, CHAIN.bind, (), rule, TEXTS_NL) for rule in ("margin", "spread", "left_to_right(count=2)")}
    np.testing.assert_allclose(found["margin"][0], entropy, atol=1e-4)
    assert [calls for _, calls in found.values()] == [4, 2, 2]
    assert entropy.mean() < found["spread"][0].mean() < found["left_to_right(count=2)"][0].mean()
