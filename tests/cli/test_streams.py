"""Output that nobody reads: every command writes its files all the same, and ends without a traceback."""

import contextlib
import errno
import io
import os
import pathlib
import subprocess
import sys

import pytest

from dlmjax.cli.main import COMMANDS, main
from dlmjax.errors import READER_LEFT
from dlmjax.sweep.records import append_record
from tests.fit.synthetic import sweep
from tests.hardening.tiny import config_file, corpus_in

TASK = """
task: mine
dataset_path: json
dataset_kwargs: {data_files: {test: documents.jsonl}}
test_split: test
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "x"
metric_list: [{metric: bits_per_byte, aggregation: bits_per_byte, higher_is_better: false}]
"""
ROOT = pathlib.Path(__file__).parents[2]
# What each command writes, in order: later ones read what earlier ones wrote.
WRITES = {
    "prepare --input text.txt --documents line --valid-fraction 0.3 --output again": "again/manifest.json",
    "train --config tiny.py --workdir run": "run/config.json run/metrics.jsonl",
    "evaluate --workdir run --nodes 2 --windows 8 --json e.json --per-document e.npz": "e.json e.npz",
    "interval --workdir run --windows 8 --json i.json": "i.json",
    "plan --config tiny.py --data corpus --topology h100:1 --analytic --json p.json": "p.json",
    "export --workdir run --output hf": "hf/model.safetensors hf/config.json",
    "import --source hf --workdir imported": "imported/config.json",
    "merge --workdir run --steps 2 4 --weights raw --output merged": "merged/config.json",
    "sample --workdir run --steps 2 --count 2 --json s.json --trace s.html": "s.json s.html",
    "report --workdir run --steps 0 --output r.html": "r.html",
    "quality --workdir run --steps 2 --samples 2 --batch 2 --output quality": "quality/quality.json quality/samples.jsonl",
    "puzzles --kind countdown --count 4 --output c.txt": "c.txt",
    "solve --workdir run --input c.txt --count 2 --steps 2 --json solved.json": "solved.json",
    "embed --workdir run --input c.txt --output v.npz": "v.npz",
    "lm-eval --workdir run --tasks mine --include-path tasks --draws 2 --offline --output harness": "harness/results.json",
    "activations --workdir run --windows 2 --json a.json": "a.json",
    "sweep plan SWEEP --set data=corpus --set windows=8 --output planned": "planned/manifest.jsonl",
    "fit records.jsonl --resamples 0 --no-plots --output fit": "fit/fit.json",
    "fit predict --fit fit --flops 1e15 --json predicted.json": "predicted.json",
}


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("streams")
    config_file(root / "tiny.py", corpus_in(root), data__length=64)
    (root / "tasks").mkdir()
    (root / "tasks/mine.yaml").write_text(TASK)
    (root / "documents.jsonl").write_text('{"text": "x"}\n')
    for each in sweep():
        append_record(root / "records.jsonl", each)
    return root


@contextlib.contextmanager
def closed_pipe():
    """A text stream whose reader has left."""
    reads, writes = os.pipe()
    os.close(reads)
    with os.fdopen(writes, "w") as stream, contextlib.redirect_stdout(stream):
        yield stream


def test_every_command_is_tried():
    """But `play`, which prints one line and serves until it is stopped: tests/play starts it."""
    assert {command.split()[0] for command in WRITES} == COMMANDS.keys() - {"play"}


def slow_but(*quick):
    """The commands, of which those of other names are slow; `evaluate` has a quick form in tests/cli/test_evaluate.py. What a slow one
    reads, a slow one has written: they are run alone."""
    return [pytest.param(command, marks=[pytest.mark.slow] * (command.split()[0] not in quick)) for command in WRITES]


@pytest.mark.parametrize("command", slow_but("prepare", "plan", "sweep"))
def test_files_are_written_whoever_reads(command, root, monkeypatch, capsys):
    monkeypatch.chdir(root)
    if command.startswith("lm-eval"):
        pytest.importorskip("lm_eval")
    words = command.replace("SWEEP", str(ROOT / "configs/sweeps/isoflop.py:tiny")).split()
    with closed_pipe() as stream:
        assert main(words) == READER_LEFT and sys.stdout is stream
    assert all(pathlib.Path(file).exists() for file in WRITES[command].split())
    assert "Error" not in capsys.readouterr().err


def test_a_watch_ends_with_its_reader(root, monkeypatch):
    monkeypatch.chdir(root)
    monkeypatch.setattr("time.sleep", lambda seconds: pytest.fail("it goes on"))
    with closed_pipe():
        assert main(["sweep", "status", "planned", "--watch"]) == READER_LEFT


def test_bad_input_keeps_its_exit_code(root, monkeypatch, capsys):
    monkeypatch.chdir(root)
    with closed_pipe():
        assert main(["evaluate", "--workdir", "missing"]) == 2
    assert "missing" in capsys.readouterr().err


class Full(io.StringIO):
    """A file on a full disk."""

    def write(self, text):
        raise OSError(errno.ENOSPC, "No space left on device")


def test_a_full_disk_behind_the_output_is_told(tmp_path, capsys):
    with contextlib.redirect_stdout(Full()):
        assert main(["puzzles", "--kind", "countdown", "--count", "2", "--output", str(tmp_path / "c.txt")]) == 2
    assert (tmp_path / "c.txt").exists()
    assert capsys.readouterr().err == "dlmjax: standard output cannot be written: No space left on device; all files were written\n"


@pytest.mark.parametrize("where", ["| true", "2>&1 | true", ">&-", ">&- 2>&-", "> /dev/full"])
def test_a_process_ends_quietly(where, tmp_path):
    """In a shell: nothing of Python's own at the end of the process, either."""
    made = f"{sys.executable} -m dlmjax puzzles --kind countdown --count 2 --output {tmp_path}/c.txt"
    line = f"set -o pipefail; sleep 0; {made} {where}; echo $? > {tmp_path}/code"
    done = subprocess.run(["bash", "-c", line], capture_output=True, text=True, timeout=60, env={**os.environ, "PYTHONPATH": str(ROOT)})
    wanted = "2" if "full" in where else "0" if ">&-" in where else str(READER_LEFT)
    assert (tmp_path / "code").read_text().strip() == wanted and (tmp_path / "c.txt").exists()
    assert "Traceback" not in done.stderr and "Exception" not in done.stderr
