"""A batch of random tokens, for benchmarks whose time does not depend on the text."""

import numpy as np


def batch_of(tokens_BL: np.ndarray) -> dict[str, np.ndarray]:
    """A batch as the loader makes it of rows that are one document each, int32; row numbers from 0."""
    B, L = tokens_BL.shape
    return {
        "tokens": tokens_BL.astype(np.int32),
        "segments": np.ones((B, L), np.int32),
        "positions": np.tile(np.arange(L, dtype=np.int32), (B, 1)),
        "row": np.arange(B, dtype=np.int32),
    }


def random_batch(ids: int, rows: int, length: int) -> dict[str, np.ndarray]:
    """A batch of tokens 0 to ids - 1, the same in every call."""
    return batch_of(np.random.default_rng(0).integers(0, ids, (rows, length)))
