"""Text piece by piece: buffers change nothing, ends are ends, and the law of a chain survives a sliding window."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dlmjax.diffusion.oracle import enumeration as oracle
from dlmjax.diffusion.processes.autoregressive import Autoregressive
from dlmjax.diffusion.processes.blocks import Blockwise
from dlmjax.diffusion.processes.hybrid import Hybrid
from dlmjax.diffusion.processes.masked import Masked
from dlmjax.diffusion.processes.uniform import Uniform
from dlmjax.errors import InputError
from dlmjax.models import Execution, build_network
from dlmjax.models.masks import BlockCausal
from dlmjax.sampling.blocks import BlockSampler, StrideSampler
from dlmjax.sampling.canvas import Canvas, blank_canvas
from dlmjax.sampling.sampler import Sampler
from dlmjax.sampling.settings import SampleSettings
from dlmjax.sampling.trace import record, replay
from tests.diffusion.battery import chi_square_sigmas
from tests.models.tiny import VOCAB, lively, spec
from tests.sampling.test_sampler import COMPILED
from tests.sampling.toy import Bound

NETWORK = build_network(spec(), Execution())
PARAMS = lively(NETWORK.init(jax.random.key(3)))
MASK = VOCAB - 1


PROCESSES = {
    "blocks": (Blockwise(Masked(VOCAB, MASK), 4), {}),
    "masked": (Masked(VOCAB, MASK), {"size": 4}),
    "autoregressive": (Autoregressive(VOCAB, bos_id=VOCAB - 2, mask_id=MASK), {}),
}


def prompted(given, length, rows=3):
    tokens_BL = np.random.default_rng(1).integers(0, VOCAB - 2, (rows, length)).astype(np.int32)
    condition_mask_BL = np.broadcast_to(np.arange(length) < given, tokens_BL.shape).copy()
    return Canvas(tokens_BL, condition_mask_BL, (~condition_mask_BL).astype(np.float32))


def make(name, eos_id=None, cached=True, **settings) -> BlockSampler:
    process, options = PROCESSES[name]
    return BlockSampler(
        process,
        NETWORK,
        SampleSettings(**{"steps": 3, "suppressed_ids": (VOCAB - 2,), **settings}),
        eos_id=eos_id,
        cached=cached,
        **options,
    )


@pytest.mark.parametrize(
    ("name", "given", "settings"),
    [
        ("blocks", 0, {}),
        ("blocks", 6, {"rule": "confidence"}),
        ("masked", 9, {"method": "remask(eta=0.5)"}),
        ("blocks", 6, {"method": "psi(kappa=0.3)"}),
        ("blocks", 6, {"guidance": 1.5}),
        ("autoregressive", 5, {}),
        ("autoregressive", 0, {"temperature": 0.0}),
    ],
)
def test_buffers_change_no_token(name, given, settings):
    """Tokens, confidences and calls of sampling with buffers are those of reading the whole row at every step."""
    canvas = prompted(given, 14)
    fast, slow = (make(name, cached=cached, **settings).sample(PARAMS, canvas, seed=2) for cached in (True, False))
    assert (fast.tokens_BL == slow.tokens_BL).all() and (fast.fixed_BL == slow.fixed_BL).all()
    np.testing.assert_allclose(fast.confidence_BL, slow.confidence_BL, atol=1e-4)
    assert (fast.tokens_BL[canvas.condition_mask_BL] == canvas.tokens_BL[canvas.condition_mask_BL]).all()
    assert (fast.tokens_BL < VOCAB - 2).all() and fast.tokens_BL.shape == (3, 14)
    if name == "autoregressive":
        assert fast.steps == 14 - given and fast.evaluations == 14 - given + (given > 0)
    else:
        blocks = 4 - given // 4
        streams = 2 if settings.get("guidance") else 1
        more = streams * (blocks - 1) + (given >= 4)
        assert fast.evaluations == slow.evaluations + more, "one call more to keep a block in each stream, one for the prompt"


def test_the_law_of_blocks_is_the_chain_rule_over_blocks():
    """Two blocks of two tokens, one step each: p(b1) p(b2 | b1), each a product over positions, from the network's own outputs."""
    net = build_network(spec(vocab=3), Execution())
    params = lively(net.init(jax.random.key(4)), seed=5)
    samples = BlockSampler(Masked(3, 2), net, SampleSettings(steps=1), size=2).sample(params, blank_canvas(4, 6000), seed=3)
    texts_NL = np.array(list(itertools.product(range(2), repeat=4)), np.int32)
    p_N = np.ones(16)
    for start in (0, 2):
        read_NL = np.where(np.arange(4) < start, texts_NL, 2).astype(np.int32)
        denoiser = net.bind(params, jnp.ones_like(read_NL), jnp.tile(jnp.arange(4), (16, 1)), BlockCausal(2))
        logits_NLV = denoiser.logits(denoiser.hidden(jnp.asarray(read_NL), jnp.zeros(read_NL.shape)))
        p_NLK = np.asarray(jax.nn.softmax(logits_NLV[..., :2]), np.float64)
        for i in (start, start + 1):
            p_N *= p_NLK[np.arange(16), i, texts_NL[:, i]]
    counts = np.bincount(samples.tokens_BL @ [8, 4, 2, 1], minlength=16)
    assert p_N.sum() == pytest.approx(1, abs=1e-5) and chi_square_sigmas(counts, p_N) < 4
    assert chi_square_sigmas(counts, np.full(16, 1 / 16)) > 4


