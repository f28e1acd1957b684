"""The objective: sums, what is a bound and what is not, gradients, names."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dlmjax.diffusion import (
    Autoregressive,
    Bound,
    Capped,
    Cosine,
    CrossEntropy,
    Denoiser,
    Geometric,
    InverseRate,
    Linear,
    Masked,
    Objective,
    PerRow,
    Polynomial,
    Power,
    UniformTimes,
    make_process,
    reconstruction_nats,
    row_keys,
    symmetric,
)
from dlmjax.diffusion.declarations import Capabilities
from dlmjax.diffusion.hyperschedule import Hyperschedule, PerBlock
from dlmjax.diffusion.oracle import enumeration as oracle
from dlmjax.diffusion.oracle import toy
from dlmjax.errors import InputError
from tests.diffusion.battery import BOS, MASK, TOKENS, VOCAB, batch_of, sample_joint

ROWS, LENGTH = 32, 6
X_BL = np.random.default_rng(0).integers(0, TOKENS, (ROWS, LENGTH)).astype(np.int32)
SEGMENTS_BL = np.where(np.arange(LENGTH) < np.random.default_rng(1).integers(2, LENGTH + 1, (ROWS, 1)), 1, 0)
BATCH = batch_of(X_BL, SEGMENTS_BL)
VALID_BL = jnp.asarray(SEGMENTS_BL > 0)
KEY = jax.random.key(3)


@dataclasses.dataclass(frozen=True, eq=False)
class Bigram(Denoiser):
    """The smallest network: logits at i from the tokens at i - 1, i and i + 1, and t."""

    weight: jax.Array

    def hidden(self, z_BL, t_BL):
        around = [jnp.roll(z_BL, shift, axis=1) for shift in (1, 0, -1)]
        return jnp.concatenate([jax.nn.one_hot(z, VOCAB) for z in around] + [t_BL[..., None]], axis=-1)

    def logits(self, hidden):
        return hidden @ self.weight

    def expect(self, hidden, table_VI=None):
        p = jax.nn.softmax(self.logits(hidden))
        return p if table_VI is None else p @ table_VI

    def row_losses(self, hidden_BLD, loss_mask_BL, loss_fn, args, weight_BL):
        nats_BL = jnp.where(loss_mask_BL, loss_fn(self.logits(hidden_BLD), *args), 0.0)
        return jnp.sum(nats_BL * weight_BL), jax.lax.stop_gradient(nats_BL)


WEIGHT = jax.random.normal(jax.random.key(1), (3 * VOCAB + 1, VOCAB))
MASKED = Masked(VOCAB, MASK, excluded=(BOS,))


def _draw(objective):
    """t, 1/density and z as the objective draws them."""
    time_key, noise_key, _ = jax.random.split(KEY, 3)
    t_BL, weight_BL = objective.times.draw(time_key, BATCH["row"], ROWS, LENGTH)
    return t_BL, weight_BL, objective.process.corrupt(row_keys(noise_key, BATCH["row"]), BATCH["tokens"], t_BL, VALID_BL)


def test_parts_are_sums_over_valid_tokens():
    assert isinstance(Bigram(WEIGHT), Denoiser)
    objective = Objective(MASKED)
    total, parts = objective(Bigram(WEIGHT), BATCH, KEY, ROWS)
    assert {name: (part.dtype, part.shape) for name, part in parts.items()} == {
        "tokens": (jnp.int32, ()),
        "corrupted": (jnp.int32, ()),
        "nats": (jnp.float32, ()),
        "loss": (jnp.float32, ()),
        "prior": (jnp.float32, ()),
        "reconstruction": (jnp.float32, ()),
        "nats_by_level": (jnp.float32, (10,)),
        "tokens_by_level": (jnp.float32, (10,)),
    }
    t_BL, _, z_BL = _draw(objective)
    masked_BL = np.asarray(z_BL == MASK)
    assert int(parts["tokens"]) == SEGMENTS_BL.sum()
    assert int(parts["corrupted"]) == masked_BL.sum() and not masked_BL[SEGMENTS_BL == 0].any()
    log_p = jax.nn.log_softmax(Bigram(WEIGHT).logits(Bigram(WEIGHT).hidden(z_BL, t_BL))[..., :TOKENS])
    nats_BL = np.where(masked_BL, -np.take_along_axis(np.asarray(log_p), X_BL[..., None], -1)[..., 0] / np.asarray(t_BL), 0)
    assert float(total) == pytest.approx(nats_BL.sum(), rel=1e-5)
    assert float(parts["nats"]) == float(parts["loss"]) == float(total)
    for i in range(10):
        inside = (np.asarray(t_BL) >= i / 10) & (np.asarray(t_BL) < (i + 1) / 10)
        assert float(parts["nats_by_level"][i]) == pytest.approx(nats_BL[inside].sum(), rel=1e-4, abs=1e-5)
        assert float(parts["tokens_by_level"][i]) == SEGMENTS_BL[inside].sum()


def test_dividing_by_the_masked_count_would_not_be_the_bound():
    """A public bug: a 1/t-weighted sum over the count of masked tokens. With a denoiser that knows nothing the bound is log K exactly
    in expectation; over `tokens` it is, over `corrupted` it is about twice that."""
    objective = Objective(MASKED)
    x_BL = np.zeros((4096, 8), np.int32)
    parts = objective(Bigram(0 * WEIGHT), batch_of(x_BL), KEY, 4096)[1]
    assert float(parts["nats"]) / int(parts["tokens"]) == pytest.approx(math.log(TOKENS), rel=0.03)
    assert float(parts["nats"]) / int(parts["corrupted"]) == pytest.approx(2 * math.log(TOKENS), rel=0.05)


def test_gradient_is_that_of_the_dense_sum_and_parts_carry_none():
    objective = Objective(MASKED, PerRow(Power(0.5)))
    t_BL, weight_BL, z_BL = _draw(objective)

    def dense(weight):
        denoiser = Bigram(weight)
        log_p = jax.nn.log_softmax(denoiser.logits(denoiser.hidden(z_BL, t_BL))[..., :TOKENS])
        cross_entropy = -jnp.take_along_axis(log_p, BATCH["tokens"][..., None], axis=-1)[..., 0]
        return jnp.sum(jnp.where((z_BL == MASK) & VALID_BL, weight_BL * cross_entropy / t_BL, 0.0))

    gradient, parts = jax.grad(lambda w: objective(Bigram(w), BATCH, KEY, ROWS), has_aux=True)(WEIGHT)
    truth = jax.grad(dense)(WEIGHT)
    np.testing.assert_allclose(gradient, truth, rtol=1e-4, atol=1e-4 * float(jnp.abs(truth).max()))
    for name in ("nats", "loss", "nats_by_level"):
        silent = jax.grad(lambda w, name=name: jnp.sum(objective(Bigram(w), BATCH, KEY, ROWS)[1][name]))(WEIGHT)
        assert (silent == 0).all()
    assert float(parts["nats"]) == pytest.approx(float(dense(WEIGHT)), rel=1e-5)


SCHEDULES = [Linear(), Cosine(), Polynomial(2.0), Geometric(1e-2, 5.0)]


@pytest.mark.parametrize("schedule", SCHEDULES, ids=repr)
@pytest.mark.parametrize("weighting", [InverseRate(), CrossEntropy(), Capped(3.0)], ids=lambda w: w.name)
def test_weightings_change_what_is_trained_and_not_what_is_reported(schedule, weighting):
    process = Masked(VOCAB, MASK, schedule, excluded=(BOS,))
    plain = Objective(process, boundary=False)
    weighted = Objective(process, weighting=weighting)
    bound, bound_parts = plain(Bigram(WEIGHT), BATCH, KEY, ROWS)
    total, parts = weighted(Bigram(WEIGHT), BATCH, KEY, ROWS)
    for name in ("nats", "corrupted", "nats_by_level"):
        np.testing.assert_array_equal(parts[name], bound_parts[name])
    t_BL, _, z_BL = _draw(plain)
    log_p = np.asarray(jax.nn.log_softmax(Bigram(WEIGHT).logits(Bigram(WEIGHT).hidden(z_BL, t_BL))[..., :TOKENS]))
    cross_entropy = np.where(np.asarray(z_BL) == MASK, -np.take_along_axis(log_p, X_BL[..., None], -1)[..., 0], 0)
    factor = {
        "inverse_rate": 1 / np.asarray(schedule.noise(t_BL)),
        "cross_entropy": 1.0,
        "capped": np.minimum(np.asarray(schedule.hazard(t_BL)), 3.0),
    }[weighting.name]
    assert float(total) == pytest.approx(np.sum(cross_entropy * factor), rel=1e-4)
    assert float(total) == float(parts["loss"])
    assert not weighted.trains_bound
    assert f"loss_{weighting.name}_not_a_bound" in weighted.report(parts) and "loss" not in weighted.report(parts)
    if not isinstance(schedule, Linear) or weighting.name != "inverse_rate":
        assert float(total) != pytest.approx(float(bound), rel=1e-3)


def test_the_summary_is_the_bound_and_then_the_trained_loss_by_its_name():
    for objective, names in (
        (Objective(Masked(VOCAB, MASK)), ["bound"]),
        (Objective(Masked(VOCAB, MASK), weighting=CrossEntropy()), ["bound", "trained"]),
        (Objective(Masked(VOCAB, MASK), prompt=0.5, weighting=CrossEntropy()), ["loss (not a bound)", "trained"]),
    ):
        report = objective.report(objective(Bigram(WEIGHT), BATCH, KEY, ROWS)[1])
        summary = objective.summary(report)
        assert list(summary) == names and summary[names[0]] == f"{report.get('nelbo', report.get('partial_nelbo')):.4g} nats/token"
        assert "trained" not in summary or summary["trained"] == f"cross_entropy {report['loss_cross_entropy_not_a_bound']:.4g}"
    assert objective.summary({"skipped": 3.0}) == {"loss": "nan"}


@pytest.mark.parametrize("weighting", [InverseRate(), CrossEntropy(), Capped()], ids=lambda w: w.name)
def test_factors_stay_finite_at_the_ends(weighting):
    t, x = jnp.asarray([0.0, 1e-12, 0.5, 1.0]), jnp.asarray([0, 1, 2, 0])
    for schedule in SCHEDULES:
        assert jnp.isfinite(weighting.factor(Masked(VOCAB, MASK, schedule), x, x, t)).all()


def test_boundary_terms_are_added_or_the_name_changes():
    process = Masked(VOCAB, MASK, symmetric(Linear(), 0.1), excluded=(BOS,))
    whole, part = Objective(process), Objective(process, boundary=False)
    parts, fewer = whole(Bigram(WEIGHT), BATCH, KEY, ROWS)[1], part(Bigram(WEIGHT), BATCH, KEY, ROWS)[1]
    assert whole.is_bound and whole.trains_bound and not part.is_bound and not part.trains_bound
    assert "nelbo" in whole.report(parts) and "partial_nelbo" in part.report(fewer)
    assert float(parts["prior"]) == pytest.approx(0.1 * math.log(TOKENS) * SEGMENTS_BL.sum(), rel=1e-5)
    keys_B = row_keys(jax.random.split(KEY, 3)[2], BATCH["row"])
    total, nats_BL = reconstruction_nats(process, Bigram(WEIGHT), BATCH["tokens"], VALID_BL, keys_B)
    assert float(parts["reconstruction"]) == pytest.approx(float(total)) == pytest.approx(float(nats_BL.sum()))
    assert 0 < float((nats_BL > 0).mean()) < 0.3  # a tenth of the tokens is masked at t = 0
    for name in ("nats", "loss"):
        assert float(parts[name] - fewer[name]) == pytest.approx(float(parts["prior"] + parts["reconstruction"]), rel=1e-4)
    assert float(fewer["prior"]) == float(fewer["reconstruction"]) == 0
    # The reconstruction is trained too.
    difference = jax.grad(lambda w: whole(Bigram(w), BATCH, KEY, ROWS)[0] - part(Bigram(w), BATCH, KEY, ROWS)[0])(WEIGHT)
    assert float(jnp.abs(difference).max()) > 0


def test_what_may_be_called_a_bound():
    @dataclasses.dataclass(frozen=True)
    class Loose(Masked):
        capabilities = Capabilities(is_bound=False)

    assert Objective(MASKED).trains_bound
    assert not Objective(MASKED, PerRow(UniformTimes(1e-3, 1.0))).is_bound  # a part of [0, 1] is never drawn
    assert not Objective(Loose(VOCAB, MASK)).is_bound
    assert Objective(MASKED, weighting=Capped()).is_bound and not Objective(MASKED, weighting=Capped()).trains_bound
    assert isinstance(Objective(MASKED).weighting, Bound)


def test_report_means_are_per_token():
    objective = Objective(MASKED)
    parts = objective(Bigram(WEIGHT), BATCH, KEY, ROWS)[1]
    doubled = {name: np.asarray(part) * 2 for name, part in parts.items()}
    report = objective.report(doubled)
    assert report == pytest.approx(objective.report(parts))
    assert report["nelbo"] == pytest.approx(float(parts["nats"]) / SEGMENTS_BL.sum())
    assert report["noise_rate"] == pytest.approx(int(parts["corrupted"]) / SEGMENTS_BL.sum())
    assert report["level_0.95"] == pytest.approx(float(parts["nats_by_level"][9] / parts["tokens_by_level"][9]))
    empty = {name: np.zeros_like(part) for name, part in parts.items()}
    assert set(objective.report(empty)) == {"nelbo", "loss", "noise_rate"}


def test_each_step_has_its_own_noise_and_a_step_repeats_itself():
    """Noise is a function of the step's key: no hidden generator that a restart would reseed."""
    objective = Objective(MASKED)
    first, again, second = (float(objective(Bigram(WEIGHT), BATCH, key, ROWS)[0]) for key in (KEY, KEY, jax.random.fold_in(KEY, 1)))
    assert first == again != second


