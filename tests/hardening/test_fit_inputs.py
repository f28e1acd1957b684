"""Malformed and degenerate inputs of `fit`, `fit predict` and `sweep`, drawn from seeds: each ends in a result or in one line, exit code 2.

Records, tables, saved fits, plans, journals and sweep definitions are damaged by the same few hands: bytes cut, changed or doubled, JSON
values replaced by hostile ones, numbers replaced by extreme ones. Counted: tried, refused, wrong (an error of more than one line, a
number that is not one in a result), tracebacks, hangs.
"""

import contextlib
import copy
import html
import io
import itertools
import json
import math
import pathlib
import time
import traceback
import warnings
from collections import Counter

import numpy as np
import pytest

from dlmjax.errors import InputError
from dlmjax.fit import plots, report, results, text
from dlmjax.fit.pipeline import analyse_files
from dlmjax.fit.predict import predict
from dlmjax.sweep import status
from dlmjax.sweep.definition import load
from dlmjax.sweep.manifest import SweepPlan
from dlmjax.sweep.run_log import Counters, RunLog, read_result
from tests.fit.synthetic import record, sweep
from tests.hardening.tiny import Hang, at_most
from tests.sweep.sweeps import plan, planned

SECONDS = 60  # more is a hang
EXTREME = [0, -1, 1, 5e-324, 1e-300, 1e308, -1e308, 1e60, 2**31, 2**53 + 1, 2**63, 10**30, 10**400, math.nan, math.inf, -math.inf, 0.5]
TEXTS = [
    "",
    " ",
    "x" * 5000,
    "a\nb",
    "a\x1b[31mb",
    '"""',
    "\\",
    "../../etc/passwd",
    "\x00",
    "é",
    "𝟓",
    "__import__('os')",
    "$\\frac{$",
    "_a",
]
HOSTILE = [*EXTREME, *TEXTS, "\ud800", None, True, [], {}, [[]], {"a": {"b": []}}, [1, "a", None], {"": 1}]
CELLS = [
    "nan",
    "inf",
    "-inf",
    "1e400",
    "-1",
    "0",
    "",
    "1e-320",
    "1e300",
    "abc",
    "1,5",
    "١٢",
    "0x10",
    "1_000",
    "9" * 400,
    "1e61",
    "\x00",
    '"',
]


def dumps(value) -> bytes:
    """JSON as a careless program writes it: NaN and half surrogates included."""
    return json.dumps(value).encode()


def damaged(rng, content: bytes) -> bytes:
    """Bytes that are cut, changed, doubled or replaced."""
    place = int(rng.integers(len(content) + 1))
    other = bytes(rng.integers(0, 256, int(rng.integers(1, 20)), dtype=np.uint8))
    ways = [
        content[:place],
        content[:place] + other + content[place:],
        content[:place] + other + content[place + len(other) :],
        content + content,
        b"",
        b"\xff\xfe" + content,
        b"\xef\xbb\xbf" + content,
        b"[" * 100_000,
        b'{"a":' * 5000 + b"1" + b"}" * 5000,
        content.replace(b"\n", b"\r\n"),
        content.replace(b":", b" ", 3),
        content.swapcase(),
        b"null\n",
        b"9" * 5000 + b"\n",
    ]
    return ways[int(rng.integers(len(ways)))]


def changed(rng, value):
    """A JSON value of which one entry, at any depth, is hostile, missing or of another name."""
    value = copy.deepcopy(value)
    holder = value
    while True:
        keys = list(holder) if isinstance(holder, dict) else list(range(len(holder)))
        key = keys[int(rng.integers(len(keys)))]
        inner = holder[key]
        if isinstance(inner, dict | list) and inner and rng.random() < 0.7:
            holder = inner
            continue
        way = rng.random()
        if way < 0.8:
            holder[key] = HOSTILE[int(rng.integers(len(HOSTILE)))]
        elif way < 0.9 or isinstance(holder, list):
            del holder[key]
        else:
            holder[TEXTS[int(rng.integers(len(TEXTS)))]] = holder.pop(key)
        return value


