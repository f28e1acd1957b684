"""A config: the tree of its fields, overrides of the command line, and the checks made before a device is touched.

A config is one locked `ml_collections.ConfigDict` with the fields that `fields.py` declares. Files in `configs/` start from `default()`
and change a few; `--config.section.field=VALUE` changes any. The values inside a name with values have names of their own:
`--config.process.name.p_uniform=0.3` on top of "hybrid" is "hybrid(p_uniform=0.3)". Sections carry the names of the frozen dataclasses
they fill: `model_spec(config.model)`, `Execution(**config.execution)`, `OptimizerSpec(**config.optimizer)`.
"""

import ast
import contextlib
import functools
import hashlib
import importlib.util
import inspect
import json
import math
import os
import pathlib
import re
import textwrap
import traceback
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from ml_collections import ConfigDict

from dlmjax import choices
from dlmjax.cluster.mesh_sizes import check_sizes
from dlmjax.data.supervised import make_choice
from dlmjax.data.token_budget import parse_path
from dlmjax.diffusion.phases import earlier_phases, phase_texts
from dlmjax.diffusion.registry import check_call, check_process, curriculum_of, schedule_of
from dlmjax.errors import InputError, names_arguments
from dlmjax.fields import FIELDS, hashed, non_identity_fields
from dlmjax.files import parse_json, require_shape, unsealed
from dlmjax.models.families import model_spec, own_module

# A corpus may move, but how much of it is read (`DIR(tokens=N)`) is part of what is computed.
PATHS = "data.paths"
# The configs that ship: beside the package in a checkout, in it where setup.py has installed a copy.
_HERE = pathlib.Path(__file__).resolve().parent
SHIPPED = _HERE / "configs" if (_HERE / "configs").is_dir() else _HERE.parent / "configs"
WEIGHTS = "data.weights"


def default() -> ConfigDict:
    """Every field with its default."""
    config = ConfigDict()
    for name, field in FIELDS.items():
        section, _, key = name.rpartition(".")
        if section and section not in config:
            config[section] = ConfigDict()
        (config[section] if section else config)[key] = field.default
    return config.lock()


# Times of the tiny configs: bell-shaped (2605.13026), most rows between 0.2 and 0.6 of noise, a tenth of them at all times. What is trained
# without the weight 1/density is not a bound; the bound is logged beside it (docs/efficiency.md).
TINY_TIMES = "beta(a=3.0,b=5.0,flat=0.1,corrected=False)"
SIZES = ("1b", "gpt2_small", "tiny")


def sized(size: str) -> ConfigDict:
    """The defaults at one of the sizes at which every noise process is configured, so that the configs differ in their noise alone.

    "1b": 16 layers of 2048 (as Llama 3.2 1B has), 16 heads of 128, 2048 tokens, 256 windows a step, 50,304 classes (the 50,259 ids of
    gpt2:DIR, rounded up to a multiple of a TPU's 128 lanes): 1.03 billion parameters. "gpt2_small": 12 layers of 768, 1024 tokens, 512
    windows a step, for accelerators. "tiny": 4 layers of 64, 128 tokens, 32 windows, for two CPU cores; masked diffusion
    has 8.5e12 FLOPs in its 1290 steps.
    Raises InputError for another size.
    """
    config = default()
    if size == "1b":
        config.data.update(length=2048, batch=256)
        config.model.update(vocab=50_304, depth=16, width=2048, heads=16, kv_heads=16, head_dim=128, ffn=5632)
        config.execution.update(dtype="bfloat16", scan=True, remat="dots", attention="cudnn")
        config.optimizer.update(lr=3e-4, beta2=0.95, weight_decay=0.1, warmup=2000, schedule="wsd")
        config.train.update(steps=100_000, ema=0.9999)
        config.checkpoint.every = 1000
        config.log.update(every=50, evaluate=1000, sample=5000)
    elif size == "gpt2_small":
        config.data.update(length=1024, batch=512)
        config.model.update(depth=12, width=768, heads=12, kv_heads=12, head_dim=64, ffn=2048)
        config.execution.update(dtype="bfloat16", scan=True, remat="none", attention="cudnn")
        config.optimizer.update(lr=3e-4, beta2=0.999, weight_decay=0.03, warmup=2500, schedule="wsd")
        config.train.update(steps=100_000, accumulation=8, ema=0.9999)
        config.checkpoint.every = 1000
        config.log.update(every=50, evaluate=1000, sample=5000)
    elif size == "tiny":
        # At equal FLOPs a small network with many steps learns more than a larger one with few; wavelengths up to the length of a row, and
        # a rate that stays high until the last steps (docs/efficiency.md).
        config.data.update(length=128, batch=32)
        config.model.update(depth=4, width=64, heads=4, kv_heads=4, head_dim=16, ffn=176, rope_base=100.0)
        config.execution.scan = False
        config.optimizer.update(name="muon", lr=1e-2, beta2=0.98, weight_decay=0.01, warmup=64, schedule="wsd", decay=0.3)
        config.train.update(steps=1290, ema=0.984)
        config.checkpoint.every = 645
        config.log.update(every=86, evaluate=645, evaluate_windows=32, sample=1290)
    else:
        raise InputError(f"config size {size!r} is unknown; choose one of {', '.join(SIZES)}")
    return config


