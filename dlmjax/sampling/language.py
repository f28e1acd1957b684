"""Texts of a regular language: draws, the most likely text and marginals of a product of token distributions, given the language.

p(x) of a row is a product over positions, with all probability on a revealed token. With B_L(q) = 1 where state q accepts, else 0, and

    B_i(q) = sum_v p_i(v) B_{i+1}(next(q, v)),

drawing v ~ p_i(v) B_{i+1}(next(q, v)) / B_i(q) from left to right gives exactly p given the language; a maximum in place of the sum
gives its most likely text (DINGO 2505.23061). The marginals of p given the language are the derivatives of log B_0. Tokens that every
state treats alike are one class, so a position costs the states times the classes, not times the vocabulary.

All steps reveal tokens of one such draw, and what is left stays possible: the finished text is in the language. With several steps its
distribution is renormalised at each of them, so it is not that of the text given the language.

Shapes: B rows, L positions, V vocabulary, Q states, C classes.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from dlmjax.diffusion.process import EXCLUDED, draw_tokens
from dlmjax.sampling.regex import TokenAutomaton


def draw_text(automaton: TokenAutomaton, keys_B: Key[Array, "B"], log_p_BLV: Float[Array, "B L V"]) -> Int[Array, "B L"]:
    """A text of each row from the product of `log_p_BLV` given the language."""

    def choose(index: Int[Array, ""], log_p_BV: Float[Array, "B V"]) -> Int[Array, "B"]:
        keys_of_position_B = jax.vmap(jax.random.fold_in, (0, None))(keys_B, index)
        return draw_tokens(keys_of_position_B, log_p_BV[:, None])[:, 0]

    return _forward(automaton, log_p_BLV, _backward(automaton, of_classes(automaton, log_p_BLV)), choose)


def best_text(automaton: TokenAutomaton, log_p_BLV: Float[Array, "B L V"]) -> Int[Array, "B L"]:
    """The most likely text of each row in the language."""
    log_b_IBQ = _backward(automaton, of_classes(automaton, log_p_BLV, jnp.max), jnp.max)
    return _forward(automaton, log_p_BLV, log_b_IBQ, lambda _, log_p_BV: jnp.argmax(log_p_BV, axis=-1).astype(jnp.int32))


def log_marginals(automaton: TokenAutomaton, log_p_BLV: Float[Array, "B L V"]) -> Float[Array, "B L V"]:
    """log p(x_i = v given the language), normalised over v; EXCLUDED where no text of the language has the token there."""
    log_p_BLC = of_classes(automaton, log_p_BLV)
    share_BLC = jax.grad(lambda log_p_BLC: jnp.sum(log_mass(automaton, log_p_BLC)))(log_p_BLC)
    ratio_BLC = jnp.where(share_BLC > 0, jnp.log(jnp.where(share_BLC > 0, share_BLC, 1.0)) - log_p_BLC, EXCLUDED)
    return jnp.maximum(log_p_BLV + ratio_BLC[..., automaton.class_V], EXCLUDED)


def log_mass(automaton: TokenAutomaton, log_p_BLC: Float[Array, "B L C"]) -> Float[Array, "B"]:
    """log of the probability of the language, from the log-probabilities of `of_classes`."""
    return _backward(automaton, log_p_BLC)[0, :, 0]


def only_revealed(log_p_BLV: Float[Array, "B L V"], tokens_BL: Int[Array, "B L"], masked_BL: Bool[Array, "B L"]) -> Float[Array, "B L V"]:
    """Normalised log-probabilities of the masked positions, and all probability on the token of the others."""
    revealed_BLV = jnp.where(jnp.arange(log_p_BLV.shape[-1]) == tokens_BL[..., None], 0.0, EXCLUDED)
    return jnp.where(masked_BL[..., None], jnp.maximum(jax.nn.log_softmax(log_p_BLV), EXCLUDED), revealed_BLV)


def of_classes(automaton: TokenAutomaton, log_p_BLV: Float[Array, "B L V"], reduce=jax.scipy.special.logsumexp) -> Float[Array, "B L C"]:
    """log-probabilities of the classes; with `jnp.max` those of their most likely tokens."""
    classes = automaton.next_QC.shape[1]
    log_p_VBL = jnp.moveaxis(log_p_BLV, -1, 0)
    most_CBL = jnp.maximum(jax.ops.segment_max(log_p_VBL, automaton.class_V, classes), EXCLUDED)
    if reduce is jnp.max:
        return jnp.moveaxis(most_CBL, 0, -1)
    sums_CBL = jax.ops.segment_sum(jnp.exp(log_p_VBL - most_CBL[automaton.class_V]), automaton.class_V, classes)
    return jnp.moveaxis(most_CBL + jnp.log(sums_CBL), 0, -1)


def _backward(automaton: TokenAutomaton, log_p_BLC: Float[Array, "B L C"], reduce=jax.scipy.special.logsumexp) -> Float[Array, "L+1 B Q"]:
    """log B_i(q) for i = 0 .. L."""
    end_BQ = jnp.broadcast_to(jnp.where(automaton.accepts_Q, 0.0, EXCLUDED), (log_p_BLC.shape[0], len(automaton.accepts_Q)))

    def before(log_b_BQ, log_p_BC):
        log_b_BQ = jnp.maximum(reduce(log_p_BC[:, None] + _after(automaton, log_b_BQ), axis=-1), EXCLUDED)
        return log_b_BQ, log_b_BQ

    _, log_b_LBQ = jax.lax.scan(before, end_BQ, jnp.moveaxis(log_p_BLC, 1, 0), reverse=True)
    return jnp.concatenate([log_b_LBQ, end_BQ[None]])


def _after(automaton: TokenAutomaton, log_b_BQ: Float[Array, "B Q"]) -> Float[Array, "B Q C"]:
    """log B of the state after a token of each class."""
    return jnp.where(automaton.next_QC >= 0, log_b_BQ[:, jnp.maximum(automaton.next_QC, 0)], EXCLUDED)


def _forward(automaton: TokenAutomaton, log_p_BLV, log_b_IBQ, choose) -> Int[Array, "B L"]:
    """Tokens from left to right; choose(index, log p(v) B(next)) -> token of each row."""
    rows_B = jnp.arange(log_p_BLV.shape[0])

    def step(state_B, of_position):
        index, log_p_BV, log_b_BQ = of_position
        log_b_BC = _after(automaton, log_b_BQ)[rows_B, state_B]
        token_B = choose(index, log_p_BV + log_b_BC[:, automaton.class_V])
        return jnp.maximum(jnp.asarray(automaton.next_QC)[state_B, jnp.asarray(automaton.class_V)[token_B]], 0), token_B

    positions = (jnp.arange(log_p_BLV.shape[1]), jnp.moveaxis(log_p_BLV, 1, 0), log_b_IBQ[1:])
    _, tokens_LB = jax.lax.scan(step, jnp.zeros_like(rows_B), positions)
    return tokens_LB.T.astype(jnp.int32)
