"""Drafts of another network that an autoregressive one verifies: the verifier's text bit for bit, its law by enumeration, and the calls.

Toy laws of K=3 tokens: the verifier is exact for one law, the drafter for another, so that drafts are wrong at a known rate.
"""

import dataclasses
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dlmjax.diffusion.oracle.enumeration import JointDistribution
from dlmjax.diffusion.oracle.toy import ToyDenoiser, masked_likelihood
from dlmjax.diffusion.processes.autoregressive import Autoregressive
from dlmjax.diffusion.processes.blocks import Blockwise
from dlmjax.diffusion.processes.masked import Masked
from dlmjax.diffusion.processes.uniform import Uniform
from dlmjax.errors import InputError
from dlmjax.models import Execution, build_network
from dlmjax.models.layout import SINGLE
from dlmjax.sampling import BlockSampler, SampleSettings, sampler_for
from dlmjax.sampling.canvas import Canvas, blank_canvas
from dlmjax.sampling.drafters import JointDrafter, MaskedDrafter, Text
from dlmjax.sampling.drafting import DraftingSampler
from dlmjax.sampling.trace import record, replay
from dlmjax.sampling.verdicts import VERDICTS, Mixture, make_verdict
from dlmjax.sampling.verified import VerifiedSampler
from tests.diffusion.battery import chi_square_sigmas
from tests.models.tiny import VOCAB, lively, spec

K, MASK, BOS, V = 3, 3, 4, 5
SPECIAL = (MASK, BOS)
AR = Autoregressive(V, bos_id=BOS, mask_id=MASK)


@dataclasses.dataclass
class Exact:
    """A network without weights: the exact answer of a law, from left to right or under masks. calls: those that were computed."""

    joint: JointDistribution
    causal: bool
    calls: int = 0

    caches, self_condition, layout = False, False, SINGLE

    def bind(self, params, segments_BL, positions_BL, attention="full"):
        likelihood = None if self.causal else masked_likelihood(K, MASK)
        return _Counted(self.joint, V, log_likelihood=likelihood, network=self)

    def _called(self):
        self.calls += 1


@dataclasses.dataclass(frozen=True, eq=False)
class _Counted(ToyDenoiser):
    network: Exact | None = None

    def hidden(self, z_BL, t_BL, hint_BLI=None):
        jax.debug.callback(self.network._called)
        return super().hidden(z_BL, t_BL, hint_BLI)


def law(length, seed, sharpness=1.5):
    return JointDistribution.random(tokens=K, length=length, seed=seed, sharpness=sharpness)


def drafter_of(network, steps=1):
    return MaskedDrafter(Masked(V, MASK), network.bind, (), SPECIAL, steps)


def samplers(draft, length=4, steps=1, eos_id=None, **settings):
    """(the sampler without drafts, the one with them, both networks)."""
    verifier, guess = Exact(law(length, 0), True), Exact(law(length, 1), False)
    how = SampleSettings(suppressed_ids=SPECIAL, **settings)
    plain = BlockSampler(AR, verifier, how, eos_id=eos_id)
    return plain, VerifiedSampler(plain, dataclasses.replace(how, draft=draft), drafter_of(guess, steps)), verifier, guess


def ragged(rows, length, shortest=0):
    """Rows whose prompts have different lengths."""
    tokens_BL = np.random.default_rng(0).integers(0, K, (rows, length)).astype(np.int32)
    condition_mask_BL = np.arange(length) < (shortest + np.arange(rows) % length)[:, None]
    return Canvas(tokens_BL, condition_mask_BL, (~condition_mask_BL).astype(np.float32))


# --- the law by enumeration ------------------------------------------------------------------------------------------------------


def p_of(joint, prefix):
    """p(x_i | prefix), exactly."""
    table = joint.table[prefix]
    p_K = table.reshape(K, -1).sum(axis=1)
    return p_K / p_K.sum()


