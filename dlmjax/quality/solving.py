"""Solving puzzles with a run: the clue conditions the sample, and a checker of the rules decides whether the answer is a solution.

    after the clue   "clue=____", for runs trained on whole lines, autoregressive ones too
    in place         the board with its empty cells masked (Sudoku), for runs trained on boards alone, whose network attends to the whole
                     canvas; the clue may be any cells

Shapes: B rows sampled together, L positions of the canvas.
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from dlmjax.errors import InputError
from dlmjax.progress import Progress
from dlmjax.quality.diversity import mean_with_error
from dlmjax.quality.puzzles import Puzzle, kind_of
from dlmjax.run import Run
from dlmjax.sampling import Canvas, SampleSettings, sampler_for
from dlmjax.sampling.samples import PRECISION
from dlmjax.seeds import following

EXAMPLES = 3


@dataclasses.dataclass(frozen=True)
class Solved:
    """A run's answers to puzzles.  answers, solved, partly (correct share), calls_each (network calls until its last token): one per
    puzzle; calls: network calls of the longest one."""

    answers: tuple[str, ...]
    solved: tuple[bool, ...]
    partly: tuple[float, ...]
    calls_each: tuple[int, ...]
    calls: int
    settings: SampleSettings


def solve(
    run: Run, puzzles: Sequence[Puzzle], settings: SampleSettings, *, in_place: bool = False, batch: int = 100, seed: int = 0
) -> Solved:
    """Samples an answer to each puzzle and checks it.

    in_place: mask the empty cells of the board (Sudoku).  batch: puzzles at a time; one compilation serves all batches.
    Raises InputError: puzzles of several kinds or lengths, a tokenizer whose tokens are not characters, a canvas longer than the run's
      windows, settings that the process does not support.
    """
    if batch < 1:
        raise InputError(f"batch is {batch}; it must be at least 1")
    kind, tokenizer = kind_of(puzzles[0]), run.experiment.tokenizer
    if in_place and kind.name != "sudoku":
        raise InputError(f"puzzles of kind {kind.name} have no cells to be filled in place; leave --in-place out")
    sampler = sampler_for(run.experiment.process, run.experiment.unpartitioned, settings, tokenizer=tokenizer)
    answers, calls_each, size = [], [], min(batch, len(puzzles))
    with Progress(len(puzzles), f"solving {kind.name}", " puzzles") as bar:
        for start in range(0, len(puzzles), size):
            some = list(puzzles[start : start + size])
            # The last batch is filled up with copies of a puzzle, so that one compilation serves all.
            canvas = puzzle_canvas(run, [*some, *[some[0]] * (size - len(some))], in_place)
            samples = sampler.sample(run.params, canvas, seed=following(seed, start // size))
            begin, last_B = 0 if in_place else len(some[0].clue) + 1, samples.fixed_BL.max(axis=1)
            # All rows of a batch take the steps of the slowest; a row whose tokens are all there needs no further ones.
            calls_each += (samples.evaluations - last_B.max() + last_B)[: len(some)].tolist()
            answers += [tokenizer.decode(ids_L[begin : begin + len(some[0].answer)]) for ids_L in samples.tokens_BL[: len(some)]]
            bar.reach(len(answers))
    solved = tuple(kind.solves(puzzle.clue, answer) for puzzle, answer in zip(puzzles, answers, strict=True))
    partly = tuple(kind.partly(puzzle.clue, answer, puzzle.answer) for puzzle, answer in zip(puzzles, answers, strict=True))
    return Solved(tuple(answers), solved, partly, tuple(calls_each), max(calls_each), sampler.settings)


def puzzle_canvas(run: Run, puzzles: list[Puzzle], in_place: bool) -> Canvas:
    """The canvas of puzzles: the clue conditions, the answer and the end of document are masked."""
    texts = [puzzle.clue if in_place else puzzle.line for puzzle in puzzles]
    tokens_BL = _characters(run, texts)
    condition_mask_BL = np.zeros(tokens_BL.shape, bool)
    if in_place:
        condition_mask_BL[:, :-1] = np.array([[cell != "0" for cell in text] for text in texts])
    else:
        condition_mask_BL[:, : len(puzzles[0].clue) + 1] = True
    tokens_BL = np.where(condition_mask_BL, tokens_BL, run.experiment.tokenizer.mask_id).astype(np.int32)
    return Canvas(tokens_BL, condition_mask_BL, np.where(condition_mask_BL, 0.0, 1.0).astype(np.float32))


def _characters(run: Run, texts: list[str]) -> np.ndarray:
    """Tokens of the texts, one per character, with one more position for the end of document."""
    tokenizer, length = run.experiment.tokenizer, len(texts[0]) + 1
    encoded = [tokenizer.encode(text) for text in texts]
    if any(len(ids) != len(text) for ids, text in zip(encoded, texts, strict=True)):
        raise InputError(f"puzzles require a tokenizer with one token per character, such as bytes, not {tokenizer.name}")
    if length > run.experiment.config.data.length:
        raise InputError(f"a puzzle takes {length} tokens, but the run was trained on windows of {run.experiment.config.data.length}")
    return np.pad(np.stack(encoded), ((0, 0), (0, 1)))


def report(run: Run, puzzles: Sequence[Puzzle], found: Solved, *, in_place: bool, seed: int) -> dict[str, Any]:
    """Results and protocol as plain JSON: rates with binomial s.e. and Wilson interval, settings, the first answers."""
    from scipy.stats import binomtest

    count, right = len(found.solved), sum(found.solved)
    rate = right / count
    interval = binomtest(right, count).proportion_ci(0.95, method="wilson")
    partly, partly_error = mean_with_error(found.partly)
    return {
        "puzzle": kind_of(puzzles[0]).name,
        "in_place": in_place,
        "puzzles": count,
        "solved": right,
        "solved_rate": rate,
        "stderr_solved_rate": math.sqrt(rate * (1 - rate) / count),
        "solved_rate_95": [interval.low, interval.high],
        "partly_right": partly,
        "stderr_partly_right": partly_error if math.isfinite(partly_error) else None,
        "calls": found.calls,
        "mean_calls": sum(found.calls_each) / count,
        "seed": seed,
        "process": run.experiment.process.name,
        "step": run.step,
        "weights": run.weights,
        "precision": f"{run.experiment.config.execution.dtype} network, {PRECISION}",
        "settings": found.settings.to_json(),
        "examples": [
            {"clue": puzzle.clue, "answer": answer, "reference": puzzle.answer, "solved": solved}
            for puzzle, answer, solved in list(zip(puzzles, found.answers, found.solved, strict=True))[:EXAMPLES]
        ],
    }
