"""Plaid (2305.18619): embeddings and noise schedule are trained on the likelihood itself; the network predicts logits.

Two of its three components are in the base class: categorical reparameterisation (the clean vector is softmax(logits) @ table) and the
output prior. The third is the learned schedule, gamma(t) = gamma_0 + (gamma_1 - gamma_0) shape(t), shape rising from 0 to 1. The bound
depends on the two ends and not on the shape (VDM 2107.00630 section 5.1), so:

- the ends are trained on the bound, at fixed t: the gradient flows through gamma into all its terms;
- the shape is trained for a low loss variance. With t ~ U[0, 1] and r(gamma) = dgamma/dt at the t of that gamma, the loss at gamma is
  r(gamma) h(gamma) with h independent of the shape, so that E[loss^2] = integral r(gamma) E[h^2] dgamma, and its gradient is that of
      E[ loss^2 log r(gamma) ]   with loss^2 and gamma held fixed.
  This is the gradient VDM and Plaid take through the network (d loss^2 / d gamma), without the network. `loss` contains it in a term of
  value 0; elsewhere the gradient of the shape is stopped. It is divided by log(V)^2, so that its size is that of the other gradients.

The variance is that of a token's loss at uniform t, so uniform or stratified times are appropriate: the shape takes the role of importance
sampling.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from dlmjax.diffusion.declarations import Parameter
from dlmjax.diffusion.gaussian.process import EmbeddingNoise
from dlmjax.diffusion.gaussian.schedules import LogLinear, Path, Point, _FromGamma
from dlmjax.diffusion.process import check_schedule_lr
from dlmjax.diffusion.shapes import Ids, PerClass, Values, Vectors
from dlmjax.diffusion.weightings.base import Bound
from dlmjax.errors import InputError


@dataclasses.dataclass(frozen=True)
class Learned(_FromGamma):
    """gamma(t) from the two ends and a monotone network of one hidden layer:

        shape(t) = w_0 t + sum_k w_k F_k(t),   F_k = the sigmoid of slope_k (t - centre_k), shifted and scaled to rise from 0 to 1,

    with w a softmax: a mixture of distribution functions, which rises from 0 to 1 for all values of its parameters.
    """

    ends: Float[Array, "2"]
    network: PyTree[Array]

    def gamma(self, t: Values) -> Values:
        return self.ends[0] + (self.ends[1] - self.ends[0]) * jax.lax.stop_gradient(self.shape(t)[0])

    def gamma_prime(self, t: Values) -> Values:
        return (self.ends[1] - self.ends[0]) * jax.lax.stop_gradient(self.shape(t)[1])

    def shape(self, t: Values) -> tuple[Values, Values, Values]:
        """(shape, its first, its second derivative in t), with gradients to the network."""
        w, slope, centre = jax.nn.softmax(self.network["weight"]), jnp.exp(self.network["slope"]), jax.nn.sigmoid(self.network["centre"])
        bend = jax.nn.sigmoid(slope * (t[..., None] - centre))
        first, last = jax.nn.sigmoid(-slope * centre), jax.nn.sigmoid(slope * (1 - centre))
        share = w[1:] / (last - first)
        rise = slope * bend * (1 - bend)
        return (
            w[0] * t + jnp.sum(share * (bend - first), axis=-1),
            w[0] + jnp.sum(share * rise, axis=-1),
            jnp.sum(share * slope * rise * (1 - 2 * bend), axis=-1),
        )

    def log_rate(self, t: Values) -> Values:
        """log r(gamma) up to a constant: its gradient in the network is that at fixed gamma, as t changes with the shape."""
        shape, first, second = self.shape(t)
        return jnp.log(first) - jax.lax.stop_gradient(second / first**2) * shape


@dataclasses.dataclass(frozen=True)
class Plaid(EmbeddingNoise):
    """gamma_0, gamma_1: where the ends start. units: width of the schedule's network. learn_schedule = False keeps gamma linear in t.
    schedule_lr: ends and shape learn at this multiple of the learning rate; the embeddings do not."""

    norm: float = 1.0
    path: str = "log_linear"
    gamma_0: float | None = -3.0
    gamma_1: float | None = 6.0
    units: int = 16
    learn_schedule: bool = True
    schedule_lr: float = 1.0

    name = "plaid"
    weighting = Bound()

    def __post_init__(self, mask_id: int | None):
        if self.path != "log_linear" or self.gamma_0 is None or self.gamma_1 is None:
            raise InputError("process plaid learns its path from gamma_0 to gamma_1: it requires both, and path 'log_linear'")
        super().__post_init__(mask_id)
        if self.steps or self.prediction != "logits":
            raise InputError("process plaid requires prediction 'logits' and steps 0; for other values use process 'gaussian'")
        if self.units < 1:
            raise InputError(f"process plaid: units is {self.units}; it must be at least 1")
        check_schedule_lr(self.name, self.schedule_lr)

    @property
    def parameters(self) -> dict[str, Any]:
        """Those of the embeddings and, where it is learned, of the schedule."""
        if not self.learn_schedule:
            return super().parameters

        def vector(start: Callable[[], Array]) -> Parameter:
            return Parameter(lambda _: start(), "vector", float(self.schedule_lr))

        def centre() -> Array:
            u = (jnp.arange(self.units, dtype=jnp.float32) + 0.5) / self.units
            return jnp.log(u) - jnp.log1p(-u)

        return super().parameters | {
            "ends": vector(lambda: jnp.asarray([self.gamma_0, self.gamma_1], jnp.float32)),
            "schedule": {
                "weight": vector(lambda: jnp.zeros((self.units + 1,), jnp.float32)),
                "slope": vector(lambda: jnp.full((self.units,), math.log(2 * self.units), jnp.float32)),
                "centre": vector(centre),
            },
        }

    def scalars(self) -> dict[str, Float[Array, ""]]:
        """The learned ends, and gamma half-way."""
        if not isinstance(self.curve, Learned):
            return {}
        gamma_0, gamma_1 = self.params["ends"]
        return {"gamma_0": gamma_0, "gamma_half": self.curve.gamma(jnp.float32(0.5)), "gamma_1": gamma_1}

    @property
    def curve(self) -> Path:
        if not self.learn_schedule or self.params is None:
            return LogLinear(self.gamma_0, self.gamma_1)
        return Learned(self.params["ends"], self.params["schedule"])

    def time_embedding_input(self, t: Values) -> Values:
        """gamma, scaled to its first range: one amount of noise is always one number."""
        return (self.curve.at(t).gamma - self.gamma_0) / (self.gamma_1 - self.gamma_0)

    def input_points(self, time_input: Values) -> tuple[Point, Point | None]:
        return LogLinear(self.gamma_0, self.gamma_1).at(time_input).over(), None

    def loss(self, logits: PerClass, x: Ids, z: Vectors, t: Values) -> Values:
        nats = super().loss(logits, x, z, t)
        if not isinstance(self.curve, Learned):
            return nats
        unevenness = jax.lax.stop_gradient(nats / math.log(self.vocab)) ** 2 * self.curve.log_rate(t)
        return nats + unevenness - jax.lax.stop_gradient(unevenness)
