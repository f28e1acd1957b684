"""The whole config tree with its defaults, the overrides of the command line, and the checks made before a device is touched.

A config is one locked `ml_collections.ConfigDict`. Files in `configs/` start from `default()` and change a few leaves; any leaf can
be overridden with `--config.section.leaf=value`. Sections carry the names of the frozen dataclasses they fill, so nothing is copied
field by field: `model_spec(config.model)`, `Execution(**config.execution)`, `OptimizerSpec(**config.optimizer)`.
"""

import ast
import contextlib
import hashlib
import importlib.util
import inspect
import json
import math
import pathlib
import textwrap
import traceback
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from ml_collections import ConfigDict

from dlmjax import choices
from dlmjax.data.portion import parse_path
from dlmjax.errors import InputError
from dlmjax.files import parse_json, require_shape, unsealed
from dlmjax.seeds import SEEDS

# Leaves that may differ between a run and its continuation without making it another run.
FREE_TO_CHANGE = ("execution.", "mesh.", "checkpoint.", "log.", "data.paths", "train.on_nonfinite")
# A corpus may move, but how much of it is read (`DIR(tokens=N)`) is part of what is computed.
PATHS = "data.paths"
WEIGHTS = "data.weights"


def default() -> ConfigDict:
    """Every leaf with its default and, in one line, what it is for. Units stand beside the value."""
    config = _what_is_trained()
    config.optimizer = ConfigDict(
        dict(
            name="adamw",
            lr=1e-3,
            beta1=0.9,
            beta2=0.95,
            eps=1e-8,
            weight_decay=0.1,  # on matrices, embedding and head; never on norms
            clip=1.0,  # global gradient norm; 0 = off
            schedule="cosine",
            warmup=100,  # steps
            decay=0.2,  # share of the steps that decay ("wsd")
            final=0.1,  # last learning rate as a share of lr
        )
    )
    config.train = ConfigDict(
        dict(
            steps=1000,
            accumulation=1,  # microbatches per step
            ema=0.9999,  # of the weights, with warm-up min(d, (1+s)/(10+s)); 0 = off
            on_nonfinite="skip",  # "skip" the update or "stop" the run when a gradient is not finite
            spike=0.0,  # also skip when the loss exceeds this multiple of its running mean; 0 = off
        )
    )
    config.mesh = ConfigDict(dict(data=-1, fsdp=1, sequence=1, tensor=1))  # -1 = what the devices leave over
    config.checkpoint = ConfigDict(
        dict(
            every=500,  # steps
            keep=2,  # newest checkpoints kept
            best=1,  # best held-out checkpoints kept beside them
        )
    )
    config.log = ConfigDict(
        dict(
            every=20,  # steps between lines of metrics: the only host syncs of the loop
            evaluate=500,  # steps between held-out bounds; 0 = never
            evaluate_windows=128,  # held-out windows used on the way (the `evaluate` command uses all)
            nodes=16,  # noise levels of the evaluation grid
            sample=1000,  # steps between text samples; 0 = never
        )
    )
    return config.lock()