def repeated():
    """Runs of one size on two corpora, again and again."""
    cells = [(unique, epochs) for unique in (10**5, 10**6) for epochs in (1, 4, 16)]
    known = [{"unique_tokens": unique, "epochs": float(epochs)} for unique, epochs in cells]
    losses = [2.0 + 300 / (unique * epochs) ** 0.5 + 0.01 * epochs for unique, epochs in cells]
    sizes = [(unique * epochs, loss, more) for (unique, epochs), loss, more in zip(cells, losses, known, strict=True)]
    return [record(f"u{i}", "again", 1e5, tokens, loss, cell=more, **more) for i, (tokens, loss, more) in enumerate(sizes)]


def tuned():
    """Batches and learning rates at two numbers of tokens."""
    cells = itertools.product((1e6, 1e7), (4, 8, 16), (1e-3, 2e-3, 4e-3))
    return [
        record(
            f"t{i}", "tuned", 1e5, tokens, 3 + 0.1 * math.log(lr / 2e-3) ** 2 + 0.1 * math.log(batch / 8) ** 2 - 1e-8 * tokens,
            batch=batch, lr=lr, cell={"tokens": tokens, "batch": batch, "lr": lr},
        )
        for i, (tokens, batch, lr) in enumerate(cells)
    ]  # fmt: skip


def mixed():
    """Mixtures of two corpora."""
    cells = itertools.product((0.25, 0.5, 0.75), (1e6, 1e7))
    return [
        record(
            f"m{i}", "mixed", 1e5, tokens, 3.0, cell={"weights": [share, 1 - share]}, mixture={"a": share, "b": 1 - share},
            domains={"a": 2 + 50 / tokens**0.3 / share**0.1, "b": 2 + 50 / tokens**0.3 / (1 - share) ** 0.1},
        )
        for i, (share, tokens) in enumerate(cells)
    ]  # fmt: skip


