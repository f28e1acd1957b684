"""Likelihoods of continuations: equal to enumeration where that is possible, unbiased with honest errors where masks are drawn."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dlmjax.diffusion.declarations import Capabilities
from dlmjax.diffusion.oracle import enumeration as oracle
from dlmjax.diffusion.processes.autoregressive import Autoregressive
from dlmjax.diffusion.processes.blocks import Blockwise
from dlmjax.diffusion.processes.masked import Llada, Masked, MaskedCount
from dlmjax.diffusion.processes.uniform import Uniform
from dlmjax.diffusion.schedules import Cosine
from dlmjax.errors import InputError
from dlmjax.evaluation.conditional import ConditionalScorer, Request, draw_masks, row_width, split
from dlmjax.evaluation.likelihood import Evaluator
from dlmjax.sampling import Canvas, Sampler, SampleSettings
from tests.diffusion.battery import TOKENS
from tests.diffusion.cases import CASES
from tests.sampling.toy import Bound, Law

LAW = Law(symbols=3, length=4, sharpness=1.5)
LONG = Law(symbols=2, length=6, sharpness=1.0)


class Loose(Uniform):
    """A process whose loss bounds nothing."""

    capabilities = Capabilities(is_bound=False)


def exact_log_p(law, context, continuation) -> float:
    """log p(continuation | context) of the first tokens of a text, by adding up the law."""

    def mass(given):
        return law.p_N[(law.texts_NL[:, : len(given)] == np.asarray(given, int)).all(axis=1)].sum()

    return float(np.log(mass([*context, *continuation]) / mass(context)))


def bind_law(law):
    """`Network.bind` of the law's exact denoiser, in rows of any width and under the mask of any process."""

    def bind(params, segments_BL, positions_BL, attention):
        shown_BL = segments_BL[:, : law.length] > 0

        def answers(known_BL):
            return law.denoise(jnp.where(shown_BL, known_BL, law.mask_id))

        def denoise(z, t_BL):
            width, z = z.shape[1], z[:, : law.length]
            place_L = jnp.arange(law.length)
            if not attention.sequential:
                logits = answers(z)
            elif attention.causal:
                read = jnp.pad(z[:, 1:], ((0, 0), (0, 1)))
                logits = jnp.stack([answers(jnp.where(place_L < i, read, law.mask_id))[:, i] for i in range(law.length)], axis=1)
            else:
                logits = []
                for i in range(law.length):
                    block_L = place_L // attention.block_size - i // attention.block_size
                    known = jnp.where(block_L < 0, z[..., 1], jnp.where(block_L == 0, z[..., 0], law.mask_id))
                    logits.append(answers(known)[:, i])
                logits = jnp.stack(logits, axis=1)
            return jnp.pad(logits * params, ((0, 0), (0, width - law.length), (0, 0)))

        return Bound(denoise)

    return bind


def scorer_of(process, law=LAW, **options) -> ConditionalScorer:
    return ConditionalScorer(process, bind_law(law), longest=16, **options)


def requests_of(law, given: int, count: int, every: int = 1, group: int = 0) -> list[Request]:
    """Every text of the distribution: its first tokens as context, `count` more as continuation."""
    return [Request(text[:given], text[given : given + count], group) for text in law.texts_NL[::every]]


@pytest.fixture(scope="module")
def masked():
    return scorer_of(LAW.process())


@pytest.mark.parametrize("given", [0, 1, 3])
def test_all_masks_of_few_tokens_give_the_exact_likelihood(masked, given):
    """With the exact denoiser every order of writing is the chain rule, so the bound has no gap; and no mask is left to chance."""
    requests = requests_of(LAW, given, 4 - given, every=5)
    for request, score in zip(requests, masked(1.0, requests), strict=True):
        assert score.log_likelihood == pytest.approx(exact_log_p(LAW, request.context, request.continuation), abs=1e-5)
        assert (score.stderr, score.tokens, score.passes) == (0, 4 - given, 2 ** (4 - given) - 1)


@pytest.mark.parametrize("process", [MaskedCount, lambda *ids: Llada(*ids, eps=0.2)])
def test_the_form_is_that_of_the_orders_whatever_noise_was_trained(masked, process):
    requests = requests_of(LAW, 1, 3, every=20)
    scores = scorer_of(process(LAW.vocab, LAW.mask_id))(1.0, requests)
    assert [s.log_likelihood for s in scores] == [s.log_likelihood for s in masked(1.0, requests)]


