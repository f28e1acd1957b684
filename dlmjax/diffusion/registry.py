"""Names for configs: a process, a schedule, a law of times or a weighting from its name and plain values."""

import ast
import contextlib
import dataclasses
import difflib
import inspect
import sys
import types
import typing
from collections.abc import Callable, Mapping
from typing import Any

import jax

from dlmjax.diffusion import schedules, times
from dlmjax.diffusion.gaussian import DiffusionLm, EmbeddingFlow, GaussianEmbedding, Plaid, Sed
from dlmjax.diffusion.hyperschedule import Hyper, PerBlock
from dlmjax.diffusion.process import Process
from dlmjax.diffusion.processes.any_order import MaskedLambda
from dlmjax.diffusion.processes.autoregressive import Autoregressive
from dlmjax.diffusion.processes.blocks import BlockMasked
from dlmjax.diffusion.processes.d3pm import check_d3pm, make_d3pm
from dlmjax.diffusion.processes.duo import Duo
from dlmjax.diffusion.processes.flow_matching import FlowMatching
from dlmjax.diffusion.processes.frequency import FrequencyMasked, Spindle
from dlmjax.diffusion.processes.hybrid import Hybrid, Mixed
from dlmjax.diffusion.processes.masked import Llada, Masked, MaskedCount
from dlmjax.diffusion.processes.score import ScoreEntropy
from dlmjax.diffusion.processes.state_dependent import GenMd4
from dlmjax.diffusion.processes.uniform import Uniform
from dlmjax.diffusion.weightings import levels as weighting
from dlmjax.diffusion.weightings.gaussian import Anchor, EndToEnd, Simple
from dlmjax.diffusion.weightings.jumps import ClippedJumps, Contrastive, Denoising, Dynamic
from dlmjax.diffusion.weightings.tokens import HybridLambda, Routed, TokenAdaptive
from dlmjax.errors import InputError

PROCESSES: dict[str, Callable[..., Process]] = {
    "masked": Masked,
    "masked_count": MaskedCount,
    "masked_lambda": MaskedLambda,
    "llada": Llada,
    "autoregressive": Autoregressive,
    "genmd4": GenMd4,
    "spindle": Spindle,
    "frequency_masked": FrequencyMasked,
    "d3pm": make_d3pm,
    "blocks": BlockMasked,
    "uniform": Uniform,
    "duo": Duo,
    "hybrid": Hybrid,
    "mixed": Mixed,
    "score": ScoreEntropy,
    "flow_matching": FlowMatching,
    "gaussian": GaussianEmbedding,
    "plaid": Plaid,
    "diffusion_lm": DiffusionLm,
    "sed": Sed,
    "embedding_flow": EmbeddingFlow,
}
# Of those that compute arrays when they are made: what looks at their values alone.
_CHECKED: dict[str, Callable[..., bool]] = {"d3pm": check_d3pm}
SCHEDULES: dict[str, Callable[..., schedules.Schedule]] = {
    "linear": schedules.Linear,
    "cosine": schedules.Cosine,
    "polynomial": schedules.Polynomial,
    "geometric": schedules.Geometric,
    "log_linear": schedules.log_linear,
    "llada": schedules.llada,
}
LAWS: dict[str, Callable[..., times.Law]] = {
    "flat": times.Flat,
    "power": times.Power,
    "piecewise": times.Piecewise,
    "beta": times.Beta,
    "two_mode": times.TwoMode,
    "mixture": times.Mixture,
}
WEIGHTINGS: dict[str, Callable[..., weighting.Weighting]] = {
    cls.name: cls
    for cls in (
        *(weighting.Bound, weighting.InverseRate, weighting.CrossEntropy, weighting.Capped),
        *(ClippedJumps, Dynamic, Denoising, Contrastive),
        *(HybridLambda, TokenAdaptive, Routed),
        *(Simple, EndToEnd, Anchor),
    )
}

# name -> (law, stratified). "importance" takes `heights`, "mixture" takes `parts` and `probabilities`.
TIMES: dict[str, tuple[str, bool]] = {
    "uniform": ("flat", False),
    "stratified": ("flat", True),
    "power": ("power", True),
    "importance": ("piecewise", True),
    "beta": ("beta", True),
    "two_mode": ("two_mode", True),
    "mixture": ("mixture", True),
}
# Levels that differ within a row; these take a `law`, one of LAWS, and its values beside their own.
WITHIN_ROWS: dict[str, Callable[..., times.Times]] = {"hyper": Hyper, "per_block": PerBlock}

