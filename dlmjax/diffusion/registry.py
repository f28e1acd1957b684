"""Processes, schedules, times and weightings by name, for configs: each is made from its name and plain values."""

import contextlib
import inspect
import typing
from collections.abc import Callable, Mapping
from typing import Any

import jax

from dlmjax.choices import build, check_values, lookup, parameters_of, parse
from dlmjax.diffusion import schedules, times
from dlmjax.diffusion.gaussian import DiffusionLm, EmbeddingFlow, GaussianEmbedding, Plaid, Sed
from dlmjax.diffusion.hyperschedule import ByPosition, Hyperschedule, PerBlock
from dlmjax.diffusion.process import Process
from dlmjax.diffusion.processes.autoregressive import Autoregressive
from dlmjax.diffusion.processes.blocks import Blockwise, OneStream
from dlmjax.diffusion.processes.d3pm import check_d3pm, make_d3pm
from dlmjax.diffusion.processes.duo import Duo
from dlmjax.diffusion.processes.flow_matching import FlowMatching
from dlmjax.diffusion.processes.frequency import FrequencyMasked, Spindle
from dlmjax.diffusion.processes.hybrid import Hybrid, Mixed
from dlmjax.diffusion.processes.masked import Llada, Masked, MaskedCount, MaskedLambda
from dlmjax.diffusion.processes.score import ScoreEntropy
from dlmjax.diffusion.processes.state_dependent import GenMd4
from dlmjax.diffusion.processes.text_dependent import LoMdm
from dlmjax.diffusion.processes.uniform import Uniform
from dlmjax.diffusion.progressive import Progressive
from dlmjax.diffusion.weightings import base as weighting
from dlmjax.diffusion.weightings.gaussian import Anchor, EndToEnd, Simple
from dlmjax.diffusion.weightings.jumps import ClippedJumps, Contrastive, Denoising, Dynamic
from dlmjax.diffusion.weightings.tokens import ContextAdaptive, HybridLambda, Routed, TokenAdaptive
from dlmjax.errors import InputError

# The noises of process `blocks`.
BLOCK_NOISES: dict[str, Callable[..., Process]] = {
    "masked": Masked,
    "masked_lambda": MaskedLambda,
    "llada": Llada,
    "uniform": Uniform,
    "hybrid": Hybrid,
    "mixed": Mixed,
    "score": ScoreEntropy,
    "flow_matching": FlowMatching,
}


def make_blocks(
    vocab: int,
    mask_id: int | None = None,
    schedule: schedules.Schedule = schedules.Linear(),  # noqa: B008  frozen
    excluded: tuple[int, ...] = (),
    size: int = 4,
    curriculum: tuple[tuple[int, int], ...] = (),
    noise: str = "masked",
    seeded: bool = False,
    streams: int = 2,
    bos_id: int | None = None,
) -> Blockwise | OneStream:
    """Blocks of `size` tokens with the noise of a name, one of BLOCK_NOISES, or of a name with values: "hybrid(p_uniform=0.2)".

    seeded: the first token of a block is predicted from the clean text before it, the others from the position before each.
    streams: 2, or 1 for `OneStream`.
    """
    name, values = parse(noise, "noise of process blocks")
    lookup("noise of process blocks", name, BLOCK_NOISES)
    facts = {"vocab": vocab, "mask_id": mask_id, "schedule": schedule, "excluded": excluded}
    if common := sorted(facts.keys() & values.keys()):
        raise InputError(f"process blocks: noise {noise!r} takes no value {common[0]!r}; set it for the whole process")
    inner = make_process(name, **{key: value for key, value in facts.items() if value is not None}, **values)
    if seeded and bos_id is None:
        raise InputError("process blocks: seeded=True requires a beginning of text, and this vocabulary has none; set it to False")
    if streams == 1 and not (seeded or curriculum):
        return OneStream(inner, size)
    if streams != 2:
        raise InputError(f"process blocks: streams is {streams}; give 2, or 1 without seeded and curriculum")
    return Blockwise(inner, size, curriculum, bos_id if seeded else None)