def load(path: str, overrides: Sequence[str] = ()) -> ConfigDict:
    """Runs `get_config()` of the file, applies `section.leaf=value` overrides and checks the result.

    `FILE.py:SIZE` calls `get_config("SIZE")`: the configs of the noise processes have several sizes. `configs/FILE.py` is one that ships,
    where the current folder has no such file.

    Raises:
      InputError: no such file, no `get_config`, an unknown field (the message has the nearest name), a value of another type, a
        contradiction, a curriculum that is not shorter than the run.
    """
    path, sizes = split_size(path)
    path = shipped(path)
    get_config = function_of(path, "config", "configs/quickstart.py")
    if sizes and not inspect.signature(get_config).parameters:
        raise InputError(f"config {path} comes at one size; leave out :{sizes[0]}")
    with errors_as_lines(path):
        config = get_config(*sizes)
        if inspect.iscoroutine(config):
            config.close()  # `async def`: Python would warn that nobody awaits it
    if not isinstance(config, ConfigDict):
        raise InputError(f"config {path}: get_config() returns {type(config).__name__}, not a ConfigDict")
    try:
        _check_tree(config)
    except InputError as error:
        raise InputError(f"{path}: {error}") from None
    return _with_module_beside(override(config, overrides), path)


def _with_module_beside(config: ConfigDict, path: str) -> ConfigDict:
    """The config with the whole path of a network of one's own, which is beside the config's file. Raises InputError: no such file."""
    if (named := own_module(config.model.family)) is None:
        return config
    file = (pathlib.Path(path).parent / named[0]).resolve()
    if not file.is_file():
        raise InputError(f"model.family={config.model.family}: {file} does not exist; give a file beside the config, or its whole path")
    config.model.family = f"{file}:{named[1]}"
    return config


def split_size(path: str) -> tuple[str, tuple[str, ...]]:
    """`FILE.py:SIZE` -> (FILE.py, (SIZE,)); a path without a size -> (path, ())."""
    path, colon, size = path.partition(".py:")
    return (path + ".py", (size,)) if colon else (path, ())


def shipped(path: str) -> str:
    """A path `configs/FILE.py` that the current folder does not have, in the folder of those that ship; others as they are."""
    first, *rest = pathlib.PurePath(path).parts or ("",)
    if first != "configs" or ".." in rest or os.path.lexists(path) or not (file := SHIPPED.joinpath(*rest)).is_file():
        return path
    return str(file)


