"""Correctors: draws of tokens anew at one noise level, on the way or on finished text, with what they state of its distribution.

`gibbs` hides one random position, draws its token from p(x_i | others) and gives it the noise of its level again. A text (or a noisy text
of that level) that has the right distribution keeps it, for every noise, so errors of parallel steps can only fade (informed correctors
2407.21243 state the same for positions that chance picks). Without the noise it would not: a noisy text would become too clean. Several
positions in one call (`count`) do not see each other's new tokens and do not keep the distribution.

`acs` is the adaptive correction of hyperschedules (2504.06416), which states nothing of the distribution.
"""

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from dlmjax.diffusion.process import Process, draw_tokens, split_rows, uniform_rows
from dlmjax.errors import InputError
from dlmjax.sampling.psi import RENOISE
from dlmjax.sampling.steppers import Denoise, Stepper, rank

MOST_ROUNDS = 2**20


@dataclasses.dataclass(frozen=True)
class Gibbs(Stepper):
    """Ancestral steps; `between` redraws after each, at its level, and `rounds` on the finished text. A redraw is one network call.

    count: positions of a row in one redraw; 1 keeps the distribution.
    level: 0 = hide the positions. Above 0 the network reads the text as it is, at that time (between steps: at that of the step), and its
      p(x_i | others) is used: for noise that replaces tokens, whose networks have not read rows of several times in training. On the way
      this keeps the distribution too; of finished text it does not quite, since a text with noise of `level` says something else.
    """

    rounds: int = 16
    between: int = 0
    count: int = 1
    level: float = 0.0

    name = "gibbs"
    requires = "noise on tokens whose q(z_s | x) has a closed form"
    reads_canvas = False

    def __post_init__(self):
        for name, least in (("rounds", 0), ("between", 0), ("count", 1)):
            if not least <= getattr(self, name) <= MOST_ROUNDS:
                raise InputError(f"method gibbs: {name} is {getattr(self, name)}; it must be {least} to {MOST_ROUNDS}")
        if not 0 <= self.level < 1:
            raise InputError(f"method gibbs: level is {self.level}; it must be 0 (hide the position) or a time below 1")

    def check(self, process):
        super().check(process)
        if self.level and "self_correct" not in process.capabilities.methods:
            raise InputError(
                f"method gibbs: level requires noise that replaces tokens, which that of process {process.name} is not; leave level at 0"
            )

    def step(self, process, keys_B, denoise, z, t_BL, s_BL):
        z = process.reverse_step(keys_B, denoise(z, t_BL), z, t_BL, s_BL)
        for number in range(self.between):
            number_B = jax.vmap(jax.random.fold_in, (0, None))(jax.vmap(jax.random.fold_in, (0, None))(keys_B, RENOISE), number)
            z = self.redrawn(process, number_B, denoise, z, s_BL, t_BL > 0)
        return z

    def corrector_step(self, process, keys_B, denoise, z, editable_BL):
        return self.redrawn(process, keys_B, denoise, z, None, editable_BL)

    def redrawn(
        self,
        process: Process,
        keys_B: Key[Array, "B"],
        denoise: Denoise,
        z_BL: Int[Array, "B L"],
        s_BL: Float[Array, "B L"] | None,
        editable_BL: Bool[Array, "B L"],
    ) -> Int[Array, "B L"]:
        """z at level s (None: finished text) with `count` random positions of `editable_BL` drawn anew.

        They are hidden by noise of t = 1, which says nothing of their tokens.
        """
        where_B, hide_B, token_B, noise_B = split_rows(keys_B, 4)
        length = z_BL.shape[1]
        chosen_BL = editable_BL & (rank(uniform_rows(where_B, length), editable_BL) < self.count)
        noise_BL = process.prior(hide_B, length) if process.absorbing_id is None else jnp.full_like(z_BL, process.absorbing_id)
        at_BL = jnp.where(editable_BL, self.level, 0.0) if s_BL is None else s_BL
        if self.level:
            read_BL, time_BL = z_BL, at_BL
        else:
            read_BL, time_BL = jnp.where(chosen_BL, noise_BL, z_BL), jnp.where(chosen_BL, 1.0, at_BL)
        x_BL = draw_tokens(token_B, process.output.log_loo(denoise(read_BL, time_BL), read_BL, time_BL))
        # A clipped schedule has noise at s = 0 too, which finished text has not.
        return jnp.where(chosen_BL, x_BL if s_BL is None else process.corrupt(noise_B, x_BL, s_BL), z_BL)


@dataclasses.dataclass(frozen=True)
class Acs(Stepper):
    """A mask becomes a token with probability 1 - s/t, and a token is drawn anew with probability eta s/t, both from p(x_i | others).

    The last step, to s = 0, is ancestral: noise may have made tokens that text does not hold.
    """

    eta: float = 0.015

    name = "acs"
    requires = "noise of masks and of wrong tokens (hybrid, mixed)"

    def __post_init__(self):
        if not 0 <= self.eta <= 1:
            raise InputError(f"method acs: eta is {self.eta}; it is a probability and must lie in [0, 1]")

    def step(self, process, keys_B, denoise, z, t_BL, s_BL):
        which_B, token_B, last_B = split_rows(keys_B, 3)
        logits_BLV = denoise(z, t_BL)
        x_BL = draw_tokens(token_B, process.output.log_loo(logits_BLV, z, t_BL))
        # A position at time 0 is text.
        left_BL = jnp.where(t_BL > 0, s_BL / jnp.where(t_BL > 0, t_BL, 1.0), 1.0)
        masked_BL = z == process.capabilities.prior_mask_id
        change_BL = uniform_rows(which_B, z.shape[1]) < jnp.where(masked_BL, 1 - left_BL, self.eta * left_BL)
        return jnp.where(s_BL > 0, jnp.where(change_BL, x_BL, z), process.reverse_step(last_B, logits_BLV, z, t_BL, s_BL))