def _what_is_trained() -> ConfigDict:
    """Seed, data, model, how it is run, and the noise process."""
    config = ConfigDict()
    config.seed = 0  # the run is a function of this seed, the corpus and the config
    config.data = ConfigDict(
        dict(
            paths=(),  # directories written by `dlmjax prepare`; "DIR(tokens=100000)" trains on the first tokens alone
            weights=(),  # share of windows from each path; empty = in proportion to tokens
            length=256,  # tokens in a window
            batch=64,  # windows in a step, over all hosts and microbatches
            packing="concat",  # "concat": documents end to end, cut at the length; "documents": no document is split unless it is longer
        )
    )
    config.model = ConfigDict(
        dict(
            vocab=0,  # classes of the head, special ids included; 0 = the corpus's tokenizer
            depth=6,
            width=384,
            heads=6,
            kv_heads=6,  # fewer than heads = grouped-query attention
            head_dim=64,
            ffn=1024,  # hidden width of the MLP
            family="qwen3",  # or llama, qwen2, gpt2, bert (docs/interop.md): norms, biases and positions; with values: llama(norm_eps=1e-5)
            tied=False,  # the head reuses the embedding
            rope_base=10_000.0,
            rope_scaling=1.0,  # > 1 stretches positions for contexts longer than trained
            dropout=0.0,
            time_input="none",  # "adaln", "add" or "prefix" where the process needs the level; adaln(features="fourier")
            completep_width=0,  # width at which the learning rate was tuned; 0 = no width transfer
            completep_depth=0,  # depth at which the learning rate was tuned; 0 = no depth transfer
        )
    )
    config.execution = ConfigDict(
        dict(
            dtype="float32",  # of activations; master weights, logits and reductions are always float32
            scan=True,  # one compiled layer run depth times; False unrolls: faster on CPU, slower to compile
            remat="none",  # "dots" keeps matrix products, "full" keeps layer inputs only
            attention="dense",  # "cudnn" on GPU, "splash" on TPU
            head_chunk=0,  # rows whose logits are in memory at once; 0 = by the size of the vocabulary
        )
    )
    config.process = ConfigDict(
        dict(
            # Each is a name, or a name with values: "hybrid(p_uniform=0.2)"; docs/processes.md lists them.
            name="masked",
            schedule="linear",
            times="stratified",  # how t is drawn over the global batch
            weighting="",  # what is trained in place of the bound; empty = what the process is trained with
            self_condition=0.0,  # share of rows denoised a second time with the first estimate as a hint; 0 = the network takes none
            prompt=0.0,  # share of rows that start with given text; the rest train the unconditional side of guidance
        )
    )
    return config


SIZES = ("gpt2_small", "tiny")


def sized(size: str) -> ConfigDict:
    """The defaults at one of the sizes at which every noise family is configured, so that families differ in their noise alone.

    "gpt2_small": 12 layers of 768, 1024 tokens, 512 windows a step, for accelerators; "tiny": 4 layers of 128, 128 tokens, 32 windows,
    about two steps a second on two CPU cores.
    Raises InputError for another size.
    """
    config = default()
    if size == "gpt2_small":
        config.data.update(length=1024, batch=512)
        config.model.update(depth=12, width=768, heads=12, kv_heads=12, head_dim=64, ffn=2048)
        config.execution.update(dtype="bfloat16", scan=True, remat="none", attention="cudnn")
        config.optimizer.update(lr=3e-4, beta2=0.999, weight_decay=0.03, warmup=2500, schedule="wsd")
        config.train.update(steps=100_000, accumulation=8, ema=0.9999)
        config.checkpoint.every = 1000
        config.log.update(every=50, evaluate=1000, sample=5000)
    elif size == "tiny":
        config.data.update(length=128, batch=32)
        config.model.update(depth=4, width=128, heads=4, kv_heads=4, head_dim=32, ffn=384)
        config.execution.scan = False
        config.optimizer.update(name="muon", lr=1e-2, beta2=0.98, weight_decay=0.01, warmup=20)
        config.train.update(steps=400, ema=0.98)
        config.checkpoint.every = 200
        config.log.update(every=25, evaluate=200, evaluate_windows=32, sample=400)
    else:
        raise InputError(f"config size {size!r} is unknown; choose one of {', '.join(SIZES)}")
    return config


def load(path: str, overrides: Sequence[str] = ()) -> ConfigDict:
    """Runs `get_config()` of the file, applies `section.leaf=value` overrides and checks the result.

    `FILE.py:SIZE` calls `get_config("SIZE")`: the configs of the noise families come at several sizes.

    Raises:
      InputError: no such file, no `get_config`, an unknown leaf (the nearest valid name is given), a wrong type, a contradiction, a
        curriculum that is no shorter than the run.
    """
    path, colon, size = path.partition(".py:")
    path, given = (path + ".py", (size,)) if colon else (path, ())
    get_config = function_of(path, "config", "configs/quickstart.py")
    if given and not inspect.signature(get_config).parameters:
        raise InputError(f"config {path} comes at one size; leave out :{size}")
    with telling_lines(path):
        config = get_config(*given)
        if inspect.iscoroutine(config):
            config.close()  # `async def`: Python would warn that nobody awaits it
    if not isinstance(config, ConfigDict):
        raise InputError(f"config {path}: get_config() returns {type(config).__name__}, not a ConfigDict")
    try:
        leaves(config)
    except InputError as error:
        raise InputError(f"{path}: {error}") from None
    return override(config, overrides)


