"""The best run at given FLOPs by the laws of a finished fit. Imports no jax."""

import dataclasses
import math
from typing import Any

import numpy as np

from dlmjax import checks
from dlmjax.errors import InputError
from dlmjax.files import finite
from dlmjax.fit import results
from dlmjax.fit.analysis import METHODS
from dlmjax.fit.bootstrap import interval
from dlmjax.published import BATCH_EXPONENT, LR_EXPONENT

FAR_SIZE = 10.0  # times the sizes that were tried; beyond it a caution says that FLOPs per token are extrapolated


@dataclasses.dataclass(frozen=True)
class Prediction:
    """The best run of one objective at the given FLOPs.

    numbers: by method, size (parameters as `definition` counts them), tokens, loss (nats per token); with a reference run batch (tokens
    of a step), lr and steps too. intervals: by method and number, 95 % and 80 %, of both kinds of blocks.
    beyond: FLOPs over those of the largest run. source_of_batch: whose laws batch and learning rate follow.
    doubts: by method, why its law is not to be trusted. chosen: the law of a written config; a law in doubt only where --method names it,
    "" where there is no other. cautions: lines on how far to trust the numbers.
    """

    objective: str
    definition: str
    flops: float
    numbers: dict[str, dict[str, float]]
    intervals: dict[str, dict[str, dict[str, Any]]]
    beyond: float
    source_of_batch: str
    doubts: dict[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)
    chosen: str = ""
    cautions: tuple[str, ...] = ()

    def record(self) -> dict[str, Any]:
        """Plain JSON; its key for the objective is "series"."""
        fields = dataclasses.asdict(self)
        return finite({"series": fields.pop("objective"), **fields})


def predict(
    saved: results.Saved, flops: float, *, objective: str | None = None, definition: str = "total", method: str | None = None
) -> list[Prediction]:
    """The best run of each objective at the given FLOPs.

    Args:
      saved: a finished fit (`results.read`). objective: one objective; None = all. definition: of N.
      method: None = all, and the first whose law is trusted is the chosen one.
    Raises InputError: no such objective, definition or method; no finite prediction.
    """
    if not 1 <= flops <= checks.MOST:
        raise InputError(f"--flops {flops}: give a positive number from 1 to {checks.MOST:g}, such as 1e22")
    return [predicted(saved, name, definition, flops, method) for name in _choose(saved, objective, definition)]


def check_trusted(prediction: Prediction) -> None:
    """Raises InputError: no law of the objective is trusted, and --method names none."""
    if not prediction.chosen:
        reasons = "; ".join(f"{method}, {reasons[0]}" for method, reasons in prediction.doubts.items())
        raise InputError(
            f"no law of objective {prediction.objective!r} is trusted ({reasons}); "
            f"add runs, or take one all the same with --method {next(iter(prediction.doubts))}"
        )


def _choose(saved: results.Saved, objective: str | None, definition: str) -> list[str]:
    found = saved.record["series"]
    if objective is not None and objective not in found:
        raise InputError(f"--objective {objective}: the fit has no such objective; it has {', '.join(found)}")
    names = [name for name in found if definition in found[name]["definitions"] and objective in (None, name)]
    if not names:
        known = sorted({each for name in found for each in found[name]["definitions"]})
        raise InputError(
            f"--definition {definition}: nothing was fitted under this N; choose one of: {', '.join(known) or 'none, no law was fitted'}"
        )
    return names


