"""metrics.jsonl and event files as a reader sees them, also after a kill; what a line says about its steps."""

import json
import math
import resource

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tensorboard.backend.event_processing import event_accumulator, plugin_event_accumulator
from tensorboard.util import tensor_util

from dlmjax.errors import InputError
from dlmjax.training import TIMING, MetricsWriter, Window, read
from tests.training import toy
from tests.training.test_step import KEY


def lines(directory):
    return (directory / "metrics.jsonl").read_text(encoding="utf-8").splitlines()


def without_timing(events):
    return [{name: value for name, value in event.items() if name not in TIMING} for event in events]


def write(directory, steps, resume_step=0):
    with MetricsWriter(directory, resume_step) as writer:
        for step in steps:
            writer.scalars(step, "train", {"loss": 1 / step, "loss_by_level/0.0-0.1": 2.0 * step})
            if step % 4 == 0:
                writer.text(step, "sample", {"ema": f"größer\nals {step}"})


# --- files -----------------------------------------------------------------------------------------------------------------------------


def test_every_event_is_one_line(tmp_path):
    write(tmp_path, [2, 4])
    events = read(tmp_path / "metrics.jsonl")
    assert without_timing(events) == [
        {"step": 2, "kind": "train", "loss": 0.5, "loss_by_level/0.0-0.1": 4.0},
        {"step": 4, "kind": "train", "loss": 0.25, "loss_by_level/0.0-0.1": 8.0},
        {"step": 4, "kind": "sample", "ema": "größer\nals 4"},
    ]
    assert read(tmp_path / "metrics.jsonl", "sample") == events[2:]
    assert all("time" in event for event in events)


def test_lines_are_on_file_at_once_and_nan_is_json(tmp_path):
    with MetricsWriter(tmp_path) as writer:
        writer.scalars(1, "train", {"loss": math.nan, "grad_norm": jnp.float32(2)})
        event = json.loads(lines(tmp_path)[0], parse_constant=pytest.fail)  # a kill now would lose nothing
    assert event.pop("time") > 0 and event == {"step": 1, "kind": "train", "loss": None, "grad_norm": 2.0}


@pytest.mark.parametrize("torn", ["", '{"step": 6, "ki', '{"step": 6, "kind": "train"}'])
def test_a_resumed_file_equals_the_uninterrupted_one(tmp_path, torn):
    """Killed after step 8 with its last line torn, resumed from the checkpoint of step 4."""
    write(tmp_path / "whole", range(1, 11))
    write(tmp_path / "killed", range(1, 9))
    with (tmp_path / "killed" / "metrics.jsonl").open("a") as file:
        file.write(torn)  # no newline: even a line that parses was not finished
    write(tmp_path / "killed", range(5, 11), resume_step=4)
    whole, resumed = (without_timing(read(tmp_path / name / "metrics.jsonl")) for name in ("whole", "killed"))
    assert resumed == whole
    assert not list((tmp_path / "killed").glob("*.tmp"))


def test_nothing_to_repair_leaves_the_file_alone(tmp_path):
    write(tmp_path, range(1, 4))
    before = (tmp_path / "metrics.jsonl").stat()
    MetricsWriter(tmp_path, 3).close()
    after = (tmp_path / "metrics.jsonl").stat()
    assert (before.st_ino, before.st_mtime_ns, before.st_size) == (after.st_ino, after.st_mtime_ns, after.st_size)


def test_a_file_that_is_not_ours_is_not_cut(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "kind": "train"}\nhello\n{"step": 3}\n')
    with pytest.raises(InputError, match=r"line 2 is not a metrics event"):
        MetricsWriter(tmp_path, 1)
    assert len(lines(tmp_path)) == 3


@pytest.mark.parametrize("link", [False, True])
def test_a_file_with_the_name_of_the_folder_of_curves_is_refused(tmp_path, link):
    (tmp_path / "tensorboard").symlink_to("nothing") if link else (tmp_path / "tensorboard").write_text("x")
    with pytest.raises(InputError, match="tensorboard is not a folder; .*move it away"):
        MetricsWriter(tmp_path)
    assert not (tmp_path / "metrics.jsonl").exists()


@pytest.mark.parametrize("named", ["loss_cross_entropy_not_a_bound", "loss_cross_entropy_uncorrected_not_a_bound"])
def test_tensorboard_opens_on_the_bound_and_on_what_is_trained_by_its_name(tmp_path, named):
    with MetricsWriter(tmp_path) as writer:
        writer.scalars(2, "train", {"loss": 1.5, "nelbo": 3.0, named: 1.5})
        writer.scalars(2, "held_out", {"nats_per_token": 2.5})
    events = event_accumulator.EventAccumulator(str(tmp_path / "tensorboard" / tmp_path.name))
    events.Reload()
    first = {tag: events.Scalars(tag)[0].value for tag in events.Tags()["scalars"] if tag.startswith("Loss/")}
    assert first == {"Loss/train": 3.0, f"Loss/{named}": 1.5, "Loss/held_out": 2.5}


