"""The whole run: trained, killed at any moment, resumed, on one device or eight: the same run."""

import contextlib
import dataclasses
import html
import io
import json
import logging
import os
import pathlib
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dlmjax import config as config_lib
from dlmjax.cluster.host import sole_writer
from dlmjax.data import load_tokenizer
from dlmjax.data.prepare import prepare
from dlmjax.errors import Diverged, InputError
from dlmjax.evaluate import EvaluationSettings, bounds
from dlmjax.evaluation.drift import drift_by_weight
from dlmjax.experiment import Experiment, assemble, claim_workdir, open_corpora
from dlmjax.merge import merge
from dlmjax.origin import first_state
from dlmjax.report.facts import read_facts
from dlmjax.report.page import render
from dlmjax.run import open_run
from dlmjax.train import _diverged, _HeldOut, train
from dlmjax.training import TIMING, Checkpoints, read

STEPS = 12
CACHE = pathlib.Path(tempfile.gettempdir()) / f"dlmjax-test-cache-{os.getuid()}-{jax.__version__}"


def tiny_config(corpus, **changes):
    """Seconds on one core: 2 layers of 32, 32 tokens, 8 windows."""
    config = config_lib.default()
    config.data.update(paths=(str(corpus),), length=32, batch=8)
    config.model.update(depth=2, width=32, heads=4, kv_heads=2, head_dim=8, ffn=64)
    config.optimizer.update(warmup=2, lr=1e-2)
    config.train.update(steps=STEPS, ema=0.9)
    config.checkpoint.update(every=4, keep=3)
    config.log.update(every=2, evaluate=6, evaluate_windows=8, nodes=2, sample=STEPS)
    config_lib.override(config, [f"{name.replace('__', '.')}={value}" for name, value in changes.items()])
    return config


def config_file(path, config):
    """The config as a file that the command line can read."""
    flat = config_lib.leaves(config)
    path.write_text(
        f"from dlmjax import config as c\nimport json\n\ndef get_config():\n    return c.from_json({json.dumps(json.dumps(flat))})\n"
    )
    return path


def command(workdir, file, *flags):
    return [sys.executable, "-m", "dlmjax", "train", "--config", str(file), "--workdir", str(workdir), *flags]


