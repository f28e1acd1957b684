"""Stops: when they end a row, by their definitions; what the bounded one costs, by enumeration; that rows are apart."""

import dataclasses
import sys
import types

import jax.numpy as jnp
import numpy as np
import pytest

from dlmjax.errors import InputError
from dlmjax.sampling.sampler import Sampler
from dlmjax.sampling.settings import SampleSettings
from dlmjax.sampling.stops import STOPS, Stop, import_stop, make_stop
from tests.sampling.test_rules import CANVAS, LAW, STATES, chosen, price, view_of


def ends(text: str, p_BLK, masked_BL=None, memory=None, start_BL=None):
    stop, view = make_stop(text), view_of(p_BLK, masked_BL, start_BL=start_BL)
    end_B, memory = stop.done(view, stop.begin(view.masked_BL.shape) if memory is None else memory)
    return np.asarray(end_B).tolist(), memory


def gap(nats: float) -> list[float]:
    """Two probabilities whose logits differ by that much."""
    return [1 / (1 + np.exp(-nats)), 1 / (1 + np.exp(nats))]


@pytest.mark.parametrize("bound", [0.1, 0.5])
def test_an_exit_costs_at_most_its_bound(bound):
    """One token a step until the rest costs at most `bound`: the law of the text up to that."""
    p_SLK = np.exp(np.asarray(LAW.denoise(jnp.asarray(STATES)), np.float64))[..., :3]
    one_SL = chosen("entropy(count=1)", p_SLK, masked_BL=STATES == 3)
    end_S = np.asarray(ends(f"exit(bound={bound})", p_SLK, STATES == 3)[0])
    kl, steps, _ = price(np.where(end_S[:, None], STATES == 3, one_SL))
    assert 0 < kl <= bound and 1 <= steps < 4


def test_prophet_reads_the_gap_of_its_third():
    p_BLK = np.array([[gap(6.0)] * 6, [gap(6.0)] * 6])
    some_BL = np.array([[1] * 6, [0, 0, 0, 1, 1, 1]], bool)
    assert ends("prophet", p_BLK, some_BL, start_BL=np.ones((2, 6), bool))[0] == [False, True], "7.5 in the first third, 5 in the second"
    p_BLK[:, :3] = gap(0.1)
    assert ends("prophet(region=3, early=5)", p_BLK)[0] == [True, True] and ends("prophet(early=5)", p_BLK)[0] == [False, False]


@pytest.mark.parametrize(("text", "gaps"), [("sched", (7.5, 5.0)), ("sched(curve=linear, high=8, low=2)", (8.0, 5.0))])
def test_sched_compares_with_a_falling_threshold_and_waits_for_a_second_look(text, gaps):
    start_BL, half_BL = np.ones((1, 4), bool), np.array([[0, 0, 1, 1]], bool)
    for masked_BL, least in zip((start_BL, half_BL), gaps, strict=True):
        for nats, expected in ((least - 0.1, False), (least + 0.1, True)):
            p_BLK = np.array([[gap(nats)] * 4])
            first, memory = ends(text, p_BLK, masked_BL, start_BL=start_BL)
            again, _ = ends(text, p_BLK, masked_BL, memory, start_BL=start_BL)
            changed, _ = ends(text, p_BLK[..., ::-1], masked_BL, memory, start_BL=start_BL)
            assert (first, again, changed) == ([False], [expected], [False])


def test_stable_counts_equal_canvases_of_each_row():
    p_BLK, memory, found = np.array([[gap(9.0)] * 3, [gap(1.0)] * 3]), None, []
    for turned in (False, False, True, False, False, False):
        end_B, memory = ends("stable(count=2)", p_BLK[..., ::-1] if turned else p_BLK, memory=memory)
        found.append(end_B)
    assert [row[0] for row in found] == [False, False, False, False, False, True], "the second row is not sure"
    assert not any(row[1] for row in found)