@names_arguments()
def load_config(path: str | os.PathLike, *overrides: str) -> ConfigDict:
    """The config of a file, or of the name of one that ships, with overrides: `load_config("masked:tiny", "train.steps=100")`.

    Args:
      path: "FILE.py", "FILE.py:SIZE", or "NAME" or "NAME:SIZE" of a file in `configs/`, which an installed package holds a copy of.
      overrides: "section.field=value", as behind `--config.` on the command line.

    Raises InputError: as `load`; a name that is no config of `configs/`.
    """
    path = os.fspath(path)
    name, colon, size = path.partition(":")
    if ".py" not in path:
        names = sorted(file.stem for file in SHIPPED.glob("*.py"))
        if name not in names:
            near = choices.nearest(name, names) if names else ""
            raise InputError(f"config {name!r:.60} is neither a file FILE.py nor the name of one in {SHIPPED}{near}")
        path = f"{SHIPPED / name}.py{colon}{size}"
    for override_text in overrides:
        if not isinstance(override_text, str):
            raise InputError(f"override {override_text!r:.60} is not a text; give each as section.field=value")
    return load(path, overrides)


def function_of(path: str, kind: str, example: str) -> Callable:
    """`get_KIND` of a Python file, which is run; `example`: one that ships.

    Raises InputError: no such file, one that is not Python or fails, or no such function in it.
    """
    file = pathlib.Path(path)
    if not file.is_file():
        folder = pathlib.Path(shipped(example)).parent
        raise InputError(f"{kind} {path} does not exist; the {kind}s that ship with dlmjax are in {folder}/")
    spec = importlib.util.spec_from_file_location(f"dlmjax_{kind}_{file.stem}", file)
    if spec is None:
        raise InputError(f"{kind} {path} is not a Python file; copy the shape of {example}")
    module = importlib.util.module_from_spec(spec)
    with errors_as_lines(path):
        spec.loader.exec_module(module)
    if not callable(getattr(module, f"get_{kind}", None)):
        raise InputError(f"{kind} {path} has no get_{kind}(); copy the shape of {example}")
    return vars(module)[f"get_{kind}"]


@contextlib.contextmanager
def errors_as_lines(path: str) -> Iterator[None]:
    """Turns an exception of a Python file that is run into one line with its last line number: `FILE, line 3: NameError: ...`.

    Raises InputError: that line, or the InputError that the file itself raised.
    """
    try:
        yield
    except InputError:
        raise
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # SystemExit, too: a config does not decide how this program ends
        file = str(pathlib.Path(path).resolve())
        lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if str(pathlib.Path(frame.filename).resolve()) == file]
        try:
            message = str(error)
        except Exception:  # an exception class of the file may fail here
            message = ""
        if isinstance(error, SyntaxError) and error.filename and str(pathlib.Path(error.filename).resolve()) == file:
            lines, message = [error.lineno], error.msg
        where = f"{path}, line {lines[-1]}" if lines else path
        message = textwrap.shorten(message, 200, placeholder=" ...")
        raise InputError(f"{where}: {type(error).__name__}{': ' * bool(message)}{message} (--debug shows more)") from error


def override(config: ConfigDict, overrides: Sequence[str]) -> ConfigDict:
    """Applies `section.field=value`; values are Python literals or plain text, and take the type of the field.

    `section.field.NAME=value` changes one value of a name with values, after the fields themselves, in whatever order they are written.

    Raises InputError: a text that is not an override, an unknown field, a value of another type, and what `check` refuses.
    """
    _check_tree(config)
    inside = []
    for text in overrides:
        name, equals, value = text.partition("=")
        if any("\ud800" <= letter <= "\udfff" for letter in text):
            raise InputError(f"--config.{text!r:.100} holds bytes that are not UTF-8")
        if not equals:
            raise InputError(f"--config.{text} has no value; write --config.{text}=VALUE")
        outer, _, key = name.rpartition(".")
        if outer == PATHS or (outer in FIELDS and FIELDS[outer].named):
            inside.append((outer, key, value))
        elif name not in FIELDS:
            raise InputError(f"config has no field {name!r:.100}{choices.nearest(name, FIELDS)}")
        else:
            _set(config, name, _typed(name, value, FIELDS[name].default))
    for outer, key, value in inside:
        old = leaves(config)[outer]
        with_value = functools.partial(_with_value, outer, key=key, value=value)
        _set(config, outer, tuple(map(with_value, old)) if outer == PATHS else with_value(old))
    check(config)
    check_curriculum(config)
    return config


