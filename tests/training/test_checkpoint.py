"""Checkpoints: what comes back, what is kept, and everything that can go wrong with files."""

import json
import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dlmjax.errors import InputError
from dlmjax.files import CHECKSUM, sealed
from dlmjax.training import Checkpoints, abstract_state, init_state
from dlmjax.training.checkpoint import _checksums
from dlmjax.training.marker import MARKER
from tests.training import toy
from tests.training.checkpoint_child import state_of
from tests.training.test_step import KEY, mesh_of, shardings_on

ROOT = pathlib.Path(__file__).resolve().parents[2]


def small(step):
    """A state of the right form without a model: quick to write."""
    return jax.device_put(state_of(step, 1000))


def like(state):
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), state)


LIKE = like(state_of(0, 1000))


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    """Three checkpoints, at steps 1, 2 and 3. Tests that do damage work on a copy."""
    directory = tmp_path_factory.mktemp("checkpoints")
    with Checkpoints(directory, keep=3) as checkpoints:
        for step in (1, 2, 3):
            checkpoints.save(step, small(step), {"seed": 5, "config": {"optimizer.lr": 0.1, "data.paths": ["a"]}, "step": step})
    return directory


@pytest.fixture
def copied(original, tmp_path):
    return pathlib.Path(shutil.copytree(original, tmp_path / "checkpoints"))


# --- what comes back -------------------------------------------------------------------------------------------------------------------


def test_training_state_comes_back_bitwise_even_when_donated_at_once(tmp_path, tx, step, new_state):
    """The save is asynchronous and the step donates: what is written is the state of the moment of the call."""
    state, _ = step(new_state(), toy.batch(0), KEY)
    expected = jax.device_get(state)
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, state, {"best": None})
        for number in range(1, 6):
            state, _ = step(state, toy.batch(number), KEY)
        assert not toy.same(jax.device_get(state["params"]), expected["params"])
        checkpoints.wait()
        restored, meta = checkpoints.restore(abstract_state(toy.init_params, tx))
    assert meta == {"best": None, "step": 1}
    assert toy.same(restored, expected)
    # Containers are the optimizer's own again (named tuples, not lists), so the restored state steps on, to the same bits.
    first, second = new_state(), restored
    for number in range(3):
        first, metrics = step(first, toy.batch(number), KEY)
        if number:
            second, metrics_again = step(second, toy.batch(number), KEY)
    assert toy.same(jax.device_get(first), jax.device_get(second)) and toy.same(metrics, metrics_again)


def test_a_checkpoint_of_one_mesh_is_read_on_any_other(tmp_path, tx):
    shardings = shardings_on(mesh_of(2, 4))
    state = init_state(toy.init_params, tx, jax.random.key(0), shardings)
    expected = jax.device_get(state)
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, state, {})
        checkpoints.wait()
        for shape in ((8, 1), (4, 2), (1, 2)):
            abstract = abstract_state(toy.init_params, tx, shardings_on(mesh_of(*shape)))
            restored, _ = checkpoints.restore(abstract)
            assert toy.same(jax.device_get(restored), expected)
            jax.tree.map(lambda leaf, asked: leaf.sharding.is_equivalent_to(asked.sharding, leaf.ndim) or pytest.fail(), restored, abstract)
        restored, _ = checkpoints.restore(abstract_state(toy.init_params, tx))  # one device
        assert toy.same(jax.device_get(restored), expected)


def test_parts_of_a_state(tmp_path, tx, new_state):
    state = new_state()
    abstract = abstract_state(toy.init_params, tx)
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, state, {})
        checkpoints.wait()
        for part in (("params",), ("ema",), ("params", "step")):
            restored, _ = checkpoints.restore({name: abstract[name] for name in part})
            assert toy.same(restored, {name: jax.device_get(state[name]) for name in part})


def test_dtypes_keep_their_bits(tmp_path):
    nan = np.array([0x7FC00001], np.uint32).view(np.float32)
    state = {
        "params": {"half": jnp.linspace(-3, 3, 7, dtype=jnp.bfloat16), "nan": jnp.asarray(nan), "flag": jnp.array([True, False])},
        "step": jnp.int32(-1),
    }
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, state, {})
        checkpoints.wait()
        restored, _ = checkpoints.restore(like(state))
    view = lambda tree: jax.tree.map(lambda x: np.asarray(x).tobytes(), tree)  # noqa: E731
    assert view(restored) == view(state)


