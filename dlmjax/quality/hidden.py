"""A run as an encoder: one vector a text, the mean of the final hidden states over its tokens, read clean (level 0) and whole.

The states are those behind the final norm, which is also what transformers gives as `last_hidden_state` for an exported run. A text longer
than the run's windows is read window by window; its vector is the mean over all its tokens. Specials are not part of a text.

    full attention   position i has read the whole window
    blocks           position i has read its block and those before it
    causal           position i + 1 has read the tokens up to i: the mean is over the positions behind the tokens

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
    """(vectors, float32; tokens of each text). A text without tokens has the vector 0.

    Raises InputError: no texts, a batch below 1.
    """
    if not texts or batch < 1:
        raise InputError(f"{len(texts)} texts to embed, {batch} at a time; give at least 1")
    encoder = Encoder(run, batch)
    sequences, room = run.experiment.tokenizer.encode_many(list(texts)), encoder.room
    pieces = [(n, ids[at : at + room]) for n, ids in enumerate(sequences) for at in range(0, len(ids), room)]
    sums_ND = np.zeros((len(texts), run.experiment.network.spec.width), np.float64)
    with Progress(len(pieces), "embedding", " windows") as bar:
        for start in range(0, len(pieces), batch):
            some = pieces[start : start + batch]
            for (n, _), sum_D in zip(some, encoder.sums([ids for _, ids in some]), strict=True):
                sums_ND[n] += sum_D
            bar.reach(start + len(some))
    counts_N = np.array([len(ids) for ids in sequences])
    return (sums_ND / np.maximum(counts_N, 1)[:, None]).astype(np.float32), counts_N


class Encoder:
    """Reads clean rows of a run. `room`: tokens that fit into one row."""

    def __init__(self, run: Run, batch: int):
        self.run, self.batch, self.length = run, batch, run.experiment.config.data.length
        self.process = run.experiment.process.bound
        self.causal = self.process.attention.causal
        self.room = self.length - self.causal
        self._sums = jax.jit(self._row_sums)

    def sums(self, rows: Sequence[np.ndarray]) -> np.ndarray:
        """The sum over its tokens of each row's hidden states, [rows, D]."""
        sharding = replicated_like(self.run.params)
        arrays = (device_put(array, sharding) for array in self.clean(rows))
        return device_get(self._sums(self.run.params, *arrays))[: len(rows)]

    def clean(self, rows: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        """(tokens [batch, L], counted [batch, L]): rows of ids with padding behind them; what is counted has read a token."""
        tokens_BL = np.full((self.batch, self.length), self.run.experiment.tokenizer.pad_id, np.int32)
        counted_BL = np.zeros(tokens_BL.shape, bool)
        for row, ids in enumerate(rows):
            tokens_BL[row, : len(ids)] = ids
            counted_BL[row, self.causal : len(ids) + self.causal] = True
        return tokens_BL, counted_BL

    def read(self, params, tokens_BL, counted_BL):
        """(denoiser, state, level) of clean rows; padding is seen by nothing."""
        process = bind_process(self.process, params)
        t_BL = jnp.zeros(tokens_BL.shape, jnp.float32)
        segments_BL = counted_BL.at[:, 0].set(counted_BL.any(axis=1)).astype(jnp.int32)
        positions_BL = jnp.broadcast_to(jnp.arange(self.length), tokens_BL.shape)
        z = tokens_BL
        if self.causal or process.states.dim:
            # The row shifted behind a beginning of text; tokens as vectors, with the noise of level 0, the same for all rows.
            z = process.corrupt(row_keys(jax.random.key(0), jnp.zeros(self.batch, jnp.int32)), tokens_BL, t_BL)
        mask = BlockCausal(process.attention.block_size) if process.attention.block_size else process.attention
        return self.run.experiment.unpartitioned.bind(params, segments_BL, positions_BL, mask), z, process.time_embedding_input(t_BL)

    def _row_sums(self, params, tokens_BL, counted_BL):
        denoiser, z, t_BL = self.read(params, tokens_BL, counted_BL)
        hidden_BLD = denoiser.hidden(z, t_BL).astype(jnp.float32)
        return jnp.sum(jnp.where(counted_BL[..., None], hidden_BLD, 0.0), axis=1)
