"""The peak memory of an export, in a process of its own. What holds it down, one leaf at a time, is tested in test_export.py."""

import json
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[2]


@pytest.mark.nightly
@pytest.mark.timeout(3600)
def test_a_billion_parameters_are_exported_in_less_than_six_gib(tmp_path):
    command = [sys.executable, "-m", "benchmarks.export_memory", "--directory", str(tmp_path / "run")]
    shown = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=3000, check=True).stdout
    made, found = (json.loads(line) for line in shown.splitlines() if line.startswith("{"))
    assert made["parameters"] > 1_000_000_000
    assert found["peak_gib"] < min(6.0, 2 * found["largest_file_gib"] + found["before_gib"])
