"""Likelihoods of samplers that reveal masks against their enumerated laws: every text's number, and that all texts sum to 1."""

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dlmjax.diffusion.oracle import enumeration as oracle
from dlmjax.diffusion.processes.autoregressive import Autoregressive
from dlmjax.diffusion.processes.blocks import Blockwise
from dlmjax.diffusion.processes.masked import Masked
from dlmjax.diffusion.schedules import Cosine
from dlmjax.errors import InputError
from dlmjax.evaluation.likelihood import Evaluator
from dlmjax.evaluation.paths import path_evaluator
from dlmjax.sampling.canvas import Canvas
from dlmjax.sampling.sampler import Sampler
from dlmjax.sampling.settings import SampleSettings
from tests.diffusion.battery import BOS, MASK, TOKENS, chi_square_sigmas
from tests.diffusion.cases import CASES
from tests.evaluation.test_conditional import bind_law
from tests.sampling.toy import Law

LAW = Law(symbols=2, length=4, sharpness=1.5)
BELIEFS = jnp.float32(0.6)  # what the exact logits are multiplied by: a network that is not consistent over orders
BLOCKS = Blockwise(Masked(LAW.vocab, LAW.mask_id), size=2)
nightly = pytest.mark.nightly


def windows(texts_WL, prompt=0, padding=0):
    """One batch. prompt: first tokens that condition; padding: last tokens that are padding."""
    tokens_WL = np.asarray(texts_WL, np.int32)
    segments_WL = np.ones_like(tokens_WL)
    segments_WL[:, tokens_WL.shape[1] - padding :] = 0
    index_L = np.arange(tokens_WL.shape[1], dtype=np.int32)
    batch = {"tokens": tokens_WL, "segments": segments_WL, "positions": np.broadcast_to(index_L, tokens_WL.shape)}
    return [{**batch, "scored": (segments_WL > 0) & (index_L >= prompt), "row": np.arange(len(tokens_WL), dtype=np.int32)}]


def log_p(process, likelihood, *, law=LAW, prompt=0, texts=None, beliefs=BELIEFS, **options):
    """log p of every text by the code under test."""
    evaluator = path_evaluator(process, bind_law(law), likelihood=likelihood, **options)
    return -evaluator.measure(beliefs, windows(law.texts_NL if texts is None else texts, prompt)).nats_W


# --- the enumerated law of a sampler ---------------------------------------------------------------------------------------------------


def probabilities(z, law=LAW, beliefs=float(BELIEFS)):
    """p(x_i | z) of the network, from its definition. -> [L, K]"""
    logits_LV = np.asarray(law.denoise(jnp.asarray([z])), np.float64)[0, :, : law.symbols] * beliefs
    weight_LK = np.exp(logits_LV - logits_LV.max(axis=1, keepdims=True))
    return weight_LK / weight_LK.sum(axis=1, keepdims=True)


def tempered(p_K, temperature):
    weight_K = p_K ** (1 / temperature)
    return weight_K / weight_K.sum()


def next_positions(p_LK, masked, rule, count, value):
    """The positions that a rule reveals next, equal scores from left to right."""
    scores = {
        "left_to_right": lambda i: 0.0,
        "entropy": lambda i: float(np.sum(p_LK[i] * np.log(p_LK[i]))),
        "margin": lambda i: float(np.diff(np.sort(p_LK[i])[-2:])[0]),
    }
    score = scores.get(rule, lambda i: float(p_LK[i].max()))
    best_first = sorted(masked, key=lambda i: (-round(score(i), 6), i))
    return [i for i in masked if p_LK[i].max() >= value or i == best_first[0]] if rule == "threshold" else best_first[:count]


