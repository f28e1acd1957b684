"""The config of a predicted run: `dlmjax fit predict --config`. It counts the network that it writes, with jax."""

from __future__ import annotations

import dataclasses
import math
import pathlib
import pprint
import shlex
from bisect import bisect_left
from typing import Any

import numpy as np

from dlmjax import config as config_lib
from dlmjax.data.token_budget import parse_path
from dlmjax.data.tokenizers import MOST_IDS, load_tokenizer
from dlmjax.errors import InputError
from dlmjax.experiment import Experiment, embedding_of, open_corpora
from dlmjax.files import write_atomically
from dlmjax.fit.predict import Prediction, with_steps
from dlmjax.fit.results import Saved
from dlmjax.plan.hardware import Vocabulary, alone
from dlmjax.sweep import counts, ladder
from dlmjax.sweep.planning import microbatches
from dlmjax.sweep.rules import of_length

# The field of `Counts` for each definition of N.
_COUNTED = {"total": "parameters", "non_embedding": "non_embedding", "active": "active", "flops_per_token": "flops_per_token"}


def write_config(saved: Saved, prediction: Prediction, fit: str, file: str) -> list[str]:
    """Writes the config of a predicted run; returns lines for a person: how to train it, or what is missing for that.

    Raises InputError: as `config_text`, or the file cannot be written.
    """
    text = config_text(saved, prediction, fit)
    write_atomically(file, text)
    train = shlex.join(["dlmjax", "train", "--config", file, "--workdir", str(pathlib.PurePath(file).with_suffix(""))])
    lacks = missing(config_lib.load(file), saved.record["series"][prediction.objective]["reference"]["vocab"])
    if not lacks:
        return [f"written: {file}; train it with: {train}"]
    return [f"written: {file}; it cannot be trained yet: {lacks}", f"then: {train}"]


