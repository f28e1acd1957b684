"""One judgement of a law: what it says, and that table, JSON, pictures, report and predictions follow it on sweeps that are too small."""

import html
import itertools
import json
import math

import numpy as np
import pytest

from dlmjax.cli.main import main
from dlmjax.fit import conclusion, fitness, plots, report
from dlmjax.fit.analysis import METHODS
from dlmjax.fit.pipeline import analyse_files
from dlmjax.fit.text import DETAILS, MARK, summary
from tests.cli.test_fit import write
from tests.fit.synthetic import additive_loss, forms, record, sweep

LAWS = {
    "masked": {"E": 1.3, "A": 70.0, "a": 0.34, "B": 420.0, "b": 0.365},
    "uniform": {"E": 1.35, "A": 75.0, "a": 0.34, "B": 450.0, "b": 0.36},
    "blocks": {"E": 1.3, "A": 72.0, "a": 0.34, "B": 430.0, "b": 0.365},
}


def small(seed, off=0.0, noise=0.03, budgets=(1e12, 4e12), sizes=4):
    """24 runs of three objectives that hardly differ, at two budgets, with so much noise that some laws end at a bound or miss their runs.

    off: decades from the middle of the sizes to the best one.
    """
    rng, found = np.random.default_rng(seed), []
    for name, law in LAWS.items():
        for flops in budgets:
            best, _, _ = forms.optimum(law, flops)
            for i, size in enumerate(best * 10 ** (off + np.linspace(-0.5, 0.5, sizes))):
                tokens = int(flops / 6 / size)
                loss = float(additive_loss(np.array([size]), np.array([tokens]), law)[0] * np.exp(noise * rng.standard_normal()))
                cell = {"budget": flops, "width": i, "seed": 0}
                more = {"budget": flops, "cell": cell, "non_embedding": int(size)}
                found.append(record(f"{name}-{flops:.0e}-{i}", name, int(size), tokens, loss, **more))
    return found


@pytest.fixture(scope="module", params=[(9, 0.0), (5, -0.6), (2, -0.6), (4, 0.6)], ids=str)
def fitted(request, tmp_path_factory):
    """Records, result and directory of a fit of such a sweep."""
    root = tmp_path_factory.mktemp("small")
    runs = small(*request.param)
    result = analyse_files([write(root / "records.jsonl", runs)], resamples=0, base="masked")
    result.write(root / "fit")
    return runs, result, root / "fit"


def pairs(result):
    """(ratio, the analyses of its two series)."""
    analyses = {found.objective: found.analyses["total"] for found in result.objectives}
    return [(ratio, analyses[ratio.base], analyses[ratio.other]) for ratio in result.ratios]


def test_laws_at_bounds_and_off_their_runs_are_in_doubt(fitted):
    runs, result, _ = fitted
    seen = set()
    for found in result.objectives:
        analysis = found.analyses["total"]
        for method, law in analysis.laws.items():
            reasons = analysis.doubts.get(method, ())
            assert (method in analysis.trusted) is not bool(reasons)
            seen |= {reason.partition(":")[0] for reason in reasons}
            bounds = analysis.parametric.boundaries if method == "parametric" else ()
            assert len([reason for reason in reasons if reason.startswith("boundary: ")]) == len(bounds)
            losses = {run.budget: [r.loss for r in runs if r.series == found.objective and r.budget == run.budget] for run in runs}
            off = any(abs(law.at(flops)["loss"] / min(each) - 1) > 0.055 for flops, each in losses.items())
            assert not off or any(reason.startswith("off its runs: ") for reason in reasons)
    assert seen  # each of these sweeps has such a law


def test_ratios_of_doubtful_laws_or_against_the_runs_are_in_doubt(fitted):
    runs, result, _ = fitted
    assert result.ratios
    for ratio, base, other in pairs(result):
        best = {
            name: min(run.loss for run in runs if run.series == name and abs(run.budget / ratio.flops - 1) < 0.01)
            for name in (ratio.base, ratio.other)
        }
        assert (ratio.base_loss, ratio.other_loss) == (best[ratio.base], best[ratio.other])
        against = (ratio.ratio < 1) != (best[ratio.other] < best[ratio.base])
        doubtful = any(ratio.method in analysis.doubts for analysis in (base, other))
        assert bool(ratio.doubts) is (against or doubtful)
        assert not against or f"{best[ratio.base]:.4f}" in ratio.doubts[-1]


