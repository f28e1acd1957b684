"""`dlmjax fit` and `dlmjax fit predict` from the command line: what they write, print and refuse."""

import csv
import dataclasses
import itertools
import json
import math
import re
import shutil

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.text import Text

from dlmjax import config as config_lib
from dlmjax.cli.main import main
from dlmjax.fit import conclusion, forms, plots
from dlmjax.fit.pipeline import analyse_files
from dlmjax.fit.points import from_records
from dlmjax.fit.results import ObjectiveFit, Result, file_names
from dlmjax.fit.text import COUNTED, DETAILS
from dlmjax.plan.hardware import Vocabulary, alone
from dlmjax.sweep import counts
from dlmjax.sweep.records import append_record
from tests.fit.synthetic import LAW, SMALL, additive_loss, isoflop_grid, record, sweep


def write(path, records):
    for each in records:
        append_record(path, each)
    return str(path)


@pytest.fixture(scope="module")
def fitted(tmp_path_factory):
    """A sweep of two objectives, one run of which diverged, fitted once with pictures."""
    root = tmp_path_factory.mktemp("fit")
    leaves = {name: list(value) if isinstance(value, tuple) else value for name, value in config_lib.leaves(config_lib.default()).items()}
    leaves |= {"data.length": 128}
    runs = [*sweep(config=leaves), record("lost", "ar", status="diverged", loss=None)]
    path = write(root / "records.jsonl", runs)
    assert main(["fit", path, "--output", str(root / "out"), "--resamples", "100"]) == 0
    return root


def test_everything_is_in_the_json(fitted):
    found = json.loads((fitted / "out" / "fit.json").read_text())
    assert found["format"] == "dlmjax fit" and set(found["series"]) == {"ar", "masked"}
    assert found["series"]["ar"]["left_out"] == {"diverged": 1}
    for name, series in found["series"].items():
        assert set(series["definitions"]) == {"total", "non_embedding"}
        total = series["definitions"]["total"]
        assert set(total["laws"]) == {"parametric", "isoflop", "envelope"}
        true = SMALL[name]["b"] / (SMALL[name]["a"] + SMALL[name]["b"])
        for method in ("parametric", "isoflop"):
            exponent = total["exponents"][method]["size"]
            assert exponent["estimate"] == pytest.approx(true, abs=0.06)
            for blocks in ("runs", "budgets"):
                low, high = exponent[blocks]["95"]
                assert low < exponent["estimate"] < high and exponent[blocks]["resamples"] == 100
        assert set(total["held_out"]) == {"parametric", "isoflop", "envelope"}
        assert total["held_out"]["parametric"]["mean_abs_error"] < 0.02
        assert total["compute"]["k"] == pytest.approx(6.0, rel=1e-4) and total["compute"]["rho"] == 1.0
        assert len(str(total["laws"]["parametric"]["A"])) > 12  # full precision
        assert series["repetition"]["refused"] and series["joint"]["refused"] and series["tuning"] is None
    assert {ratio["base"] for ratio in found["compute_ratios"]} == {"ar"}


