"""The config tree: few leaves, typed overrides, contradictions refused by name."""

import inspect
import json
import math
import re
import subprocess
import sys

import pytest

from dlmjax import config as config_lib
from dlmjax.cli.main import main
from dlmjax.diffusion import capabilities, registry
from dlmjax.errors import InputError
from dlmjax.models.families import FAMILIES
from dlmjax.models.spec import TIME_INPUTS


def test_overrides_take_the_type_of_the_leaf():
    config = config_lib.default()
    texts = [
        "optimizer.lr=1",
        "execution.scan=false",
        "data.paths=a,b",
        "train.steps=1e3",
        "process.name=masked",
        "data.weights=(0.25,0.75)",
    ]
    config_lib.override(config, [*texts])
    assert (config.optimizer.lr, config.execution.scan, config.data.paths) == (1.0, False, ("a", "b"))
    assert (config.train.steps, config.data.weights) == (1000, (0.25, 0.75))
    assert isinstance(config.optimizer.lr, float) and isinstance(config.train.steps, int)


@pytest.mark.parametrize(
    "text, said",
    [
        ("optimizer.lrr=1", "did you mean 'optimizer.lr'"),
        ("optimiser.lr=1", "did you mean 'optimizer.lr'"),
        ("seed", "has no value"),
        ("train.steps=many", "requires a whole number"),
        ("execution.scan=perhaps", "true or false"),
        ("optimizer.name=sgd", "choose one of adamw, muon"),
        ("model.heads=5", "model.kv_heads=6 does not divide model.heads=5"),
        ("model.head_dim=33", "model.head_dim=33 is odd"),
        ("train.accumulation=7", "microbatches"),
        ("train.ema=1.0", "[0, 1)"),
        ("mesh.fsdp=-1", "at most one is -1"),
        ("optimizer.warmup=100000", "longer than train.steps"),
        ("model.completep_width=64", "go together"),
        ("train.steps=0", "at least 1"),
        ("train.steps=True", "requires a whole number"),
        ("train.spike=-1", "at least 0"),
        ("optimizer.clip=-1", "at least 0"),
        ("optimizer.weight_decay=-1", "at least 0"),
        ("optimizer.eps=-1", "must be above 0"),
        ("optimizer.beta1=1.5", "in [0, 1)"),
        ("optimizer.beta2=1.0", "in [0, 1)"),
        ("optimizer.decay=3", "in [0, 1] (share of the steps"),
        ("optimizer.final=7", "in [0, 1] (learning rate of the last step as a share of lr"),
        ("optimizer.lr=1e400", "a finite number"),
        (f"model.rope_base={10**400}", "a finite number"),
        ("model.rope_base=-1e400", "a finite number"),
        ("model.rope_base=0", "above 1"),
        ("model.completep_width=-1", "at least 0"),
        ("checkpoint.best=-1", "at least 0"),
        ("log.evaluate=-1", "at least 0"),
        ("log.sample=-1", "at least 0"),
        ("data.weights=a,b", "give positive numbers"),
        ("data.weights=0", "give positive numbers"),
        ("data.weights=1,1e400", "give positive numbers"),
        ("data.weights=0.5", "1 entries for 0 data.paths"),
        ("data.paths=1,2", "names of directories"),
        ("seed=-1", "at least 0"),
        (f"seed={2**32}", "at most 4294967295"),
        ("seed=99999999999999999999", "at most 4294967295"),
    ],
)
def test_bad_values_are_refused_in_one_line(text, said):
    with pytest.raises(InputError) as error:
        config_lib.override(config_lib.default(), [text])
    assert said in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("kernel", "text", "said"),
    [
        ("cudnn", "model.time_input=prefix", "attention=cudnn conflicts with the position"),
        ("splash", "model.time_input=prefix", "attention=splash conflicts with the position"),
        ("cudnn", "model.head_dim=20", "a multiple of 8"),
    ],
)
def test_what_a_kernel_cannot_compute_is_refused_before_a_device_is_touched(kernel, text, said):
    assert config_lib.override(config_lib.default(), [text])
    with pytest.raises(InputError, match=said):
        config_lib.override(config_lib.default(), [f"execution.attention={kernel}", text])


