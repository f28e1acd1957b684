"""`dlmjax plan`: compiled for TPUs that are not here, and by the analytic model; what is printed is what was counted."""

import dataclasses
import importlib.util
import json
import time

import pytest

from dlmjax import config as config_lib
from dlmjax.cli.main import main
from dlmjax.errors import InputError
from dlmjax.plan import roofline
from dlmjax.plan.hardware import Vocabulary, make_plan, search_plans
from dlmjax.plan.topology import describe
from tests.cli.test_main import refused

needs_libtpu = pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason='libtpu is not installed: pip install -e ".[tpu]"')
CONFIG = """
from dlmjax import config as config_lib


def get_config():
    config = config_lib.default()
    config.data.update(length=256, batch=64)
    config.model.update(vocab=512, depth=2, width=256, heads=2, kv_heads=2, head_dim=128, ffn=512)
    config.execution.update(dtype="bfloat16", remat="full", attention="splash")
    config.train.ema = 0.0
    config.mesh.update(data=-1, fsdp=4)
    return config
"""
LAYER = 4 * 256 * 256 + 3 * 256 * 512  # weights of a layer that are split


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    path = tmp_path_factory.mktemp("plan") / "small.py"
    path.write_text(CONFIG, encoding="utf-8")
    return path


def run(file, tmp_path, capsys, *flags, code=0):
    """(what is printed, the first plan of the JSON record)."""
    record = tmp_path / "plan.json"
    assert main(["plan", "--config", str(file), "--json", str(record), *flags]) == code
    return capsys.readouterr().out, json.loads(record.read_text(encoding="utf-8"))["plans"][0]


def total(found, kind, wires="ICI"):
    return sum(each["count"] * each["bytes"] for each in found if each["kind"] == kind and each["wires"] == wires)


@pytest.mark.slow
@needs_libtpu
def test_two_slices_compiled(file, tmp_path, capsys):
    """fsdp within each of two v5e:2x2 slices, data between them: what is gathered stays on ICI, gradients cross the network."""
    printed, plan = run(file, tmp_path, capsys, "--topology", "v5e:2x2", "--slices", "2", "--quick")
    assert plan["source"] == "compiler" and plan["fits"] and plan["mesh"]["data"] == 2 and plan["chips"] == 8
    memory = plan["memory_bytes"]
    parts = ("parameters", "average", "optimizer", "activations", "temporaries")
    assert memory["peak"] == pytest.approx(sum(memory[part] for part in parts)) and memory["average"] == 0
    split = 2 * LAYER + 2 * 256 * 512
    assert split * 4 / 4 <= memory["parameters"] < 1.01 * split * 4 / 4  # norms lie whole on every chip
    assert memory["optimizer"] == pytest.approx(2 * memory["parameters"], rel=0.01)
    # Every layer's weights in bfloat16, once forward and once backward; the two tables beside them.
    gathered = total(plan["collectives"], "all-gather")
    assert 2 * 2 * LAYER * 2 <= gathered <= 2 * 2 * LAYER * 2 + 4 * 256 * 512 * 2
    between = [each for each in plan["collectives"] if each["wires"] == "DCN"]
    assert sum(each["bytes"] * each["count"] for each in between) >= split * 4 / 4
    assert plan["seconds"]["network"] > 0 and 0 < plan["mfu"]["serial"] <= plan["mfu"]["overlapped"] < 1
    for line in ("peak", "fits", "DCN", "remat none", "(--config.execution.remat)", "assumptions", "MFU"):
        assert line in printed


@needs_libtpu
def test_what_does_not_fit_is_a_result_with_advice(file, tmp_path, capsys):
    """The compiler's own line, and changes that the same command understands; an exit code only where it was asked for."""
    large = ["--config.data.batch=4096", "--config.execution.remat=none", "--config.execution.attention=dense", "--config.data.length=2048"]
    flags = ["--topology", "v5e:1x1", "--config.mesh.fsdp=1", *large, "--quick"]
    printed, plan = run(file, tmp_path, capsys, *flags, "--strict", code=1)
    assert not plan["fits"] and "available HBM" in plan["problem"]
    assert plan["problem"] in printed and "does not fit" in printed
    advised = [line.split()[0] for line in plan["advice"]]
    assert advised and {"--config.train.accumulation=2", "--config.execution.remat=full", "--config.execution.attention=splash"} <= set(
        advised
    )
    config_lib.load(str(file), [flag.removeprefix("--config.") for flag in advised])