def test_a_network_is_conditioned_on_the_time_of_its_own_schedule():
    """A cosine schedule masks the share k/n at the t that the network is conditioned on, in the conditional and in the windowed k-form."""
    received = []

    def bind(params, segments_BL, positions_BL, attention):
        def denoise(z, t_BL):
            jax.debug.callback(lambda z, t: received.append((np.array(z), np.array(t))), z, t_BL)
            return jnp.zeros((*z.shape, LAW.vocab))

        return Bound(denoise)

    process = Masked(LAW.vocab, LAW.mask_id, Cosine())
    text = np.zeros(4, np.int32)
    ConditionalScorer(process, bind, longest=16, draws=8)(jnp.float32(1), [Request(text[:0], text)])
    batch = {name: np.ones((1, 4), np.int32) for name in ("segments", "positions")}
    batch |= {"tokens": text[None], "scored": np.ones((1, 4), bool), "row": np.zeros(1, np.int32)}
    Evaluator(process, bind, nodes=4, rule="count").measure(jnp.float32(1), [batch])
    jax.effects_barrier()
    seen = {
        (int(k), round(float(t), 4)) for z_BL, t_BL in received for k, t in zip((z_BL == LAW.mask_id).sum(1), t_BL.max(1), strict=True) if k
    }
    assert {k for k, _ in seen} == {1, 2, 3, 4}
    for k, t in seen:
        assert float(process.schedule.noise(t)) == pytest.approx(k / 4, abs=1e-3)


@pytest.mark.parametrize("draws", [8, 16], ids=["strata of two draws", "strata of one k"])
def test_drawn_masks_are_unbiased_and_their_errors_honest(draws):
    """400 sets of masks for one text: their mean is the enumerated value, their spread what each of them says."""
    text = LONG.texts_NL[37]
    scores = scorer_of(LONG.process(), LONG, draws=draws)(1.0, [Request(text[:1], text[1:], group) for group in range(400)])
    values, errors = np.array([s.log_likelihood for s in scores]), np.array([s.stderr for s in scores])
    assert values.std() > 0.05 and {s.passes for s in scores} == {draws}
    assert abs(values.mean() - exact_log_p(LONG, text[:1], text[1:])) < 4 * values.std() / 20
    assert np.sqrt(np.mean(errors**2)) == pytest.approx(values.std(), rel=0.15)


def test_strata_vary_less_than_masks_of_any_number():
    """Against LLaDA's estimator, written out: a uniform k for each pass."""
    text, rng = LONG.texts_NL[37], np.random.default_rng(0)
    masks_MN = np.array(list(itertools.product([False, True], repeat=6)))[1:]
    shown_MN = np.where(masks_MN, LONG.mask_id, text)
    log_p_MN = np.take_along_axis(np.asarray(LONG.denoise(jnp.asarray(shown_MN))), text[None, :, None], axis=2)[..., 0]
    sums_M, size_M = np.sum(log_p_MN, axis=1, where=masks_MN), masks_MN.sum(axis=1)
    plain = []
    for _ in range(400):
        drawn = [rng.choice(np.flatnonzero(size_M == rng.integers(1, 7))) for _ in range(32)]
        plain.append(np.mean(6 / size_M[drawn] * sums_M[drawn]))
    ours = [s.log_likelihood for s in scorer_of(LONG.process(), LONG, draws=32)(1.0, [Request(text[:0], text, g) for g in range(400)])]
    assert np.mean(plain) == pytest.approx(np.mean(ours), abs=4 * np.std(plain) / 20)
    assert np.std(ours) < 0.7 * np.std(plain)


@pytest.mark.parametrize("count,draws", [(1, 1), (2, 3), (7, 127), (7, 126), (9, 18), (40, 128), (300, 128), (5, 2), (3, 1)])
def test_masks_cover_every_number_of_hidden_tokens_evenly(count, draws):
    rng = np.random.default_rng(count)
    masks = draw_masks(count, draws, rng.random((count, draws)), rng.random(draws))
    size_D = masks.masked_DN.sum(axis=1)
    assert size_D.min() >= 1 and len(size_D) <= draws and masks.share_S.sum() == pytest.approx(1)
    low_S, high_S = (count * (np.arange(len(masks.share_S)) + shift) / len(masks.share_S) for shift in (0, 1))
    if 2 * count <= draws or 2**count - 1 <= draws:
        for s in range(count):
            inside_DN = masks.masked_DN[masks.stratum_D == s]
            assert len(set(inside_DN.sum(axis=1))) == 1
            assert not masks.whole_S[s] or len(np.unique(inside_DN, axis=0)) == len(inside_DN)
        assert len({size_D[masks.stratum_D == s][0] for s in range(count)}) == count
        assert masks.whole_S.all() == (2**count - 1 <= draws)
    else:
        assert ((size_D > np.floor(low_S[masks.stratum_D])) & (size_D <= np.floor(high_S[masks.stratum_D]) + 1)).all()
        assert (np.bincount(masks.stratum_D) == min(draws, 2)).all()


