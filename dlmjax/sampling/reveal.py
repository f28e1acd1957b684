"""Scores, ranks and counts of the positions that rules reveal (MaskGIT 2202.04200; LLaDA 2502.09992; Dream 2508.15487); see `rules`.

Shapes: B rows, L positions, V vocabulary; `*n` any shape.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from dlmjax.diffusion.process import Process
from dlmjax.errors import InputError
from dlmjax.parallel.arrays import device_get, device_put
from dlmjax.sampling.steppers import rank


def require_reveals(process: Process, what: str, instead: str) -> None:
    """Raises InputError where text of a process is not revealed token by token: there is no mask, or wrong tokens are left at t = 0.

    what, instead: the option as typed and what to give in its place, for the message.
    """
    if process.attention.causal:
        return
    if process.capabilities.prior_mask_id is None:
        raise InputError(f"{what} requires masked tokens, but process {process.name} has no mask; {instead}")
    if shows_wrong_tokens(process, 0.0):
        raise InputError(
            f"{what} requires clean tokens at t = 0, but the clipped schedule of process {process.name} leaves wrong tokens there; "
            f"{instead}"
        )


def shows_wrong_tokens(process: Process, t: float) -> bool:
    """Whether noise at time t replaces tokens by wrong ones.  Causal processes have no noise."""
    return not process.attention.causal and bool(device_get(process.replaced(device_put(np.float32(t), None))) > 0)


def require_spans(process, settings, other: bool) -> None:
    """Raises InputError where a sampler does not keep spans apart. other: whether its network calls have a mask or rows of their own."""
    if not process.attention.full:
        raise InputError(f"spans require a network with full attention, which process {process.name} does not declare; write [MASK*12]")
    if other or settings.grow or settings.regex:
        raise InputError("spans conflict with rule wino, draft, grow and regex, which read or match the text as a whole; write [MASK*12]")


def position_scores(order: str, log_p_V: Float[Array, "*n V"]) -> Float[Array, "*n"]:
    """Score of a position from log p(x_i | z), before temperature and nucleus.

    confidence: the largest probability; entropy: minus the entropy (nats); margin: largest minus second-largest probability.
    """
    if order == "entropy":
        return jnp.sum(jnp.exp(log_p_V) * log_p_V, axis=-1)
    if order == "confidence":
        return jnp.exp(jnp.max(log_p_V, axis=-1))
    top_2 = jnp.exp(jax.lax.top_k(log_p_V, 2)[0])
    return top_2[..., 0] - top_2[..., 1]


def left_first(shape: tuple[int, int]) -> Float[Array, "B L"]:
    """Scores of the order `left_to_right`."""
    return jnp.broadcast_to(-jnp.arange(shape[1], dtype=jnp.float32), shape)


def next_reveals(
    masked_BL: Bool[Array, "B L"], score_BL: Float[Array, "B L"], count_B: Int[Array, "B"] | int, sure_BL: Bool[Array, "B L"] | None = None
) -> Bool[Array, "B L"]:
    """The masked positions that a step reveals: the `count_B` with the highest scores, of equal ones the first; and those of `sure_BL`."""
    new_BL = rank(score_BL, masked_BL) < jnp.reshape(jnp.asarray(count_B), (-1, 1))
    return masked_BL & (new_BL if sure_BL is None else new_BL | sure_BL)


def planned_reveals(remainder: str, masked_B: Int[Array, "B"], steps_B: Int[Array, "B"], step: Int[Array, ""]) -> Int[Array, "B"]:
    """Number of tokens of each row that are revealed after step `step` of its `steps_B` steps (at most one step per masked position).

    With M masked positions and N steps, each step reveals M // N tokens, and M % N of the steps reveal one token more: "spread" evenly over
    the steps, floor(M k / N) after step k, or the "first" ones (get_num_transfer_tokens of LLaDA's generate.py).
    """
    base_B, more_B = masked_B // steps_B, masked_B % steps_B
    more_B = more_B * step // steps_B if remainder == "spread" else jnp.minimum(step, more_B)
    return jnp.where(step >= steps_B, masked_B, base_B * step + more_B)


def probability_of(log_p_BLV: Float[Array, "B L V"], tokens_BL: Int[Array, "B L"]) -> Float[Array, "B L"]:
    """Probability of each token."""
    return jnp.exp(jnp.take_along_axis(log_p_BLV, tokens_BL[..., None], axis=-1)[..., 0])
