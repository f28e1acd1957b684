"""The plugin that measures the tests: what it reports in the last lines, when it fails a run, what it frees."""

import os
import pathlib
import re
import subprocess
import sys

import jax
import pytest

from tests import resources

ROOT = pathlib.Path(__file__).parents[1]
FILES = {
    "test_slow.py": "import time\ndef test_slow():\n    end = time.process_time() + 0.5\n    while time.process_time() < end: pass\n",
    "test_large.py": "def test_large():\n    assert len(b'x' * 300_000_000)\n",
    **{f"test_{n}.py": "def test_quick():\n    pass\n" for n in range(10)},
}


def run(folder, *flags):
    for name, text in FILES.items():
        (folder / name).write_text(text)
    # The outer run may be a worker of xdist itself; the inner one is none.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")} | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "tests.resources", "-c", os.devnull, "--rootdir", "."]
    done = subprocess.run([*command, *flags], cwd=folder, env=environment, capture_output=True, text=True, timeout=120)
    return done.returncode, done.stdout.splitlines()


def test_the_last_lines_name_the_slowest_files_and_each_workers_peak(tmp_path):
    code, lines = run(tmp_path, "-n", "2", "--dist", "loadfile", "--worker-memory", "0.25")
    head = next(n for n, line in enumerate(lines) if "slowest 10 of 13 files" in line)  # the twelve, and what all of them cost to collect
    named = [re.fullmatch(r" +(\d+\.\d) s CPU +(\d+\.\d) s wall  (.*)", line) for line in lines[head + 1 : head + 11]]
    seconds = {match[3]: float(match[1]) for match in named}
    assert 0.5 <= seconds["test_slow.py"] < 5 and list(seconds.values()) == sorted(seconds.values(), reverse=True)
    peaks = dict(re.findall(r"(gw\d) (\d+\.\d+) GB", lines[head + 11]))
    assert lines[head + 11].startswith("peak memory: ") and sorted(peaks) == ["gw0", "gw1"] and max(map(float, peaks.values())) > 0.3
    (large,) = [worker for worker, peak in peaks.items() if float(peak) > 0.3]
    # All tests passed, and the run fails for its memory.
    assert lines[head + 12] == f"FAILED: worker {large} used more than the --worker-memory of 0.25 GB" and code == 1
    assert lines[head + 13].startswith("12 passed") and len(lines) == head + 14


def test_one_process_without_a_limit_reports_and_passes(tmp_path):
    code, lines = run(tmp_path, "-p", "no:xdist", "test_1.py", "test_2.py")
    assert code == 0 and any("slowest 3 of 3 files" in line for line in lines) and re.fullmatch(r"peak memory: main \d\.\d\d GB", lines[-2])


def test_programs_are_freed_above_the_bound_only():
    double, programs = jax.jit(lambda x: 2 * x), resources.ProgramMemory()
    double(1.0)
    assert not programs.free_above(resources.peak_bytes() + 1e9)
    assert double._cache_size() == 1
    assert programs.free_above(0)
    assert double._cache_size() == 0


@pytest.mark.parametrize("rest, freed", [(0.1e9, 1), (1.5e9, 7), (1.9e9, 25)])
def test_memory_that_freeing_does_not_give_back_is_no_reason_to_free_again(monkeypatch, rest, freed):
    """Of 100 tests of 20 MB each, in a process that holds much besides programs: it frees where that gives back something."""
    held, frees = [rest], []
    monkeypatch.setattr(resources, "resident_bytes", lambda: held[0])
    monkeypatch.setattr(resources, "free_programs", lambda: (held.__setitem__(0, rest), frees.append(1)))
    programs, peak = resources.ProgramMemory(), 0.0
    for _ in range(100):
        held[0] += 20e6
        peak = max(peak, held[0])
        programs.free_above(resources.TEST_BYTES)
    assert peak <= max(resources.TEST_BYTES, rest + resources.GROWTH_BYTES) + 20e6
    assert len(frees) == freed
