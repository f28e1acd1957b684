"""`dlmjax fit predict`: the best run at given FLOPs, by a finished fit. Imports no jax, unless a config of it is asked for."""

import dataclasses
import json
import math
import pathlib
from typing import Any

import numpy as np

from dlmjax.errors import InputError
from dlmjax.files import finite, write_atomically
from dlmjax.fit import results
from dlmjax.fit.analysis import METHODS
from dlmjax.fit.bootstrap import interval
from dlmjax.fit.text import doubted, marked, short, table
from dlmjax.sweep import checks
from dlmjax.sweep.rules import BATCH_EXPONENT, LR_EXPONENT

FAR = 1000.0  # times the largest run's FLOPs; further, the prediction says that it is a long way
FAR_SIZE = 10.0  # times the sizes that were tried; further, it says that FLOPs per token are extrapolated


@dataclasses.dataclass(frozen=True)
class Prediction:
    """The best run of one series at so many FLOPs.

    numbers: size (parameters as `definition` counts them), tokens, loss (nats per token), and batch (tokens of a step), lr, steps where a
    reference run tells; by method. intervals: by method and number, 95 % and 80 %, of both kinds of blocks.
    beyond: FLOPs over those of the largest run. source_of_batch: whose laws batch and learning rate follow.
    doubts: by method, why its law is not to be trusted. chosen: whose run is written as a config; a law in doubt only where it was asked
    for, "" where there is no other. cautions: lines on how far to trust the numbers.
    """

    series: str
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
        return finite(dataclasses.asdict(self))


def predict(
    flops: float,
    *,
    fit: str,
    series: str | None = None,
    definition: str = "total",
    method: str | None = None,
    config: str | None = None,
    json_file: str | None = None,
) -> list[Prediction]:
    """Prints the best run of each series; writes a config of one.

    Args:
      fit: the directory of a fit. series: None = all. definition: of N.
      method: None = all are printed, the first that stands at no bound is written as a config.
      config: a file to write, with `get_config()`. json_file: all predictions.
    Raises InputError: no such fit, series, definition or method; a config is asked for and cannot be written.
    """
    if not 1 <= flops <= checks.MOST:
        raise InputError(f"--flops {flops}: give a positive number from 1 to {checks.MOST:g}, such as 1e22")
    saved = results.read(fit)
    names = _choose(saved, series, definition)
    predictions = [predicted(saved, name, definition, flops, method) for name in names]
    for prediction in predictions:
        print(_say(prediction), flush=True)
    if config is not None:
        if len(predictions) != 1:
            raise InputError(f"a config is of one run: choose with --series among {', '.join(names)}")
        _check_trusted(predictions[0])
        from dlmjax.cli.next_run import write_config  # counts a network, with jax

        print("\n".join(write_config(saved, predictions[0], fit, config)), flush=True)
    if json_file is not None:
        content = json.dumps([prediction.record() for prediction in predictions], indent=1, allow_nan=False)
        write_atomically(pathlib.Path(json_file), (content + "\n").encode())
    return predictions


def _choose(saved: results.Saved, series: str | None, definition: str) -> list[str]:
    found = saved.record["series"]
    if series is not None and series not in found:
        raise InputError(f"the fit has no series {series!r}; it has {', '.join(found)}")
    names = [name for name in found if definition in found[name]["definitions"] and series in (None, name)]
    if not names:
        known = sorted({each for name in found for each in found[name]["definitions"]})
        raise InputError(f"nothing was fitted under N = {definition!r}; choose one of: {', '.join(known) or 'none, no law was fitted'}")
    return names


@np.errstate(all="ignore")  # resamples may go beyond any float: they count at the ends of intervals
def predicted(saved: results.Saved, series: str, definition: str, flops: float, method: str | None = None) -> Prediction:
    """Numbers and intervals of one series. Raises InputError: there is no law by this method, or it gives no finite numbers."""
    laws, resampled = saved.laws(series, definition)
    if method is not None and method not in laws:
        refused = saved.record["series"][series]["definitions"][definition]["refused"].get(method, "no such method")
        raise InputError(f"series {series!r} has no {method!r} law ({refused}); it has {', '.join(laws)}")
    methods = [name for name in METHODS if name in laws and method in (None, name)]
    found = saved.record["series"][series]
    reference, tuning = found["reference"], found["tuning"] or {}
    doubts = {name: reasons for name, reasons in saved.doubts(series, definition).items() if name in methods}
    numbers, intervals = {}, {}
    for name in methods:
        numbers[name] = {key: float(value) for key, value in with_steps(laws[name].at(flops), reference, tuning).items()}
        if not all(0 < value < math.inf for value in numbers[name].values()):
            raise InputError(f"the {name} law of series {series!r} has no best run that is finite at {flops:.3g} FLOPs; choose other FLOPs")
        intervals[name] = {}
        for blocks, drawn in resampled.items():
            samples = with_steps(drawn[name].at(flops), reference, tuning, np.random.default_rng(saved.record["seed"]))
            for key, values in samples.items():
                spread = interval(numbers[name][key], np.broadcast_to(values, np.shape(samples["size"]))).record()
                intervals[name].setdefault(key, {})[blocks] = spread
    largest = max((row["flops"] for row in _best_runs(saved, series, definition)), default=flops * 100) / 100
    chosen = method or next((name for name in methods if name not in doubts), "")
    cautions = _cautions(saved, series, definition, numbers[chosen or methods[0]]["size"])
    return Prediction(series, definition, flops, numbers, intervals, flops / largest, _source(reference, tuning), doubts, chosen, cautions)