def environment(devices=1):
    here = pathlib.Path(__file__).parents[1]
    cache = {"JAX_COMPILATION_CACHE_DIR": str(CACHE), "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}  # one compilation for all children
    return {**os.environ, **cache, "JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": str(devices), "PYTHONPATH": str(here)}


def lines(workdir, kind=None):
    """Events without what a clock says."""
    return [{k: v for k, v in event.items() if k not in TIMING} for event in read(workdir / "metrics.jsonl", kind)]


def losses(workdir):
    return {event["step"]: event["loss"] for event in read(workdir / "metrics.jsonl", "train")}


@contextlib.contextmanager
def said():
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        yield out


@pytest.fixture(scope="module")
def whole(small_corpus, tmp_path_factory):
    """An uninterrupted run on one device, in a process of its own, and its config file."""
    root = tmp_path_factory.mktemp("whole")
    file = config_file(root / "tiny.py", tiny_config(small_corpus))
    done = subprocess.run(command(root / "run", file, "--json"), env=environment(), capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return root / "run", file, done


def test_a_run_learns_and_says_so(whole):
    workdir, _, done = whole
    by_step = losses(workdir)
    assert list(by_step) == [2, 4, 6, 8, 10, 12]
    assert by_step[12] < by_step[2] - 0.3
    held_out = lines(workdir, "held_out")
    assert [event["step"] for event in held_out] == [6, 12]
    assert held_out[1]["nats_per_token"] < held_out[0]["nats_per_token"]
    assert held_out[1]["stderr_bits_per_byte"] > 0
    assert any(name.startswith("level_") for name in lines(workdir, "train")[0])
    last = json.loads(done.stdout.splitlines()[-1])
    assert last["step"] == STEPS and last["finished"] and last["workdir"] == str(workdir) and last["diverged"] == ""
    assert re.search(rf"train {STEPS}/{STEPS}, 00:00 left, bound [\d.]+ nats/token, tokens/s/device", done.stderr)
    assert "warning" not in done.stderr.lower(), done.stderr


def test_the_second_call_says_that_it_is_done(whole):
    workdir, file, _ = whole
    before = (workdir / "metrics.jsonl").read_bytes()
    with said() as out:
        result = train(config_lib.load(str(file), ["mesh.data=8"]), str(workdir))
    assert "finished" in out.getvalue() and result["step"] == STEPS
    assert (workdir / "metrics.jsonl").read_bytes() == before


@pytest.mark.parametrize("after", [pytest.param(1, marks=pytest.mark.nightly), 7])
def test_a_killed_run_goes_on_as_if_nothing_had_happened(whole, tmp_path, after):
    """SIGKILL once the metrics tell of step `after`, at whatever the process is doing; then the same command again."""
    reference, file, _ = whole
    workdir = tmp_path / "run"
    child = subprocess.Popen(command(workdir, file), env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 240
    while child.poll() is None and time.monotonic() < deadline:
        with contextlib.suppress(FileNotFoundError):
            if losses(workdir) and max(losses(workdir)) >= after:
                break
        time.sleep(0.002)
    child.kill()
    child.wait()
    again = subprocess.run(command(workdir, file), env=environment(), capture_output=True, text=True, timeout=300)
    assert again.returncode == 0, again.stderr
    assert lines(workdir) == lines(reference)  # every number of every line, bit for bit


def test_sigterm_saves_and_says_how_to_go_on(whole, tmp_path):
    config = config_lib.load(str(whole[1]))
    config_lib.override(config, ["train.steps=100000", "log.evaluate=0", "log.sample=0", "checkpoint.every=50000"])
    file, workdir = config_file(tmp_path / "long.py", config), tmp_path / "run"
    child = subprocess.Popen(command(workdir, file), env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    while child.poll() is None and not ((workdir / "metrics.jsonl").exists() and losses(workdir)):
        time.sleep(0.05)
    child.send_signal(signal.SIGTERM)
    out, err = child.communicate(timeout=120)
    assert child.returncode == 0, err
    assert "stopped by SIGTERM after step" in out and "resume with: dlmjax train" in out
    saved = [path.name for path in (workdir / "checkpoints").iterdir()]
    assert len(saved) == 1 and 0 < int(saved[0]) < 100000


def test_another_config_is_refused_by_its_fields(whole):
    workdir, file, _ = whole
    before = {path: path.stat().st_mtime_ns for path in workdir.rglob("*") if path.is_file()}
    refused = subprocess.run(
        command(workdir, file, "--config.model.ffn=96"), env=environment(), capture_output=True, text=True, timeout=300
    )
    assert refused.returncode == 2
    assert "model.ffn: 64 -> 96" in refused.stderr and len(refused.stderr.strip().splitlines()) == 1
    assert before == {path: path.stat().st_mtime_ns for path in workdir.rglob("*") if path.is_file()}


def test_a_damaged_checkpoint_gives_way_to_the_one_before(whole, tmp_path, caplog):
    """The newest checkpoint loses its tail; the run goes on from the one before and ends with the same numbers."""
    reference, file, _ = whole
    workdir = tmp_path / "run"
    subprocess.run(["cp", "-r", reference, workdir], check=True)
    newest = max((workdir / "checkpoints").iterdir())
    data = max((path for path in newest.rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)
    with data.open("r+b") as damaged:
        damaged.truncate(data.stat().st_size // 2)
    again = subprocess.run(command(workdir, file), env=environment(), capture_output=True, text=True, timeout=300)
    assert again.returncode == 0, again.stderr
    assert "resuming at step 8" in again.stdout and "truncated" in again.stderr
    assert lines(workdir) == lines(reference)


# Eight ways of data alone are what the tests of forks and of compilation run on.
MESHES = [pytest.param(mesh, marks=pytest.mark.nightly) for mesh in ("mesh.data=8", "mesh.data=4,mesh.fsdp=2")]
MESHES += ["mesh.fsdp=4,mesh.tensor=2", pytest.param("mesh.data=1,mesh.sequence=8", marks=pytest.mark.slow)]


@pytest.mark.parametrize("mesh", MESHES)
def test_eight_devices_train_the_same_run(whole, tmp_path, mesh):
    reference, file, _ = whole
    with said():
        train(config_lib.load(str(file), mesh.split(",")), str(tmp_path / "run"))
    one, eight = losses(reference), losses(tmp_path / "run")
    np.testing.assert_allclose([eight[s] for s in one], list(one.values()), rtol=2e-5)
    corrupted = [[event[name] for name in ("noise_rate", "tokens")] for event in lines(reference, "train")]
    assert corrupted == [[event[name] for name in ("noise_rate", "tokens")] for event in lines(tmp_path / "run", "train")]  # same masks


@pytest.mark.slow
def test_microbatches_do_not_change_the_run(whole, tmp_path):
    reference, file, _ = whole
    with said():
        train(config_lib.load(str(file), ["train.accumulation=4", "mesh.data=2", "mesh.sequence=4"]), str(tmp_path / "run"))
    one, four = losses(reference), losses(tmp_path / "run")
    np.testing.assert_allclose([four[s] for s in one], list(one.values()), rtol=2e-5)


def test_fork_keeps_the_counters_and_init_does_not(whole, tmp_path):
    reference, file, _ = whole
    longer = [f"train.steps={STEPS + 2}", "mesh.data=8"]
    with said() as out:
        train(config_lib.load(str(file), longer), str(tmp_path / "fork"), fork=str(reference))
    assert f"forking {reference} at step {STEPS}" in out.getvalue()
    assert list(losses(tmp_path / "fork")) == [STEPS + 2]
    with said():
        train(config_lib.load(str(file), ["mesh.data=8"]), str(tmp_path / "init"), init=str(reference))
    assert losses(tmp_path / "init")[2] < losses(reference)[2] - 0.2  # it starts from what the other run learnt
    assert list(losses(tmp_path / "init")) == list(losses(reference))


def other_text(root, tokenizer="bytes"):
    (root / "text.txt").write_text("another text altogether, and again. " * 200)
    prepare([str(root / "text.txt")], tokenizer, str(root / "data"))
    return str(root / "data")


def test_what_a_run_cannot_start_from_is_refused(whole, tmp_path):
    """In one line, before anything is trained; and the workdir of a start that was refused takes the corrected command."""
    reference, file, _ = whole
    config = config_lib.load(str(file))
    with pytest.raises(InputError, match=f"is at step {STEPS}, where this run would end; give train.steps above {STEPS}"), said():
        train(config, str(tmp_path / "run"), fork=str(reference))
    with pytest.raises(InputError, match="two places to start from"), said():
        train(config, str(tmp_path / "run"), fork=str(reference), init=str(reference))
    char27 = config_lib.load(str(file), [f"data.paths={other_text(tmp_path, 'char27')}", "model.vocab=264"])
    with pytest.raises(InputError, match="trained with another tokenizer"), said():
        train(char27, str(tmp_path / "run"), init=str(reference))
    with pytest.raises(InputError, match="fewer than one window"), said():
        train(config_lib.load(str(file), ["data.length=1000000"]), str(tmp_path / "run"))
    with said():
        claim_workdir(tmp_path / "run", config, load_tokenizer("bytes"))
    assert config_lib.from_json((tmp_path / "run" / "config.json").read_text()).data.length == 32


def test_a_refused_fresh_start_leaves_the_run_where_it_was(whole, tmp_path):
    """Whatever refuses it: origins, shapes, the corpus, the network, the mesh. A fresh start from its own weights reads them."""
    reference, file, _ = whole
    workdir, split = shutil.copytree(reference, tmp_path / "run"), other_text(tmp_path)
    shard = next(pathlib.Path(split).glob("train*"))
    shard.write_bytes(shard.read_bytes()[:-100])
    damaged = shutil.copytree(reference, tmp_path / "damaged")
    for marker in damaged.glob("checkpoints/*/dlmjax.json"):
        marker.write_text("")
    before = {path: path.stat().st_mtime_ns for path in workdir.rglob("*")}
    own = {"init": str(workdir)}
    refused = [
        ([], {"init": str(tmp_path / "nowhere")}),
        ([], {"init": str(damaged)}),
        ([], {"fork": str(reference)}),  # it has no step left
        ([], {"fork": str(reference), **own}),
        (["model.width=64"], own),
        (["model.depth=3"], own),
        (["process.name=blocks(size=3)"], {}),
        (["data.length=1000000"], {}),
        (["mesh.data=3"], {}),
        (["mesh.tensor=8"], {}),
        ([f"data.paths={split}"], {}),
        ([f"data.paths={tmp_path / 'nowhere'}"], {}),
    ]
    for leaves, origin in refused:
        with pytest.raises(InputError), said():
            train(config_lib.load(str(file), leaves), str(workdir), fresh=True, **origin)
        assert before == {path: path.stat().st_mtime_ns for path in workdir.rglob("*")}, (leaves, origin)
        with pytest.raises(InputError), said():  # nor is anything written where nothing was
            train(config_lib.load(str(file), leaves), str(tmp_path / "new"), **origin)
        assert not (tmp_path / "new").exists(), (leaves, origin)
    with said() as out:
        train(
            config_lib.load(str(file), ["mesh.data=8", "train.steps=2", "log.evaluate=0", "log.sample=0"]), str(workdir), fresh=True, **own
        )
    assert f"starting from the weights of {workdir} at step {STEPS}" in out.getvalue() and (workdir / "aside-001/checkpoints").is_dir()


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ("model.rope_base=20000.0", "model.rope_base"),
        ("model.rope_scaling=2.0", "model.rope_scaling"),
        ("model.family=qwen3(norm_eps=1e-5)", "model.family: norm_eps"),
        ("model.family=qwen3(loops=2)", "model.family: loops"),
        ("model.family=qwen3(shift=True)", "model.family: shift"),
        ("model.family=llama", "model.family: qk_norm"),
        ("model.time_input=prefix", "model.time_input: time_input"),
        ("model.time_input=adaln", "model.time_input: time_input"),
        ("model.depth=3", "model.depth"),
    ],
)
def test_weights_that_would_compute_something_else_are_refused(whole, tmp_path, change, named):
    """Naming the field and the override that takes it back. How weights are trained is free: dropout."""
    reference, file, _ = whole
    leaf = change.partition("=")[0]
    config = config_lib.load(str(file), [change, "model.dropout=0.1", f"train.steps={STEPS + 2}"])
    for flag in ("fork", "init"):
        with pytest.raises(InputError, match=rf"{named}.* there and .* here.*pass {leaf}=") as error, said():
            train(config, str(tmp_path / flag), **{flag: str(reference)})
        overrides = shlex.split(str(error.value).partition("pass ")[2].partition(", or leave")[0])
        restored = config_lib.load(str(file), [change, *overrides])
        assert restored.model == config_lib.load(str(file)).model and f"{flag} {reference}" in str(error.value)


@pytest.mark.parametrize(
    ("overrides", "fresh"),
    [
        (["model.time_input=adaln(gates=one)", "process.self_condition=0.5"], ("hint", "layers", "modulation", "time")),
        (["model.time_input=add", "process.name=genmd4"], ("process", "time")),
    ],
)
def test_weights_start_a_network_that_adds_to_theirs(whole, overrides, fresh):
    """What is matched and what is fresh is listed with its share; the new parts start at zero, so that all logits are the same to the bit.
    The way back drops them, where their input may be zeros. A fork, which keeps the optimizer's state, takes no such network."""
    reference, file, _ = whole
    config = config_lib.load(str(file), [*overrides, "train.steps=50"])
    experiment = assemble(config, load_tokenizer("bytes"), devices=jax.devices()[:1])
    with said() as out:
        state, meta, origin = first_state(experiment, None, "", str(reference))
    source = open_run(reference)
    matched = source.experiment.parameter_count / experiment.parameter_count
    line = out.getvalue()
    assert (
        f"starting from the weights of {reference} at step {STEPS}: {matched:.1%} of {experiment.parameter_count:,} parameters match"
        in line
    )
    listed = re.findall(r"([\w.]+) \(([\d.]+)%\)", line.partition("fresh: ")[2])
    assert {name.partition(".")[0] for name, _ in listed} == set(fresh) and "dropped" not in line and (meta, origin) == ({}, "init")
    assert sum(float(share) for _, share in listed) == pytest.approx(100 * (1 - matched), abs=0.005 * len(listed))
    batch_BL = jnp.arange(64).reshape(2, 32) % 100
    logits = []
    for one, params in ((source.experiment, source.params), (experiment, state["params"])):
        denoiser = one.unpartitioned.bind(
            jax.tree.map(jnp.asarray, jax.device_get(params)), jnp.ones_like(batch_BL), jnp.tile(jnp.arange(32), (2, 1))
        )
        logits.append(denoiser.logits(denoiser.hidden(batch_BL, jnp.full((2, 32), 0.3))))
    np.testing.assert_array_equal(*logits)
    with pytest.raises(InputError, match="compute another function here|has no |requires"), said():
        first_state(experiment, None, str(reference), "")


def test_a_merge_is_the_mean_of_the_best_checkpoints(whole, tmp_path):
    """A run like others: it is opened and starts others. The drift is that of each checkpoint from it."""
    reference, file, _ = whole
    with Checkpoints(reference / "checkpoints") as checkpoints:
        steps = sorted(checkpoints.ranked()[:2]) if len(checkpoints.ranked()) > 1 else [8, 12]
    found = merge(workdir=str(reference), output=str(tmp_path / "merged"), steps=steps)
    runs, merged = [open_run(reference, step=step) for step in steps], open_run(tmp_path / "merged")
    assert found["steps"] == steps and merged.step == steps[-1] and merged.weights == "raw"
    for mean, *each in zip(*(jax.tree.leaves(run.params) for run in (merged, *runs)), strict=True):
        np.testing.assert_allclose(mean, sum(np.asarray(leaf) for leaf in each) / 2, rtol=1e-6, atol=1e-8)
    by_weight = drift_by_weight(runs[0].params, merged.params)
    assert set(found["drift"]) == set(steps) and found["drift"][steps[0]] == pytest.approx(found["drift"][steps[1]], rel=1e-4)
    assert min(by_weight.values()) <= found["drift"][steps[0]] <= max(by_weight.values()) and "layers.query.kernel" in by_weight
    assert drift_by_weight(merged.params, merged.params) == dict.fromkeys(by_weight, 0.0)
    config = config_lib.load(str(file), ["train.steps=50"])
    with said():
        first_state(assemble(config, load_tokenizer("bytes"), devices=jax.devices()[:1]), None, "", str(tmp_path / "merged"))
    for values, says in (
        ({"steps": [8]}, "requires at least two checkpoints, and 1 of"),
        ({"steps": [8, 9]}, "has no whole checkpoint of step 9; it has those of"),
        ({"output": str(reference), "steps": steps}, "holds a run; give a new directory"),
    ):
        with pytest.raises(InputError, match=says):
            merge(**{"workdir": str(reference), "output": str(tmp_path / "other"), **values})
        assert not (tmp_path / "other").exists()


def test_a_run_goes_on_with_its_own_text_alone(whole, tmp_path, small_corpus):
    """Wherever that lies: the path may change, what is there may not."""
    reference, file, _ = whole
    workdir = shutil.copytree(reference, tmp_path / "run")
    before = (workdir / "config.json").read_bytes()
    with pytest.raises(InputError, match="was trained on other text than"), said():
        train(config_lib.load(str(file), [f"data.paths={other_text(tmp_path)}"]), str(workdir))
    assert (workdir / "config.json").read_bytes() == before
    moved = shutil.copytree(small_corpus, tmp_path / "moved")
    with said() as out:
        train(config_lib.load(str(file), [f"data.paths={moved}"]), str(workdir))
    assert "is finished" in out.getvalue()


def test_a_second_writer_changes_nothing(whole, tmp_path):
    reference, file, _ = whole
    workdir = shutil.copytree(reference, tmp_path / "run")
    before = (workdir / "config.json").read_bytes()
    with sole_writer(workdir), pytest.raises(InputError, match="another run is writing to"), said():
        train(config_lib.load(str(file), ["execution.remat=full"]), str(workdir))
    assert (workdir / "config.json").read_bytes() == before


@pytest.mark.slow
def test_a_run_that_diverged_can_go_on_wherever_it_was_saved(whole, tmp_path):
    """Checkpoints are due before the next line of metrics: none is of a state that stands still, and the way past is open."""
    _, file, _ = whole
    leaves = ["optimizer.lr=1e30", "log.every=7", "checkpoint.every=2", "log.evaluate=0", "log.sample=0"]
    workdir = tmp_path / "run"
    with pytest.raises(Diverged, match=r"stopped at step (\d+)") as stopped, said():
        train(config_lib.load(str(file), [*leaves, "train.on_nonfinite=stop"]), str(workdir))
    step = int(re.search(r"stopped at step (\d+)", str(stopped.value)).group(1))
    with Checkpoints(workdir / "checkpoints") as checkpoints:
        assert checkpoints.latest() == checkpoints.meta()["step"] == step < STEPS
    with said() as out:
        result = train(config_lib.load(str(file), [*leaves, "train.on_nonfinite=skip"]), str(workdir))
    assert f"resuming at step {step}" in out.getvalue()
    assert result["step"] == STEPS and "no step of the last line of metrics was taken" in result["diverged"]
    assert f"diverged: {result['diverged']}" in out.getvalue() and "trained" not in out.getvalue()


@pytest.mark.parametrize(("losses", "word"), [((4.0, 7.9), ""), ((4.0, 2.0, 8.1), "8.1 and was 4"), ((None, 4.0, 9.0), "9"), ((), "")])
def test_a_loss_far_above_the_first_is_no_training(tmp_path, losses, word):
    lines = [json.dumps({"step": step, "kind": "train", "loss": loss}) for step, loss in enumerate(losses)]
    (tmp_path / "metrics.jsonl").write_text("".join(line + "\n" for line in lines))
    assert word in _diverged(tmp_path) and bool(_diverged(tmp_path)) == bool(word)


def test_a_step_is_compiled_once(whole, tmp_path, monkeypatch):
    """And traced once, though it is traced before the workdir is touched."""
    _, file, _ = whole
    compiled, traced, loss_fn = [], [], Experiment.loss_fn
    monkeypatch.setattr(Experiment, "loss_fn", lambda self, *args, **named: traced.append(0) or loss_fn(self, *args, **named))
    with jax.log_compiles(), said():
        handler = logging.Handler()
        handler.emit = lambda record: compiled.append(record.getMessage())
        logger = logging.getLogger("jax._src.interpreters.pxla")
        logger.addHandler(handler)
        propagate, logger.propagate = logger.propagate, False
        try:
            train(config_lib.load(str(file), ["mesh.data=8", "log.evaluate=0", "log.sample=0"]), str(tmp_path / "run"))
        finally:
            logger.removeHandler(handler)
            logger.propagate = propagate
    steps = [text for text in compiled if re.search(r"Compiling (jit\()?(pinned|step)\b", text)]
    assert len(steps) == len(traced) == 1, (steps, traced)


def test_each_phase_of_a_curriculum_has_its_own_names(small_corpus, tmp_path):
    """The loss on soft tokens is not a bound, that under the uniform noise after them is; a line over steps of both is not."""
    plan = {"log__every": 2, "log__evaluate": 0, "log__sample": 0, "train__steps": 6, "checkpoint__every": 6, "model__depth": 1}
    plan["model__time_input"] = "adaln"
    with said():
        train(tiny_config(small_corpus, process__name="duo(until=3)", **plan), str(tmp_path / "run"))
    names = [{"nelbo", "partial_nelbo"} & event.keys() for event in lines(tmp_path / "run", "train")]
    assert names == [{"partial_nelbo"}, {"partial_nelbo"}, {"nelbo"}]
    assert [event["phase"] for event in lines(tmp_path / "run", "train")] == [1, 1, 2]


@pytest.mark.slow
def test_phases_are_one_run(small_corpus, tmp_path):
    """Its first steps are those of autoregression, then come blocks with times of their own, then masked diffusion, of the same weights;
    resumed or forked before, between and after the changes, it writes the same numbers, bit for bit. The held-out bound is that of masked
    diffusion throughout; opened with another process, a run has the bound of that."""
    plan = {"log__every": 1, "log__sample": 0, "train__steps": 6, "checkpoint__every": 1, "checkpoint__keep": 9, "model__depth": 1}
    plan |= {"log__evaluate": 2, "model__rope_base": 100.0}
    first = tiny_config(small_corpus, process__before="autoregressive@2,blocks(size=4); times=uniform@4", **plan)
    with said() as out:
        train(first, str(tmp_path / "run"))
    alone = tiny_config(small_corpus, process__name="autoregressive", **plan)
    with said():
        train(alone, str(tmp_path / "alone"))
    one, other = losses(tmp_path / "run"), losses(tmp_path / "alone")
    assert [one[step] for step in (1, 2)] == [other[step] for step in (1, 2)] and one[3] != other[3]
    events = lines(tmp_path / "run", "train")
    assert [event["phase"] for event in events] == [1, 1, 2, 2, 3, 3]
    names = ["nelbo/autoregressive"] * 2 + ["nelbo/blocks4"] * 2 + ["nelbo/masked"] * 2
    assert [event[name] for name, event in zip(names, events, strict=True)] == [event["nelbo"] for event in events]
    assert "step 2: phase 2 of 3, blocks" in out.getvalue() and "step 4: phase 3 of 3, masked" in out.getvalue()
    for step in (1, 2, 5):
        again = tmp_path / f"again{step}"
        shutil.copytree(tmp_path / "run", again)
        for folder in (again / "checkpoints").glob("*"):
            if folder.name.isdigit() and int(folder.name) > step:
                shutil.rmtree(folder)
        with said():
            train(first, str(tmp_path / f"fork{step}"), fork=str(again))
            train(first, str(again))
        assert lines(again) == lines(tmp_path / "run")
        assert lines(tmp_path / f"fork{step}", "train") == events[step:]
    state, _ = Checkpoints(tmp_path / "alone/checkpoints").restore(assemble(alone, load_tokenizer("bytes")).abstract_state())
    for process in ("autoregressive", "blocks(size=8)"):
        opened = open_run(tmp_path / "run", process=process)
        assert opened.process.name == process.partition("(")[0] and opened.sample(length=8, steps=2).samples.process == opened.process.name
        assert opened.evaluate(["the cat sat on the mat"] * 2, nodes=2).result.process == opened.process.name
    own = open_run(tmp_path / "alone", weights="raw").evaluate(["the cat sat"] * 2)
    swapped = dataclasses.replace(open_run(tmp_path / "run", process="autoregressive", weights="raw"), params=state["params"])
    assert swapped.evaluate(["the cat sat"] * 2).result.nats_per_token == own.result.nats_per_token


@pytest.mark.slow
def test_a_curriculum_of_block_sizes_is_one_run(small_corpus, tmp_path):
    """Blocks of the whole row are masked diffusion, step for step; then small blocks; resumed inside a phase, the same run."""
    plan = {"log__every": 1, "log__evaluate": 0, "log__sample": 0, "train__steps": 6, "checkpoint__every": 5}
    masked = tiny_config(small_corpus, **plan)
    blocks = tiny_config(small_corpus, process__name="blocks(size=4, curriculum=((4, 32),))", **plan)
    for name, config in (("masked", masked), ("blocks", blocks)):
        with said():
            train(config, str(tmp_path / name))
    one, two = losses(tmp_path / "masked"), losses(tmp_path / "blocks")
    np.testing.assert_allclose([two[step] for step in (1, 2, 3, 4)], [one[step] for step in (1, 2, 3, 4)], rtol=2e-4)
    assert two[5] != pytest.approx(one[5], rel=1e-3)
    shutil.copytree(tmp_path / "blocks", tmp_path / "again")
    shutil.rmtree(next((tmp_path / "again/checkpoints").glob("*6")))
    with said():
        train(blocks, str(tmp_path / "again"))
    assert losses(tmp_path / "again")[6] == two[6]


@pytest.mark.parametrize("steps, every, batch, nodes", [(400, 200, 32, 16), (2000, 100, 8, 4), (12, 6, 8, 2), (10_000, 7, 8, 16)])
def test_the_noise_of_the_loss_is_measured_for_a_fiftieth_of_a_run(small_corpus, steps, every, batch, nodes):
    """In as many evaluations as that pays for, the last one among them; in none where one is more."""
    changes = {"train__steps": steps, "log__evaluate": every, "log__nodes": nodes, "data__batch": batch, "log__sample": 0}
    config = tiny_config(small_corpus, **changes)
    corpora = open_corpora(config, "train")
    held_out = _HeldOut(assemble(config, corpora[0].tokenizer), corpora)
    due = [done for done in range(1, steps + 1) if held_out.due(done, done == steps)]
    measured = [done for done in due if held_out._observers(done)]
    once, most = batch * nodes, 0.02 * 3 * steps * batch
    assert (not measured and once > most) or (steps in measured and len(measured) * once <= most)
    assert len(measured) == len(due) or 2 * (len(measured) + 1) * once > most


@pytest.mark.slow
def test_a_run_and_its_report_show_the_noise_of_the_loss(small_corpus, tmp_path):
    """At the last evaluation, in metrics and on the page, by cause and with advice."""
    plan = {"train__steps": 150, "log__evaluate": 150, "log__evaluate_windows": 8, "log__sample": 0, "model__depth": 1, "log__nodes": 8}
    with said():
        train(tiny_config(small_corpus, process__times="uniform", **plan), str(tmp_path / "run"))
    (noise,) = lines(tmp_path / "run", "noise")
    causes = {name: noise[name] for name in ("masks", "times", "texts")}
    assert noise["step"] == 150 and causes["masks"] > 0 and all(noise[f"stderr_{name}"] > 0 for name in causes)
    assert sum(name.startswith("second_moment_by_t/") for name in noise) == 10
    (held_out,) = lines(tmp_path / "run", "held_out")
    assert noise["mean"] == pytest.approx(held_out["nats_per_token"], rel=0.1)
    (advice,) = lines(tmp_path / "run", "noise_advice")
    page = render(read_facts(tmp_path / "run"), {})
    assert "Noise of the loss" in page and html.escape(advice["text"]) in page and all(name in page for name in causes)


def test_the_held_out_bound_of_a_mixture_is_of_all_its_corpora(small_corpus, tmp_path, caplog):
    """Weighted as the rows are; only a split that was never prepared is left out, and a damaged one is told as what it is."""
    (tmp_path / "other.txt").write_text("\n\n".join(f"number {n * n}" for n in range(3000)))
    other, bare = str(tmp_path / "other"), other_text(tmp_path)
    prepare([str(tmp_path / "other.txt")], "bytes", other, documents="blank-line", valid_fraction=0.3)
    paths = [str(small_corpus), other, bare]
    quick = {"train__steps": 1, "optimizer__warmup": 0, "log__evaluate": 1, "log__sample": 0, "train__ema": 0.0}
    config = tiny_config(small_corpus, **quick)
    with config.unlocked():
        config.data.update(paths=tuple(paths), weights=(3.0, 1.0, 4.0))
    with said():
        train(config, str(tmp_path / "run"))
    assert f"no held-out bound of {bare} on the way: no `valid` split" in caplog.text
    (line,) = read(tmp_path / "run" / "metrics.jsonl", "held_out")
    settings, run = EvaluationSettings(nodes=config.log.nodes), open_run(str(tmp_path / "run"), weights="raw")
    (one,), (two,) = (bounds(run, [path], "valid", settings, windows) for path, windows in ((paths[0], 6), (paths[1], 2)))
    assert abs(one.nats_per_token - two.nats_per_token) > 0.01
    assert line["nats_per_token"] == pytest.approx(0.75 * one.nats_per_token + 0.25 * two.nats_per_token, rel=1e-5)
    assert line[f"nats_per_token_of/{other}"] == pytest.approx(two.nats_per_token, rel=1e-5)
    assert run.step == 1 and Checkpoints(tmp_path / "run" / "checkpoints").meta()["metric"] == line["nats_per_token"]
    shard = next(pathlib.Path(other).glob("*valid*"))
    shard.write_bytes(shard.read_bytes()[:-100])
    with pytest.raises(InputError, match=f"{shard.name} ends after"), said():
        train(config, str(tmp_path / "again"))


def test_a_run_without_a_corpus_is_refused(small_corpus, tmp_path):
    config = tiny_config(small_corpus)
    config.data.paths = ()
    with pytest.raises(InputError, match="names no corpus"):
        train(config, str(tmp_path / "run"))
    assert not (tmp_path / "run").exists()
    config.data.paths = (str(tmp_path / "nothing"),)
    with pytest.raises(InputError):
        train(config, str(tmp_path / "run"))
    assert not (tmp_path / "run").exists()