def test_a_weighting_that_a_process_does_not_declare_is_refused():
    class Other(Masked):
        name, capabilities = "other", Capabilities()

    with pytest.raises(InputError, match="weighting cross_entropy conflicts with process other; it supports bound"):
        Objective(Other(VOCAB, MASK), weighting=CrossEntropy())
    with pytest.raises(InputError, match="cap is 0"):
        Capped(0.0)
    # The chain rule is one, with weight 1.
    assert Objective(Autoregressive(VOCAB, BOS), weighting=CrossEntropy()).process.name == "autoregressive"


@pytest.mark.parametrize("process", [Masked(VOCAB, MASK), Autoregressive(VOCAB, BOS, MASK, input_mask=0.1)], ids=lambda p: p.name)
def test_a_weighted_objective_is_made_without_a_word_to_the_device(process):
    """The trainer makes the objective of a phase inside its loop, where no transfer is allowed."""
    with jax.transfer_guard("disallow"):
        assert not Objective(process, weighting=CrossEntropy()).trains_bound


FAMILIES = ("masked", "llada", "uniform", "hybrid", "score", "flow_matching", "genmd4", "d3pm", "plaid", "blocks", "autoregressive")


@pytest.mark.parametrize("name", FAMILIES)
def test_times_that_differ_are_a_bound_only_where_their_tokens_are_read_apart(name):
    """Every way to draw levels that a process accepts: along one path of noise all are bounds, block by block only under blocks."""
    process = make_process(name, vocab=VOCAB, mask_id=MASK, bos_id=BOS, **({"size": 2} if name == "blocks" else {}))
    apart = name in ("blocks", "autoregressive")
    paths = [PerRow(Power(0.5)), PerRow(stratified=False), Hyperschedule(1), Hyperschedule(None), Hyperschedule(3, Power(0.5))]
    for times in paths:
        assert Objective(process, times, boundary=True).is_bound
    for times in (PerBlock(2), PerBlock(4, antithetic=True), PerBlock(2, Power(0.5))):
        objective = Objective(process, times, boundary=True)
        assert objective.is_bound == apart and objective.trains_bound == (apart and objective.weighting.is_bound)
    # Blocks of other tokens than those that share a level.
    assert Objective(process, PerBlock(1), boundary=True).is_bound == (name == "autoregressive")
    for times in (PerRow(UniformTimes(0.1, 1.0)), PerBlock(2, UniformTimes(0.1, 1.0))):
        assert not Objective(process, times, boundary=True).is_bound


def test_times_that_differ_can_read_below_the_entropy():
    """Three tokens that are always the same: the chance that a token's two others are both hidden is 1/4 on average, where along one path
    it is 1/3. The mean is 3/4 of their entropy, and no `nelbo`."""
    objective = Objective(Masked(VOCAB, MASK), PerBlock(1))
    table = np.full((TOKENS,) * 3, 1e-9)
    np.fill_diagonal(table, 1.0)
    law = oracle.JointDistribution(table / table.sum())
    batch = batch_of(sample_joint(law, 4096, seed=1))
    denoiser = toy.ToyDenoiser(law, VOCAB, toy.masked_likelihood(TOKENS, MASK))
    report = objective.report(jax.device_get(objective(denoiser, batch, jax.random.key(0), 4096)[1]))
    assert 3 * report["partial_nelbo"] == pytest.approx(0.75 * law.entropy, rel=0.1) and "nelbo" not in report