def function_of(path: str, kind: str, example: str) -> Callable:
    """`get_KIND` of a Python file, which is run; `example`: one that ships.

    Raises InputError: no such file, one that is not Python or fails, or no such function in it.
    """
    file = pathlib.Path(path)
    if not file.is_file():
        folder = example.rpartition("/")[0]
        raise InputError(f"{kind} {path} does not exist; the {kind}s that ship with dlmjax are in {folder}/")
    spec = importlib.util.spec_from_file_location(f"dlmjax_{kind}_{file.stem}", file)
    if spec is None:
        raise InputError(f"{kind} {path} is no Python file; copy the shape of {example}")
    module = importlib.util.module_from_spec(spec)
    with telling_lines(path):
        spec.loader.exec_module(module)
    if not callable(getattr(module, f"get_{kind}", None)):
        raise InputError(f"{kind} {path} has no get_{kind}(); copy the shape of {example}")
    return vars(module)[f"get_{kind}"]


@contextlib.contextmanager
def telling_lines(path: str) -> Iterator[None]:
    """What fails in a Python file that is run, as one line that names the last of its own: `FILE, line 3: NameError: ...`.

    Raises InputError: that line, or the one that the file itself raised.
    """
    try:
        yield
    except InputError:
        raise
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # SystemExit too: a file that is read does not decide how this program ends
        file = str(pathlib.Path(path).resolve())
        lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if str(pathlib.Path(frame.filename).resolve()) == file]
        try:
            said = str(error)
        except Exception:  # a class of the file's own
            said = ""
        if isinstance(error, SyntaxError) and error.filename and str(pathlib.Path(error.filename).resolve()) == file:
            lines, said = [error.lineno], error.msg
        where = f"{path}, line {lines[-1]}" if lines else path
        said = textwrap.shorten(said, 200, placeholder=" ...")
        raise InputError(f"{where}: {type(error).__name__}{': ' * bool(said)}{said} (--debug shows more)") from error


def override(config: ConfigDict, overrides: Sequence[str]) -> ConfigDict:
    """Applies `section.leaf=value`; values are Python literals or plain text, and take the type of the leaf."""
    valid = leaves(config)
    for text in overrides:
        name, equals, value = text.partition("=")
        if any("\ud800" <= letter <= "\udfff" for letter in text):
            raise InputError(f"--config.{text!r:.100} holds bytes that are not UTF-8")
        if not equals:
            raise InputError(f"--config.{text} has no value; write --config.{text}=VALUE")
        if name not in valid:
            raise InputError(f"config has no field {name!r:.100}{choices.nearest(name, valid)}")
        section, leaf = (config[name.rpartition(".")[0]] if "." in name else config), name.rpartition(".")[2]
        section[leaf] = _typed(name, value, valid[name])
    check(config)
    check_curriculum(config)
    return config


_DEEPEST = 8  # sections inside each other; of a config that is right there is one


def leaves(config: ConfigDict, prefix: str = "") -> dict[str, Any]:
    """`{"section.leaf": value}` of the whole tree, in the order of `default()`."""
    found = {}
    if prefix.count(".") > _DEEPEST:
        raise InputError(f"config has the field {prefix[:60]}..., deeper than sections go, or a section holds itself; take that field out")
    for key, value in config.items():
        name = f"{prefix}{key}"
        found.update(leaves(value, name + ".") if isinstance(value, ConfigDict) else {name: value})
    return found


def literal(text: str) -> Any:
    """The Python literal that a flag's text is; the text itself where it is none."""
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):  # the last three: brackets without end, {[]: 1}
        return text


