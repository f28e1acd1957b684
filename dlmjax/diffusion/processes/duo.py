"""Uniform-state diffusion as the argmax of Gaussian diffusion, and the curriculum that follows (Duo, 2506.10892).

Let w = a e_x + sqrt(1 - a^2) noise over N classes, a the Gaussian's signal. Its argmax shows x with probability
    P(a) = integral phi(u - a/sqrt(1 - a^2)) Phi(u)^(N - 1) du,
and every other token with the same chance: it is uniform-state diffusion with alpha = (N P - 1)/(N - 1) (their eq. 10 and 11). `signal`
inverts that map, so a process keeps its discrete schedule and the Gaussian one follows.

Curriculum: early in training the network reads softmax(w / temperature), a mixture of a few tokens, in place of the argmax: it contains
more of the clean text, and the gradients have less variance. `soft_tokens` draws the k largest entries of w, and which tokens they belong
to, without the N-wide vector: the largest of N - 1 normal numbers are drawn one after the other from their order statistics. The input of
the network is ids [B, L, k] and weights [B, L, k], a weighted sum of k embeddings.

Duo++ (2602.21185) starts from the Gaussian: its -log SNR rises linearly with t, so its signal is an exponential, and alpha(t) is a
polynomial of degree 9, by least squares (`Poly9`): no map is inverted in a step.

Shapes: B batch, L length, k kept tokens, V vocabulary of N tokens and special ids; `*n` any shape.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import ndtri
from jaxtyping import Array, ArrayLike, Float, Float64, Int, Real
from scipy.special import log_ndtr

from dlmjax.diffusion.declarations import Capabilities, Phases
from dlmjax.diffusion.process import Process, States, split_rows, uniform_rows
from dlmjax.diffusion.processes.uniform import Uniform, UniformNoise
from dlmjax.diffusion.schedules import FLOOR, Linear, Schedule, real
from dlmjax.diffusion.shapes import Ids, Mask, PerClass, PerToken, RowKeys, Tokens, Values
from dlmjax.errors import InputError

_KNOTS = 1024
MOST_ERROR = 1e-3  # of alpha as a polynomial; published range: 3e-5
CURVES = ("schedule", "poly9")


def argmax_alpha(ratio: Float64[np.ndarray, "J"], tokens: int) -> Float64[np.ndarray, "J"]:
    """alpha of the argmax where the mean of the clean entry is `ratio` = a/sqrt(1 - a^2) standard deviations, in float64 by quadrature."""
    u_U = np.linspace(-9.0, 9.0, 1201)
    step = u_U[1] - u_U[0]
    ratio = np.asarray(ratio, np.float64)
    # u is the clean entry's own noise: P(a) = E Phi(u + ratio)^(N - 1). The rule is exact to rounding for such functions.
    density_U = np.exp(-(u_U**2) / 2) / np.sqrt(2 * np.pi) * step
    win_JU = np.exp((tokens - 1) * log_ndtr(u_U[None] + ratio[:, None]))
    # alpha = (N P - 1)/(N - 1) = 1 - N/(N - 1) (1 - P): the difference to P(0) = 1/N, without cancelling at small ratios.
    base_U = np.exp((tokens - 1) * log_ndtr(u_U))
    return tokens / (tokens - 1) * (win_JU - base_U[None]) @ density_U


@functools.cache
def _table(tokens: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Knots of the map: log-odds of alpha, increasing, and the ratio at each."""
    ratio_J = np.concatenate([np.geomspace(1e-9, 0.5, _KNOTS, endpoint=False), np.linspace(0.5, 13.0, _KNOTS)])
    alpha_J = np.clip(argmax_alpha(ratio_J, tokens), 1e-300, 1 - 1e-15)
    log_odds_J = np.log(alpha_J) - np.log1p(-alpha_J)
    keep_J = np.concatenate([[True], np.diff(np.maximum.accumulate(log_odds_J)) > 1e-9])
    return tuple(log_odds_J[keep_J]), tuple(ratio_J[keep_J])


