"""Cases of the battery in blocks: every noise that goes into blocks, from the cases of that noise.

The oracle of a block is the inner case on p(block | text before it): the bound of a row must be the sum of these.
"""

import dataclasses
import itertools
from collections.abc import Iterator

import jax.numpy as jnp
import numpy as np

from dlmjax.diffusion.oracle import enumeration as oracle
from dlmjax.diffusion.oracle import toy
from dlmjax.diffusion.processes.blocks import Blockwise
from dlmjax.diffusion.registry import BLOCK_NOISES
from tests.diffusion import cases
from tests.diffusion.battery import VOCAB, Case


@dataclasses.dataclass(frozen=True, eq=False)
class BlockDenoiser(toy.ToyDenoiser):
    """Exact: a block is predicted from its own noisy tokens and the clean ones before it, by the inner case's denoiser."""

    inner: Case | None = None
    size: int = 1

    def hidden(self, z_BL, t_BL, hint_BLI=None):
        noisy_BL, clean_BL, index_L1 = z_BL[..., 0], z_BL[..., 1], jnp.arange(z_BL.shape[1])[:, None]
        exact, outputs = self.inner.denoiser(self.joint), []
        clean_BLK = jnp.where(clean_BL[..., None] == jnp.arange(self.joint.tokens), 0.0, -1e9)
        for start in range(0, z_BL.shape[1], self.size):

            def log_likelihood(z_BL, t_BL, start=start):
                later_BLK = jnp.where(index_L1 < start + self.size, exact.log_likelihood(z_BL, t_BL), 0.0)
                return jnp.where(index_L1 < start, clean_BLK, later_BLK)

            block = dataclasses.replace(exact, log_likelihood=log_likelihood)
            outputs.append(block.hidden(noisy_BL, t_BL)[:, start : start + self.size])
        return jnp.concatenate(outputs, axis=1)


@dataclasses.dataclass(frozen=True, eq=False)
class BlockCase(Case):
    """An inner case in blocks of `size` tokens."""

    inner: Case | None = None
    size: int = 1

    def denoiser(self, law: oracle.JointDistribution) -> BlockDenoiser:
        return BlockDenoiser(law, VOCAB, None, self.inner, self.size)

    def enumerate(self, law: oracle.JointDistribution, t: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        x_NL, z_NL, p_N = self.inner.enumerate(law, t)
        return x_NL, np.stack([z_NL, x_NL], axis=-1), p_N

    def blocks(self, law: oracle.JointDistribution) -> Iterator[tuple[float, oracle.JointDistribution]]:
        """(p(text before a block), the distribution of the block given it), over all blocks and texts."""
        for start in range(0, law.length, self.size):
            stop = min(start + self.size, law.length)
            table = law.table.sum(axis=tuple(range(stop, law.length)))
            for before in itertools.product(range(law.tokens), repeat=start):
                yield table[before].sum(), oracle.JointDistribution(table[before] / table[before].sum())


def in_blocks(case: Case, size: int) -> BlockCase:
    """The case of `case`'s noise in blocks."""
    own = {"kernel": case.kernel, "grid": case.grid, "times": case.times, "light": case.light}
    return BlockCase(f"blocks of {size}/{case}", Blockwise(case.process, size), **own, inner=case, size=size)


INNER = [case for case in cases.NOISY if case.process.name in BLOCK_NOISES]
