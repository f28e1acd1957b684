"""A plan that is too small for a law says so, by the bounds at which `fit` refuses."""

import itertools

import numpy as np
import pytest

from dlmjax.errors import InputError
from dlmjax.fit import enough, special
from dlmjax.fit.analysis import analyse
from dlmjax.fit.points import from_records
from dlmjax.sweep.manifest import PlannedRun
from tests.fit.synthetic import additive_loss, record


def planned(cell, parameters=1000, tokens=10_000, unique=10**9, series="masked") -> PlannedRun:
    counts = (parameters, parameters, parameters, 6.0 * parameters, 6.0 * parameters, 6.0 * parameters * tokens, tokens, unique)
    return PlannedRun("id", series, cell, {}, *counts, tokens / unique)


def isoflop(budgets, sizes, ratio=2.0, series="masked"):
    cells = itertools.product((1e12 * 3**i for i in range(budgets)), range(sizes))
    return [
        planned({"budget": flops, "width": i, "seed": 0}, int(1e5 * ratio**i), int(flops / 6e5 / ratio**i), series=series)
        for flops, i in cells
    ]


@pytest.mark.parametrize(
    "budgets, sizes, ratio, words",
    [
        (1, 2, 2.0, ["isoflop: 0 of 1 budgets", "parametric: 2 runs of 2 sizes", "1 budget: no envelope"]),
        (2, 4, 2.0, ["2 budgets: no envelope"]),
        (2, 3, 2.0, ["isoflop: 0 of 2 budgets have 4 sizes over a factor of 2", "2 budgets: no envelope"]),
        (3, 2, 2.0, ["isoflop: 0 of 3", "parametric: 6 runs of 2 sizes"]),
        (3, 4, 1.1, ["isoflop: 0 of 3"]),
        (3, 4, 2.0, []),
        (5, 7, 1.5, []),
    ],
)
def test_a_grid_of_budgets(budgets, sizes, ratio, words):
    reasons = enough.shortcomings(isoflop(budgets, sizes, ratio))
    assert len(reasons) == len(words) and all(reason.startswith(word) for reason, word in zip(reasons, words, strict=True))


@pytest.mark.parametrize("budgets, sizes", [*itertools.product((1, 2, 3), (1, 2, 3, 4, 5))])
def test_the_warning_is_what_the_fit_refuses(budgets, sizes):
    """Runs that lie on a law without noise have just the laws that no warning denies them."""
    runs, law = isoflop(budgets, sizes), {"E": 1.3, "A": 70.0, "a": 0.34, "B": 420.0, "b": 0.365}
    columns = [np.array([getattr(run, name) for run in runs], float) for name in ("parameters", "tokens")]
    losses = additive_loss(*columns, law)
    records = [
        record(f"r{i}", size=run.parameters, tokens=run.tokens, loss=float(loss), budget=run.cell["budget"], cell=run.cell)
        for i, (run, loss) in enumerate(zip(runs, losses, strict=True))
    ]
    try:
        refused = set(analyse(from_records(records)["masked"], resamples=0).refused)
    except InputError:
        refused = {"parametric", "isoflop", "envelope"}
    warned = " ".join(enough.shortcomings(runs))
    assert ("parametric:" in warned) is ("parametric" in refused)
    assert "isoflop:" not in warned or "isoflop" in refused
    assert "no envelope" not in warned or "envelope" in refused


def test_the_other_grids():
    repeated = [planned({"unique_tokens": u, "epochs": e, "width": 16}, tokens=u * e, unique=u) for u in (10**5, 10**6) for e in (1, 4, 16)]
    assert enough.shortcomings(repeated) == []
    assert "2 are needed" in enough.shortcomings(repeated[:3])[0] and "3 runs, 2 of which" in enough.shortcomings(repeated[:3])[1]
    assert special.REPETITION_OF_ONE_SIZE.names  # whose parameters are counted
    tuned = [
        planned({"width": 16, "tokens": float(d), "batch": b, "lr": lr}, tokens=d)
        for d in (10**6, 10**7)
        for b in (4, 8, 16)
        for lr in (1e-3, 2e-3, 4e-3)
    ]
    assert enough.shortcomings(tuned) == []
    assert [reason.split(":")[0] for reason in enough.shortcomings(tuned[:9])] == ["batch"]
    assert [reason.split(":")[0] for reason in enough.shortcomings(tuned[:3])] == ["learning rate", "batch"]
    grid = itertools.product((10**6, 10**7), ((1, 1), (1, 3), (3, 1)))
    mixed = [planned({"width": 16, "tokens": float(tokens), "weights": list(weights)}, tokens=tokens) for tokens, weights in grid]
    assert enough.shortcomings(mixed) == [] and enough.shortcomings(mixed[:3])[0].startswith("mixing: 3 runs of 3 mixtures and 1 numbers")


def test_series_with_the_same_shortcomings_share_a_line():
    runs = [*isoflop(1, 2), *isoflop(1, 2, series="ar"), *isoflop(3, 4, series="uniform")]
    (line,) = enough.warnings(runs)
    assert line.startswith("warning: too small for a law, masked, ar: isoflop: ")
    assert enough.warnings([]) == []