# What a caller may hand to any process: facts of the tokenizer and the schedule. Each process takes those it has a field for.
_INTERNAL = ("learned",)  # what training finds
_EPS = inspect.Parameter("eps", inspect.Parameter.KEYWORD_ONLY, default=None, annotation=float | None)
_SOME_VOCAB = 2**16  # where a process is made before its tokenizer is known
_COMMON = ("vocab", "mask_id", "pad_id", "bos_id", "eos_id", "excluded", "schedule", "counts_V")


def make_process(name: str, **values: Any) -> Process:
    """A process by name.

    Args:
      name: one of PROCESSES.
      **values: its fields. `vocab`, `mask_id`, `pad_id`, `bos_id`, `eos_id` and `schedule` may always be given and are used where the
        process has such a field. `schedule` is a name, a mapping {"name": ..., values} or a Schedule; `eps` beside it clips alpha to
        [eps, 1 - eps].
    Raises:
      InputError: an unknown name or value (with the nearest valid one), or a schedule for a process that fixes its own.
    """
    make = _lookup("process", name, PROCESSES)
    fields = _fields(make)
    values = dict(values)
    if "schedule" in fields:
        clip = {} if "eps" in fields else {"eps": values.pop("eps", None)}
        values["schedule"] = _schedule(values.get("schedule", "linear"), **clip)
    elif values.get("schedule", "linear") not in ("linear", {"name": "linear"}, schedules.Linear()):
        raise InputError(f"process {name} has a schedule of its own; leave schedule at 'linear', not {values['schedule']!r}")
    values = {key: value for key, value in values.items() if key in fields or key not in _COMMON}
    return _build(f"process {name}", make, values)


def parse_call(text: str, what: str = "value") -> tuple[str, dict[str, Any]]:
    """A name, or a name with values: "cosine", "power(exponent=0.5)" -> ("power", {"exponent": 0.5}). Words without quotes, also with
    dots between, are strings.

    Raises InputError where the text, which is to be a `what`, is neither, or gives a value twice.
    """
    try:
        node = ast.parse(text.strip(), mode="eval").body
        if twice := _given_twice(node):
            raise InputError(f"{what} {text!r:.200} has the value {twice:.100} twice; give it once")
        if isinstance(node, ast.Name):
            return node.id, {}
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and not node.args and all(word.arg for word in node.keywords):
            return node.func.id, {word.arg: _literal(word.value) for word in node.keywords}
    except InputError:
        raise
    except (SyntaxError, ValueError, TypeError, MemoryError, RecursionError):  # the last two: thousands of brackets
        pass
    raise InputError(f"cannot read {what} {text!r:.200}; write a name, or a name with values, like power(exponent=0.5)")


def _given_twice(node: ast.expr) -> str | None:
    """A name that stands twice in one pair of brackets, at any depth: of two values, Python's own readers take the last in silence."""
    for part in ast.walk(node):
        names = [word.arg for word in part.keywords] if isinstance(part, ast.Call) else []
        names += [key.value for key in part.keys if isinstance(key, ast.Constant)] if isinstance(part, ast.Dict) else []
        for index, name in enumerate(names):
            if name in names[:index]:
                return str(name)
    return None


def as_call(name: str, values: Mapping[str, Any]) -> str:
    """The text that `parse_call` reads as this name with these values."""
    return f"{name}({', '.join(f'{key}={value!r}' for key, value in values.items())})" if values else name


def curriculum_of(text: str) -> Process | None:
    """The process of a text like "duo(until=100)" over some vocabulary, where its kind follows curricula; None where it does not.

    Raises InputError for an unknown name or value.
    """
    name, values = parse_call(text, "process.name")
    kind = _lookup("process", name, PROCESSES)
    if getattr(kind, "curriculum_end", Process.curriculum_end) is Process.curriculum_end:
        return None
    return make_process(name, **{**values, "vocab": _SOME_VOCAB, "mask_id": 0})


def _literal(node: ast.expr) -> Any:
    return ast.unparse(node) if isinstance(node, ast.Name | ast.Attribute) else ast.literal_eval(node)


def check_process(text: str, schedule: str = "linear") -> bool | None:
    """Checks the text of a process, like "hybrid(p_uniform=0.2)", and of its schedule, without facts of a corpus and without a device.

    Returns:
      Whether its network must be told the time; None where it is not known before the process is made.
    Raises:
      InputError: an unknown name or value (with the nearest valid one), a value of another type, out of its range or that is not a
        person's to give, a schedule for a process that fixes its own.
    """
    name, values = parse_call(text, "process")
    fields = _fields(_lookup("process", name, PROCESSES))
    given = {field: kind for field, kind in fields.items() if field not in (*_COMMON, *_INTERNAL)}
    if "schedule" in fields:
        given.setdefault("eps", _EPS)
    _check_values(f"process {name}", given, values)
    of_schedule = parse_call(schedule, "schedule")
    check_call("schedule", schedule)
    if "schedule" not in fields and of_schedule != ("linear", {}):
        raise InputError(f"process {name} has a schedule of its own; leave schedule at 'linear', not {schedule!r}")
    return _time_input(name, values, of_schedule)


