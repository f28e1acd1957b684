"""Psi: predictor and corrector in one step, for every noise whose q(z_s | x) can be drawn (Psi-samplers, 2602.21185).

From t to s each position is, with probability kappa, a draw of the ancestral step q(z_s | z_t, x ~ p), and else a token x ~ p(x_i | z_t)
with the noise of s, q(z_s | x). Both have the marginals q(z_s | x), so any kappa in [0, 1] keeps them. kappa = 1 is the ancestral step, bit
for bit; with kappa = 0 nothing of z_t is kept but what p(x | z_t) says. Under masks the step is that of ReMDM with
sigma = (1 - kappa)(1 - alpha_s). Errors of earlier parallel steps are thus drawn anew.
"""

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from dlmjax.diffusion.process import Process, draw_tokens, exclude, split_rows, uniform_rows
from dlmjax.diffusion.schedules import FLOOR
from dlmjax.errors import InputError
from dlmjax.sampling.remask import sigma_of
from dlmjax.sampling.steppers import Stepper

RULES = ("constant", "cap", "rescale")
RENOISE = 3  # purpose of a draw of noise on a new token


@dataclasses.dataclass(frozen=True)
class Psi(Stepper):
    """rule: the value of kappa. "constant": `kappa`; "cap" and "rescale": that of ReMDM's sigma of the same name with `eta`,
    1 - sigma / (1 - alpha_s), at least 0. high, low: kappa applies to steps from a time in [low, high]; the others are ancestral.
    """

    kappa: float = 0.95
    rule: str = "constant"
    eta: float = 0.05
    high: float = 1.0
    low: float = 0.0

    name = "psi"
    requires = "noise on tokens whose q(z_s | x) has a closed form"

    def __post_init__(self):
        if self.rule not in RULES:
            raise InputError(f"method psi: rule is {self.rule!r}; choose one of {', '.join(RULES)}")
        for name in ("kappa", "eta"):
            if not 0 <= getattr(self, name) <= 1:
                raise InputError(f"method psi: {name} is {getattr(self, name)}; it is a probability and must lie in [0, 1]")
        if not 0 <= self.low <= self.high <= 1:
            raise InputError(f"method psi: low ({self.low}) and high ({self.high}) must satisfy 0 <= low <= high <= 1")

    def kept(self, process: Process, t_BL: Float[Array, "B L"], s_BL: Float[Array, "B L"]) -> Float[Array, "B L"]:
        """kappa of each position."""
        kappa_BL = jnp.full_like(t_BL, self.kappa)
        if self.rule != "constant":
            noise_s_BL = process.noise_share(s_BL)
            sigma_BL = sigma_of(self.rule, self.eta, 1 - process.noise_share(t_BL), noise_s_BL)
            kappa_BL = jnp.clip(1 - sigma_BL / jnp.maximum(noise_s_BL, FLOOR), 0.0, 1.0)
        return jnp.where((t_BL >= self.low) & (t_BL <= self.high), kappa_BL, 1.0)

    def step(self, process, keys_B, denoise, z, t_BL, s_BL):
        logits_BLV = denoise(z, t_BL)
        ancestral_BL = process.reverse_step(keys_B, logits_BLV, z, t_BL, s_BL)
        which_B, token_B, noise_B = split_rows(jax.vmap(jax.random.fold_in, (0, None))(keys_B, RENOISE), 3)
        anew_BL = process.corrupt(noise_B, clean_tokens(process, token_B, logits_BLV, z, t_BL), s_BL)
        return jnp.where(uniform_rows(which_B, z.shape[1]) < self.kept(process, t_BL, s_BL), ancestral_BL, anew_BL)


def clean_tokens(
    process: Process, keys_B: Key[Array, "B"], logits_BLV: Float[Array, "B L V"], z_BL: Int[Array, "B L"], t_BL: Float[Array, "B L"]
) -> Int[Array, "B L"]:
    """A token x ~ p(x_i | z) for each position; where noise only masks, a revealed token is itself."""
    log_p_BLV = exclude(process.output.log_posterior(logits_BLV, z_BL, t_BL), process.suppressed_ids)
    x_BL = draw_tokens(keys_B, log_p_BLV)
    return x_BL if process.absorbing_id is None else jnp.where(z_BL == process.absorbing_id, x_BL, z_BL)
