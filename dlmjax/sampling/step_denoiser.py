"""The network within one sampling step, in this order: self-conditioning, guidance, the guide's classifier, suppressed ids, the guide's
constraint, hold-back of the end, then temperature and nucleus.

Also the logits cache, and the number of network calls that were computed.

Guidance (2207.12598; unsupervised form of SMDM 2410.18514): the tokens of `condition_mask_BL` are the condition. The same canvas with noise
at these positions, at time 1, gives the unconditional output. Tokens are drawn from p(x | condition)^(1 + w) / p(x)^w; `Output.guided`
computes it from the two outputs.

Shapes: B rows, L positions, V columns of the output, I inputs of self-conditioning.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from dlmjax.diffusion.objective import hint_of
from dlmjax.diffusion.process import Process, exclude
from dlmjax.sampling.ends import held_back
from dlmjax.sampling.guidance import function_of
from dlmjax.sampling.language import only_revealed
from dlmjax.sampling.samples import Counts
from dlmjax.sampling.settings import SampleSettings
from dlmjax.sampling.warp import warp


class FunctionDenoiser:
    """A denoiser that calls a function (z_BL, t_BL) -> logits_BLV, such as an exact denoiser; its hidden states are the logits."""

    def __init__(self, denoise: Callable[[Array, Array], Array]):
        self._denoise = denoise

    def hidden(self, z_BL, t_BL):
        return self._denoise(z_BL, t_BL)

    def logits(self, logits_BLV):
        return logits_BLV


@dataclasses.dataclass(frozen=True)
class PrecomputedDenoiser:
    """A denoiser with hidden states that were computed before the step. reads_R: positions that this took."""

    head: Any
    hidden_BSD: Any
    reads_R: Any = 0

    def hidden(self, z_BS, t_BS):
        del z_BS, t_BS
        return self.hidden_BSD

    def logits(self, hidden_BSD):
        return self.head.logits(hidden_BSD)


class LogitsCache(NamedTuple):
    """The network's last output; changed: whether a token has changed since."""

    logits_BLV: Float[Array, "B L V"]
    changed: Bool[Array, ""]