@pytest.mark.parametrize(
    ("overrides", "leaf", "text"),
    [
        (["process.name=hybrid", "process.name.p_uniform=0.3", "model.time_input=add"], "process.name", "hybrid(p_uniform=0.3)"),
        (["process.name.p_uniform=0.3", "process.name=hybrid", "model.time_input=add"], "process.name", "hybrid(p_uniform=0.3)"),
        (
            ["process.name=hybrid(gamma=1.0, p_uniform=0.2)", "process.name.p_uniform=0.3", "model.time_input=add"],
            "process.name",
            "hybrid(gamma=1.0, p_uniform=0.3)",
        ),
        (["process.name=blocks(size=4)", "process.name.size=8"], "process.name", "blocks(size=8)"),
        (
            ["process.name=d3pm", "process.name.kernel=absorbing", "process.name.steps=8"],
            "process.name",
            "d3pm(kernel=absorbing, steps=8)",
        ),
        (["process.schedule=polynomial", "process.schedule.power=2.5"], "process.schedule", "polynomial(power=2.5)"),
        (["process.times.low=0.1"], "process.times", "stratified(low=0.1)"),
        (["process.weighting=capped", "process.weighting.cap=3.0"], "process.weighting", "capped(cap=3.0)"),
        (["model.family.loops=2"], "model.family", "qwen3(loops=2)"),
        (["data.paths=a b,c(tokens=5)", "data.paths.tokens=7"], "data.paths", "a b(tokens=7),c(tokens=7)"),
        (["model.time_input=adaln", "model.time_input.features=fourier"], "model.time_input", "adaln(features=fourier)"),
    ],
)
def test_a_value_inside_a_name_is_set_by_its_own_name(overrides, leaf, text):
    """The config is the one that the text would give, also in what is stored of it."""
    inside = config_lib.override(config_lib.default(), overrides)
    outside = [one for one in overrides if one.partition("=")[0] in config_lib.leaves(inside) and not one.startswith(f"{leaf}=")]
    whole = config_lib.override(config_lib.default(), [*outside, f"{leaf}={text}"])
    assert config_lib.leaves(inside)[leaf] == (tuple(text.split(",")) if leaf == "data.paths" else text)
    assert config_lib.to_json(inside) == config_lib.to_json(whole)
    assert config_lib.fingerprint(inside) == config_lib.fingerprint(whole)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("process.name.p_uniform=0.3", "process.name: process masked has no value 'p_uniform'"),
        ("process.name.ep=0.1", "did you mean 'eps'"),
        ("process.name.eps=x", "eps requires a number or None, not 'x'"),
        ("process.name.eps=0.1, p=2", "eps requires a number or None, not '0.1, p=2'"),
        ("process.name.=1", "not the name of a value of process.name=masked"),
        ("process.name.a b=1", "not the name of a value of process.name=masked"),
        ("process.name.a.b=1", "did you mean 'process.name'"),
        ("process.nam.p=1", "config has no field 'process.nam.p'"),
        ("process.weighting.cap=1", "requires a name that takes it; give --config.process.weighting=NAME"),
        ("model.family.lops=2", "did you mean 'loops'"),
        ("optimizer.lr.x=1", "config has no field 'optimizer.lr.x'"),
    ],
)
def test_a_value_inside_a_name_that_cannot_be_is_refused(text, said):
    with pytest.raises(InputError) as error:
        config_lib.override(config_lib.default(), [text])
    assert said in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("text", ["tokens=0", "tokens=x", "tokens=5)(", "token=5", "tokens=1e5", "=5"])
def test_a_token_budget_that_cannot_be_is_refused(text):
    with pytest.raises(InputError, match="data.paths") as error:
        config_lib.override(config_lib.default(), ["data.paths=a,b", f"data.paths.{text}"])
    assert "\n" not in str(error.value)


def test_one_weight_needs_no_comma():
    config = config_lib.override(config_lib.default(), ["data.paths=a", "data.weights=0.5", "seed=4294967295"])
    assert (config.data.weights, config.seed) == ((0.5,), 2**32 - 1)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_file_of_a_config_gives_finite_numbers(value):
    config = config_lib.default()
    for name, leaf in config_lib.leaves(config).items():
        if isinstance(leaf, float):
            flat = {**config_lib.leaves(config), name: value}
            with pytest.raises(ValueError, match="not finite"):
                config_lib.from_json(json.dumps(flat))


def test_a_tree_goes_through_json_unchanged():
    config = config_lib.override(config_lib.default(), ["data.paths=x", "optimizer.lr=0.1", "seed=7"])
    again = config_lib.from_json(config_lib.to_json(config))
    assert config_lib.leaves(again) == config_lib.leaves(config)
    assert config_lib.fingerprint(again) == config_lib.fingerprint(config)