@np.errstate(all="ignore")  # resamples may go beyond any float: they count at the ends of intervals
def predicted(saved: results.Saved, objective: str, definition: str, flops: float, method: str | None = None) -> Prediction:
    """Numbers and intervals of one objective. Raises InputError: there is no law by this method, or it gives no finite numbers."""
    laws, resampled = saved.laws(objective, definition)
    if method is not None and method not in laws:
        refused = saved.record["series"][objective]["definitions"][definition]["refused"].get(method, "no such method")
        raise InputError(f"objective {objective!r} has no {method!r} law ({refused}); it has {', '.join(laws)}")
    methods = [name for name in METHODS if name in laws and method in (None, name)]
    found = saved.record["series"][objective]
    reference, tuning = found["reference"], found["tuning"] or {}
    doubts = {name: reasons for name, reasons in saved.doubts(objective, definition).items() if name in methods}
    numbers, intervals = {}, {}
    for name in methods:
        numbers[name] = {key: float(value) for key, value in with_steps(laws[name].at(flops), reference, tuning).items()}
        if not all(0 < value < math.inf for value in numbers[name].values()):
            raise InputError(
                f"the {name} law of objective {objective!r} has no best run that is finite at {flops:.3g} FLOPs; choose other FLOPs"
            )
        intervals[name] = {}
        for blocks, drawn in resampled.items():
            samples = with_steps(drawn[name].at(flops), reference, tuning, np.random.default_rng(saved.record["seed"]))
            for key, values in samples.items():
                spread = interval(numbers[name][key], np.broadcast_to(values, np.shape(samples["size"]))).record()
                intervals[name].setdefault(key, {})[blocks] = spread
    largest = max((row["flops"] for row in _best_runs(saved, objective, definition)), default=flops * 100) / 100
    chosen = method or next((name for name in methods if name not in doubts), "")
    cautions = _cautions(saved, objective, definition, numbers[chosen or methods[0]]["size"])
    return Prediction(
        objective, definition, flops, numbers, intervals, flops / largest, _source(reference, tuning), doubts, chosen, cautions
    )


def _cautions(saved: results.Saved, objective: str, definition: str, size: float) -> tuple[str, ...]:
    """A caution where N* is far from the sizes that C = k N^rho D was fitted to."""
    found = saved.record["series"][objective]["definitions"][definition]
    (least, most), compute = found["sizes"], found["compute"]
    if not compute["worst"] or least / FAR_SIZE < size < most * FAR_SIZE:  # nothing fitted, or not far
        return ()
    far = f"{size / most:.3g} times the largest" if size > most else f"1/{least / size:.3g} of the smallest"
    law = f"C = {compute['k']:.4g} N^{compute['rho']:.4g} D"
    return (f"FLOPs per token are extrapolated by {law} to N*, {far} size tried, and D* with them; --config counts those of its shape",)


def _best_runs(saved: results.Saved, objective: str, definition: str) -> list[dict]:
    return saved.record["series"][objective]["definitions"][definition]["best_runs"]


def with_steps(best: dict[str, Any], reference: dict | None, tuning: dict, draw: np.random.Generator | None = None) -> dict[str, Any]:
    """Size, tokens and loss, and from the tokens: batch, learning rate, steps; without a reference run, unchanged.

    For arrays of resamples `draw` gives each its own exponents where the fit's own laws have an error: lines pivot about the middle of
    the minima that they go through.
    """
    best = dict(best)
    if reference is None:
        return best
    at_batch = reference["batch"] * reference["length"]
    laws = {
        "batch": ("tokens", BATCH_EXPONENT, at_batch, reference["tokens"]),
        "lr": ("batch", LR_EXPONENT, reference["lr"], at_batch),
    }
    for name, (of, published, value, at) in laws.items():
        own, x = tuning.get(name), best[of]
        if own:
            error = draw.standard_normal(np.shape(x)) * (own["exponent_stderr"] or 0.0) if draw is not None else 0.0
            best[name] = own["coefficient"] * x ** own["exponent"] * (x / own["pivot"]) ** error
        else:
            best[name] = value * (x / at) ** published
    best["steps"] = best["tokens"] / best["batch"]
    return best


def _source(reference: dict | None, tuning: dict) -> str:
    """Whose laws batch and learning rate follow, and whether their intervals include the error of the exponents."""
    if reference is None:
        return "no reference run: batch and learning rate are not known"
    own = [name for name in ("batch", "lr") if tuning.get(name)]
    rules = f"published exponents {BATCH_EXPONENT} and {LR_EXPONENT} (2512.10858) through {reference['id']}"
    said = f"{' and '.join(own)} by this fit's own laws" + ("" if len(own) == 2 else f", else {rules}") if own else rules
    unknown = [name for name in ("batch", "lr") if not (tuning.get(name) and tuning[name]["exponent_stderr"] is not None)]
    return said + (f"; error of the exponent not known ({', '.join(unknown)})" if unknown else "")