def test_points_and_pictures_lie_beside_it(fitted):
    with open(fitted / "out" / "points.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 40 and all(row["used"] == "1" for row in rows)
    assert max(abs(float(row["fitted_loss"]) / float(row["loss"]) - 1) for row in rows) < 0.02
    kinds = ("isoflop", "envelope", "best", "residuals")
    names = {f"{kind}_{series}.png" for kind in kinds for series in ("ar", "masked")} | {"objectives.png"}
    for name in names:
        assert (fitted / "out" / name).read_bytes().startswith(b"\x89PNG")
    page = (fitted / "out" / "report.html").read_text()
    assert page.count("data:image/png;base64,") == len(names)
    assert not re.search(r"(src|href)='?(?!data:)", page.replace("src='data:", ""))


def test_the_same_runs_and_seed_give_the_same_bytes(fitted, tmp_path):
    assert main(["fit", str(fitted / "records.jsonl"), "--output", str(tmp_path), "--resamples", "100", "--no-plots"]) == 0
    assert (tmp_path / "fit.json").read_bytes() == (fitted / "out" / "fit.json").read_bytes()
    assert not (tmp_path / "report.html").exists()


def test_a_prediction_has_intervals_and_a_config_that_loads(fitted, tmp_path, capsys):
    flags = ["--fit", str(fitted / "out"), "--series", "masked", "--json", str(tmp_path / "p.json")]
    assert main(["fit", "predict", "--flops", "1e15", *flags, "--config", str(tmp_path / "next.py")]) == 0
    said = capsys.readouterr().out
    assert "masked at 1e+15 FLOPs" in said and "95 %, budgets" in said and "published exponents 0.82 and 0.34" in said
    (found,) = json.loads((tmp_path / "p.json").read_text())
    size, tokens, loss = forms.optimum(SMALL["masked"], 1e15)
    best = found["numbers"]["parametric"]
    assert best["size"] == pytest.approx(size, rel=0.3) and best["loss"] == pytest.approx(loss, rel=0.03)
    assert best["size"] * best["tokens"] * 6 == pytest.approx(1e15, rel=1e-3)
    for key in ("size", "tokens", "loss", "batch", "lr", "steps"):
        low, high = found["intervals"]["parametric"][key]["runs"]["95"]
        assert low < best[key] < high
    # The batch follows the tokens from the reference run, the learning rate the batch.
    reference = json.loads((fitted / "out" / "fit.json").read_text())["series"]["masked"]["reference"]
    assert best["batch"] == pytest.approx(64 * 128 * (best["tokens"] / reference["tokens"]) ** 0.82)
    assert best["lr"] == pytest.approx(1e-3 * (best["batch"] / 64 / 128) ** 0.34)

    config = config_lib.load(str(tmp_path / "next.py"))
    shape = {name: config.model[name] for name in ("depth", "width", "heads", "head_dim")}
    assert shape["heads"] * shape["head_dim"] == shape["width"]
    # The objective's own FLOPs per token, counted, not the 6 N of these records.
    counted = counts.count(alone(config, Vocabulary(28)))
    tokens = config.train.steps * config.data.batch * config.data.length
    assert counted.flops_per_token * tokens == pytest.approx(1e15, rel=0.01)
    assert counted.flops_per_token != pytest.approx(6 * counted.parameters, rel=0.03)
    assert counted.parameters == pytest.approx(best["size"], rel=0.5)
    assert math.log2(config.data.batch).is_integer()
    # Of another length than the reference run, with warm-up and averaged weights over the same share of it; watched and saved on the way.
    default = config_lib.default()
    share = config.train.steps / default.train.steps
    assert config.optimizer.warmup == max(round(default.optimizer.warmup * share), 1)
    assert 1 - config.train.ema == pytest.approx((1 - default.train.ema) / share)
    assert config.checkpoint.every == config.log.evaluate == config.log.sample == max(config.train.steps // 20, 1)


def test_a_table_is_refitted_to_the_law_behind_it(tmp_path, capsys):
    """240 runs drawn, with 0.3 % noise, from the published refit of Chinchilla (the public points themselves carry no licence)."""
    law = forms.CHINCHILLA_REFIT
    size_R, tokens_R, flops_R, _ = isoflop_grid(budgets=16, sizes=15, decades=0.8, law=law)
    loss_R = additive_loss(size_R, tokens_R, law, noise=0.003)
    lines = ["Model Size,Training FLOP,loss", *(f"{n!r},{c!r},{y!r}" for n, c, y in zip(size_R.tolist(), flops_R, loss_R, strict=True))]
    (tmp_path / "chinchilla.csv").write_text("\n".join(lines).replace("np.float64(", "").replace(")", "") + "\n")
    flags = ["--output", str(tmp_path / "out"), "--resamples", "100", "--no-plots"]
    assert main(["fit", "--csv", str(tmp_path / "chinchilla.csv"), *flags]) == 0
    assert "'Training FLOP' is read as flops" in capsys.readouterr().out
    parameters = json.loads((tmp_path / "out" / "fit.json").read_text())["series"]["chinchilla"]["definitions"]["total"]["parametric"]
    for name in ("E", "a", "b"):
        low, high = parameters["parameters"][name]["runs"]["95"]
        width = high - low
        assert low - width / 2 < law[name] < high + width / 2
        assert parameters["parameters"][name]["estimate"] == pytest.approx(law[name], rel=0.05)
    assert main(["fit", "predict", "--flops", "1e22", "--fit", str(tmp_path / "out"), "--config", str(tmp_path / "c.py")]) == 2
    assert "no run with a config to start from" in capsys.readouterr().err


def test_records_and_a_table_are_fitted_together(fitted, tmp_path, capsys):
    size_R, tokens_R, _, _ = isoflop_grid(budgets=3, sizes=5)
    loss_R = additive_loss(size_R, tokens_R, LAW)
    rows = "\n".join(f"{n},{d},{y}" for n, d, y in zip(size_R, tokens_R, loss_R, strict=True))
    (tmp_path / "outside.csv").write_text("params,tokens,loss\n" + rows + "\n")
    flags = ["--csv", str(tmp_path / "outside.csv"), "--output", str(tmp_path), "--resamples", "0", "--no-plots"]
    assert main(["fit", str(fitted / "records.jsonl"), *flags]) == 0
    said = capsys.readouterr().out
    assert "outside: 15 runs" in said and "outside : ar" not in said  # other validation sets are not compared


def test_a_sweep_that_varies_everything_has_every_law(tmp_path, capsys):
    from tests.fit.test_special import batch_grid, of_law

    runs = batch_grid()
    repeated = of_law(forms.REPETITION, {"E": 1.4, "A": 60.0, "a": 0.34, "B": 250.0, "b": 0.36, "R_D": 15.0, "R_N": 8.0}, noise=0.003)
    for i in range(len(repeated)):
        unique, tokens = int(repeated.unique_R[i]), repeated.tokens_R[i]
        cell = {"unique_tokens": unique, "epochs": tokens / unique}
        extra = {"unique_tokens": unique, "epochs": tokens / unique, "cell": cell}
        runs.append(record(f"u{i}", "masked", repeated.sizes["total"][i], tokens, float(repeated.loss_R[i]), **extra))
    path = write(tmp_path / "records.jsonl", runs)
    assert main(["fit", path, "--output", str(tmp_path / "out"), "--resamples", "100", "--no-plots"]) == 0
    said = capsys.readouterr().out
    assert "batch (tokens)* = " in said and "learning rate* = " in said and "R_D* = " in said
    assert "with more than 4 epochs" in said and "75 in a grid of batch or learning rate" in said
    found = json.loads((tmp_path / "out" / "fit.json").read_text())["series"]["masked"]
    assert found["tuning"]["batch"]["exponent"] == pytest.approx(0.82, abs=0.01)
    low, high = found["repetition"]["intervals"]["runs"]["R_D"]["95"]
    assert low < 15.0 * 1.2 and high > 15.0 / 1.2
    assert main(["fit", "predict", "--flops", "1e14", "--fit", str(tmp_path / "out")]) == 0
    assert "batch and lr by this fit's own laws" in capsys.readouterr().out


def again(losses, unique=100_000):
    """Records of one size on one corpus, by series and epochs."""
    return [
        record(f"{name}-{epochs}", name, 1e5, unique * epochs, loss, unique_tokens=unique, epochs=float(epochs), loss_stderr=0.01)
        for name, by_epochs in losses.items()
        for epochs, loss in by_epochs.items()
    ]


def test_runs_of_repeated_data_alone_are_compared(tmp_path, capsys):
    """One size and one corpus allow no law; who is ahead from where on, and at what number of epochs each is best, is said and drawn."""
    runs = again({"ar": {4: 1.70, 16: 1.90, 64: 6.0}, "masked": {4: 2.5, 16: 2.0, 64: 1.60}})
    path = write(tmp_path / "records.jsonl", runs)
    assert main(["fit", path, "--output", str(tmp_path / "out"), "--resamples", "100"]) == 0
    said = capsys.readouterr().out
    assert "100,000 unique tokens: masked is ahead from" in said and "runs of one size" in said
    assert "ar 1.700 after 4 epochs; masked 1.600 after 64 epochs, the most tried" in said
    (found,) = json.loads((tmp_path / "out" / "fit.json").read_text())["crossings"]
    (corpus,) = found["corpora"]
    assert found["law"] is None and corpus["interval"]["95"][0] < corpus["flops"] < corpus["interval"]["95"][1]
    assert 16 < corpus["flops"] / (6e5 * 100_000) < 64  # in epochs
    assert (tmp_path / "out" / "repeated.png").read_bytes().startswith(b"\x89PNG")
    assert "Repeated tokens" in (tmp_path / "out" / "report.html").read_text()


@pytest.mark.parametrize("place", ["file", "file/below", "/proc/none"])
def test_an_output_without_a_place_is_refused_before_the_fit(fitted, tmp_path, monkeypatch, capsys, place):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("mine")
    assert main(["fit", str(fitted / "records.jsonl"), "--output", place]) == 2
    said = capsys.readouterr()
    assert ("cannot write" in said.err or "--output is" in said.err) and said.err.count("\n") == 1 and not said.out
    assert (tmp_path / "file").read_text() == "mine"


def test_a_fit_replaces_all_of_an_older_one(fitted, tmp_path):
    out = shutil.copytree(fitted / "out", tmp_path / "out")
    (out / "best_model.png").write_text("mine")
    flags = ["fit", str(fitted / "records.jsonl"), "--output", str(out), "--resamples", "0", "--no-plots"]
    assert main(flags) == 0
    assert {path.name for path in out.iterdir()} == {"fit.json", "points.csv", "resamples.npz", "best_model.png"}


def test_a_fit_that_cannot_be_written_leaves_no_old_numbers(fitted, tmp_path, capsys):
    out = shutil.copytree(fitted / "out", tmp_path / "out")
    (out / "points.csv").unlink()
    (out / "points.csv").mkdir()
    assert main(["fit", str(fitted / "records.jsonl"), "--output", str(out), "--resamples", "0", "--no-plots"]) == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert not (out / "fit.json").exists() and not (out / "resamples.npz").exists()


@pytest.mark.parametrize("damage", ["cut", "empty", "other bytes", "no series"])
def test_a_damaged_fit_is_refused(fitted, tmp_path, capsys, damage):
    out = shutil.copytree(fitted / "out", tmp_path / "out")
    content = (out / "resamples.npz").read_bytes()
    middle = len(content) // 2
    changed = {"cut": content[:3000], "empty": b"", "other bytes": content[:500] + bytes(middle) + content[500 + middle :]}
    (out / "resamples.npz").write_bytes(changed.get(damage, content))
    if damage == "no series":
        record = json.loads((out / "fit.json").read_text())
        (out / "fit.json").write_text(json.dumps({name: record[name] for name in ("format", "version")}))
    assert main(["fit", "predict", "--flops", "1e15", "--fit", str(out)]) == 2
    error = capsys.readouterr().err
    assert "cannot be read" in error and error.count("\n") == 1


def test_series_that_meet_in_a_file_name_are_told_apart():
    assert list(file_names(["a/b", "a_b", "A_B", "a_b-2"]).values()) == ["a_b", "a_b-2", "A_B-3", "a_b-2-2"]


@pytest.mark.parametrize(
    "shift, words",
    [(2.0, "no run of masked is as good as the best of ar"), (-2.5, "every best run of masked is better than those of ar")],
)
def test_a_picture_without_ratios_says_which_series_is_ahead(tmp_path, shift, words):
    runs = [dataclasses.replace(run, loss=run.loss + shift * (run.series == "masked")) for run in sweep()]
    result = analyse_files([write(tmp_path / "records.jsonl", runs)], resamples=0)
    analyses = {found.objective: found.analyses["total"] for found in result.objectives}
    assert list(conclusion.no_ratios(analyses, result)) == [words]
    assert plots.objectives(analyses, result).startswith(b"\x89PNG")


def test_series_of_other_corpora_are_not_compared(tmp_path, capsys):
    runs = [dataclasses.replace(run, config={"data.paths": [{"ar": "novels", "masked": "c4"}[run.series]]}) for run in sweep()]
    flags = ["--output", str(tmp_path / "out"), "--resamples", "0", "--no-plots"]
    assert main(["fit", write(tmp_path / "records.jsonl", runs), *flags]) == 0
    assert "masked is not compared with ar: they differ in corpora, novels and c4" in capsys.readouterr().out
    found = json.loads((tmp_path / "out" / "fit.json").read_text())
    assert not found["compute_ratios"] and len(found["not_compared"]) == 1


def changed_fit(source, directory, change):
    """A copy of a fit in which `change` has edited the record of masked runs."""
    shutil.copytree(source, directory, ignore=shutil.ignore_patterns("*.png", "*.html"))
    record = json.loads((directory / "fit.json").read_text())
    change(record["series"]["masked"])
    (directory / "fit.json").write_text(json.dumps(record))
    return ["fit", "predict", "--flops", "1e15", "--fit", str(directory), "--series", "masked"]


@pytest.mark.parametrize("batch, accumulation", [(18, 3), (16, 1)])
def test_a_config_keeps_the_microbatches_of_its_reference(fitted, tmp_path, batch, accumulation):
    def change(found):
        found["reference"]["config"] |= {"data.batch": batch, "train.accumulation": accumulation}

    assert main([*changed_fit(fitted / "out", tmp_path / "fit", change), "--config", str(tmp_path / "next.py")]) == 0
    config = config_lib.load(str(tmp_path / "next.py"))
    assert config.data.batch > batch and config.data.batch % config.train.accumulation == 0
    most = batch // accumulation
    assert most / 2 < config.data.batch // config.train.accumulation <= most


def test_a_config_that_would_not_load_is_not_written(fitted, tmp_path, capsys):
    flags = changed_fit(fitted / "out", tmp_path / "fit", lambda found: found["reference"]["config"].update({"data.weights": [1.0, 2.0]}))
    assert main([*flags, "--config", str(tmp_path / "next.py")]) == 2
    assert "no config can be written from that of masked-" in capsys.readouterr().err
    assert not (tmp_path / "next.py").exists()


def test_a_law_at_a_bound_is_said_to_be_and_is_no_default(fitted, tmp_path, capsys):
    def change(found):
        found["definitions"]["total"]["parametric"]["boundaries"] = ["a ended at its upper bound, 3"]

    flags = changed_fit(fitted / "out", tmp_path / "fit", change)
    assert main([*flags, "--config", str(tmp_path / "next.py")]) == 0
    assert "parametric, boundary: a ended at its upper bound, 3" in capsys.readouterr().out
    assert "the best run by the isoflop law" in (tmp_path / "next.py").read_text()
    assert main([*flags, "--method", "parametric", "--config", str(tmp_path / "next.py")]) == 0
    assert "the best run by the parametric law" in (tmp_path / "next.py").read_text()

    def alone_at_its_bound(found):
        change(found)
        found["definitions"]["total"]["laws"] = {"parametric": found["definitions"]["total"]["laws"]["parametric"]}

    flags = changed_fit(fitted / "out", tmp_path / "other", alone_at_its_bound)
    assert main([*flags, "--config", str(tmp_path / "none.py")]) == 2
    assert "no law of objective 'masked' is trusted (parametric, boundary: a ended" in capsys.readouterr().err


@pytest.mark.parametrize("flops, far", [(1e15, False), (1e22, True)])
def test_flops_per_token_far_beyond_the_sizes_are_called_extrapolated(fitted, tmp_path, capsys, flops, far):
    def change(found):
        found["definitions"]["total"]["compute"] = {"k": 12.0, "rho": 0.95, "worst": 0.02}

    flags = changed_fit(fitted / "out", tmp_path / "fit", change)
    assert main([*flags, "--flops", str(flops)]) == 0
    assert ("FLOPs per token are extrapolated by C = 12 N^0.95 D" in capsys.readouterr().out) is far


@pytest.mark.parametrize("stderr", [0.1, None])
def test_intervals_of_the_batch_know_the_exponents_error(fitted, tmp_path, capsys, stderr):
    """The line turns about the middle of its minima: far from there its exponent decides, and an unknown error is said to be unknown."""

    def change(found):
        law = {"coefficient": 2.0, "exponent": 0.82, "exponent_stderr": stderr, "pivot": 1e6}
        found["tuning"] = {"batch": law, "lr": None, "minima": []}

    flags = [*changed_fit(fitted / "out", tmp_path / "fit", change), "--json", str(tmp_path / "p.json")]
    assert main([*flags, "--flops", "1e20"]) == 0
    (found,) = json.loads((tmp_path / "p.json").read_text())
    unknown = "error of the exponent not known (lr)" if stderr else "error of the exponent not known (batch, lr)"
    assert unknown in capsys.readouterr().out
    (low, high), (low_D, high_D) = (found["intervals"]["parametric"][key]["runs"]["95"] for key in ("batch", "tokens"))
    scatter = 0.82 * math.log(high_D / low_D)
    if stderr is None:
        assert math.log(high / low) == pytest.approx(scatter, rel=0.01)
    else:
        turned = 2 * 1.96 * stderr * math.log(found["numbers"]["parametric"]["tokens"] / 1e6)
        assert math.log(high / low) == pytest.approx(math.hypot(scatter, turned), rel=0.25) and turned > scatter / 2


@pytest.mark.parametrize(
    "flags, words",
    [
        (["fit", "--output", "o"], "give a file of records"),
        (["fit", "none.jsonl", "--output", "o"], "none.jsonl does not exist"),
        (["fit", "none.jsonl"], "`fit` requires --output"),
        (["fit", "x", "--output", "o", "--resamples", "7"], "95 % intervals require at least 100"),
        (["fit", "none.jsonl", "--output", "o", "--seed", "-1"], "--seed is -1; give a whole number from 0"),
        (["fit", "predict", "--fit", "none"], "requires --flops"),
        (["fit", "predict", "--flops", "1e22", "--fit", "none"], "holds no fit"),
        (["fit", "predict", "more", "--flops", "1e22"], "and no records"),
    ],
)
def test_bad_flags_end_in_one_line(flags, words, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(flags) == 2
    error = capsys.readouterr().err
    assert words in error and error.count("\n") == 1
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "runs, words",
    [
        ([record("a"), record("b", size=2e6, loss=2.9)], "too few runs for any law .parametric: .*; add sizes and budgets"),
        ([record("a", status="failed", loss=None)], "no run has finished"),
        ([record("a"), record("b", validation="other")], "a fit requires one validation set"),
    ],
)
def test_runs_that_allow_no_law_end_in_one_line(runs, words, tmp_path, capsys):
    path = write(tmp_path / "records.jsonl", runs)
    assert main(["fit", path, "--output", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert re.search(words, error) and error.count("\n") == 1
    assert not (tmp_path / "out").exists()


GRID = [(size, flops / 6 / size) for flops in (1e12, 3e12, 1e13) for size in (1e5, 2e5, 4e5, 8e5)]
TABLES = {  # rows of parameters, tokens, loss
    "constant": ([(*each, 3.0) for each in GRID], "these losses have no minimum, all 12 are 3"),
    "constant but for rounding": ([(*each, 3.0 + 1e-12 * i) for i, each in enumerate(GRID)], "these losses have no minimum"),
    "one run": ([(*GRID[0], 3.0)], "too few runs for any law"),
    "two runs": ([(*GRID[0], 3.0), (*GRID[5], 2.5)], "too few runs for any law"),
    "one size": ([(1e5, tokens, 3.0 - 0.01 * i) for i, (_, tokens) in enumerate(GRID)], "runs of one size"),
    "two sizes, doubled": ([(*each, 3.0 + 0.01 * i) for i, each in enumerate(GRID[:2] * 6)], "tokens; at least 3 of each are needed"),
    "few runs, often": ([(*each, 3.0 + 0.01 * i) for i, each in enumerate(GRID[:4] * 3)], "4 different runs for the 5 parameters"),
    "a negative loss": ([(*each, 3.0 - i) for i, each in enumerate(GRID)], "loss is '0.0'; it must be a positive number"),
    "no tokens": ([(size, 0.0, 3.0) for size, _ in GRID], "tokens is '0.0'; it must be a positive number"),
    "no number": ([(*each, math.nan) for each in GRID], "loss is 'nan'; it must be a positive number"),
    "beyond floats": ([(1e200, 1e200, 3.0)], "must be between 1e-60 and 1e\\+60"),
}


@pytest.mark.parametrize("name", TABLES)
def test_tables_that_show_no_law_end_in_one_line(name, tmp_path, capsys):
    rows, words = TABLES[name]
    file = tmp_path / "runs.csv"
    for order in (rows, rows[::-1]):
        file.write_text("params,tokens,loss\n" + "".join(f"{n!r},{d!r},{loss!r}\n" for n, d, loss in order))
        assert main(["fit", "--csv", str(file), "--output", str(tmp_path / "out")]) == 2
        error = capsys.readouterr().err
        assert (re.search(words, error) or name == "a negative loss") and error.count("\n") == 1
        assert not (tmp_path / "out").exists()


def test_a_wrong_choice_names_the_right_ones(fitted, capsys):
    base = ["fit", "predict", "--flops", "1e15", "--fit", str(fitted / "out")]
    for flags, words in (
        (["--series", "uniform"], "no such objective; it has ar, masked"),
        (["--definition", "active"], "choose one of: non_embedding, total"),
        (["--series", "ar", "--method", "magic"], "no 'magic' law"),
        (["--config", "c.py"], "choose an objective with --objective: ar, masked"),
        (["--flops", "-1"], "give a positive number"),
    ):
        assert main([*base, *flags]) == 2
        assert words in capsys.readouterr().err


def test_no_resamples_no_intervals(fitted, tmp_path, capsys):
    assert main(["fit", str(fitted / "records.jsonl"), "--output", str(tmp_path), "--resamples", "0", "--no-plots"]) == 0
    assert "[" not in capsys.readouterr().out.partition(DETAILS[-1])[2].split("compute at equal loss")[0]
    assert main(["fit", "predict", "--flops", "1e14", "--fit", str(tmp_path)]) == 0
    assert np.isfinite(json.loads((tmp_path / "fit.json").read_text())["compute_ratios"][0]["ratio"])


def test_a_fit_ends_with_its_conclusion_and_the_report_begins_with_it(tmp_path, capsys):
    """The best runs and the sentences are those of the records; terminal and page have the same ones."""
    runs = [dataclasses.replace(run, loss_stderr=0.004) for run in sweep()]
    path = write(tmp_path / "records.jsonl", runs)
    assert main(["fit", path, "--output", str(tmp_path / "out"), "--resamples", "0"]) == 0
    said = capsys.readouterr().out
    assert "  ar has the lowest loss at each of the 4 budgets." in said
    best = {name: min((run for run in runs if run.series == name and run.budget == 3e13), key=lambda run: run.loss) for name in SMALL}
    lead = f"+{best['masked'].loss - best['ar'].loss:.3g}"
    line = (
        f"At 3e+13 FLOPs, the largest budget with runs of 2 objectives, ar has the lowest loss: {best['ar'].loss:.4f} ± 0.0040 nats/token; "
    )
    line += f"masked {best['masked'].loss:.4f} ± 0.0040 ({lead})."
    assert said.startswith(f"conclusion\n  {line}\n") and said.index(line) < said.index("best validation loss") < said.index("details: ")
    explained = said.partition("details: ")[2].partition("\n\n")[0]
    analysis = analyse_files([path], resamples=0).objectives[0].analyses["total"]
    assert all(f"\n  {method} " in explained for method in analysis.laws) and analysis.points.sizes.keys() <= COUNTED.keys()
    row = f"3e+13 {best['ar'].loss:.4f} ± 0.0040 * (N {best['ar'].parameters:.3g}) {best['masked'].loss:.4f} ± 0.0040"
    assert row in " ".join(said.split())
    page = (tmp_path / "out" / "report.html").read_text()
    start = page.index("<h1>")
    assert start < page.index(line) < page.index("± 0.0040 *") < page.index("<img") < page.index("<h2>Objectives compared")


def test_differences_within_their_errors_are_not_called_clear():
    runs = [record(f"{name}-{flops:.0e}", name, 1e5, flops / 6e5, loss, loss_stderr=0.01, budget=flops) for name, flops, loss in CLOSE]
    result = Result(("r",), 0, 0, tuple(of_objective(name, runs) for name in ("a", "b", "c")), (), (), (), "a")
    first, clear, others, *_ = conclusion.conclusion(result)
    assert first.startswith("At 2e+12 FLOPs") and "b has the lowest loss: 2.990 ± 0.010" in first and "a 3.000 ± 0.010 (+0.01)" in first
    assert clear.startswith("The lead of b over a is less than 2 of its standard errors")
    assert others == "b has the lowest loss at 1 of 2 budgets; else a at 1e+12."
    assert [row[0] for row in conclusion.table(result)] == ["FLOPs of a run", "1e+12", "2e+12"]
    assert conclusion.table(result)[1][3] == "-"


CLOSE = [("a", 1e12, 3.1), ("b", 1e12, 3.3), ("a", 2e12, 3.0), ("b", 2e12, 2.99), ("c", 2e12, 3.5)]


def of_objective(name, runs) -> ObjectiveFit:
    return ObjectiveFit(name, from_records(runs)[name], {}, {}, None, {}, {}, None, "too few runs")


@pytest.mark.parametrize("changes, compared", [({}, True), ({"vocab": 99}, False), ({"validation": "other"}, False)])
def test_too_few_runs_for_a_law_are_compared_at_equal_flops(tmp_path, capsys, changes, compared):
    """Two objectives at one budget have no law, and an answer; losses that are not comparable have neither."""
    runs = [record("a"), record("b", "ar", loss=2.9, **changes)]
    code = main(["fit", write(tmp_path / "records.jsonl", runs), "--output", str(tmp_path / "out")])
    said = capsys.readouterr()
    assert code == (0 if compared else 2)
    assert ("ar has the lowest loss: 2.9000 ± 0.0020 nats/token; masked 3.0000" in said.out) is compared
    assert (tmp_path / "out" / "report.html").exists() is compared


@pytest.mark.parametrize("letter", ["W", "i"])
def test_no_label_of_a_picture_is_cut(tmp_path, monkeypatch, letter):
    """Every text of every picture lies within it, also where names are as long as they may be and axes are short or long."""
    drawn = []
    monkeypatch.setattr(plots, "_png", lambda figure, png=plots._png: (drawn.append(figure), png(figure))[1])
    names = dict(zip(SMALL, (letter * 200, f"_{letter * 150}$x"), strict=True))
    runs = [dataclasses.replace(run, id=str(i), series=names[run.series]) for i, run in enumerate(sweep())]
    result = analyse_files([write(tmp_path / "records.jsonl", runs)], resamples=0, base=names["ar"])
    assert len(plots.draw(result)) == len(drawn) > 6
    for figure in drawn:
        FigureCanvasAgg(figure).draw()
        width, height = figure.bbox.width, figure.bbox.height
        for axes in figure.axes:
            assert axes.axison and axes.has_data()
        ticks = []
        for axis in (axis for axes in figure.axes for axis in (axes.xaxis, axes.yaxis)):
            low, high = sorted(axis.get_view_interval())
            labels = [label for at, label in zip(axis.get_ticklocs(), axis.get_ticklabels(), strict=True) if low <= at <= high]
            boxes = [label.get_window_extent() for label in labels]
            ends = sorted((box.x0, box.x1) if axis.axis_name == "x" else (box.y0, box.y1) for box in boxes)
            assert len(ends) > 1 and all(a[1] < b[0] for a, b in itertools.pairwise(ends)), ends
            ticks += labels
        others = set(figure.findobj(Text)) - {
            label for axes in figure.axes for a in (axes.xaxis, axes.yaxis) for label in a.get_ticklabels()
        }
        for text in [*ticks, *(text for text in others if text.get_text() and text.get_visible())]:
            box = text.get_window_extent()
            assert min(box.x0, box.y0) > -1 and box.x1 < width + 1 and box.y1 < height + 1, (text.get_text(), box)