@pytest.mark.parametrize(("p_uniform", "kappa"), [(None, 1.0), (0.4, 1.0), (0.4, 0.3)], ids=["uniform", "hybrid", "psi"])
def test_the_law_of_blocks_with_noise_that_changes_tokens(p_uniform, kappa):
    """Two blocks of two tokens, two steps each, on a network that is conditioned on t: the chain rule over blocks, and in each block
    p(z_1), p(z_1/2 | z_1), p(x | z_1/2) by enumeration, from the outputs of the network on the whole row."""
    net = build_network(spec(vocab=3, time_input="adaln"), Execution())
    params = lively(net.init(jax.random.key(4)), seed=5)
    inner = Uniform(3, 2) if p_uniform is None else Hybrid(3, 2, p_uniform=p_uniform)
    kernel = oracle.uniform_kernel(2, lambda t: 1 - t, lambda t: -1.0) if p_uniform is None else oracle.hybrid_kernel(2, p_uniform, 1.0)
    method = "ancestral" if kappa == 1 else f"psi(kappa={kappa})"
    settings = SampleSettings(steps=2, grid="uniform", suppressed_ids=(2,), method=method)
    samples = BlockSampler(Blockwise(inner, 2), net, settings).sample(params, blank_canvas(4, 6000), seed=3)
    p_N = chain_of_blocks(kernel, lambda z_NL, t_NL: probabilities(net, params, z_NL, t_NL), (1.0, 0.5, 0.0), kappa)
    counts = np.bincount(samples.tokens_BL @ [8, 4, 2, 1], minlength=16)
    assert p_N.sum() == pytest.approx(1, abs=1e-5) and chi_square_sigmas(counts, p_N) < 4
    assert chi_square_sigmas(counts, np.full(16, 1 / 16)) > 4


def probabilities(net, params, z_NL, t_NL):
    """The network's p(x_i = 0), p(x_i = 1), [N, L, 2], where blocks of two see themselves and those before."""
    denoiser = net.bind(params, jnp.ones_like(z_NL), jnp.tile(jnp.arange(4), (len(z_NL), 1)), BlockCausal(2))
    return np.asarray(jax.nn.softmax(denoiser.logits(denoiser.hidden(jnp.asarray(z_NL), jnp.asarray(t_NL)))[..., :2]), np.float64)


def chain_of_blocks(kernel, denoise, times, kappa=1.0):
    """p of all texts of two blocks of two binary tokens. At each step a position goes from z to y with probability proportional to
    q(z | z_s = y) q_s(y | x ~ output), and with probability 1 - kappa to a draw of q_s(y | x ~ p(x | z))."""
    texts_NL = np.array(list(itertools.product(range(2), repeat=4)), np.int32)
    states_Z2 = oracle.enumerate_sequences(kernel.noise(0.5).size, 2)
    p_N = np.ones(16)
    for start in (0, 2):
        p_NZ = np.tile(kernel.noise(1.0)[states_Z2].prod(axis=1), (16, 1))
        for t, s in itertools.pairwise(times):
            z_NL, t_NL = np.repeat(texts_NL, len(states_Z2), axis=0), np.zeros((16 * len(states_Z2), 4), np.float32)
            z_NL[:, start : start + 2], t_NL[:, start : start + 2] = np.tile(states_Z2, (16, 1)), t
            guess_N2K = denoise(z_NL, t_NL)[:, start : start + 2]
            p_N2S = (guess_N2K @ kernel.matrix(s)) * kernel.step(s, t)[:, z_NL[:, start : start + 2]].transpose(1, 2, 0)
            p_N2S /= np.maximum(p_N2S.sum(axis=-1, keepdims=True), 1e-300)  # of states that cannot occur
            given_z_N2K = guess_N2K * kernel.matrix(t)[:, z_NL[:, start : start + 2]].transpose(1, 2, 0)
            given_z_N2K /= np.maximum(given_z_N2K.sum(axis=-1, keepdims=True), 1e-300)
            p_N2S = kappa * p_N2S + (1 - kappa) * given_z_N2K @ kernel.matrix(s)
            to_NZZ = (p_N2S[:, 0][:, states_Z2[:, 0]] * p_N2S[:, 1][:, states_Z2[:, 1]]).reshape(16, len(states_Z2), -1)
            p_NZ = np.einsum("nz,nzy->ny", p_NZ, to_NZZ)
        which_N = (states_Z2[None] == texts_NL[:, None, start : start + 2]).all(axis=-1).argmax(axis=1)
        p_N *= p_NZ[np.arange(16), which_N]
    return p_N


