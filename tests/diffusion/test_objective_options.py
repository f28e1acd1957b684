"""What the objective can be told beside process, times and weight: prompts, self-conditioning, values that the process learns."""

import dataclasses
import itertools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dlmjax.diffusion import (
    Autoregressive,
    CrossEntropy,
    GenMd4,
    Linear,
    Masked,
    MaskedCount,
    Objective,
    PerRow,
    Power,
    Weighting,
    log_linear,
    nats_at,
    row_keys,
    symmetric,
)
from dlmjax.diffusion.declarations import Capabilities
from dlmjax.diffusion.objective import _Text
from dlmjax.diffusion.oracle import enumeration as oracle
from dlmjax.diffusion.oracle.toy import ToyDenoiser, masked_likelihood
from dlmjax.diffusion.process import Process, cross_entropy, init_params
from dlmjax.errors import InputError
from tests.diffusion.battery import BOS, MASK, TOKENS, VOCAB, batch_of, sample_joint

LAW = oracle.JointDistribution.random(TOKENS, 3, seed=2)
MASKED = Masked(VOCAB, MASK, excluded=(BOS,))
EXACT = ToyDenoiser(LAW, VOCAB, masked_likelihood(TOKENS, MASK))
ROWS = 4096
BATCH = batch_of(sample_joint(LAW, ROWS, seed=1))
KEY = jax.random.key(2)


@dataclasses.dataclass(frozen=True, eq=False)
class Spy(ToyDenoiser):
    """The exact denoiser, which writes down what it is handed."""

    calls: list = dataclasses.field(default_factory=list)

    def hidden(self, z_BL, t_BL, hint_BLI=None):
        self.calls.append((z_BL, t_BL, hint_BLI))
        return super().hidden(z_BL, t_BL)


def spy():
    return Spy(LAW, VOCAB, masked_likelihood(TOKENS, MASK))


# --- prompts -----------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("process", [MASKED, MaskedCount(VOCAB, MASK, excluded=(BOS,))], ids=lambda process: process.name)
def test_a_prompt_is_given_clean_and_carries_no_loss(process):
    denoiser, objective = spy(), Objective(process, prompt=1.0)
    _, parts = objective(denoiser, BATCH, KEY, ROWS)
    z_BL, t_BL, _ = denoiser.calls[0]
    given_BL = np.asarray(t_BL) == 0
    counts = np.bincount(given_BL.sum(axis=1), minlength=4)
    assert counts[0] == 0 and counts[3] == 0, "1 to L - 1 tokens are given"
    assert abs(counts[1] / ROWS - 0.5) < 0.05
    assert (given_BL == (np.arange(3) < given_BL.sum(axis=1)[:, None])).all(), "a prompt is the start of the row"
    assert (np.asarray(z_BL)[given_BL] == np.asarray(BATCH["tokens"])[given_BL]).all()
    assert int(parts["tokens"]) == (~given_BL).sum()
    # A tighter statement: the bound of the rest given the prompt is the conditional entropy.
    p = LAW.table
    h3, h1, h12 = LAW.entropy, *(float(-(q * np.log(q)).sum()) for q in (p.sum(axis=(1, 2)), p.sum(axis=2)))
    assert float(parts["nats"]) / ROWS == pytest.approx(((h3 - h1) + (h3 - h12)) / 2, rel=0.05)
    assert not objective.is_bound and "partial_nelbo" in objective.report(jax.device_get(parts))


def test_a_causal_network_reads_a_prompt_where_it_reads_text():
    """One place further on, whatever is given: the first token that is asked for is predicted from the last of the prompt."""
    denoiser, process = spy(), Autoregressive(VOCAB, BOS, MASK)
    Objective(process, prompt=1.0)(denoiser, BATCH, KEY, ROWS)
    (z_BL, _, _), x_BL = denoiser.calls[0], np.asarray(BATCH["tokens"])
    assert (np.asarray(z_BL)[:, 0] == BOS).all() and (np.asarray(z_BL)[:, 1:] == x_BL[:, :-1]).all()


def test_a_share_of_rows_has_no_prompt():
    denoiser = spy()
    Objective(MASKED, prompt=0.25)(denoiser, BATCH, KEY, ROWS)
    share = (np.asarray(denoiser.calls[0][1]) == 0).any(axis=1).mean()
    assert share == pytest.approx(0.25, abs=0.03)


