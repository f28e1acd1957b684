"""Verdicts: which token a verifier writes where a drafter has guessed one. A draft is accepted where the verifier's token is the same.

    replay     y ~ p by the noise of the token's own step, which the drafter has drawn with, too: the verifier's own text, bit for bit
    delta      y ~ p by that noise; drafts have noise of their own. This is `ratio` for any draft, with all of q on d: accept with p(d),
               else draw from p without d, which together is y ~ p
    ratio      y = d with probability min(1, p(d) / q(d)), else y ~ (p - q)+ (Leviathan et al. 2211.17192, algorithm 1)
    mixture    y ~ q^R p^(1 - R), normalised, by the noise of the token's own step (the target of APD 2506.00413)

p is the verifier's distribution of the next token, q the drafter's, d the draft. `ratio` requires that q is the distribution of d given the
drafts before it, as where one call gives all of them and each is drawn by itself. Of several denoising steps, q of a token's own step is
another distribution. `mixture` is p at R = 0; at R > 0 what is drawn depends on how many drafts were accepted since the drafter's call, so
that the text has no distribution that the networks alone define. The code of APD accepts the first draft whatever it is, which is not exact
at R = 0 either; here the verifier's token is always the one that is written.

Shapes: B rows, D drafts, V vocabulary.
"""

import abc
import dataclasses
from collections.abc import Callable
from typing import ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from dlmjax.diffusion.process import EXCLUDED
from dlmjax.errors import InputError
from dlmjax.sampling.by_name import build

Logits = Float[Array, "B D V"]
Warp = Callable[[Array], Array]


class Verdict(abc.ABC):
    """Abstract: a frozen dataclass; `make_verdict` makes it from a text such as "mixture(weight=0.3)".

    name: as in VERDICTS.  source: of its form.  states: what it guarantees of the text, by a row of docs/sampling.md.
    shares_noise: whether the drafter draws with the noise of the token's own step.  one_call: whether drafts must be of one call.
    """

    name: ClassVar[str]
    source: ClassVar[str]
    states: ClassVar[str]
    shares_noise: ClassVar[bool] = True
    one_call: ClassVar[bool] = False

    @abc.abstractmethod
    def logits(self, verifier_BDV: Logits, drafter_BDV: Logits, draft_BD: Int[Array, "B D"], warp: Warp) -> Logits:
        """The logits of the distribution from which the written token is drawn, given the draft.

        verifier_BDV, drafter_BDV: before temperature and nucleus, which are `warp`.
        """


@dataclasses.dataclass(frozen=True)
class Replay(Verdict):
    """The verifier's token under the noise of its own step."""

    name = "replay"
    source = "ours: noise is a function of (seed, row, token)"
    states = "the verifier's text, bit for bit"

    def logits(self, verifier_BDV, drafter_BDV, draft_BD, warp):
        return warp(verifier_BDV)


@dataclasses.dataclass(frozen=True)
class Delta(Verdict):
    """The same token; the drafter's noise is its own."""

    name = "delta"
    source = "Leviathan et al. 2211.17192, algorithm 1, with a draft distribution of one token"
    states = "the verifier's text, bit for bit"
    shares_noise = False

    def logits(self, verifier_BDV, drafter_BDV, draft_BD, warp):
        return warp(verifier_BDV)


@dataclasses.dataclass(frozen=True)
class Ratio(Verdict):
    """The draft with probability min(1, p / q), else a token of (p - q)+."""

    name = "ratio"
    source = "Leviathan et al. 2211.17192, algorithm 1"
    states = "exact"
    shares_noise = False
    one_call = True

    def logits(self, verifier_BDV, drafter_BDV, draft_BD, warp):
        p_BDV, q_BDV = (jax.nn.softmax(warp(logits_BDV)) for logits_BDV in (verifier_BDV, drafter_BDV))
        is_draft_BDV = jnp.arange(p_BDV.shape[-1]) == draft_BD[..., None]
        p_BD1, q_BD1 = (jnp.sum(jnp.where(is_draft_BDV, a_BDV, 0.0), axis=-1, keepdims=True) for a_BDV in (p_BDV, q_BDV))
        accepted_BD1 = jnp.where(p_BD1 >= q_BD1, 1.0, p_BD1 / jnp.where(q_BD1 > 0, q_BD1, 1.0))
        more_BDV = jnp.maximum(p_BDV - q_BDV, 0.0)
        total_BD1 = jnp.sum(more_BDV, axis=-1, keepdims=True)
        rest_BDV = (1 - accepted_BD1) * more_BDV / jnp.where(total_BD1 > 0, total_BD1, 1.0)
        written_BDV = jnp.where(is_draft_BDV, accepted_BD1 + rest_BDV, rest_BDV)
        return jnp.where(written_BDV > 0, jnp.log(jnp.where(written_BDV > 0, written_BDV, 1.0)), EXCLUDED)


@dataclasses.dataclass(frozen=True)
class Mixture(Verdict):
    """The geometric mixture of both distributions. weight: R, of the drafter's; 0 = `replay`."""

    weight: float = 0.3

    name = "mixture"
    source = "APD 2506.00413; 0.3 is ours"
    states = "sharpened"

    def __post_init__(self):
        if not 0 <= self.weight < 1:
            raise InputError(f"accept mixture: weight is {self.weight}; it is the share of the drafter and must lie in [0, 1)")

    def logits(self, verifier_BDV, drafter_BDV, draft_BD, warp):
        return warp(self.weight * drafter_BDV + (1 - self.weight) * verifier_BDV)


VERDICTS: dict[str, type[Verdict]] = {cls.name: cls for cls in (Replay, Ratio, Delta, Mixture)}


def make_verdict(text: str) -> Verdict:
    """The verdict of a text: "ratio", "mixture(weight=0.3)". Raises InputError: no such verdict, a value that it does not take."""
    return build("accept", text, VERDICTS)
