"""What a network can predict of z = a x0 + s eps, and the exact conversion of each prediction into any other.

    x0         the clean vector
    eps        the noise (DDPM 2006.11239)
    v          a eps - s x0 (Salimans & Ho 2202.00512)
    score      grad log q(z) = -eps / s; from it x0 = (z + s^2 score) / a (Tweedie)
    mu         the mean of q(z_to | z, x0) for the step from this time to an earlier one, `to`
    velocity   eps - x0: dz/dt on the straight path

All are linear in (x0, eps), and so is z: two equations for two unknowns. The conversion is exact where these are independent: eps and
score do not determine x0 where a = 0; v and velocity determine it everywhere.

Shapes: vectors [*n, E]; points of a path [*n, 1] (`Point.over`).
"""

import jax.numpy as jnp
from jaxtyping import Array

from dlmjax.diffusion.gaussian.schedules import Point, fresh
from dlmjax.diffusion.shapes import Vectors
from dlmjax.errors import InputError

NAMES = ("x0", "eps", "v", "score", "mu", "velocity")


def posterior(now: Point, to: Point) -> tuple[Array, Array, Array]:
    """q(z_to | z, x0) is normal for an earlier point `to`: (c, d, variance) of its mean c z + d x0.

    On a variance-preserving path the variance is DDPM's beta_tilde = (1 - abar_to) / (1 - abar) beta (2006.11239 eq. 7).
    """
    share = fresh(now, to)
    # a s_to^2 / (a_to s^2) = s_to / s * sqrt(SNR / SNR_to), which is finite at a = 0.
    return to.s / now.s * jnp.exp((to.gamma - now.gamma) / 2), to.a * share, to.s**2 * share


def coefficients(name: str, now: Point, to: Point | None = None) -> tuple[Array, Array]:
    """(c, d) of the target c x0 + d eps."""
    one, zero = jnp.ones_like(now.a), jnp.zeros_like(now.a)
    if name == "mu":
        if to is None:
            raise InputError("parameterisation mu is the mean of a step; it requires `to`, where the step ends")
        z_part, x0_part, _ = posterior(now, to)
        return z_part * now.a + x0_part, z_part * now.s
    known = {"x0": (one, zero), "eps": (zero, one), "v": (-now.s, now.a), "score": (zero, -1 / now.s), "velocity": (-one, one)}
    if name not in known:
        raise InputError(f"unknown parameterisation {name!r}; choose one of {', '.join(NAMES)}")
    return known[name]


def target(name: str, x0: Vectors, eps: Vectors, now: Point, to: Point | None = None) -> Vectors:
    """The target of a network that predicts `name`."""
    x0_part, eps_part = coefficients(name, now, to)
    return x0_part * x0 + eps_part * eps


def to_x0(name: str, output: Vectors, z: Vectors, now: Point, to: Point | None = None) -> Vectors:
    """The clean vector according to an output that predicts `name`."""
    if name == "x0":
        return output
    x0_part, eps_part = coefficients(name, now, to)
    return (eps_part * z - now.s * output) / (now.a * eps_part - now.s * x0_part)


def to_eps(name: str, output: Vectors, z: Vectors, now: Point, to: Point | None = None) -> Vectors:
    """The noise according to an output that predicts `name`."""
    if name == "eps":
        return output
    x0_part, eps_part = coefficients(name, now, to)
    return (now.a * output - x0_part * z) / (now.a * eps_part - now.s * x0_part)


def convert(output: Vectors, z: Vectors, source: str, into: str, now: Point, to: Point | None = None) -> Vectors:
    """An output that predicts `source`, converted into a prediction of `into`."""
    return target(into, to_x0(source, output, z, now, to), to_eps(source, output, z, now, to), now, to)
