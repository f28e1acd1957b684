"""`dlmjax quality`, `puzzles`, `solve`, `embed` and `activations`: a run is opened, a function beside this file works, a person reads."""

import csv
import gzip
import io
import lzma
import pathlib
from typing import Any

import numpy as np

from dlmjax.cli.quality_flags import integers
from dlmjax.data import Corpus, EvalWindows
from dlmjax.errors import InputError, NoCorpus, NoSplit
from dlmjax.files import as_json, write_atomically, write_json
from dlmjax.quality import activations as outliers
from dlmjax.quality import generated, latency, mauve_score, plot
from dlmjax.quality import puzzles as puzzles_lib
from dlmjax.quality.hidden import embed_texts
from dlmjax.quality.scorers import open_scorer
from dlmjax.quality.solving import report as solving_report
from dlmjax.quality.solving import solve as solve_puzzles
from dlmjax.run import Run, open_run, split_of
from dlmjax.sampling import SampleSettings, never_sampled
from dlmjax.seeds import check_seed


def quality(
    *,
    workdir: str,
    weights: str = "ema",
    step: int | None = None,
    scorer: str | None = None,
    scorer_workdir: str | None = None,
    steps: str = "4,8,16,32,64,128,256",
    samples: int = 64,
    length: int | None = None,
    batch: int = 16,
    order: str = "ancestral",
    method: str = "ancestral",
    grid: str = "auto",
    temperature: float = 1.0,
    top_p: float = 1.0,
    seed: int = 0,
    data: str | None = None,
    split: str = "valid",
    output: str | None = None,
    latency: bool = False,
    batches: str = "1,8",
    blocks: str = "16",
    repeats: int = 3,
) -> dict[str, Any]:
    """Prints the steps-quality curve of a run (or, with `latency`, how fast it makes text) and writes it to `output`.

    Raises InputError: no such run, scorer or corpus; settings that contradict each other.
    """
    numbers = integers(steps)
    check_seed(seed)
    run = open_run(workdir, weights=weights, step=step)
    length = length or run.experiment.config.data.length
    about = {"workdir": str(workdir), "step": run.step, "weights": run.weights, "process": run.experiment.process.name, "length": length}
    if latency:
        return _latency(run, about, numbers, integers(batches), integers(blocks), repeats, output)
    settings = SampleSettings(
        order=order,
        method=method,
        grid=grid,
        temperature=temperature,
        top_p=top_p,
        never=never_sampled(run.experiment.tokenizer, run.experiment.process.vocab),
    )
    judge = open_scorer(run.experiment.tokenizer, scorer, scorer_workdir)
    corpus, why_not = _held_out(run, data, split)
    with_mauve = judge is not None and corpus is not None and mauve_score.available()
    curve = generated.steps_curve(
        run, settings, numbers, count=samples, length=length, batch=batch, seed=seed, scorer=judge, corpus=corpus, mauve=with_mauve
    )
    absent = [why_not] if corpus is None else []
    absent += [] if judge else ["no generative perplexity and no MAUVE: give --scorer or --scorer-workdir"]
    absent += [] if with_mauve or judge is None or corpus is None else ["no MAUVE: pip install 'dlmjax[quality]'"]
    report = {
        **about,
        "seed": seed,
        "batch": batch,
        "settings": settings.to_json() | {"steps": None},
        "scorer": judge.record if judge else None,
        "mauve_seeds": mauve_score.SEEDS if with_mauve else None,
        "rows": list(curve.rows),
        "held_out": None if corpus is None else {"split": split, **curve.held_out},
        "absent": absent,
    }
    head = f"{about['process']}, step {run.step}, {run.weights} weights; {samples} texts of {length} tokens, temperature {temperature:g}"
    scored = f"; scored by {judge.record['scorer']} ({judge.record['kind']})" if judge else ""
    print(f"{head}, {report['rows'][0]['precision']}{scored}\n\n{generated.table(curve)}", flush=True)
    for line in absent:
        print(f"({line})", flush=True)
    if output:
        _write_quality(pathlib.Path(output), report, curve, head + scored)
    return report