def test_checksums_are_of_bits_and_places():
    """Against numpy; any flipped bit and any two exchanged rows change them, dtype by dtype."""
    rng = np.random.default_rng(0)
    numbers = rng.normal(size=(6, 5)).astype(np.float32)
    flipped = numbers.copy()
    flipped.view(np.uint32)[3, 2] ^= 1 << 31
    leaves = {
        "a": numbers,
        "flipped": flipped,
        "swapped": numbers[[0, 2, 1, 3, 4, 5]],
        "half": jnp.asarray(numbers, jnp.bfloat16),
        "n": np.int32(-3),
    }
    sums = {name: int(value) for name, value in _checksums(jax.device_put(leaves)).items()}
    bits = numbers.view(np.uint32).ravel().astype(np.uint64)
    assert sums["a"] == int((bits * (2 * np.arange(30, dtype=np.uint64) + 1)).sum() % 2**32)
    assert sums["n"] == 2**32 - 3 and len(set(sums.values())) == len(sums)


def test_meta_and_steps(original):
    checkpoints = Checkpoints(original)
    assert checkpoints.steps() == [1, 2, 3] and checkpoints.latest() == 3
    assert checkpoints.meta() == {"seed": 5, "config": {"optimizer.lr": 0.1, "data.paths": ["a"]}, "step": 3}
    assert checkpoints.meta(1)["step"] == 1
    restored, meta = checkpoints.restore(LIKE, step=2)
    assert meta["step"] == 2 and toy.same(restored, state_of(2, 1000))


def test_an_empty_directory_says_so(tmp_path):
    checkpoints = Checkpoints(tmp_path / "none")
    assert checkpoints.steps() == [] and checkpoints.latest() is None and checkpoints.best() is None
    for call in (lambda: checkpoints.restore(LIKE), checkpoints.meta):
        with pytest.raises(InputError, match="has no whole checkpoint$"):
            call()
    with pytest.raises(InputError, match="is missing; whole ones: none"):
        checkpoints.restore(LIKE, step=4)


def test_another_models_checkpoint_is_refused_by_name(original):
    checkpoints = Checkpoints(original)
    with pytest.raises(InputError, match=r"params/kernel as float32\[10, 100\], but this config requires float32\[10, 50\]"):
        checkpoints.restore({"params": {"kernel": jax.ShapeDtypeStruct((10, 50), jnp.float32)}})
    with pytest.raises(InputError, match="has no params/bias"):
        checkpoints.restore({"params": {"bias": jax.ShapeDtypeStruct((10,), jnp.float32)}})


# --- what is kept ----------------------------------------------------------------------------------------------------------------------


def test_keeps_the_newest_and_the_best(tmp_path):
    metrics = {1: 3.0, 2: 1.0, 3: 2.0, 4: None, 5: 2.5, 6: 1.0}
    seen = {}
    with Checkpoints(tmp_path, keep=2, best=1) as checkpoints:
        for step, metric in metrics.items():
            checkpoints.save(step, small(step), {"metric": metric})
            checkpoints.wait()
            seen[step] = checkpoints.steps()
        assert checkpoints.best() == 6  # the newest of equals
    assert seen == {1: [1], 2: [1, 2], 3: [2, 3], 4: [2, 3, 4], 5: [2, 4, 5], 6: [5, 6]}


def test_nothing_is_removed_before_its_successor_is_whole(tmp_path):
    with Checkpoints(tmp_path, keep=1, best=0) as checkpoints:
        for step in (1, 2, 3):
            checkpoints.save(step, jax.device_put(state_of(step)), {})
            assert len(checkpoints.steps()) >= (step > 1)  # the one before is there while this one is being written
            assert step == 1 or (tmp_path / f"{step - 1:08d}" / MARKER).exists()
    assert checkpoints.steps() == [3]


def test_a_step_can_be_saved_again(copied):
    """As after a resume from before a damaged checkpoint."""
    (copied / "00000003" / MARKER).unlink()
    with Checkpoints(copied, keep=3) as checkpoints:
        checkpoints.save(3, small(30), {"again": True})
        checkpoints.wait()
        restored, meta = checkpoints.restore(LIKE)
    assert meta == {"again": True, "step": 3} and toy.same(restored, state_of(30, 1000))


