"""The network as one step sees it: levels told by the process's clock, suppressed ids taken out, temperature and nucleus, classifier-free
guidance, the answer kept from the last call, the hint of self-conditioning; and a count of what was really computed.

Guidance (2207.12598; unsupervised form of SMDM 2410.18514): the condition is the frozen text. The same canvas with noise in its place, at
level 1, gives the unconditional output, and tokens are drawn from p(x | given)^(1 + w) / p(x)^w; `Output.guided` says what that is of
outputs.

Shapes: B rows, L positions, V columns of the output.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from dlmjax.diffusion.process import Process, exclude
from dlmjax.sampling.settings import SampleSettings
from dlmjax.sampling.warp import warp


class BoundLogits:
    """A denoiser made of a function (z_BL, t_BL) -> logits_BLV: for exact denoisers and for callers who hold no network."""

    def __init__(self, denoise: Callable[[Array, Array], Array]):
        self._denoise = denoise

    def hidden(self, z_BL, t_BL):
        return self._denoise(z_BL, t_BL)

    def logits(self, hidden_BLV):
        return hidden_BLV


class LogitsCache(NamedTuple):
    """The last output of the network, and whether a token has changed since."""

    logits_BLV: Float[Array, "B L V"]
    changed: Bool[Array, ""]


class StepDenoiser:
    """Callable (z, t_BL) -> logits, for one step.  Counts while it is traced: `count` is right if calls stand outside of control flow.

    denoiser: bound to the rows of the canvas, twice over with guidance.  blank, frozen_BL: noise to put in place of the condition.
    first_BLV: the first output of this step without temperature and nucleus.  hint_BLI: in, the last estimate; out, the newest.
    """

    def __init__(
        self,
        process: Process,
        denoiser: Any,
        settings: SampleSettings,
        suppressed_ids: tuple[int, ...],
        *,
        frozen_BL: Array | None = None,
        blank: Array | None = None,
        logits_cache: LogitsCache | None = None,
        hint_BLI: Array | None = None,
    ):
        self._process, self._denoiser, self._settings, self._suppressed_ids = process, denoiser, settings, suppressed_ids
        self._frozen_BL, self._blank, self._logits_cache = frozen_BL, blank, logits_cache
        self.hint_BLI, self.first_BLV, self.count = hint_BLI, None, jnp.int32(0)
        self._first_at: tuple[Array, Array] | None = None

    def __call__(self, z, t_BL):
        cost = 2 if self._settings.guidance else 1
        if self._logits_cache is None:
            raw_BLV, self.count = self._network(z, t_BL), self.count + cost
        else:
            changed = self._logits_cache.changed
            raw_BLV = jax.lax.cond(changed, self._network, lambda *_: self._logits_cache.logits_BLV, z, t_BL)
            self.count += jnp.where(changed, cost, 0)
        if self.first_BLV is None:
            self.first_BLV, self._first_at = raw_BLV, (z, t_BL)
        if self._process.output.predicts == "vectors":
            return raw_BLV
        return warp(raw_BLV, self._settings.temperature, self._settings.top_p)

    @property
    def log_p_BLV(self) -> Array | None:
        """The law of tokens that the step first looked at; None where the network predicts something else."""
        if self._process.output.predicts == "vectors":
            return None
        if self._process.output.predicts == "scores":
            return self.log_posterior_BLV
        return jax.nn.log_softmax(self.first_BLV)

    @property
    def log_posterior_BLV(self) -> Array:
        """log p(x_i | z) that the step first looked at, for networks that predict a law of tokens or scores."""
        return jax.nn.log_softmax(exclude(self._process.output.log_posterior(self.first_BLV, *self._first_at), self._suppressed_ids))

    def _network(self, z, t_BL):
        rows, w = t_BL.shape[0], self._settings.guidance
        hints = () if self.hint_BLI is None else (self.hint_BLI,)
        if w:
            z = jnp.concatenate([z, put(self._frozen_BL, self._blank, z)])
            t_BL = jnp.concatenate([t_BL, jnp.where(self._frozen_BL, 1.0, t_BL)])
            hints = tuple(jnp.concatenate([hint, hint]) for hint in hints)
        hidden = self._denoiser.hidden(z, self._process.time_embedding_input(t_BL), *hints)
        if hints:
            self.hint_BLI = self._process.output.x0(self._denoiser, hidden, z, t_BL)[:rows].astype(jnp.float32)
        logits = self._denoiser.logits(hidden)
        z, t_BL = z[:rows], t_BL[:rows]
        if w:
            logits = logits.astype(jnp.float32)
            logits = self._process.output.guided(logits[:rows], logits[rows:], w, z, t_BL)
        if self._process.output.predicts == "vectors":
            return exclude(logits, ())
        return self._process.output.suppressed(logits, self._suppressed_ids, z, t_BL)


def put(where_BL, this, other):
    """`this` where the flag of the position is set, for states of any shape."""
    return jnp.where(where_BL.reshape(*where_BL.shape, *(1,) * (other.ndim - 2)), this, other)