@pytest.mark.parametrize("text", ["exit(bound=2)", "sched(high=1, low=0.5)", pytest.param("stable(entropy=2)", marks=pytest.mark.slow)])
def test_a_row_alone_ends_as_among_others(text):
    settings = SampleSettings(rule="entropy(count=1)", stop=text, suppressed_ids=(3,))
    sampler = Sampler(LAW.process(), LAW.bind, settings)
    both = sampler.sample(jnp.float32(1), CANVAS, seed=4)
    two = sampler.sample(jnp.float32(1), type(CANVAS)(CANVAS.tokens_BL[:2], CANVAS.condition_mask_BL[:2], CANVAS.start_BL[:2]), seed=4)
    for field in ("tokens_BL", "fixed_BL", "calls_B", "exit_nats_B"):
        np.testing.assert_array_equal(getattr(two, field), getattr(both, field)[:2])
    assert (both.tokens_BL < 3).all() and both.calls_B.min() < 4 and both.exit_nats_B.max() > 0
    assert both.to_json()["exit_nats"] == both.exit_nats_B.tolist() and SampleSettings.from_json(settings.to_json()) == settings


@dataclasses.dataclass(frozen=True)
class Half(Stop):
    """A stop of one's own: where a share of the masked positions is revealed."""

    share: float = 0.5

    name = "half"
    source = "this test"

    def done(self, view, memory):
        return view.masked_BL.sum(axis=1) <= (1 - self.share) * view.start_masked_BL.sum(axis=1), memory


def test_a_stop_of_ones_own_by_its_dotted_name(tmp_path, monkeypatch):
    """It samples, is recorded, is data in a record, and is imported where a person types it."""
    text = f"{__name__}.Half(share=0.5)"
    samples = Sampler(LAW.process(), LAW.bind, SampleSettings(rule="left_to_right", stop=text)).sample(jnp.float32(1), CANVAS, seed=1)
    assert samples.evaluations < CANVAS.length and samples.to_json()["settings"]["stop"] == text
    (tmp_path / "my_own_stops.py").write_text(f"from {__name__} import Half\nclass Mine(Half):\n    pass\n", encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    record = SampleSettings(rule="margin").to_json() | {"stop": "my_own_stops.Mine"}
    with pytest.raises(InputError, match="stop 'my_own_stops.Mine' is not in an imported module"):
        SampleSettings.from_json(record)
    assert "my_own_stops" not in sys.modules
    assert type(import_stop("my_own_stops.Mine")).__name__ == "Mine" and SampleSettings.from_json(record).stop == "my_own_stops.Mine"
    monkeypatch.setitem(sys.modules, "my_own_stops", types.ModuleType("my_own_stops"))
    with pytest.raises(InputError, match="cannot be imported"):
        import_stop("no_such_module.Mine")
    with pytest.raises(InputError, match="not a class that inherits dlmjax.sampling.stops.Stop"):
        make_stop("tests.sampling.test_rules.Evens")


@pytest.mark.parametrize("name", STOPS)
def test_every_stop_has_a_source_and_only_exit_draws(name):
    stop = make_stop(name)
    assert stop.source and stop.draws == (name == "exit")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"stop": "exit"}, "requires a rule"),
        ({"rule": "margin", "stop": "exot"}, "did you mean 'exit'"),
        ({"rule": "margin", "stop": "exit(bound=-1)"}, "bound is -1"),
        ({"rule": "margin", "stop": "sched(curve=flat)"}, "curve is 'flat'"),
        ({"rule": "margin", "stop": "stable(count=0)"}, "count is 0"),
        ({"rule": "random", "stop": "sched", "regex": "a+"}, "conflicts with regex"),
        ({"rule": "margin", "stop": "end"}, "stop end requires a sampler of blocks"),
    ],
)
def test_a_bad_stop_is_one_line(settings, message):
    with pytest.raises(InputError, match=message) as refusal:
        SampleSettings(**settings)
    assert "\n" not in str(refusal.value)
