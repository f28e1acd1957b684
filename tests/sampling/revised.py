"""Noise of three kinds on a small law, its exact denoiser bound like a network, and chains of single positions, in float64.

Shapes: Z noisy states, n positions, K symbols, S classes of a state (the symbols, then the mask where noise has one).
"""

import dataclasses

import numpy as np

from dlmjax.diffusion.oracle import enumeration as oracle
from dlmjax.diffusion.oracle.toy import ToyDenoiser, masked_likelihood
from dlmjax.diffusion.processes.hybrid import Hybrid
from dlmjax.diffusion.processes.masked import Masked
from dlmjax.diffusion.processes.uniform import Uniform
from dlmjax.sampling.sampler import Sampler
from dlmjax.sampling.settings import SampleSettings
from tests.diffusion.battery import LINEAR

SYMBOLS, LENGTH, MASK = 3, 3, 3
LAW = oracle.JointDistribution.random(SYMBOLS, LENGTH, seed=4, sharpness=1.5)


@dataclasses.dataclass(frozen=True, eq=False)
class Noise:
    """A process and its kernel written out."""

    process: object
    kernel: oracle.Kernel

    @property
    def states_Zn(self):
        return oracle.enumerate_sequences(self.kernel.matrix(0.5).shape[1], LENGTH)

    @property
    def full_N(self):
        """Numbers of the states without masks, in the order of the law's texts."""
        return np.flatnonzero((self.states_Zn < SYMBOLS).all(axis=1))

    def bind(self, params, segments_BL, positions_BL, attention="full"):
        del params, segments_BL, positions_BL, attention
        return ToyDenoiser(LAW, self.process.vocab, self.log_likelihood)

    def log_likelihood(self, z_BL, t_BL):
        if self.process.absorbing_id is not None:
            return masked_likelihood(SYMBOLS, MASK)(z_BL, t_BL)
        return self.process.log_likelihood(z_BL, t_BL)[..., :SYMBOLS]

    def sampler(self, **settings):
        return Sampler(self.process, self.bind, SampleSettings(**settings))

    def numbers(self, z_BL):
        return np.ravel_multi_index(tuple(np.asarray(z_BL).T), (self.kernel.matrix(0.5).shape[1],) * LENGTH)

    def tally_Z(self, z_BL):
        """How many rows are in each state."""
        return np.bincount(self.numbers(z_BL), minlength=len(self.states_Zn))

    def product_ZZ(self, to_ZnS):
        """The chain in which each position moves by itself given z."""
        chain_ZZ = np.ones((len(self.states_Zn),) * 2)
        for i in range(LENGTH):
            chain_ZZ *= to_ZnS[:, i][:, self.states_Zn[:, i]]
        return chain_ZZ

    def ancestral_ZnS(self, t, s):
        """q(z_s | z_t, x ~ p(x_i | z_t)) of each position."""
        q_s, q_t, step_SS = self.kernel.matrix(s), self.kernel.matrix(t), self.kernel.step(s, t)
        pairs_KSS = q_s[:, None, :] * step_SS.T[None]
        pairs_KSS = np.divide(pairs_KSS, q_t[:, :, None], out=np.zeros_like(pairs_KSS), where=q_t[:, :, None] > 0)
        return np.einsum("znk,kzns->zns", oracle.posterior(LAW, self.kernel, t), pairs_KSS[:, self.states_Zn])

    def renoised_ZnS(self, t, s):
        """q(z_s | x ~ p(x_i | z_t)) of each position."""
        return oracle.posterior(LAW, self.kernel, t) @ self.kernel.matrix(s)

    def marginal_Z(self, t):
        """q_t(z) of the law."""
        return oracle.evidence(LAW, self.kernel, t).sum(axis=0)


NOISES = {
    "masked": Noise(Masked(SYMBOLS + 1, MASK), oracle.masked_kernel(SYMBOLS, *LINEAR)),
    "uniform": Noise(Uniform(SYMBOLS, parameterisation="posterior"), oracle.uniform_kernel(SYMBOLS, *LINEAR)),
    "hybrid": Noise(Hybrid(SYMBOLS + 1, MASK, parameterisation="posterior", p_uniform=0.3), oracle.hybrid_kernel(SYMBOLS, 0.3)),
}


def distance(p_N, q_N) -> float:
    """Total variation."""
    return float(np.abs(p_N - q_N).sum() / 2)
