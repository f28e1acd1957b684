"""Levels of the steps: exact ends, no step from a level to itself, as many calls as steps."""

import pathlib
import re

import numpy as np
import pytest

import dlmjax
from benchmarks.sampling_grids import error
from dlmjax.cli import run_flags
from dlmjax.diffusion import FlowMatching, Hybrid, Masked, Mixed, Uniform
from dlmjax.diffusion.oracle import enumeration as oracle
from dlmjax.errors import InputError
from dlmjax.sampling.canvas import blank_canvas
from dlmjax.sampling.grids import GRIDS, make_grid
from dlmjax.sampling.sampler import Sampler
from dlmjax.sampling.settings import SampleSettings
from tests.sampling.toy import Law

# Numbers of steps for which `arange(0, 1, 1 / N)` has one entry too many are among them.
STEPS = (1, 2, 3, 7, 49, 98, 103, 1000)


@pytest.mark.parametrize(
    "text", ["uniform", "cosine", "shifted(alpha=3)", "shifted(alpha=0.3)", "power(exponent=2)", "power(exponent=0.5)"]
)
def test_a_grid_falls_from_exactly_one_to_exactly_zero_in_as_many_steps_as_asked(text):
    for steps in STEPS:
        levels_N = make_grid(text).times(steps).astype(np.float32)
        assert levels_N.shape == (steps + 1,) and levels_N[0] == 1 and levels_N[-1] == 0
        assert (np.diff(levels_N) < 0).all()


def test_where_the_levels_are():
    assert make_grid("uniform").times(4).tolist() == [1, 0.75, 0.5, 0.25, 0]
    assert make_grid("power(exponent=2)").times(4).tolist() == [1, 0.5625, 0.25, 0.0625, 0]
    np.testing.assert_allclose(make_grid("cosine").times(3), [1, np.sqrt(3) / 2, 0.5, 0])
    np.testing.assert_allclose(make_grid("shifted(alpha=3)").times(2), [1, 0.75, 0])
    assert make_grid("shifted(alpha=1)").times(4).tolist() == [1, 0.75, 0.5, 0.25, 0]
    assert make_grid("listed(points=(1, 0.2, 0))").times(2).tolist() == [1, 0.2, 0]
    np.testing.assert_allclose(make_grid("hold(at=0.5, share=0.5)").times(8), [1, 0.75, 0.5, 0.5, 0.5, 0.5, 0.5, 0.25, 0])
    for steps in STEPS[2:]:
        held = make_grid("hold(at=0.1, share=0.4)").times(steps)
        assert held.shape == (steps + 1,) and held[0] == 1 and held[-1] == 0 and (np.diff(held) <= 0).all()
        assert (np.diff(held) == 0).sum() == int(0.4 * steps)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("unifrom", "did you mean 'uniform'"),
        ("shifted(alfa=3)", "has no value 'alfa'; did you mean 'alpha'"),
        ("shifted(alpha=0)", "alpha is 0"),
        ("shifted(alpha=1e999)", "alpha requires a number, not inf"),
        ("power(exponent=0)", "exponent is 0"),
        ("power(exponent=9)", "exponent is 9"),
        ("shifted(alpha='x')", "shifted"),
        ("shifted(3)", "cannot read grid"),
        ("a b", "cannot read grid"),
        ("__import__('os')", "cannot read grid"),
        ("shifted(alpha=print(1))", "cannot read grid"),
        ("listed(points=(1, 0.5))", "must fall from 1 to 0"),
        ("listed(points=(1, 0.5, 0.5, 0))", "must fall"),
        ("hold(at=1.0)", "hold"),
    ],
)
def test_a_bad_grid_is_refused(text, message):
    with pytest.raises(InputError, match=message):
        make_grid(text)


def test_the_page_and_the_help_name_every_grid():
    for text in (pathlib.Path(dlmjax.__file__).parents[1] / "docs" / "sampling.md", pathlib.Path(run_flags.__file__)):
        words = set(re.findall(r"\w+", text.read_text(encoding="utf-8").partition("--grid")[2][:600]))
        assert words >= GRIDS.keys(), text


def test_a_grid_that_does_not_fit_the_steps():
    with pytest.raises(InputError, match="set steps to 2, not 64"):
        SampleSettings(grid="listed(points=(1, 0.4, 0))")
    with pytest.raises(InputError, match="leave 1"):
        SampleSettings(grid="hold(share=0.5)", steps=2)


@pytest.mark.parametrize("grid", ["cosine", "shifted(alpha=3)", "listed(points=(1, 0.9, 0.3, 0.1, 0))"])
def test_calls_and_clock_of_a_run(grid):
    """Each step is one call of the network, the clock of the states is the grid, and it is recorded."""
    law = Law()
    settings = SampleSettings(steps=4, grid=grid)
    states = list(Sampler(law.process(), law.bind, settings).states(1.0, blank_canvas(3, 2)))
    np.testing.assert_allclose([s.time for s in states], make_grid(grid).times(4), atol=1e-7)
    assert [s.calls for s in states] == [0, 1, 2, 3, 4] and states[-1].time == 0
    assert settings.to_json()["grid"] == grid and SampleSettings.from_json(settings.to_json()) == settings


IDS = {"vocab": 5, "mask_id": 4, "excluded": (3,)}
OWN = [
    (Masked(**IDS), "uniform"),
    (Hybrid(p_uniform=0.2, **IDS), "power(exponent=2)"),
    (Mixed(**IDS), "power(exponent=2)"),
    (Uniform(**IDS), "power(exponent=2)"),
    (FlowMatching(noise="uniform", **IDS), "power(exponent=2)"),
]


@pytest.mark.parametrize(("process", "own"), OWN, ids=lambda value: getattr(value, "name", None))
def test_a_process_takes_the_grid_that_errs_least(process, own):
    """KL(text || sampled) of sixteen steps by enumeration, on a toy law: the process's own grid against equal steps and quadratic ones."""
    assert process.capabilities.sampling_grid == own
    law = oracle.JointDistribution.random(3, 2, seed=5, sharpness=1.5)
    errors = {grid: error(process, law, grid, 16) for grid in ("uniform", "power(exponent=2)")}
    other = next(grid for grid in errors if grid != own)
    assert 0 < errors[own] < 0.8 * errors[other]


def test_auto_is_recorded_as_the_grid_that_it_stands_for():
    bind = Law().bind
    for process, own in OWN:
        assert Sampler(process, bind, SampleSettings()).settings.grid == own
    hybrid = OWN[1][0]
    for settings in ({"sweep": 2}, {"rule": "random"}):
        assert Sampler(hybrid, bind, SampleSettings(**settings)).settings.grid == "uniform"
    assert Sampler(hybrid, bind, SampleSettings(grid="cosine")).settings.grid == "cosine"