def _time_input(name: str, values: Mapping[str, Any], schedule: tuple[str, Mapping[str, Any]]) -> bool | None:
    """`time_input` of the process over some large vocabulary. Traced, since a device must not be touched: where a process asks for
    numbers of a trace when it is made, it has come as far as that, and what is left is refused when the run is assembled."""
    if name in _CHECKED:
        return _CHECKED[name](**values)
    facts = {"vocab": _SOME_VOCAB, "mask_id": 0, "bos_id": 1, "eos_id": 1, "excluded": (2,)}
    facts |= {"counts_V": (1,) * _SOME_VOCAB} if "counts_V" in process_fields(name) else {}
    found: list[bool] = []

    def trace() -> None:
        found.append(make_process(name, **facts, **values, schedule={"name": schedule[0], **schedule[1]}).time_input)

    with contextlib.suppress(jax.errors.ConcretizationTypeError, jax.errors.TracerArrayConversionError):
        jax.eval_shape(trace)
    kind = getattr(PROCESSES[name], "time_input", None)
    return found[0] if found else kind if isinstance(kind, bool) else None


def check_call(kind: str, text: str) -> None:
    """Makes what the text of a "schedule", "times" or "weighting" describes, which are plain numbers.

    Raises InputError: an unknown name or value (with the nearest valid one), a value of another type or out of its range.
    """
    make = {"schedule": make_schedule, "times": make_times, "weighting": make_weighting}[kind]
    name, values = parse_call(text, kind)
    if "name" in values:
        raise InputError(f"{kind} {name} has no value 'name'")
    make(name, **values)


def process_fields(name: str) -> frozenset[str]:
    """Names of the values that a process takes."""
    return frozenset(_fields(_lookup("process", name, PROCESSES)))


def make_schedule(name: str, eps: Any = None, **values: Any) -> schedules.Schedule:
    """A schedule by name. `eps` clips alpha to [eps, 1 - eps] (for log_linear and llada it is their own eps); None or 0 = exact ends."""
    make = _lookup("schedule", name, SCHEDULES)
    _check_values(f"schedule {name}", {"eps": _EPS}, {"eps": eps})
    if eps and "eps" in _fields(make):
        return _build(f"schedule {name}", make, {**values, "eps": eps})
    schedule = _build(f"schedule {name}", make, values)
    return schedules.symmetric(schedule, eps) if eps else schedule


def make_times(name: str, **values: Any) -> times.Times:
    """A draw of noise levels by name, one of TIMES or WITHIN_ROWS.

    "importance" takes `heights`; "power" takes `exponent`; "uniform" and "stratified" take `low`, `high`; "mixture" takes `parts`, a
    sequence of {"law": one of LAWS, values}, and `probabilities`. `stratified` overrides what the name implies. "per_block" takes
    `size` and `antithetic`, "hyper" takes `window`, both a `law` and its values.
    """
    values = dict(values)
    if name in WITHIN_ROWS:
        own = {key: values.pop(key) for key in list(values) if key in _fields(WITHIN_ROWS[name]) and key != "law"}
        law = _law(f"times {name}", values.pop("law", "flat"), values)
        return _build(f"times {name}", WITHIN_ROWS[name], {**own, "law": law})
    law, stratified = _lookup("times", name, TIMES | WITHIN_ROWS)
    stratified = values.pop("stratified", stratified)
    return times.PerRow(_law(f"times {name}", law, values), stratified)


def make_weighting(name: str, **values: Any) -> weighting.Weighting:
    """A training weight by name, one of WEIGHTINGS."""
    return _build(f"weighting {name}", _lookup("weighting", name, WEIGHTINGS), values)


def _law(where: str, name: Any, values: Mapping[str, Any]) -> times.Law:
    values = {key: tuple(value) if isinstance(value, list) else value for key, value in values.items()}
    if name == "mixture" and "parts" in values:
        if not isinstance(values["parts"], tuple) or not all(isinstance(part, Mapping) for part in values["parts"]):
            raise InputError(f"{where}: parts requires a list of laws, like [{{'law': 'beta'}}, {{'law': 'power'}}]")
        parts = [dict(part) for part in values["parts"]]
        values["parts"] = tuple(_law(where, part.pop("law", "flat"), part) for part in parts)
    return _build(where, _lookup("law of times", name, LAWS), values)


