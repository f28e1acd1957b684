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
from dlmjax.quality.verifiers import searcher
from dlmjax.run import Run
from dlmjax.sampling import Canvas, Samples, SampleSettings, sampler_for
from dlmjax.sampling.samples import PRECISION, Counts
from dlmjax.sampling.search import Found, plain
from dlmjax.seeds import following

EXAMPLES = 3


@dataclasses.dataclass(frozen=True)
class Solved:
    """A run's answers to puzzles.  answers, solved, partly (correct share), calls_each (network calls until its last token): one per
    puzzle; calls: network calls of the longest one; counts: mean over puzzles, see `samples.Counts`."""

    answers: tuple[str, ...]
    solved: tuple[bool, ...]
    partly: tuple[float, ...]
    calls_each: tuple[int, ...]
    calls: int
    settings: SampleSettings
    counts: dict[str, float]
    search: str | None = None
    candidates: tuple[tuple[dict[str, Any], ...], ...] = ()  # of each puzzle, with a search: answer, score, seed, solved


def solve(
    run: Run,
    puzzles: Sequence[Puzzle],
    settings: SampleSettings,
    *,
    in_place: bool = False,
    batch: int = 100,
    seed: int = 0,
    search: str | None = None,
) -> Solved:
    """Samples an answer to each puzzle and checks it.

    search: each answer is the chosen one of several, see `sampling.search`, whose calls are counted together; the score `checker` is
      1 for an answer that obeys the rules, else 0.
    in_place: mask the empty cells of the board (Sudoku).  batch: puzzles at a time; one compilation serves all batches.
    Raises InputError: puzzles of several kinds or lengths, a tokenizer whose tokens are not characters, a canvas longer than the run's
      windows, settings that the process does not support.
    """
    if batch < 1:
        raise InputError(f"batch is {batch}; it must be at least 1")
    kind, tokenizer = kind_of(puzzles[0]), run.experiment.tokenizer
    if in_place and kind.name != "sudoku":
        raise InputError(f"puzzles of kind {kind.name} have no cells to be filled in place; leave --in-place out")
    sampler = sampler_for(run.process, run.experiment.for_canvases, settings, tokenizer=tokenizer, drafter=run.drafter(settings))
    answers, calls_each, candidates, counts, size = [], [], [], [], min(batch, len(puzzles))
    asked = _Asked(run, kind, sampler, in_place, search)
    with Progress(len(puzzles), f"solving {kind.name}", " puzzles") as bar:
        for start in range(0, len(puzzles), size):
            some = list(puzzles[start : start + size])
            # The last batch is filled up with copies of a puzzle, so that one compilation serves all.
            canvas = puzzle_canvas(run, [*some, *[some[0]] * (size - len(some))], in_place)
            samples, found = asked.sample(canvas, some, following(seed, start // size))
            calls = _calls(samples) if found is None else np.full(size, found.calls)
            calls_each += calls[: len(some)].tolist()
            counts.append([count_B[: len(some)] for count_B in samples.counts])
            answers += [asked.answer(ids_L) for ids_L in samples.tokens_BL[: len(some)]]
            candidates += asked.candidates(found)
            bar.reach(len(answers))
    solved = tuple(kind.solves(puzzle.clue, answer) for puzzle, answer in zip(puzzles, answers, strict=True))
    partly = tuple(kind.partly(puzzle.clue, answer, puzzle.answer) for puzzle, answer in zip(puzzles, answers, strict=True))
    means = Counts(*(np.concatenate(parts) for parts in zip(*counts, strict=True))).means()
    found = tuple(answers), solved, partly, tuple(calls_each), max(calls_each)
    return Solved(*found, sampler.settings, means, search, tuple(candidates))


class _Asked:
    """A batch of puzzles, and the answers to them, with or without a search."""

    def __init__(self, run: Run, kind: Any, sampler: Any, in_place: bool, search: str | None):
        self.run, self.kind, self.sampler, self.in_place, self.puzzles = run, kind, sampler, in_place, []
        how = {"text_of_answer": self.answer, "scores": {"checker": self.checked}}
        self.searcher = None if search is None else searcher(search, run, sampler, **how)

    def sample(self, canvas: Canvas, puzzles: list[Puzzle], seed: int) -> tuple[Samples, Found | None]:
        """The answers to puzzles as rows of tokens, and what a search found."""
        self.puzzles = puzzles
        if self.searcher is None:
            return self.sampler.sample(self.run.params, canvas, seed=seed), None
        found = self.searcher.sample(self.run.params, canvas, seed=seed)
        return found.samples, found

    def answer(self, ids_L: np.ndarray) -> str:
        """The answer in a row: the board, or what follows the clue."""
        begin = 0 if self.in_place else len(self.puzzles[0].clue) + 1
        return self.run.tokenizer.decode(ids_L[begin : begin + len(self.puzzles[0].answer)])

    def checked(self, candidates: Sequence[Samples]) -> np.ndarray:
        """The score `checker`: 1 where the rules are obeyed, else 0, [P, N]; 0 for copies that fill up a batch."""
        scores_PN = np.zeros((len(candidates[0].tokens_BL), len(candidates)))
        for j, each in enumerate(candidates):
            for p, puzzle in enumerate(self.puzzles):
                scores_PN[p, j] = self.kind.solves(puzzle.clue, self.answer(each.tokens_BL[p]))
        return scores_PN

    def candidates(self, found: Found | None) -> list[tuple[dict[str, Any], ...]]:
        """Each candidate of each puzzle: its answer, score and seed, and whether it is a solution."""
        if found is None:
            return []
        solved_PN = self.checked(found.candidates) > 0
        return [
            tuple(
                {"answer": self.answer(each.tokens_BL[p]), "score": plain(score), "seed": found.seed_of(j, p), "solved": bool(solved)}
                for j, (each, score, solved) in enumerate(zip(found.candidates, found.scores_PN[p], solved_PN[p], strict=True))
            )
            for p in range(len(self.puzzles))
        ]


def _calls(samples: Samples) -> np.ndarray:
    """Network calls of each row: all rows of a batch take the steps of the slowest; a row whose tokens are all there needs no more."""
    last_B = samples.fixed_BL.max(axis=1)
    return samples.evaluations - last_B.max() + last_B


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
        "counts": found.counts,
        "seed": seed,
        "process": run.experiment.process.name,
        "step": run.step,
        "weights": run.weights,
        "precision": f"{run.experiment.config.execution.dtype} network, {PRECISION}",
        "settings": found.settings.to_json(),
        **_search_report(found),
        "examples": [
            {"clue": puzzle.clue, "answer": answer, "reference": puzzle.answer, "solved": solved}
            for puzzle, answer, solved in list(zip(puzzles, found.answers, found.solved, strict=True))[:EXAMPLES]
        ],
    }


def _search_report(found: Solved) -> dict[str, Any]:
    """Of a search: the share of all candidates that are solutions (pass@1), of puzzles with at least one (pass@n), and each candidate."""
    if found.search is None:
        return {}
    solved = [[each["solved"] for each in own] for own in found.candidates]
    one, one_error = mean_with_error([sum(own) / len(own) for own in solved])
    several, several_error = mean_with_error([float(any(own)) for own in solved])
    return {
        "search": {
            "search": found.search,
            "candidates": len(solved[0]),
            "pass_1": one,
            "stderr_pass_1": one_error if math.isfinite(one_error) else None,
            "pass_any": several,
            "stderr_pass_any": several_error if math.isfinite(several_error) else 0.0,
            "found": [list(own) for own in found.candidates],
        }
    }
