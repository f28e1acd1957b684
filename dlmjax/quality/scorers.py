"""Scorers: causal language models that give the log-likelihood of a text. A run of dlmjax, or a Hugging Face model (`hf_scorer`).

A sample is one row of generated (or held-out) tokens. It may have several documents, each with an end of document after it. It is scored
as one sequence, with the scorer's end of text between documents.

    same tokenizer        a run with the sampler's tokenizer scores the generated tokens
    different tokenizer   the text of each document is encoded again, without characters that the tokenizer lacks (char27 has 27)

The first token is scored conditional on the scorer's beginning of text; where the scorer has none, the first token is not scored. A
sequence longer than the scorer's context is read in windows that overlap by half, so that a token has at least half a context before it.
Later windows begin within the text, without a beginning of text.

Shapes: N samples, B rows, L positions, D width. Units: nats.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np

from dlmjax.data.windows import segments_and_positions
from dlmjax.diffusion.objective import nats_at
from dlmjax.diffusion.process import bind_process, row_keys
from dlmjax.errors import InputError
from dlmjax.parallel.arrays import device_get, device_put, replicated_like
from dlmjax.run import Run

ROWS = 16


@dataclasses.dataclass(frozen=True)
class Sample:
    """One row: its token ids, its documents as text, and the number of bytes of the tokens (which differs from that of the text where
    tokens are not whole characters)."""

    ids_L: np.ndarray
    documents: tuple[str, ...]
    bytes: int

    @property
    def text(self) -> str:
        """The documents, separated by blank lines."""
        return "\n\n".join(self.documents)


def make_sample(tokenizer: Any, ids_L: np.ndarray) -> Sample:
    """The sample of a row of ids; `documents` leaves out those without text."""
    ids_L = np.asarray(ids_L, np.int64)
    pieces = np.split(ids_L, np.flatnonzero(ids_L == tokenizer.eos_id) + 1)
    texts = (tokenizer.decode(piece) for piece in pieces if len(piece))
    return Sample(ids_L, tuple(text for text in texts if text), int(tokenizer.byte_lengths_V[ids_L].sum()))


class Scores(NamedTuple):
    """nats_N: negative log-likelihood of each sample; tokens_N, bytes_N: number of its scored tokens and their bytes; features_ND: the
    scorer's last hidden state at the last position of each sample, None where not requested."""

    nats_N: np.ndarray
    tokens_N: np.ndarray
    bytes_N: np.ndarray
    features_ND: np.ndarray | None


@runtime_checkable
class Scorer(Protocol):
    """A scorer; record: its description for reports, as plain JSON."""

    record: dict[str, Any]

    def score(self, samples: Sequence[Sample], features: bool = False) -> Scores:
        """Scores samples; one without scored tokens has 0 nats and 0 tokens."""
        ...


class Window(NamedTuple):
    """Tokens [begin, end) of a sequence, which are read together; those from `scored` on are scored."""

    begin: int
    end: int
    scored: int


def windows_of(length: int, context: int, first: int = 0) -> list[Window]:
    """Windows of at most `context` tokens; every token from `first` on is scored in exactly one."""
    if length <= first:
        return []
    windows, scored = [], first
    while scored < length:
        begin = 0 if not windows else scored - context // 2
        end = min(length, begin + context)
        windows.append(Window(begin, end, scored))
        scored = end
    return windows