def config_text(saved: Saved, prediction: Prediction, fit: str) -> str:
    """A config file of the predicted run: the reference run's leaves, on the size of the ladder nearest to N*, with the values of the laws.

    Parameters and FLOPs per token of that shape are counted under the run's own objective, and steps are what the FLOPs pay for: the run
    costs --flops, whatever C = k N^rho D gives. Microbatches are no larger than the reference's; warm-up and the horizon of
    the averaged weights keep their share of the steps; the run is evaluated, sampled and saved twenty times.
    Raises InputError: the fit holds no run's config (outside tables), the ladder has no such shape, or what would be written does not load.
    """
    objective = saved.record["series"][prediction.objective]
    reference = objective["reference"]
    if prediction.definition not in _COUNTED:
        raise InputError(f"no network is counted by N = {prediction.definition!r}; choose one of: {', '.join(_COUNTED)}")
    if reference is None or not reference["config"]:
        raise InputError(f"objective {prediction.objective!r} has no run with a config to start from; tables provide numbers alone")
    method, numbers = prediction.chosen, prediction.numbers[prediction.chosen]
    config = _config(config_lib.renamed(reference["config"]), reference["id"])
    leaves = config_lib.leaves(config)
    shape, counted = _nearest(_experiment(config, reference), prediction.definition, numbers["size"])
    tokens = prediction.flops / counted.flops_per_token
    best = with_steps({"tokens": tokens}, reference, objective["tuning"] or {})
    batch = 2 ** max(round(math.log2(best["batch"] / reference["length"])), 0)
    steps = max(round(tokens / (batch * reference["length"])), 1)
    accumulation = microbatches(batch, leaves["data.batch"] // leaves["train.accumulation"], 1)
    leaves |= {f"model.{field.name}": getattr(shape, field.name) for field in dataclasses.fields(shape)}
    leaves |= {"data.batch": batch, "train.accumulation": accumulation, "optimizer.lr": float(f"{best['lr']:.3g}")}
    leaves |= of_length(leaves, steps)
    # A run of a sweep looks at held-out text once, at its end, and keeps one checkpoint; one by itself is watched, and can be lost.
    every = max(steps // 20, 1)
    leaves |= {"log.every": max(every // 5, 1), "log.evaluate": every, "log.sample": every}
    leaves |= {"checkpoint.every": every, "checkpoint.keep": 2, "checkpoint.best": 1}
    _config(leaves, reference["id"])
    size = getattr(counted, _COUNTED[prediction.definition])
    law = saved.laws(prediction.objective, prediction.definition)[0][method].compute
    off = tokens / float(law.tokens(prediction.flops, size))
    low, high = prediction.intervals[method].get("loss", {}).get("runs", {}).get("95", (None, None))
    spread = f" (95 % {low:.4f} to {high:.4f})" if low is not None else ""
    text = f"""{prediction.objective} at {prediction.flops:.4g} FLOPs: the best run by the {method} law of {fit}.

N* = {numbers["size"]:.4g} ({prediction.definition}); the ladder's nearest shape has {size:,.0f} ({shape}).
{counted.flops_per_token:.4g} FLOPs per token, counted, pay for {tokens:.4g} tokens: {off:.3g} times those of the fit's C = k N^rho D.
Expected loss {numbers["loss"]:.4f} nats/token{spread}, of the law's own N* and D*.
Batch and lr: {prediction.source_of_batch}. {accumulation} microbatches a step.
All other leaves are those of {reference["id"]}; evaluated, sampled and saved every {every} steps.
"""
    return f"""{docstring(text)}

from dlmjax import config as config_lib

LEAVES = {pprint.pformat(leaves, width=120)}


def get_config():
    config = config_lib.default()
    config.update_from_flattened_dict(LEAVES)
    return config
"""


def docstring(text: str) -> str:
    """A text as the docstring literal of a Python file: names in it come from foreign files, and stay text."""
    lines = [line.encode("unicode_escape").decode("ascii").replace('"', '\\"') for line in text.split("\n")]
    return '"""' + "\n".join(lines) + '"""'


def missing(config: Any, vocab: int) -> str:
    """What a config lacks on this machine to be trained, and how to make it; "" where nothing is missing.

    Args:
      vocab: ids of the tokenizer, special ones included, under which the loss was predicted.
    """
    paths = [parse_path(path)[0] for path in config.data.paths]
    known = [name for name in ("char27", "bytes") if load_tokenizer(name).vocab_size == vocab]
    tokenizer = known[0] if known else f"SPEC, that of the fitted runs ({vocab:,} ids)"
    output = shlex.quote(paths[0]) if paths else "DIR"
    make = f"prepare it with: dlmjax prepare --input FILE ... --valid-fraction 0.01 --output {output} --tokenizer {tokenizer}"
    elsewhere = "where it lies elsewhere, train with --config.data.paths=DIR"
    if not paths:
        return f"it names no corpus; {make}; then train with --config.data.paths=DIR"
    try:
        corpora = open_corpora(config, "train")
    except InputError as error:
        return f"{str(error).partition(';')[0]}; {make}; {elsewhere}"
    found = config.model.vocab or corpora[0].tokenizer.vocab_size
    if found != vocab:
        other = (
            f"the tokenizer of {corpora[0].directory} has {found:,} ids, that of the fitted runs {vocab:,}: the predicted loss is another's"
        )
        return f"{other}; {make}; {elsewhere}"
    return ""


def _config(leaves: dict[str, Any], name: str) -> Any:
    """The checked config of these leaves, lists in place of tuples; what they leave out is at its default. Raises InputError: it would not
    load."""
    config = config_lib.default()
    try:
        config.update_from_flattened_dict({name: tuple(value) if isinstance(value, list) else value for name, value in leaves.items()})
        config_lib.check(config)
    except (InputError, KeyError, AttributeError, TypeError, ValueError) as error:
        raise InputError(f"no config can be written from that of {name}: {' '.join(str(error).split())}") from error
    return config


def _experiment(config: Any, reference: dict[str, Any]) -> Experiment:
    """The reference run for counting. Its corpus is not opened: tokens stand in as all equally frequent, which changes no shape."""
    vocab = reference["vocab"]
    if not 5 <= vocab <= MOST_IDS:
        raise InputError(f"the run {reference['id']} has a vocabulary of {vocab:,} ids, which no tokenizer has; fit its records again")
    return alone(config, Vocabulary(vocab), np.ones(vocab), embedding_of(config, None))


def _nearest(experiment: Experiment, definition: str, size: float) -> tuple[ladder.Shape, counts.Counts]:
    """The size of the ladder nearest to N* in ratio, by its own counts. Raises InputError: N* is beyond the ladder."""

    def counted(width: int) -> counts.Counts:
        return counts.count(counts.with_shape(experiment, ladder.shape(width)))

    def sized(width: int) -> float | int:
        return getattr(counted(width), _COUNTED[definition])

    least, most = sized(ladder.WIDTHS[0]), sized(ladder.WIDTHS[-1])
    if not least / 2 <= size <= most * 2:
        raise InputError(f"the ladder has no shape with N = {size:.3g} ({definition}); it goes from {least:.3g} to {most:.3g}")
    index = bisect_left(ladder.WIDTHS, size, key=sized)
    width = min(ladder.WIDTHS[max(index - 1, 0) : index + 1], key=lambda width: abs(math.log(sized(width) / size)))
    return ladder.shape(width), counted(width)
