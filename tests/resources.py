"""What the tests cost: frees the memory of compiled programs, and reports the slowest files and each worker's peak memory.

A pytest plugin, loaded by conftest.py. Under xdist the workers measure and the controller reports. CPU seconds are those of the process
and of the children it has waited for, so that a busy machine does not change who is slow.
"""

import ctypes
import gc
import math
import os
import pathlib
import resource
import sys
import time

import pytest

SLOWEST = 10
# A compiled program holds about 1 MB, however small it is. Above these bounds all are freed, after a file and within one.
FILE_BYTES, TEST_BYTES = 1.2e9, 1.5e9
# Not all that is held are programs. Where freeing them leaves a process near the bound, it would free them after every test, and every test
# would compile the same again: before the next freeing memory must grow by so much, or reach this size, and at the least by a quarter.
GROWTH_BYTES, LARGE_BYTES = 0.3e9, 1.8e9
COLLECTION = "(imports and collection)"


def pytest_addoption(parser):
    text = "peak memory of a worker above which the run fails; default: no limit"
    parser.addoption("--worker-memory", type=float, metavar="GB", help=text)


def pytest_configure(config):
    config.pluginmanager.register(Resources(config), "resources-of-tests")


class Resources:
    """Seconds by file and the peak memory: of this process where tests run, of all workers where the report is printed."""

    def __init__(self, config):
        self._config, self._began = config, cpu_seconds()
        self._is_worker = hasattr(config, "workerinput")
        self._files: dict[str, list[float]] = {}
        self._peaks: dict[str, float] = {}
        self._programs = ProgramMemory()

    def _add(self, file, cpu, wall):
        total = self._files.setdefault(file, [0.0, 0.0])
        total[0] += cpu
        total[1] += wall

    def pytest_collection_finish(self):
        gc.collect()
        gc.freeze()  # what is imported stays: no later collection looks at it
        self._add(COLLECTION, cpu_seconds(), 0.0)

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_protocol(self, item, nextitem):
        cpu, wall = cpu_seconds(), time.perf_counter()
        result = yield
        self._programs.free_above(TEST_BYTES if nextitem is not None and nextitem.path == item.path else FILE_BYTES)
        self._add(item.nodeid.partition("::")[0], cpu_seconds() - cpu, time.perf_counter() - wall)
        return result

    @pytest.hookimpl(optionalhook=True)
    def pytest_testnodedown(self, node, error):
        """In the controller: a worker has ended and hands over what it measured."""
        measured = getattr(node, "workeroutput", {}).get("resources")
        if measured:
            self._peaks[node.gateway.id] = measured["peak"]
            for file, (cpu, wall) in measured["files"].items():
                self._add(file, cpu, wall)

    @pytest.hookimpl(tryfirst=True)
    def pytest_sessionfinish(self, session):
        if self._is_worker:
            self._config.workeroutput["resources"] = {"files": self._files, "peak": peak_bytes()}
            return
        if not self._peaks:
            self._peaks["main"] = peak_bytes()
        if self._too_large() and session.exitstatus == pytest.ExitCode.OK:
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def _too_large(self):
        limit = self._config.getoption("--worker-memory")
        return [worker for worker, peak in self._peaks.items() if limit and peak > limit * 1e9]

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_terminal_summary(self, terminalreporter):
        result = yield
        total = sum(cpu for cpu, _ in self._files.values())
        slowest = sorted(self._files.items(), key=lambda entry: -entry[1][0])[:SLOWEST]
        terminalreporter.write_sep("=", f"slowest {len(slowest)} of {len(self._files)} files, {total / 60:.1f} CPU minutes in all")
        for file, (cpu, wall) in slowest:
            terminalreporter.write_line(f"{cpu:7.1f} s CPU {wall:7.1f} s wall  {file}")
        peaks = ", ".join(f"{worker} {peak / 1e9:.2f} GB" for worker, peak in sorted(self._peaks.items()))
        terminalreporter.write_line(f"peak memory: {peaks}")
        for worker in self._too_large():
            limit = self._config.getoption("--worker-memory")
            terminalreporter.write_line(f"FAILED: worker {worker} used more than the --worker-memory of {limit:g} GB", red=True)
        return result


class ProgramMemory:
    """Decides when the memory of compiled programs is given back; who needs one compiles it again, or reads it (conftest.py)."""

    def __init__(self):
        self._left = -math.inf  # bytes held after the last freeing

    def free_above(self, bound: float) -> bool:
        """Frees where this process holds more than `bound` bytes and so many more than freeing has left that it is worth it."""
        grown = min(self._left + GROWTH_BYTES, max(LARGE_BYTES, self._left + GROWTH_BYTES / 4))
        if resident_bytes() < max(bound, grown):
            return False
        free_programs()
        self._left = resident_bytes()
        return True


def free_programs() -> None:
    if jax := sys.modules.get("jax"):
        jax.clear_caches()
    gc.collect()
    if sys.platform == "linux":
        ctypes.CDLL(None).malloc_trim(0)


def cpu_seconds() -> float:
    """Of this process and the children it has waited for."""
    return sum(os.times()[:4])


def peak_bytes() -> float:
    """The most memory this process has held so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def resident_bytes() -> float:
    """The memory this process holds now; where the system does not tell, infinite."""
    try:
        return int(pathlib.Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()
    except OSError:
        return float("inf")