def _set(config: ConfigDict, name: str, value: Any) -> None:
    section, _, key = name.rpartition(".")
    (config[section] if section else config)[key] = value


def _with_value(field: str, choice: str, key: str, value: str) -> str:
    """The text of a choice, or of the path of a corpus, with another value of one name."""
    if not choice:
        raise InputError(f"--config.{field}.{key:.100} requires a name that takes it; give --config.{field}=NAME, too")
    if not key.isidentifier():
        raise InputError(f"--config.{field}.{key:.100} is not the name of a value of {field}={choice:.100}")
    if field == PATHS:
        path = choices.text_of(choices.split_suffix(choice)[0], {key: literal(value)})
        with _of_field(PATHS):
            if parse_path(path)[1] is None:
                raise InputError(f"{key} requires a whole number, not {value!r:.100}")
        return path
    name, values = choices.parse(choice, field)
    return choices.text_of(name, {**values, key: literal(value)})


_DEEPEST = 8  # nested sections; a valid config has one level


def leaves(config: ConfigDict, prefix: str = "") -> dict[str, Any]:
    """`{"section.field": value}` of the whole tree, in the order of `default()`."""
    found = {}
    if prefix.count(".") > _DEEPEST:
        raise InputError(f"config has the field {prefix[:60]}..., deeper than sections go, or a section holds itself; take that field out")
    for key, value in config.items():
        name = f"{prefix}{key}"
        found.update(leaves(value, name + ".") if isinstance(value, ConfigDict) else {name: value})
    return found


def literal(text: str) -> Any:
    """The Python literal that a text holds; the text itself where it is not a literal."""
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):  # the last three: brackets without end, {[]: 1}
        return text


def _typed(name: str, text: str, old: Any) -> Any:
    """The text of a flag as a value of the field's type."""
    value = literal(text)
    if isinstance(old, bool):
        if text.lower() not in ("true", "false", "1", "0"):
            raise InputError(f"config field {name} requires true or false, not {text!r:.100}")
        return text.lower() in ("true", "1")
    if isinstance(old, tuple):
        if name == WEIGHTS and _is_number(value):
            return (value,)
        # Commas inside the brackets of a name with values separate no entries.
        parts = value if isinstance(value, tuple | list) else [part for part in re.split(r",\s*(?![^(]*\))", text) if part]
        return tuple(parts)
    if isinstance(old, str):
        return text
    # Python's integers are unbounded: one that no float holds is refused by the bounds.
    if isinstance(old, float) and _is_number(value):
        return float(value) if abs(value) < 1e308 else math.inf
    if isinstance(old, int) and _is_number(value) and (isinstance(value, int) or value.is_integer()):
        return int(value)
    raise InputError(f"config field {name} requires {_TYPES[type(old)]}, not {text!r:.100}")


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def check(config: ConfigDict) -> None:
    """Refuses what no run can have, before a device is touched.

    Raises:
      InputError: the first contradiction found, with the fields and what to change.
    """
    _check_tree(config)
    for name, value in leaves(config).items():
        FIELDS[name].check(name, value)
    _check_together(config)
    _check_choices(config)


def _check_tree(config: ConfigDict) -> None:
    """Raises InputError: a field that is not declared, one that is missing, or a value of another type."""
    values = leaves(config)
    for name, value in values.items():
        if name not in FIELDS:
            raise InputError(f"config has no field {name!r:.100}{choices.nearest(name, FIELDS)}")
        if type(value) is not type(FIELDS[name].default):
            raise InputError(f"config field {name} requires {_TYPES[type(FIELDS[name].default)]}, not {value!r:.100}")
    if missing := [name for name in FIELDS if name not in values]:
        raise InputError(f"config lacks {len(missing)} fields, the first is {missing[0]}; start from dlmjax.config.default()")


