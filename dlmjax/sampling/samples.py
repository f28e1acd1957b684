"""Results of a sampler: the state after each step, the finished rows, and their record."""

import dataclasses
from typing import Any, NamedTuple

import numpy as np

from dlmjax.sampling.lengths import length_report
from dlmjax.sampling.settings import SampleSettings
from dlmjax.sampling.text import text_of

PRECISION = "float32 logits, high-precision Gumbel noise"
COUNT_NAMES = ("calls_each", "rows_each", "positions_read", "extra_each")  # of `Counts`, in records


class Counts(NamedTuple):
    """What each text has cost until it was finished; a number alone stands for all texts.

    calls_B: network calls; guidance takes two for each step, with the prompt and without it.
    rows_B: rows that these calls read: one a call, and with drafts one for each draft.
    reads_B: positions that went through the layers in these rows.
    extra_B: forward passes beside the network: calls of a classifier, verifier, reward or score; a gradient counts as 3.
    """

    calls_B: Any = 0
    rows_B: Any = 0
    reads_B: Any = 0
    extra_B: Any = 0

    @classmethod
    def of_call(cls, reads: Any) -> "Counts":
        """One call of one row in which `reads` positions go through the layers."""
        return cls(1, 1, reads)

    def plus(self, other: "Counts", where_B: Any = True) -> "Counts":
        """The sum of both; `other` counts for the texts `where_B` alone."""
        return Counts(*(one + two * where_B for one, two in zip(self, other, strict=True)))

    def for_rows(self, rows: int) -> "Counts":
        """The counts as arrays of this many texts."""
        return Counts(*(np.broadcast_to(np.asarray(count), (rows,)) for count in self))

    def means(self) -> dict[str, float]:
        """The mean over texts, by name: calls, rows, reads, extra."""
        return {name[:-2]: float(np.mean(count)) for name, count in self._asdict().items()}

    def of_rows(self, rows: int) -> "Counts":
        """The counts of the first rows."""
        return Counts(*(count_B[:rows] for count_B in self))

    def __str__(self) -> str:
        """The means in words, `extra` only where there is some."""
        calls, rows, reads, extra = self.means().values()
        passes = f", {extra:,.0f} passes beside the network" if extra else ""
        return f"{calls:,.4g} calls, {rows:,.4g} rows, {reads:,.0f} positions read{passes}"


class State(NamedTuple):
    """The canvas after a step (numpy).

    step: number of steps so far, 0 = the start; steps: number of all steps; time: t after this step.
    tokens_BL: token ids; masked_BL: True where the position still holds the mask.
    confidence_BL: probability of the token when it was revealed; at a masked position, the largest probability of a token; 1 where the
      canvas conditions.
    fixed_BL: step at which the token was revealed; 0 where it was there at the start, -1 where it is masked.
    calls: network calls so far, of the row with the most.  counts: what each row has cost until it was finished; None between the steps of
      a block.
    exit_nats_B: what a stop may have cost each row, nats; see `stops`.  canvas_B: positions of each row's own canvas, where it grows.
    guess_BL: the tokens before the step, completed by the most likely tokens of its call where they were masked.
    accepted_B: steps of each row that cost no call, since a draft was right; see `drafting`.  drafter_calls_B: those of `calls_B` that were
      of a drafter, where another network verifies; see `verified`.
    drift_A3: where reused keys and values are measured, by the age of the oldest entry in calls: sums over masked positions of the nats
      KL(p || p by reused keys and values), of changes of the most likely token, and of 1.
    """

    step: int
    steps: int
    time: float
    tokens_BL: np.ndarray
    masked_BL: np.ndarray
    confidence_BL: np.ndarray
    fixed_BL: np.ndarray
    calls: int = 0
    counts: Counts | None = None
    exit_nats_B: np.ndarray | None = None
    canvas_B: np.ndarray | None = None
    guess_BL: np.ndarray | None = None
    accepted_B: np.ndarray | None = None
    drift_A3: np.ndarray | None = None
    drafter_calls_B: np.ndarray | None = None

    @property
    def calls_B(self) -> np.ndarray | None:
        """Network calls of each row until it was finished."""
        return None if self.counts is None else self.counts.calls_B


# A row whose most frequent token fills more than this share of its generated positions has collapsed: among 32 samples of two small runs
# (docs/sampling.md) that share was at most 0.43 in ancestral order, and 0.8 to 1 where a ranked order repeated one token.
COLLAPSED_SHARE, LEAST_GENERATED = 0.5, 16