def make_annealed(start: str = "cross_entropy", begin: float = 0.0, end: float = 0.5) -> weighting.Annealed:
    """From the weighting of a name, or of a name with values such as "capped(cap=5)", to the bound; see `Annealed`."""
    name, values = parse(start, "start of weighting annealed")
    if name == "annealed":
        raise InputError("weighting annealed: start is annealed; give a weighting that stays the same, such as cross_entropy")
    return weighting.Annealed(make_weighting(name, **values), begin, end)


def make_joint(diffusion: float = 0.3, text: float = 1.0, inner: str = "bound") -> weighting.Joint:
    """The weighting of a name for the blocks, "bound" or one of OF_RATES, beside the likelihood of the text; see `Joint`."""
    name, values = parse(inner, "inner of weighting joint")
    valid = [known for known in ("bound", *weighting.OF_RATES) if known != "anchored"]  # which has a loss of its own beside it
    if name not in valid:
        raise InputError(f"weighting joint: inner is {name}; choose one of {', '.join(valid)}")
    return weighting.Joint(diffusion, text, make_weighting(name, **values))


PROCESSES: dict[str, Callable[..., Process]] = {
    "masked": Masked,
    "masked_count": MaskedCount,
    "masked_lambda": MaskedLambda,
    "llada": Llada,
    "autoregressive": Autoregressive,
    "genmd4": GenMd4,
    "lomdm": LoMdm,
    "spindle": Spindle,
    "frequency_masked": FrequencyMasked,
    "d3pm": make_d3pm,
    "blocks": make_blocks,
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
# Processes that compute arrays when they are made: the function that checks their values and computes none.
_CHECKED: dict[str, Callable[..., bool]] = {"d3pm": check_d3pm}
SCHEDULES: dict[str, Callable[..., schedules.Schedule]] = {
    "linear": schedules.Linear,
    "cosine": schedules.Cosine,
    "polynomial": schedules.Polynomial,
    "geometric": schedules.Geometric,
    "log_linear": schedules.log_linear,
    "llada": schedules.llada,
}
TIME_DISTRIBUTIONS: dict[str, Callable[..., times.TimeDistribution]] = {
    "flat": times.UniformTimes,
    "power": times.Power,
    "piecewise": times.Piecewise,
    "beta": times.Beta,
    "two_mode": times.TwoMode,
    "mixture": times.Mixture,
}
WEIGHTINGS: dict[str, Callable[..., weighting.Weighting]] = {
    cls.name: cls
    for cls in (
        *(weighting.Bound, weighting.InverseRate, weighting.CrossEntropy, weighting.Capped, weighting.Anchored),
        *(ClippedJumps, Dynamic, Denoising, Contrastive),
        *(HybridLambda, TokenAdaptive, Routed, ContextAdaptive),
        *(Simple, EndToEnd, Anchor),
    )
} | {"annealed": make_annealed, "joint": make_joint}


def _independent() -> None:
    """Masks that the process draws by itself."""


MASKS: dict[str, Callable[..., Progressive | None]] = {"independent": _independent, "progressive": Progressive}

# name -> (distribution, stratified). "importance" takes `heights`, "mixture" takes `parts` and `probabilities`.
TIMES: dict[str, tuple[str, bool]] = {
    "uniform": ("flat", False),
    "stratified": ("flat", True),
    "power": ("power", True),
    "importance": ("piecewise", True),
    "beta": ("beta", True),
    "two_mode": ("two_mode", True),
    "mixture": ("mixture", True),
}
# Times that differ within a row; these take a `law`, one of TIME_DISTRIBUTIONS, and its values beside their own.
WITHIN_ROWS: dict[str, Callable[..., times.Times]] = {"hyper": Hyperschedule, "by_position": ByPosition, "per_block": PerBlock}

# Values from the tokenizer, the corpus and the schedule: every process may be made with them and uses those that it has a field for.
_INTERNAL = ("params",)  # trained, not configured
_EPS = inspect.Parameter("eps", inspect.Parameter.KEYWORD_ONLY, default=None, annotation=float | None)
_SOME_VOCAB = 2**16
# What a tokenizer provides, for a process that is made before its tokenizer is known.
_SOME_TOKENIZER = {"vocab": _SOME_VOCAB, "mask_id": 0, "bos_id": 1, "eos_id": 1, "excluded": (2,)}
_COMMON = ("vocab", "mask_id", "pad_id", "bos_id", "eos_id", "excluded", "schedule", "counts_V")


def make_process(name: str, **values: Any) -> Process:
    """A process by name.

    Args:
      name: one of PROCESSES.
      **values: its fields. `vocab`, `mask_id`, `pad_id`, `bos_id`, `eos_id` and `schedule` are accepted for every process and used
        where it has such a field. `schedule` is a name, a mapping {"name": ..., values} or a Schedule; `eps` beside it clips alpha to
        [eps, 1 - eps].
    Raises:
      InputError: an unknown name or value (with the nearest valid one), or a schedule for a process that defines its own.
    """
    make = lookup("process", name, PROCESSES)
    fields = parameters_of(make)
    values = dict(values)
    if "schedule" in fields:
        clip = {} if "eps" in fields else {"eps": values.pop("eps", None)}
        values["schedule"] = _schedule(values.get("schedule", "linear"), **clip)
    elif values.get("schedule", "linear") not in ("linear", {"name": "linear"}, schedules.Linear()):
        raise InputError(f"process {name} has a schedule of its own; leave schedule at 'linear', not {values['schedule']!r}")
    values = {key: value for key, value in values.items() if key in fields or key not in _COMMON}
    return build(f"process {name}", make, values)


def curriculum_of(text: str) -> Process | None:
    """The process of a text like "duo(until=100)" over some vocabulary; None where its class has no curriculum.

    Raises InputError for an unknown name or value.
    """
    name, values = parse(text, "process.name")
    kind = lookup("process", name, PROCESSES)
    made = typing.get_type_hints(kind).get("return", kind) if inspect.isfunction(kind) else kind
    if all(one.phases is Process.phases for one in typing.get_args(made) or (made,)):
        return None
    return make_process(name, **{**values, **_SOME_TOKENIZER})


def schedule_of(text: str, schedule: str) -> str:
    """The schedule of a phase: that of the run, unless its process has one of its own."""
    return schedule if "schedule" in process_fields(parse(text, "process")[0]) else "linear"


def check_process(text: str, schedule: str = "linear") -> bool | None:
    """Checks the text of a process, like "hybrid(p_uniform=0.2)", and of its schedule, without a tokenizer, a corpus or a device.

    Returns:
      Whether its network is conditioned on t; None where that depends on the tokenizer or corpus.
    Raises:
      InputError: an unknown name or value (with the nearest valid one), a value of another type, out of its range or that the
        tokenizer or training provides, a schedule for a process that defines its own.
    """
    name, values = parse(text, "process")
    fields = parameters_of(lookup("process", name, PROCESSES))
    configured = {field: kind for field, kind in fields.items() if field not in (*_COMMON, *_INTERNAL)}
    if "schedule" in fields:
        configured.setdefault("eps", _EPS)
    check_values(f"process {name}", configured, values)
    of_schedule = parse(schedule, "schedule")
    check_call("schedule", schedule)
    if "schedule" not in fields and of_schedule != ("linear", {}):
        raise InputError(f"process {name} has a schedule of its own; leave schedule at 'linear', not {schedule!r}")
    return _time_input(name, values, of_schedule)


def _time_input(name: str, values: Mapping[str, Any], schedule: tuple[str, Mapping[str, Any]]) -> bool | None:
    """`time_input` of the process over a large vocabulary. It is traced, since no device may be used: where a process reads the numbers
    of a traced array, the trace ends, and its other values are checked when the run is assembled."""
    if name in _CHECKED:
        return _CHECKED[name](**values)
    facts = _SOME_TOKENIZER | ({"counts_V": (1,) * _SOME_VOCAB} if "counts_V" in process_fields(name) else {})
    found: list[bool] = []

    def trace() -> None:
        found.append(make_process(name, **facts, **values, schedule={"name": schedule[0], **schedule[1]}).time_input)

    with contextlib.suppress(jax.errors.ConcretizationTypeError, jax.errors.TracerArrayConversionError):
        jax.eval_shape(trace)
    kind = getattr(PROCESSES[name], "time_input", None)
    return found[0] if found else kind if isinstance(kind, bool) else None


def check_call(kind: str, text: str) -> None:
    """Checks the text of a "schedule", "times", "weighting" or "masks" by making the object, which holds plain numbers only.

    Raises InputError: an unknown name or value (with the nearest valid one), a value of another type or out of its range.
    """
    make = {"schedule": make_schedule, "times": make_times, "weighting": make_weighting, "masks": make_masks}[kind]
    name, values = parse(text, kind)
    if "name" in values:
        raise InputError(f"{kind} {name} has no value 'name'")
    make(name, **values)


def process_fields(name: str) -> frozenset[str]:
    """Names of the values that a process takes."""
    return frozenset(parameters_of(lookup("process", name, PROCESSES)))


def make_schedule(name: str, eps: Any = None, **values: Any) -> schedules.Schedule:
    """A schedule by name. `eps` clips alpha to [eps, 1 - eps] (log_linear and llada have an eps of their own); None or 0 = exact ends."""
    make = lookup("schedule", name, SCHEDULES)
    check_values(f"schedule {name}", {"eps": _EPS}, {"eps": eps})
    if eps and "eps" in parameters_of(make):
        return build(f"schedule {name}", make, {**values, "eps": eps})
    schedule = build(f"schedule {name}", make, values)
    return schedules.symmetric(schedule, eps) if eps else schedule


def make_times(name: str, **values: Any) -> times.Times:
    """A draw of times by name, one of TIMES or WITHIN_ROWS.

    "importance" takes `heights`; "power" takes `exponent`; "uniform" and "stratified" take `low`, `high`; "mixture" takes `parts`, a
    sequence of {"law": one of TIME_DISTRIBUTIONS, values}, and `probabilities`. `stratified` overrides what the name implies; with
    `corrected=False` what is trained has no weight 1/density, and is not a bound. "per_block" takes `size`, `antithetic` and `corrected`,
    "hyper" takes `window`, "by_position" `size` and `halving`, all a `law` and its values.
    """
    values = dict(values)
    if name in WITHIN_ROWS:
        own = {key: values.pop(key) for key in list(values) if key in parameters_of(WITHIN_ROWS[name]) and key != "distribution"}
        own["distribution"] = _distribution(f"times {name}", values.pop("law", "flat"), values)
        return build(f"times {name}", WITHIN_ROWS[name], own)
    distribution, stratified = lookup("times", name, TIMES | WITHIN_ROWS)
    own = {"stratified": stratified} | {key: values.pop(key) for key in ("stratified", "corrected") if key in values}
    own["distribution"] = _distribution(f"times {name}", distribution, values)
    return build(f"times {name}", times.PerRow, own)


def make_weighting(name: str, **values: Any) -> weighting.Weighting:
    """A training weight by name, one of WEIGHTINGS."""
    return build(f"weighting {name}", lookup("weighting", name, WEIGHTINGS), values)


def make_masks(name: str, **values: Any) -> Progressive | None:
    """The masks of training by name, one of MASKS; None = those of the process."""
    return build(f"masks {name}", lookup("masks", name, MASKS), values)


def _distribution(where: str, name: Any, values: Mapping[str, Any]) -> times.TimeDistribution:
    values = {key: tuple(value) if isinstance(value, list) else value for key, value in values.items()}
    if name == "mixture" and "parts" in values:
        if not isinstance(values["parts"], tuple) or not all(isinstance(part, Mapping) for part in values["parts"]):
            raise InputError(f"{where}: parts requires a list of time distributions, like [{{'law': 'beta'}}, {{'law': 'power'}}]")
        parts = [dict(part) for part in values["parts"]]
        values["parts"] = tuple(_distribution(where, part.pop("law", "flat"), part) for part in parts)
    return build(where, lookup("time distribution", name, TIME_DISTRIBUTIONS), values)


def _schedule(value: Any, **clip: float | None) -> schedules.Schedule:
    if isinstance(value, str):
        return make_schedule(value, **clip)
    if isinstance(value, Mapping):
        return make_schedule(**{**clip, **value})
    return schedules.symmetric(value, clip["eps"]) if clip.get("eps") else value