def signal(alpha: Values, noise: Values, tokens: int) -> Values:
    """a/sqrt(1 - a^2) of the Gaussian whose argmax keeps a token with probability alpha = 1 - noise, by a table (relative error < 2e-4)."""
    log_odds_J, ratio_J = _table(tokens)
    log_odds = jnp.log(jnp.maximum(alpha, FLOOR)) - jnp.log(jnp.maximum(noise, FLOOR))
    return jnp.interp(log_odds, jnp.asarray(log_odds_J, jnp.float32), jnp.asarray(ratio_J, jnp.float32))


@functools.cache
def _polynomial(tokens: int, low: float, high: float) -> tuple[tuple[float, ...], float]:
    """(coefficients of alpha in powers of 2 t - 1, from the constant on; largest error on [0, 1])."""
    t_J = np.linspace(0.0, 1.0, 2001)
    alpha_J = argmax_alpha(np.exp(-(low + (high - low) * t_J) / 2), tokens)
    fitted = np.polynomial.Polynomial.fit(t_J, alpha_J, 9, domain=[0, 1])
    return tuple(map(float, fitted.coef)), float(np.abs(fitted(t_J) - alpha_J).max())


@dataclasses.dataclass(frozen=True)
class Poly9(Schedule):
    """alpha of the argmax over `tokens` classes where -log SNR of the Gaussian is low + (high - low) t (Duo++ 2602.21185).

    Neither clean at t = 0 nor all noise at t = 1: of 50,257 tokens alpha falls from 0.928 to 0.038 between -3.5 and -1.75.
    """

    tokens: int
    low: float = -3.5
    high: float = -1.75

    def __post_init__(self):
        what = f"process duo: curve poly9 from low={self.low} to high={self.high} (-log SNR)"
        if not -20 <= self.low < self.high <= 20:
            raise InputError(f"{what} requires -20 <= low < high <= 20")
        error = _polynomial(self.tokens, self.low, self.high)[1]
        if error > MOST_ERROR:
            raise InputError(
                f"{what} is too wide: alpha as a polynomial is wrong by {error:.1g}; give a narrower range, such as -3.5 to -1.75"
            )

    def ratio(self, t: Real[ArrayLike, "*t"]) -> Float[Array, "*t"]:
        """Mean of the clean entry in standard deviations, the square root of the SNR."""
        return jnp.exp(-(self.low + (self.high - self.low) * real(t)) / 2)

    def alpha(self, t: Real[ArrayLike, "*t"]) -> Float[Array, "*t"]:
        return self._value(self._coefficients, t)

    def noise(self, t: Real[ArrayLike, "*t"]) -> Float[Array, "*t"]:
        return 1 - self.alpha(t)

    def alpha_prime(self, t: Real[ArrayLike, "*t"]) -> Float[Array, "*t"]:
        slopes = [2 * n * value for n, value in enumerate(self._coefficients)][1:]
        return jnp.minimum(self._value(slopes, t), 0.0)

    def inverse(self, alpha: Real[ArrayLike, "*t"]) -> Float[Array, "*t"]:
        t_J = jnp.linspace(0.0, 1.0, _KNOTS)
        return jnp.interp(-real(alpha), -self.alpha(t_J), t_J)

    @property
    def ends(self) -> tuple[float, float]:
        signs = np.asarray([1.0, -1.0])[:, None] ** np.arange(10)
        of_1, of_0 = signs @ np.asarray(self._coefficients)
        return float(of_0), float(of_1)

    @property
    def _coefficients(self) -> tuple[float, ...]:
        return _polynomial(self.tokens, self.low, self.high)[0]

    def _value(self, coefficients, t: Real[ArrayLike, "*t"]) -> Float[Array, "*t"]:
        u = 2 * real(t) - 1
        return functools.reduce(lambda value, coefficient: value * u + coefficient, reversed(coefficients), jnp.zeros_like(u))