def test_the_table_and_the_report_mark_them_and_say_why(fitted):
    _, result, _ = fitted
    said, page = summary(result), html.unescape(report.page(result, {plots.COMPARED: b""}))
    for found in result.objectives:
        analysis = found.analyses["total"]
        part = said.split(f"{found.objective}: 8 runs")[1].split("\n\n")[0]
        for method in analysis.laws:
            assert (f"\n    {method} {MARK}" in part) is (method in analysis.doubts)
        for method, reasons in analysis.doubts.items():
            assert all(f"{method}, {reason}; the law is not trusted" in text for text in (part, page) for reason in reasons)
    rows = said.split("compute at equal loss")[1:]
    for (base, other), part in zip(dict.fromkeys((r.base, r.other) for r in result.ratios), rows, strict=True):
        for flops in {ratio.flops for ratio in result.ratios}:
            (row,) = [line for line in part.splitlines() if line.strip().startswith(f"{flops:.3g} ")]
            among = [r for r in result.ratios if (r.base, r.other, r.flops) == (base, other, flops)]
            assert row.count(MARK) == sum(bool(ratio.doubts) for ratio in among)
            assert f"{among[0].base_loss:.4f}" in row and f"{among[0].other_loss:.4f}" in row
    for reason in itertools.chain.from_iterable(ratio.doubts for ratio in result.ratios):
        assert f"{MARK} {reason}" in said and f"{MARK} {reason}" in page


def test_no_picture_compares_by_them(fitted):
    _, result, _ = fitted
    drawn = list(itertools.chain.from_iterable(plots.drawn_ratios(result).values()))
    assert [ratio for ratio in result.ratios if ratio.within and not ratio.doubts] == sorted(drawn, key=result.ratios.index)
    analyses = {found.objective: found.analyses["total"] for found in result.objectives}
    for analysis in analyses.values():
        assert plots.compared_by(analysis) in {None, *analysis.trusted}
    if not drawn and any(ratio.within for ratio in result.ratios):
        assert any("is trusted" in line for line in conclusion.no_ratios(analyses, result))


def test_json_and_predictions_agree(fitted, tmp_path, capsys):
    _, result, root = fitted
    saved = json.loads((root / "fit.json").read_text())
    assert [row["doubts"] for row in saved["compute_ratios"]] == [list(ratio.doubts) for ratio in result.ratios]
    assert main(["fit", "predict", "--flops", "1e14", "--fit", str(root), "--json", str(tmp_path / "p.json")]) == 0
    said = capsys.readouterr().out
    predictions = {row["series"]: row for row in json.loads((tmp_path / "p.json").read_text())}
    for found in result.objectives:
        analysis = found.analyses["total"]
        doubts = {method: list(reasons) for method, reasons in analysis.doubts.items()}
        assert saved["series"][found.objective]["definitions"]["total"]["doubts"] == doubts
        assert predictions[found.objective]["doubts"] == doubts
        assert predictions[found.objective]["chosen"] == next(iter(analysis.trusted), "")
        assert all(f"{method}, {reason}; the law is not trusted" in said for method, each in doubts.items() for reason in each)
        if not analysis.trusted:
            flags = [
                "fit",
                "predict",
                "--flops",
                "1e14",
                "--fit",
                str(root),
                "--objective",
                found.objective,
                "--config",
                str(tmp_path / "c.py"),
            ]
            assert main(flags) == 2
            assert f"no law of objective '{found.objective}' is trusted" in capsys.readouterr().err


def test_laws_of_a_sweep_that_is_large_enough_are_trusted(tmp_path):
    result = analyse_files([write(tmp_path / "records.jsonl", sweep())], resamples=0)
    assert not any(analysis.doubts for found in result.objectives for analysis in found.analyses.values())
    said = summary(result)
    assert MARK not in said.partition(DETAILS[-1])[2].split("compute at equal loss")[0]
    assert not any(ratio.doubts for ratio in result.ratios)