def _write_quality(output: pathlib.Path, report: dict, curve: generated.Curve, title: str) -> None:
    """The table, the texts and the picture; the table last, so that where it is, the rest is too."""
    lines = [
        {"steps": row["steps"], "sample": number, "text": sample.text, "token_ids": sample.ids_L.tolist()}
        for row, made in zip(curve.rows, curve.made, strict=True)
        for number, sample in enumerate(made.samples)
    ]
    write_atomically(output / "samples.jsonl", "".join(as_json(line) + "\n" for line in lines))
    if plot.available():
        write_atomically(output / "quality.png", plot.draw(curve, title))
    else:
        print("(no picture: pip install 'dlmjax[quality]' brings matplotlib)", flush=True)
    write_json(output / "quality.json", report)
    print(f"written to {output}", flush=True)


def _latency(run: Run, about: dict, steps, batches, blocks, repeats: int, output: str | None) -> dict[str, Any]:
    rows = latency.latency_grid(
        run, steps, batches, length=about["length"], blocks=blocks, repeats=repeats, say=lambda line: print(f"timing {line}", flush=True)
    )
    millions = run.experiment.parameter_count / 1e6
    print(
        f"\n{millions:.2f}M parameters, texts of {about['length']} tokens, {rows[0]['precision']}, {rows[0]['device']}; median of "
        f"{repeats}\n\n{latency.table(rows)}",
        flush=True,
    )
    report = {**about, "rows": rows}
    if output:
        write_json(pathlib.Path(output) / "latency.json", report)
    return report


def puzzles(
    *,
    kind: str,
    output: str,
    input: str | None = None,
    givens: int = 0,
    answers_only: bool = False,
    count: int | None = None,
    numbers: int = 3,
    largest: int = 20,
    split: str = "train",
    seed: int = 0,
) -> int:
    """Writes puzzles, one a line, and says how they are trained on; returns how many.

    Raises InputError: no table of Sudoku puzzles, a solution that breaks a rule, sizes out of range.
    """
    if count is not None and count < 1:
        raise InputError(f"count is {count}; it must be at least 1")
    check_seed(seed)
    if kind == "countdown":
        if input or givens or answers_only:
            raise InputError("countdown puzzles are made, not read: leave out --input, --givens and --answers-only")
        found = puzzles_lib.make_countdown(count or 1000, numbers=numbers, largest=largest, seed=seed, split=split)
    else:
        if not input:
            raise InputError("sudoku puzzles are read from a table: give --input FILE.csv with columns puzzle and solution")
        found = list(puzzles_lib.read_sudoku(_table_rows(input), givens, seed))[:count]
        if not found:
            raise InputError(f"{input} holds no puzzles")
    lines = [puzzle.answer if answers_only else puzzle.line for puzzle in found]
    write_atomically(output, "".join(line + "\n" for line in lines))
    print(
        f"{len(lines):,} {kind} puzzles of {len(lines[0])} characters in {output}\n"
        f"train on them with: dlmjax prepare --input {output} --documents line --tokenizer bytes --output DIR, then "
        f"dlmjax train --config configs/puzzles.py --config.data.paths=DIR --config.data.length={len(lines[0]) + 1}",
        flush=True,
    )
    return len(lines)


def _table_rows(file: str) -> list[dict[str, str]]:
    opener = {".xz": lzma.open, ".gz": gzip.open}.get(pathlib.Path(file).suffix, open)
    try:
        with opener(file, "rt", encoding="utf-8", newline="") as table:
            return list(csv.DictReader(table))
    except (OSError, EOFError, UnicodeDecodeError, lzma.LZMAError, csv.Error) as error:
        raise InputError(f"{file} cannot be read as a table of puzzles ({error}); give a .csv, plain or .gz/.xz") from error