class StepDenoiser:
    """The callable (z, t_BL) -> logits that a stepper receives, for one step.

    denoiser: bound to the rows of the canvas; with guidance, to these rows twice.
    condition_mask_BL, unconditional: positions of the condition, and the noise that replaces it in the unconditional output.
    end_factor_BL: factor of the probability of `settings.end_ids`, set where they are held back.
    hint_BLI: the last x0 prediction or hidden states, for networks with self-conditioning; afterwards those of the newest call.
    first_BLV: output of the step's first call, before temperature and nucleus.
    shadow_id: the mask, where each call also reads a stream of masks (`models.masks.Shadowed`); then `shadow_BLV` is that stream's output.
    counts: of the calls; exact where they are outside of control flow, since they are counted when they are traced.
    """

    def __init__(
        self,
        process: Process,
        denoiser: Any,
        settings: SampleSettings,
        suppressed_ids: tuple[int, ...],
        *,
        condition_mask_BL: Array | None = None,
        unconditional: Array | None = None,
        logits_cache: LogitsCache | None = None,
        hint_BLI: Array | None = None,
    ):
        self._process, self._denoiser, self._settings, self._suppressed_ids = process, denoiser, settings, suppressed_ids
        self._condition_mask_BL, self._unconditional, self._logits_cache = condition_mask_BL, unconditional, logits_cache
        self.end_factor_BL: Array | None = None
        self.hint_BLI, self.first_BLV, self.counts = hint_BLI, None, Counts(*(jnp.int32(0) for _ in Counts()))
        self._first_at: tuple[Array, Array] | None = None
        self.shadow_id: int | None = None
        self.shadow_BLV: Array | None = None
        self._cfg, self._guide = settings.make_guidance(), settings.make_guide()

    def __call__(self, z, t_BL):
        if self._logits_cache is None:
            raw_BLV = self._network(z, t_BL)
            self.counts = self.counts.plus(self._of_call(*t_BL.shape))
        else:
            changed = self._logits_cache.changed
            raw_BLV = jax.lax.cond(changed, self._network, lambda *_: self._logits_cache.logits_BLV, z, t_BL)
            self.counts = self.counts.plus(self._of_call(*t_BL.shape), changed)
        if self.end_factor_BL is not None:
            raw_BLV = held_back(raw_BLV, self._settings.end_ids, self.end_factor_BL)
        if self.first_BLV is None:
            self.first_BLV, self._first_at = raw_BLV, (z, t_BL)
        if self._process.output.predicts == "vectors":
            return raw_BLV
        return warp(raw_BLV, self._settings.temperature, self._settings.top_p)

    @property
    def buffers(self) -> Any:
        """What the denoiser keeps for the next step; None where it keeps nothing."""
        return getattr(self._denoiser, "buffers", None)

    @property
    def log_p_BLV(self) -> Array | None:
        """log p of each token by the step's first call; None where the network predicts vectors."""
        if self._process.output.predicts == "vectors":
            return None
        if self._process.output.predicts == "scores":
            return self.log_posterior_BLV
        return jax.nn.log_softmax(self.first_BLV)

    @property
    def log_posterior_BLV(self) -> Array:
        """log p(x_i | z) by the step's first call, before temperature and nucleus, for networks that predict logits or scores."""
        return jax.nn.log_softmax(exclude(self._process.output.log_posterior(self.first_BLV, *self._first_at), self._suppressed_ids))

    def _of_call(self, rows: int, length: int) -> Counts:
        """The counts of a call. A denoiser that reads other positions than those of the canvas says how many: `reads_R`, of each row."""
        streams = 2 if self._settings.guidance else 1
        reads_R = getattr(self._denoiser, "reads_R", length if self.shadow_id is None else 2 * length)
        reads_B = jnp.broadcast_to(reads_R, (streams * rows,)).reshape(streams, rows).sum(axis=0, dtype=jnp.int32)
        extra = 0 if self._guide is None or self._guide.on_vectors else self._guide.passes(length, self._process.vocab)
        return Counts(streams, streams, reads_B, extra)

    def _network(self, z, t_BL):
        rows, w = t_BL.shape[0], self._settings.guidance  # not 0 where guidance is on
        hints = () if self.hint_BLI is None else (self.hint_BLI,)
        if w:
            z = jnp.concatenate([z, select_positions(self._condition_mask_BL, self._unconditional, z)])
            t_BL = jnp.concatenate([t_BL, jnp.where(self._condition_mask_BL, 1.0, t_BL)])
            hints = tuple(jnp.concatenate([hint, hint]) for hint in hints)
        times_BL = self._process.time_embedding_input(t_BL)
        if self.shadow_id is None:
            hidden = self._denoiser.hidden(z, times_BL, *hints)
        else:
            shadow, hidden = self._denoiser.hidden_of_both(jnp.stack([jnp.full_like(z, self.shadow_id), z], axis=-1), times_BL)
            self.shadow_BLV = self._process.output.suppressed(self._denoiser.logits(shadow), self._suppressed_ids, z, t_BL)
        if hints:
            self.hint_BLI = hint_of(self._process, self._denoiser, hidden, z, t_BL)[:rows].astype(jnp.float32)
        logits = self._denoiser.logits(hidden)
        z, t_BL = z[:rows], t_BL[:rows]
        if w:
            logits = logits.astype(jnp.float32)
            logits = self._process.output.guided(logits[:rows], logits[rows:], self._cfg.weight_at(t_BL), z, t_BL)
        if self._guide is not None and not self._guide.on_vectors and not self._guide.on_text:
            shift_BLV = self._guide.shift(function_of(self._guide), z, t_BL, self._process.vocab)
            logits = self._process.output.shifted(logits.astype(jnp.float32), shift_BLV, z, t_BL)
        if self._process.output.predicts == "vectors":
            return exclude(logits, ())
        logits = self._process.output.suppressed(logits, self._suppressed_ids, z, t_BL)
        return self._projected(logits, z, t_BL) if self._guide is not None and self._guide.on_text else logits

    def _projected(self, logits_BLV, z_BL, t_BL):
        """The output whose distributions of the clean text are those of the guide."""
        output, absorbing_id = self._process.output, self._process.absorbing_id
        log_p_BLV = jax.nn.log_softmax(exclude(output.log_posterior(logits_BLV, z_BL, t_BL), self._suppressed_ids))
        if absorbing_id is not None:
            # Under masks a revealed token is text, whatever the network says of its position.
            log_p_BLV = only_revealed(log_p_BLV, z_BL, z_BL == absorbing_id)
        shift_BLV = self._guide.projected(function_of(self._guide), log_p_BLV, t_BL) - log_p_BLV
        return output.suppressed(output.shifted(logits_BLV, shift_BLV, z_BL, t_BL), self._suppressed_ids, z_BL, t_BL)


def select_positions(mask_BL, this, other):
    """`this` at the positions of the mask, `other` elsewhere; states are [B, L] or [B, L, ...]."""
    return jnp.where(mask_BL.reshape(*mask_BL.shape, *(1,) * (other.ndim - 2)), this, other)