_TYPES = {float: "a number", int: "a whole number", bool: "true or false", str: "a text", tuple: "a list"}


def _check_together(config: ConfigDict) -> None:
    """Contradictions between the fields of two sections, and between the entries of a list."""
    model, data, train = config.model, config.data, config.train
    if data.batch % train.accumulation:
        raise InputError(f"data.batch ({data.batch}) does not divide into train.accumulation ({train.accumulation}) microbatches")
    if not all(_is_number(weight) and 0 < weight < math.inf for weight in data.weights):
        raise InputError(f"data.weights is {data.weights!s:.100}; give positive numbers, as in --config.data.weights=0.25,0.75")
    if data.weights and len(data.weights) != len(data.paths):
        raise InputError(f"data.weights has {len(data.weights)} entries for {len(data.paths)} data.paths; give one for each, or none")
    if not all(isinstance(path, str) for path in data.paths):
        raise InputError(f"data.paths is {data.paths!s:.100}; give the names of directories")
    _token_budgets(data.paths)
    check_sizes(dict(config.mesh))
    if config.optimizer.warmup > train.steps:
        raise InputError(
            f"optimizer.warmup ({config.optimizer.warmup}) is longer than train.steps ({train.steps}); lower it or raise the steps"
        )
    kernel, prefixed = config.execution.attention, model.time_input.startswith("prefix")
    if kernel != "dense" and prefixed:
        raise InputError(
            f"execution.attention={kernel} conflicts with the position that model.time_input=prefix adds; use adaln, add or dense"
        )
    if kernel == "cudnn" and (model.head_dim % 8 or model.head_dim > 256):
        raise InputError(
            f"execution.attention=cudnn requires model.head_dim to be a multiple of 8, at most 256, not {model.head_dim}; or use dense"
        )


