"""Losses that are said to be bounds: the two that were published as bounds and are none are caught, also by the battery of processes."""

import dataclasses
import itertools
import pathlib
import re

import jax.numpy as jnp
import numpy as np
import pytest

from dlmjax.diffusion import Process
from dlmjax.diffusion.oracle import claims
from dlmjax.diffusion.process import cross_entropy
from tests.diffusion import test_battery as battery
from tests.diffusion.battery import BOS, MASK, TOKENS, VOCAB, Case

PAGE = (pathlib.Path(__file__).parents[3] / "docs" / "likelihood.md").read_text(encoding="utf-8")
TEXTS = claims.distributions()
CLAIMS = {claim.name: claim for claim in claims.published()}


@pytest.mark.parametrize("claim", CLAIMS.values(), ids=CLAIMS)
def test_a_claim_is_a_bound_on_every_text_or_is_caught_on_dependent_text(claim):
    """The masked NELBO is the entropy. A joint output is below it as soon as tokens depend on each other, and equal where they do not."""
    found = {name: claims.violation(joint, claim.loss) for name, joint in TEXTS.items()}
    assert found["independent"] == pytest.approx(0, abs=1e-8)
    if claim.is_bound:
        assert max(map(abs, found.values())) < 1e-8
    else:
        assert found["dependent"] > 0.01 and found["fully dependent"] > 0.3


@pytest.mark.parametrize("length", [2, 3, 5])
def test_a_joint_output_of_copies_pays_for_one_token_of_many(length):
    """Where all tokens are the same, only the mask over all of them costs anything, and it weighs 1 / n: ln K / n in place of ln K."""
    joint = claims.fully_dependent(3, length)
    assert joint.entropy == pytest.approx(np.log(3))
    assert claims.mean_loss(joint, claims.jointly) == pytest.approx(np.log(3) / length, abs=1e-8)


def test_a_joint_output_reads_the_mean_of_hans_entropies():
    """sum over k of h_k, h_k the mean of H(x_M | others) / k: below H, since h_k rises to H / n (Han 1978)."""
    joint = claims.dependent(2, 4, seed=5)

    def entropy_given_others(masked):
        others = tuple(i for i in range(4) if i not in masked)
        q = joint.table.sum(axis=masked)
        assert q.ndim == len(others)
        return joint.entropy + float(np.sum(q * np.log(q)))

    h_k = [np.mean([entropy_given_others(m) / k for m in itertools.combinations(range(4), k)]) for k in range(1, 5)]
    assert h_k == sorted(h_k) and h_k[-1] == pytest.approx(joint.entropy / 4)
    assert claims.mean_loss(joint, claims.jointly) == pytest.approx(sum(h_k), abs=1e-8)


def test_the_page_has_the_numbers_and_twenty_lines_that_find_them(capsys):
    """The page's program shares nothing with the oracle: it reads the same means, and the entropy for the loss that it calls a bound."""
    assert claims.table() in PAGE
    source, names = re.search(r"```python\n(.*?)```", PAGE, re.DOTALL)[1], {}
    assert len([line for line in source.splitlines() if line]) <= 20
    exec(compile(source, "docs/likelihood.md", "exec"), names)
    printed = re.findall(r"loss ([\d.]+), entropy ([\d.]+) nats", capsys.readouterr().out)
    assert "print {} for an entropy of {}, and {} for {}".format(*printed[0], *printed[1]) in PAGE
    bound = eval("lambda nll, masked, t: " + re.search(r"# a bound: (.*)", source)[1])
    for joint in TEXTS.values():
        assert names["mean_loss"](joint.table, names["claim"]) == pytest.approx(claims.mean_loss(joint, claims.jointly), abs=1e-8)
        assert names["mean_loss"](joint.table, bound) == pytest.approx(joint.entropy, abs=1e-8)


# --- the same loss as a process, before the battery ----------------------------------------------------------------------------------


CODES_K2 = np.asarray([[0, 0], [0, 1], [1, 0]])  # two sub-tokens of each token; 2 is their mask


@dataclasses.dataclass(frozen=True)
class SubTokens(Process):
    """Each token as two sub-tokens that are masked separately (MDM-Prime). A state is 3 a + b, a and b in {0, 1, mask}.

    by_token: the published loss, -log p(token | revealed sub-tokens) / t. Else each masked sub-token by its own marginal, the bound.
    """

    vocab: int = VOCAB
    by_token: bool = True

    name = "sub_tokens"

    def corrupt(self, keys_B, x_BL, t_BL, valid_BL=None):
        return jnp.full_like(x_BL, 8)  # both sub-tokens masked; the battery's enumeration reads the loss alone

    prior = reverse_step = corrupt

    def loss(self, logits, x, z, t):
        if self.by_token:
            return cross_entropy(logits, x, (BOS, MASK)) / t
        logits_K, code_K2, nats = logits[..., :TOKENS], jnp.asarray(CODES_K2), 0.0
        for part, state in enumerate((z // 3, z % 3)):
            same = code_K2[:, part] == code_K2[x, part][..., None]
            log_p = jnp.log(jnp.sum(jnp.where(same, jnp.exp(logits_K), 0.0), axis=-1))
            nats = nats - jnp.where(state == 2, log_p, 0.0) / t
        return nats


def sub_token_pairs(case, law, t):
    """All masks of the 2 L sub-tokens, at rate t."""
    x, z, p = [], [], []
    for x_L, mass in zip(law.sequences_Xn, law.probability_X, strict=True):
        for mask in itertools.product((False, True), repeat=2 * law.length):
            shown_L2 = np.where(np.reshape(mask, (-1, 2)), 2, CODES_K2[x_L])
            x, z, p = [*x, x_L], [*z, shown_L2 @ [3, 1]], [*p, mass * np.prod(np.where(mask, t, 1 - t))]
    return np.asarray(x), np.asarray(z, np.int32), np.asarray(p)


def sub_token_likelihood(z_BL, t_BL):
    """log q(z | x = k): 0 where the revealed sub-tokens are those of k."""
    del t_BL
    shown_BL2 = jnp.stack([z_BL // 3, z_BL % 3], axis=-1)
    fits_BLK = jnp.all((shown_BL2[:, :, None, :] == 2) | (shown_BL2[:, :, None, :] == CODES_K2), axis=-1)
    return jnp.where(fits_BLK, 0.0, -1e9)


@pytest.mark.parametrize("law", [battery.LAW2, battery.INDEPENDENT, battery.FULLY_DEPENDENT], ids=["dependent", "independent", "copies"])
def test_the_battery_refuses_a_process_with_the_loss_of_mdm_prime(law):
    """The exact denoiser gives the joint posterior of a token's sub-tokens. Sub-tokens depend on each other even where tokens do not."""
    false = Case("sub_tokens", SubTokens(), None, sub_token_likelihood, pairs=sub_token_pairs)
    assert battery.expected_nats(false, law) < law.entropy - 0.005
    with pytest.raises(AssertionError):
        battery.test_bound_is_tight(false, law)
    battery.test_bound_is_tight(dataclasses.replace(false, process=SubTokens(by_token=False)), law)
