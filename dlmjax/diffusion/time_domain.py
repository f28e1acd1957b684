"""The times that a process can have, and how a draw of times (a `Times`) is spread over a row."""

import dataclasses
from typing import Protocol, runtime_checkable

import jax.numpy as jnp

from dlmjax.diffusion.hyperschedule import PerBlock
from dlmjax.diffusion.shapes import Mask, PerToken
from dlmjax.diffusion.times import Times


@runtime_checkable
class TimeDomain(Protocol):
    """All times in [0, 1], in any draw, unless a subclass restricts them.

    steps: T, where there are T times and the integral is a mean over them; 0 in continuous time.
    one_time_per_row: whether a row must have one time; times that differ within it (`per_block`, `hyper` with a window) are refused.
    """

    steps: int = 0
    one_time_per_row: bool = False

    def quantize(self, t_BL: PerToken, valid_BL: Mask) -> PerToken:
        """The times at which the process can be, given drawn t: what `corrupt`, the denoiser and `loss` are then given. Tokens of a row
        with one drawn time have one time after it (`Times.tokens_per_time`)."""
        del valid_BL
        return t_BL

    def adapt(self, times: Times) -> Times:
        """How a draw of times is spread over a row: as it is, or one time per block.

        Raises InputError: times that this noise cannot have.
        """
        return times

    def covered_by(self, times: Times) -> bool:
        """Whether the mean of the loss under a draw of times is its integral over all the noise that a text can have.

        A network that reads a whole row bounds its likelihood along a path on which all tokens gain noise together: times that are drawn
        apart show it tokens with little noise beside others with much, which is not such a path, and the mean is below the truth.
        """
        return times.covers and not isinstance(times, PerBlock)

    def revealed(self, masked_BL: Mask, t_BL: PerToken, start_BL: PerToken) -> PerToken:
        """What the denoiser is conditioned on where tokens are revealed one after another: t, unless masks depend on the token.

        masked_BL: positions still masked.  start_BL: the times at which they were masked; 0 for a condition.
        """
        del masked_BL, start_BL
        return t_BL


@dataclasses.dataclass(frozen=True)
class AllTimes(TimeDomain):
    """Continuous time without restrictions."""


@dataclasses.dataclass(frozen=True)
class DiscreteSteps(TimeDomain):
    """T steps: t is taken to (floor(t T) + 1) / T."""

    steps: int

    def quantize(self, t_BL: PerToken, valid_BL: Mask) -> PerToken:
        del valid_BL
        return jnp.clip(jnp.floor(t_BL * self.steps) + 1, 1, self.steps) / self.steps
