"""Who judges a text: a causal language model that says how likely it is. A run of dlmjax, or a Hugging Face model (`hf_scorer`).

A sample is one row of tokens as it was made (or as it stands in held-out text). It may hold several documents, each ending with the end
of document of its tokenizer. It is scored as one sequence: its documents, the scorer's own end of text between them.

    same tokenizer     a run that shares the sampler's tokenizer scores the very tokens that were made
    another            the text of each document is encoded anew; what a tokenizer cannot say is lost (char27 has 27 characters)

The first token is scored given the scorer's beginning of text; where it has none, the first token is not scored. A sequence longer than
the scorer's context is read in windows that overlap by half, so that a token has at least half a context before it; a later window begins
with the text that stands there, not with a beginning of text, which the text does not have there.

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
    """One row: its token ids, of which an end of document closes each document, the documents as text, and the bytes that the tokens
    stand for (where they are no whole characters, the text has others)."""

    ids_L: np.ndarray
    documents: tuple[str, ...]
    bytes: int

    @property
    def text(self) -> str:
        """The documents, parted by blank lines."""
        return "\n\n".join(self.documents)


def make_sample(tokenizer: Any, ids_L: np.ndarray) -> Sample:
    """The sample of a row of ids; documents without text are left out of `documents`."""
    ids_L = np.asarray(ids_L, np.int64)
    pieces = np.split(ids_L, np.flatnonzero(ids_L == tokenizer.eos_id) + 1)
    texts = (tokenizer.decode(piece) for piece in pieces if len(piece))
    return Sample(ids_L, tuple(text for text in texts if text), int(tokenizer.byte_lengths_V[ids_L].sum()))


class Scores(NamedTuple):
    """nats_N: minus the log-probability of each sample, summed over tokens_N tokens, which stand for bytes_N of its bytes; features_ND: the
    scorer's last hidden state of the last position of each sample, None where not asked for."""

    nats_N: np.ndarray
    tokens_N: np.ndarray
    bytes_N: np.ndarray
    features_ND: np.ndarray | None


@runtime_checkable
class Scorer(Protocol):
    """`record` is what a report says about it, as plain JSON."""

    record: dict[str, Any]

    def score(self, samples: Sequence[Sample], features: bool = False) -> Scores:
        """Scores samples; those without a token to score have 0 nats in 0 tokens."""
        ...


class Window(NamedTuple):
    """Tokens [begin, end) of a sequence are read together, of which those from `scored` on count."""

    begin: int
    end: int
    scored: int


def windows_of(length: int, context: int, first: int = 0) -> list[Window]:
    """Windows of at most `context` tokens in which every token from `first` on counts exactly once."""
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
    """An autoregressive run of dlmjax as scorer; exact, in the run's own context length.

    tokenizer: of the samples. `first`: the run's beginning of text is its end of document, as in training.
    """

    def __init__(self, run: Run, tokenizer: Any, name: str = "run"):
        experiment = run.experiment
        self.process = experiment.process.bound
        if not self.process.attention.causal:
            raise InputError(
                f"{name} is a run of process {experiment.process.name}, but a scorer must be autoregressive: see configs/autoregressive.py"
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
        """The state behind the last token of each sequence (or of its last context): read as one text, its documents not kept apart."""
        found = []
        # What the network reads is shifted by one: a place more, in which the last token is read.
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
    """(tokens [ROWS, length], how many each row holds); rows without a sequence hold none."""
    tokens_BL, counts_B = np.full((ROWS, length), pad_id, np.int32), np.zeros(ROWS, np.int64)
    for row, ids in enumerate(sequences):
        tokens_BL[row, : len(ids)], counts_B[row] = ids, len(ids)
    return tokens_BL, counts_B