def solve(
    *,
    workdir: str,
    input: str,
    weights: str = "ema",
    step: int | None = None,
    in_place: bool = False,
    count: int | None = None,
    steps: int = 256,
    batch: int = 100,
    order: str = "confidence",
    method: str = "ancestral",
    grid: str = "auto",
    temperature: float = 0.0,
    top_p: float = 1.0,
    seed: int = 0,
    json: str | None = None,
) -> dict[str, Any]:
    """Prints how many puzzles of a file a run solves, with binomial s.e. and a 95 % interval.

    Raises InputError: no such run or file, puzzles that do not fit the run, settings that contradict each other.
    """
    check_seed(seed)
    found = puzzles_lib.parse(_lines(input)[:count])
    run = open_run(workdir, weights=weights, step=step)
    if run.experiment.process.causal:
        order = "left_to_right"  # the only order there is
    settings = SampleSettings(
        steps=steps,
        order=order,
        method=method,
        grid=grid,
        temperature=temperature,
        top_p=top_p,
        never=never_sampled(run.experiment.tokenizer, run.experiment.process.vocab),
    )
    made = solve_puzzles(run, found, settings, in_place=in_place, batch=batch, seed=seed)
    report = {"workdir": str(workdir), "input": input, **solving_report(run, found, made, in_place=in_place, seed=seed)}
    low, high = report["solved_rate_95"]
    print(
        f"{report['puzzle']}: {report['solved']} of {report['puzzles']} solved = {report['solved_rate']:.3f} ± "
        f"{report['stderr_solved_rate']:.3f} (95 %: {low:.3f} to {high:.3f}); partly right {report['partly_right']:.3f}; "
        f"{report['calls']} network calls each, order {made.settings.order}, temperature {temperature:g}",
        flush=True,
    )
    if json:
        write_json(json, report)
    return report


def embed(*, workdir: str, input: str, output: str, weights: str = "ema", step: int | None = None, batch: int = 16) -> dict[str, Any]:
    """Writes one vector a line of a text file as .npz: `embeddings` [lines, width] float32, `tokens` [lines] int64.

    Raises InputError: no such run or file, no lines.
    """
    if not output.endswith(".npz"):
        raise InputError(f"--output {output} must end with .npz")
    texts = _lines(input)
    run = open_run(workdir, weights=weights, step=step)
    vectors_ND, tokens_N = embed_texts(run, texts, batch)
    content = io.BytesIO()
    np.savez(content, embeddings=vectors_ND, tokens=tokens_N)
    write_atomically(output, content.getvalue())
    print(f"{output}: {len(texts):,} vectors of {vectors_ND.shape[1]} ({tokens_N.sum():,} tokens, step {run.step})", flush=True)
    return {"texts": len(texts), "width": vectors_ND.shape[1], "tokens": int(tokens_N.sum())}


def activations(
    *,
    workdir: str,
    data: str | None = None,
    split: str = "valid",
    windows: int = 16,
    weights: str = "ema",
    step: int | None = None,
    json: str | None = None,
) -> dict[str, Any]:
    """Prints outlier statistics of a run's activations on held-out text, a row a layer and place.

    Raises InputError: no such run, corpus or split.
    """
    if windows < 1:
        raise InputError(f"windows is {windows}; it must be at least 1")
    run = open_run(workdir, weights=weights, step=step)
    corpus, why_not = _held_out(run, data, split)
    if corpus is None:
        raise InputError(why_not)
    held_out = EvalWindows(corpus, run.experiment.config.data.length, limit=windows)
    batch = held_out.rows(range(len(held_out)))
    texts = [tokens_L[segments_L > 0] for tokens_L, segments_L in zip(batch["tokens"], batch["segments"], strict=True)]
    rows = outliers.activation_statistics(run, texts)
    report = {
        "workdir": str(workdir),
        "step": run.step,
        "weights": run.weights,
        "split": split,
        "windows": len(texts),
        "tokens": sum(len(text) for text in texts),
        "precision": run.experiment.config.execution.dtype,
        "rows": rows,
    }
    print(f"{report['tokens']:,} tokens of {split}, step {run.step}, {report['precision']}\n\n{outliers.table(rows)}", flush=True)
    if json:
        write_json(json, report)
    return report


def _lines(file: str) -> list[str]:
    """The lines of a text file. What else Unicode calls a line boundary (U+2028, form feed) is a character of its line."""
    try:
        text = pathlib.Path(file).read_text(encoding="utf-8")
        return text.removesuffix("\n").split("\n") if text else []
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{file} cannot be read as UTF-8 text ({error}); correct --input") from error


def _held_out(run: Run, data: str | None, split: str) -> tuple[Corpus | None, str]:
    """The corpus to compare with, or why there is none; a corpus that was asked for must be there.

    Raises InputError: it is damaged, unfinished or of another tokenizer, also where it is the run's own.
    """
    try:
        return split_of(run, data, split), ""
    except (NoCorpus, NoSplit) as error:
        if data:
            raise
        return None, f"no held-out text: {error}"
