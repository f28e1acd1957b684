"""Losses that are said to bound the likelihood, checked by enumeration: the mean of a bound is not below the entropy of the text.

A row of n tokens is masked at rate t ~ U[0, 1], each token on its own. An exact network then knows the posterior p(. | revealed tokens) of
all masked tokens jointly. A loss whose mean over texts, masks and t lies below the entropy is not a bound, since no model of the text has a
smaller mean -log p(x). `published()` holds two that papers reported as bounds. The reason is Han's inequality. With h_k the mean over sets
M of k tokens of H(x_M | the others) / k, which rises in k up to h_n = H / n,

    mean of [ -log p(x_M | revealed) / t ] = sum over k of h_k <= H,    equal only for independent tokens,
    mean of [ sum over M of -log p(x_i | revealed) / t ] = H            (a masked token becomes clean alone: one jump, one token).

`table` prints the numbers of docs/likelihood.md:  python -c "from dlmjax.diffusion.oracle.claims import table; print(table())"

Float64 numpy, slow on purpose. Shapes: n tokens, K ids, X = K^n texts, J times.
"""

import dataclasses
import itertools
from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import Float64, Int

from dlmjax.diffusion.oracle.enumeration import JointDistribution, quadrature


@dataclasses.dataclass(frozen=True, eq=False)
class NoisyText:
    """A text under its masks, with what an exact network knows of it.

    x_n: the clean ids.  masked: indices of the masked tokens, ascending.  t_J: the times at which a loss is evaluated.
    """

    joint: JointDistribution
    x_n: Int[np.ndarray, "n"]
    masked: tuple[int, ...]
    t_J: Float64[np.ndarray, "J"]

    def nll(self, positions: Sequence[int]) -> float:
        """-log p(x at `positions` | revealed tokens), jointly, in nats; 0 where all of them are revealed."""
        agree_Xn = self.joint.sequences_Xn == self.x_n
        revealed = [i for i in range(self.joint.length) if i not in self.masked]
        known = float(self.joint.probability_X @ agree_Xn[:, revealed].all(axis=1))
        both = float(self.joint.probability_X @ agree_Xn[:, sorted({*revealed, *positions})].all(axis=1))
        return -np.log(both / known)


Loss = Callable[[NoisyText], Float64[np.ndarray, "J"]]


@dataclasses.dataclass(frozen=True)
class Claim:
    """A loss in nats per row, as a function of a noisy text and its times, and whether it is a bound.

    form: the loss as a formula, for people; M the masked tokens, R the revealed ones.  source: where it was used.
    """

    name: str
    form: str
    source: str
    is_bound: bool
    loss: Loss


def masked_tokens(noisy: NoisyText) -> Float64[np.ndarray, "J"]:
    """The masked NELBO on the linear schedule: every masked token on its own."""
    return sum(noisy.nll([i]) for i in noisy.masked) / noisy.t_J


def jointly(noisy: NoisyText) -> Float64[np.ndarray, "J"]:
    """All masked tokens at once, from an output that is joint over the row."""
    return noisy.nll(noisy.masked) / noisy.t_J


def by_pairs(noisy: NoisyText) -> Float64[np.ndarray, "J"]:
    """Neighbours 2i and 2i + 1 are sub-tokens of one token, masked separately; the output is joint over a token."""
    return sum(noisy.nll([i, i + 1]) for i in range(0, noisy.joint.length, 2)) / noisy.t_J


def one_token(noisy: NoisyText) -> Float64[np.ndarray, "J"]:
    """One token is masked, as a masked language model scores a sentence: the mean over tokens, times their number."""
    n, few = noisy.joint.length, len(noisy.masked) == 1
    # Of the masks at t those of one token have the probability n t (1 - t)^(n - 1).
    return few * masked_tokens(noisy) * noisy.t_J / np.maximum(noisy.t_J * (1 - noisy.t_J) ** (n - 1), 1e-300)


def published() -> tuple[Claim, ...]:
    """The masked bound, and losses that were taken for one."""
    return (
        Claim("masked tokens", "1/t sum over i in M of -log p(x_i, R)", "MDLM 2406.07524, MD4 2406.04329", True, masked_tokens),
        Claim("tokens of two sub-tokens", "1/t sum over tokens of -log p(x_2i x_2i+1, R)", "MDM-Prime 2505.18495", False, by_pairs),
        Claim("the whole row", "1/t -log p(x_M, R)", "EDLM 2410.21357", False, jointly),
        Claim("one masked token", "sum over i of -log p(x_i, all others)", "pseudo-likelihood", False, one_token),
    )


def mean_loss(joint: JointDistribution, loss: Loss, nodes: int = 48) -> float:
    """The mean of a loss over texts, masks and t ~ U[0, 1], in nats per row."""
    (t_J, weight_J), n, total = quadrature(nodes), joint.length, 0.0
    for x_n, p in zip(joint.sequences_Xn, joint.probability_X, strict=True):
        for count in range(n + 1) if p > 0 else ():
            chance_J = t_J**count * (1 - t_J) ** (n - count)
            for masked in itertools.combinations(range(n), count):
                total += p * float(weight_J @ (chance_J * loss(NoisyText(joint, x_n, masked, t_J))))
    return total


def violation(joint: JointDistribution, loss: Loss) -> float:
    """How far the mean of a loss lies below the entropy, in nats per row: not above 0 (but for rounding) where the loss is a bound."""
    return joint.entropy - mean_loss(joint, loss)


# --- distributions of text -----------------------------------------------------------------------------------------------------------


def dependent(tokens: int, length: int, seed: int = 0) -> JointDistribution:
    """Without symmetries; every token depends on all others."""
    return JointDistribution.random(tokens, length, seed, sharpness=1.0)


def independent(tokens: int, length: int, seed: int = 0) -> JointDistribution:
    """Tokens that say nothing of each other, each with a distribution of its own."""
    p_nK = np.random.default_rng(seed).dirichlet(np.ones(tokens), size=length)
    table = np.ones(())
    for p_K in p_nK:
        table = table[..., None] * p_K
    return JointDistribution(table / table.sum())


def fully_dependent(tokens: int, length: int, leak: float = 0.0) -> JointDistribution:
    """All tokens of a row are the same, uniform over the ids.

    leak: share of rows whose tokens are independent and uniform, for denoisers that require every text to be possible.
    """
    table = np.full((tokens,) * length, leak / tokens**length)
    table[(np.arange(tokens),) * length] += (1 - leak) / tokens
    return JointDistribution(table)


def distributions(tokens: int = 2, length: int = 4) -> dict[str, JointDistribution]:
    """The three kinds of text on which a claim is checked."""
    return {
        "dependent": dependent(tokens, length),
        "independent": independent(tokens, length),
        "fully dependent": fully_dependent(tokens, length),
    }


def table() -> str:
    """The claims and their means as the Markdown table of docs/likelihood.md."""
    texts = distributions()
    lines = [f"| loss | {' | '.join(texts)} | a bound |", "|---|" + "---|" * (len(texts) + 1)]
    lines.append(f"| entropy of the text | {' | '.join(f'{joint.entropy:.4f}' for joint in texts.values())} | |")
    for claim in published():
        means = " | ".join(f"{mean_loss(joint, claim.loss):.4f}" for joint in texts.values())
        lines.append(f"| {claim.name}: `{claim.form}` ({claim.source}) | {means} | {'yes' if claim.is_bound else '**no**'} |")
    return "\n".join(lines)