@pytest.mark.parametrize("option", ["prompt", "self_condition"])
def test_shares_are_checked(option):
    with pytest.raises(InputError, match=r"in \[0, 1\]"):
        Objective(MASKED, **{option: 1.5})


# --- self-conditioning -------------------------------------------------------------------------------------------------------------


def test_self_conditioning_hands_back_the_first_estimate_in_a_share_of_rows():
    denoiser, objective = spy(), Objective(MASKED, self_condition=0.5)
    total, parts = objective(denoiser, BATCH, KEY, ROWS)
    (z_BL, t_BL, none), (again_BL, t_again_BL, hint_BLI) = denoiser.calls
    assert none is None and (z_BL == again_BL).all() and (t_BL == t_again_BL).all()
    estimate_BLI = EXACT.expect(EXACT.hidden(z_BL, t_BL))
    used_B = np.asarray((hint_BLI != 0).any(axis=(1, 2)))
    assert used_B.mean() == pytest.approx(0.5, abs=0.03)
    np.testing.assert_allclose(hint_BLI, np.where(used_B[:, None, None], estimate_BLI, 0.0), atol=1e-6)
    # The exact denoiser learns nothing from a hint, and the noise is that of a run without.
    np.testing.assert_allclose(total, Objective(MASKED)(EXACT, BATCH, KEY, ROWS)[0], rtol=1e-6)
    assert objective.is_bound


def test_an_evaluation_hints_every_row():
    denoiser = spy()
    keys_B = row_keys(KEY, BATCH["row"])
    nats_at(MASKED, denoiser, BATCH["tokens"], BATCH["segments"], keys_B, jnp.full((ROWS, 3), 0.9), self_condition=True)
    assert bool((denoiser.calls[1][2] != 0).any(axis=(1, 2)).all())


# --- a training loss that is no factor ---------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Squared(Weighting):
    """The square of the cross-entropy."""

    name = "squared"
    is_factor = False

    def trained(self, process, logits, x, z, t, nats):
        return cross_entropy(logits, x, (MASK, BOS)) ** 2


def test_another_function_is_trained_and_the_bound_is_reported():
    total, parts = Objective(MASKED, weighting=Squared())(EXACT, BATCH, KEY, ROWS)
    bound, bound_parts = Objective(MASKED)(EXACT, BATCH, KEY, ROWS)
    np.testing.assert_allclose(parts["nats"], bound_parts["nats"], rtol=1e-6)
    plain, _ = Objective(MASKED, weighting=CrossEntropy())(EXACT, BATCH, KEY, ROWS)
    assert float(total) != pytest.approx(float(bound), rel=1e-2) and float(total) != pytest.approx(float(plain), rel=1e-2)
    assert "loss_squared_not_a_bound" in Objective(MASKED, weighting=Squared()).report(jax.device_get(parts))


# --- values that a process learns --------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Tempered(Masked):
    """Masked diffusion whose loss divides the logits by a learned temperature, and whose noise is none the wiser."""

    params: Any = None

    def loss(self, logits, x, z, t):
        return Masked.loss(self, logits * jnp.exp(-self.params["log_temperature"]), x, z, t)


def test_a_learned_value_gets_the_gradient_of_the_bound():
    process, objective = Tempered(VOCAB, MASK), Objective(Tempered(VOCAB, MASK))

    def total(log_temperature):
        return objective.bind({"process": {"log_temperature": log_temperature}})(EXACT, BATCH, KEY, ROWS)[0] / ROWS

    value, slope = jax.value_and_grad(total)(jnp.float32(0.3))
    step = 0.01
    np.testing.assert_allclose(slope, (total(0.3 + step) - total(0.3 - step)) / (2 * step), rtol=2e-3)
    assert float(value) > float(total(0.0)), "the exact denoiser needs no temperature"
    assert isinstance(process, Process)


