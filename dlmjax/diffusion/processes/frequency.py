"""Masking by token frequency: rare tokens are masked early and revealed late, by the token counts of the corpus.

Both are state-dependent masked diffusion with fixed schedules (state_dependent.py), so their loss is an exact bound; it would not be one
with a further weight, or with a masking rate that the loss does not use.

`Spindle`: noise_v(t) = t + strength sin(pi t) H_v (DiffusionBERT 2211.15029 eq. 7 and 8), H_v = 1 - mean information / information of v.
    The paper takes the mean over the sequence, by which a token's schedule would depend on its neighbours; here it is over the corpus.
`FrequencyMasked`: noise_v(t) = t^(w_v) with w_v between 1/strength (rarest) and strength (most common), by frequency rank as in
    frequency-informed masking (BabyLM 2509.05056); the ranks are weighted by counts, so that log w has mean 0 over the corpus.

Shapes: V vocabulary; `*n` any shape.
"""

import dataclasses
import functools
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Float64, Int

from dlmjax.diffusion.processes.state_dependent import Exponents, StateDependent
from dlmjax.diffusion.processes.table import Table
from dlmjax.diffusion.schedules import FLOOR, real
from dlmjax.diffusion.shapes import Ids, PerClass, Values
from dlmjax.errors import InputError


def information(counts_V: Int[np.ndarray, "V"]) -> Float64[np.ndarray, "V"]:
    """-log p(v) in nats, with 1 added to every count."""
    counts_V = np.asarray(counts_V, np.float64) + 1
    return np.log(counts_V.sum()) - np.log(counts_V)


def entropy_share(counts_V: Int[np.ndarray, "V"]) -> Float64[np.ndarray, "V"]:
    """1 - mean information / information of v, with the mean over the corpus's tokens; between -1 and 1 (the rarest)."""
    information_V, seen_V = information(counts_V), np.asarray(counts_V, np.float64)
    mean = float(np.sum(seen_V * information_V) / seen_V.sum())
    return np.maximum(1 - mean / np.maximum(information_V, FLOOR), -1.0)


def commonness(counts_V: Int[np.ndarray, "V"]) -> Float64[np.ndarray, "V"]:
    """Share of the corpus's tokens that are rarer than v, plus half of those as frequent: its mean over the corpus is 1/2."""
    counts_V = np.asarray(counts_V, np.float64)
    value_U, index_V, size_U = np.unique(counts_V, return_inverse=True, return_counts=True)
    mass_U = value_U * size_U / counts_V.sum()
    return (np.cumsum(mass_U) - mass_U / 2)[index_V]


def _counts(name: str, value: Any, vocab: int) -> Table:
    if value is None:
        raise InputError(f"process {name} requires counts_V, how often each token occurs in the corpus (dlmjax prepare counts them)")
    table = Table(value)
    if table.array.shape != (vocab,):
        raise InputError(f"process {name}: counts_V has the shape {table.array.shape}; it must have one number for each of {vocab} classes")
    if (table.array < 0).any() or not table.array.sum() > 0:
        raise InputError(f"process {name}: counts_V must hold counts, none negative and not all zero")
    return table


@dataclasses.dataclass(frozen=True)
class Spindle(StateDependent):
    """DiffusionBERT's spindle schedule.

    counts_V: occurrences of each class in the training text (array or sequence).
    strength: the paper's lambda, at most 0.3: above 1/pi the noise of some token would decrease with t.
    """

    vocab: int
    mask_id: int
    excluded: tuple[int, ...] = ()
    counts_V: Any = None
    strength: float = 0.3

    name = "spindle"

    def __post_init__(self):
        super().__post_init__()
        if not 0 <= self.strength <= 0.3:
            raise InputError(f"process spindle: strength is {self.strength}; it must lie in [0, 0.3], else noise decreases with t")
        object.__setattr__(self, "counts_V", _counts(self.name, self.counts_V, self.vocab))

    @property
    def shares_V(self) -> Float64[np.ndarray, "V"]:
        return self.counts_V.array / self.counts_V.array.sum()

    @functools.cached_property
    def _lift_V(self) -> Float64[np.ndarray, "V"]:
        return self.strength * entropy_share(self.counts_V.array)

    def noise_of(self, x: Ids, t: Values) -> Values:
        t = real(t)
        # Exactly 1 at t = 1, where the sine of float pi is not quite 0.
        return jnp.where(t < 1, t + jnp.asarray(self._lift_V, t.dtype)[x] * jnp.sin(jnp.pi * t), 1.0)

    def hazards(self, t: Values) -> PerClass:
        t, lift_V = jnp.maximum(real(t), FLOOR)[..., None], jnp.asarray(self._lift_V, real(t).dtype)
        return (1 + lift_V * jnp.pi * jnp.cos(jnp.pi * t)) / (t * (1 + lift_V * jnp.pi * jnp.sinc(t)))


@dataclasses.dataclass(frozen=True)
class FrequencyMasked(Exponents):
    """Rare tokens are masked more at every t, common ones less.

    counts_V: occurrences of each class in the training text (array or sequence).
    strength: at least 1; at 1 all tokens are masked alike.
    """

    vocab: int
    mask_id: int
    excluded: tuple[int, ...] = ()
    eps: float = 0.0
    counts_V: Any = None
    strength: float = 2.0

    name = "frequency_masked"

    def __post_init__(self):
        super().__post_init__()
        if not self.strength >= 1:
            raise InputError(f"process frequency_masked: strength is {self.strength}; it must be at least 1 (all tokens alike)")
        object.__setattr__(self, "counts_V", _counts(self.name, self.counts_V, self.vocab))

    @property
    def shares_V(self) -> Float64[np.ndarray, "V"]:
        return self.counts_V.array / self.counts_V.array.sum()

    @functools.cached_property
    def _w_V(self) -> Float64[np.ndarray, "V"]:
        return self.strength ** (2 * commonness(self.counts_V.array) - 1)

    @property
    def weights_V(self) -> Float[Array, "V"]:
        return jnp.asarray(self._w_V)