def test_what_makes_another_run_and_what_does_not():
    one, other = config_lib.default(), config_lib.default()
    config_lib.override(other, ["mesh.fsdp=2", "log.every=7", "checkpoint.keep=9", "data.paths=elsewhere"])
    old = json.loads(config_lib.to_json(one))
    assert config_lib.differences(old, config_lib.leaves(other)) == []
    assert config_lib.fingerprint(one) == config_lib.fingerprint(other)
    config_lib.override(other, ["seed=3", "model.depth=7"])
    assert config_lib.differences(old, config_lib.leaves(other)) == ["model.depth: 6 -> 7", "seed: 0 -> 3"]
    assert config_lib.fingerprint(one) != config_lib.fingerprint(other)


def test_a_field_that_is_newer_than_a_run_had_its_default_there():
    old, today = json.loads(config_lib.to_json(config_lib.default())), config_lib.leaves(config_lib.default())
    for name in set(old) & set(today):
        before = {key: value for key, value in old.items() if key != name}
        assert config_lib.differences(before, today) == []
        assert config_lib.differences(before, before) == [], "the copies of a workdir and of its checkpoint, both older than the field"
    del old["model.depth"]
    assert config_lib.differences(old, {**today, "model.depth": 7}) == ["model.depth: 6 -> 7"]


def test_a_config_of_an_older_version_reads_with_defaults(tmp_path):
    flat = config_lib.leaves(config_lib.default())
    flat.pop("train.spike")
    assert config_lib.from_json(json.dumps(flat)).train.spike == 0.0
    with pytest.raises(InputError, match="unknown field 'train.spikes'"):
        config_lib.from_json(json.dumps({**flat, "train.spikes": 1.0}))


def test_a_config_that_ships_is_loaded_by_its_name():
    by_name = config_lib.load_config("masked:tiny", "train.ema=0.5", "data.paths=a,b")
    assert by_name == config_lib.load(str(config_lib.SHIPPED / "masked.py:tiny"), ["train.ema=0.5", "data.paths=a,b"])
    assert config_lib.load_config(config_lib.SHIPPED / "quickstart.py") == config_lib.load_config("quickstart")
    for words, said in [
        (("quickstat",), "did you mean 'quickstart'"),
        (("quickstart:tiny",), "comes at one size"),
        (("quickstart", "train.step=7"), "did you mean 'train.steps'"),
        (("nowhere/quickstart.py",), "does not exist"),
    ]:
        with pytest.raises(InputError, match=said) as refused:
            config_lib.load_config(*words)
        assert "\n" not in str(refused.value)


def test_a_file_without_get_config_is_refused(tmp_path):
    with pytest.raises(InputError, match="does not exist"):
        config_lib.load(str(tmp_path / "none.py"))
    (tmp_path / "empty.py").write_text("x = 1\n")
    with pytest.raises(InputError, match="no get_config"):
        config_lib.load(str(tmp_path / "empty.py"))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("def get_config(:\n", "mine.py, line 1: SyntaxError: "),
        ("def get_config():\n    return nothing\n", "mine.py, line 2: NameError: name 'nothing'"),
        ("from dlmjax import config\ndef get_config():\n    return config.default(3)\n", "mine.py, line 3: TypeError: "),
        ("from dlmjax import config\nc = config.default()\nc.lr = 1\n", "mine.py, line 3: AttributeError: .*locked"),
        ("from dlmjax.errors import InputError\ndef get_config():\n    raise InputError('of its own')\n", "^of its own$"),
        ("def get_config():\n    return {}\n", r"get_config\(\) returns dict, not a ConfigDict"),
        (
            "from ml_collections import ConfigDict\ndef get_config():\n    return ConfigDict({'seed': 1})\n",
            r"config lacks \d+ fields, the first is data.paths; start from dlmjax.config.default\(\)",
        ),
        (
            "from dlmjax import config\nfrom ml_collections import ConfigDict\ndef get_config():\n"
            "    return ConfigDict({**config.default(), 'process': ConfigDict({'name': 3})})\n",
            "config field process.name requires a text, not 3",
        ),
    ],
)
def test_a_file_that_fails_is_told_in_one_line(tmp_path, content, message):
    (tmp_path / "mine.py").write_text(content)
    with pytest.raises(InputError, match=message) as error:
        config_lib.load(str(tmp_path / "mine.py"))
    assert "\n" not in str(error.value) and len(str(error.value)) < 500


