"""Every file of a run and of its corpus damaged in every way: the right result, or one line, exit code 2 and nothing harmed.

The run is finished, so that a start with whole files compiles nothing; where the newest checkpoint is lost, the steps after the one before
it are done again and must give the very same numbers.
"""

import collections
import json
import pathlib
import random
import shutil
import traceback

import jax
import pytest
from jax.experimental.compilation_cache import compilation_cache

from dlmjax.cli.main import main
from dlmjax.errors import InputError
from dlmjax.run import open_run
from tests.hardening.tiny import STEPS, Hang, at_most, config_file, corpus_in, heard, lines, same, states, tree

SECONDS = 200  # of one use, which compiles at most a few small programs; more is a hang
VOLATILE = (".lock", "compiled", "lock")  # no state


@pytest.fixture(scope="module")
def compiled(tmp_path_factory):
    """Programs are compiled once for all starts of this process, and not kept in a workdir, as the command would have it."""
    names = {"jax_compilation_cache_dir": str(tmp_path_factory.mktemp("compiled")), "jax_persistent_cache_min_compile_time_secs": 0.0}
    before = {name: getattr(jax.config, name) for name in names}
    for values in (names, before):
        for name, value in values.items():
            jax.config.update(name, value)
        compilation_cache.reset_cache()
        if values is names:
            yield


@pytest.fixture(scope="module")
def whole(compiled, tmp_path_factory):
    """A corpus and a finished run in one folder, the config file beside it, and the right results."""
    root = tmp_path_factory.mktemp("whole")
    (root / "place").mkdir()
    corpus = corpus_in(root / "place")
    file = config_file(root / "tiny.py", corpus, process__name="masked")
    workdir = root / "place" / "run"
    with heard():
        assert main(["train", "--config", str(file), "--workdir", str(workdir)]) == 0
    opened = {step: open_run(str(workdir), step=step).params for step in (2, STEPS)}
    found = {"place": root / "place", "config": file, "opened": opened, "lines": lines(workdir), "states": states(workdir)}
    shutil.copytree(root / "place", root / "backup", symlinks=True)
    found["outputs"] = {}
    for step in (2, STEPS):
        for command in ("evaluate", "sample"):
            found["outputs"][command, step] = output(command, workdir, corpus, ["--step", str(step)])[2]
    return found


def output(command: str, workdir: pathlib.Path, corpus: pathlib.Path, more=()) -> tuple[int, str, dict | None]:
    """Exit code, what was said on standard error, and the numbers of the report of `evaluate` or `sample`."""
    report = workdir.parent.parent / f"{command}.json"
    report.unlink(missing_ok=True)
    flags = {
        "evaluate": ["--data", str(corpus), "--windows", "2", "--nodes", "1", "--batch", "8"],
        "sample": ["--length", "8", "--steps", "2"],
    }[command]
    with heard() as (_, error):
        code = main([command, "--workdir", str(workdir), *flags, *more, "--json", str(report)])
    values = json.loads(report.read_text()) if code == 0 else {}
    kept = ("nats_per_token", "bits_per_byte", "tokens", "ids", "texts", "step")
    return code, error.getvalue(), {name: values[name] for name in kept if name in values}


def half(path, rng):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def emptied(path, rng):
    path.write_bytes(b"")