def _typed(name: str, text: str, old: Any) -> Any:
    """The text of a flag as the type that the leaf already has."""
    value = literal(text)
    if isinstance(old, bool):
        if text.lower() not in ("true", "false", "1", "0"):
            raise InputError(f"config field {name} is a switch; give true or false, not {text!r:.100}")
        return text.lower() in ("true", "1")
    if isinstance(old, tuple):
        if name == WEIGHTS and _is_number(value):
            return (value,)
        parts = value if isinstance(value, tuple | list) else [part for part in text.split(",") if part]
        return tuple(parts)
    if isinstance(old, str):
        return text
    # Python's integers have no end: one that no float holds is left to the bounds.
    if isinstance(old, float) and _is_number(value):
        return float(value) if abs(value) < 1e308 else math.inf
    if isinstance(old, int) and _is_number(value) and (isinstance(value, int) or value.is_integer()):
        return int(value)
    raise InputError(f"config field {name} wants {type(old).__name__}, not {text!r:.100}")


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def check(config: ConfigDict) -> None:
    """Refuses contradictions before a device is touched.

    Raises:
      InputError: the first contradiction found, with the fields and what to change.
    """
    known, values = leaves(default()), leaves(config)
    for name, value in values.items():
        if name not in known:
            raise InputError(f"config has no field {name!r}{choices.nearest(name, known)}")
        if type(value) is not type(known[name]):
            raise InputError(f"config field {name} wants {type(known[name]).__name__}, not {value!r}")
        if isinstance(value, float) and not math.isfinite(value):
            raise InputError(f"config field {name} is {value}; it must be a finite number")
    for name, (low, why) in _LOWEST.items():
        if values[name] < low:
            raise InputError(f"config field {name} is {values[name]}; it must be at least {low} ({why})")
    for name, value in values.items():
        high = _HIGHEST.get(name, 2**31 - 1)
        if isinstance(value, int) and value > high:
            raise InputError(f"config field {name} is {_brief(value)}; it must be at most {high}")
    for name, (top, what) in _SHARES.items():
        if not 0 <= values[name] <= 1 or (values[name] == 1 and top == ")"):
            raise InputError(f"{name} is {values[name]}; {what}, in [0, 1{top}")
    for name, valid in _CHOICES.items():
        if values[name] not in valid:
            raise InputError(f"config field {name} is {values[name]!r:.100}; choose one of {', '.join(valid)}")
    _check_together(config)
    _check_calls(config)


# Of whole numbers: no size of a run is beyond them, and what is within them overflows nothing before a device says that it is too much.
_HIGHEST = {
    "seed": SEEDS - 1,
    "data.length": 2**24,
    "data.batch": 2**24,
    "model.vocab": 2**24,
    "model.depth": 2**16,
    "model.width": 2**20,
    "model.heads": 2**16,
    "model.kv_heads": 2**16,
    "model.head_dim": 2**16,
    "model.ffn": 2**24,
    **dict.fromkeys((f"mesh.{axis}" for axis in ("data", "fsdp", "sequence", "tensor")), 2**20),
}
_LOWEST = {
    "seed": (0, "a non-negative integer"),
    "data.length": (1, "tokens"),
    "data.batch": (1, "windows"),
    "model.vocab": (0, "0 takes the tokenizer's"),
    "model.depth": (1, "layers"),
    "model.width": (1, "channels"),
    "model.heads": (1, "heads"),
    "model.kv_heads": (1, "heads"),
    "model.head_dim": (2, "channels"),
    "model.ffn": (1, "channels"),
    "model.rope_base": (1.0, "wavelengths grow from channel to channel"),
    "model.rope_scaling": (1.0, "it only stretches"),
    "model.completep_width": (0, "channels; 0 = no width transfer"),
    "model.completep_depth": (0, "layers; 0 = no depth transfer"),
    "execution.head_chunk": (0, "rows; 0 chooses"),
    "optimizer.lr": (0.0, "a rate"),
    "optimizer.weight_decay": (0.0, "0 = off"),
    "optimizer.clip": (0.0, "a norm; 0 = off"),
    "optimizer.warmup": (0, "steps"),
    "train.steps": (1, "steps"),
    "train.accumulation": (1, "microbatches"),
    "train.spike": (0.0, "a multiple of the mean loss; 0 = off"),
    "checkpoint.every": (1, "steps"),
    "checkpoint.keep": (1, "checkpoints; without one a run cannot be resumed"),
    "checkpoint.best": (0, "checkpoints; 0 = none"),
    "log.every": (1, "steps"),
    "log.evaluate": (0, "steps; 0 = never"),
    "log.sample": (0, "steps; 0 = never"),
    "log.nodes": (1, "noise levels"),
    "log.evaluate_windows": (1, "windows"),
}
# What lies between 0 and 1, with the bracket of that end.
_SHARES = {
    "model.dropout": (")", "give a probability"),
    "process.self_condition": ("]", "it is a share of the rows"),
    "process.prompt": ("]", "it is a share of the rows"),
    "optimizer.beta1": (")", "give a decay"),
    "optimizer.beta2": (")", "give a decay"),
    "optimizer.decay": ("]", "it is a share of the steps"),
    "optimizer.final": ("]", "it is a share of the learning rate"),
    "train.ema": (")", "give a decay, 0 switches it off"),
}
_CHOICES = {
    "data.packing": ("concat", "documents"),
    "execution.dtype": ("float32", "bfloat16"),
    "execution.remat": ("none", "dots", "full"),
    "execution.attention": ("dense", "cudnn", "splash"),
    "optimizer.name": ("adamw", "muon"),
    "optimizer.schedule": ("wsd", "cosine", "constant"),
    "train.on_nonfinite": ("skip", "stop"),
}