def test_choices_of_one_question_share_their_masks():
    """Two texts of a chain that differ in one token: with common masks their difference varies less; equal texts get equal numbers."""
    chain = Law(symbols=2, length=6)
    chain.p_N = np.where(np.diff(chain.texts_NL, axis=1) == 0, 0.8, 0.2).prod(axis=1) / 2
    first, other = chain.texts_NL[18], chain.texts_NL[19]
    scorer = scorer_of(chain.process(), chain, draws=8)

    def differences(apart: int) -> np.ndarray:
        requests = [Request(first[:0], text, group + apart * i) for group in range(200) for i, text in enumerate((first, other))]
        return np.diff(np.array([s.log_likelihood for s in scorer(1.0, requests)]).reshape(-1, 2))

    assert np.std(differences(0)) < 0.7 * np.std(differences(1000))
    twice = scorer(1.0, [Request(first[:1], first[1:], 5), Request(first[:1], first[1:], 5), Request(first[:1], first[1:], 6)])
    assert twice[0] == twice[1] and twice[0].log_likelihood != twice[2].log_likelihood


def test_batches_and_neighbours_change_nothing():
    requests = [r for given in (0, 1, 2) for r in requests_of(LONG, given, 6 - given, every=9, group=given)]
    one = scorer_of(LONG.process(), LONG, draws=8)
    many = scorer_of(LONG.process(), LONG, draws=8, tokens=64, ways=4)
    together = [dataclasses.astuple(score) for score in one(1.0, requests)]
    np.testing.assert_allclose([dataclasses.astuple(score) for score in many(1.0, requests)], together, rtol=1e-6)
    np.testing.assert_allclose([dataclasses.astuple(one(1.0, [request])[0]) for request in requests], together, rtol=1e-6)
    assert many.spent.passes == 8 * len(requests) and many.spent.tokens == 8 * 6 * len(requests)
    assert many.spent.slots == 8 * many.spent.passes and many.spent.seconds > 0


def test_a_causal_process_is_scored_exactly_in_one_pass():
    requests = requests_of(LAW, 1, 3, every=7)
    scores = scorer_of(Autoregressive(LAW.vocab, bos_id=LAW.mask_id))(1.0, requests)
    for request, score in zip(requests, scores, strict=True):
        assert score.log_likelihood == pytest.approx(exact_log_p(LAW, request.context, request.continuation), abs=1e-5)
        assert (score.stderr, score.passes) == (0, 1)


@pytest.mark.parametrize("size,passes", [(1, 1), (2, 3), (4, 7)])
def test_blocks_are_scored_each_given_the_clean_text_before(size, passes):
    """A continuation that begins inside a block of two; one token a block is the chain rule."""
    requests = requests_of(LAW, 1, 3, every=7)
    for request, score in zip(requests, scorer_of(Blockwise(Masked(LAW.vocab, LAW.mask_id), size=size))(1.0, requests), strict=True):
        assert score.log_likelihood == pytest.approx(exact_log_p(LAW, request.context, request.continuation), abs=1e-5)
        assert (score.stderr, score.passes) == (0, passes)


def test_drawn_masks_of_blocks_are_unbiased():
    text, process = LONG.texts_NL[37], Blockwise(Masked(LONG.vocab, LONG.mask_id), size=4)
    scores = scorer_of(process, LONG, draws=6)(1.0, [Request(text[:0], text, group) for group in range(400)])
    values, errors = np.array([s.log_likelihood for s in scores]), np.array([s.stderr for s in scores])
    assert abs(values.mean() - exact_log_p(LONG, [], text)) < 4 * values.std() / 20
    assert np.sqrt(np.mean(errors**2)) == pytest.approx(values.std(), rel=0.2)


INTEGRATED = [next(case for case in CASES if str(case) == name) for name in ("uniform/linear", "hybrid/0.2", "genmd4")]
CLIPPED = next(case for case in CASES if str(case) == "uniform/clipped, posterior")