@dataclasses.dataclass(frozen=True)
class Tilted(Masked):
    """Discrete noise whose law has a learned number in it: alpha = 1 - t^w; its bound does not depend on w, its parts do."""

    params: Any = None
    capabilities = Capabilities(reinforce=True, denoisings=2)

    def _masked(self, t):
        return t ** jnp.exp(self.params["log_w"])

    def corrupt(self, keys_B, x_BL, t_BL, valid_BL=None):
        return Masked.corrupt(self, keys_B, x_BL, self._masked(t_BL), valid_BL)

    def log_q(self, z_BL, x_BL, t_BL):
        p_BL = self._masked(t_BL)
        return jnp.where(z_BL == MASK, jnp.log(p_BL), jnp.log1p(-p_BL))

    def loss(self, logits, x, z, t):
        return jnp.where(z == MASK, cross_entropy(logits, x, (MASK, BOS)), 0.0)  # no weight: then the expectation does depend on w


def test_noise_that_learns_gets_the_score_function_gradient():
    """d/dw of E_z[sum of cross-entropies] by two draws and their difference, against the slope of the enumerated expectation."""
    objective, steps = Objective(Tilted(VOCAB, MASK, excluded=(BOS,)), PerRow(Power(1.0))), 12

    def total(log_w, key, x_BL):
        return objective.bind({"process": {"log_w": log_w}})(EXACT, {**BATCH, "tokens": x_BL}, key, ROWS)[0] / ROWS

    def expected(log_w):
        levels, weights = oracle.quadrature(48)
        kernel = oracle.masked_kernel(TOKENS, lambda p: 1 - p, lambda p: -1.0)
        masses = []
        for t in levels:
            p = t ** np.exp(log_w)
            joint_XZ, guess_ZnK = oracle.evidence(LAW, kernel, p), oracle.posterior(LAW, kernel, p)
            masked_Zn = oracle.enumerate_sequences(TOKENS + 1, 3) == TOKENS
            chance_XZn = np.stack([guess_ZnK[:, i, LAW.sequences_Xn[:, i]].T for i in range(3)], axis=-1)
            nats_XZn = np.where(masked_Zn[None] & (chance_XZn > 0), -np.log(np.where(chance_XZn > 0, chance_XZn, 1)), 0)
            masses.append(np.sum(joint_XZ[:, :, None] * nats_XZn))
        return float(np.dot(weights, masses))

    slopes = []
    for step in range(steps):
        x_BL = jnp.asarray(sample_joint(LAW, ROWS, seed=100 + step))
        slopes.append(float(jax.grad(total)(jnp.float32(0.4), jax.random.key(step), x_BL)))
    truth = (expected(0.4 + 1e-4) - expected(0.4 - 1e-4)) / 2e-4
    error = np.std(slopes, ddof=1) / np.sqrt(steps)
    assert error < 0.05 * abs(truth) and abs(np.mean(slopes) - truth) < 4 * error


def test_a_learned_schedule_is_reported():
    """Its scalars go with the sums of the parts: microbatches add up, and the report is their mean weighted by tokens."""
    process = GenMd4(VOCAB, MASK, (BOS,))
    objective = Objective(process)
    log_w = init_params(process, jax.random.key(0))["log_w"].at[0].set(np.log(4.0)).at[MASK].set(9.0)
    _, parts = objective.bind({"process": {"log_w": log_w}})(EXACT, BATCH, KEY, ROWS)
    for times in (1, 3):
        report = objective.report({name: times * np.asarray(part) for name, part in parts.items()})
        assert report["learned/w_max"] == pytest.approx(4) and report["learned/w_min"] == pytest.approx(1)
        assert report["learned/w_mean"] == pytest.approx((4 + TOKENS - 1) / TOKENS)
    plain = Objective(Masked(VOCAB, MASK, excluded=(BOS,)))
    assert not [name for name in plain(EXACT, BATCH, KEY, ROWS)[1] if name.startswith("learned")]


# --- boundary terms ----------------------------------------------------------------------------------------------------------------


def test_no_second_pass_where_no_noise_is_left_at_the_start():
    """A schedule that is clean at t = 0 has a prior term and nothing to reconstruct: the network runs once."""
    for schedule, calls in ((log_linear(0.05), 1), (symmetric(Linear(), 0.05), 2)):
        denoiser = spy()
        _, parts = Objective(Masked(VOCAB, MASK, schedule, excluded=(BOS,)))(denoiser, BATCH, KEY, ROWS)
        assert len(denoiser.calls) == calls
        assert float(parts["prior"]) > 0 and (float(parts["reconstruction"]) > 0) == (calls == 2)


