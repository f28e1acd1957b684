"""Masks by the network's confidence: the posterior that they leave, by enumeration, and what the objective trains under them."""

import dataclasses
import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dlmjax.diffusion import Linear, Masked, MaskedCount, Objective, PerRow, Progressive, make_process
from dlmjax.diffusion.objective import _Text
from dlmjax.diffusion.oracle import enumeration as oracle
from dlmjax.diffusion.oracle.toy import ToyDenoiser, masked_likelihood
from dlmjax.diffusion.process import cross_entropy, row_keys
from dlmjax.diffusion.progressive import most_confident
from dlmjax.errors import InputError
from tests.diffusion.battery import BOS, MASK, TOKENS, VOCAB, batch_of, sample_joint

LENGTH = 4
LAW = oracle.JointDistribution.random(TOKENS, LENGTH, seed=3)
PROCESS = Masked(VOCAB, MASK, excluded=(BOS,))
EXACT = ToyDenoiser(LAW, VOCAB, masked_likelihood(TOKENS, MASK))
KEY = jax.random.key(4)
CLEAN, EARLIER, BOTH = range(3)  # where a token is masked: nowhere, at the earlier time alone, at both times
SHARE = np.array([0.3, 0.45, 0.25])


@dataclasses.dataclass(frozen=True, eq=False)
class Enumerated(Masked):
    """The noise of a table: rows of CLEAN, EARLIER, BOTH, read at the earlier time 1 and at the time 1/2."""

    kinds_BL: Any = None

    def corrupt(self, keys_B, x_BL, t_BL, valid_BL=None):
        hit_BL = jnp.where(t_BL > 0.5, self.kinds_BL != CLEAN, self.kinds_BL == BOTH)
        return jnp.where(hit_BL, self.mask_id, x_BL)


@dataclasses.dataclass(frozen=True)
class OneStep(Progressive):
    """From all of the earlier masks."""

    def earlier(self, t_BL, uniform_B1):
        return jnp.ones_like(t_BL)


def largest_difference(z_RL, weight_R, x_RL):
    """Between p(x_i | z) of the enumerated rows and the posterior given the revealed tokens alone, over all states and masked positions."""
    joint: dict[tuple, np.ndarray] = {}
    for z, weight, x in zip(map(tuple, z_RL), weight_R, x_RL, strict=True):
        table_LK = joint.setdefault(z, np.zeros((LENGTH, TOKENS)))
        table_LK[np.arange(LENGTH), x] += weight
    p_X, x_XL, worst = np.asarray(LAW.probability_X), np.asarray(LAW.sequences_Xn), 0.0
    for z, table_LK in joint.items():
        masked_L = np.array(z) == MASK
        fits_X = (masked_L | (x_XL == np.array(z))).all(axis=1)
        for i in np.flatnonzero(masked_L):
            posterior_K = np.bincount(x_XL[fits_X, i], p_X[fits_X], minlength=TOKENS)
            worst = max(worst, np.abs(table_LK[i] / table_LK[i].sum() - posterior_K / posterior_K.sum()).max())
    return worst


def test_the_most_confident_keep_the_posterior_and_the_most_probable_true_tokens_do_not():
    """Every text under every pair of nested masks. The expected cross-entropy under p(x, z) has p(x_i | z) as its minimiser, which is the
    posterior of independent masks to rounding; if the probability of the true token decides, what is revealed tells about the rest."""
    kinds = np.array(list(itertools.product(range(3), repeat=LENGTH)))
    x_RL = np.repeat(np.asarray(LAW.sequences_Xn), len(kinds), axis=0)
    kinds_RL = np.tile(kinds, (len(LAW.probability_X), 1))
    weight_R = np.repeat(np.asarray(LAW.probability_X), len(kinds)) * SHARE[kinds_RL].prod(axis=1)
    process, ones_RL = Enumerated(VOCAB, MASK, Linear(), (BOS,), kinds_BL=jnp.asarray(kinds_RL)), jnp.ones(x_RL.shape)
    keys_R, tokens_RL = row_keys(KEY, jnp.arange(len(x_RL))), jnp.asarray(x_RL, jnp.int32)
    text = _Text(process, EXACT, tokens_RL, ones_RL > 0, keys_R)
    z_RL = np.asarray(text.progressive(OneStep(), keys_R, keys_R, 0.5 * ones_RL, ones_RL > 0))

    assert ((z_RL == MASK).sum(axis=1) == (kinds_RL == BOTH).sum(axis=1)).all(), "as many as at the later time"
    assert ((z_RL != MASK) | (kinds_RL != CLEAN)).all() and (z_RL == np.where(kinds_RL == BOTH, MASK, x_RL)).all(axis=1).mean() < 0.9
    assert largest_difference(z_RL, weight_R, x_RL) < 1e-12

    z0_RL = process.corrupt(keys_R, tokens_RL, ones_RL)
    score_RL = -cross_entropy(EXACT.hidden(z0_RL, ones_RL), tokens_RL, (MASK, BOS))
    shown_RL = most_confident(score_RL, z0_RL == MASK, jnp.sum(kinds_RL == EARLIER, axis=1))
    assert largest_difference(np.where(shown_RL, x_RL, z0_RL), weight_R, x_RL) > 0.3