@pytest.mark.parametrize(
    ("case", "given"),
    [
        (INTEGRATED[0], 1),
        *(pytest.param(case, 1, marks=pytest.mark.nightly) for case in INTEGRATED[1:]),
        pytest.param(CLIPPED, 0, marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_other_noise_is_integrated_with_the_context_clean(case, given):
    """The exact denoiser leaves no gap for any text: what is left is the noise, and the few nodes. Clipped: with boundary terms, which
    the whole text has (of a context its denoiser would think that it is a little noisy)."""
    law = oracle.JointDistribution.random(TOKENS, 2, seed=3, sharpness=1.5)
    denoiser = case.denoiser(law)

    def bind(params, segments_BL, positions_BL, attention):
        def denoise(z, t_BL):
            logits = denoiser.logits(denoiser.hidden(z[:, :2], t_BL[:, :2]))
            return jnp.pad(logits, ((0, 0), (0, t_BL.shape[1] - 2), (0, 0)))

        return Bound(denoise)

    scorer = ConditionalScorer(case.process, bind, longest=16, draws=512, nodes=16)
    requests = [Request(text[:given], text[given:]) for text in law.sequences_Xn[6:]]
    exact_X = np.log(law.table[2] if given == 0 else law.table[2] / law.table[2].sum())
    for exact, score in zip(exact_X, scorer((), requests), strict=True):
        assert score.stderr < 0.41 and abs(score.log_likelihood - exact) < 4 * score.stderr + 0.01


def test_greedy_is_what_the_sampler_decodes():
    """From as many masks as there are tokens, the surest first: one continuation of each context is greedy."""
    sampler = Sampler(LAW.process(), bind_law(LAW), SampleSettings(steps=8, rule="confidence", temperature=0.0))
    scorer = scorer_of(LAW.process())
    tokens_BL = np.array([[a, 0, 0, 0] for a in range(3)], np.int32)
    condition_mask_BL = np.array([[True, False, False, False]] * 3)
    made_BL = sampler.sample(jnp.float32(1.0), Canvas(tokens_BL, condition_mask_BL, 1.0 - condition_mask_BL.astype(np.float32))).tokens_BL
    greedy = scorer.greedy(1.0, requests_of(LAW, 1, 3))
    assert [text.tolist() for text, right in zip(LAW.texts_NL, greedy, strict=True) if right] == made_BL.tolist()


@pytest.mark.parametrize(
    "process", [Autoregressive(LAW.vocab, bos_id=LAW.mask_id), Blockwise(Masked(LAW.vocab, LAW.mask_id), size=1)], ids=str
)
def test_greedy_from_left_to_right_takes_the_likeliest_next_token(process):
    expected = []
    for a in range(3):
        text = [a]
        while len(text) < 4:
            text.append(max(range(3), key=lambda token, text=text: exact_log_p(LAW, text, [token])))
        expected.append(text)
    greedy = scorer_of(process).greedy(1.0, requests_of(LAW, 1, 3))
    assert [text.tolist() for text, right in zip(LAW.texts_NL, greedy, strict=True) if right] == expected


def test_nothing_is_greedy_without_masks_and_everything_of_nothing():
    uniform = next(c for c in CASES if c.process.name == "uniform").process
    request = Request(np.array([1]), np.array([2]))
    assert ConditionalScorer(uniform, bind_law(LAW), longest=8).greedy((), [request]) == [False]
    empty = Request(np.array([1]), np.array([], int))
    scorer = scorer_of(LAW.process())
    assert scorer.greedy(1.0, [empty]) == [True]
    assert dataclasses.astuple(scorer(1.0, [empty])[0]) == (0.0, 0.0, 0, 0)


@pytest.mark.parametrize("count,overlap", [(5, 1), (16, 0), (17, 1), (40, 1), (40, 8), (41, 15)])
def test_long_texts_are_read_in_windows_that_predict_each_token_once(count, overlap):
    context, text = np.arange(100, 110), np.arange(count)
    pieces = split(context, text, 16, overlap)
    assert np.concatenate([piece for _, piece in pieces]).tolist() == text.tolist()
    assert all(len(before) + len(piece) <= 16 and len(piece) for before, piece in pieces)
    whole = np.concatenate([context, text])
    for before, piece in pieces:
        assert whole[10 + piece[0] - len(before) : 10 + piece[0]].tolist() == before.tolist()
    assert all(len(before) >= overlap for before, _ in pieces[1:])
    assert len(pieces) == 1 or len(pieces[-1][0]) + len(pieces[-1][1]) == 16


def test_widths_are_few_and_tight():
    widths = [row_width(n, 2400) for n in range(1, 2401)]
    assert len(set(widths)) <= 33 and all(width >= n for n, width in enumerate(widths, 1))
    assert np.mean([1 - n / width for n, width in enumerate(widths, 1) if n > 64]) < 0.12
    assert all(row_width(n, 2400, multiple=12) % 12 == 0 for n in range(1, 2401))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: scorer_of(LAW.process())(1.0, [Request(np.arange(3), np.zeros(15, int))]), "18 tokens, a row at most 16"),
        (lambda: scorer_of(LAW.process())(1.0, [Request(np.array([99]), np.array([1]))]), "from 1 to 99, .* 4 ids"),
        (lambda: split(np.arange(2), np.arange(9), 4, overlap=4), "overlap of 4 tokens conflicts with windows of 4"),
        (lambda: scorer_of(Loose(3)), "is not a likelihood bound"),
    ],
)
def test_what_cannot_be_scored_is_refused(make, message):
    with pytest.raises(InputError, match=message) as refused:
        make()
    assert "\n" not in str(refused.value)
