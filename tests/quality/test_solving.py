"""From a file of puzzles to solved ones: prepared, learned by heart and solved; in place; and what does not fit is told."""

import json

import numpy as np
import pytest

from dlmjax.cli.main import main
from dlmjax.errors import InputError
from dlmjax.quality.puzzles import Puzzle, make_countdown
from dlmjax.quality.solving import puzzle_canvas, report, solve
from dlmjax.run import open_run
from dlmjax.sampling import SampleSettings, suppressed_ids
from dlmjax.train import train
from tests.cli.test_main import refused
from tests.quality.conftest import random_run
from tests.quality.test_puzzles import ANSWER, CLUE
from tests.test_train import tiny_config


@pytest.fixture(scope="module")
def learned(tmp_path_factory):
    """An autoregressive run that has seen three puzzles of two numbers until it knows them by heart, made by the commands themselves."""
    root = tmp_path_factory.mktemp("puzzles")
    assert main(["puzzles", "--kind", "countdown", "--numbers", "2", "--count", "3", "--output", str(root / "p.txt")]) == 0
    prepare = ["prepare", "--input", str(root / "p.txt"), "--documents", "line", "--output", str(root / "data")]
    assert main([*prepare, "--workers", "1"]) == 0
    quick = {"train__steps": 80, "log__evaluate": 0, "log__sample": 0, "checkpoint__every": 80, "train__ema": 0.5, "log__every": 80}
    learns = {"process__name": "autoregressive", "optimizer__name": "muon", "optimizer__lr": 0.02, "model__depth": 1}
    config = tiny_config(root / "data", data__length=24, data__packing="documents", **quick, **learns)
    assert train(config, str(root / "run"))["finished"]
    return root


def test_what_was_learned_is_solved(learned, tmp_path):
    flags = ["solve", "--workdir", learned / "run", "--input", learned / "p.txt", "--json", tmp_path / "r.json", "--batch", "2"]
    assert main([str(flag) for flag in flags]) == 0
    found = json.loads((tmp_path / "r.json").read_text())
    assert (found["puzzle"], found["puzzles"], found["solved"], found["solved_rate"]) == ("countdown", 3, 3, 1.0)
    assert found["stderr_solved_rate"] == 0 and found["solved_rate_95"][0] < 0.5, "three right ones prove little"
    assert all(example["answer"] == example["reference"] for example in found["examples"])
    assert found["settings"]["temperature"] == 0 and found["settings"]["rule"] == "left_to_right"
    assert found["calls"] == 11 + 1 + 1, "the clue in one call, then a call a token, the end of document too"


def test_others_are_not(learned):
    """Puzzles of another split that were never seen: the answers are the learned ones, and are not taken."""
    run = open_run(str(learned / "run"))
    settings = SampleSettings(
        rule="left_to_right", temperature=0.0, suppressed_ids=suppressed_ids(run.experiment.tokenizer, run.experiment.process.vocab)
    )
    puzzles = make_countdown(20, numbers=2, split="test")
    found = solve(run, puzzles, settings, batch=8)
    assert sum(found.solved) < 10 and len(found.answers) == 20
    rate = report(run, puzzles, found, in_place=False, seed=0)
    expected = np.sqrt(rate["solved_rate"] * (1 - rate["solved_rate"]) / 20)
    assert rate["stderr_solved_rate"] == pytest.approx(expected) and rate["partly_right"] <= 1


def test_a_clue_in_place_is_frozen_where_it_is_given():
    run = random_run(82)
    canvas = puzzle_canvas(run, [Puzzle(CLUE, ANSWER)] * 2, in_place=True)
    assert canvas.length == 82 and not canvas.condition_mask_BL[:, -1].any()
    assert [chr(token) for token in canvas.tokens_BL[0][canvas.condition_mask_BL[0]]] == [cell for cell in CLUE if cell != "0"]
    easier = "".join(given if given != "0" or i % 2 else ANSWER[i] for i, given in enumerate(CLUE))
    suppressed = suppressed_ids(run.experiment.tokenizer, run.experiment.process.vocab)
    settings = SampleSettings(rule="threshold(value=0.999, on=drawn, by=margin)", temperature=0.0, suppressed_ids=suppressed)
    found = solve(run, [Puzzle(clue, ANSWER) for clue in (CLUE, easier, CLUE)], settings, in_place=True, batch=2)
    assert found.solved == (False,) * 3
    for answer, clue, calls in zip(found.answers, (CLUE, easier, CLUE), found.calls_each, strict=True):
        assert all(made == given for made, given in zip(answer, clue, strict=False) if given != "0")
        assert calls == clue.count("0") + 1, "an untrained network is sure of nothing: a call for each cell, and one for the end"
    assert found.calls == CLUE.count("0") + 1


def test_a_masked_run_answers_after_the_clue(masked_run):
    run, puzzles = masked_run, make_countdown(3, numbers=2)
    settings = SampleSettings(
        steps=2, rule="confidence", temperature=0.0, suppressed_ids=suppressed_ids(run.experiment.tokenizer, run.experiment.process.vocab)
    )
    found = solve(run, puzzles, settings, batch=2)
    assert found.calls == 2 and len(found.solved) == 3 and not any(found.solved)
    with pytest.raises(InputError, match="have no cells"):
        solve(run, puzzles, settings, in_place=True)


def test_what_does_not_fit_is_refused(learned, tmp_path, capsys):
    four = tmp_path / "four.txt"
    assert main(["puzzles", "--kind", "countdown", "--numbers", "4", "--count", "2", "--output", str(four)]) == 0
    capsys.readouterr()
    work = ["solve", "--workdir", learned / "run", "--input"]
    assert "a puzzle takes 56 tokens" in refused(capsys, *work, four)
    assert "cannot be read" in refused(capsys, *work, tmp_path / "none")
    made = ["puzzles", "--kind", "sudoku", "--count", "2", "--givens", "50", "--output", tmp_path / "s.txt"]
    assert main([str(flag) for flag in made]) == 0
    assert [sum(cell != "0" for cell in line.split("=")[0]) for line in (tmp_path / "s.txt").read_text().splitlines()] == [50, 50]
    countdown = ["puzzles", "--kind", "countdown", "--givens", "3", "--output", tmp_path / "s.txt"]
    assert "countdown puzzles are generated" in refused(capsys, *countdown)
    (tmp_path / "t.csv").write_bytes(b"\xff\xfe")
    sudoku = ["puzzles", "--kind", "sudoku", "--input", tmp_path / "t.csv", "--output", tmp_path / "s.txt"]
    assert "cannot be read as a table" in refused(capsys, *sudoku)
    (tmp_path / "t.csv").write_text(f"puzzle,solution\n{CLUE},{ANSWER}\n")
    assert main([str(flag) for flag in [*sudoku, "--givens", "70", "--answers-only"]]) == 0
    assert (tmp_path / "s.txt").read_text() == ANSWER + "\n"