@dataclasses.dataclass(frozen=True)
class Samples:
    """Finished samples with their settings.  evaluations: network calls of the row with the most (NFE); counts: what each row has cost;
    exit_nats_B: what a stop may have cost each row, nats; entropy_B: unigram entropy, nats per token; canvas_B: positions of each row where
    rows have canvases of several sizes, None = all; accepted_B: steps of each row without a call, None without drafts; the other arrays as
    in `State` and `Canvas`."""

    tokens_BL: np.ndarray
    condition_mask_BL: np.ndarray
    confidence_BL: np.ndarray
    fixed_BL: np.ndarray
    entropy_B: np.ndarray
    steps: int
    evaluations: int
    seed: int
    process: str
    settings: SampleSettings
    counts: Counts = Counts()
    exit_nats_B: np.ndarray | None = None
    canvas_B: np.ndarray | None = None
    accepted_B: np.ndarray | None = None
    drift_A3: np.ndarray | None = None
    drafter_calls_B: np.ndarray | None = None

    @property
    def calls_B(self) -> np.ndarray:
        """Network calls of each row until it was finished."""
        return self.counts.calls_B

    @property
    def entropy(self) -> float:
        """Unigram entropy of the generated tokens of a row, nats per token, mean over rows."""
        return float(self.entropy_B.mean())

    @property
    def collapsed(self) -> int:
        """Number of rows in which one token fills more than COLLAPSED_SHARE of at least LEAST_GENERATED generated positions."""
        rows = (tokens_L[~mask_L] for tokens_L, mask_L in zip(self.tokens_BL, self.condition_mask_BL, strict=True))
        return int(
            sum(len(row) >= LEAST_GENERATED and np.unique(row, return_counts=True)[1].max() > COLLAPSED_SHARE * len(row) for row in rows)
        )

    @property
    def advice(self) -> str:
        """One line where an order that ranks tokens has made a run repeat one token; "" elsewhere."""
        rule = self.settings.make_rule()
        if rule is None or not rule.ranked or not self.collapsed:
            return ""
        return (
            f"{self.collapsed} of {len(self.tokens_BL)} samples repeat one token: rule {self.settings.rule} takes the most likely "
            'tokens first, which a small or young model repeats; rule "ancestral" samples the model\'s distribution'
        )

    def _drafts(self) -> dict[str, Any]:
        """The counts of drafts of each row; nothing without drafts."""
        if self.accepted_B is None:
            return {}
        counts = {"drafts_accepted": np.asarray(self.accepted_B).tolist()}
        if self.drafter_calls_B is None:
            return counts
        return counts | {"verifier_calls": (self.calls_B - self.drafter_calls_B).tolist(), "drafter_calls": self.drafter_calls_B.tolist()}

    @property
    def draft_line(self) -> str:
        """The counts of drafts in words, before those of the tokens; "" without drafts."""
        if self.accepted_B is None:
            return ""
        ours_B = 0 if self.drafter_calls_B is None else self.drafter_calls_B
        each = f"{self.accepted_B.sum() / max((self.calls_B - ours_B).sum(), 1):.2f} drafts accepted per call"
        return f"{each}, " if self.drafter_calls_B is None else f"{ours_B.max()} of them of the drafter, {each} of the verifier, "

    def to_json(self, tokenizer=None, data_D: np.ndarray | None = None) -> dict[str, Any]:
        """JSON-ready record: one entry per row with `token_ids`, `entropy` (nats per token) and, with a tokenizer, `text`.

        With a tokenizer also `lengths`, see `lengths.length_report`; data_D: lengths of the documents of the data, tokens.
        """
        rows, lengths = [], {}
        if tokenizer is not None:
            lengths = {"lengths": length_report(self.tokens_BL, self.condition_mask_BL, tokenizer, canvas_B=self.canvas_B, data_D=data_D)}
        sizes_B = np.full(len(self.tokens_BL), self.tokens_BL.shape[1]) if self.canvas_B is None else self.canvas_B
        for row_L, size, entropy in zip(self.tokens_BL, sizes_B, self.entropy_B, strict=True):
            tokens_L = row_L[:size]
            row = {"token_ids": tokens_L.tolist(), "entropy": float(entropy)}
            if tokenizer is not None:
                row["text"] = text_of(tokenizer, tokens_L)
            rows.append(row)
        return {
            "samples": rows,
            "seed": self.seed,
            "steps": self.steps,
            "evaluations": self.evaluations,
            **({} if self.settings.stop is None else {"exit_nats": np.asarray(self.exit_nats_B).tolist()}),
            **{name: np.asarray(count).tolist() for name, count in zip(COUNT_NAMES, self.counts, strict=True)},
            **self._drafts(),
            "entropy": self.entropy,
            "collapsed": self.collapsed,
            "entropy_unit": "nats/token, unigram, per sample, made tokens only",
            "process": self.process,
            "precision": PRECISION,
            **lengths,
            "settings": self.settings.to_json(),
        }


def unigram_entropy(tokens_BL: np.ndarray, generated_BL: np.ndarray) -> np.ndarray:
    """Entropy of each row's token frequencies, in nats per token, over the positions of `generated_BL`; 0 where there are none.  -> [B]"""
    row_N = np.nonzero(generated_BL)[0]
    pair_N = row_N * (int(tokens_BL.max(initial=0)) + 1) + tokens_BL[generated_BL]
    # -sum p log p = log n - mean over tokens of log(occurrences of this token in its row)
    _, which_N, counts = np.unique(pair_N, return_inverse=True, return_counts=True)
    sums_B = np.bincount(row_N, weights=np.log(counts[which_N]), minlength=len(tokens_BL))
    size_B = np.maximum(generated_BL.sum(axis=1), 1)
    return np.maximum(np.log(size_B) - sums_B / size_B, 0.0)