def test_saving_the_same_numbers_again_rewrites_no_data(copied):
    """A whole checkpoint is not put at risk to change its meta."""
    before = {file: file.stat().st_mtime_ns for file in files_of(copied / "00000003") if file.name != MARKER}
    with Checkpoints(copied, keep=3) as checkpoints:
        checkpoints.save(3, small(3), {"metric": 1.5})
        assert checkpoints.meta() == {"metric": 1.5, "step": 3} and checkpoints.best() == 3
        assert {file: file.stat().st_mtime_ns for file in before} == before
        restored, _ = checkpoints.restore(LIKE)
    assert toy.same(restored, state_of(3, 1000))


def test_a_writer_removes_what_a_killed_one_left_and_a_reader_does_not(copied):
    leftover = copied / "00000004.orbax-checkpoint-tmp"
    leftover.mkdir()
    (copied / "00000002" / MARKER).unlink()
    Checkpoints(copied).restore(LIKE)
    assert leftover.exists() and (copied / "00000002").exists()
    with Checkpoints(copied, keep=3) as checkpoints:
        checkpoints.save(5, small(5), {})
    assert sorted(path.name for path in copied.iterdir()) == ["00000001", "00000003", "00000005"]


def test_a_damaged_checkpoint_is_left_for_a_look_until_the_run_has_passed_it(copied):
    (copied / "00000003" / MARKER).write_text("{")
    with Checkpoints(copied, keep=2) as checkpoints:
        checkpoints.save(2, small(20), {})
        checkpoints.wait()
        assert (copied / "00000003").exists()
        checkpoints.save(4, small(4), {})
    assert sorted(path.name for path in copied.iterdir()) == ["00000002", "00000004"]


# --- damage ----------------------------------------------------------------------------------------------------------------------------


def files_of(directory):
    return sorted(file for file in directory.rglob("*") if file.is_file() and file.stat().st_size)


def newest_readable(directory, caplog):
    """Step and bits of what a restore gives, and what it warned of (once, though `latest` looks first, as a trainer does)."""
    caplog.clear()
    checkpoints = Checkpoints(directory)
    assert checkpoints.latest() is not None
    restored, meta = checkpoints.restore(LIKE)
    assert toy.same(restored, state_of(meta["step"], 1000))
    return meta["step"], [record.getMessage() for record in caplog.records if record.name == "dlmjax"]