@functools.cache
def drafts_of(length, depth, steps):
    """{prefix: (drafts [N, D], their probability [N], the logits of each [N, D, V])} by `MaskedDrafter`, of which every draw is told."""
    network, found = Exact(law(length, 1), False), {}
    for known in range(length):
        size = min(depth, length - known)
        prefixes, drafts = (list(itertools.product(range(K), repeat=n)) for n in (known, size))
        pairs = list(itertools.product(prefixes, drafts))
        tokens_BL = np.zeros((len(pairs), length), np.int32)
        tokens_BL[:, :known] = [prefix for prefix, _ in pairs]
        draft_BD = jnp.asarray([draft for _, draft in pairs], jnp.int32)
        known_B = jnp.full(len(pairs), known)
        text = Text(jnp.asarray(tokens_BL), known_B, known_B[:, None] + jnp.arange(size), None)
        same_BD, logits_BDV = drafter_of(network, min(steps, size)).propose((), text, lambda logits_BDV, draft_BD=draft_BD: draft_BD)
        assert (same_BD == draft_BD).all()
        q_BD = np.take_along_axis(np.asarray(jax.nn.softmax(logits_BDV)), np.asarray(draft_BD)[..., None], axis=2)[..., 0]
        for n, prefix in enumerate(prefixes):
            here = slice(n * len(drafts), (n + 1) * len(drafts))
            found[prefix] = np.asarray(draft_BD[here]), q_BD[here].prod(axis=1), np.asarray(logits_BDV[here])
    return found


def law_of(verdict, length, depth, steps=1):
    """Probabilities of all texts under a verdict: all drafts of each prefix, and all tokens that the verdict writes, enumerated."""
    joint, drafts, rows = law(length, 0), drafts_of(length, depth, steps), {}
    for prefix, (draft_ND, _, logits_NDV) in drafts.items():
        for n, draft in enumerate(draft_ND.tolist()):
            for j in range(len(draft)):
                p_V = np.full(V, -1e30, np.float32)
                p_V[:K] = np.log(p_of(joint, prefix + tuple(draft[:j])))
                rows[prefix, n, j] = p_V, logits_NDV[n, j], draft[j]
    verifier, guess, drawn = (np.asarray(column)[:, None] for column in zip(*rows.values(), strict=True))
    law_N1V = jax.nn.softmax(verdict.logits(jnp.asarray(verifier), jnp.asarray(guess), jnp.asarray(drawn), lambda logits: logits))
    written = dict(zip(rows, np.asarray(law_N1V[:, 0], np.float64), strict=True))
    p_X = {(): 1.0}
    for known in range(length):  # prefixes at which a call of the verifier begins, the shorter ones first
        for prefix in itertools.product(range(K), repeat=known):
            begins, (draft_ND, q_N, _) = p_X.get(prefix, 0.0), drafts[prefix]
            assert q_N.sum() == pytest.approx(1, abs=1e-5)
            for n, draft in enumerate(draft_ND.tolist()):
                right = begins * q_N[n]
                for j in range(len(draft)):
                    for token in range(K):
                        goes_on = token == draft[j] and j + 1 < len(draft)
                        if not goes_on:
                            after = (*prefix, *draft[:j], token)
                            p_X[after] = p_X.get(after, 0.0) + right * written[prefix, n, j][token]
                    right *= written[prefix, n, j][draft[j]]
    return np.array([p_X[text] for text in itertools.product(range(K), repeat=length)])


def distance(p_X, length):
    """Total variation to the verifier's law."""
    return 0.5 * np.abs(p_X - law(length, 0).probability_X).sum()


@pytest.mark.parametrize(("length", "depth"), [(2, 2), (3, 3), (4, 3)])
@pytest.mark.parametrize("accept", ["ratio", "delta", "replay"])
def test_the_law_is_that_of_the_verifier(accept, length, depth):
    p_X = law_of(make_verdict(accept), length, depth)
    assert p_X.sum() == pytest.approx(1, abs=1e-5) and distance(p_X, length) < 1e-5


def test_of_several_steps_a_ratio_is_not_exact_and_a_replay_is():
    """Why `ratio` requires drafts of one call: the law of a token's own step is not its law given the drafts before it."""
    wrong, right = (distance(law_of(make_verdict(accept), 3, 3, steps=3), 3) for accept in ("ratio", "delta"))
    assert wrong > 0.01 and right < 1e-5


def test_a_mixture_is_the_verifier_alone_at_weight_0():
    alone, mixed = (distance(law_of(Mixture(weight), 3, 3), 3) for weight in (0.0, 0.5))
    assert alone < 1e-5 and mixed > 0.02


def test_sampled_rows_have_the_law_and_calls_end_early():
    """6,000 rows under `ratio`: the law of the verifier, not that of the drafter."""
    _, sampler, _, _ = samplers("run(path=x, depth=3, accept=ratio)", 3)
    samples = sampler.sample({}, blank_canvas(3, 6000), seed=1)
    counts = np.bincount(samples.tokens_BL @ [9, 3, 1], minlength=27)
    assert chi_square_sigmas(counts, law(3, 0).probability_X) < 4 < chi_square_sigmas(counts, law(3, 1).probability_X)
    turns_B = samples.calls_B - samples.drafter_calls_B
    assert (turns_B + samples.accepted_B == 3).all() and 1 <= turns_B.mean() < 2.7 and turns_B.max() <= 3