def _check_together(config: ConfigDict) -> None:
    """Contradictions between two fields."""
    model, data, train, mesh = config.model, config.data, config.train, config.mesh
    if model.heads % model.kv_heads:
        raise InputError(f"model.heads ({model.heads}) is not a multiple of model.kv_heads ({model.kv_heads})")
    if model.head_dim % 2:
        raise InputError(f"model.head_dim ({model.head_dim}) must be even: rotary embeddings turn pairs of channels")
    if data.batch % train.accumulation:
        raise InputError(f"data.batch ({data.batch}) does not divide into train.accumulation ({train.accumulation}) microbatches")
    if not all(_is_number(weight) and 0 < weight < math.inf for weight in data.weights):
        raise InputError(f"data.weights is {data.weights!s:.100}; give positive numbers, as in --config.data.weights=0.25,0.75")
    if data.weights and len(data.weights) != len(data.paths):
        raise InputError(f"data.weights has {len(data.weights)} entries for {len(data.paths)} data.paths; give one for each, or none")
    if config.optimizer.eps <= 0:
        raise InputError(f"optimizer.eps is {config.optimizer.eps}; it must be positive: gradients that are zero are divided by it")
    if not all(isinstance(path, str) for path in data.paths):
        raise InputError(f"data.paths is {data.paths!s:.100}; give the names of directories")
    _portions(data.paths)
    if [axis for axis in mesh.values() if axis == 0 or axis < -1] or list(mesh.values()).count(-1) > 1:
        raise InputError(f"mesh sizes are positive, and at most one is -1 (what is left over), not {dict(mesh)}")
    if config.optimizer.warmup > train.steps:
        raise InputError(f"optimizer.warmup ({config.optimizer.warmup}) is longer than train.steps ({train.steps})")
    kernel, prefixed = config.execution.attention, model.time_input.startswith("prefix")
    if kernel != "dense" and prefixed:
        raise InputError(
            f"execution.attention={kernel} cannot take the position that model.time_input=prefix adds; use adaln, add or dense"
        )
    if kernel == "cudnn" and (model.head_dim % 8 or model.head_dim > 256):
        raise InputError(f"execution.attention=cudnn wants model.head_dim a multiple of 8, at most 256, not {model.head_dim}; or use dense")
    if (model.completep_width == 0) != (model.completep_depth == 0):
        raise InputError("model.completep_width and model.completep_depth go together: give both, or 0 for both")