def test_event_files_are_read_by_tensorboard(tmp_path):
    write(tmp_path, [4, 8])
    events = event_accumulator.EventAccumulator(str(tmp_path / "tensorboard" / tmp_path.name))
    events.Reload()
    values = {tag: [(event.step, event.value) for event in events.Scalars(tag)] for tag in events.Tags()["scalars"]}
    loss = [(4, 0.25), (8, 0.125)]
    assert values == {"train/loss": loss, "Loss/train": loss, "train/loss_by_level/0.0-0.1": [(4, 8.0), (8, 16.0)]}
    assert sorted(values)[0] == "Loss/train", "the group on which TensorBoard opens"
    text = tensor_util.make_ndarray(events.Tensors("sample/ema")[1].tensor_proto)
    assert text.tolist().decode() == "    größer\n    als 8"
    assert events.SummaryMetadata("sample/ema").plugin_data.plugin_name == "text"


def test_tensorboard_forgets_what_a_resumed_run_does_again(tmp_path):
    """As its server reads a run that was killed after step 8 and resumed twice from the checkpoint of step 4."""
    for steps, resume in ((range(1, 9), 0), (range(5, 8), 4), (range(5, 11), 4)):
        write(tmp_path, steps, resume)
    events = plugin_event_accumulator.EventAccumulator(
        str(tmp_path / "tensorboard" / tmp_path.name), tensor_size_guidance={"scalars": 100, "text": 100}
    )
    events.Reload()
    assert [event.step for event in events.Tensors("train/loss")] == list(range(1, 11))
    assert [event.step for event in events.Tensors("sample/ema")] == [4, 8]


@pytest.mark.parametrize("folder", ["tensorboard", "tensorboard/its first name"])
def test_a_run_that_resumes_keeps_its_folder_of_events(tmp_path, folder):
    """A workdir of an older version, whose events lie in no folder of their own, and one that was renamed."""
    write(tmp_path, [4])
    (tmp_path / "tensorboard" / tmp_path.name).rename(tmp_path / "events")
    if folder == "tensorboard":
        (tmp_path / "tensorboard").rmdir()
    (tmp_path / "events").rename(tmp_path / folder)
    write(tmp_path, [8], 4)
    assert {path.parent for path in tmp_path.rglob("events.out*")} == {tmp_path / folder}


def test_text_that_is_no_unicode_is_still_written(tmp_path):
    with MetricsWriter(tmp_path) as writer:
        writer.text(1, "sample", {"broken": "a\ud800b"})
    assert read(tmp_path / "metrics.jsonl")[0]["broken"] == "a?b"


def test_a_full_disk_is_a_clear_error(tmp_path):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    with MetricsWriter(tmp_path) as writer:
        writer.scalars(1, "train", {"loss": 1.0})
        writer.flush()
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))
        try:
            with pytest.raises(InputError, match=r"metrics.jsonl could not be written \(File too large\); free some space"):
                writer.text(2, "sample", {"long": "x" * 10_000})
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    MetricsWriter(tmp_path, 1).close()
    assert without_timing(read(tmp_path / "metrics.jsonl")) == [{"step": 1, "kind": "train", "loss": 1.0}]


# --- windows ---------------------------------------------------------------------------------------------------------------------------