# --- loopholing: hidden states as the hint -----------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True, eq=False)
class Loopholing(ToyDenoiser):
    """Two passes: the first gives random or exact hidden states of z, the second reads nothing but these, through `share` of a random map.

    exact: the first pass gives the exact log-posterior.
    """

    exact: bool = True
    share: float = 0.0
    reads_hidden = True

    def hidden(self, z_BL, t_BL, hint_BLI=None):
        posterior_BLV = super().hidden(z_BL, t_BL)
        if hint_BLI is None:
            noise_ZV = jax.random.normal(jax.random.key(9), (VOCAB, self.vocab))
            return posterior_BLV if self.exact else jnp.tanh(noise_ZV[z_BL] + noise_ZV[jnp.roll(z_BL, 1, axis=1)])
        mixed_BLV = hint_BLI @ jax.random.normal(jax.random.key(8), (self.vocab, self.vocab))
        return (1 - self.share) * hint_BLI + self.share * mixed_BLV


def enumerated_bound(denoiser, hint_of_text=False):
    """The NELBO of a denoiser with the hint of a first pass, over all texts and all sets of masks: sum over S of CE / (|S| C(n, |S|)).

    hint_of_text: take the hint from the text in place of the state.
    """
    x_XL = jnp.asarray(LAW.sequences_Xn, jnp.int32)
    ones_XL, keys_X, total = jnp.ones(x_XL.shape), row_keys(KEY, jnp.arange(len(x_XL))), 0.0
    for masks in itertools.product((False, True), repeat=3):
        size = sum(masks)
        if size:
            z_XL = jnp.where(jnp.asarray(masks), MASK, x_XL)
            text = _Text(MASKED, denoiser, x_XL, ones_XL > 0, keys_X)
            hidden_XLD = text.states(z_XL, ones_XL, text.hint(x_XL if hint_of_text else z_XL, ones_XL, 1.0))
            nats_XL = text.nats(hidden_XLD, z_XL, ones_XL, ones_XL)[1]
            total += float(LAW.probability_X @ np.asarray(nats_XL.sum(axis=1))) / (size * math.comb(3, size))
    return total


def test_a_bound_with_the_hidden_states_of_a_first_pass_is_a_bound():
    """A network that reads the text through its hint alone: exact states give the entropy, others more; those of another state less."""
    assert enumerated_bound(Loopholing(LAW, VOCAB, EXACT.log_likelihood)) == pytest.approx(LAW.entropy, rel=1e-5)
    for share in (0.0, 0.3):
        made_up = Loopholing(LAW, VOCAB, EXACT.log_likelihood, exact=False, share=share)
        assert enumerated_bound(made_up) > LAW.entropy + 0.1
    leaking = Loopholing(LAW, VOCAB, EXACT.log_likelihood)
    assert enumerated_bound(leaking, hint_of_text=True) < 0.1 < LAW.entropy


def test_hidden_states_are_handed_back_in_a_share_of_rows_and_by_every_evaluation():
    """As an x0 prediction is, without a gradient; `nats_at` hands them to all rows."""
    denoiser = dataclasses.replace(spy(), calls=[])
    object.__setattr__(denoiser, "reads_hidden", True)
    Objective(MASKED, self_condition=0.5)(denoiser, BATCH, KEY, ROWS)
    (z_BL, t_BL, _), (again_BL, _, hint_BLI) = denoiser.calls
    assert (z_BL == again_BL).all()
    used_B = np.asarray((hint_BLI != 0).any(axis=(1, 2)))
    assert used_B.mean() == pytest.approx(0.5, abs=0.03)
    np.testing.assert_array_equal(hint_BLI, np.where(used_B[:, None, None], EXACT.hidden(z_BL, t_BL), 0.0))
    denoiser.calls.clear()
    nats_at(MASKED, denoiser, BATCH["tokens"], BATCH["segments"], row_keys(KEY, BATCH["row"]), jnp.full((ROWS, 3), 0.9), True)
    np.testing.assert_array_equal(denoiser.calls[1][2], EXACT.hidden(*denoiser.calls[0][:2]))
