"""Networks of one's own against enumeration of all texts of a toy vocabulary: likelihoods, bounds and samples.  N texts, L positions."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dlmjax.diffusion import make_process
from dlmjax.diffusion.objective import nats_at
from dlmjax.diffusion.process import row_keys
from dlmjax.evaluation.likelihood import Evaluator
from dlmjax.models import from_nnx
from dlmjax.sampling import SampleSettings, blank_canvas, sampler_for
from tests.evaluation.test_likelihood import batches_of
from tests.models import tiny
from tests.models.test_own import SIZES, Attending, unet_module

SYMBOLS, LENGTH = 3, 3
BOS, MASK, VOCAB = 3, 4, 5
TEXTS_NL = np.array(list(itertools.product(range(SYMBOLS), repeat=LENGTH)), np.int32)
ONES_NL, POSITIONS_NL = np.ones_like(TEXTS_NL), np.tile(np.arange(LENGTH, dtype=np.int32), (len(TEXTS_NL), 1))
DRAWS = 4096


def process_of(name, **values):
    return make_process(name, vocab=VOCAB, mask_id=MASK, bos_id=BOS, excluded=(BOS, MASK), **values)


@functools.cache
def network_of(rule):
    if rule == "unet":
        network = from_nnx(lambda rngs: unet_module()["build"](SIZES, VOCAB, rngs), vocab=VOCAB)
    else:
        network = from_nnx(lambda rngs: Attending(rngs, rule, VOCAB))
    return network, tiny.lively(network.init(jax.random.key(0)))


def nll_of_texts(process, network, params):
    """-log p of every text where each token's loss is exact under one draw: sequential processes."""
    keys_N = row_keys(jax.random.key(0), jnp.arange(len(TEXTS_NL)))
    denoiser = network.bind(params, jnp.asarray(ONES_NL), jnp.asarray(POSITIONS_NL), process.attention)
    nats_NL = jax.jit(functools.partial(nats_at, process, denoiser))(TEXTS_NL, ONES_NL, keys_N, jnp.ones(TEXTS_NL.shape))
    return np.asarray(nats_NL).sum(1)


@pytest.mark.parametrize(
    ("rule", "name", "values"),
    [("causal", "autoregressive", {}), ("mask", "autoregressive", {}), ("mask", "blocks", {"size": 1})],
    ids=str,
)
def test_sequential_likelihoods_add_up_to_one_and_samples_follow_them(rule, name, values):
    """Blocks of one token from one step: the chain rule again. A network that looked ahead would give more than 1."""
    process, (network, params) = process_of(name, **values), network_of(rule)
    network.require_process(process)
    p_N = np.exp(-nll_of_texts(process, network, params))
    np.testing.assert_allclose(p_N.sum(), 1, rtol=1e-5)
    assert p_N.max() > 2 / len(TEXTS_NL), "the law must say something"
    sampler = sampler_for(process, network, SampleSettings(steps=1, suppressed_ids=(BOS, MASK)))
    tokens_BL = sampler.sample(params, blank_canvas(LENGTH, DRAWS), seed=0).tokens_BL
    count_N = np.bincount(tokens_BL @ SYMBOLS ** np.arange(LENGTH - 1, -1, -1), minlength=len(TEXTS_NL))
    chi = np.sum((count_N - DRAWS * p_N) ** 2 / (DRAWS * p_N))
    assert chi < 60, "26 degrees of freedom: 60 is passed once in 6000 times"


def test_the_bound_of_masked_diffusion_is_that_of_all_states():
    """NELBO(x) = int_0^1 sum over masked sets S of t^|S| (1 - t)^(L - |S|) / t sum_{i in S} -log p(x_i | z_S, t) dt, for a network that
    reads t; it is a bound: sum_x exp(-NELBO(x)) <= 1."""
    process, (network, params) = process_of("masked"), network_of("unet")
    network.require_process(process)
    node_K, weight_K = (array / 2 for array in np.polynomial.legendre.leggauss(12))
    node_K = node_K + 0.5
    sets_SL = np.array(list(itertools.product((False, True), repeat=LENGTH)))[1:]
    z_SNL = np.where(sets_SL[:, None], MASK, TEXTS_NL)

    @jax.jit
    def log_p(z_SNL, t):
        z_BL = z_SNL.reshape(-1, LENGTH)
        positions_BL = jnp.broadcast_to(jnp.arange(LENGTH), z_BL.shape)
        denoiser = network.bind(params, jnp.ones_like(z_BL), positions_BL)
        logits_BLV = denoiser.logits(denoiser.hidden(z_BL, jnp.full(z_BL.shape, t)))
        return jax.nn.log_softmax(logits_BLV[..., :SYMBOLS]).reshape(*z_SNL.shape, SYMBOLS)

    bound_N = np.zeros(len(TEXTS_NL))
    for t, weight in zip(node_K, weight_K, strict=True):
        nll_SNL = -np.take_along_axis(np.asarray(log_p(z_SNL, np.float32(t))), np.tile(TEXTS_NL, (len(sets_SL), 1, 1))[..., None], -1)[
            ..., 0
        ]
        q_S = t ** (sets_SL.sum(1) - 1) * (1 - t) ** (~sets_SL).sum(1)
        bound_N += weight * np.einsum("s,snl,sl->n", q_S, nll_SNL, sets_SL)
    assert np.exp(-bound_N).sum() <= 1
    found = Evaluator(process, network.bind, nodes=8)(params, batches_of(np.tile(TEXTS_NL, (40, 1)), 108))
    assert abs(found.nats_per_token - bound_N.mean() / LENGTH) < 3 * found.stderr_nats_per_token < 0.1


def test_uniform_noise_is_sampled():
    process, (network, params) = process_of("uniform"), network_of("unet")
    sampler = sampler_for(process, network, SampleSettings(steps=3, suppressed_ids=(BOS, MASK)))
    tokens_BL = sampler.sample(params, blank_canvas(LENGTH, 64), seed=0).tokens_BL
    assert {*np.unique(tokens_BL)} <= {*range(SYMBOLS)} and len(np.unique(tokens_BL, axis=0)) > 3
