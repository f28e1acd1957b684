"""docs/your_text.md: its commands run as they stand, in order, on a folder of small files."""

import os
import pathlib
import re
import shlex
import subprocess
import sys

import pytest

from dlmjax.cli import main as cli
from dlmjax.sweep.manifest import SweepPlan
from dlmjax.sweep.records import append_record
from tests.fit.synthetic import SMALL, record

ROOT = pathlib.Path(__file__).parents[1]
BLOCKS = re.findall(r"^```bash\n(.*?)^```", (ROOT / "docs/your_text.md").read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
COMMANDS = [shlex.split(line)[1:] for block in BLOCKS for line in block.splitlines() if line.startswith("dlmjax ")]
# A run of two small steps, in place of the page's 400.
SHORT = {
    "train.steps": 2,
    "optimizer.warmup": 1,
    "model.depth": 1,
    "data.length": 32,
    "data.batch": 8,
    "log.evaluate": 0,
    "log.sample": 0,
    "checkpoint.every": 2,
}
QUICK = ("prepare", "plan", "train", "sweep", "fit", "export")  # the others compile for longer, or import torch


@pytest.fixture
def root(tmp_path, monkeypatch):
    """A directory like that of the repository, with a folder of small files of every kind beside it."""
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    texts = sorted(ROOT.glob("docs/*.md"))
    (tmp_path / "my_text/notes").mkdir(parents=True)
    for path in texts[::2]:
        (tmp_path / "my_text/notes" / path.name).write_bytes(path.read_bytes())
    for path in texts[1::2]:
        (tmp_path / "my_text" / f"{path.stem}.txt").write_bytes(path.read_bytes())
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_page_shows_the_whole_way():
    assert [words[0] for words in COMMANDS] == [
        *("prepare", "plan", "train", "report", "evaluate", "sample", "sweep", "sweep", "fit", "fit", "export", "lm-eval")
    ]
    for words in COMMANDS:
        overrides, rest = cli._split_overrides(words)
        assert cli._parse(rest).command == words[0] and bool(overrides) == (words[0] == "train")


def test_the_commands_run_on_small_files(root, monkeypatch, capsys):
    """All that is quick: training is two steps long, and the records of the sweep are drawn from a law instead of trained."""
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    for words in COMMANDS:
        if words[0] not in QUICK:
            continue
        if words[:2] == ["sweep", "run"]:
            drawn_records(root / words[2])
            continue
        short = [f"--config.{name}={value}" for name, value in SHORT.items()] if words[0] == "train" else []
        assert cli.main([*words, *short]) == 0, words
    said = capsys.readouterr().out
    assert "input my_text: " in said and "autoregressive has the lowest loss at each of the 3 budgets." in said
    assert "masked at 1e+12 FLOPs" in said and (root / "runs/my_text/hf/config.json").exists()
    assert (root / "runs/my_text/fit/report.html").exists()


def drawn_records(folder: pathlib.Path) -> None:
    """A record of each planned run, its loss by a law: autoregressive ahead of all others."""
    for run in SweepPlan.read(folder).runs:
        law = SMALL["ar" if run.series == "autoregressive" else "masked"]
        loss = law["E"] + law["A"] / run.parameters ** law["a"] + law["B"] / run.tokens ** law["b"]
        values = {name: getattr(run, name) for name in ("flops", "flops_per_token", "unique_tokens", "epochs", "cell", "config")}
        values |= {"budget": run.cell["budget"], "non_embedding": run.non_embedding, "depth": run.config["model.depth"]}
        append_record(folder / "records.jsonl", record(run.id, run.series, run.parameters, run.tokens, loss, **values))


@pytest.mark.nightly
@pytest.mark.timeout(3600)
def test_every_command_as_it_stands(root):
    """Every block, in a shell, with a `dlmjax` and a `python` of this checkout; about 14 minutes on two cores shared with other work."""
    (root / "bin").mkdir()
    for name, words in {"dlmjax": f"{sys.executable} -m dlmjax", "python": sys.executable}.items():
        (root / "bin" / name).write_text(f'#!/bin/sh\nexec {words} "$@"\n')
        (root / "bin" / name).chmod(0o755)
    own = {"PATH": f"{root / 'bin'}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu", "HF_HOME": str(root / "hf")}
    said = ""
    for block in BLOCKS:
        found = subprocess.run(["sh", "-e", "-c", block], env={**os.environ, **own}, capture_output=True, text=True, timeout=3000)
        assert found.returncode == 0, f"{block}\n{found.stdout[-2000:]}\n{found.stderr[-2000:]}"
        said += found.stdout + found.stderr  # a sweep logs its progress on standard error
    assert "45 finished" in said and "bits_per_byte" in said
    assert (root / "runs/my_text/trace.html").exists() and (root / "runs/my_text/hf/load_dlm.py").exists()
