"""What a person sees of a long command, on a terminal and elsewhere."""

import io
import sys
import time

import pytest

from dlmjax.progress import Progress
from dlmjax.training import TrainingProgress


def test_lines_where_there_is_no_terminal_and_nothing_where_it_is_not_shown(capsys, monkeypatch):
    monkeypatch.setattr("dlmjax.progress.SECONDS_BETWEEN_LINES", 0.0)
    with Progress(1000, "preparing", "B") as progress:
        progress.reach(0)
        progress.reach(500)
        progress.reach(400)
    error = capsys.readouterr().err
    assert "preparing: 500 of 1.00kB" in error and "left" in error
    with Progress(1000, "preparing", "B", show=False) as progress:
        progress.reach(500)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("of_data", [False, True])
def test_the_bar_of_a_terminal_leaves_the_first_step_out(monkeypatch, of_data):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    now = [0.0]
    monkeypatch.setattr(sys, "stderr", Terminal())
    bar = Progress(100, "prepare", "B") if of_data else TrainingProgress(total=100)
    bar._bar._time, bar._bar.start_t, bar._bar.last_print_t = (lambda: now[0]), 0.0, 0.0
    for step in range(1, 41):
        now[0] += 3600 if step == 1 else 1
        bar.reach(step) if of_data else bar.update()
    found = bar._bar.format_dict
    assert found["elapsed"] == 39 and found["n"] - found["initial"] == 39 and found["rate"] == pytest.approx(1, rel=0.01)
    bar._bar.close()


def test_lines_about_data_wait_for_a_second_count(capsys, monkeypatch):
    """Half an hour until the first count: start-up, and what an earlier call had done."""
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    with Progress(1000, "preparing", "B", show=None) as progress:
        now[0] += 1800
        progress.reach(400)
        for count in range(401, 481):
            now[0] += 1
            progress.reach(count)
    assert capsys.readouterr().err.splitlines() == [
        "preparing: 400 of 1.00kB",
        "preparing: 430 of 1.00kB, 09:30 left",
        "preparing: 460 of 1.00kB, 09:00 left",
    ]