def _cautions(saved: results.Saved, series: str, definition: str, size: float) -> tuple[str, ...]:
    """What C = k N^rho D cannot know where N* is far from the sizes that it was fitted to."""
    found = saved.record["series"][series]["definitions"][definition]
    (least, most), compute = found["sizes"], found["compute"]
    if not compute["worst"] or least / FAR_SIZE < size < most * FAR_SIZE:  # nothing fitted, or not far
        return ()
    far = f"{size / most:.3g} times the largest" if size > most else f"1/{least / size:.3g} of the smallest"
    law = f"C = {compute['k']:.4g} N^{compute['rho']:.4g} D"
    return (f"FLOPs per token are extrapolated by {law} to N*, {far} size tried, and D* with them; --config counts those of its shape",)


def _best_runs(saved: results.Saved, series: str, definition: str) -> list[dict]:
    return saved.record["series"][series]["definitions"][definition]["best_runs"]


def with_steps(best: dict[str, Any], reference: dict | None, tuning: dict, draw: np.random.Generator | None = None) -> dict[str, Any]:
    """Size, tokens and loss with what follows from the tokens: batch, learning rate, steps; without a reference run, as they are.

    For arrays of resamples `draw` gives each its own exponents where the fit's own laws know their error: lines turn about the middle of
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
    """Whose laws batch and learning rate follow, and whether their intervals know the exponents' error."""
    if reference is None:
        return "no reference run: batch and learning rate are not known"
    own = [name for name in ("batch", "lr") if tuning.get(name)]
    rules = f"published exponents {BATCH_EXPONENT} and {LR_EXPONENT} (2512.10858) through {reference['id']}"
    said = f"{' and '.join(own)} by this fit's own laws" + ("" if len(own) == 2 else f", else {rules}") if own else rules
    unknown = [name for name in ("batch", "lr") if not (tuning.get(name) and tuning[name]["exponent_stderr"] is not None)]
    return said + (f"; error of the exponent not known ({', '.join(unknown)})" if unknown else "")


def _say(prediction: Prediction) -> str:
    rows = [("approach", "N*", "D*, tokens", "loss", "batch, tokens", "lr", "steps")]
    for method, numbers in prediction.numbers.items():
        cells = [short(numbers[key]) if key in numbers else "-" for key in ("size", "tokens", "loss", "batch", "lr", "steps")]
        rows.append((marked(method, prediction.doubts.get(method)), *cells))
        for blocks in next(iter(prediction.intervals[method].values()), {}):
            ends = [prediction.intervals[method].get(key, {}).get(blocks) for key in ("size", "tokens", "loss", "batch", "lr", "steps")]
            rows.append((f"  95 %, {blocks}", *(_ends(each) for each in ends)))
    lines = [f"{prediction.series} at {prediction.flops:.4g} FLOPs, N = {prediction.definition}", *table(rows, "  ")]
    lines.append(f"  batch and lr: {prediction.source_of_batch}")
    lines += [f"  {line}" for line in doubted(prediction.doubts)]
    lines += [f"  {caution}" for caution in prediction.cautions]
    if prediction.beyond > 1 and "envelope" in prediction.numbers:
        lines.append("  beyond the runs, the envelope's loss is too low: it is a power law without a floor")
    if prediction.beyond > FAR:
        lines.append(
            f"  this is {prediction.beyond:.1e} times the largest run: the intervals know the scatter of the runs, not whether laws bend"
        )
    return "\n".join(lines)


def _ends(found: dict | None) -> str:
    if found is None or found["95"][0] is None:
        return "-"
    low, high = found["95"]
    return f"{short(low)} .. {short(high)}"


def _check_trusted(prediction: Prediction) -> None:
    """Raises InputError: no law of the series is trusted, and none was asked for by name."""
    if not prediction.chosen:
        reasons = "; ".join(f"{method}, {reasons[0]}" for method, reasons in prediction.doubts.items())
        raise InputError(
            f"no law of series {prediction.series!r} is trusted ({reasons}); "
            f"add runs, or take one all the same with --method {next(iter(prediction.doubts))}"
        )
