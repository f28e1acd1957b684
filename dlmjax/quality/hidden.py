"""Text embeddings: the mean of a run's final hidden states over the tokens of a text, which the network reads clean (t = 0).

The states are those after the final norm, as in `last_hidden_state` of transformers for an exported run. A text longer than the run's
windows is read window by window; its vector is the mean over all its tokens. Special tokens are not part of a text.

    full attention   position i attends to the whole window
    blocks           position i attends to its block and the blocks before it
    causal           position i + 1 reads token i, so the mean is over positions 1 to the number of tokens

Shapes: N texts, B rows, L positions, D width.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from dlmjax.diffusion.process import bind_process, row_keys
from dlmjax.errors import InputError
from dlmjax.models.masks import BlockCausal
from dlmjax.parallel.arrays import device_get, device_put, replicated_like
from dlmjax.progress import Progress
from dlmjax.run import Run


def embed_texts(run: Run, texts: Sequence[str], batch: int = 16) -> tuple[Float[np.ndarray, "N D"], np.ndarray]:
    """(vectors, float32; number of tokens of each text). A text without tokens has the vector 0.

    batch: windows at a time; no effect on the result.
    Raises InputError: no texts, a batch below 1.
    """
    if not texts or batch < 1:
        raise InputError(f"the number of texts is {len(texts)} and batch {batch}; both must be at least 1")
    encoder = Encoder(run, batch)
    sequences, capacity = run.experiment.tokenizer.encode_many(list(texts)), encoder.capacity
    pieces = [(n, ids[at : at + capacity]) for n, ids in enumerate(sequences) for at in range(0, len(ids), capacity)]
    sums_ND = np.zeros((len(texts), run.experiment.network.width), np.float64)
    with Progress(len(pieces), "embedding", " windows") as bar:
        for start in range(0, len(pieces), batch):
            some = pieces[start : start + batch]
            for (n, _), sum_D in zip(some, encoder.sums([ids for _, ids in some]), strict=True):
                sums_ND[n] += sum_D
            bar.reach(start + len(some))
    counts_N = np.array([len(ids) for ids in sequences])
    return (sums_ND / np.maximum(counts_N, 1)[:, None]).astype(np.float32), counts_N


class Encoder:
    """Hidden states of clean rows of a run. capacity: number of tokens of a row, one less for causal runs."""

    def __init__(self, run: Run, batch: int):
        self.run, self.batch, self.length = run, batch, run.experiment.config.data.length
        self.process = run.experiment.process.bound
        self.causal = self.process.attention.shifted
        self.capacity = self.length - self.causal
        self._sums = jax.jit(self._row_sums)

    def sums(self, rows: Sequence[np.ndarray]) -> np.ndarray:
        """Sum of each row's hidden states over its tokens, [rows, D]."""
        sharding = replicated_like(self.run.params)
        arrays = (device_put(array, sharding) for array in self.clean(rows))
        return device_get(self._sums(self.run.params, *arrays))[: len(rows)]

    def clean(self, rows: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        """(tokens [batch, L], valid [batch, L]): ids with padding after them; positions whose hidden state belongs to a token."""
        tokens_BL = np.full((self.batch, self.length), self.run.experiment.tokenizer.pad_id, np.int32)
        valid_BL = np.zeros(tokens_BL.shape, bool)
        for row, ids in enumerate(rows):
            tokens_BL[row, : len(ids)] = ids
            valid_BL[row, self.causal : len(ids) + self.causal] = True
        return tokens_BL, valid_BL

    def read(self, params, tokens_BL, valid_BL):
        """(denoiser, z, t) of clean rows; no token attends to padding."""
        process = bind_process(self.process, params)
        t_BL = jnp.zeros(tokens_BL.shape, jnp.float32)
        segments_BL = valid_BL.at[:, 0].set(valid_BL.any(axis=1)).astype(jnp.int32)
        positions_BL = jnp.broadcast_to(jnp.arange(self.length), tokens_BL.shape)
        z = tokens_BL
        if self.causal or process.states.dim:
            # Causal: the row shifted by a beginning of text. Vectors: embeddings with the noise of t = 0, the same for all rows.
            z = process.corrupt(row_keys(jax.random.key(0), jnp.zeros(self.batch, jnp.int32)), tokens_BL, t_BL)
        attention = process.attention
        mask = BlockCausal(attention.block_size) if attention.block_size else attention
        if attention.seeded:
            z, mask = z[..., 1], "causal"  # the clean stream
        return self.run.experiment.unpartitioned.bind(params, segments_BL, positions_BL, mask), z, process.time_embedding_input(t_BL)

    def _row_sums(self, params, tokens_BL, valid_BL):
        denoiser, z, t_BL = self.read(params, tokens_BL, valid_BL)
        hidden_BLD = denoiser.hidden(z, t_BL).astype(jnp.float32)
        return jnp.sum(jnp.where(valid_BL[..., None], hidden_BLD, 0.0), axis=1)
