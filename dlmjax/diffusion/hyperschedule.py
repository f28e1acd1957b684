"""Times that differ within a row: hyperschedules, and one time per block.

Hyperschedules (2504.06416): the time of position i is a function t_i(tau) of one global time tau, so that the noise sweeps over the row.
Given their times, positions are noised independently, so the bound of any process holds with the weight dt_i/dtau at each position:

    t_i(tau) = clip( (tau (L + w - 1) - (L - 1 - i)) / w, 0, 1 )     a window of w positions, from the row's end to its start
    w = 1: one position at a time, all before it clean and all after it noise: with masks, the chain rule of a left-to-right model
    no window: t_i = tau, the same time at all positions

`ByPosition` gives each position a rate w_i, t_i = tau^{w_i}, which decides the orders that the bound is a mean over.

`PerBlock` draws a time for each block of a row (block diffusion, BD3-LM 2503.09573 section 3); `choose_interval` finds the interval
of times with the least variance (its section 4). Training on an interval is not a bound (`covers`); evaluation uses all of [0, 1].

Shapes: B rows of this batch, L length, N blocks or samples.
"""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key

from dlmjax.diffusion.shapes import PerToken
from dlmjax.diffusion.times import PerRow, TimeDistribution, Times, UniformTimes
from dlmjax.errors import InputError


@dataclasses.dataclass(frozen=True)
class Hyperschedule(Times):
    """A window of noise that sweeps over the row.

    window: w above, number of positions between clean and noise at any tau; None = all positions have the time tau.
    distribution: of tau.  stratified: as in PerRow.
    """

    window: int | None = None
    distribution: TimeDistribution = UniformTimes()
    stratified: bool = True

    def __post_init__(self):
        if self.window is not None and not self.window >= 1:
            raise InputError(f"times hyper: window is {self.window}; it must be at least 1 position, or None for one time in the whole row")

    def draw(
        self, key: Key[Array, ""], row_B: Int[Array, "B"], global_batch: int, length: int
    ) -> tuple[Float[Array, "B {length}"], Float[Array, "B {length}"]]:
        """Times t_i, and weights dt_i/dtau over the density of tau: 0 for positions that are clean or noise at this tau."""
        tau_B1, weight_B1 = PerRow(self.distribution, self.stratified).draw(key, row_B, global_batch, 1)
        t_BL = self.times_at(tau_B1[:, 0], length)
        slope_BL = jnp.where(_inside(self._unclipped(tau_B1[:, 0], length)), self._slope(length), 0.0)
        return t_BL, slope_BL * weight_B1

    def tokens_per_time(self, length: int) -> int:
        return length if self.window is None else 1

    def times_at(self, tau_B: Float[Array, "B"], length: int) -> Float[Array, "B {length}"]:
        """t_i(tau): the times that a sampler with the same sweep steps through."""
        return jnp.clip(self._unclipped(tau_B, length), 0, 1)

    def corners(self, length: int) -> Float[np.ndarray, "N"]:
        """Every tau at which some position enters or leaves the window; between two of them an integrand is smooth."""
        steps = 1 if self.window is None else length + self.window - 1
        return np.arange(steps + 1) / steps

    def _slope(self, length: int) -> float:
        return 1.0 if self.window is None else (length + self.window - 1) / self.window

    def _unclipped(self, tau_B: Float[Array, "B"], length: int) -> Float[Array, "B {length}"]:
        if self.window is None:
            return jnp.broadcast_to(tau_B[:, None], (tau_B.shape[0], length))
        behind_L = jnp.arange(length)[::-1]
        return (tau_B[:, None] * (length + self.window - 1) - behind_L) / self.window

    @property
    def covers(self) -> bool:
        return self.distribution.covers


@dataclasses.dataclass(frozen=True)
class ByPosition(Times):
    """t_i(tau) = tau^{w_i}: position-dependent rates, by which the later tokens of each `size` positions are noised more.

    With masks on the linear schedule the bound is then, for any network that reads no time, the mean of -log p over the orders of a
    Plackett-Luce model with the rates w_i, in which a high rate is revealed early; with the weight dt_i/dtau it is as tight as with
    one time (the exact form of the mask that Efficient-DLM, 2512.14067, draws in blocks without its weight).

    size: positions in which the rates fall, then they start again; 0 = the whole row.
    halving: h in w_i = 2^{(size - 1 - i) / (h size)}. The lowest rate is 1: a lower one would have a weight without bound, and only the
      ratios of rates matter to the orders.
    distribution, stratified: of tau, as in PerRow.
    """

    size: int = 0
    halving: float = 0.25
    distribution: TimeDistribution = UniformTimes()
    stratified: bool = True

    def __post_init__(self):
        if not self.size >= 0:
            raise InputError(f"times by_position: size is {self.size}; it must be a number of positions, or 0 for the whole row")
        if not 0.05 <= self.halving < float("inf"):
            raise InputError(f"times by_position: halving is {self.halving}; it must be at least 0.05 of the size")

    def draw(
        self, key: Key[Array, ""], row_B: Int[Array, "B"], global_batch: int, length: int
    ) -> tuple[Float[Array, "B {length}"], Float[Array, "B {length}"]]:
        """Times t_i, and weights dt_i/dtau over the density of tau."""
        tau_B1, weight_B1 = PerRow(self.distribution, self.stratified).draw(key, row_B, global_batch, 1)
        rate_L = self.rates(length)
        return tau_B1**rate_L, rate_L * tau_B1 ** (rate_L - 1) * weight_B1

    def rates(self, length: int) -> Float[Array, "{length}"]:
        """w_i."""
        size = self.size or length
        return 2.0 ** ((size - 1 - jnp.arange(length) % size) / (self.halving * size))

    @property
    def covers(self) -> bool:
        return self.distribution.covers


