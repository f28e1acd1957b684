"""Where the wall time goes: made-up lives whose shares are known, and a real clock."""

import json
import time

import pytest

from dlmjax.errors import InputError
from dlmjax.training.goodput import CAUSES, FILE, Goodput


def life(began, ended, first, last, **seconds):
    return {"began": began, "ended": ended, "first": first, "last": last, "seconds": {**dict.fromkeys(CAUSES, 0.0), **seconds}}


def test_lost_steps_and_the_time_between_starts_are_no_goodput(tmp_path):
    """100 s of life, 20 of them start-up, steps 0 to 80; gone on from step 60 after 50 s of silence: a quarter of 80 s is lost."""
    now = time.time()
    (tmp_path / FILE).write_text(json.dumps({"starts": [life(now - 150, now - 50, 0, 80, start=20.0)]}))
    goodput = Goodput(tmp_path, step=60, began=now)
    found = goodput.shares()
    assert found["lost"] == pytest.approx(20.0) and found["down"] == pytest.approx(50.0)
    assert found["productive"] == pytest.approx(60.0, abs=0.5) and found["wall"] == pytest.approx(150.0, abs=0.5)
    assert found["goodput"] == pytest.approx(60 / 150, abs=0.01) and found["starts"] == 2
    accounted = found["productive"] + found["lost"] + found["down"] + sum(found[cause] for cause in CAUSES)
    assert accounted == pytest.approx(found["wall"], abs=0.1)


def test_the_clock_of_one_life(tmp_path):
    goodput = Goodput(tmp_path, step=5, began=time.time() - 1.0)
    with goodput.spent("data"):
        time.sleep(0.05)
    goodput.stepped(6)
    with goodput.spent("checkpoint"):
        time.sleep(0.03)
    time.sleep(0.1)
    goodput.stepped(7)
    found = goodput.shares()
    # A busy machine sleeps longer, so each is bounded below, and together they are the whole.
    assert found["data"] >= 0.05 and found["checkpoint"] >= 0.03 and found["start"] >= 1.0 and found["productive"] >= 0.1
    accounted = found["productive"] + sum(found[cause] for cause in CAUSES)
    assert accounted == pytest.approx(found["wall"], abs=1e-3)
    goodput.write()
    assert json.loads((tmp_path / FILE).read_text())["starts"][0]["last"] == 7
    assert "1 start)" in goodput.summary() and "goodput" in goodput.summary()


def test_a_damaged_account_is_begun_anew(tmp_path):
    (tmp_path / FILE).write_text('{"starts": [')
    assert Goodput(tmp_path, 0, time.time()).shares()["starts"] == 1


@pytest.mark.parametrize("jump", [-1e6, 1e6])
def test_a_clock_that_is_set_within_a_start_changes_nothing(tmp_path, monkeypatch, jump):
    goodput, now = Goodput(tmp_path, 0, time.time() - 1.0), time.time
    goodput.stepped(1)
    monkeypatch.setattr(time, "time", lambda: now() + jump)
    time.sleep(0.05)
    goodput.stepped(2)
    found = goodput.shares()
    assert 1.05 <= found["wall"] < 60 and 0.05 <= found["productive"] < 59 and 0 <= found["goodput"] <= 1
    assert "set back" not in goodput.summary()


@pytest.mark.parametrize("ended", [10.0, -1e9])
def test_a_clock_that_is_set_back_between_starts_gives_no_more_than_all(tmp_path, ended):
    """The next start begins before this one did by the time of day, or this one ended before it began (as older accounts may say)."""
    now = time.time()
    (tmp_path / FILE).write_text(json.dumps({"starts": [life(now + 1e6, now + 1e6 + ended, 0, 50, start=2.0)]}))
    goodput = Goodput(tmp_path, 50, now - 1.0)
    goodput.stepped(51)
    found = goodput.shares()
    if ended > 0:
        assert found["down"] == 0 and found["wall"] == pytest.approx(11, abs=1)
    assert 0 <= found["goodput"] <= 1 and ("the clock was set back" in goodput.summary()) == (ended > 0)


@pytest.mark.parametrize("value", ['"long"', "null", "NaN", "[]"])
def test_an_account_of_no_numbers_is_begun_anew(tmp_path, value):
    written = json.dumps({"starts": [life(1.0, 2.0, 0, 50)]})
    (tmp_path / FILE).write_text(written.replace("2.0", value))
    assert Goodput(tmp_path, 0, time.time()).shares()["starts"] == 1


def test_a_folder_with_the_name_of_the_counters_is_refused(tmp_path):
    (tmp_path / FILE).mkdir()
    with pytest.raises(InputError, match="goodput.json is a folder; .*move the folder away"):
        Goodput(tmp_path, step=0, began=time.time())
