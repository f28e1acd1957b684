"""Block diffusion: tight at every block size, with the chain rule and masked diffusion as its two ends; on exact and on real networks."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dlmjax.choices import parse
from dlmjax.diffusion import Masked, Objective, PerRow, Power, UniformTimes, make_process, nats_at, row_keys
from dlmjax.diffusion.declarations import Attention
from dlmjax.diffusion.hyperschedule import PerBlock
from dlmjax.diffusion.oracle import enumeration as oracle
from dlmjax.diffusion.oracle.toy import ToyDenoiser, masked_likelihood
from dlmjax.diffusion.process import Process
from dlmjax.diffusion.processes.blocks import Blockwise, OneStream
from dlmjax.diffusion.processes.hybrid import Hybrid
from dlmjax.diffusion.processes.text_dependent import LoMdm
from dlmjax.diffusion.processes.uniform import Uniform
from dlmjax.diffusion.registry import BLOCK_NOISES, PROCESSES, check_process
from dlmjax.errors import InputError
from dlmjax.models import Execution, ModelSpec, build_network
from tests.diffusion.battery import BOS, MASK, VOCAB, batch_of, members, sample_joint
from tests.models.tiny import lively

LAW = oracle.JointDistribution.random(2, 4, seed=3, sharpness=1.5)
LENGTH, ROWS = 4, 8


@dataclasses.dataclass(frozen=True, eq=False)
class Exact(ToyDenoiser):
    """Predicts block b from its own noisy tokens and the clean ones before it."""

    size: int = 1

    def hidden(self, z_BL2, t_BL, hint_BLI=None):
        outputs, place_L = [], jnp.arange(LENGTH)
        for start in range(0, LENGTH, self.size):
            known_BL = jnp.where(place_L < start, z_BL2[..., 1], jnp.where(place_L < start + self.size, z_BL2[..., 0], MASK))
            outputs.append(super().hidden(known_BL, t_BL)[:, start : start + self.size])
        return jnp.concatenate(outputs, axis=1)


@pytest.mark.parametrize("size", [1, 2, 4])
def test_the_bound_is_the_entropy_at_every_block_size(size):
    process, denoiser = Blockwise(Masked(VOCAB, MASK, excluded=(BOS,)), size), Exact(LAW, VOCAB, masked_likelihood(2, MASK), size)
    subsets = np.asarray(list(itertools.product([False, True], repeat=LENGTH)))
    x_NL = np.repeat(LAW.sequences_Xn, len(subsets), axis=0)
    hit_NL = np.tile(subsets, (len(LAW.sequences_Xn), 1))
    p_N = np.repeat(LAW.probability_X, len(subsets))
    total = 0.0
    with jax.enable_x64(True):
        z_NL2 = jnp.stack([jnp.where(hit_NL, MASK, x_NL), jnp.asarray(x_NL)], axis=-1)
        logits_NLV = denoiser.hidden(z_NL2, jnp.zeros(x_NL.shape))
        for t, weight in zip(*oracle.quadrature(40), strict=True):
            nats_NL = process.loss(logits_NLV, jnp.asarray(x_NL), z_NL2, jnp.full(x_NL.shape, t))
            mass_N = p_N * np.prod(np.where(hit_NL, t, 1 - t), axis=1)
            total += weight * float(np.sum(mass_N[:, None] * np.asarray(nats_NL)))
    assert total == pytest.approx(LAW.entropy, abs=1e-6)


@pytest.mark.parametrize("given", [0, 2])
def test_an_evaluation_integrates_the_bound_of_what_is_not_given(given):
    """Under the exact denoiser: the entropy of the text, or of its second block given the first; nothing where it is given."""
    process, denoiser = Blockwise(Masked(VOCAB, MASK, excluded=(BOS,)), 2), Exact(LAW, VOCAB, masked_likelihood(2, MASK), 2)
    x_BL = jnp.asarray(sample_joint(LAW, 2000, seed=5))
    scored_BL = jnp.broadcast_to(jnp.arange(LENGTH) >= given, x_BL.shape)
    levels, weights = np.polynomial.legendre.leggauss(6)
    total_BL = 0.0
    for i, (level, weight) in enumerate(zip((levels + 1) / 2, weights / 2, strict=True)):
        keys_B = row_keys(jax.random.fold_in(jax.random.key(6), i), jnp.arange(len(x_BL)))
        t_BL = jnp.full(x_BL.shape, level)
        total_BL += weight * np.asarray(nats_at(process, denoiser, x_BL, jnp.ones_like(x_BL), keys_B, t_BL, scored_BL=scored_BL))
    assert not total_BL[:, :given].any()
    head_Xn = LAW.sequences_Xn[:, :given]
    head_X = np.array([LAW.probability_X[(head_Xn == row).all(1)].sum() for row in head_Xn])
    entropy = -(LAW.probability_X * np.log(LAW.probability_X / head_X)).sum()
    total_B = total_BL.sum(1)
    assert abs(total_B.mean() - entropy) < 4 * total_B.std() / np.sqrt(len(total_B))


SPEC = ModelSpec(vocab=VOCAB, depth=2, width=32, heads=2, kv_heads=2, head_dim=16, ffn=48)
NETWORK = build_network(SPEC, Execution(scan=False))
PARAMS = lively(NETWORK.init(jax.random.key(0)))
TEXTS = np.asarray(list(itertools.product(range(2), repeat=LENGTH)), np.int32)  # ids 0 and 1


def bound_network(attention, rows):
    segments_BL = jnp.ones((rows, LENGTH), jnp.int32)
    return NETWORK.bind(PARAMS, segments_BL, jnp.tile(jnp.arange(LENGTH), (rows, 1)), attention)


def test_blocks_of_one_token_are_the_chain_rule_of_any_network():
    """The bound of a network that was never trained, at any level, is an exact log-likelihood: over all texts it sums to one."""
    process = Blockwise(Masked(VOCAB, MASK, excluded=(2, BOS)), 1)
    denoiser, x_BL = bound_network(process.attention, len(TEXTS)), jnp.asarray(TEXTS)
    z_BL2 = jnp.stack([jnp.full_like(x_BL, MASK), x_BL], axis=-1)
    for level in (1.0, 0.3):
        t_BL = jnp.full(x_BL.shape, level)
        # A token is masked with probability t, then costs its cross-entropy over t.
        nats_BL = level * process.loss(denoiser.logits(denoiser.hidden(z_BL2, t_BL)), x_BL, z_BL2, t_BL)
        np.testing.assert_allclose(np.exp(-np.asarray(nats_BL).sum(axis=1)).sum(), 1.0, rtol=1e-5)
    # The same numbers left to right, one network call per prefix: nothing of what follows is looked at.
    for i in range(LENGTH):
        later = z_BL2.at[:, i:, 1].set(0)
        logits_BV = denoiser.logits(denoiser.hidden(later, t_BL))[:, i].at[:, 2:].set(-1e30)
        np.testing.assert_allclose(nats_BL[:, i], -jax.nn.log_softmax(logits_BV)[jnp.arange(len(TEXTS)), x_BL[:, i]], rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_one_block_of_the_whole_row_is_masked_diffusion():
    """Same levels, same masks, same nats on a real network, the clean stream being out of sight."""
    blocks, masked = Blockwise(Masked(VOCAB, MASK, excluded=(BOS,)), LENGTH), Masked(VOCAB, MASK, excluded=(BOS,))
    batch = batch_of(TEXTS[:ROWS])
    for times in (PerRow(), PerRow(Power(0.5), stratified=False)):
        totals = [
            Objective(process, times)(bound_network(process.attention, ROWS), batch, jax.random.key(1), ROWS)[0]
            for process in (blocks, masked)
        ]
        np.testing.assert_allclose(*totals, rtol=1e-5)


def test_every_block_has_its_own_time():
    process = make_process("blocks", vocab=VOCAB, mask_id=MASK, bos_id=BOS, excluded=(BOS,), size=2)
    assert process.attention == Attention(block_size=2)
    times = process.time_domain.adapt(PerRow(UniformTimes(0.3, 0.8)))
    assert isinstance(times, PerBlock) and not times.covers and process.time_domain.adapt(times) is times
    t_BL, weight_BL = times.draw(jax.random.key(0), jnp.arange(64), 64, LENGTH)
    assert (t_BL[:, 0::2] == t_BL[:, 1::2]).all() and (t_BL[:, 0] != t_BL[:, 2]).any()
    assert float(t_BL.min()) >= 0.3 and float(t_BL.max()) <= 0.8
    np.testing.assert_allclose(weight_BL, 0.5, rtol=1e-6)


def test_a_state_is_the_noisy_and_the_clean_text():
    process, x_BL = Blockwise(Masked(VOCAB, MASK), 2), jnp.asarray(TEXTS)
    keys_B, t_BL = row_keys(jax.random.key(2), jnp.arange(len(TEXTS))), jnp.full(TEXTS.shape, 0.6)
    z_BL2 = process.corrupt(keys_B, x_BL, t_BL)
    assert (z_BL2[..., 1] == x_BL).all()
    np.testing.assert_array_equal(process.states.to_tokens(z_BL2), Masked(VOCAB, MASK).corrupt(keys_B, x_BL, t_BL))
    assert (process.loss_mask(z_BL2, t_BL) == (process.states.to_tokens(z_BL2) == MASK)).all() and (
        process.corrupted(x_BL, z_BL2) == process.loss_mask(z_BL2, t_BL)
    ).all()
    further = process.forward_step(keys_B, z_BL2, t_BL, jnp.ones_like(t_BL))
    assert (further[..., 0] == MASK).all() and (further[..., 1] == x_BL).all()


def test_what_is_not_redefined_is_the_inner_process():
    """Every member of a process is defined for blocks or forwarded to the noise inside, but what follows from another member, and what
    only noise has that is refused."""
    own, process = vars(Blockwise), Blockwise(Uniform(VOCAB, MASK, excluded=(BOS,)), 2)
    assert members(Process) - own.keys() == {"corrupted"}
    assert process.time_input and process.vocab == VOCAB and process.ends == Uniform.ends and process.suppressed_ids == (BOS, MASK)


def test_noise_that_depends_on_the_whole_row_is_refused():
    with pytest.raises(InputError, match="noise 'lomdm' depends on the whole row"):
        Blockwise(LoMdm(VOCAB, MASK), 2)


@pytest.mark.parametrize("name", sorted(PROCESSES))
def test_noise_that_cannot_be_in_blocks_is_refused(name):
    """Each process of the registry either makes blocks or is refused in one line that names it."""
    facts = {"vocab": 8, "mask_id": 7, "bos_id": 6, "counts_V": np.ones(8)}
    if name in BLOCK_NOISES:
        process = make_process("blocks", noise=name, **facts)
        assert process.inner.name == name and (process.attention.block_size is not None) and process.vocab == 8
        return
    with pytest.raises(InputError, match=f"unknown noise of process blocks '{name}'"):
        make_process("blocks", noise=name, **facts)
    if name in ("autoregressive", "masked_count", "duo", "gaussian"):
        with pytest.raises(InputError, match=f"process {'masked_count' if name == 'masked_count' else 'blocks'}"):
            Blockwise(make_process(name, **facts))


def test_noise_in_blocks_takes_values():
    text = {"noise": "hybrid(p_uniform=0.3)", "size": 2, "vocab": 8, "mask_id": 7}
    assert make_process("blocks", **text) == Blockwise(Hybrid(8, 7, p_uniform=0.3), 2)
    assert parse("blocks(size=2, noise=hybrid(p_uniform=0.3))")[1] == {"size": 2, "noise": "hybrid(p_uniform=0.3)"}
    assert check_process("blocks(noise=uniform)") is True and check_process("blocks(size=2)") is False
    for noise, message in (("hybrid(p=0.3)", "has no value 'p'"), ("uniform(vocab=3)", "takes no value 'vocab'"), ("unifrom", "'uniform'")):
        with pytest.raises(InputError, match=message):
            check_process(f"blocks(noise={noise})")


def test_a_block_holds_a_token():
    with pytest.raises(InputError, match="at least 1 token"):
        Blockwise(Masked(VOCAB, MASK), 0)


def test_a_curriculum_names_the_size_of_each_step():
    process = Blockwise(Masked(VOCAB, MASK), 1, curriculum=((10, 4), (20, 2)))
    assert [process.phases.at_step(step).size for step in (0, 9, 10, 19, 20, 1000)] == [4, 4, 2, 2, 1, 1]
    assert process.phases.at_step(0).time_domain.adapt(process.time_domain.adapt(PerRow())).size == 4
    assert process.attention == Attention(block_size=1) and process.phases.at_step(20) == Blockwise(Masked(VOCAB, MASK), 1)
    with pytest.raises(InputError, match="steps rising"):
        Blockwise(Masked(VOCAB, MASK), curriculum=((20, 4), (10, 2)))


@pytest.mark.parametrize("size, nats", [(1, None), (2, 2.10837), (4, 2.01898)])
def test_one_stream_is_a_bound_and_tight_in_one_block_alone(size, nats):
    """By enumeration, with the exact prediction from the noisy tokens of a block and of those before it. Blocks of the whole row are masked
    diffusion."""
    law = oracle.JointDistribution.random(2, 4, seed=2, sharpness=1.5)
    process, of_row = OneStream(Masked(VOCAB, MASK, excluded=(BOS,)), size), ToyDenoiser(law, VOCAB, masked_likelihood(2, MASK))
    subsets = np.asarray(list(itertools.product([False, True], repeat=LENGTH)))
    x_NL, hit_NL = np.repeat(law.sequences_Xn, len(subsets), axis=0), np.tile(subsets, (len(law.sequences_Xn), 1))
    p_N, total = np.repeat(law.probability_X, len(subsets)), 0.0
    with jax.enable_x64(True):
        x, z, zeros = jnp.asarray(x_NL), jnp.where(hit_NL, MASK, x_NL), jnp.zeros(x_NL.shape)
        seen = [jnp.where(jnp.arange(LENGTH) < (i // size + 1) * size, z, MASK) for i in range(LENGTH)]
        logits_NLV = jnp.stack([of_row.hidden(seen[i], zeros)[:, i] for i in range(LENGTH)], axis=1)
        for t, weight in zip(*oracle.quadrature(40), strict=True):
            nats_NL = process.loss(logits_NLV, x, z, jnp.full(x.shape, t))
            total += weight * float(np.sum(p_N * np.prod(np.where(hit_NL, t, 1 - t), axis=1) * np.asarray(nats_NL).sum(axis=1)))
    assert total > law.entropy + 0.05 if nats is None else total == pytest.approx(nats, abs=1e-5)
    assert process.capabilities.is_bound and not process.capabilities.is_tight
    # The network reads what is declared: later blocks may hold anything.
    denoiser, z_BL = bound_network(process.attention, len(TEXTS)), jnp.asarray(TEXTS)
    other_BL = z_BL.at[:, size:].set(MASK)
    hidden_BLD, others_BLD = (denoiser.hidden(state, jnp.zeros(TEXTS.shape)) for state in (z_BL, other_BL))
    np.testing.assert_allclose(hidden_BLD[:, :size], others_BLD[:, :size], atol=2e-6)


def test_one_stream_forwards_its_masks_and_refuses_other_noise():
    process = make_process("blocks", vocab=VOCAB, mask_id=MASK, excluded=(BOS,), size=2, streams=1)
    assert process == OneStream(Masked(VOCAB, MASK, excluded=(BOS,)), 2) and process.attention == Attention(context_size=2)
    kept = {"name", "attention", "capabilities", "with_params", "bound", "phases", "params", "parameters", "scalars", "exact_mask"}
    for name in members(Process) - kept:
        assert getattr(process, name) == getattr(process.inner, name), name
    assert process.bound is process and check_process("blocks(streams=1)") is False
    for text, says in (
        ("blocks(streams=1, noise=uniform)", "streams=1 requires masks at one rate for all tokens, not noise 'uniform'"),
        ("blocks(streams=3)", "streams is 3; give 2, or 1"),
        ("blocks(streams=1, size=0)", "at least 1 token"),
    ):
        with pytest.raises(InputError, match=says):
            check_process(text)