@needs_libtpu
@pytest.mark.slow
def test_a_billion_parameters_on_sixteen_chips(file, tmp_path, capsys):
    shape = {"depth": 20, "width": 2048, "heads": 16, "kv_heads": 16, "ffn": 5632, "vocab": 32768}
    flags = [f"--config.model.{name}={size}" for name, size in shape.items()]
    flags += ["--config.data.length=2048", "--config.data.batch=128", "--config.mesh.fsdp=16", "--topology", "v5e:4x4", "--quick"]
    start = time.perf_counter()
    _, plan = run(file, tmp_path, capsys, *flags)
    assert time.perf_counter() - start < 120
    assert plan["parameters"] > 1e9 and plan["fits"] and plan["source"] == "compiler"
    assert 0.5 < plan["mfu"]["overlapped"] < 1


def loaded(file, **execution):
    config = config_lib.load(str(file), [f"execution.{name}={value}" for name, value in execution.items()])
    with config.unlocked():
        config.model.kv_heads = 1
    return config


@pytest.mark.parametrize("remat", ["none", "dots", "full"])
def test_layer_flops_are_those_that_xla_counts(file, remat):
    """The formula against the program for one device, within the arithmetic that it leaves out (norms, softmax, rotary turns)."""
    config = loaded(file, attention="dense", remat=remat, dtype="float32")
    plan = make_plan(config, describe("h100:4"), Vocabulary(512), analytic=True)
    ours = roofline.layer_flops(dataclasses.replace(plan.load, batch=1, accumulation=1))
    assert ours < plan.layer_flops < 1.06 * ours


def test_a_search_tries_layouts_best_first(file, tmp_path, capsys):
    """Sixteen GPUs, analytic: fitting layouts first, by time; every row divides the machine and the batch."""
    flags = ["--topology", "h100:16", "--search", "--config.execution.attention=cudnn"]
    printed, _ = run(file, tmp_path, capsys, *flags)
    assert "remat" in printed and "model" in printed and "more (all are in --json FILE)" in printed
    plans = search_plans(loaded(file, attention="cudnn"), describe("h100:16"), Vocabulary(512))
    assert {plan.load.execution.remat for plan in plans} == {"none", "dots", "full"}
    assert len({tuple(plan.mesh.values()) for plan in plans}) > 3 and len({plan.load.accumulation for plan in plans}) > 1
    times = [plan.times.overlapped + plan.times.serial for plan in plans if plan.fits]
    assert times == sorted(times)
    for plan in plans:
        assert plan.mesh["data"] * plan.mesh["fsdp"] * plan.mesh["tensor"] == 16 and 64 % plan.load.accumulation == 0


def test_bad_calls_end_in_one_line(file, capsys):
    plan = ["plan", "--config", file, "--topology"]
    assert "CHIP:SHAPE" in refused(capsys, *plan, "h100")
    assert "does not run on h100" in refused(capsys, *plan, "h100:8")
    assert "does not divide the 6 chips" in refused(capsys, *plan, "h100:6", "--config.execution.attention=dense")
    assert "--data DIR" in refused(capsys, *plan, "h100:8", "--config.model.vocab=0")
    assert "batch=10" in refused(capsys, *plan, "h100:8", "--config.data.batch=10", "--config.execution.attention=dense")


def test_a_process_made_from_counts_asks_for_the_corpus(file):
    config = loaded(file, attention="dense")
    with config.unlocked():
        config.process.name = "frequency_masked"
    with pytest.raises(InputError, match="counts"):
        make_plan(config, describe("h100:8"), Vocabulary(512))


def test_vocabulary_of_a_corpus(file, small_corpus, tmp_path, capsys):
    flags = ["--topology", "h100:8", "--config.model.vocab=0", "--config.execution.attention=dense", "--data", str(small_corpus)]
    _, plan = run(file, tmp_path, capsys, *flags)
    assert plan["source"] == "model" and plan["layer_flops_counted"] > 0