def test_any_truncated_or_missing_file_means_the_checkpoint_before(original, tmp_path, caplog):
    """Every file of the newest checkpoint in turn: cut in half, emptied, removed. Never a wrong bit, always a warning."""
    names = [file.relative_to(original / "00000003") for file in files_of(original / "00000003")]
    assert len(names) >= 6
    for name in names:
        for damage in ("half", "empty", "gone"):
            copy = pathlib.Path(shutil.copytree(original, tmp_path / "copy"))
            file = copy / "00000003" / name
            content = file.read_bytes()
            file.write_bytes(content[: len(content) // 2] if damage == "half" else b"")
            if damage == "gone":
                file.unlink()
            assert Checkpoints(copy).steps() == [1, 2]
            step, warnings = newest_readable(copy, caplog)
            assert step == 2 and len(warnings) == 1 and "00000003" in warnings[0] and "skipped, the one before it is used" in warnings[0]
            shutil.rmtree(copy)


def flip_a_bit(checkpoint):
    data = max(files_of(checkpoint), key=lambda file: file.stat().st_size)
    content = bytearray(data.read_bytes())
    content[len(content) // 2] ^= 1
    data.write_bytes(bytes(content))


def test_a_flipped_bit_in_the_data_is_seen(copied, caplog):
    """Orbax reads it without complaint; the checksum does not."""
    flip_a_bit(copied / "00000003")
    step, warnings = newest_readable(copied, caplog)
    assert step == 2 and "params/kernel does not have the checksum" in warnings[0]
    with pytest.raises(InputError, match=r"is damaged: params/kernel.*whole ones"):
        Checkpoints(copied).restore(LIKE, step=3)


RESTORE = """
import gc, sys, jax
from dlmjax.training import Checkpoints
like = {"params": {f"w{i}": jax.ShapeDtypeStruct((64, 64), "float32") for i in range(12)}}
try:
    Checkpoints(sys.argv[1]).restore(like)
except ValueError as error:
    print(error)
gc.collect()
"""


def test_damage_inside_all_checkpoints_is_told_in_lines_of_ours(tmp_path):
    """Orbax reads all leaves at once and awaits the first that fails; what it leaves of the others is not printed. In a process of its
    own: pytest has hooks for that."""
    with Checkpoints(tmp_path, keep=3) as checkpoints:
        for step in (1, 2, 3):
            checkpoints.save(step, {"params": {f"w{i}": jnp.full((64, 64), i, jnp.float32) for i in range(12)}}, {})
    for file in tmp_path.glob("*/state/d/*"):
        content = file.read_bytes()
        file.write_bytes(content[:300] + b"\xff\x00\xff\x00" + content[304:])
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", RESTORE, str(tmp_path)], env=environment, capture_output=True, text=True, timeout=120)
    lines = done.stderr.splitlines()
    assert done.returncode == 0 and len(lines) == 3 and all(re.match(".*checkpoint .*; skipped, the one before", line) for line in lines), (
        lines
    )
    assert re.search(r"00000001 cannot be read \(DATA_LOSS: [^\"<]*\); 00000002", done.stdout), done.stdout


def test_a_run_that_is_done_again_replaces_what_was_damaged(copied):
    """Its numbers are the very same; until they are written, nothing that is whole is removed for the damaged one."""
    flip_a_bit(copied / "00000002")
    flip_a_bit(copied / "00000003")
    with Checkpoints(copied, keep=1, best=0) as checkpoints:
        _, meta = checkpoints.restore(LIKE)
        assert meta["step"] == 1 and checkpoints.latest() == 1 and checkpoints.steps() == [1]
        checkpoints.save(2, small(2), {"step": 2})
        checkpoints.wait()
        assert checkpoints.steps() == [2] and (copied / "00000003").exists()
        checkpoints.save(3, small(3), {"step": 3})
    restored, meta = Checkpoints(copied).restore(LIKE)
    assert meta["step"] == 3 and toy.same(restored, state_of(3, 1000))


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # Orbax drops coroutines when a read fails
def test_files_of_zeros_are_seen(copied, caplog):
    """What some file systems make of a file after a power cut: the right length, no content."""
    for file in files_of(copied / "00000003" / "state"):
        file.write_bytes(bytes(file.stat().st_size))
    step, warnings = newest_readable(copied, caplog)
    assert step == 2 and "cannot be read" in warnings[0]


def test_all_damaged_is_an_error_and_never_silent(copied, caplog):
    for path in copied.iterdir():
        (path / MARKER).write_text("{")
    assert Checkpoints(copied).latest() is None
    assert len(caplog.records) == 3 and all(f"unreadable {MARKER}" in record.getMessage() for record in caplog.records)
    for call in (lambda: Checkpoints(copied).restore(LIKE), Checkpoints(copied).resumable):
        with pytest.raises(InputError, match=r"no whole checkpoint; 00000001 has an unreadable.*; 00000003 .*--fresh") as error:
            call()
        assert "\n" not in str(error.value)


MARKERS = {
    "another step": lambda marker: {**marker, "step": 9},
    "another step in the meta": lambda marker: {**marker, "meta": {"step": 9}},
    "numbers of another save": lambda marker: {**marker, "leaves": {name: [*leaf[:2], 0] for name, leaf in marker["leaves"].items()}},
    "more fields": lambda marker: {**marker, "chfcksum": 1},
    "a list": lambda marker: [marker],
    "no files": lambda marker: {**marker, "files": None},
    "sizes of words": lambda marker: {**marker, "files": dict.fromkeys(marker["files"], "many")},
    "names outside": lambda marker: {**marker, "files": {"../00000002/dlmjax.json": 1}},
    "no shapes": lambda marker: {**marker, "leaves": dict.fromkeys(marker["leaves"], 3)},
    **{
        f"a meta of another shape: {name} {value!r}": lambda marker, name=name, value=value: {**marker, "meta": {name: value}}
        for name, values in {
            "step": ["3", 3.0, None, True],
            "metric": ["best", True],
            "config": [[], None, {"train.ema": {}}, {"data.paths": [3]}],
            "given": [[], None, {}, {"texts": "a", "tokenizer": "b", "files": {}}, {"texts": [], "tokenizer": "b", "files": {"a": 1}}],
            "metrics": [[], {}, {"lines": "2", "crc": 0}],
            "pending": [{}, [3], [{"step": 3}]],
            "imported": ["yes"],
        }.items()
        for value in values
    },
}


@pytest.mark.parametrize("sealing", ["its own checksum", "an older version's, without one", "the old checksum"])
@pytest.mark.parametrize("change", MARKERS)
def test_a_marker_is_believed_only_when_it_is_what_a_save_wrote(copied, change, sealing):
    file = copied / "00000003" / MARKER
    marker = json.loads(file.read_text())
    changed = MARKERS[change]({name: value for name, value in marker.items() if name != CHECKSUM})
    if isinstance(changed, dict):
        if sealing == "the old checksum":
            changed[CHECKSUM] = marker[CHECKSUM]
        elif sealing == "its own checksum":
            changed = sealed(changed)
        else:
            changed.pop("step", None) if change != "another step" else None
    file.write_text(json.dumps(changed))
    with Checkpoints(copied, keep=1, best=1) as checkpoints:
        restored, meta = checkpoints.restore(LIKE)
        assert meta["step"] == 2 and toy.same(restored, state_of(2, 1000)) and checkpoints.steps()[:2] == [1, 2]
        checkpoints.save(4, small(4), {"metric": float("nan")})
    assert checkpoints.latest() == 4


def test_a_marker_of_an_older_version_is_read(copied):
    for step in (1, 2, 3):
        file = copied / f"{step:08d}" / MARKER
        marker = json.loads(file.read_text())
        file.write_text(json.dumps({name: marker[name] for name in ("meta", "leaves", "files")}))
    assert Checkpoints(copied).restore(LIKE)[1]["step"] == 3


def test_a_checkpoint_under_another_name_is_none(copied):
    (copied / "00000003").rename(copied / "00000007")
    shutil.copytree(copied / "00000001", copied / "00000005")
    assert Checkpoints(copied).steps() == [1, 2] and Checkpoints(copied).resumable()
    assert Checkpoints(copied).damaged() == {5: "holds step 1 under another name", 7: "holds step 3 under another name"}


PLACES = {
    "a file": lambda path: path.write_text("x"),
    "a folder": lambda path: path.mkdir(),
    "a link that leads nowhere": lambda path: path.symlink_to("nowhere"),
}


@pytest.mark.parametrize("place", PLACES)
def test_what_is_named_as_a_checkpoint_and_is_none_is_damaged(tmp_path, place):
    PLACES[place](tmp_path / "00000005")
    assert list(Checkpoints(tmp_path).damaged()) == [5]
    with pytest.raises(InputError, match=r"00000005 (is not a folder|has no dlmjax\.json).*--fresh"):
        Checkpoints(tmp_path).resumable()
    for name in ("5", "00000005x", "\u00b2\u00b2\u00b2\u00b2\u00b2\u00b2\u00b2\u00b2", "000000005"):
        (tmp_path / name).mkdir()
    assert list(Checkpoints(tmp_path).damaged()) == [5]


def test_a_folder_that_another_process_makes_between_two_looks_is_no_damage(tmp_path, monkeypatch):
    listed = os.listdir

    def made_after_the_look(path):
        if path == tmp_path / "checkpoints" and not path.exists():
            path.mkdir()
            raise FileNotFoundError(path)
        return listed(path)

    checkpoints = Checkpoints(tmp_path / "checkpoints")
    monkeypatch.setattr(os, "listdir", made_after_the_look)
    assert checkpoints.named() == []


@pytest.mark.parametrize("place", ["a file", "a link that leads nowhere"])
def test_a_folder_of_checkpoints_that_is_none_is_told(tmp_path, place):
    PLACES[place](tmp_path / "checkpoints")
    for call in (Checkpoints.resumable, Checkpoints.steps, lambda checkpoints: checkpoints.restore(LIKE)):
        with pytest.raises(InputError, match=r"/checkpoints (is not a folder|is a link that leads nowhere)"):
            call(Checkpoints(tmp_path / "checkpoints"))


def test_no_link_is_followed_by_a_deletion(copied, tmp_path):
    """Checkpoints that lie elsewhere are read, and lose no more than the link; so do leftovers, and links within a checkpoint."""
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    for step in (1, 2, 3):
        (copied / f"{step:08d}").rename(elsewhere / f"{step:08d}")
        (copied / f"{step:08d}").symlink_to(elsewhere / f"{step:08d}")
    for left in ("00000004.orbax-checkpoint-tmp", "00000004.unfinished", "00000004.removed", "00000004.unfinished.orbax-checkpoint-tmp"):
        (copied / left).symlink_to(elsewhere)
    before = {file: file.read_bytes() for file in elsewhere.rglob("*") if file.is_file()}
    with Checkpoints(copied, keep=1, best=0) as checkpoints:
        assert checkpoints.restore(LIKE)[1]["step"] == 3
        checkpoints.save(3, small(3), {"again": True})  # the same numbers: not even the marker elsewhere is written
        checkpoints.wait()
        shutil.rmtree(copied / "00000003" / "state")
        (copied / "00000003" / "state").symlink_to(elsewhere / "00000003" / "state")
        checkpoints.save(4, small(4), {})
    assert [path.name for path in copied.iterdir()] == ["00000004"]
    assert {file: file.read_bytes() for file in elsewhere.rglob("*") if file.is_file()} == before


def child(*arguments, **environment):
    return subprocess.Popen(
        [sys.executable, str(ROOT / "tests" / "training" / "checkpoint_child.py"), *map(str, arguments)],
        env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.slow
def test_sigkill_during_an_asynchronous_save(tmp_path):
    """Killed the moment a save is seen on disk, three lives in one directory; what reads as whole is whole, bit for bit."""
    for life, delay in enumerate((0.0, 0.004, 0.02)):
        process = child("forever", tmp_path)
        try:
            for line in process.stdout:
                if int(line) >= 3:
                    break
            deadline = time.monotonic() + 60
            while time.monotonic() < deadline and not list(tmp_path.glob("*orbax-checkpoint-tmp*")):
                pass
            time.sleep(delay)
        finally:
            process.send_signal(signal.SIGKILL)
            process.communicate()
        checkpoints = Checkpoints(tmp_path)
        steps = checkpoints.steps()
        assert steps, f"life {life} left nothing"
        for step in steps:
            restored, meta = checkpoints.restore(like(state_of(0)), step=step)
            assert meta == {"step": step} and toy.same(restored, state_of(step))
        assert checkpoints.restore(like(state_of(0)))[1] == {"step": steps[-1]}


def check_refused(process, directory):
    out, error = process.communicate(timeout=120)
    assert process.returncode == 0, error
    lines = out.splitlines()
    assert (
        lines[0].startswith("refused: checkpoint 2 could not be written")
        and "the disk is full; whole checkpoints: 1; free some space" in lines[0]
    )
    assert lines[1:] == ["left: 00000001", "then: 1 3"]  # the partial save gave its room back; there is a life after it
    assert "Traceback" not in error
    restored, _ = Checkpoints(directory).restore(like(state_of(1, 10_000)), step=1)
    assert toy.same(restored, state_of(1, 10_000))


def test_a_file_limit_is_a_clear_error(tmp_path):
    check_refused(child("full", tmp_path, DLMJAX_TEST_FILE_LIMIT="1"), tmp_path)


def test_a_full_disk_is_a_clear_error(tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    if (
        not shutil.which("mount")
        or subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", disk], capture_output=True).returncode
    ):
        pytest.skip("no right to mount a small file system here; the file limit above stands in for it")
    try:
        check_refused(child("full", disk / "checkpoints"), disk / "checkpoints")
    finally:
        subprocess.run(["umount", disk], check=True)


def test_an_unwritable_place_is_a_clear_error(tmp_path):
    (tmp_path / "file").write_text("not a directory")
    with (
        Checkpoints(tmp_path / "file" / "checkpoints") as checkpoints,
        pytest.raises(InputError, match="checkpoint 1 could not be written"),
    ):
        checkpoints.save(1, small(1), {})


def test_meta_must_be_json(tmp_path):
    with Checkpoints(tmp_path) as checkpoints, pytest.raises(TypeError, match="JSON serializable"):
        checkpoints.save(1, small(1), {"array": np.zeros(3)})
    assert not list(tmp_path.iterdir())