@pytest.mark.slow
def test_the_law_of_guided_blocks():
    """A prompt that ends within a block, then two blocks of one step each: every position draws from the softmax of
    (1 + w) logits given the prompt - w logits of a document that begins after it, both from the network on the whole row."""
    w, given, length, rows = 1.5, 3, 6, 4000
    net = build_network(spec(vocab=3), Execution())
    params = lively(net.init(jax.random.key(4)), seed=5)
    prompt = [1, 0, 1]
    condition_mask_BL = np.tile(np.arange(length) < given, (rows, 1))
    canvas = Canvas(np.tile(np.int32([*prompt, 0, 0, 0]), (rows, 1)), condition_mask_BL, (~condition_mask_BL).astype(np.float32))
    samples = BlockSampler(Masked(3, 2), net, SampleSettings(steps=1, guidance=w), size=2).sample(params, canvas, seed=3)
    texts_NL = np.array([[*prompt, *rest] for rest in itertools.product(range(2), repeat=3)], np.int32)
    place_L = np.arange(length)

    def law(w):
        p_N = np.ones(8)
        for made in ([3], [4, 5]):
            read_NL = np.where(place_L < made[0], texts_NL, 2).astype(np.int32)
            logits = []
            for segment_L in (np.ones(length, np.int32), 1 + (place_L >= given)):
                denoiser = net.bind(params, jnp.tile(segment_L, (8, 1)), jnp.tile(place_L, (8, 1)), BlockCausal(2))
                logits.append(np.asarray(denoiser.logits(denoiser.hidden(jnp.asarray(read_NL), jnp.zeros(read_NL.shape))), np.float64))
            guided_NLK = ((1 + w) * logits[0] - w * logits[1])[..., :2]
            p_NLK = np.exp(guided_NLK) / np.exp(guided_NLK).sum(axis=-1, keepdims=True)
            for i in made:
                p_N *= p_NLK[np.arange(8), i, texts_NL[:, i]]
        return p_N

    counts = np.bincount(samples.tokens_BL[:, given:] @ [4, 2, 1], minlength=8)
    assert law(w).sum() == pytest.approx(1, abs=1e-5) and chi_square_sigmas(counts, law(w)) < 4
    assert chi_square_sigmas(counts, law(0.0)) > 8, "guidance makes a difference that is seen"


def test_greedy_autoregression_with_buffers_is_that_of_the_plain_sampler():
    process, _ = PROCESSES["autoregressive"]
    canvas = prompted(4, 10)
    plain = Sampler(process, NETWORK.bind, SampleSettings(temperature=0.0, suppressed_ids=(VOCAB - 2,))).sample(PARAMS, canvas)
    assert (make("autoregressive", temperature=0.0).sample(PARAMS, canvas).tokens_BL == plain.tokens_BL).all()


@pytest.mark.parametrize("name", ["blocks", "autoregressive"])
def test_all_blocks_share_what_is_compiled(name):
    sampler = make(name)
    sampler.sample(PARAMS, blank_canvas(12, 2), seed=1)
    before = len(COMPILED)
    sampler.sample(PARAMS, blank_canvas(12, 2), seed=2)
    assert len(COMPILED) == before
    longer = make(name)
    before = len(COMPILED)
    longer.sample(PARAMS, blank_canvas(24, 2), seed=1)
    assert len(COMPILED) - before <= 5, "start, step, a block kept and the buffers, however many blocks"