# --- the verifier's bits ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("draft", "steps", "settings"),
    [
        ("run(path=x, depth=3)", 1, {"temperature": 0.7, "top_p": 0.8}),
        ("run(path=x, depth=3, steps=2)", 2, {}),
        ("run(path=x, depth=2, accept=delta)", 1, {}),
        ("run(path=x, depth=4, accept=mixture(weight=0))", 1, {"temperature": 0.0}),
        ("run(path=x, depth=1)", 1, {"eos": "first(tokens=2)", "end_ids": (1,)}),
    ],
)
def test_texts_are_those_without_drafts(draft, steps, settings):
    """Every row of every prompt length, bit for bit; each call writes a token at least, and the counts are those of the networks."""
    eos_id = 1 if "eos" in settings else None
    plain, sampler, verifier, guess = samplers(draft, steps=steps, eos_id=eos_id, **settings)
    canvas = ragged(96, 4)
    wanted = plain.sample({}, canvas, seed=5)
    jax.effects_barrier()
    calls, verifier.calls = verifier.calls, 0
    samples, trace = record(sampler, {}, canvas, seed=5)
    jax.effects_barrier()
    assert (samples.tokens_BL == wanted.tokens_BL).all()
    np.testing.assert_allclose(samples.confidence_BL, wanted.confidence_BL, rtol=1e-5)
    turns_B, masked_B = samples.calls_B - samples.drafter_calls_B, canvas.masked_B
    assert (verifier.calls, guess.calls) == (turns_B.max(), steps * turns_B.max()) and verifier.calls <= calls
    assert samples.evaluations == verifier.calls + guess.calls and samples.steps == verifier.calls
    assert (turns_B <= masked_B).all() and (samples.drafter_calls_B == steps * turns_B).all()
    if eos_id is None:
        assert (turns_B + samples.accepted_B == masked_B).all()
        assert (samples.accepted_B.sum() > 0) == (sampler.draft.depth > 1)
    assert replay(trace, sampler, {}) == trace.states and trace.settings.draft == draft


def test_a_row_stands_alone():
    """The first rows of a larger batch are those of a smaller one, where rows accept different numbers of drafts."""
    _, sampler, _, _ = samplers("run(path=x, depth=3, accept=ratio)", 3)
    many = ragged(6000, 3)
    few = Canvas(many.tokens_BL[:7], many.condition_mask_BL[:7], many.start_BL[:7])
    assert (sampler.sample({}, few, seed=5).tokens_BL == sampler.sample({}, many, seed=5).tokens_BL[:7]).all()


def test_shared_noise_accepts_more():
    """At equal laws a draft with the token's own noise is nearly always right; with noise of its own as often as two draws agree."""
    rates = {}
    for accept in ("replay", "delta"):
        _, sampler, _, _ = samplers(f"run(path=x, depth=4, accept={accept})")
        samples = sampler.sample({}, blank_canvas(4, 400), seed=2)
        rates[accept] = samples.accepted_B.mean()
    assert rates["replay"] > 1.15 * rates["delta"]


NETWORK = build_network(spec(), Execution())
PARAMS, OTHER = (lively(NETWORK.init(jax.random.key(seed))) for seed in (3, 4))


def prompts(length=14):
    tokens_BL = np.random.default_rng(1).integers(0, VOCAB - 2, (3, length)).astype(np.int32)
    condition_mask_BL = np.arange(length) < np.array([[0], [3], [9]])
    return Canvas(tokens_BL, condition_mask_BL, (~condition_mask_BL).astype(np.float32))


