"""Answers of a run to the prompts of supervised data: how long they are beside those of the data, whether they end, which of them match.

A canvas is a row of the run's length: the prompt conditions, all behind it is masked. An answer ends with the first token that ends the
answers of the data: the EOS, or the special token that a chat template writes behind an answer. What follows it is not part of it.

Shapes: P tokens of a prompt, A of an answer, N of either, B rows sampled together, L positions of the canvas.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Int

from dlmjax.data.corpus import Corpus
from dlmjax.data.roles import HIDDEN, SCORED, use_of
from dlmjax.errors import InputError
from dlmjax.quality.diversity import mean_with_error
from dlmjax.run import Run
from dlmjax.sampling import Canvas, SampleSettings, sampler_for
from dlmjax.sampling.text import text_of
from dlmjax.seeds import following

QUANTILES = (0.1, 0.5, 0.9)


@dataclasses.dataclass(frozen=True)
class Question:
    """A prompt, and the answer of the data with the token that ends it. Token ids."""

    prompt_P: Int[np.ndarray, "P"]
    answer_A: Int[np.ndarray, "A"]


@dataclasses.dataclass(frozen=True)
class Answers:
    """What a run answers. tokens: of each answer, its end included.  ended: whether it has one.  calls: network calls of a canvas."""

    tokens: tuple[np.ndarray, ...]
    ended: tuple[bool, ...]
    calls: int


def questions_of(corpus: Corpus, count: int, length: int) -> list[Question]:
    """The first `count` documents of a split of supervised data, each up to its first answer, that fit into `length` tokens.

    Raises InputError: a corpus without answers, or none that fits.
    """
    if not corpus.has_roles:
        raise InputError(f"{corpus.directory} has no answers; give a corpus of dlmjax prepare --format prompt-answer, chat or spans")
    found, begin = [], 0
    for end in (end for ends_D in corpus.document_ends() for end in ends_D.tolist()):
        tokens_N, use_N = corpus.read(begin, end - begin), use_of(corpus.read_roles(begin, end - begin))
        tokens_N, use_N, begin = tokens_N[use_N != HIDDEN], use_N[use_N != HIDDEN], end
        scored_N = np.append(use_N == SCORED, False)
        first = int(np.argmax(scored_N))
        last = first + int(np.argmin(scored_N[first:]))
        if 0 < first < last <= length:
            found.append(Question(tokens_N[:first], tokens_N[first:last]))
        if len(found) == count:
            break
    if not found:
        raise InputError(f"the split {corpus.split} of {corpus.directory} has no prompt with an answer that fits into {length:,} tokens")
    return found


def end_ids(questions: Sequence[Question], tokenizer: Any) -> list[int]:
    """The ids that end an answer: the EOS, and tokens without text that end answers of the data."""
    last = {int(question.answer_A[-1]) for question in questions}
    return sorted({tokenizer.eos_id} | {number for number in last if tokenizer.byte_lengths_V[number] == 0})


def answer(run: Run, questions: Sequence[Question], settings: SampleSettings, *, batch: int = 50, seed: int = 0) -> Answers:
    """Samples an answer to each prompt. batch: prompts at a time; another number draws other answers.

    Raises InputError: settings that the process does not support.
    """
    experiment, length, ends = run.experiment, run.experiment.config.data.length, end_ids(questions, run.tokenizer)
    sampler = sampler_for(run.process, experiment.for_canvases, settings, tokenizer=run.tokenizer, drafter=run.drafter(settings))
    tokens, ended, size, calls = [], [], min(batch, len(questions)), 0
    for start in range(0, len(questions), size):
        some = questions[start : start + size]
        # The last batch is filled up with copies of a prompt, so that one compilation serves all.
        canvas = _canvas([*some, *[some[0]] * (size - len(some))], length, run.tokenizer.mask_id)
        samples = sampler.sample(run.params, canvas, seed=following(seed, start // size))
        calls = samples.evaluations
        for question, row_L in zip(some, samples.tokens_BL, strict=False):
            made_N = row_L[len(question.prompt_P) :]
            found = np.flatnonzero(np.isin(made_N, ends))
            tokens.append(made_N[: int(found[0]) + 1] if len(found) else made_N)
            ended.append(bool(len(found)))
    return Answers(tuple(tokens), tuple(ended), calls)


def report(questions: Sequence[Question], answers: Answers, tokenizer: Any, mark: str) -> dict[str, Any]:
    """Lengths in tokens of both, the share of answers without an end, and of those whose last part, behind `mark`, is that of the data."""
    made, real = ([float(len(tokens_N)) for tokens_N in each] for each in (answers.tokens, [question.answer_A for question in questions]))
    exact = [
        (said := last_part(text_of(tokenizer, tokens_N), mark)) is not None
        and said == last_part(text_of(tokenizer, question.answer_A), mark)
        for tokens_N, question in zip(answers.tokens, questions, strict=True)
    ]
    out: dict[str, Any] = {"questions": len(questions), "calls": answers.calls}
    for name, lengths in (("made", made), ("data", real)):
        mean, error = mean_with_error(lengths)
        quantiles = {f"{q:g}": float(value) for q, value in zip(QUANTILES, np.quantile(lengths, QUANTILES), strict=True)}
        out[f"length_{name}"] = {"mean": mean, "stderr": error, "quantiles": quantiles}
    for name, values in (("without_end", [not one for one in answers.ended]), ("exact", exact)):
        out[name], out[f"stderr_{name}"] = mean_with_error([float(value) for value in values])
    marked = [last_part(text_of(tokenizer, tokens_N), mark) is not None for tokens_N in answers.tokens]
    out["marked"], out["stderr_marked"] = mean_with_error([float(value) for value in marked])
    return out


def last_part(text: str, mark: str) -> str | None:
    """What follows the last `mark`, without white space around it and commas in it; None without the mark."""
    _, found, part = text.rpartition(mark)
    return part.strip().replace(",", "") if found else None


def _canvas(questions: Sequence[Question], length: int, mask_id: int) -> Canvas:
    tokens_BL, condition_mask_BL = np.full((len(questions), length), mask_id, np.int32), np.zeros((len(questions), length), bool)
    for b, question in enumerate(questions):
        tokens_BL[b, : len(question.prompt_P)] = question.prompt_P
        condition_mask_BL[b, : len(question.prompt_P)] = True
    return Canvas(tokens_BL, condition_mask_BL, np.where(condition_mask_BL, 0.0, 1.0).astype(np.float32))
