"""The config tree: few leaves, typed overrides, contradictions refused by name."""

import json
import math

import pytest

from dlmjax import config as config_lib
from dlmjax.errors import InputError


def test_the_tree_stays_small():
    assert len(config_lib.leaves(config_lib.default())) <= 60


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
        ("train.steps=many", "wants int"),
        ("execution.scan=perhaps", "true or false"),
        ("optimizer.name=sgd", "choose one of adamw, muon"),
        ("model.heads=5", "not a multiple of model.kv_heads"),
        ("model.head_dim=33", "must be even"),
        ("train.accumulation=7", "microbatches"),
        ("train.ema=1.0", "[0, 1)"),
        ("mesh.fsdp=-1", "at most one is -1"),
        ("optimizer.warmup=100000", "longer than train.steps"),
        ("model.completep_width=64", "go together"),
        ("train.steps=0", "at least 1"),
        ("train.steps=True", "wants int"),
        ("train.spike=-1", "at least 0.0"),
        ("optimizer.clip=-1", "at least 0.0"),
        ("optimizer.weight_decay=-1", "at least 0.0"),
        ("optimizer.eps=-1", "must be positive"),
        ("optimizer.beta1=1.5", "in [0, 1)"),
        ("optimizer.beta2=1.0", "in [0, 1)"),
        ("optimizer.decay=3", "a share of the steps, in [0, 1]"),
        ("optimizer.final=7", "a share of the learning rate, in [0, 1]"),
        ("optimizer.lr=1e400", "a finite number"),
        (f"model.rope_base={10**400}", "a finite number"),
        ("model.rope_base=-1e400", "a finite number"),
        ("model.rope_base=0", "at least 1.0"),
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
        ("cudnn", "model.time_input=prefix", "attention=cudnn cannot take the position"),
        ("splash", "model.time_input=prefix", "attention=splash cannot take the position"),
        ("cudnn", "model.head_dim=20", "a multiple of 8"),
    ],
)
def test_what_a_kernel_cannot_compute_is_refused_before_a_device_is_touched(kernel, text, said):
    assert config_lib.override(config_lib.default(), [text])
    with pytest.raises(InputError, match=said):
        config_lib.override(config_lib.default(), [f"execution.attention={kernel}", text])


def test_one_weight_needs_no_comma():
    config = config_lib.override(config_lib.default(), ["data.paths=a", "data.weights=0.5", "seed=4294967295"])
    assert (config.data.weights, config.seed) == ((0.5,), 2**32 - 1)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_file_of_a_config_gives_finite_numbers(value):
    config = config_lib.default()
    for name, leaf in config_lib.leaves(config).items():
        if isinstance(leaf, float):
            flat = {**config_lib.leaves(config), name: value}
            with pytest.raises(InputError, match=f"{name} is {value}; it must be a finite number"):
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


def test_a_config_of_an_older_version_reads_with_defaults(tmp_path):
    flat = config_lib.leaves(config_lib.default())
    flat.pop("train.spike")
    assert config_lib.from_json(json.dumps(flat)).train.spike == 0.0
    with pytest.raises(InputError, match="unknown field 'train.spikes'"):
        config_lib.from_json(json.dumps({**flat, "train.spikes": 1.0}))


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
    ],
)
def test_a_file_that_fails_is_told_in_one_line(tmp_path, content, message):
    (tmp_path / "mine.py").write_text(content)
    with pytest.raises(InputError, match=message) as error:
        config_lib.load(str(tmp_path / "mine.py"))
    assert "\n" not in str(error.value) and len(str(error.value)) < 500