@pytest.mark.parametrize("name", ["blocks", "autoregressive"])
def test_a_text_ends_where_it_ends(name):
    """The same draws up to the first end of document; what follows is filled with it, and finished rows cost no more calls."""
    canvas = prompted(3, 16, rows=1)
    plain = make(name).sample(PARAMS, canvas, seed=4)
    eos_id = int(plain.tokens_BL[0, 6])
    first = 3 + int(np.argmax(plain.tokens_BL[0, 3:] == eos_id))
    ended = make(name, eos_id=eos_id).sample(PARAMS, canvas, seed=4)
    assert (ended.tokens_BL[0, : first + 1] == plain.tokens_BL[0, : first + 1]).all()
    assert (ended.tokens_BL[0, first:] == eos_id).all()
    assert ended.evaluations < plain.evaluations and ended.steps < plain.steps
    made = ended.tokens_BL[0, 3 : first + 1]
    share = np.unique(made, return_counts=True)[1] / len(made)
    assert ended.entropy == pytest.approx(-np.sum(share * np.log(share)), abs=1e-9)


def test_a_row_that_has_ended_waits_for_the_others():
    canvas = prompted(3, 16, rows=6)
    sampler = make("blocks")
    plain = sampler.sample(PARAMS, canvas, seed=5)
    eos_id = int(plain.tokens_BL[0, 5])
    ended = make("blocks", eos_id=eos_id).sample(PARAMS, canvas, seed=5)
    for row in range(6):
        places = np.flatnonzero(plain.tokens_BL[row, 3:] == eos_id) + 3
        first = places[0] if len(places) else 16
        # A row of its own draws: the rest of its text does not change because a neighbour has ended.
        assert (ended.tokens_BL[row, :first] == plain.tokens_BL[row, :first]).all() and (ended.tokens_BL[row, first:] == eos_id).all()


def test_prompts_of_a_batch_with_an_empty_one_are_read():
    """The row without a prompt ends at its first token: no piece is made within the other's prompt any more, and it is remembered."""
    tokens_BL, given_B = prompted(8, 14, rows=2).tokens_BL, np.array([0, 8])
    condition_mask_BL = np.arange(14) < given_B[:, None]
    canvas = Canvas(tokens_BL, condition_mask_BL, (~condition_mask_BL).astype(np.float32))
    eos_id = int(make("autoregressive").sample(PARAMS, canvas, seed=2).tokens_BL[0, 0])
    fast, slow = (make("autoregressive", eos_id=eos_id, cached=cached).sample(PARAMS, canvas, seed=2) for cached in (True, False))
    assert (fast.tokens_BL[0] == eos_id).all() and (fast.tokens_BL == slow.tokens_BL).all()
    np.testing.assert_allclose(fast.confidence_BL, slow.confidence_BL, atol=1e-4)


def test_states_and_trace_of_blocks():
    """The live view and the page see the whole canvas; the last state is the sample; the trace replays."""
    sampler, canvas = make("blocks"), prompted(5, 12)
    states = list(sampler.states(PARAMS, canvas, seed=6))
    samples = sampler.sample(PARAMS, canvas, seed=6)
    assert (states[-1].tokens_BL == samples.tokens_BL).all() and (states[-1].fixed_BL == samples.fixed_BL).all()
    assert [s.step for s in states] == list(range(len(states))) and states[0].masked_BL.sum() == 3 * 7
    assert all((s.tokens_BL[:, :5] == canvas.tokens_BL[:, :5]).all() for s in states) and not states[-1].masked_BL.any()
    made, trace = record(sampler, PARAMS, canvas, seed=6)
    assert (made.tokens_BL == samples.tokens_BL).all() and replay(trace, sampler, PARAMS) == len(states)


@pytest.mark.parametrize("name", [pytest.param("blocks", marks=pytest.mark.slow), "autoregressive"])
def test_weights_that_lie_on_a_mesh(name):
    """As a run on several devices leaves them, split or copied: the same tokens."""
    mesh = jax.make_mesh((4,), ("any",), axis_types=(jax.sharding.AxisType.Auto,))
    canvas = prompted(3, 8)
    alone = make(name).sample(PARAMS, canvas, seed=9)

    def place(leaf):
        split = leaf.ndim and leaf.shape[-1] % 4 == 0
        return jax.device_put(leaf, jax.NamedSharding(mesh, jax.P(*(None,) * (leaf.ndim - 1), "any") if split else jax.P()))

    assert (make(name).sample(jax.tree.map(place, PARAMS), canvas, seed=9).tokens_BL == alone.tokens_BL).all()