class RunScorer:
    """An autoregressive run of dlmjax as scorer, with the run's context length; its beginning of text is that of training.

    tokenizer: tokenizer of the samples.  name: name of the scorer in reports and messages.
    Raises InputError: a run of a process that is not autoregressive.
    """

    def __init__(self, run: Run, tokenizer: Any, name: str = "run"):
        experiment = run.experiment
        self.process = experiment.process.bound
        if not self.process.attention.causal:
            raise InputError(
                f"{name} is a run of process {experiment.process.name}, but a scorer must be autoregressive (configs/autoregressive.py)"
            )
        self.run, self.tokenizer, self.context = run, experiment.tokenizer, experiment.config.data.length
        self.same = experiment.tokenizer.hash == tokenizer.hash
        self.record = {
            "scorer": name,
            "kind": "dlmjax run",
            "step": run.step,
            "weights": run.weights,
            "tokenizer": experiment.tokenizer.name,
            "tokens": "as made" if self.same else "the text encoded anew",
            "context": self.context,
            "first_token": "given the beginning of text",
            "precision": experiment.config.execution.dtype,
        }
        self._nats, self._features = jax.jit(self._row_nats), jax.jit(self._row_hidden)

    def score(self, samples: Sequence[Sample], features: bool = False) -> Scores:
        """See `Scorer`."""
        sequences = [self._ids(sample) for sample in samples]
        pieces = [(n, window) for n, ids in enumerate(sequences) for window in windows_of(len(ids), self.context)]
        nats_N = np.zeros(len(samples))
        for some in _groups(pieces):
            tokens_BL, counts_B = _rows([sequences[n][w.begin : w.end] for n, w in some], self.context, self.tokenizer.pad_id)
            segments_BL, positions_BL = segments_and_positions(tokens_BL == self.tokenizer.eos_id, counts_B)
            nats_BL = self._on_device(self._nats, tokens_BL, segments_BL, positions_BL)
            for (n, window), nats_L in zip(some, nats_BL, strict=False):
                nats_N[n] += nats_L[window.scored - window.begin : window.end - window.begin].sum()
        found = self._last_hidden(sequences) if features else None
        return Scores(nats_N, np.array([len(ids) for ids in sequences]), np.array([sample.bytes for sample in samples]), found)

    def _ids(self, sample: Sample) -> np.ndarray:
        if self.same:
            return sample.ids_L.astype(np.int32)
        end = np.array([self.tokenizer.eos_id])
        encoded = [part for document in sample.documents for part in (self.tokenizer.encode(document), end)]
        return np.concatenate([*encoded[:-1], np.zeros(0)]).astype(np.int32)

    def _last_hidden(self, sequences: list[np.ndarray]) -> np.ndarray:
        """Hidden state of the last token of each sequence (or of its last context), which is read as one document."""
        found = []
        # The network's input is shifted by one, so the last token is read at one more position.
        padded = [np.append(ids[-(self.context - 1) :], self.tokenizer.eos_id) for ids in sequences]
        for some in _groups(padded):
            tokens_BL, counts_B = _rows(some, self.context, self.tokenizer.pad_id)
            column_L = np.arange(self.context, dtype=np.int32)
            segments_BL = (column_L < counts_B[:, None]).astype(np.int32)
            positions_BL = np.broadcast_to(column_L, tokens_BL.shape)
            hidden_BLD = self._on_device(self._features, tokens_BL, segments_BL, positions_BL)
            found += [hidden_LD[len(ids) - 1] for ids, hidden_LD in zip(some, hidden_BLD, strict=False)]
        return np.stack(found)

    def _on_device(self, function, *arrays: np.ndarray) -> np.ndarray:
        sharding = replicated_like(self.run.params)
        return device_get(function(self.run.params, *(device_put(np.ascontiguousarray(array), sharding) for array in arrays)))

    def _bound(self, params, segments_BL, positions_BL):
        return self.run.experiment.unpartitioned.bind(params, segments_BL, positions_BL, self.process.attention)

    def _row_nats(self, params, tokens_BL, segments_BL, positions_BL):
        keys_B, t_BL = row_keys(jax.random.key(0), jnp.arange(tokens_BL.shape[0])), jnp.zeros(tokens_BL.shape)
        denoiser = self._bound(params, segments_BL, positions_BL)
        return nats_at(bind_process(self.process, params), denoiser, tokens_BL, segments_BL, keys_B, t_BL)

    def _row_hidden(self, params, tokens_BL, segments_BL, positions_BL):
        keys_B, t_BL = row_keys(jax.random.key(0), jnp.arange(tokens_BL.shape[0])), jnp.zeros(tokens_BL.shape)
        read_BL = bind_process(self.process, params).corrupt(keys_B, tokens_BL, t_BL)
        return self._bound(params, segments_BL, positions_BL).hidden(read_BL, t_BL).astype(jnp.float32)


def _groups(items: list) -> list[list]:
    return [items[start : start + ROWS] for start in range(0, len(items), ROWS)]


def _rows(sequences: list[np.ndarray], length: int, pad_id: int) -> tuple[np.ndarray, np.ndarray]:
    """(tokens [ROWS, length], number of tokens of each row); rows without a sequence have 0."""
    tokens_BL, counts_B = np.full((ROWS, length), pad_id, np.int32), np.zeros(ROWS, np.int64)
    for row, ids in enumerate(sequences):
        tokens_BL[row, : len(ids)], counts_B[row] = ids, len(ids)
    return tokens_BL, counts_B