def sampled_law(rule, count=1, temperature=1.0, value=None, start=(), blocks=None, law=LAW):
    """text -> probability: every state that the sampler can reach, from `start` shown, block after block where there are blocks."""
    now = {(*start, *(law.mask_id,) * (law.length - len(start))): 1.0}
    while any(law.mask_id in z for z in now):
        after = {}
        for z, p in now.items():
            masked = [i for i in range(law.length) if z[i] == law.mask_id]
            if blocks:
                masked = [i for i in masked if i // blocks == masked[0] // blocks]
            p_LK = probabilities(z, law)
            new = next_positions(p_LK, masked, rule, count, value)
            for tokens in itertools.product(range(law.symbols), repeat=len(new)):
                to, mass = list(z), p
                for i, token in zip(new, tokens, strict=True):
                    to[i], mass = token, mass * tempered(p_LK[i], temperature)[token]
                after[tuple(to)] = after.get(tuple(to), 0.0) + mass
        now = after
    return now


ORDERS = [
    ("confidence", {}),
    ("margin", {"count": 2}),
    ("entropy", {"temperature": 0.5}),
    ("threshold", {"value": 0.6, "temperature": 1.3}),
    ("left_to_right", {"count": 3}),
    *(pytest.param(*one, marks=nightly) for one in (("confidence", {"count": 3}), ("entropy", {"count": 2}), ("margin", {}))),
]


@pytest.mark.parametrize("blocks", [None, 2], ids=["row", "blocks"])
@pytest.mark.parametrize("rule, values", ORDERS, ids=str)
def test_an_order_has_the_law_of_its_sampler(rule, values, blocks):
    """With nothing shown, and with a prompt that ends inside a block: the number of each text, and that they sum to 1."""
    written = ", ".join(f"{name}={value}" for name, value in values.items())
    process = BLOCKS if blocks else LAW.process()
    evaluator = path_evaluator(process, bind_law(LAW), likelihood=f"order:{rule}({written})" if values else f"order:{rule}")
    for start in ((), (1,)):
        law = sampled_law(rule, **values, start=start, blocks=blocks)
        texts_NL = np.asarray([text for text in law])
        found_N = -evaluator.measure(BELIEFS, windows(texts_NL, prompt=len(start))).nats_W
        np.testing.assert_allclose(found_N, np.log([*law.values()]), atol=1e-6)
        assert math.fsum(np.exp(found_N)) == pytest.approx(1, abs=1e-6)


def test_equal_scores_are_revealed_from_left_to_right():
    """All positions are equally sure at first, and of a copy each is: the law of `sampled_law`, whose ties go to the left."""
    flat = Law(symbols=2, length=4)
    flat.p_N = np.where(flat.texts_NL[:, 0] == flat.texts_NL[:, 3], 3.0, 1.0) / 32
    for rule in ("confidence", "margin", "entropy"):
        law = sampled_law(rule, count=2, law=flat)
        found_N = log_p(flat.process(), f"order:{rule}(count=2)", law=flat, texts=[*law])
        np.testing.assert_allclose(found_N, np.log([*law.values()]), atol=1e-6)


@pytest.mark.parametrize(
    "order, settings, likelihood",
    [
        ("confidence", {"steps": 2}, "order:confidence(count=2)"),
        ("threshold(value=0.6)", {"temperature": 1.3}, "order:threshold(value=0.6, temperature=1.3)"),
        ("confidence", {"steps": 4, "stop": "exit(bound=1)"}, "order:confidence(stop=exit(bound=1))"),
        pytest.param("entropy", {"steps": 4, "temperature": 0.5}, "order:entropy(temperature=0.5)", marks=nightly),
    ],
)
def test_the_sampler_draws_texts_with_these_likelihoods(order, settings, likelihood):
    canvas = Canvas(np.full((8000, 4), LAW.mask_id, np.int32), np.zeros((8000, 4), bool), np.ones((8000, 4), np.float32))
    sampler = Sampler(LAW.process(), bind_law(LAW), SampleSettings(rule=order, suppressed_ids=(LAW.mask_id,), **settings))
    counts_N = np.bincount(LAW.index(sampler.sample(BELIEFS, canvas, seed=1).tokens_BL), minlength=16)
    assert chi_square_sigmas(counts_N, np.exp(log_p(LAW.process(), likelihood))) < 4
    assert chi_square_sigmas(counts_N, np.exp(log_p(LAW.process(), "order:left_to_right"))) > 4, "the test can tell two rules apart"


@pytest.mark.parametrize("likelihood", ["order:margin", "subsets", "tube"])
def test_seeded_blocks_are_refused(likelihood):
    """Their sampler draws the seed of a block before its rule begins; masking it too is the law of another sampler."""
    seeded = Blockwise(Masked(LAW.vocab, LAW.mask_id), size=2, seed_bos=0)
    with pytest.raises(InputError, match="predicts the seed of a block before the rest; give --likelihood nelbo"):
        path_evaluator(seeded, bind_law(LAW), likelihood=likelihood)
    path_evaluator(seeded, bind_law(LAW), likelihood="order:left_to_right")  # the seed comes first there, too


def test_a_stop_that_draws_is_on_the_path():
    """A bound of 0 leaves one token a step, a large one reveals all at once, others lie between; the texts sum to 1."""
    one, all_at_once = (log_p(LAW.process(), f"order:margin(count={count})") for count in (1, LAW.length))
    found = {bound: log_p(LAW.process(), f"order:margin(stop=exit(bound={bound}))") for bound in (0, 1, 100)}
    np.testing.assert_allclose(found[0], one, atol=1e-6)
    np.testing.assert_allclose(found[100], all_at_once, atol=1e-6)
    assert math.fsum(np.exp(found[1])) == pytest.approx(1, abs=1e-6)
    assert min(np.abs(found[1] - one).max(), np.abs(found[1] - all_at_once).max()) > 1e-3
    for stop in ("prophet", "sched", "stable"):
        with pytest.raises(InputError, match=f"stop {stop} takes most likely tokens"):
            log_p(LAW.process(), f"order:margin(stop={stop})")


REVEALED = [
    case
    for case in CASES
    if case.process.bound is case.process and case.process.capabilities.prior_mask_id is not None and str(case) != "mixed/constant"
]
EVERY = {"masked/linear", "hybrid/0.2", "genmd4", "score/mask, linear"}


def bind_case(case, law):
    denoiser = case.denoiser(law)
    return lambda params, segments_BL, positions_BL, attention: denoiser


@pytest.mark.parametrize("case", [pytest.param(case, marks=() if str(case) in EVERY else nightly) for case in REVEALED], ids=str)
def test_exact_denoisers_of_all_processes_with_masks_give_the_law_itself(case):
    """One token a step, whatever the rule, and over all orders: the chain rule. So p(x), and with blocks of one token likewise. In float64
    to its rounding: the 1e-6 of float32 is that of the network's log-probabilities, and nothing of the recursion."""
    if case.process.attention.block_size:
        pytest.skip("the battery's own blocks; blocks are above")
    law = oracle.JointDistribution.random(TOKENS, 2, seed=5, sharpness=1.5)
    for likelihood, wide, atol in (
        ("order:confidence", True, 1e-12),
        ("order:entropy", False, 1e-6),
        ("subsets", False, 1e-6),
        ("subsets", True, 1e-12),
    ):
        with jax.enable_x64(wide):
            evaluator = path_evaluator(case.process, bind_case(case, law), likelihood=likelihood)
            found_X = -evaluator.measure((), windows(law.sequences_Xn)).nats_W
        np.testing.assert_allclose(found_X, np.log(law.probability_X), atol=atol, err_msg=f"{likelihood}, float64 {wide}")


# --- over all orders -------------------------------------------------------------------------------------------------------------------


def over_orders(text, blocks=None, start=0, temperature=1.0, law=LAW):
    """[log p(x | order) of each set in every order], by listing the orders. -> list of arrays"""
    sets = [list(range(start, law.length))]
    if blocks:
        sets = [[i for i in range(b, b + blocks) if i >= start] for b in range(0, law.length, blocks)]
    found = []
    for part in filter(None, sets):
        values = []
        for order in itertools.permutations(part):
            z = [*text[: part[0]], *(law.mask_id,) * (law.length - part[0])]
            value = 0.0
            for i in order:
                value += math.log(tempered(probabilities(z)[i], temperature)[text[i]])
                z[i] = text[i]
            values.append(value)
        found.append(np.asarray(values))
    return found


def mean_of_orders(sets) -> float:
    return sum(float(np.logaddexp.reduce(values) - math.log(len(values))) for values in sets)


@pytest.mark.parametrize("blocks, prompt, temperature", [(None, 0, 1.0), (None, 1, 0.7), (2, 0, 1.0), (2, 1, 1.0), (2, 0, 0.7)])
def test_subsets_are_the_mean_over_all_orders(blocks, prompt, temperature):
    texts_NL = LAW.texts_NL[:: 3 if prompt else 1]
    process, name = BLOCKS if blocks else LAW.process(), "subsets" if temperature == 1 else f"subsets(temperature={temperature})"
    found_N = log_p(process, name, prompt=prompt, texts=texts_NL)
    truth_N = [mean_of_orders(over_orders(list(text), blocks, prompt, temperature)) for text in texts_NL]
    np.testing.assert_allclose(found_N, truth_N, atol=1e-6)
    if not prompt:
        assert math.fsum(np.exp(found_N)) == pytest.approx(1, abs=1e-6)


def test_windows_of_unequal_lengths_share_a_batch():
    """Three, two and no scored tokens beside a full one: padding and context change nothing of the others."""
    evaluator, text = path_evaluator(LAW.process(), bind_law(LAW), likelihood="subsets"), LAW.texts_NL[5]
    batch = windows(np.tile(text, (4, 1)))[0]
    batch["scored"][1, :1] = batch["scored"][2, :2] = batch["scored"][3, :] = False
    measured = evaluator.measure(BELIEFS, [batch])
    truth = [mean_of_orders(over_orders(list(text), None, start)) for start in (0, 1, 2)]
    np.testing.assert_allclose(-measured.nats_W, truth, atol=1e-6)
    assert measured.tokens_W.tolist() == [4, 3, 2] and measured.calls == pytest.approx((15 + 7 + 3) / 3)


def test_the_bound_is_above_and_the_tube_below():
    """Forty windows of each text: the NELBO has the mean over orders of -log p(x | order), subsets lies below it, and the tube has its own
    mean, below that, as psi and p are independent."""
    copies = 40
    orders = [over_orders(list(text))[0] for text in LAW.texts_NL]
    evaluator = path_evaluator(LAW.process(), bind_law(LAW), likelihood="tube(orders=4)", seed=3)
    nelbo = Evaluator(LAW.process(), bind_law(LAW), nodes=8, draws=8)
    tube, bound = (one.measure(BELIEFS, windows(np.repeat(LAW.texts_NL, copies, axis=0))).nats_W for one in (evaluator, nelbo))
    random, truth = np.random.default_rng(0), []
    for p_O in np.exp(orders):
        psi_N = random.choice(p_O, size=(20000, 4)).mean(axis=1)
        truth.append(-(np.log(psi_N) - 1 + p_O.mean() / psi_N).mean())
    for found_W, expected in ((tube, truth), (bound, [-values.mean() for values in orders])):
        error_W = found_W - np.repeat(expected, copies)
        assert abs(error_W.mean()) < 4 * error_W.std() / math.sqrt(len(error_W)) + 1e-4
    exact = [-mean_of_orders([values]) for values in orders]
    assert (np.asarray(truth) < exact).all() and (np.asarray([-values.mean() for values in orders]) > exact).all()


# --- times, batches, refusals ----------------------------------------------------------------------------------------------------------


def test_batches_and_padding_change_nothing():
    evaluator = path_evaluator(LAW.process(Cosine()), bind_law(LAW), likelihood="order:threshold(value=0.6)")
    whole = evaluator.measure(BELIEFS, windows(LAW.texts_NL))
    (batch,) = windows(LAW.texts_NL)
    parts = [{name: array[i : i + 5] for name, array in batch.items()} for i in range(0, 16, 5)]
    split = evaluator.measure(BELIEFS, parts)
    assert np.array_equal(whole.nats_WJD, split.nats_WJD) and whole.calls == split.calls
    result = evaluator.result(whole)
    assert (result.rule, result.sign, result.likelihood) == ("exact", "=", "order:threshold(value=0.6)")
    assert result.summary().startswith("-log p, order:threshold(value=0.6) = ") and 1 <= result.calls_per_token < 4


def test_one_and_eight_devices_give_the_same_bits():
    """Blocks, whose sets are parts of rows, without implicit transfers."""
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))

    def put(batch):
        return jax.device_put(batch, {n: jax.NamedSharding(mesh, jax.P("data", *[None] * (a.ndim - 1))) for n, a in batch.items()})

    for likelihood in ("order:margin", "subsets", "tube(orders=2)"):
        one, eight = (path_evaluator(BLOCKS, bind_law(LAW), likelihood=likelihood, put_batch=how) for how in (None, put))
        params = jax.device_put(BELIEFS, jax.NamedSharding(mesh, jax.P()))
        with jax.transfer_guard("disallow"):
            found = eight.measure(params, windows(LAW.texts_NL))
        np.testing.assert_array_equal(found.nats_WJD, one.measure(BELIEFS, windows(LAW.texts_NL)).nats_WJD)


