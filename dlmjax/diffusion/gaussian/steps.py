"""Steps from a noisy state to an earlier time, from an x0 prediction: pure functions that any sampler may use.

    ancestral   q(z_to | z, x0) at the predicted x0 (DDPM 2006.11239 algorithm 2)
    ddim        the same marginals with eta times its noise (2010.02502 eq. 12): eta = 1 is ancestral, eta = 0 deterministic
    euler       the probability-flow ODE on the straight path with the same SNR; equal to ddim with eta = 0 on every path
    heun        its second-order correction (EDM 2206.00364 algorithm 1), which requires the x0 prediction at both ends of the step

Every Gaussian path is the straight path in other units (z / (a + s) at time s / (a + s)), where dz/dt = eps - x0 is finite at both ends.

Shapes: vectors [*n, E]; points of the path [*n, 1] (`Point.over`), of which `now` is the noisier one.
"""

import jax.numpy as jnp
from jaxtyping import Array, Float

from dlmjax.diffusion.gaussian.parameterisation import posterior
from dlmjax.diffusion.gaussian.schedules import Point, fresh
from dlmjax.diffusion.shapes import Vectors
from dlmjax.errors import InputError

VARIANCES = ("fixed_small", "fixed_large", "learned_range")


def reverse_variance(name: str, now: Point, to: Point, share: Vectors | None = None) -> Array:
    """Variance of p(z_to | z). fixed_small: beta_tilde, exact for a known x0; fixed_large: beta, exact for x0 ~ N(0, I); learned_range:
    between the two by a `share` in [0, 1] of log(beta) (Nichol & Dhariwal 2102.09672 eq. 15)."""
    small, large = to.s**2 * fresh(now, to), now.s**2 * fresh(now, to)
    if name == "fixed_small":
        return small
    if name == "fixed_large":
        return large
    if name != "learned_range":
        raise InputError(f"unknown reverse variance {name!r}; choose one of {', '.join(VARIANCES)}")
    if share is None:
        raise InputError("variance learned_range requires the share that the network predicts")
    return small * (large / small) ** share


def normal_kl(mean_q: Array, variance_q: Array, mean_p: Array, variance_p: Array) -> Float[Array, "..."]:
    """KL(N(mean_q, variance_q) || N(mean_p, variance_p)) in nats, elementwise."""
    ratio = variance_q / variance_p
    return 0.5 * (ratio - 1 - jnp.log(ratio) + (mean_q - mean_p) ** 2 / variance_p)


def ancestral(noise: Vectors, x0: Vectors, z: Vectors, now: Point, to: Point, variance: Array | None = None) -> Vectors:
    """DDPM. `noise` ~ N(0, I); `variance` None = that of the posterior."""
    z_part, x0_part, small = posterior(now, to)
    return z_part * z + x0_part * x0 + jnp.sqrt(small if variance is None else variance) * noise


def ddim(noise: Vectors, x0: Vectors, z: Vectors, now: Point, to: Point, eta: float = 0.0) -> Vectors:
    """DDIM; `noise` is not used at eta = 0."""
    eps = (z - now.a * x0) / now.s
    fresh_variance = eta**2 * posterior(now, to)[2]
    return to.a * x0 + jnp.sqrt(jnp.maximum(to.s**2 - fresh_variance, 0)) * eps + jnp.sqrt(fresh_variance) * noise


def euler(x0: Vectors, z: Vectors, now: Point, to: Point) -> Vectors:
    """One Euler step of the probability-flow ODE."""
    straight, slope = _flow(x0, z, now)
    return (straight + (to.straight - now.straight) * slope) * (to.a + to.s)


def heun(x0: Vectors, x0_next: Vectors, z: Vectors, z_next: Vectors, now: Point, to: Point) -> Vectors:
    """The Heun step; `z_next` is the result of `euler`, `x0_next` the x0 prediction at it."""
    straight, slope = _flow(x0, z, now)
    _, slope_next = _flow(x0_next, z_next, to)
    return (straight + (to.straight - now.straight) * (slope + slope_next) / 2) * (to.a + to.s)


def _flow(x0: Array, z: Array, now: Point) -> tuple[Array, Array]:
    """(z in the units of the straight path, dz/dt there)."""
    return z / (now.a + now.s), (z - now.a * x0) / now.s - x0
