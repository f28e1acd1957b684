"""What a workdir holds is believed only where it is what the run wrote: gone is made again, damaged is told, and nothing is harmed."""

import json
import pathlib
import shutil

import jax.numpy as jnp
import numpy as np
import pytest

from dlmjax import config as config_lib
from dlmjax.data import load_tokenizer
from dlmjax.data.tokenizers import save_tokenizer
from dlmjax.errors import InputError
from dlmjax.experiment import open_experiment
from dlmjax.files import CHECKSUM, sealed
from dlmjax.training import Checkpoints
from dlmjax.training.marker import MARKER
from dlmjax.workdir import STATE, claim_workdir, embedding_of, move_aside, newest_meta, stored_config, stored_inputs, trained

TEXTS = ["0" * 32, "1" * 32]
TABLE = np.arange(24, dtype=np.float32).reshape(8, 3)


def config_of(**changes):
    config = config_lib.default()
    config.data.update(length=8, batch=8, paths=("corpus",))
    config.optimizer.warmup = 0
    config.model.update(depth=1, width=8, heads=1, kv_heads=1, head_dim=8, ffn=8)
    return config_lib.override(config, [f"{name.replace('__', '.')}={value}" for name, value in changes.items()])


def claim(workdir, tokenizer="bytes", texts=TEXTS, counts=7, table=TABLE, **changes):
    tokenizer = load_tokenizer(tokenizer)
    counts_V = np.full(tokenizer.vocab_size, counts, np.int64)
    return claim_workdir(workdir, config_of(**changes), tokenizer, counts_V, table, texts)


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    """A workdir with two checkpoints of a state that is only a number, and a line of metrics."""
    workdir = tmp_path_factory.mktemp("original") / "run"
    inputs = claim(workdir)
    with Checkpoints(workdir / "checkpoints", keep=2, common={"given": inputs}) as checkpoints:
        for step in (1, 2):
            meta = {"step": step, "config": config_lib.leaves(config_of())}
            checkpoints.save(step, {"params": {"w": jnp.float32(step)}}, meta)
    (workdir / "metrics.jsonl").write_text('{"step": 1, "kind": "train"}\n')
    return workdir


@pytest.fixture
def workdir(original, tmp_path):
    return pathlib.Path(shutil.copytree(original, tmp_path / "run"))


def tree(folder):
    """Everything in a folder: what files hold and where links lead."""
    paths = sorted(folder.rglob("*"))
    return {
        str(path.relative_to(folder)): str(path.readlink()) if path.is_symlink() else path.read_bytes()
        for path in paths
        if not path.is_dir()
    }


FILES = ["config.json", "texts.json", "counts.npy", "embedding.npy", "tokenizer/dlmjax_tokenizer.json"]


def test_a_run_is_claimed_again_and_opens(workdir):
    before = tree(workdir)
    claim(workdir)
    assert tree(workdir) == before
    claim(workdir, log__every=7)  # free to change
    assert stored_config(workdir, newest_meta(workdir)).log.every == 7
    assert open_experiment(str(workdir)).tokenizer.hash == load_tokenizer("bytes").hash


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"model__width": 16}, r"it differs in model\.width: 8 -> 16"),
        ({"tokenizer": "char27"}, "another tokenizer"),
        ({"texts": TEXTS[::-1]}, "was trained on other text"),
        ({"counts": 8}, r"counts\.npy is not the table"),
        ({"table": TABLE + 1}, r"embedding\.npy is not the table"),
    ],
)
@pytest.mark.parametrize("gone", [(), ("config.json", "texts.json"), FILES[:4]], ids=["all there", "two gone", "four gone"])
def test_another_run_is_refused_also_where_files_are_gone(workdir, change, said, gone):
    """What is gone is taken from the checkpoint's own copy, and never from the flags."""
    for name in gone:
        (workdir / name).unlink()
    before = tree(workdir)
    with pytest.raises(InputError, match=said):
        claim(workdir, **change)
    assert tree(workdir) == before