def test_the_network_is_given_the_times_of_the_sampler():
    """A network that reads t and says nothing else: the likelihood is that of the sampler's times, all the way."""

    class Timed:
        def __init__(self, inner, params):
            self.inner, self.params = inner, params

        def __getattr__(self, name):
            return getattr(self.inner, name)

        def hidden(self, z, t_BL):
            return self.inner.hidden(z, t_BL) + jnp.where(jnp.arange(LAW.vocab) == 0, 2 * t_BL[..., None], 0.0)

    def bind(params, *args, **kwargs):
        return Timed(bind_law(LAW)(params, *args, **kwargs), params)

    evaluator = path_evaluator(LAW.process(), bind, likelihood="order:left_to_right")
    found_N = -evaluator.measure(BELIEFS, windows(LAW.texts_NL)).nats_W
    truth_N = []
    for text in LAW.texts_NL:
        value = 0.0
        for i in range(4):
            p_K = probabilities([*text[:i], *(LAW.mask_id,) * (4 - i)])[i] * np.exp([2 * (4 - i) / 4, 0.0])
            value += math.log(p_K[text[i]] / p_K.sum())
        truth_N.append(value)
    np.testing.assert_allclose(found_N, truth_N, atol=1e-6)


REFUSED = [
    ("order:confidence(on=drawn)", "depend on the drawn tokens"),
    ("order:threshold(value=0.5, on=drawn)", "depend on the drawn tokens"),
    ("order:confidence(remask=True)", "leave remask and noise out"),
    ("order:margin(noise=0.1)", "leave remask and noise out"),
    ("order:random", "many paths; give subsets or tube"),
    ("order:ancestral", "give nelbo"),
    ("order:confidence(temperature=0)", "at temperature 0 each context has one text"),
    ("subsets(temperature=0.0)", "at temperature 0"),
    ("order:confidence(top_p=0.9)", "with top_p most texts have probability 0"),
    ("order:confidence(temperature=-1)", "temperature is -1"),
    ("order:threshold(value=1.5)", "must lie in"),
    ("order:threshold(value=0.5, count=2)", "has no value 'count'"),
    ("order:margin(value=0.5)", "has no value 'value'"),
    ("order:margin(count=0)", "count is 0"),
    ("order:confidnce", "did you mean 'confidence'"),
    ("order", "requires a rule"),
    ("confidence", "write order:confidence"),
    ("tube:confidence", "which only order has"),
    ("nelbo(nodes=4)", "takes no values"),
    ("tube(orders=0)", "orders is 0"),
    ("sets", "unknown --likelihood"),
    ("order:confidence(", "cannot read"),
    ("", "cannot read"),
]