# ---- what is written as a name, or as a name with values ---------------------------------------------------------------------------

TABLES = {
    "process.name": registry.PROCESSES,
    "process.schedule": registry.SCHEDULES,
    "process.times": {**registry.TIMES, **registry.WITHIN_ROWS},
    "process.weighting": registry.WEIGHTINGS,
    "process.masks": registry.MASKS,
    "model.family": FAMILIES,
    "model.time_input": dict.fromkeys(TIME_INPUTS),
}
NAMES = [(leaf, name) for leaf, table in TABLES.items() for name in table]


@pytest.mark.parametrize("leaf, name", NAMES)
def test_a_mistyped_name_is_refused_with_the_right_one(leaf, name):
    """Before anything is made: launchers load a config and then ask for machines."""
    for wrong in (name[:-1] + "zq", f"{name[:-1]}zq(foo=1)"):
        with pytest.raises(InputError) as refused:
            config_lib.override(config_lib.default(), [f"{leaf}={wrong}"])
        said = str(refused.value)
        assert leaf in said and re.search(r"did you mean '\w+'|choose one of", said) and "\n" not in said
    for wrong in (
        f"{name}(foo=1)",
        f"{name}(name=1)",
        f"{name}(foo=",
        f"{name}(1)",
        f"{name}()()",
        "(" * 5000,
        f"{name}(x={'[' * 5000})",
        "",
    ):
        if (leaf, wrong) != ("process.weighting", ""):
            with pytest.raises(InputError, match=leaf.replace(".", r"\.")):
                config_lib.override(config_lib.default(), [f"{leaf}={wrong}"])


def _fields_of(leaf, name):
    """The values that a text may give to a name, with their types."""
    table = registry.PROCESSES if leaf == "process.name" else TABLES[leaf]
    make = registry.TIME_DISTRIBUTIONS[table[name][0]] if isinstance(table[name], tuple) else table[name]
    return {field: kind.annotation for field, kind in inspect.signature(make, eval_str=True).parameters.items()}


@pytest.mark.parametrize("leaf, name", [(leaf, name) for leaf, name in NAMES if leaf.startswith("process")])
def test_a_value_of_another_type_is_refused(leaf, name):
    """Each value of each choice, with words, lists, truth values, None and numbers past the floats: refused, or taken where it may be."""
    refusals = 0
    for field, kind in _fields_of(leaf, name).items():
        for wrong in ("'x'", "['x', 1]", "{}", "True", "None", "1e999", str(10**400), "-1" if kind is int else "-1.5", "0.5", "1j", "b'x'"):
            try:
                config_lib.override(config_lib.default(), [f"{leaf}={name}({field}={wrong})"])
            except InputError as error:
                assert "\n" not in str(error) and len(str(error)) < 600
                refusals += 1
            else:
                assert field not in ("vocab", "mask_id", "params", "counts_V")
                assert (
                    wrong in ("-1", "-1.5", "0.5")
                    or (field, wrong) == ("eps", "None")
                    or (kind is bool and wrong == "True")
                    or kind not in (int, float, bool)
                )
    assert refusals or not _fields_of(leaf, name)


def test_a_number_that_no_run_has_is_refused():
    """Every whole number of the tree has an end, far below what overflows: a batch of 10**25 windows is told by its field."""
    for name, value in config_lib.leaves(config_lib.default()).items():
        if isinstance(value, int) and not isinstance(value, bool):
            for text in ("1e25", str(10**400), str(2**32)):
                with pytest.raises(InputError, match=f"{name} is .*at most"):
                    config_lib.override(config_lib.default(), [f"{name}={text}"])


def test_every_text_for_every_leaf_is_taken_or_refused_in_one_line():
    hostile = (
        "",
        " ",
        "{[]: 1}",
        "[" * 5000,
        "-1",
        "nan",
        "inf",
        "1e400",
        "\u0661",
        "a\udcff",
        "x" * 5000,
        "a(tokens=1__0)",
        "{}",
        "()",
        "None",
        "\0",
    )
    for name in config_lib.leaves(config_lib.default()):
        for text in hostile:
            try:
                config_lib.override(config_lib.default(), [f"{name}={text}"])
            except InputError as error:
                assert "\n" not in str(error) and len(str(error)) < 600, (name, text)


