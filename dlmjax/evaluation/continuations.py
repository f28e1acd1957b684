"""Continuations given as texts: how context and continuation become tokens, and the scores of those that are longer than a row.

`ConditionalScorer` scores token ids that fit into one row; `dlmjax.run.Run.score` and the adapter of lm-eval-harness start here.
"""

import hashlib
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from dlmjax.evaluation.conditional import ConditionalScorer, Request, Score, split

Pair = tuple[np.ndarray, np.ndarray]  # token ids of a context and of its continuation


def encode_pairs(tokenizer: Any, pairs: Sequence[tuple[str, str]]) -> list[Pair]:
    """Token ids of contexts and continuations.

    Context and continuation are encoded together and cut where the context alone ends; spaces that end a context belong to the
    continuation (lm-eval's rule for causal models). Where one token crosses that boundary, the cut would leave a part of the
    continuation unscored: context and continuation are then encoded separately.
    """
    moved = [(context.rstrip(), context[len(context.rstrip()) :] + continuation) for context, continuation in pairs]
    contexts = tokenizer.encode_many([context for context, _ in moved])
    wholes = tokenizer.encode_many([context + continuation for context, continuation in moved])
    cuts = [(context, whole[len(context) :]) for context, whole in zip(contexts, wholes, strict=True)]
    merged = [i for i, (context, end) in enumerate(cuts) if not len(end) or not np.array_equal(wholes[i][: len(context)], context)]
    ends = tokenizer.encode_many([moved[i][1] for i in merged])
    for i, end in zip(merged, ends, strict=True):
        cuts[i] = contexts[i], end
    return cuts


def score_pairs(
    scorer: ConditionalScorer,
    params: Any,
    pairs: Sequence[Pair],
    groups: Sequence[int],
    *,
    overlap: int = 1,
    greedy: bool = False,
    progress: bool = False,
) -> list[tuple[Score, bool | None]]:
    """(score, whether deterministic decoding writes the continuation; None without `greedy`) of each pair: sums over its pieces, of
    which a pair that is longer than a row has several.

    groups: a number for each pair; pairs with the same number share their noise.  overlap: tokens of context of each later piece.
    """
    pieces: list[Request] = []
    owners: list[int] = []
    for i, ((context, continuation), group) in enumerate(zip(pairs, groups, strict=True)):
        for n, (before, part) in enumerate(split(context, continuation, scorer.longest, overlap)):
            pieces.append(Request(before, part, (group + n) % 2**63))
            owners.append(i)
    scores = scorer(params, pieces, progress=progress)
    right = scorer.greedy(params, pieces) if greedy else [None] * len(pieces)
    by_pair: list[list[tuple[Score, bool | None]]] = [[] for _ in pairs]
    for owner, score, is_greedy in zip(owners, scores, right, strict=True):
        by_pair[owner].append((score, is_greedy))
    return [(_sum([score for score, _ in own]), all(is_greedy for _, is_greedy in own) if greedy else None) for own in by_pair]


def _sum(scores: Sequence[Score]) -> Score:
    return Score(
        sum(score.log_likelihood for score in scores),
        math.sqrt(sum(score.stderr**2 for score in scores)),
        sum(score.tokens for score in scores),
        sum(score.passes for score in scores),
    )


def question_number(task: str | None, document: int | None, context: str) -> int:
    """A number for the question of a request, whose choices share their noise; without a question, for its context."""
    name = f"{task}\0{document}" if task is not None else f"\0{context}"
    return int.from_bytes(hashlib.blake2b(name.encode("utf-8"), digest_size=8).digest(), "little") >> 1