def test_a_network_with_buffers_and_a_drafter_of_blocks():
    """Keys and values of wrong drafts are never read: the tokens are those of the network without drafts, with an end of document."""
    verifier = Autoregressive(VOCAB, bos_id=VOCAB - 2, mask_id=VOCAB - 1)
    drafting = Blockwise(Masked(VOCAB, VOCAB - 1), 4)
    drafter = MaskedDrafter(drafting, NETWORK.bind, OTHER, (VOCAB - 2, VOCAB - 1))
    settings = SampleSettings(suppressed_ids=(VOCAB - 2,), temperature=0.8)
    plain = sampler_for(verifier, NETWORK, settings, eos_id=5)
    with_drafts = sampler_for(verifier, NETWORK, dataclasses.replace(settings, draft="run(path=x, depth=5)"), eos_id=5, drafter=drafter)
    wanted, samples = (sampler.sample(PARAMS, prompts(), seed=2) for sampler in (plain, with_drafts))
    assert (samples.tokens_BL == wanted.tokens_BL).all() and (samples.tokens_BL == 5).any()
    assert samples.evaluations - samples.drafter_calls_B.max() <= wanted.evaluations
    assert samples.entropy_B == pytest.approx(wanted.entropy_B)


def test_a_joint_checkpoint_drafts_for_itself():
    """The text is that of the same weights as an autoregressive network: what is kept are keys and values of the causal passes."""
    process = Blockwise(Masked(VOCAB, VOCAB - 1), 4, seed_bos=VOCAB - 2)
    settings = SampleSettings(suppressed_ids=(VOCAB - 2,))
    plain = sampler_for(Autoregressive(VOCAB, bos_id=VOCAB - 2, mask_id=VOCAB - 1), NETWORK, settings)
    drafting = sampler_for(process, NETWORK, dataclasses.replace(settings, draft="joint(depth=4)"))
    wanted, samples = (sampler.sample(PARAMS, prompts(), seed=2) for sampler in (plain, drafting))
    assert (samples.tokens_BL == wanted.tokens_BL).all() and samples.process == "autoregressive"
    turns_B = samples.drafter_calls_B
    assert (samples.calls_B == 1 + 2 * turns_B).all() and (turns_B + samples.accepted_B == prompts().masked_B).all()


# --- what is refused -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("draft", "match"),
    [
        ("run(path=x, depth=0)", "depth is 0; it must be 1 to 256"),
        ("run(path=x, depth=4, steps=5)", "steps is 5; it must be 1 to depth, 4"),
        ("run(path=x, depth=4, steps=2, accept=ratio)", "accept=ratio requires drafts of one call"),
        ("run(path=x, accept=rato)", "did you mean 'ratio'"),
        ("run(path=x, accept=mixture(weight=1))", "weight is 1.0"),
        ("run(depth=4)", "run requires path"),
        ("joint(steps=2)", "joint has no value 'steps'"),
    ],
)
def test_bad_drafts_are_refused_before_anything_is_compiled(draft, match):
    with pytest.raises(InputError, match=match) as caught:
        SampleSettings(draft=draft)
    assert "\n" not in str(caught.value)


def test_what_cannot_verify_or_draft_is_refused():
    settings = SampleSettings(draft="run(path=x)")
    joint = dataclasses.replace(settings, draft="joint(depth=8)")
    seeded = Blockwise(Masked(VOCAB, VOCAB - 1), 4, seed_bos=VOCAB - 2)
    causal = Autoregressive(VOCAB, bos_id=VOCAB - 2)
    for match, refused in {
        "requires an autoregressive run": lambda: sampler_for(Masked(VOCAB, 28), NETWORK, settings, drafter=drafter_of(NETWORK)),
        "names a run, which is not opened here": lambda: sampler_for(causal, NETWORK, settings),
        "conflicts with a stride": lambda: sampler_for(causal, NETWORK, settings, stride=2, drafter=drafter_of(NETWORK)),
        "the blocks of the run have 4 tokens": lambda: sampler_for(seeded, NETWORK, joint),
        "requires a run of seeded blocks": lambda: sampler_for(causal, NETWORK, joint),
        "give draft own here": lambda: DraftingSampler(Masked(VOCAB, 28), NETWORK.bind, dataclasses.replace(settings, rule="random")),
        "its process is autoregressive": lambda: MaskedDrafter(causal, NETWORK.bind, ()),
        "has no mask": lambda: MaskedDrafter(Uniform(VOCAB, VOCAB - 1), NETWORK.bind, ()),
        "keeps no keys and values": lambda: JointDrafter(seeded, Exact(law(2, 0), True), 4),
        "conflicts with guidance|leave guidance at 0": lambda: sampler_for(
            causal, NETWORK, dataclasses.replace(settings, guidance=1.0), drafter=drafter_of(NETWORK)
        ),
    }.items():
        with pytest.raises(InputError, match=match):
            refused()


def test_every_verdict_has_a_source_and_a_guarantee():
    assert all(verdict.source and verdict.states for verdict in VERDICTS.values())