@pytest.mark.parametrize("gone", [*((name,) for name in FILES), tuple(FILES)], ids=str)
def test_what_is_gone_is_made_again(original, workdir, gone):
    for name in gone:
        (workdir / name).unlink()
        (workdir / name).parent.rmdir() if "/" in name else None
    claim(workdir)
    assert tree(workdir) == tree(original)


DAMAGES = {
    "emptied": lambda content: b"",
    "halved": lambda content: content[: len(content) // 2],
    "a bit": lambda content: content[: len(content) // 3] + bytes([content[len(content) // 3] ^ 1]) + content[len(content) // 3 + 1 :],
    "zeros": lambda content: bytes(len(content)),
    "a list": lambda content: b"[3]",
    "deep": lambda content: b"[" * 100_000,
    "another's": lambda content: b'{"a": 1}',
}


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("name", FILES)
def test_what_is_damaged_is_told_and_not_written_over(workdir, name, damage):
    file = workdir / name
    file.write_bytes(DAMAGES[damage](file.read_bytes()))
    before = tree(workdir)
    calls = [lambda: open_experiment(str(workdir))]
    calls += [lambda: claim(workdir)] if name not in ("counts.npy", "embedding.npy") else []  # these two are made from what was given
    for call in calls if name != "embedding.npy" else ():
        with pytest.raises(InputError) as told:
            call()
        said = str(told.value)
        assert (
            "\n" not in said
            and (name.partition("/")[0] in said or "holds another run" in said)
            and any(word in said for word in ("restore", "put it back", "another --workdir"))
        ), said
        assert tree(workdir) == before


@pytest.mark.parametrize("name", ["config.json", "texts.json"])
def test_files_of_another_run_are_told(workdir, tmp_path, name):
    """Whole, with a checksum of their own; and so for an older version's, without one."""
    claim(tmp_path / "other", texts=["2" * 32], process__name="uniform", model__time_input="adaln", counts=3)
    values = json.loads((tmp_path / "other" / name).read_text())
    for content in (values, {key: value for key, value in values.items() if key != CHECKSUM}):
        (workdir / name).write_text(json.dumps(content))
        for call in (lambda: open_experiment(str(workdir)), lambda: claim(workdir)):
            with pytest.raises(
                InputError,
                match=rf"{name} is not .* the newest checkpoint was made.*/checkpoints/00000002, is another run's, move that away",
            ):
                call()


def test_a_tokenizer_of_another_run_is_told(workdir):
    save_tokenizer(load_tokenizer("char27"), workdir / "tokenizer")
    for call in (lambda: open_experiment(str(workdir)), lambda: claim(workdir), lambda: claim(workdir, tokenizer="char27")):
        with pytest.raises(InputError, match="is not the tokenizer that the run was trained with"):
            call()


def test_a_run_of_an_older_version_goes_on(workdir):
    """Without checksums, texts.json a list, checkpoints without a copy of it; without texts.json, too."""
    for name in ("config.json", "texts.json"):
        values = json.loads((workdir / name).read_text())
        del values[CHECKSUM]
        (workdir / name).write_text(json.dumps(values if name == "config.json" else values["texts"], indent=1))
    for step in (1, 2):
        marker = workdir / "checkpoints" / f"{step:08d}" / MARKER
        values = json.loads(marker.read_text())
        del values["meta"]["given"], values[CHECKSUM], values["step"]
        marker.write_text(json.dumps(values))
    assert open_experiment(str(workdir))
    with pytest.raises(InputError, match="was trained on other text"):
        claim(workdir, texts=TEXTS[:1])
    older = pathlib.Path(shutil.copytree(workdir, workdir.with_name("older")))
    (older / "texts.json").unlink()
    for place in (workdir, older):
        claim(place)
        assert stored_inputs(place, {})["texts"] == TEXTS


def damage_all(workdir):
    for path in (workdir / "checkpoints").iterdir():
        (path / MARKER).write_text("")


def replace_by_file(workdir):
    shutil.rmtree(workdir / "checkpoints")
    (workdir / "checkpoints").write_text("x")


def link_to_nothing(workdir):
    shutil.rmtree(workdir / "checkpoints")
    (workdir / "checkpoints").symlink_to(workdir / "nothing")


@pytest.mark.parametrize("damage", [damage_all, replace_by_file, link_to_nothing])
@pytest.mark.parametrize("metrics", [True, False])
def test_damaged_checkpoints_are_no_absent_ones(workdir, damage, metrics):
    damage(workdir)
    if not metrics:
        (workdir / "metrics.jsonl").unlink()
    before = tree(workdir)
    for call in (lambda: claim(workdir), lambda: claim(workdir, model__width=16), lambda: open_experiment(str(workdir))):
        with pytest.raises(
            InputError, match=r"/checkpoints (has no whole checkpoint; .*--fresh|is not a folder|is a link that leads nowhere)"
        ):
            call()
    assert tree(workdir) == before


@pytest.mark.parametrize(
    ("there", "first", "last", "lost"),
    [
        (False, 1, 3, False),  # killed before its first save, by a version that made no folder
        (False, 1, 4, True),
        (False, 1, 40, True),
        (False, 33, 35, False),  # a fork from step 32
        (False, 33, 36, True),
        (False, 41, 42, True),  # a run's last step is saved
        (True, 1, 7, False),  # killed while the first save was under way
        (True, 1, 8, False),
        (True, 1, 9, True),
        (True, 33, 40, False),
        (True, 33, 41, True),
    ],
)
def test_lost_checkpoints_are_told_by_the_metrics(tmp_path, there, first, last, lost):
    """A save every 4 of 42 steps. Nothing begins anew over a run that had a checkpoint, and a run that had none just begins again."""
    workdir, config = tmp_path / "run", {"checkpoint__every": 4, "train__steps": 42}
    claim(workdir, **config)
    lines = "".join(json.dumps({"step": step, "kind": "train"}) + "\n" for step in range(first, last + 1))
    (workdir / "metrics.jsonl").write_text(lines)
    if not there:
        (workdir / "checkpoints").rmdir()
    before = tree(workdir)
    if lost:
        with pytest.raises(InputError, match=rf"/checkpoints (has no checkpoint|is not there), .* goes to step {last}, .*--fresh"):
            claim(workdir, **config)
        assert (workdir / "checkpoints").exists() == there
        move_aside(workdir)
    claim(workdir, **config)
    assert lost or tree(workdir) == before


def test_metrics_without_a_config_say_so(workdir):
    shutil.rmtree(workdir / "checkpoints")
    claim(workdir)  # killed before its first checkpoint
    (workdir / "config.json").unlink()
    with pytest.raises(InputError, match="holds metrics and neither config.json nor a checkpoint .*--fresh"):
        claim(workdir)


def test_what_is_there_is_moved_aside_whole(workdir, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (workdir / "tensorboard").symlink_to(tmp_path / "elsewhere")
    (workdir / "notes.txt").write_text("a person's")
    before = tree(workdir)
    aside = move_aside(workdir)
    assert aside == workdir / "aside-001" and tree(aside) == {name: content for name, content in before.items() if name != "notes.txt"}
    assert sorted(path.name for path in workdir.iterdir()) == ["aside-001", "notes.txt"] and not trained(workdir)
    assert move_aside(workdir) is None
    claim(workdir, model__width=16)
    assert move_aside(workdir) == workdir / "aside-002" and set(STATE) > {path.name for path in (workdir / "aside-002").iterdir()}


def test_there_is_always_a_folder_to_move_to(tmp_path):
    for number in range(1, 1001):
        (tmp_path / f"aside-{number:03d}").mkdir()
    (tmp_path / "metrics.jsonl").touch()
    assert move_aside(tmp_path) == tmp_path / "aside-1001"


def test_a_run_that_is_opened_reads_its_own_table_alone(workdir, tmp_path):
    np.save(tmp_path / "table.npy", TABLE)
    config = config_of(process__name=f"d3pm(kernel=neighbours, embedding={str(tmp_path / 'table.npy')!r})", model__time_input="adaln")
    (workdir / "embedding.npy").unlink()
    assert embedding_of(config, None) is not None
    shutil.rmtree(workdir / "checkpoints")
    (workdir / "config.json").write_text(json.dumps(sealed(config_lib.leaves(config))))
    with pytest.raises(InputError, match=r"embedding\.npy is missing"):
        open_experiment(str(workdir))