@pytest.mark.parametrize(
    "text", ["", "[]", "3", '{"seed": "x"}', '{"seed": {"a": 1}}', '{"nosuch": 1}', '{"seed": NaN}', "[" * 10**5, '{"seed": 1, "seed": 2}']
)
def test_a_stored_config_that_was_changed_is_refused(text):
    with pytest.raises((ValueError, TypeError)):  # what opens a run tells the file
        config_lib.from_json(text)


@pytest.mark.parametrize(
    "body, said",
    [
        ("import sys\nsys.exit(3)", "line 2: SystemExit: 3"),
        ("def get_config():\n    raise SystemExit", "line 2: SystemExit "),
        ("class E(Exception):\n    def __str__(self):\n        return 1 / 0\nraise E", "line 4: E "),
        ("async def get_config():\n    pass", "returns coroutine, not a ConfigDict"),
        (
            "from ml_collections import ConfigDict\ndef get_config():\n    c = ConfigDict()\n    c.c = c\n    return c",
            "a section holds itself",
        ),
        ("def get_config():\n    raise BaseException('a\\nb')", "line 2: BaseException: a b"),
        ("import dlmjax.config as c\nc.load(__file__)", "line 2: RecursionError"),
        ("from missing_package import x", "line 1: ModuleNotFoundError"),
        ("def get_config():\n    return get_config()", "line 2: RecursionError"),
        ("def get_config(", "line 1: SyntaxError"),
        ("get_config = 3", "has no get_config"),
        ("def get_config():\n    return {}", "returns dict, not a ConfigDict"),
    ],
)
def test_a_config_file_does_not_decide_how_the_program_ends(tmp_path, capsys, body, said):
    (tmp_path / "c.py").write_text(body + "\n")
    assert main(["train", "--config", str(tmp_path / "c.py"), "--workdir", str(tmp_path / "run")]) == 2
    error = capsys.readouterr().err
    assert said in error and str(tmp_path / "c.py") in error and error.count("\n") == 1
    assert not (tmp_path / "run").exists()


def test_a_process_is_checked_before_anything_is_assembled():
    """By launchers too, which print a job for a machine that is not here: ranges, and whether the network is told the time. No process
    touches a device for that."""
    code = """
import sys, jax
from jax._src import xla_bridge
from dlmjax import config as c
from dlmjax.diffusion.registry import PROCESSES
from dlmjax.errors import InputError

def refusal(name, time_input):
    config = c.default()
    config.process.name, config.model.time_input = name, time_input
    try:
        c.check(config)
    except InputError as error:
        return str(error)

bad = ["hybrid(p_uniform=7)", "hybrid(gamma=3.0)", "duo(k=1)", "autoregressive(input_mask=1.0)", "blocks(size=0)", "spindle(strength=2.0)",
       "frequency_masked(strength=0.5)", "uniform(parameterisation=none)", "score(noise=none)", "flow_matching(noise=none)",
       "mixed(mixing=none)", "mixed(values=(7.0,))", "mixed(values=(1.0, 1.0, 1.0))", "d3pm(steps=0)", "d3pm(kernel=none)", "llada(eps=2)",
       "d3pm(kernel=neighbours)", "genmd4(eps=2.0)", "gaussian(dim=0)", "plaid(dim=0)", "diffusion_lm(dim=0)", "sed(dim=0)",
       "embedding_flow(dim=0)", "masked(eps=0.9)"]
for name in bad:
    said = refusal(name, "adaln")
    assert said and said.startswith("config field process.name: ") and "\\n" not in said, (name, said)
told = {name: refusal(name, "none") for name in [*PROCESSES, "d3pm(kernel=absorbing)"]}
assert all("requires model.time_input" in said for said in told.values() if said), told
print(",".join(sorted(name for name, said in told.items() if not said)))
assert not any(refusal(name, "adaln") for name in told)
assert not xla_bridge.backends_are_initialized()
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "autoregressive,blocks,d3pm(kernel=absorbing),llada,masked,masked_count,masked_lambda"


def test_every_process_that_the_documents_name_can_be_named_in_a_config():
    """Alone and as a phase: what is made before the vocabulary is known has all that a vocabulary provides."""
    names = re.findall(r"^\| `(.+?)` ", capabilities.table(), re.MULTILINE)
    assert len(names) > 25
    for name in names:
        config = config_lib.override(config_lib.default(), [f"process.name={name}", "model.time_input=adaln"])
        assert config.process.name == name
    before = "blocks(size=1, seeded=True)@0.1,blocks(size=2, seeded=True)@0.2"
    config_lib.override(config_lib.default(), ["process.name=blocks(seeded=True)", f"process.before={before}"])
