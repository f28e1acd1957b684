"""From any other weighting to the bound over a run, for every process that supports one; and the bound in the log of each."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dlmjax.diffusion import Annealed, CrossEntropy, Denoiser, Objective, PerRow, make_weighting
from dlmjax.diffusion.capabilities import make_named
from dlmjax.diffusion.process import init_params
from dlmjax.diffusion.registry import PROCESSES, WEIGHTINGS
from dlmjax.errors import InputError
from tests.diffusion.battery import batch_of

ROWS, LENGTH, VOCAB = 4, 8, 29
BATCH = batch_of(np.random.default_rng(0).integers(0, VOCAB - 3, (ROWS, LENGTH)).astype(np.int32))
KEY = jax.random.key(3)
NAMES = (*PROCESSES, "masked(eps=0.1)", "masked(schedule=log_linear)", "blocks(noise=uniform)", "blocks(noise=llada)")


@dataclasses.dataclass(frozen=True, eq=False)
class Linear(Denoiser):
    """Logits that are linear in the state, with the loss computed at all positions at once."""

    columns: int

    def hidden(self, z_BL, t_BL, hint_BLI=None):
        values = z_BL if jnp.issubdtype(z_BL.dtype, jnp.inexact) else jnp.sin(1.0 + z_BL)
        values = values.reshape(*t_BL.shape, -1)
        return jnp.concatenate([values, t_BL[..., None]], axis=-1)

    def logits(self, hidden):
        return hidden @ jax.random.normal(jax.random.key(1), (hidden.shape[-1], self.columns))

    def expect(self, hidden, table_VI=None):
        p = jax.nn.softmax(self.logits(hidden))
        return p if table_VI is None else p @ table_VI

    def row_losses(self, hidden_BLD, loss_mask_BL, loss_fn, args, weight_BL):
        found = loss_fn(self.logits(hidden_BLD), *args)
        trained_BL, nats_BL = (jnp.where(loss_mask_BL, a, 0.0) for a in (found if isinstance(found, tuple) else (found, found)))
        return jnp.sum(trained_BL * weight_BL), jax.lax.stop_gradient(nats_BL)


def process_of(name):
    process = make_named(name)
    return process.with_params(init_params(process, jax.random.key(0)) or None)


def starts_of(process):
    """All but the bound, and the one that requires a denoiser of two networks and is refused as a start."""
    return [name for name in process.capabilities.weightings if name not in ("bound", "anchored")]


@pytest.mark.parametrize("name", NAMES)
def test_the_trained_loss_goes_from_its_start_to_the_bound(name):
    """Where a quarter of the run is done, half way from begin to end, it is the mean of both, boundary terms included in the bound; the
    reported bound is the same for each."""
    process = process_of(name)
    starts, times = starts_of(process), process.time_domain.adapt(PerRow())
    if not starts:
        with pytest.raises(InputError, match=r"weighting annealed\(start=cross_entropy\) conflicts with process"):
            Objective(process, times, Annealed())
        return
    denoiser, start = Linear(process.output.columns), starts[-1]
    total = {}
    for weighting in (start, "bound"):
        objective = Objective(process, times, make_weighting(weighting))
        total[weighting] = float(objective(denoiser, BATCH, KEY, ROWS)[0])
    annealed = Objective(process, times, make_weighting("annealed", start=start, end=0.5))
    found, terms = annealed(denoiser, BATCH, KEY, ROWS, jnp.float32(0.25))
    assert float(found) == pytest.approx((total[start] + total["bound"]) / 2, rel=2e-5)
    assert float(terms["loss"]) == float(found) and float(terms["nats"]) == pytest.approx(total["bound"], rel=2e-5)
    report = annealed.report(jax.device_get(terms))
    assert "loss_annealed_not_a_bound" in report and "loss" not in report and not annealed.trains_bound
    assert ("nelbo" in report) == process.capabilities.is_bound


def test_the_gradient_goes_from_its_start_to_the_bound_in_one_program():
    """`progress` is an argument: one compilation for the whole run; before `begin` and after `end` it is one of the two, exactly."""
    process, weight = process_of("masked"), jax.random.normal(jax.random.key(1), (2, VOCAB))
    traced = []

    @dataclasses.dataclass(frozen=True, eq=False)
    class Weighted(Linear):
        weight: jax.Array = None

        def logits(self, hidden):
            return hidden @ self.weight

    def gradient_of(weighting):
        @jax.jit
        def gradient(progress):
            traced.append(weighting.name)
            return jax.grad(
                lambda w: Objective(process, weighting=weighting)(Weighted(VOCAB, w), BATCH, KEY, ROWS, progress)[0],
            )(weight)

        return gradient

    cross_entropy, bound = (np.asarray(gradient_of(w)(None)) for w in (CrossEntropy(), make_weighting("bound")))
    annealed = gradient_of(Annealed(begin=0.2, end=0.6))
    for progress, share in ((0.0, 0.0), (0.2, 0.0), (0.3, 0.25), (0.6, 1.0), (1.0, 1.0)):
        expected = (1 - share) * cross_entropy + share * bound
        np.testing.assert_allclose(annealed(jnp.float32(progress)), expected, rtol=1e-4, atol=1e-5)
    assert traced.count("annealed") == 1


@pytest.mark.parametrize("name", [name for name in NAMES if starts_of(make_named(name))])
def test_the_bound_is_logged_beside_every_weighting(name):
    """Under each other weighting the report holds the bound or, where a pass at t = 0 would be required for it, its diffusion part by a
    name that says so; and the trained loss by a name that is no bound's. The progress line shows both."""
    process = make_named(name)
    for weighting in starts_of(process):
        objective = Objective(process, process.time_domain.adapt(PerRow()), make_weighting(weighting))
        terms = {key: np.ones(10 if "level" in key else ()) for key in ("tokens", "nats", "loss", "corrupted")}
        report = objective.report(terms | {"nats_by_level": np.ones(10), "tokens_by_level": np.ones(10)})
        named = "nelbo" if process.capabilities.is_bound and not process.boundary.reconstruction else "partial_nelbo"
        assert named in report and f"loss_{weighting}_not_a_bound" in report and "loss" not in report
        shown = objective.summary(report)
        assert list(shown) == ["bound" if named == "nelbo" else "loss (not a bound)", "trained"]