def soft_tokens(
    keys_B: RowKeys, x_BL: Tokens, ratio_BL: PerToken, temperature: float, k: int, vocab: int, suppressed_ids: tuple[int, ...] = ()
) -> tuple[Int[Array, "B L {k}"], Float[Array, "B L {k}"]]:
    """The k largest entries of softmax(w / temperature), w = (ratio e_x + noise) in units of the noise, largest first.

    Returns:
      ids: distinct tokens; ids[..., 0] is the argmax, whose distribution is exactly that of uniform noise.
      weights: softmax over those k entries (at Duo's temperatures the others have no weight).
    """
    length, others = x_BL.shape[1], vocab - len(suppressed_ids) - 1
    if not 2 <= k <= others:
        raise InputError(f"soft tokens: k is {k}; it must lie between 2 and the {others} other tokens")
    own_B, *order_B = split_rows(keys_B, 1 + 2 * k)
    own_BL = ratio_BL + _normal(uniform_rows(own_B, length))
    # Order statistics of `others` uniform numbers from the top: log U_(j) = log U_(j-1) + log(u)/(others - j).
    log_top_BL, tops, ranks = jnp.zeros(x_BL.shape), [], []
    for j in range(k):
        u_BL = jnp.maximum(uniform_rows(order_B[j], length), 2.0**-33)
        log_top_BL = log_top_BL + jnp.log(u_BL) / (others - j)
        tops.append(_upper_normal(-jnp.expm1(log_top_BL)))
        # The token is the r-th of those not drawn yet, so all orders are equally likely.
        rank_BL = jax.vmap(lambda key, j=j: jax.random.randint(key, (length,), 0, others - j, jnp.int32))(order_B[k + j])
        for taken_BL in jnp.sort(jnp.stack(ranks), axis=0) if ranks else ():
            rank_BL = rank_BL + (rank_BL >= taken_BL)
        ranks.append(rank_BL)
    ids = []
    index_BL = _index(x_BL, suppressed_ids)
    for rank_BL in ranks:
        id_BL = rank_BL + (rank_BL >= index_BL)  # skips the clean token
        for id_ in sorted(suppressed_ids):
            id_BL = id_BL + (id_BL >= id_)
        ids.append(id_BL)
    value_BLk = jnp.stack([own_BL, *tops], axis=-1)
    id_BLk = jnp.stack([x_BL.astype(jnp.int32), *ids], axis=-1)
    value_BLk, chosen_BLk = jax.lax.top_k(value_BLk, k)
    return jnp.take_along_axis(id_BLk, chosen_BLk, axis=-1), jax.nn.softmax(value_BLk / temperature, axis=-1)


def _index(x_BL: Tokens, suppressed_ids: tuple[int, ...]) -> Tokens:
    """Index of the token x among the tokens that are not suppressed."""
    return x_BL - sum(((x_BL > id_).astype(jnp.int32) for id_ in suppressed_ids), jnp.zeros_like(x_BL))


def _normal(u: Values) -> Values:
    return ndtri(jnp.clip(u, 2.0**-33, 1 - 2.0**-24))


def _upper_normal(tail: Values) -> Values:
    """The number that a standard normal one exceeds with probability `tail`: exact also where 1 - tail rounds to 1."""
    return -ndtri(jnp.clip(tail, 1e-37, 1.0 - 2.0**-24))


@dataclasses.dataclass(frozen=True)
class _SoftTokens(States):
    """(id, weight) of k tokens; a token as a state has all weight on one id."""

    k: int

    def of_tokens(self, x_BL: Ids) -> Float[Array, "*n {self.k} 2"]:
        weight_k = jnp.zeros((self.k,), jnp.float32).at[0].set(1.0)
        ids = jnp.broadcast_to(x_BL[..., None].astype(jnp.float32), (*x_BL.shape, self.k))
        return jnp.stack([ids, jnp.broadcast_to(weight_k, ids.shape)], axis=-1)

    def to_tokens(self, z_BL: Float[Array, "*n k 2"]) -> Ids:
        """The argmax."""
        return z_BL[..., 0, 0].astype(jnp.int32)