def metrics_of(loss, tokens, skipped=0, stopped=0, bad=(False,), levels=None):
    """What a step hands over."""
    parts = {"tokens": jnp.int32(tokens), "nats": jnp.float32(2 * loss * tokens), "corrupted": jnp.int32(tokens // 2)}
    if levels is not None:
        counts = np.zeros(10, np.float32)
        counts[: len(levels)] = tokens / len(levels)
        nats = np.zeros(10, np.float32)
        nats[: len(levels)] = np.array(levels) * tokens / len(levels)
        parts |= {"nats_by_level": jnp.asarray(nats), "tokens_by_level": jnp.asarray(counts)}
    scalars = {"loss": loss, "grad_norm": 10 * loss, "update_norm": 0.1, "param_norm": 5.0 + loss, "learning_rate": 0.01 * loss}
    counts = {"skipped": skipped, "skipped_total": skipped, "stopped": stopped}
    return {
        **{name: jnp.float32(value) for name, value in scalars.items()},
        **{name: jnp.int32(value) for name, value in counts.items()},
        "bad_microbatches": jnp.array(bad),
        "parts": parts,
    }


def test_means_are_weighted_by_tokens():
    window = Window()
    window.add(1, metrics_of(1.0, 100, levels=[1.0, 3.0]))
    window.add(2, metrics_of(2.0, 300, levels=[2.0, 6.0]))
    summary = window.reduce()
    expected = {
        "loss": (100 + 600) / 400,
        "nats": 2 * (100 + 600) / 400,
        "corrupted": 0.5,
        "tokens": 400,
        "grad_norm": 15.0,
        "update_norm": 0.1,
        "param_norm": 7.0,  # the newest
        "learning_rate": 0.02,
        "skipped": 0,
        "skipped_total": 0,
        "loss_by_level/0.0-0.1": (50 * 1 + 150 * 2) / 200,
        "loss_by_level/0.1-0.2": (50 * 3 + 150 * 6) / 200,
    }
    assert set(summary.values) == set(expected)  # a noise level without tokens has no loss
    for name, value in expected.items():
        assert summary.values[name] == pytest.approx(value, rel=1e-6), name
    assert summary.bad == [] and not summary.stopped
    assert window.reduce().values == {}


def test_an_objective_may_name_its_own_parts():
    window = Window(report=lambda sums: {"nelbo": float(sums["nats"] / sums["tokens"])})
    window.add(1, metrics_of(1.0, 100))
    window.add(2, metrics_of(3.0, 100))
    values = window.reduce().values
    assert values["nelbo"] == 4.0 and values["loss"] == 2.0 and "nats" not in values


def test_norms_are_those_of_the_newest_step_that_measured_them():
    """A step without a line leaves them NaN, and of a skipped update there is no norm."""
    window, unmeasured = Window(), {"update_norm": jnp.float32(math.nan), "param_norm": jnp.float32(math.nan)}
    window.add(1, metrics_of(1.0, 100))
    window.add(2, metrics_of(2.0, 100) | {"update_norm": jnp.float32(0.3)})
    window.add(3, metrics_of(3.0, 100) | unmeasured)
    window.add(4, metrics_of(4.0, 100, skipped=1) | {"update_norm": jnp.float32(0.0)})
    window.restore(json.loads(json.dumps(window.pending())))
    values = window.reduce().values
    assert values["update_norm"] == pytest.approx(0.3) and values["param_norm"] == 9.0 and values["grad_norm"] == pytest.approx(20.0)
    window.add(5, metrics_of(1.0, 100) | unmeasured)
    assert not {"update_norm", "param_norm"} & set(window.reduce().values)


def test_skipped_steps_poison_nothing_and_are_named():
    window = Window()
    window.add(7, metrics_of(1.0, 100))
    window.add(8, metrics_of(math.nan, 100, skipped=1, bad=(False, True, False, True)))
    window.add(9, metrics_of(50.0, 100, skipped=1, bad=(False,) * 4))
    window.add(10, metrics_of(math.nan, 100, skipped=1, bad=(True,) * 4))
    summary = window.reduce()
    assert summary.values["loss"] == 1.0 and summary.values["grad_norm"] == 10.0 and summary.values["skipped"] == 3
    assert [(bad.step, bad.rows) for bad in summary.bad] == [(8, "rows 1, 5, 9, ... and 3, 7, 11, ..."), (9, ""), (10, "all rows")]


def test_only_the_step_that_stopped_the_run_is_to_blame():
    window = Window()
    window.add(3, metrics_of(1.0, 10))
    for step in (4, 5, 6):
        window.add(step, metrics_of(math.nan if step == 4 else 1.0, 10, skipped=1, stopped=1, bad=(step == 4,)))
    summary = window.reduce()
    assert summary.stopped and [(bad.step, bad.rows) for bad in summary.bad] == [(4, "all rows")]


def test_a_window_interrupted_by_a_checkpoint_gives_the_same_line():
    """`pending` goes through JSON, as in a checkpoint's meta."""
    rng = np.random.default_rng(0)
    steps = [(step, metrics_of(float(rng.uniform()), int(rng.integers(1, 99)), levels=[1.0, 2.5])) for step in range(7)]
    whole, before, after = Window(), Window(), Window()
    for step, metrics in steps:
        whole.add(step, metrics)
    for step, metrics in steps[:3]:
        before.add(step, metrics)
    after.restore(json.loads(json.dumps(before.pending())))
    for step, metrics in steps[3:]:
        before.add(step, metrics)
        after.add(step, metrics)
    assert whole.reduce() == before.reduce() == after.reduce()


def test_a_window_reads_the_metrics_of_the_real_step(step, new_state):
    """Names fit, sums fit: the line of two steps equals the loss over their tokens; nothing but the reduction syncs."""
    state, window, expected = new_state(), Window(), []
    batches = [jax.device_put(toy.batch(number)) for number in range(12)]
    state, metrics = step(state, batches[0], KEY)
    with jax.transfer_guard("disallow"):
        for number, batch in enumerate(batches):
            state, metrics = step(state, batch, KEY)
            window.add(number, metrics)
            expected.append(metrics)
    summary = window.reduce()
    assert summary.values["loss"] == pytest.approx(np.mean([float(m["loss"]) for m in expected]), rel=1e-6)  # equal tokens in each
    assert summary.values["nats"] == pytest.approx(summary.values["loss"], rel=1e-5)
    by_level = {name: value for name, value in summary.values.items() if "/" in name}
    assert len(by_level) == 10 and by_level["loss_by_level/0.0-0.1"] < by_level["loss_by_level/0.9-1.0"]