def test_a_prior_term_is_reported_whatever_is_trained_and_costs_no_pass():
    """log_linear leaves text at t = 1: a constant, without which the diffusion part would be below the bound."""
    process = process_of("masked(schedule=log_linear)")
    objective, bound = (Objective(process, weighting=weighting) for weighting in (CrossEntropy(), None))
    (total, terms), (_, of_bound) = (one(Linear(VOCAB), BATCH, KEY, ROWS) for one in (objective, bound))
    assert objective.is_bound and not objective.trains_bound and float(terms["prior"]) > 0
    assert float(terms["nats"]) == float(of_bound["nats"]) and float(terms["loss"]) == float(total)


@pytest.mark.parametrize(
    "values, says",
    [
        ({"start": "bound"}, "start is bound"),
        ({"start": "annealed"}, "start is annealed"),
        ({"start": "cross_entrop"}, "did you mean 'cross_entropy'"),
        ({"start": "capped(cap=0.0)"}, "cap is 0"),
        ({"begin": 0.5, "end": 0.5}, "0 <= begin < end <= 1"),
        ({"end": 1.5}, "0 <= begin < end <= 1"),
        ({"start": 3}, "start requires a word"),
    ],
)
def test_impossible_values_are_refused(values, says):
    with pytest.raises(InputError, match=says):
        make_weighting("annealed", **values)


def test_a_run_says_how_far_it_is():
    with pytest.raises(InputError, match="requires the share of the run that is done"):
        Objective(process_of("masked"), weighting=Annealed())(Linear(VOCAB), BATCH, KEY, ROWS)
    assert set(WEIGHTINGS) - {"annealed"} == {make_weighting(name).supported_as for name in WEIGHTINGS}
