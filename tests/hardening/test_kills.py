"""SIGKILL at any moment, and the command given again: the result is, bit for bit, that of a command which nobody killed."""

import collections
import os
import pathlib
import random
import signal
import subprocess
import sys
import tempfile
import time

import jax
import pytest

from tests.hardening.tiny import STEPS, config_file, corpus_in, lines, states, tree

ROOT = pathlib.Path(__file__).resolve().parents[2]
CACHE = pathlib.Path(tempfile.gettempdir()) / f"dlmjax-test-cache-{os.getuid()}-{jax.__version__}"
SECONDS = 300  # of a start; more is a hang
LEFT = (".part", ".tmp", ".unfinished", ".removed", ".fetched", ".partial")  # what only a killed writer leaves


def start(arguments, own_cache=False):
    """own_cache: compiled programs are kept in the workdir, where kills meet them too."""
    cache = {"JAX_COMPILATION_CACHE_DIR": str(CACHE), "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
    own = {**os.environ, "JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": "1", "PYTHONPATH": str(ROOT), **({} if own_cache else cache)}
    command = [sys.executable, "-m", "dlmjax", *map(str, arguments)]
    return subprocess.Popen(command, env=own, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def finish(process) -> str:
    out, error = process.communicate(timeout=SECONDS)
    assert process.returncode == 0, error
    assert "Traceback" not in out + error, error
    return out


class Kills:
    """Gives a command again and again, and kills it at seeded moments between its first and its last."""

    def __init__(self, seed: int):
        self.kills, self.count, self._rng = 0, collections.Counter(), random.Random(seed)

    def wear_out(self, arguments, kills: int, seconds: float, own_cache=False) -> None:
        """`kills` starts that are killed, or end before, and one that is not. seconds: about what a start takes."""
        for _ in range(kills):
            process = start(arguments, own_cache)
            try:
                process.wait(self._rng.uniform(0.2, 1.0) * seconds)
            except subprocess.TimeoutExpired:
                process.send_signal(signal.SIGKILL)
                self.kills += 1
            self._judge(process, (0, -signal.SIGKILL))
        self._judge(start(arguments, own_cache), (0,))

    def _judge(self, process, codes) -> None:
        """Counts how a start ended, if it did not end as it may."""
        try:
            out, error = process.communicate(timeout=SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            out, error = process.communicate()
            kind = "hang"
        else:
            kind = "traceback" if "Traceback" in out + error else "wrong" if process.returncode not in codes else ""
        if kind:
            self.count[kind] += 1
            print(kind, process.args, error[-2000:])

    def report(self, right: bool) -> None:
        """right: is what the command has made that of one which nobody killed?"""
        self.count["wrong"] += not right
        print(f"kills {self.kills}, " + ", ".join(f"{kind} {self.count[kind]}" for kind in ("wrong", "traceback", "hang")))
        assert not self.count.total()


def leftovers(folder: pathlib.Path) -> list[str]:
    return [name for name in tree(folder, ("compiled",)) if name.endswith(LEFT) or "orbax-checkpoint-tmp" in name]


@pytest.fixture(scope="module")
def right(tmp_path_factory):
    """Each command once, without a kill: folders, and seconds that it took."""
    root = tmp_path_factory.mktemp("right")
    corpus = corpus_in(root)
    file = config_file(root / "tiny.py", corpus)
    seconds = {}

    def timed(name, *arguments):
        for again in range(2):  # the second time programs are compiled
            began = time.monotonic()
            finish(start([*arguments, root / f"{name}{again}"]))
            seconds[name] = time.monotonic() - began

    timed("prepare", *prepare_flags(root))
    timed("run", "train", "--config", file, "--workdir")
    timed("export", "export", "--workdir", root / "run0", "--output")
    assert tree(root / "prepare0") == tree(root / "prepare1") and tree(root / "export0") == tree(root / "export1")
    return root, file, seconds


def prepare_flags(root):
    return ["prepare", "--input", root / "text.txt", "--documents", "line", "--valid-fraction", "0.3", "--workers", "1", "--output"]


def check_prepare(right, tmp_path, kills, seed):
    root, _, seconds = right
    driver = Kills(seed)
    driver.wear_out([*prepare_flags(root), tmp_path / "corpus"], kills, seconds["prepare"])
    driver.report(tree(tmp_path / "corpus") == tree(root / "prepare0") and not leftovers(tmp_path))
    return driver.kills


def check_train(right, tmp_path, kills, seed, own_cache=False):
    root, file, seconds = right
    driver = Kills(seed)
    driver.wear_out(["train", "--config", file, "--workdir", tmp_path / "run"], kills, seconds["run"], own_cache)
    same = states(tmp_path / "run")[STEPS] == states(root / "run0")[STEPS] and lines(tmp_path / "run") == lines(root / "run0")
    driver.report(same and not leftovers(tmp_path / "run"))
    return driver.kills


def check_export(right, tmp_path, kills, seed):
    root, _, seconds = right
    driver = Kills(seed)
    driver.wear_out(["export", "--workdir", root / "run0", "--overwrite", "--output", tmp_path / "export"], kills, seconds["export"])
    driver.report(tree(tmp_path / "export") == tree(root / "export0") and not leftovers(tmp_path))
    return driver.kills


@pytest.mark.slow
@pytest.mark.parametrize("check", [check_prepare, check_train, check_export])
def test_a_few_kills(right, tmp_path, check):
    check(right, tmp_path, 3, seed=1)


@pytest.mark.nightly
@pytest.mark.timeout(7200)
def test_a_hundred_kills(right, tmp_path):
    """As a sweep's worker meets them, too: new workdirs again and again, each worn out by kills."""
    total = 0
    for turn in range(12):
        for check in (check_prepare, check_train, check_export):
            place = tmp_path / f"{turn}-{check.__name__}"
            place.mkdir()
            own = {"own_cache": bool(turn % 2)} if check is check_train else {}
            total += check(right, place, 4, seed=100 + turn, **own)
    print(f"kills {total} in all")  # the counts of each stand above
    assert total >= 100
