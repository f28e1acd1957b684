"""Every field of a config, declared once: default, meaning, unit, bounds, and which programs depend on it. Imports no jax.

`config.default()`, the checks of single fields, `dlmjax train --help-config`, docs/config.md, the fields that may change when a run
resumes, and those that compiled programs depend on are derived from `FIELDS`. What two fields must satisfy together is checked by the
dataclass that holds both (`ModelSpec`), or by `config.check` where they are of two sections.
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

from dlmjax import choices
from dlmjax.errors import InputError
from dlmjax.quadrature import MOST_CALLS, NODES
from dlmjax.seeds import SEEDS

MOST = 2**31 - 1  # of a whole number
MOST_LOOPS = 256  # runs of a layer: each is compiled
ALL, SOME, NONE = "all", "some", "none"  # compiled programs of a run that depend on a field


@dataclasses.dataclass(frozen=True)
class Field:
    """One field of a config.

    doc: a noun phrase with its unit. least, most: bounds of a number, which itself is allowed, but for `above` and `below`. one_of: the
    texts that are allowed. named: the text is a name, or a name with values (`choices.parse`). identity: another value makes another
    run. programs: the compiled programs of a run that depend on the value, ALL, SOME or NONE. added: declared since 2026-12, when runs
    existed that do not have the field: `hashed` leaves it out where it has its default, which thus never changes.
    """

    default: Any
    doc: str
    least: float | int | None = None
    most: float | int | None = None
    above: bool = False
    below: bool = False
    one_of: tuple[str, ...] = ()
    named: bool = False
    identity: bool = True
    programs: str = SOME
    added: bool = False

    @property
    def range(self) -> str:
        """The allowed values: "adamw or muon", "from 1 to 65536", "in [0, 1)", "a name, or a name with values"."""
        if self.one_of:
            return f"{', '.join(self.one_of[:-1])} or {self.one_of[-1]}"
        if self.named:
            return "a name, or a name with values"
        if isinstance(self.default, bool | tuple) or (self.least is None and self.most is None):
            return {bool: "true or false", tuple: "a list with commas", float: "a number"}[type(self.default)]
        low = "above" if self.above else "at least"
        if self.most is None or (isinstance(self.default, int) and self.most == MOST):
            return f"{low} {self.least:g}"
        if isinstance(self.default, int):
            return f"from {self.least} to {self.most}"
        return f"in {'(' if self.above else '['}{self.least:g}, {self.most:g}{')' if self.below else ']'}"

    def check(self, name: str, value: Any) -> None:
        """Raises InputError: the value of field `name` is not one of the texts, not finite, or outside the bounds."""
        shown = str(value) if not isinstance(value, int) or abs(value) < 10**20 else "a number of more than 20 digits"
        if isinstance(value, float) and not math.isfinite(value):
            raise InputError(f"config field {name} is {shown}; it must be a finite number")
        if self.one_of and value not in self.one_of:
            raise InputError(f"config field {name} is {value!r:.100}{choices.nearest(value, self.one_of)}")
        if self.least is not None and (value < self.least or (self.above and value == self.least)):
            raise InputError(f"config field {name} is {shown}; it must be {self._low} ({self.doc})")
        if self.most is not None and (value > self.most or (self.below and value == self.most)):
            raise InputError(f"config field {name} is {shown}; it must be {self._high} ({self.doc})")

    @property
    def _low(self) -> str:
        return self.range if self.range.startswith("in ") else f"{'above' if self.above else 'at least'} {self.least:g}"

    @property
    def _high(self) -> str:
        return self.range if self.range.startswith("in ") else f"{'below' if self.below else 'at most'} {self.most}"


def _whole(default: int, doc: str, least: int, most: int = MOST, **about: Any) -> Field:
    return Field(default, doc, least, most, **about)


def _share(default: float, doc: str, **about: Any) -> Field:
    return Field(default, doc, 0, 1, **about)


def _decay(default: float, doc: str) -> Field:
    return Field(default, doc, 0, 1, below=True)


def _one_of(*one_of: str, doc: str, **about: Any) -> Field:
    """The first is the default."""
    return Field(one_of[0], doc, one_of=one_of, **about)


_DATA = {
    "paths": Field((), "directories of `dlmjax prepare`; DIR(tokens=N): the first N tokens", identity=False, programs=NONE),
    "weights": Field((), "share of windows from each path; empty: in proportion to tokens", programs=NONE),
    "length": _whole(256, "tokens of a window", 1, 2**24, programs=ALL),
    "batch": _whole(64, "windows of a step, over all hosts and microbatches", 1, 2**24, programs=ALL),
    "packing": _one_of("concat", "documents", doc="windows of documents end to end (concat), or of whole ones where they fit"),
    "random_length": _share(0.0, "share of rows that are cut to a random length", added=True),
    "infill": Field("none", "tokens of a row to fill in: none (all), spans(share=0.3, mean=2.0)", named=True, added=True),
    "tail": Field("none", "tokens behind an answer's text: none, block, random(most=64), row; pads=7: ids in turn", named=True, added=True),
    "symmetries": _one_of("none", "sudoku", doc="image of a training row, drawn by its key: itself, or a board", added=True, programs=NONE),
}
_MODEL = {
    "vocab": _whole(0, "classes of the head, special ids included; 0: those of the tokenizer", 0, 2**24),
    "depth": _whole(6, "layers", 1, 2**16),
    "width": _whole(384, "channels of the residual stream", 1, 2**20),
    "heads": _whole(6, "query heads", 1, 2**16),
    "kv_heads": _whole(6, "key and value heads; fewer than heads: grouped-query attention", 1, 2**16),
    "head_dim": _whole(64, "channels of a head, an even number", 2, 2**16),
    "ffn": _whole(1024, "hidden channels of the MLP", 1, 2**24),
    "family": Field(
        "qwen3",
        "network: qwen3, llama, qwen2, olmo2, gpt2, bert (docs/interop.md), FILE:NAME (docs/models.md)",
        named=True,
    ),
    "tied": Field(False, "head and embedding share their weights"),
    "rope_base": Field(10_000.0, "base of the rotary wavelengths", 1.0, above=True),
    "rope_scaling": Field(1.0, "factor by which rotary positions are stretched; 1: off", 1.0),
    "dropout": Field(0.0, "probability of dropout", 0, 1, below=True),
    "time_input": Field("none", "how the network is conditioned on the time: none, adaln, add, prefix", named=True),
    "anchor_depth": _whole(0, "first layers that are an anchor network (ADLM); 0: none", 0, 2**16, added=True),
    "completep_width": _whole(0, "width at which the learning rate was tuned (CompleteP), channels; 0: off", 0),
    "completep_depth": _whole(0, "depth at which the learning rate was tuned (CompleteP), layers; 0: off", 0),
}
_EXECUTION = {
    "dtype": _one_of("float32", "bfloat16", doc="type of activations; master weights, logits and reductions are float32"),
    "scan": Field(True, "one compiled layer, run depth times; false: unrolled, faster on a CPU, slower to compile"),
    "remat": _one_of("none", "full", "dots", doc="what the backward pass recomputes; full: a layer, dots: all but products"),
    "attention": _one_of("dense", "cudnn", "splash", doc="attention kernel; cudnn for GPUs, splash for TPUs"),
    "head_chunk": _whole(0, "positions whose logits are in memory at once; 0: chosen from the vocabulary", 0),
}
_PROCESS = {
    "name": Field("masked", "noise process (docs/processes.md), such as hybrid(p_uniform=0.2)", named=True),
    "schedule": Field("linear", "noise schedule", named=True),
    "before": Field(
        (),
        "phases trained first on the same weights, PROCESS@SHARE or PROCESS@STEP; empty: none",
        added=True,
    ),
    "times": Field("stratified", "distribution of the times t over a batch", named=True),
    "weighting": Field("", "training weight in place of the bound; empty: that of the process", named=True),
    "masks": Field("independent", "masks of a training row: independent, or progressive(phases=8)", named=True, added=True),
    "anneal": _share(0.0, "share of the steps in which causal attention becomes full; 0: off", added=True),
    "self_condition": _share(0.0, "share of rows denoised again with the first x0 prediction as a hint; 0: no hint"),
    "hint": _one_of("x0", "hidden", doc="hint of process.self_condition: x0 prediction, or hidden states (loopholing)", added=True),
    "prompt": _share(0.0, "share of rows conditioned on a prefix of their text, for guidance"),
    "normaliser": _one_of("token", "answer", "text", doc="mean of the training loss: over tokens, answers or texts", added=True),
    "tail_weight": Field(1.0, "weight of the training loss of tail tokens, behind an answer", 0, 1000, added=True),
}
_OPTIMIZER = {
    "name": _one_of("adamw", "muon", doc="optimizer; muon for matrices, AdamW for the rest", programs=ALL),
    "lr": Field(1e-3, "peak learning rate", 0, programs=NONE),
    "beta1": _decay(0.9, "decay of the first moment"),
    "beta2": _decay(0.95, "decay of the second moment"),
    "eps": Field(1e-8, "number added to the root of the second moment", 0, above=True),
    "weight_decay": Field(0.1, "decoupled weight decay of matrices, embedding and head; 0: off", 0, programs=NONE),
    "clip": Field(1.0, "bound of the global gradient norm; 0: off", 0),
    "schedule": _one_of("cosine", "wsd", "constant", doc="learning rate over the steps; wsd: warm-up, stable, linear decay"),
    "warmup": _whole(100, "steps of the linear warm-up", 0, programs=NONE),
    "decay": _share(0.2, "share of the steps in which wsd decays", programs=NONE),
    "final": _share(0.1, "learning rate of the last step as a share of lr", programs=NONE),
    "rewarm": _share(0.01, "share of the steps in which the rate rises again after a phase", programs=NONE, added=True),
}
_TRAIN = {
    "steps": _whole(1000, "steps of the run", 1, programs=NONE),
    "accumulation": _whole(1, "microbatches of a step", 1, programs=ALL),
    "ema": _decay(0.9999, "decay of the average of weights, min(ema, (1+s)/(10+s)) at step s; 0: none"),
    "on_nonfinite": _one_of("skip", "stop", doc="after a gradient that is not finite: skip the update, or stop the run", identity=False),
    "spike": Field(0.0, "multiple of the mean loss above which an update is skipped, too; 0: off", 0),
}
_MESH = {
    "data": _whole(-1, "data-parallel groups; -1: the devices that the other axes leave over", -1, 2**20),
    "fsdp": _whole(1, "devices that share parameters, gradients and optimizer state", -1, 2**20),
    "sequence": _whole(1, "devices that share the length of a row", -1, 2**20),
    "tensor": _whole(1, "devices that share heads, MLP and vocabulary", -1, 2**20),
}
_CHECKPOINT = {
    "every": _whole(500, "steps between checkpoints", 1),
    "keep": _whole(2, "newest checkpoints that are kept", 1),
    "best": _whole(1, "best checkpoints by held-out bound that are kept beside them", 0),
}
_LOG = {
    "every": _whole(20, "steps between lines of metrics, the only host syncs of the loop", 1),
    "evaluate": _whole(500, "steps between held-out bounds; 0: never", 0),
    "evaluate_windows": _whole(128, "held-out windows of such a bound (`dlmjax evaluate` reads all)", 1),
    "nodes": _whole(NODES, "nodes of the quadrature over time t in held-out bounds", 1, MOST_CALLS - 1),
    "sample": _whole(1000, "steps between text samples; 0: never", 0),
}


def _section(name: str, fields: Mapping[str, Field], **common: Any) -> dict[str, Field]:
    """`{"section.field": Field}`, all with the properties that a section has in common."""
    return {f"{name}.{key}": dataclasses.replace(field, **common) for key, field in fields.items()}


FIELDS: dict[str, Field] = {
    "seed": _whole(0, "seed of weights, order of data, noise and dropout", 0, SEEDS - 1, programs=NONE),
    **_section("data", _DATA),
    **_section("model", _MODEL, programs=ALL),
    **_section("execution", _EXECUTION, identity=False, programs=ALL),
    **_section("process", _PROCESS, programs=ALL),
    **_section("optimizer", _OPTIMIZER),
    **_section("train", _TRAIN),
    **_section("mesh", _MESH, identity=False, programs=ALL),
    **_section("checkpoint", _CHECKPOINT, identity=False, programs=NONE),
    **_section("log", _LOG, identity=False, programs=NONE),
}


def default_of(name: str) -> Any:
    """The default of a field, `default_of("optimizer.lr")`."""
    return FIELDS[name].default


def non_identity_fields() -> frozenset[str]:
    """Fields that may differ between a run and its continuation without making it another run."""
    return frozenset(name for name, field in FIELDS.items() if not field.identity)


def fields_by_programs(programs: str) -> frozenset[str]:
    """Fields that ALL, SOME or NONE of a run's compiled programs depend on."""
    return frozenset(name for name, field in FIELDS.items() if field.programs == programs)


def hashed(values: Mapping[str, Any]) -> dict[str, Any]:
    """The entries of a flat config that a hash of it covers: all but added fields at their defaults, so that a hash from before a field
    was declared stays valid."""

    added = {name: field.default for name, field in FIELDS.items() if field.added}
    return {name: value for name, value in values.items() if name not in added or not _equal(value, added[name])}


def _equal(value: Any, default: Any) -> bool:
    """Whether a value is a default, which JSON reads back as a list where it is a tuple."""
    return (tuple(value) if isinstance(value, list) else value) == default


def check_section(section: str, values: Mapping[str, Any]) -> None:
    """Checks the values of a section's dataclass. Raises InputError: the first that is out of its bounds, by its name in a config."""
    for key, value in values.items():
        if field := FIELDS.get(f"{section}.{key}"):
            field.check(f"{section}.{key}", value)