@dataclasses.dataclass(frozen=True, eq=False)
class Spy(ToyDenoiser):
    calls: list = dataclasses.field(default_factory=list)

    def hidden(self, z_BL, t_BL, hint_BLI=None):
        self.calls.append((np.asarray(z_BL), np.asarray(t_BL)))
        return super().hidden(z_BL, t_BL)


ROWS = 512
BATCH = batch_of(sample_joint(LAW, ROWS, seed=1))


def calls_of(process, **options):
    denoiser = Spy(LAW, VOCAB, masked_likelihood(TOKENS, MASK))
    objective = Objective(process, **options)
    total, terms = objective(denoiser, BATCH, KEY, ROWS)
    return objective, float(total), jax.device_get(terms), denoiser.calls


@pytest.mark.parametrize("prompt", [0.0, 0.5])
@pytest.mark.parametrize("process", [PROCESS, MaskedCount(VOCAB, MASK, excluded=(BOS,))], ids=lambda process: process.name)
def test_the_objective_trains_on_what_the_most_confident_leave(process, prompt):
    """As many masks as without, those of the row's earlier masks in which the network is least confident."""
    _, _, _, [(plain_BL, t_BL)] = calls_of(process, prompt=prompt)
    objective, _, terms, [(z0_BL, t0_BL), (z_BL, now_BL)] = calls_of(process, prompt=prompt, progressive=Progressive(2))
    x_BL, first_B = np.asarray(BATCH["tokens"]), t_BL.max(axis=1) > 0.5
    np.testing.assert_array_equal(now_BL, t_BL)
    np.testing.assert_array_equal((z_BL == MASK).sum(axis=1), (plain_BL == MASK).sum(axis=1))
    np.testing.assert_array_equal(z_BL[first_B], plain_BL[first_B])  # the first phase has none before it
    later_BL = np.where((t_BL > 0) & ~first_B[:, None], t0_BL, 0.7)
    assert later_BL.min() > 0.5 and (t0_BL[t_BL == 0] == 0).all()
    assert ((z0_BL == MASK) | (z_BL != MASK)).all() and ((z_BL == x_BL) | (z_BL == MASK)).all()
    confidence_BL = np.asarray(EXACT.hidden(jnp.asarray(z0_BL), jnp.asarray(t0_BL)))[..., :TOKENS].max(axis=-1)
    shown_BL, left_BL = (z0_BL == MASK) & (z_BL != MASK), z_BL == MASK
    least_B = np.where(shown_BL, confidence_BL, np.inf).min(axis=1)
    assert (least_B > np.where(left_BL, confidence_BL, -np.inf).max(axis=1) - 1e-5).all() and shown_BL.any(axis=1).sum() > ROWS / 8
    report = objective.report(terms)
    assert not objective.is_bound and {"partial_nelbo", "loss_progressive_not_a_bound"} <= set(report)
    assert "progressive" in objective.summary(report)["trained"] and "bound" not in objective.summary(report)


def test_microbatches_train_on_the_same_states():
    """A state is a function of the row: the loss of a batch is the sum over its parts."""
    objective = Objective(PROCESS, PerRow(), progressive=Progressive(4))
    whole = objective(EXACT, BATCH, KEY, ROWS)[0]
    parts = [jax.tree.map(lambda leaf, a=a: leaf[a::4], BATCH) for a in range(4)]
    np.testing.assert_allclose(sum(objective(EXACT, part, KEY, ROWS)[0] for part in parts), whole, rtol=1e-5)


@pytest.mark.parametrize(
    ("name", "values"),
    [("uniform", {}), ("hybrid", {}), ("autoregressive", {}), ("blocks", {"size": 2}), ("genmd4", {}), ("masked", {"complementary": True})],
    ids=lambda value: str(value),
)
def test_a_process_whose_posterior_reads_more_is_refused(name, values):
    process = make_process(name, vocab=VOCAB, mask_id=MASK, bos_id=BOS, excluded=(BOS,), **values)
    with pytest.raises(InputError, match="masks progressive requires a process that masks all tokens at one rate"):
        Objective(process, progressive=Progressive())


@pytest.mark.parametrize("phases", [1, 0, 5000])
def test_phases_are_checked(phases):
    with pytest.raises(InputError, match=f"phases is {phases}; it must be from 2 to 4096"):
        Progressive(phases)