@pytest.mark.parametrize("likelihood, message", REFUSED)
def test_what_has_no_likelihood_is_refused_by_name(likelihood, message):
    with pytest.raises(InputError, match=message) as refusal:
        path_evaluator(LAW.process(), LAW.bind, likelihood=likelihood)
    assert "\n" not in str(refusal.value)


def test_processes_without_masks_in_place_are_refused():
    for case in CASES:
        if case.process.capabilities.prior_mask_id is None and not case.process.attention.causal:
            with pytest.raises(InputError, match=f"process {case.process.name} has no mask; .* give --likelihood nelbo"):
                path_evaluator(case.process, LAW.bind, likelihood="order:confidence")
    clipped = next(case.process for case in CASES if str(case) == "mixed/constant")
    with pytest.raises(InputError, match="leaves wrong tokens there"):
        path_evaluator(clipped, LAW.bind, likelihood="subsets")
    with pytest.raises(InputError, match="process autoregressive, whose --likelihood nelbo is exact"):
        path_evaluator(Autoregressive(MASK + 1, bos_id=BOS), LAW.bind, likelihood="order:left_to_right")
    long = Law(symbols=2, length=11)
    with pytest.raises(InputError, match="at most 10 scored tokens in a window, and one has 11"):
        path_evaluator(long.process(), long.bind, likelihood="subsets").measure(1.0, windows(long.texts_NL[:2]))