class Frontier:
    """A law of best runs, N* = C^size, D* = C^tokens / 6, L* = loss(C)."""

    def __init__(self, size=0.5, tokens=0.5, loss=lambda flops: flops**-0.05):
        self.size, self.tokens, self.loss = size, tokens, loss

    def exponents(self):
        return {"size": self.size, "tokens": self.tokens}

    def at(self, flops):
        return {"size": flops**self.size, "tokens": flops**self.tokens / 6, "loss": self.loss(flops)}


@pytest.mark.parametrize(
    "law, words",
    [
        (Frontier(), None),
        (Frontier(size=-0.1, tokens=1.1), "falling: N*"),
        (Frontier(size=1.1, tokens=-0.1), "falling: D*"),
        (Frontier(loss=lambda flops: 0.2 + 1e-15 * flops), "rising"),
        (Frontier(loss=lambda flops: 0.9 * flops**-0.05), "off its runs: at .* below"),
        (Frontier(loss=lambda flops: 1.1 * flops**-0.05), "off its runs: at .* above"),
        (Frontier(loss=lambda flops: math.nan), "no numbers"),
        (Frontier(loss=lambda flops: math.inf), "no numbers"),
    ],
)
def test_each_kind_of_doubt(law, words):
    budgets = [(flops, flops**-0.05) for flops in (1e12, 1e13)]
    reasons = fitness.doubts(law, budgets)
    assert bool(reasons) is bool(words)
    if words:
        import re

        assert any(re.match(words, reason) for reason in reasons)
    assert fitness.doubts(Frontier(), budgets, ("a has no effect on any run",)) == ("boundary: a has no effect on any run",)


@pytest.mark.parametrize(
    "losses, words",
    [
        ([(3, 2, 1), (3, 2, 1), (3, 2, 1)], "edge: the best run has the largest size in 3 of 3 budgets; add larger sizes"),
        ([(1, 2, 3), (1, 2, 3), (2, 1, 3)], "edge: the best run has the smallest size in 2 of 3 budgets; add smaller sizes"),
        (
            [(1, 2, 3), (2, 1, 3), (3, 2, 1)],
            "edge: the best run has the smallest size in 1 of 3 budgets and the largest size in 1 of 3 budgets; "
            "add smaller and larger sizes",
        ),
        ([(2, 1, 3), (2, 1, 3), (3, 2, 1)], ""),
        ([(1, 2), (2, 1), (1, 2)], ""),  # two sizes: none lies between others
    ],
)
def test_best_sizes_at_the_ends_of_a_sweep_are_no_law(losses, words):
    size_R = np.array([float(10 * (s + 1)) for row in losses for s in range(len(row))])
    group_R = np.array([g for g, row in enumerate(losses) for _ in row])
    assert fitness.edge(size_R, np.array([float(loss) for row in losses for loss in row]), group_R) == words


@pytest.mark.parametrize("method", METHODS)
def test_a_fit_of_an_older_version_is_judged_by_its_boundaries(fitted, tmp_path, method):
    from dlmjax.fit.results import read

    _, result, root = fitted
    saved = read(root)
    definition = saved.record["series"]["masked"]["definitions"]["total"]
    definition.pop("doubts")
    definition["parametric"]["boundaries"] = ["a ended at its bound 3"]
    assert saved.doubts("masked", "total").get(method) == (("boundary: a ended at its bound 3",) if method == "parametric" else None)


@pytest.mark.parametrize(
    "ratio, base, other, against",
    [(0.5, 2.0, 2.1, True), (0.5, 2.1, 2.0, False), (2.0, 2.0, 2.1, False), (2.0, 2.1, 2.0, True), (math.inf, 2.1, 2.0, True)]
    + [(1.0, 2.0, 2.1, False), (0.5, math.nan, 2.0, False), (math.nan, 2.1, 2.0, False), (2.0, 2.0, 2.0, False)],
)
def test_a_ratio_agrees_in_sign_with_the_best_runs(ratio, base, other, against):
    assert fitness.contradiction(ratio, base, other) is against