def _schedule(value: Any, **clip: float | None) -> schedules.Schedule:
    if isinstance(value, str):
        return make_schedule(value, **clip)
    if isinstance(value, Mapping):
        return make_schedule(**{**clip, **value})
    return schedules.symmetric(value, clip["eps"]) if clip.get("eps") else value


def _lookup(kind: str, name: Any, table: Mapping[str, Any]) -> Any:
    if not isinstance(name, str) or name not in table:
        raise InputError(f"unknown {kind} {name!r:.100}{nearest(str(name), table)}")
    return table[name]


def nearest(name: str, valid: Mapping[str, Any]) -> str:
    close = difflib.get_close_matches(name, list(valid), n=1)
    return f"; did you mean {close[0]!r}?" if close else f"; choose one of {', '.join(valid)}"


def _fields(make: Callable[..., Any]) -> dict[str, inspect.Parameter]:
    """What a dataclass or a function is called with."""
    return dict(inspect.signature(make, eval_str=True).parameters)


def _build(where: str, make: Callable[..., Any], values: Mapping[str, Any]) -> Any:
    _check_values(where, _fields(make), values)
    return make(**values)


def _check_values(where: str, fields: Mapping[str, inspect.Parameter], values: Mapping[str, Any]) -> None:
    """Raises InputError: a value that is no field (with the nearest one), a field that is missing, a plain value of another type."""
    for name, value in values.items():
        if name not in fields:
            raise InputError(f"{where} has no value {name!r}" + (nearest(name, fields) if fields else "; it takes none"))
        kind = fields[name].annotation
        if isinstance(value, _PLAIN) and not _fits(value, kind):
            raise InputError(f"{where}: {name} requires {_said(kind)}, not {value!r:.100}")
    missing = [name for name, field in fields.items() if field.default is field.empty and name not in values]
    if missing:
        raise InputError(f"{where} requires {', '.join(missing)}")


# What a text can give. Arrays, schedules and laws come from callers who made them.
_PLAIN = (bool, int, float, complex, str, bytes, tuple, list, dict, set, types.NoneType)
_WORDS = {float: "a number", int: "a whole number", bool: "True or False", str: "a word", types.NoneType: "None"}
_PLURALS = {float: "numbers", int: "whole numbers", bool: "True or False", str: "words"}


def _fits(value: Any, kind: Any) -> bool:
    """Whether a plain value is of an annotated type; every integer is a number, and no truth value is."""
    kind = kind.type if isinstance(kind, dataclasses.InitVar) else kind
    if kind in (Any, inspect.Parameter.empty):
        return True
    if isinstance(kind, types.UnionType):
        return any(_fits(value, one) for one in typing.get_args(kind))
    if typing.get_origin(kind) is tuple:
        inner = typing.get_args(kind)
        inner = inner[:1] * len(value) if isinstance(value, tuple | list) and inner[1:] == (...,) else inner
        return isinstance(value, tuple | list) and len(value) == len(inner) and all(map(_fits, value, inner))
    if kind is float:
        return type(value) in (int, float) and abs(value) <= sys.float_info.max
    if kind is int:
        return type(value) is int and abs(value) < 2**31
    return type(value) is kind if kind in _WORDS else isinstance(kind, type) and isinstance(value, kind)


def _said(kind: Any) -> str:
    """What a person is asked for: "a number", "a list of pairs of whole numbers", "a word or None"."""
    kind = kind.type if isinstance(kind, dataclasses.InitVar) else kind
    if isinstance(kind, types.UnionType):
        return " or ".join(map(_said, typing.get_args(kind)))
    if typing.get_origin(kind) is tuple:
        return f"a list of {_several(typing.get_args(kind))}"
    name = getattr(kind, "__name__", str(kind))
    return _WORDS.get(kind) or f"{'an' if name[0] in 'AEIOU' else 'a'} {name}, which cannot be written in a text"


def _several(kinds: tuple[Any, ...]) -> str:
    """What a list holds, by what its annotation holds: "numbers", "2 words", "pairs of whole numbers", "lists of numbers"."""
    count = "" if kinds[1:] == (...,) else f"{len(kinds)} "
    inner = typing.get_args(kinds[0])
    if typing.get_origin(kinds[0]) is not tuple:
        return count + (_PLURALS.get(kinds[0]) or f"values of which each is {_said(kinds[0])}")
    if inner[1:] != (...,) and len(inner) == 2:
        return f"{count}pairs of {_several((inner[0], ...))}"
    return f"{count}lists of {_several(inner)}"