def check_curriculum(config: ConfigDict, process: Any = None) -> None:
    """Refuses a run that ends before the curriculum of its process does: what the curriculum leads to would never be trained. No part of
    `check`, since a run that was trained so is opened as it is.

    Args:
      process: that of the config, where it is made already.

    Raises:
      InputError: such a curriculum, or values that the process does not take.
    """
    from dlmjax.diffusion.registry import curriculum_of  # here: it imports jax

    process = process or curriculum_of(config.process.name)
    if process is None or process.curriculum_end < config.train.steps:
        return
    name, values = choices.parse(config.process.name)
    shorter = choices.text_of(name, {**values, **process.curriculum_ending(config.train.steps // 2)})
    raise InputError(
        f"process.name={config.process.name} has a curriculum that ends at step {process.curriculum_end}, but train.steps is "
        f"{config.train.steps}: what it leads to would never be trained; raise --config.train.steps above {process.curriculum_end}, or "
        f'pass --config.process.name="{shorter}"'
    )


def _check_calls(config: ConfigDict) -> None:
    """What is written as a name, or as a name with values: processes, schedules, times, weightings, families, time inputs."""
    # Here, because they import jax, which takes a second that --help need not wait.
    from dlmjax.diffusion.registry import check_call, check_process
    from dlmjax.models.families import model_spec

    process, tells_time = config.process, None
    for name, check_one in (
        ("schedule", lambda: check_call("schedule", process.schedule)),
        ("name", lambda: check_process(process.name, process.schedule)),
        ("times", lambda: check_call("times", process.times)),
        ("weighting", lambda: process.weighting and check_call("weighting", process.weighting)),
    ):
        try:
            said = check_one()
        except InputError as error:
            raise InputError(f"config field process.{name}: {error}") from None
        tells_time = said if name == "name" else tells_time
    if tells_time and config.model.time_input == "none":
        raise InputError(f'process.name={process.name} requires model.time_input="adaln", "add" or "prefix", not "none"')
    model_spec(config.model, vocab=config.model.vocab or 1)


def _brief(value: int) -> str:
    return str(value) if abs(value) < 10**20 else "a number of more than 20 digits"


def fingerprint(config: ConfigDict) -> str:
    """Short hash of all that decides what a run computes (machine, logging and paths left out)."""
    values = leaves(config)
    fixed = {name: value for name, value in values.items() if not name.startswith(FREE_TO_CHANGE)}
    if portions := _portions(values[PATHS]):
        fixed[PATHS] = portions
    return hashlib.sha256(json.dumps(fixed, sort_keys=True).encode()).hexdigest()[:12]


def differences(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """Fields that make two flat configs different runs, as `name: old -> new`."""
    names = [name for name in {**old, **new} if not name.startswith(FREE_TO_CHANGE)]
    names = [name for name in names if _plain(old.get(name)) != _plain(new.get(name))]
    if _portions(old.get(PATHS, ())) != _portions(new.get(PATHS, ())):
        names.append(PATHS)
    return [f"{name}: {_plain(old.get(name))} -> {_plain(new.get(name))}" for name in names]


def _portions(paths: Sequence[str]) -> list[int | None]:
    """Tokens that are read of each corpus; nothing where all are read whole."""
    tokens = [parse_path(path)[1] for path in paths]
    return tokens if any(tokens) else []


def _plain(value: Any) -> Any:
    """As it reads back from JSON: tuples become lists."""
    return list(value) if isinstance(value, tuple) else value


def renamed(old: dict[str, Any]) -> dict[str, Any]:
    """The flat config of an older run in today's names: `model.qk_norm` became a family."""
    new = {name: value for name, value in old.items() if name != "model.qk_norm"}
    if "model.qk_norm" in old:
        new["model.family"] = "qwen3" if old["model.qk_norm"] else "llama"
    return new


def to_json(config: ConfigDict) -> str:
    """One flat JSON object, `{"section.leaf": value}`, as a workdir stores it."""
    return json.dumps(leaves(config), indent=1) + "\n"


def from_json(text: str) -> ConfigDict:
    """Reads what `to_json` or a workdir wrote. Fields added since take their defaults, those of another name since are understood."""
    config = default()
    for name, value in renamed(unsealed(require_shape(parse_json(text), dict))).items():
        if name not in leaves(config):
            raise InputError(f"config.json names the unknown field {name!r}{choices.nearest(name, leaves(config))}")
        section = config[name.rpartition(".")[0]] if "." in name else config
        section[name.rpartition(".")[2]] = tuple(value) if isinstance(value, list) else value
    check(config)
    return config