def check_curriculum(config: ConfigDict, process: Any = None) -> None:
    """Refuses a run that ends before the curriculum of its process: the last phase would not be trained. Not part of `check`, because
    finished runs of this kind must open.

    Args:
      process: the process of the config, where it exists already.

    Raises:
      InputError: a curriculum that is not shorter than the run, or that begins before the phases of `process.before` end; one of these
        without a step; values that the process does not take.
    """
    with _of_field("process.before"):
        ends = [end for _, end in earlier_phases(config.process.before, config.train.steps)]
    process = process or curriculum_of(config.process.name)
    if ends and process is not None and process.phases.ends and process.phases.ends[0] <= ends[-1]:
        raise InputError(
            f"process.name={config.process.name} has a curriculum whose first phase ends at step {process.phases.ends[0]}, but "
            f"process.before ends at step {ends[-1]}; give all phases in process.before, or later steps"
        )
    if process is None or process.phases.end < config.train.steps:
        return
    name, values = choices.parse(config.process.name)
    shorter = choices.text_of(name, {**values, **process.phases.shortened(config.train.steps // 2)})
    raise InputError(
        f"process.name={config.process.name} has a curriculum that ends at step {process.phases.end}, but train.steps is "
        f"{config.train.steps}: its last phase would not be trained; raise --config.train.steps above {process.phases.end}, or "
        f'pass --config.process.name="{shorter}"'
    )


def _check_choices(config: ConfigDict) -> None:
    """Names with values: processes, schedules, times, weightings, families, time inputs; and what a process requires of the network."""
    process = config.process
    for kind in ("infill", "tail"):
        with _of_field(f"data.{kind}"):
            make_choice(kind, config.data[kind])
    for kind in ("schedule", "times", "weighting", "masks"):
        if process[kind] or kind != "weighting":
            with _of_field(f"process.{kind}"):
                check_call(kind, process[kind])
    if process.hint != "x0" and not process.self_condition:
        raise InputError(f"process.hint={process.hint} requires process.self_condition above 0, the share of rows that read the hint")
    with _of_field("process.name"):
        found = [("name", process.name, check_process(process.name, process.schedule))]
    with _of_field("process.before"):
        for phase in phase_texts(process.before):
            schedule = phase.settings.get("schedule", schedule_of(phase.process, process.schedule))
            found.append(("before", phase.process, check_process(phase.process, schedule)))
            for kind, value in phase.settings.items():
                check_call(kind, value)
    for leaf, text, reads_time in found:
        if reads_time and config.model.time_input == "none" and own_module(config.model.family) is None:
            raise InputError(f'process.{leaf}={text} requires model.time_input="adaln", "add" or "prefix", not "none"')
    if own_module(config.model.family) is None:
        model_spec(config.model, vocab=config.model.vocab or 1)


@contextlib.contextmanager
def _of_field(name: str) -> Iterator[None]:
    """Names the field in front of an InputError about its value."""
    try:
        yield
    except InputError as error:
        raise InputError(f"config field {name}: {error}") from None


def fingerprint(config: ConfigDict) -> str:
    """Short hash of the fields that decide what a run computes: without machine, logging and paths, and `hashed`."""
    values = leaves(config)
    free = non_identity_fields()
    fixed = {name: _identity(name, value) for name, value in hashed(values).items() if name not in free}
    if budgets := _token_budgets(values[PATHS]):
        fixed[PATHS] = budgets
    return hashlib.sha256(json.dumps(fixed, sort_keys=True).encode()).hexdigest()[:12]


def differences(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """Fields that make two flat configs different runs, as `name: old -> new`. A field newer than a config had its default there."""
    free, defaults = non_identity_fields(), leaves(default())
    old, new = {**defaults, **old}, {**defaults, **new}
    names = [name for name in {**old, **new} if name not in free and _identity(name, old.get(name)) != _identity(name, new.get(name))]
    if _token_budgets(old.get(PATHS, ())) != _token_budgets(new.get(PATHS, ())):
        names.append(PATHS)
    return [f"{name}: {_plain(old.get(name))} -> {_plain(new.get(name))}" for name in names]


def _token_budgets(paths: Sequence[str]) -> list[int | None]:
    """Token budget of each corpus, None for a whole one; empty where all are whole."""
    with _of_field(PATHS):
        tokens = [parse_path(path)[1] for path in paths]
    return tokens if any(tokens) else []


def _identity(name: str, value: Any) -> Any:
    """A value as far as it decides what a run computes: the file of a network of one's own without its folder (its content is compared by
    the workdir)."""
    if name == "model.family" and isinstance(value, str) and (named := own_module(value)):
        return f"{pathlib.PurePath(named[0]).name}:{named[1]}"
    return _plain(value)


def _plain(value: Any) -> Any:
    """A value as JSON returns it: tuples are lists."""
    return list(value) if isinstance(value, tuple) else value


def renamed(old: dict[str, Any]) -> dict[str, Any]:
    """The flat config of an older run with today's field names: `model.qk_norm` became a family."""
    new = {name: value for name, value in old.items() if name != "model.qk_norm"}
    if "model.qk_norm" in old:
        new["model.family"] = "qwen3" if old["model.qk_norm"] else "llama"
    return new


def to_json(config: ConfigDict) -> str:
    """One flat JSON object, `{"section.field": value}`, as a workdir stores it."""
    return json.dumps(leaves(config), indent=1) + "\n"


def from_json(text: str) -> ConfigDict:
    """Reads the config.json of a workdir. Fields that are newer than the file have their defaults; renamed fields are read.

    Raises InputError: an unknown field, or a value that `check` refuses.
    """
    config = default()
    for name, value in renamed(unsealed(require_shape(parse_json(text), dict))).items():
        if name not in FIELDS:
            raise InputError(f"config.json names the unknown field {name!r:.100}; a newer version of dlmjax may have written it")
        _set(config, name, tuple(value) if isinstance(value, list) else value)
    check(config)
    return config