class Inputs:
    """The whole inputs that are damaged, made once, and for each kind a function that makes one case and runs it."""

    def __init__(self, root: pathlib.Path):
        self.root = root
        self.records = [dict(vars(run)) for run in sweep(budgets=(1e12, 4e12), sizes=4)]
        (root / "whole.jsonl").write_text("".join(json.dumps(run) + "\n" for run in self.records))
        result = analyse_files([str(root / "whole.jsonl")], resamples=100)
        result.write(root / "fit")
        self.fit = json.loads((root / "fit" / "fit.json").read_text())
        self.samples = (root / "fit" / "resamples.npz").read_bytes()
        self.plan = plan(planned(["corpus"], "masked", seed=0), planned(["corpus"], "uniform", seed=1))
        self.plan.write(root / "sweep")
        self.head = json.loads((root / "sweep" / "sweep.json").read_text())
        self.lines = [json.loads(line) for line in (root / "sweep" / "manifest.jsonl").read_text().splitlines()]
        self.grids = [dict(vars(run)) for run in [*repeated(), *tuned(), *mixed()]]
        self.kinds = {
            "records": self.of_records,
            "grids": self.of_grids,
            "table": self.of_table,
            "losses": self.of_losses,
            "fit": self.of_fit,
            "samples": self.of_samples,
            "plan": self.of_plan,
            "journal": self.of_run_log,
            "definition": self.of_definition,
        }

    def _fitted(self, **sources) -> None:
        result = analyse_files(**sources, resamples=0)
        lines = text.summary(result).splitlines()
        assert "Traceback" not in text.summary(result)
        stored = json.dumps(result.record(), allow_nan=False)
        assert all(ord(letter) >= 32 for line in lines for letter in line), stored[:100]
        report.page(result, {})
        for analysis in (each for found in result.objectives for each in found.analyses.values()):
            best = [analysis.laws[method].at(flops) for method in analysis.trusted for flops in analysis.points.flops_R]
            assert all(0 < number < math.inf for each in best for number in each.values())

    def of_records(self, rng) -> None:
        runs = list(self.records)
        if rng.random() < 0.7:
            place = int(rng.integers(len(runs)))
            runs[place] = changed(rng, runs[place])
            content = b"".join(dumps(run) + b"\n" for run in runs)
        else:
            content = damaged(rng, b"".join(dumps(run) + b"\n" for run in runs))
        file = self.root / "records.jsonl"
        file.write_bytes(content)
        self._fitted(records=[str(file)])

    def of_grids(self, rng) -> None:
        """Runs of repeated data, of batches and rates, and of mixtures."""
        runs = list(self.grids)
        for _ in range(int(rng.integers(1, 4))):
            place = int(rng.integers(len(runs)))
            if rng.random() < 0.5:
                name = str(rng.choice(["loss", "lr", "batch", "tokens", "unique_tokens", "parameters", "epochs", "loss_stderr"]))
                kind = type(runs[place][name])
                runs[place] = runs[place] | {name: kind(runs[place][name] * 10.0 ** float(rng.integers(-12, 12)))}
            else:
                name = str(rng.choice(["cell", "mixture", "domains"]))
                runs[place] = runs[place] | {name: changed(rng, runs[place][name] or {"a": 1})}
        file = self.root / "grids.jsonl"
        file.write_bytes(b"".join(dumps(run) + b"\n" for run in runs))
        self._fitted(records=[str(file)])

    def of_table(self, rng) -> None:
        names = ["params", "tokens", "loss", "flops", "series", "budget", "stderr", "unique_tokens", "active"]
        names = [name for name in names if rng.random() < 0.7 or name in ("params", "loss")]
        rows = [
            [str(row.get({"params": "parameters", "active": "parameters"}.get(name, name), "")) for name in names] for row in self.records
        ]
        for _ in range(int(rng.integers(0, 4))):
            row = rows[int(rng.integers(len(rows)))]
            row[int(rng.integers(len(row)))] = [*CELLS, *TEXTS][int(rng.integers(len(CELLS) + len(TEXTS)))]
        content = "\n".join(",".join(row) for row in [names, *rows]).encode("utf-8", "surrogatepass") + b"\n"
        file = self.root / "table.csv"
        file.write_bytes(damaged(rng, content) if rng.random() < 0.2 else content)
        self._fitted(csv=[str(file)])

    def of_losses(self, rng) -> None:
        """Tables of numbers that are right and tell nothing, or nearly."""
        count = int(rng.choice([1, 2, 3, 6, 9, 16, 36]))
        shapes = {
            "constant": lambda: np.full(count, 3.0),
            "grid": lambda: np.repeat(np.geomspace(1e6, 1e9, max(count // 4, 1)), 4)[:count],
            "two": lambda: rng.choice([1e6, 1e7], count),
            "wide": lambda: 10.0 ** rng.uniform(-50, 50, count),
            "close": lambda: 1e7 * (1 + 1e-13 * rng.integers(0, 5, count)),
            "line": lambda: np.linspace(1.0, 2.0, count),
            "noise": lambda: np.exp(rng.standard_normal(count)),
        }
        columns = {name: shapes[list(shapes)[int(rng.integers(len(shapes)))]]() for name in ("params", "tokens")}
        columns["loss"] = shapes[str(rng.choice(["constant", "line", "noise", "wide", "close"], p=[0.3, 0.3, 0.3, 0.05, 0.05]))]()
        columns = {name: np.resize(values, count) for name, values in columns.items()}
        if rng.random() < 0.3:
            columns["tokens"] = 1e13 / 6 / columns["params"]
        if rng.random() < 0.3:
            columns["budget"] = rng.choice([1e12, 1e13], count)
        rows = [list(columns), *(map(repr, map(float, row)) for row in zip(*columns.values(), strict=True))]
        file = self.root / "losses.csv"
        file.write_text("".join(",".join(row) + "\n" for row in rows))
        self._fitted(csv=[str(file)])

    def of_fit(self, rng) -> None:
        folder = self.root / "changed"
        folder.mkdir(exist_ok=True)
        content = dumps(changed(rng, self.fit)) if rng.random() < 0.85 else damaged(rng, dumps(self.fit))
        (folder / "fit.json").write_bytes(content)
        (folder / "resamples.npz").write_bytes(self.samples)
        self._predicted(folder, rng)

    def of_samples(self, rng) -> None:
        folder = self.root / "changed"
        folder.mkdir(exist_ok=True)
        (folder / "fit.json").write_bytes(dumps(self.fit))
        content = damaged(rng, self.samples)
        if rng.random() < 0.5:  # whole archives with other arrays
            arrays = dict(np.load(io.BytesIO(self.samples)))
            key = list(arrays)[int(rng.integers(len(arrays)))]
            others = [np.zeros((3, 3)), np.zeros(0), np.zeros(7), np.array("a"), np.full(100, np.nan), np.zeros(100, int), np.array(2.0)]
            arrays[key] = others[int(rng.integers(len(others)))]
            stream = io.BytesIO()
            np.savez_compressed(stream, **arrays)
            content = stream.getvalue()
        (folder / "resamples.npz").write_bytes(content)
        self._predicted(folder, rng)

    def _predicted(self, folder: pathlib.Path, rng) -> None:
        flops = float(rng.choice([1e10, 1e15, 1e22, 1e300, 1e-300, 5e-324]))
        for prediction in predict(results.read(folder), flops):
            assert text.predicted(prediction)
            json.dumps(prediction.record(), allow_nan=False)

    def of_plan(self, rng) -> None:
        folder = self.root / "planned"
        folder.mkdir(exist_ok=True)
        head, lines = dumps(self.head), b"".join(dumps(line) + b"\n" for line in self.lines)
        if rng.random() < 0.5:
            head = dumps(changed(rng, self.head)) if rng.random() < 0.8 else damaged(rng, head)
        else:
            line = changed(rng, self.lines[1]) if rng.random() < 0.8 else None
            lines = dumps(self.lines[0]) + b"\n" + dumps(line) + b"\n" if line else damaged(rng, lines)
        (folder / "sweep.json").write_bytes(head)
        (folder / "manifest.jsonl").write_bytes(lines)
        status.snapshot(SweepPlan.read(folder), folder).text()

    def of_run_log(self, rng) -> None:
        folder = self.root / "sweep"
        record = dict(self.records[0]) | {"id": self.plan.runs[0].id}
        workdir = folder / "runs" / self.plan.runs[1].id
        workdir.mkdir(parents=True, exist_ok=True)
        metric = {"kind": "train", "step": 3, "seconds_per_step": 0.5, "loss": 2.0}
        for path, values in ((folder / "records.jsonl", record), (workdir / "metrics.jsonl", metric), (workdir / "record.json", record)):
            way = rng.random()
            path.write_bytes(
                dumps(changed(rng, values)) + b"\n" if way < 0.4 else damaged(rng, dumps(values)) if way < 0.7 else dumps(values)
            )
        (workdir / "account.txt").write_bytes(damaged(rng, b"compiled 1\nstart 0.5\nstepped 1\nread nan\nevaluate 1e400\n"))
        assert math.isfinite(sum(Counters(workdir).totals().values()))
        with contextlib.suppress(InputError):
            read_result(workdir)
        status.snapshot(self.plan, folder).text()
        RunLog(folder)

    def of_definition(self, rng) -> None:
        values = [
            "1e12",
            "()",
            "'a'",
            "-1",
            "nan",
            "1e400",
            "10**400",
            "None",
            "range(10**9)",
            "(1e12, 1e400)",
            "[True]",
            "{}",
            "1e12, 1e12",
        ]
        values += ["1e13,", "(16, 32)", "(1, 2, 3)", "((1,), (2,))"]
        value = values[int(rng.integers(len(values)))]
        grids = [
            "IsoFlop((1e12,), (16,))",
            f"IsoFlop(({value},), (16,))",
            f"IsoFlop({value}, NearOptimum(b=5))",
            f"IsoFlop((1e12,), {value})",
            f"IsoFlop((1e12,), (16,), {value})",
            f"Repeated((16,), {value}, (1,))",
            f"BatchRate((16,), (1e6,), {value}, (1e-3,))",
            f"Mixture((16,), (1e6,), {value})",
            "IsoFlop((1e12,), (16,)), policy=__import__('sys').exit(3)",
            "undefined",
            "IsoFlop((1e12,), (16,)), nothing=1",
        ]
        grid = grids[int(rng.integers(len(grids)))]
        text = (
            "from dlmjax.sweep.definition import *\n"
            f"def get_sweep(data='a', number=3, share=0.5, many=(1, 2)):\n    return Sweep('s', {{'m': 'x.py'}}, {grid})\n"
        )
        file = self.root / "sweep.py"
        file.write_bytes(damaged(rng, text.encode()) if rng.random() < 0.2 else text.encode())
        name = str(rng.choice(["data", "number", "share", "many", "none", ""]))
        setting = str(rng.choice([*CELLS, *TEXTS, "(" * 5000, "[" * 200, "{[]: 1}", "9" * 5000]))
        load(str(file), [f"{name}={setting}"] if rng.random() < 0.5 else [])


def attempt(case, rng, seconds: float = SECONDS) -> str:
    """What became of a case: "fine", "refused", "wrong: ...", "traceback: ..." or "hang"."""
    try:
        with at_most(seconds), warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("error")
            case(rng)
        return "fine"
    except InputError as error:
        said = str(error)
        return "refused" if said.isprintable() and len(said) < 2000 else f"wrong: {said[:300]!r}"
    except Hang:
        return "hang"
    except Exception:
        return "traceback: " + traceback.format_exc(limit=-4)


def tally(root, cases: int, first: int = 0) -> tuple[Counter, list[str]]:
    """Counts by kind and outcome, and what is not right, with the seed that brings it back."""
    inputs, counts, bad = Inputs(root), Counter(), []
    for kind, case in inputs.kinds.items():
        for seed in range(first, first + cases):
            outcome = attempt(case, np.random.default_rng([seed, len(kind), ord(kind[0])]))
            counts[kind, outcome.partition(":")[0]] += 1
            if outcome not in ("fine", "refused"):
                bad.append(f"{kind}, seed {seed}: {outcome}")
    return counts, bad


def say(counts: Counter) -> None:
    outcomes = ("fine", "refused", "wrong", "traceback", "hang")
    for kind in dict.fromkeys(kind for kind, _ in counts):
        tried = sum(counts[kind, outcome] for outcome in outcomes)
        print(f"{kind}: {tried} tried, " + ", ".join(f"{counts[kind, outcome]} {outcome}" for outcome in outcomes))


@pytest.mark.parametrize("cases", [30, pytest.param(4000, marks=pytest.mark.nightly)])
def test_no_input_ends_in_a_traceback(tmp_path, cases):
    counts, bad = tally(tmp_path, cases)
    say(counts)
    assert not bad, "\n".join(bad)
    assert all(counts[kind, "refused"] for kind in dict.fromkeys(kind for kind, _ in counts))


def test_a_hang_is_seen_and_ended():
    """Here and in the other batteries, which share the clock: a case that catches every `Exception` is ended, too."""

    def hangs(_):
        for _ in range(3):
            with contextlib.suppress(Exception):
                time.sleep(20)

    began = time.monotonic()
    assert attempt(hangs, None, seconds=0.2) == "hang" and attempt(lambda _: None, None, seconds=5) == "fine"
    with pytest.raises(Hang), at_most(0.3):  # an outer limit rings also after an inner one was set
        with at_most(60):
            pass
        time.sleep(20)
    assert time.monotonic() - began < 15


@pytest.mark.parametrize("name", ["$\\frac{$", "_hidden", "../a/b\\c <b>&", "漢" * 200])
def test_pictures_and_report_take_any_name(tmp_path, name):
    """Objectives keep the names of their tables: mathematics, signs and other alphabets are text in a picture, and no folders."""
    if not plots.available():
        pytest.skip("matplotlib is not installed")
    rows = [[str(run.parameters), str(run.tokens), str(run.loss), {"ar": name, "masked": "m$x$"}[run.series]] for run in sweep()]
    file = tmp_path / "names.csv"
    file.write_text("params,tokens,loss,series\n" + "".join(",".join(row) + "\n" for row in rows), encoding="utf-8")
    result = analyse_files(csv=[str(file)], resamples=0)
    out = tmp_path / "out"
    out.mkdir()
    written = report.write(result, out)
    assert sorted(path.name for path in out.iterdir()) == sorted(written)
    assert html.escape(name) in (out / "report.html").read_text(encoding="utf-8")


if __name__ == "__main__":
    import sys
    import tempfile

    found, wrong = tally(pathlib.Path(tempfile.mkdtemp()), int(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 0)
    say(found)
    print("\n".join(wrong))