def flipped(path, rng):
    content = bytearray(path.read_bytes())
    position = rng.randrange(8 * len(content))
    content[position // 8] ^= 1 << position % 8
    path.write_bytes(content)


def gone(path, rng):
    shutil.rmtree(path) if path.is_dir() else path.unlink()


def folder(path, rng):
    gone(path, rng)
    path.mkdir()


def link(path, rng):
    gone(path, rng)
    path.symlink_to("nowhere")


def another(path, rng):
    """The content of another file of the same kind, if there is one."""
    others = sorted(p for p in path.parent.parent.rglob(f"*{path.suffix}") if p.is_file() and p != path and p.stat().st_size)
    path.write_bytes(rng.choice(others).read_bytes() if others else b'{"a": 1}\n')


def file(path, rng):
    gone(path, rng)
    path.write_text("x")


OF_FILES, OF_FOLDERS = (half, emptied, flipped, gone, folder, link, another), (gone, link, file)


def cases(place: pathlib.Path) -> list[tuple[str, object]]:
    """(path below the folder, damage) of all that is there."""
    found = []
    for path in sorted(place.rglob("*")):
        name = str(path.relative_to(place))
        if path.is_dir():
            found += [(name, damage) for damage in OF_FOLDERS]
        elif not set(name.split("/")) & {"lock"}:
            found += [(name, damage) for damage in (OF_FILES if path.stat().st_size else (folder, link))]
    return found


class Count(collections.Counter):
    """Outcomes; what is not allowed is kept with its story."""

    def __init__(self):
        super().__init__()
        self.stories = []

    def fault(self, kind, *story):
        self[kind] += 1
        self.stories.append((kind, *story))

    def __str__(self):
        known = ", ".join(f"{kind} {self[kind]}" for kind in ("wrong", "traceback", "harmed", "many lines", "hang"))
        return f"corruptions {self['corruptions']} ({self['right']} right, {self['refused']} refused); {known}"


def attempt(count: Count, what: str, call, place: pathlib.Path) -> bool:
    """One use of the damaged files: `call` returns its exit code, what it said, and whether the result is right."""
    before = tree(place, VOLATILE)
    try:
        with at_most(SECONDS):
            code, said, right = call()
    except Hang as hang:
        count.fault("hang", what, str(hang))
        return False
    except InputError as error:
        code, said, right = 2, f"dlmjax: {error}", True
    except BaseException:
        count.fault("traceback", what, traceback.format_exc())
        return False
    told = [line for line in said.splitlines() if line.startswith("dlmjax:")]
    if code == 0 and right:
        count["right"] += 1
    elif code == 0:
        count.fault("wrong", what, said)
    elif code != 2 or len(told) != 1 or "Traceback" in said:
        count.fault("many lines", what, code, said)
    elif tree(place, VOLATILE) != before:
        count.fault("harmed", what, said, sorted(set(tree(place, VOLATILE).items()) ^ set(before.items()))[:3])
    else:
        count["refused"] += 1
    return code == 0


def try_all(whole, chosen, commands) -> Count:
    """Damages, uses, and puts back, one after another."""
    count, rng, place = Count(), random.Random(5), whole["place"]
    workdir, corpus = place / "run", place / "corpus"

    def opened():
        run = open_run(str(workdir))
        return 0, "", same(run.params, whole["opened"][run.step])

    def trained():
        with heard() as (_, error):
            code = main(["train", "--config", str(whole["config"]), "--workdir", str(workdir)])
        if code:
            return code, error.getvalue(), False
        right = states(workdir)[STEPS] == whole["states"][STEPS]
        return code, error.getvalue(), right and ("metrics" in name or lines(workdir) == whole["lines"])

    for name, damage in chosen:
        damage(place / name, rng)
        what = f"{name} {damage.__name__}"
        count["corruptions"] += 1
        attempt(count, f"open_run: {what}", opened, place)
        for command in commands:

            def reported(command=command):
                code, said, values = output(command, workdir, corpus)
                return code, said, code == 0 and values == whole["outputs"][command, values["step"]]

            attempt(count, f"{command}: {what}", reported, place)
        attempt(count, f"train: {what}", trained, place)
        shutil.rmtree(place)
        shutil.copytree(place.parent / "backup", place, symlinks=True)
    return count


def report(count: Count) -> None:
    print(count)
    assert not count.stories, "\n".join(" | ".join(map(str, story)) for story in count.stories[:6])
    assert count["right"] and count["refused"]


def parted(whole) -> tuple[list, list, list]:
    """The damages of files that decide which state is resumed, those of the newest checkpoint, and all others."""
    everything = cases(whole["place"])
    newest = [case for case in everything if case[0].startswith("run/checkpoints/00000004")]
    decisive = [case for case in everything if case[0].endswith(("config.json", "texts.json", "manifest.json", "dlmjax_tokenizer.json"))]
    return decisive, newest, [case for case in everything if case not in decisive and case not in newest]


def test_a_sample_of_all_damages(whole):
    """Every damage of the files that decide which state is resumed, and some of the others."""
    (decisive, newest, rest), rng = parted(whole), random.Random(0)
    report(try_all(whole, decisive + rng.sample(rest, 8) + rng.sample(newest, 2), ()))
    report(try_all(whole, rng.sample(decisive, 1) + rng.sample(rest, 2), ("evaluate", "sample")))


@pytest.mark.slow
def test_a_larger_sample_of_all_damages(whole):
    (decisive, newest, rest), rng = parted(whole), random.Random(1)
    report(try_all(whole, rng.sample(rest, 30) + rng.sample(newest, 4), ()))
    report(try_all(whole, rng.sample(decisive, 3) + rng.sample(rest, 5), ("evaluate", "sample")))


def test_a_lost_run_is_refused_and_begins_anew_when_asked(whole):
    """All checkpoints damaged: no start erases the metrics; `--fresh` keeps all of it aside and makes the same run again."""
    place, flags = whole["place"], ["train", "--config", str(whole["config"]), "--workdir", str(whole["place"] / "run")]
    for step in (2, STEPS):
        half(place / "run" / "checkpoints" / f"{step:08d}" / "dlmjax.json", None)
    before = tree(place / "run", VOLATILE)
    with heard() as (_, error):
        assert main(flags) == 2
    assert "00000002 has an unreadable dlmjax.json" in error.getvalue() and "--fresh" in error.getvalue()
    assert tree(place / "run", VOLATILE) == before
    with heard():
        assert main([*flags, "--fresh"]) == 0
    assert states(place / "run") == whole["states"] and lines(place / "run") == whole["lines"]
    assert tree(place / "run" / "aside-001", VOLATILE) == before
    shutil.rmtree(place)
    shutil.copytree(place.parent / "backup", place, symlinks=True)


def test_a_hole_in_the_metrics_is_told_and_resume_is_right(whole, caplog):
    """Lines that are gone, and lines that are other ones: one warning, and the numbers of the run that had none."""
    place = whole["place"]
    newest = place / "run" / "checkpoints" / f"{STEPS:08d}"
    metrics = place / "run" / "metrics.jsonl"
    for hole in ("one line", "all lines", "the file", "another line"):
        shutil.rmtree(newest)  # so that there is something to resume
        kept = metrics.read_text().splitlines(keepends=True)
        if hole == "the file":
            metrics.unlink()
        else:
            other = kept[0].replace('"loss": ', '"loss": 1')
            metrics.write_text("".join({"one line": kept[1:], "all lines": [], "another line": [other, *kept[1:]]}[hole]))
        caplog.clear()
        with heard():
            assert main(["train", "--config", str(whole["config"]), "--workdir", str(place / "run")]) == 0
        assert sum("curves have a gap" in record.getMessage() for record in caplog.records) == 1, hole
        assert states(place / "run") == whole["states"]
        new = {"one line": whole["lines"][1:], "all lines": whole["lines"][2:], "the file": whole["lines"][2:]}
        assert hole == "another line" or lines(place / "run") == new[hole]
        shutil.rmtree(place)
        shutil.copytree(place.parent / "backup", place, symlinks=True)


@pytest.mark.nightly
@pytest.mark.timeout(7200)
def test_all_damages(whole):
    everything = cases(whole["place"])
    bits = [case for case in everything if case[1] is flipped]
    report(try_all(whole, everything + 3 * bits, ("evaluate", "sample")))