def _inside(t_BL: PerToken) -> Array:
    return (t_BL >= 0) & (t_BL <= 1)


@dataclasses.dataclass(frozen=True)
class PerBlock(Times):
    """One time for each block of `size` tokens of each row.

    distribution: of the times.  stratified: each block of the global batch has its own of the equal cells of u.
    antithetic: neighbouring blocks of a row have u and 1 - u, so that no row has little noise, or much, in all its blocks.
    corrected: as in PerRow.
    """

    size: int
    distribution: TimeDistribution = UniformTimes()
    stratified: bool = True
    antithetic: bool = False
    corrected: bool = True

    def __post_init__(self):
        if not self.size >= 1:
            raise InputError(f"times per_block: size is {self.size}; it must be at least 1 token")

    def draw(
        self, key: Key[Array, ""], row_B: Int[Array, "B"], global_batch: int, length: int
    ) -> tuple[Float[Array, "B {length}"], Float[Array, "B {length}"]]:
        """Times and weights of the rows `row_B`; they depend on the key, the row and the global batch alone."""
        blocks = -(-length // self.size)
        drawn = -(-blocks // 2) if self.antithetic else blocks
        if self.stratified:
            shift_key, order_key = jax.random.split(key)
            cells = global_batch * drawn
            cell_BN = jax.random.permutation(order_key, cells)[row_B[:, None] * drawn + jnp.arange(drawn)]
            u_BN = (cell_BN + jax.random.uniform(shift_key)) / cells
        else:
            u_BN = jax.vmap(lambda row: jax.random.uniform(jax.random.fold_in(key, row), (drawn,)))(row_B)
        if self.antithetic:
            u_BN = jnp.stack([u_BN, 1 - u_BN], axis=2).reshape(row_B.shape[0], 2 * drawn)[:, :blocks]
        t_BN = self.distribution.draw(u_BN)
        return tuple(jnp.repeat(values_BN, self.size, axis=1)[:, :length] for values_BN in (t_BN, self.distribution.weight(t_BN)))

    def tokens_per_time(self, length: int) -> int:
        return math.gcd(self.size, length)

    @property
    def covers(self) -> bool:
        return self.distribution.covers


def choose_interval(t_N: Float[np.ndarray, "N"], nats_N: Float[np.ndarray, "N"], least: float = 0.5, bins: int = 20) -> tuple[float, float]:
    """The interval of times in which the loss of a draw varies least (BD3-LM section 4: a data-driven clipped schedule).

    Args:
      t_N, nats_N: times drawn from [0, 1] and the trained loss of the block (or row) at each; some thousand pairs.
      least: width of the narrowest interval that is considered: without a limit the interval with the least variance is a single time.
      bins: ends are multiples of 1/bins.
    Returns:
      (low, high) for `UniformTimes(low, high)`.
    Raises:
      InputError: an interval without two samples.
    """
    t_N, nats_N = np.asarray(t_N, np.float64), np.asarray(nats_N, np.float64)
    edges = np.arange(bins + 1) / bins
    if not 0 < least <= 1 or not np.isfinite(nats_N).all():
        raise InputError(f"choose_interval: least is {least} and must lie in (0, 1], and all of nats_N must be finite")
    best, chosen = np.inf, (0.0, 1.0)
    for low, high in ((low, high) for low in edges for high in edges if high - low >= least - 1e-9):
        inside_N = (t_N >= low) & (t_N <= high)
        if inside_N.sum() < 2:
            raise InputError(f"choose_interval: {int(inside_N.sum())} samples lie in [{low:g}, {high:g}]; measure more, over all of [0, 1]")
        variance = float(np.var(nats_N[inside_N], ddof=1))
        # The wider of two intervals with the same variance.
        if variance < best * (1 - 1e-9) or (variance <= best and high - low > chosen[1] - chosen[0]):
            best, chosen = variance, (float(low), float(high))
    return chosen
