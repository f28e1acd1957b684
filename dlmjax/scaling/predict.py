"""`dlmjax fit predict`: the best run at given FLOPs, by a finished fit, and a config of it. Imports no jax."""

import dataclasses
import json
import math
import pathlib
import pprint
from typing import Any

import numpy as np

from dlmjax.errors import InputError
from dlmjax.files import write_atomically
from dlmjax.scaling import results
from dlmjax.scaling.analysis import METHODS
from dlmjax.scaling.bootstrap import interval
from dlmjax.scaling.fit_text import short, table
from dlmjax.scaling.rules import BATCH_EXPONENT, LR_EXPONENT, of_length

FAR = 1000.0  # times the largest run's FLOPs; further, the prediction says that it is a long way


@dataclasses.dataclass(frozen=True)
class Prediction:
    """The best run of one series at so many FLOPs.

    numbers: size (parameters as `definition` counts them), tokens, loss (nats per token), and batch (tokens of a step), lr, steps where a
    reference run tells; by method. intervals: by method and number, 95 % and 80 %, of both kinds of blocks.
    source_of_batch: whose laws batch and learning rate follow.
    """

    series: str
    definition: str
    flops: float
    numbers: dict[str, dict[str, float]]
    intervals: dict[str, dict[str, dict[str, Any]]]
    beyond: float
    source_of_batch: str

    def record(self) -> dict[str, Any]:
        return results.plain(dataclasses.asdict(self))


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
      fit: the directory of a fit. series: None = all. definition: of N. method: None = all are printed, the first is written as a config.
      config: a file to write, with `get_config()`. json_file: all predictions.
    Raises InputError: no such fit, series, definition or method; a config is asked for and cannot be written.
    """
    if not (math.isfinite(flops) and flops > 0):
        raise InputError(f"--flops {flops}: give a positive number, such as 1e22")
    saved = results.read(fit)
    names = _choose(saved, series, definition)
    predictions = [predicted(saved, name, definition, flops, method) for name in names]
    for prediction in predictions:
        print(_say(prediction), flush=True)
    if config is not None:
        if len(predictions) != 1:
            raise InputError(f"a config is of one run: choose with --series among {', '.join(names)}")
        text = config_text(saved, predictions[0], fit)
        write_atomically(pathlib.Path(config), text.encode())
        print(f"written: {config}; train it with: dlmjax train --config {config} --workdir DIR", flush=True)
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


def predicted(saved: results.Saved, series: str, definition: str, flops: float, method: str | None = None) -> Prediction:
    """Numbers and intervals of one series. Raises InputError: there is no law by this method."""
    laws, resampled = saved.laws(series, definition)
    if method is not None and method not in laws:
        refused = saved.record["series"][series]["definitions"][definition]["refused"].get(method, "no such method")
        raise InputError(f"series {series!r} has no {method!r} law ({refused}); it has {', '.join(laws)}")
    methods = [name for name in METHODS if name in laws and method in (None, name)]
    reference = saved.record["series"][series]["reference"]
    tuning = saved.record["series"][series]["tuning"] or {}
    numbers, intervals, source = {}, {}, ""
    for name in methods:
        best, source = _with_steps(laws[name].at(flops), reference, tuning)
        numbers[name] = {key: float(value) for key, value in best.items()}
        intervals[name] = {}
        for blocks, drawn in resampled.items():
            samples, _ = _with_steps(drawn[name].at(flops), reference, tuning)
            for key, values in samples.items():
                found = interval(numbers[name][key], np.broadcast_to(values, np.shape(samples["size"]))).record()
                intervals[name].setdefault(key, {})[blocks] = found
    largest = max((row["flops"] for row in _best_runs(saved, series, definition)), default=flops * 100) / 100
    return Prediction(series, definition, flops, numbers, intervals, flops / largest, source)


def _best_runs(saved: results.Saved, series: str, definition: str) -> list[dict]:
    return saved.record["series"][series]["definitions"][definition]["best_runs"]


def _with_steps(best: dict[str, Any], reference: dict | None, tuning: dict) -> tuple[dict[str, Any], str]:
    """Size, tokens and loss with what follows from the tokens: batch, learning rate, steps (arrays for resamples); and by whose laws."""
    best = dict(best)
    if reference is None:
        return best, "no reference run: batch and learning rate are not known"
    own = [name for name in ("batch", "lr") if tuning.get(name)]
    at_batch = reference["batch"] * reference["length"]
    if tuning.get("batch"):
        best["batch"] = tuning["batch"]["coefficient"] * best["tokens"] ** tuning["batch"]["exponent"]
    else:
        best["batch"] = at_batch * (best["tokens"] / reference["tokens"]) ** BATCH_EXPONENT
    if tuning.get("lr"):
        best["lr"] = tuning["lr"]["coefficient"] * best["batch"] ** tuning["lr"]["exponent"]
    else:
        best["lr"] = reference["lr"] * (best["batch"] / at_batch) ** LR_EXPONENT
    best["steps"] = best["tokens"] / best["batch"]
    rules = f"published exponents {BATCH_EXPONENT} and {LR_EXPONENT} (2512.10858) through {reference['id']}"
    return best, f"{' and '.join(own)} by this fit's own laws" + ("" if len(own) == 2 else f", else {rules}") if own else rules


def _say(prediction: Prediction) -> str:
    rows = [("approach", "N*", "D*, tokens", "loss", "batch, tokens", "lr", "steps")]
    for method, numbers in prediction.numbers.items():
        cells = [short(numbers[key]) if key in numbers else "-" for key in ("size", "tokens", "loss", "batch", "lr", "steps")]
        rows.append((method, *cells))
        for blocks in next(iter(prediction.intervals[method].values()), {}):
            ends = [prediction.intervals[method].get(key, {}).get(blocks) for key in ("size", "tokens", "loss", "batch", "lr", "steps")]
            rows.append((f"  95 %, {blocks}", *(_ends(each) for each in ends)))
    lines = [f"{prediction.series} at {prediction.flops:.4g} FLOPs, N = {prediction.definition}", *table(rows, "  ")]
    lines.append(f"  batch and lr: {prediction.source_of_batch}")
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


def config_text(saved: results.Saved, prediction: Prediction, fit: str) -> str:
    """A config file of the predicted run: the reference run's leaves, on the ladder's nearest shape, with what the laws say.

    Tokens are those that the FLOPs pay for at the ladder's shape, so the run costs what was asked for. Warm-up and the horizon of the
    averaged weights keep their share of the steps; the run is evaluated, sampled and saved twenty times.
    Raises InputError: the fit knows no run's config (outside tables), or sizes are FLOPs per token.
    """
    reference = saved.record["series"][prediction.series]["reference"]
    if reference is None or not reference["config"]:
        raise InputError(f"series {prediction.series!r} has no run with a config to start from; tables give numbers alone")
    if prediction.definition not in ("total", "non_embedding"):
        raise InputError("a config needs N = total or non_embedding: the ladder of shapes counts parameters")
    from dlmjax.scaling import ladder

    method = next(iter(prediction.numbers))
    numbers, leaves = prediction.numbers[method], dict(reference["config"])
    tied = bool(leaves["model.tied"])
    vocab = reference["vocab"] if prediction.definition == "total" else 0
    shape = ladder.shape_near(numbers["size"], vocab, tied)
    size = shape.parameters(vocab, tied)
    laws, _ = saved.laws(prediction.series, prediction.definition)
    tokens = float(laws[method].compute.tokens(prediction.flops, size))
    best, _ = _with_steps({"tokens": tokens}, reference, saved.record["series"][prediction.series]["tuning"] or {})
    batch = 2 ** max(round(math.log2(best["batch"] / reference["length"])), 0)
    steps = max(round(tokens / (batch * reference["length"])), 1)
    lr = float(f"{best['lr']:.3g}")
    changed = {f"model.{field.name}": getattr(shape, field.name) for field in dataclasses.fields(shape)}
    changed |= {"data.batch": batch, "optimizer.lr": lr, **of_length(leaves, steps)}
    # A run of a sweep looks at held-out text once, at its end, and keeps one checkpoint; one by itself is watched, and can be lost.
    every = max(steps // 20, 1)
    changed |= {"log.every": max(every // 5, 1), "log.evaluate": every, "log.sample": every}
    changed |= {"checkpoint.every": every, "checkpoint.keep": 2, "checkpoint.best": 1}
    leaves = {name: tuple(value) if isinstance(value, list) else value for name, value in leaves.items()} | changed
    low, high = prediction.intervals[method].get("loss", {}).get("runs", {}).get("95", (None, None))
    spread = f" (95 % {low:.4f} to {high:.4f})" if low is not None else ""
    return f'''"""{prediction.series} at {prediction.flops:.4g} FLOPs: the best run by the {method} law of `{fit}`.

N* = {numbers["size"]:.4g} {prediction.definition} parameters; the ladder's nearest shape has {size:,} ({shape}).
{tokens:.4g} tokens; expected loss {numbers["loss"]:.4f} nats/token{spread}. Batch and lr: {prediction.source_of_batch}.
All other leaves are those of {reference["id"]}; evaluated, sampled and saved every {every} steps.

dlmjax train --config THIS_FILE --workdir DIR
"""

from dlmjax import config as config_lib

LEAVES = {pprint.pformat(leaves, width=120)}


def get_config():
    config = config_lib.default()
    config.update_from_flattened_dict(LEAVES)
    return config
'''