@dataclasses.dataclass(frozen=True)
class Duo(UniformNoise):
    """Uniform noise whose network reads soft tokens: the first stage of Duo's curriculum; `bound` is the process of the second.

    A state is [B, L, k, 2] float32: (id, weight) of the k largest entries, largest first; ids are exact in float32. A network embeds it as
    the weighted sum of the k embeddings, so no V-wide tensor exists. `to_tokens` gives the argmax. The loss is that of uniform noise
    with soft tokens as the network's input, which is not a bound; evaluation and sampling use `bound`.
    until: the training step at which the curriculum ends and training continues with uniform noise; 0 = it does not end.
    curve: the noise of the curriculum: "schedule", that of `schedule`, whose Gaussian is found by a table; "poly9", that of `Poly9` between
      `low` and `high`. `bound` has `schedule` with either.
    """

    vocab: int
    mask_id: int | None = None
    schedule: Schedule = Linear()
    excluded: tuple[int, ...] = ()
    parameterisation: str = "leave_one_out"
    temperature: float = 1e-3
    k: int = 4
    until: int = 0
    curve: str = "schedule"
    low: float = -3.5
    high: float = -1.75

    name = "duo"

    def __post_init__(self):
        super().__post_init__()
        if not self.temperature > 0 or not 2 <= self.k < self.tokens:
            raise InputError(
                f"process duo: temperature is {self.temperature}, k is {self.k}; requires temperature > 0 and 2 <= k < {self.tokens}"
            )
        if self.until < 0:
            raise InputError(f"process duo: until is {self.until}; it must be a number of steps, or 0 for a curriculum without an end")
        if self.curve not in CURVES:
            raise InputError(f"process duo: curve is {self.curve!r:.60}; choose one of {', '.join(CURVES)}")
        if self.vocab > 2**24:
            raise InputError(f"process duo: a vocabulary of {self.vocab} has ids that are not float32 numbers")
        self.trained_schedule  # noqa: B018  refuses a range that the polynomial does not follow

    @property
    def trained_schedule(self) -> Schedule:
        return Poly9(self.tokens, self.low, self.high) if self.curve == "poly9" else self.schedule

    def corrupt(self, keys_B: RowKeys, x_BL: Tokens, t_BL: PerToken, valid_BL: Mask | None = None) -> Float[Array, "B L {self.k} 2"]:
        schedule = self.trained_schedule
        ratio_BL = schedule.ratio(t_BL) if self.curve == "poly9" else signal(schedule.alpha(t_BL), schedule.noise(t_BL), self.tokens)
        id_BLk, weight_BLk = soft_tokens(keys_B, x_BL, ratio_BL, self.temperature, self.k, self.vocab, self.suppressed_ids)
        state_BLk2 = jnp.stack([id_BLk.astype(jnp.float32), weight_BLk], axis=-1)
        whole_BL = jnp.zeros(x_BL.shape, bool) if valid_BL is None else ~valid_BL
        return jnp.where((whole_BL | (schedule.noise(t_BL) <= 0))[..., None, None], self.states.of_tokens(x_BL), state_BLk2)

    @property
    def states(self) -> "_SoftTokens":
        return _SoftTokens(self.k)

    def loss(self, logits: PerClass, x: Ids, z: Float[Array, "*n k 2"], t: Values) -> Values:
        return super().loss(logits, x, self.states.to_tokens(z), t)

    def reconstruction(self, logits: PerClass, x: Ids, z0: Float[Array, "*n k 2"]) -> Values:
        return super().reconstruction(logits, x, self.states.to_tokens(z0))

    @property
    def capabilities(self) -> Capabilities:
        return dataclasses.replace(super().capabilities, weightings=("bound",), is_bound=False)

    @property
    def phases(self) -> Phases:
        ends = (self.until,) if self.until else ()
        return Phases(lambda i: self.bound if i else self, ends, lambda step: {"until": step})

    # Soft tokens are drawn at one time each; there is no chain from one soft state to the next.
    forward_step = Process.forward_step

    @property
    def bound(self) -> Uniform:
        return Uniform(self.vocab, self.mask_id, self.schedule, self.excluded, self.parameterisation)
