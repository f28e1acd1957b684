"""Published training losses of Gaussian diffusion. None is a bound, and the log names each as such; the bound is reported besides.

    simple       the mean squared error of eps, x0, v or velocity, the same weight at all t (DDPM 2006.11239 eq. 14; flow matching)
    end_to_end   Diffusion-LM (2205.14217 eq. 2): squared error of x0 + squared signal at t = 1 + rounding
    anchor       the squared error of x0 + cross-entropy of the token given the *predicted* x0 (Difformer 2212.09412)

The minimum of a squared error alone has all embeddings at one point; the rounding and the anchor term prevent that. Errors are means over
the E entries of a vector, as published; the error of a target is computed from x0, whatever the network predicts.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from dlmjax.diffusion.gaussian.parameterisation import NAMES, coefficients
from dlmjax.diffusion.process import cross_entropy
from dlmjax.diffusion.shapes import Ids, PerClass, Values, Vectors
from dlmjax.diffusion.weightings.base import Weighting
from dlmjax.errors import InputError


@dataclasses.dataclass(frozen=True)
class Simple(Weighting):
    """Squared error of `target`, whatever the network predicts."""

    target: str = "eps"
    name = "simple"
    is_factor = False

    def __post_init__(self):
        if self.target not in NAMES or self.target == "mu":
            raise InputError(f"weighting simple: unknown target {self.target!r}; choose one of {', '.join(n for n in NAMES if n != 'mu')}")

    def trained(self, process: Any, logits: PerClass, x: Ids, z: Vectors, t: Values, nats: Values) -> Values:
        """Mean squared error of the target, in place of `nats`."""
        del nats
        return squared_error(process, logits, x, z, t, self.target)


@dataclasses.dataclass(frozen=True)
class EndToEnd(Weighting):
    """terminal, rounding: weights of the terminal and of the rounding term.

    The published loss draws its own z_0 for the rounding; here z_0 has the noise of z, which has the same distribution.
    """

    terminal: float = 1.0
    rounding: float = 1.0
    name = "end_to_end"
    is_factor = False

    def trained(self, process: Any, logits: PerClass, x: Ids, z: Vectors, t: Values, nats: Values) -> Values:
        """Squared error of x0, terminal and rounding term, in place of `nats`."""
        del nats
        clean, now = process.table[x], process.curve.at(t).over()
        start, end = process.curve.at(jnp.zeros_like(t)).over(), process.curve.at(jnp.ones_like(t)).over()
        z0 = start.a * clean + start.s * jax.lax.stop_gradient((z - now.a * clean) / now.s)
        terminal = jnp.mean((end.a * clean) ** 2, axis=-1)
        rounding = cross_entropy(process.round(z0), x)
        return squared_error(process, logits, x, z, t, "x0") + self.terminal * terminal + self.rounding * rounding


@dataclasses.dataclass(frozen=True)
class Anchor(Weighting):
    """weight: factor of the cross-entropy."""

    weight: float = 1.0
    name = "anchor"
    is_factor = False

    def trained(self, process: Any, logits: PerClass, x: Ids, z: Vectors, t: Values, nats: Values) -> Values:
        """Squared error of x0 and cross-entropy, in place of `nats`."""
        del nats
        if process.prediction == "logits":
            belief = process.belief(logits, z, t)
        else:
            belief = process.round(process.curve.at(jnp.zeros_like(t)).over().a * process.clean(logits, z, t))
        return squared_error(process, logits, x, z, t, "x0") + self.weight * cross_entropy(belief, x)


def squared_error(process: Any, logits: PerClass, x: Ids, z: Vectors, t: Values, name: str) -> Values:
    """Mean over E of the squared error of `name`. At a given z, an error d of x0 is an error -(a / s) d of eps."""
    now = process.curve.at(t).over()
    x0_part, eps_part = coefficients(name, now)
    error = (x0_part - eps_part * now.a / now.s) * (process.table[x] - process.clean(logits, z, t))
    return jnp.mean(error**2, axis=-1)