# --- a sliding window ----------------------------------------------------------------------------------------------------------

CHAIN_KK = np.array([[0.7, 0.2, 0.1], [0.1, 0.3, 0.6], [0.5, 0.1, 0.4]])
FIRST_K = np.array([0.5, 0.2, 0.3])


def chain_bind(params, segments_BL, positions_BL, attention):
    """Exact p(x_i | shown) of a window of two tokens of a Markov chain that starts where the first position says it starts."""

    def denoise(z_BL, t_BL):
        joint_KK = FIRST_K[:, None] * CHAIN_KK
        first_K, second_K = jnp.log(joint_KK.sum(axis=1)), jnp.log(joint_KK.sum(axis=0))
        left_BK = jnp.where(z_BL[:, 1:] == 3, first_K, jnp.log(joint_KK / joint_KK.sum(axis=0)).T[jnp.minimum(z_BL[:, 1], 2)])
        right_BK = jnp.where(z_BL[:, :1] == 3, second_K, jnp.log(CHAIN_KK)[jnp.minimum(z_BL[:, 0], 2)])
        return jnp.pad(jnp.stack([left_BK, right_BK], axis=1), ((0, 0), (0, 0), (0, 1)), constant_values=-1e9)

    return Bound(denoise)


def test_a_sliding_window_continues_a_chain_to_any_length():
    sampler = StrideSampler(Masked(4, 3), chain_bind, SampleSettings(rule="random", steps=2), window=2, stride=1)
    samples = sampler.sample((), blank_canvas(4, 6000), seed=7)
    p_4 = np.einsum("a,ab,bc,cd->abcd", FIRST_K, CHAIN_KK, CHAIN_KK, CHAIN_KK).ravel()
    counts = np.bincount(np.ravel_multi_index(tuple(samples.tokens_BL.T), (3,) * 4), minlength=81)
    assert chi_square_sigmas(counts, p_4) < 4
    assert samples.evaluations == samples.steps == 4  # two for the first window, one for each token after it


def test_a_window_keeps_the_prompt_and_ends():
    sampler = StrideSampler(Masked(4, 3), chain_bind, SampleSettings(rule="random", steps=2), window=2, stride=2, eos_id=2)
    canvas = Canvas(
        np.full((50, 7), 1, np.int32), np.tile(np.arange(7) < 3, (50, 1)), np.tile(np.arange(7) >= 3, (50, 1)).astype(np.float32)
    )
    tokens_BL = sampler.sample((), canvas, seed=8).tokens_BL
    assert (tokens_BL[:, :3] == 1).all() and tokens_BL.shape == (50, 7) and (tokens_BL < 3).all()
    ends_BL = np.cumsum(tokens_BL[:, 3:] == 2, axis=1) > 0
    assert ends_BL.any() and (tokens_BL[:, 3:][ends_BL] == 2).all()


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: Sampler(PROCESSES["blocks"][0], NETWORK.bind, SampleSettings()), "sampled in blocks; use BlockSampler"),
        (lambda: BlockSampler(Masked(4, 3), NETWORK, SampleSettings()), "the length of a block of process masked, is None"),
        (lambda: make("autoregressive", guidance=1.0), "leave guidance at 0"),
        (
            lambda: make("blocks").sample(
                PARAMS, Canvas(np.zeros((1, 8), np.int32), np.arange(8)[None] > 5, (np.arange(8)[None] <= 5).astype(np.float32))
            ),
            "left to right",
        ),
        (
            lambda: make("blocks").sample(
                PARAMS, Canvas(np.zeros((1, 8), np.int32), np.zeros((1, 8), bool), np.full((1, 8), 0.5, np.float32))
            ),
            "does not edit text",
        ),
        (lambda: StrideSampler(Masked(4, 3), chain_bind, SampleSettings(), window=4, stride=5), "stride is 5"),
        (
            lambda: StrideSampler(Masked(4, 3), chain_bind, SampleSettings(), window=4, stride=2).sample((), blank_canvas(4)),
            "fits into the window",
        ),
        (
            lambda: StrideSampler(PROCESSES["autoregressive"][0], NETWORK.bind, SampleSettings(), window=4, stride=2),
            "does not attend to a whole window",
        ),
    ],
)
def test_what_does_not_suit_is_refused(build, message):
    with pytest.raises(InputError, match=message):
        build()
