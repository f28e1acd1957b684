"""Seeded blocks: autoregression at size 1, tight at every size, and sampled by the pass that caches the block before."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dlmjax.diffusion import Autoregressive, Masked, Objective, PerRow, make_weighting, nats_at, row_keys
from dlmjax.diffusion.oracle import enumeration as oracle
from dlmjax.diffusion.oracle import toy
from dlmjax.diffusion.processes.blocks import Blockwise
from dlmjax.diffusion.registry import check_process, make_process
from dlmjax.diffusion.schedules import log_linear
from dlmjax.errors import InputError
from dlmjax.models import Execution, ModelSpec, build_network
from dlmjax.sampling import Canvas, SampleSettings, sampler_for
from dlmjax.sampling.blocks import BlockSampler
from tests.diffusion.battery import BOS, MASK, TOKENS, VOCAB, batch_of, expected_nats
from tests.diffusion.cases_blocks import INNER, BlockCase
from tests.models.tiny import lively

LAW = oracle.JointDistribution.random(2, 4, seed=2, sharpness=1.5)
LENGTH, ROWS = 8, 3


@dataclasses.dataclass(frozen=True, eq=False)
class SeededDenoiser(toy.ToyDenoiser):
    """Exact: the first token of a block given the text before it, the others given that, the first and the noisy rest. exact: of a row."""

    exact: object = None
    size: int = 1

    def hidden(self, z_BL, t_BL, hint_BLI=None):
        noisy_BL, index_L1 = z_BL[..., 0], jnp.arange(z_BL.shape[1])[:, None]
        text_BL = jnp.concatenate([z_BL[:, 1:, 1], noisy_BL[:, -1:]], axis=1)  # the clean stream holds the token before
        clean_BLK = jnp.where(text_BL[..., None] == jnp.arange(self.joint.tokens), 0.0, -1e9)
        seed_BLK = jnp.where(noisy_BL[..., None] == jnp.arange(self.joint.tokens), 0.0, -1e9)
        outputs = []
        for start in range(0, z_BL.shape[1], self.size):

            def before(z_BL, t_BL, start=start):
                return jnp.where(index_L1 < start, clean_BLK, 0.0)

            def within(z_BL, t_BL, start=start):
                rest_BLK = jnp.where(index_L1 < start + self.size, self.exact.log_likelihood(z_BL, t_BL), 0.0)
                return jnp.where(index_L1 < start, clean_BLK, jnp.where(index_L1 == start, seed_BLK, rest_BLK))

            first = toy.ToyDenoiser(self.joint, VOCAB, before).hidden(noisy_BL, t_BL)[:, start : start + 1]
            rest = dataclasses.replace(self.exact, log_likelihood=within).hidden(noisy_BL, t_BL)[:, start + 1 : start + self.size]
            outputs += [first, rest]
        return jnp.concatenate(outputs, axis=1)


def state_of(x_NL, z_NL, size):
    seed_L = np.arange(x_NL.shape[1]) % size == 0
    read_NL = np.concatenate([np.full_like(x_NL[:, :1], BOS), x_NL[:, :-1]], axis=1)
    return np.stack([np.where(seed_L, x_NL, z_NL), read_NL], axis=-1)


class SeededCase(BlockCase):
    """An inner case in seeded blocks of `size` tokens."""

    def denoiser(self, law):
        return SeededDenoiser(law, VOCAB, None, self.inner.denoiser(law), self.size)

    def enumerate(self, law, t):
        x_NL, z_NL, p_N = self.inner.enumerate(law, t)
        return x_NL, state_of(x_NL, z_NL, self.size), p_N


TIGHT = [case for case in INNER if str(case) in ("masked/linear", "masked/cosine", "uniform/linear", "hybrid/0.2")]


@pytest.mark.parametrize("size", [pytest.param(1, marks=pytest.mark.slow), 2, pytest.param(3, marks=pytest.mark.slow)])
@pytest.mark.parametrize("case", TIGHT, ids=str)
def test_the_bound_is_the_entropy_at_every_size_under_every_noise(case, size):
    law = oracle.JointDistribution.random(TOKENS, 3, seed=1)
    own = {"kernel": case.kernel, "grid": case.grid, "times": case.times, "light": case.light}
    seeded = SeededCase(f"seeded {size}/{case}", Blockwise(case.process, size, (), BOS), **own, inner=case, size=size)
    assert expected_nats(seeded, law) == pytest.approx(law.entropy, abs=2e-6)


@pytest.mark.parametrize("size", [1, 2, 4])
def test_the_bound_of_the_toy_text_is_its_entropy(size):
    """Over all texts and masks; seeds are clean, whatever is drawn."""
    process, exact = seeded(size), toy.ToyDenoiser(LAW, VOCAB, toy.masked_likelihood(2, MASK))
    subsets = np.asarray(list(itertools.product([False, True], repeat=4)))
    x_NL, hit_NL = np.repeat(LAW.sequences_Xn, len(subsets), axis=0), np.tile(subsets, (len(LAW.sequences_Xn), 1))
    p_N, total = np.repeat(LAW.probability_X, len(subsets)), 0.0
    with jax.enable_x64(True):
        x, z = jnp.asarray(x_NL), jnp.asarray(state_of(x_NL, np.where(hit_NL, MASK, x_NL), size))
        logits_NLV = SeededDenoiser(LAW, VOCAB, None, exact, size).hidden(z, jnp.zeros(x.shape))
        for t, weight in zip(*oracle.quadrature(40), strict=True):
            t_NL = jnp.full(x.shape, t)
            nats_NL = process.loss(logits_NLV, x, z, t_NL, *process.loss_inputs(x, z, t_NL))
            total += weight * float(np.sum(p_N * np.prod(np.where(hit_NL, t, 1 - t), axis=1) * np.asarray(nats_NL).sum(axis=1)))
    assert total == pytest.approx(LAW.entropy, abs=1e-6) and LAW.entropy == pytest.approx(2.01898, abs=1e-5)
    x_BL = jnp.asarray(LAW.sequences_Xn, jnp.int32)
    keys_B = row_keys(jax.random.key(0), jnp.arange(len(x_BL)))
    z_BL2 = process.corrupt(keys_B, x_BL, jnp.full(x_BL.shape, 0.9))
    assert (z_BL2[..., 0] == x_BL)[:, ::size].all() and (z_BL2[:, 0, 1] == BOS).all() and (z_BL2[:, 1:, 1] == x_BL[:, :-1]).all()
    further = process.forward_step(keys_B, z_BL2, jnp.full(x_BL.shape, 0.9), jnp.ones(x_BL.shape))
    assert (further[..., 0] == x_BL)[:, ::size].all()


def test_the_first_token_costs_more_where_it_is_no_seed():
    """Two other ways to read it, by enumeration: off the clean stream but at any point of the order, so that the rest does not always see
    it; and off the noisy block before (Fast-dLLM v2). Bounds both, and loose."""

    def cost(x, i, known):
        """-log p(x_i | tokens at `known`)."""
        given, both = (LAW.table[tuple(x[j] if j in seen else slice(None) for j in range(4))].sum() for seen in (known, known | {i}))
        return -np.log(both / given)

    # Which of the two tokens of a block are masked -> the integrals over t of hazard x probability, and of the probability.
    masks = {(0, 0): (0, 1 / 3), (0, 1): (1 / 2, 1 / 6), (1, 0): (1 / 2, 1 / 6), (1, 1): (1 / 2, 1 / 3)}
    clean = noisy = 0.0
    for x in np.ndindex(LAW.table.shape):
        for start, (mask, (hazard, _)) in itertools.product((0, 2), masks.items()):
            text = set(range(start))
            rest = cost(x, start + 1, text if mask[0] else text | {start}) if mask[1] else 0.0
            first = cost(x, start, text)
            seen = sum(share * cost(x, start, {j for j in text if not before[j]}) for before, (_, share) in masks.items())
            clean += LAW.table[x] * hazard * (mask[0] * first + rest)
            noisy += LAW.table[x] * hazard * (mask[0] * (seen if start else first) + rest)
    np.testing.assert_allclose((LAW.entropy, clean, noisy), (2.019, 2.131, 2.197), atol=5e-4)


# --- on a network -----------------------------------------------------------------------------------------------------------------

SPEC = ModelSpec(vocab=VOCAB, depth=2, width=32, heads=4, kv_heads=2, head_dim=8, ffn=48, rope_base=1e4)  # shaped like Qwen3
NETWORK = build_network(SPEC, Execution(scan=False))
PARAMS = lively(NETWORK.init(jax.random.key(0)))
TEXT_BL = np.random.default_rng(0).integers(0, 2, (ROWS, LENGTH)).astype(np.int32)
SEGMENTS_BL = np.asarray([[1] * 8, [1] * 4 + [2] * 4, [1] * 3 + [2] * 4 + [0]], np.int32)
POSITIONS_BL = np.asarray([[*range(8)], [0, 1, 2, 3] * 2, [0, 1, 2, 0, 1, 2, 3, 0]], np.int32)
CAUSAL = Autoregressive(VOCAB, BOS, MASK, excluded=(2,))


def seeded(size):
    return Blockwise(Masked(VOCAB, MASK, excluded=(2, BOS)), size, (), BOS)


def nats(process, t, segments_BL=SEGMENTS_BL, positions_BL=POSITIONS_BL):
    denoiser = NETWORK.bind(PARAMS, jnp.asarray(segments_BL), jnp.asarray(positions_BL), process.attention)
    keys_B, x_BL = row_keys(jax.random.key(1), jnp.arange(ROWS)), jnp.asarray(TEXT_BL)
    return np.asarray(nats_at(process, denoiser, x_BL, jnp.asarray(segments_BL), keys_B, jnp.full(x_BL.shape, t)))


@pytest.mark.parametrize("size", [1, 2, 4, 8])
def test_the_first_tokens_cost_what_they_cost_in_autoregression(size):
    """In packed rows too, with padding, at any time; blocks of one token are autoregression. A document that begins within a block costs
    its first token, in the mean over its masks, as there."""
    process = dataclasses.replace(CAUSAL, excluded=(2, BOS))
    alone_BL, found_BL = nats(process, 0.5), nats(seeded(size), 0.5)
    np.testing.assert_allclose(found_BL[:, ::size], alone_BL[:, ::size], rtol=0, atol=2e-6)
    assert (found_BL[SEGMENTS_BL == 0] == 0).all()
    if size > 1:
        all_masked_BL = nats(seeded(size), 1.0)
        begins_BL = (POSITIONS_BL == 0) & (SEGMENTS_BL > 0)
        np.testing.assert_allclose(all_masked_BL[begins_BL], alone_BL[begins_BL], rtol=0, atol=2e-6)
    else:
        np.testing.assert_array_equal(found_BL, nats(seeded(size), 0.9))


@pytest.mark.parametrize("size", [2, 4])
def test_a_block_is_predicted_from_itself_and_the_text_before_it(size):
    """Nothing else: the clean tokens of a block and all that follows may be other ones."""
    process = seeded(size)
    keys_B, x_BL = row_keys(jax.random.key(2), jnp.arange(ROWS)), jnp.asarray(TEXT_BL)
    z_BL2 = process.corrupt(keys_B, x_BL, jnp.full(x_BL.shape, 0.5))
    denoiser = NETWORK.bind(PARAMS, jnp.ones_like(x_BL), jnp.tile(jnp.arange(LENGTH), (ROWS, 1)), process.attention)
    hidden_BLD = denoiser.hidden(z_BL2, jnp.zeros(x_BL.shape))
    for start in range(0, LENGTH, size):
        other_BL2 = z_BL2.at[:, start + size :, 0].set(MASK).at[:, start + 1 :, 1].set(1 - z_BL2[:, start + 1 :, 1] % 2)
        block = slice(start, start + size)
        np.testing.assert_allclose(denoiser.hidden(other_BL2, jnp.zeros(x_BL.shape))[:, block], hidden_BLD[:, block], atol=2e-6)
        seed = denoiser.hidden(z_BL2.at[:, start:, 0].set(MASK), jnp.zeros(x_BL.shape))[:, start]
        np.testing.assert_allclose(seed, hidden_BLD[:, start], atol=2e-6)


def test_weightings_leave_the_first_tokens_as_they_are():
    process, batch = seeded(2), batch_of(TEXT_BL)
    denoiser = NETWORK.bind(PARAMS, batch["segments"], batch["positions"], process.attention)
    totals = []
    for weighting in ("cross_entropy", "inverse_rate"):
        objective = Objective(process, process.time_domain.adapt(PerRow()), make_weighting(weighting))
        totals.append(float(objective(denoiser, batch, jax.random.key(3), ROWS)[0]))
    seeds = nats(seeded(1), 0.5, np.ones_like(TEXT_BL), np.tile(np.arange(LENGTH), (ROWS, 1)))[:, ::2].sum()
    bound = Objective(process, process.time_domain.adapt(PerRow()))
    total, terms = bound(denoiser, batch, jax.random.key(3), ROWS)
    # On a linear schedule the weight 1 / (hazard x rate) is 1: that is the bound itself, and cross-entropy has less of the rest.
    assert totals[1] == pytest.approx(float(total), rel=1e-6) and seeds < totals[0] < totals[1]
    assert float(terms["nats"]) == pytest.approx(float(total), rel=1e-6) and bound.is_bound


@pytest.mark.parametrize("size", [2, 4])
def test_a_joint_loss_is_that_of_the_blocks_and_of_autoregression_in_one_pass(size):
    """The clean stream is causal, so its loss is that of autoregression, token by token; the bound stays that of blocks."""
    process, batch = seeded(size), batch_of(TEXT_BL) | {"segments": jnp.asarray(SEGMENTS_BL), "positions": jnp.asarray(POSITIONS_BL)}
    denoiser = NETWORK.bind(PARAMS, batch["segments"], batch["positions"], process.attention)
    times, key = process.time_domain.adapt(PerRow()), jax.random.key(3)
    blocks, of_blocks = Objective(process, times)(denoiser, batch, key, ROWS)
    joint = Objective(process, times, make_weighting("joint", diffusion=0.3, text=2.0))
    total, terms = joint(denoiser, batch, key, ROWS)
    text = nats(dataclasses.replace(CAUSAL, excluded=(2, BOS)), 0.5).sum()
    assert float(terms["text_nats"]) == pytest.approx(text, rel=1e-5) and float(terms["nats"]) == float(of_blocks["nats"])
    assert float(total) == pytest.approx(0.3 * float(blocks) + 2 * text, rel=1e-5)
    report = joint.report(jax.device_get(terms))
    assert report["text_nll"] == pytest.approx(text / (SEGMENTS_BL > 0).sum(), rel=1e-5) and "loss_joint_not_a_bound" in report
    with pytest.raises(InputError, match="weighting joint conflicts with process blocks"):
        Objective(dataclasses.replace(process, seed_bos=None), times, make_weighting("joint"))
    with pytest.raises(InputError, match="both must be positive"):
        make_weighting("joint", text=0.0)
    with pytest.raises(InputError, match="inner is denoising"):
        make_weighting("joint", inner="denoising")


@pytest.mark.parametrize("size, prompt, order", [(1, 0, "ancestral"), (2, 3, "ancestral"), (4, 0, "confidence"), (4, 5, "ancestral")])
def test_samples_with_buffers_are_those_of_the_streams_of_training(size, prompt, order):
    canvas_BL = np.where(np.arange(LENGTH) < prompt, TEXT_BL, 0).astype(np.int32)
    condition_BL = np.broadcast_to(np.arange(LENGTH) < prompt, TEXT_BL.shape)
    canvas = Canvas(canvas_BL, condition_BL, (~condition_BL).astype(np.float32))
    settings = SampleSettings(steps=3, rule=order, suppressed_ids=(2, BOS))
    found = [BlockSampler(seeded(size), NETWORK, settings, cached=cached).sample(PARAMS, canvas, seed=4) for cached in (True, False)]
    np.testing.assert_array_equal(found[0].tokens_BL, found[1].tokens_BL)
    assert (found[0].tokens_BL[:, :prompt] == TEXT_BL[:, :prompt]).all() and set(found[0].tokens_BL.flat) <= {0, 1, 3, 4}
    if size == 1:
        greedy = dataclasses.replace(settings, temperature=0.0)
        twins = [sampler_for(process, NETWORK, greedy).sample(PARAMS, canvas, seed=0) for process in (seeded(1), CAUSAL)]
        np.testing.assert_array_equal(*(twin.tokens_BL for twin in twins))
        # One pass for each token, all of which also fill the buffers.
        assert [twin.evaluations for twin in twins] == [LENGTH, LENGTH]


def test_what_cannot_be_seeded_is_refused():
    assert check_process("blocks(size=2, seeded=True)") is False
    assert make_process("blocks", vocab=VOCAB, mask_id=MASK, bos_id=BOS, excluded=(2, BOS), size=2, seeded=True) == seeded(2)
    with pytest.raises(InputError, match="seeded=True requires a schedule that ends in clean text and pure noise"):
        Blockwise(Masked(VOCAB, MASK, log_linear()), 2, (), BOS)
    with pytest.raises(InputError, match="seeded=True requires a beginning of text"):
        make_process("blocks", vocab=VOCAB, mask_id=MASK, size=2, seeded=True)
    with pytest.raises(InputError, match="leave guidance at 0"):
        sampler_for(seeded(2), NETWORK, SampleSettings(guidance=1.0))
    assert seeded(4).phases.processes == (seeded(4),)
    grown = dataclasses.replace(seeded(4), curriculum=((10, 1), (20, 2)))
    assert grown.phases.processes == (seeded(1), seeded(2), seeded(4))
