"""A denoiser of two networks (ADLM): what it computes and costs, that its bound is one, and what the anchors' loss adds."""

import dataclasses
import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from dlmjax.diffusion import Anchored, Masked, Objective, make_weighting
from dlmjax.diffusion.oracle import claims
from dlmjax.errors import InputError
from dlmjax.models import AnchoredNetwork, TrainableNetwork, build_network
from dlmjax.models.anchored import AnchoredDenoiser
from dlmjax.models.flops import training_flops_per_token
from tests.models import tiny

TOKENS, MASK, LENGTH = 3, 3, 3
# Learned positions: with rotary ones alone, every position of a row of masks has the same output, and no such network is the exact one.
PLAIN = tiny.spec(depth=3, vocab=TOKENS + 1, positions="learned", max_positions=LENGTH)
SPEC = dataclasses.replace(PLAIN, anchor_depth=1)
NETWORK = build_network(SPEC)
# Every state of three tokens, the mask included.
STATES = np.asarray(list(itertools.product(range(TOKENS + 1), repeat=LENGTH)), np.int32)
LAW = claims.dependent(TOKENS, LENGTH, seed=3)


@pytest.fixture(scope="module")
def params():
    return tiny.lively(NETWORK.init(jax.random.key(0)))


def bound_to(params, rows=(TOKENS + 1) ** LENGTH):
    ones_BL = jnp.ones((rows, LENGTH), jnp.int32)
    return NETWORK.bind(params, ones_BL, jnp.broadcast_to(jnp.arange(LENGTH), ones_BL.shape))


@jax.jit
def log_p(params):
    """log p(x_i | z) of both parts at every state, [Z, L, K] each."""
    denoiser = bound_to(params)
    states = denoiser.both(jnp.asarray(STATES), jnp.zeros(STATES.shape))
    return [jax.nn.log_softmax(denoiser.logits(hidden_BLD)[..., :TOKENS]) for hidden_BLD in states]


def test_the_second_part_reads_the_mean_embedding_of_the_first(params):
    denoiser, z_BL, t_BL = bound_to(params), jnp.asarray(STATES), jnp.zeros(STATES.shape)
    hidden_BLD, anchor_BLD = denoiser.both(z_BL, t_BL)
    pi_BLV = jax.nn.softmax(denoiser.logits(anchor_BLD))
    mean_BLD = jnp.dot(pi_BLV, params["embedding"]["table"], precision="highest")
    np.testing.assert_allclose(hidden_BLD, denoiser.denoiser.hidden(z_BL, t_BL, mean_BLD), atol=2e-5)
    assert np.abs(hidden_BLD - denoiser.denoiser.hidden(z_BL, t_BL, 0 * mean_BLD)).max() > 0.01
    np.testing.assert_array_equal(denoiser.hidden(z_BL, t_BL), hidden_BLD)


def test_both_parts_are_counted():
    """Those of the same layers in one network, and a norm, a table of positions and the matrix that reads pi; pi and its mean are computed
    at all positions."""
    plain = build_network(PLAIN)
    width, vocab = SPEC.width, SPEC.vocab
    assert isinstance(NETWORK, AnchoredNetwork) and isinstance(NETWORK, TrainableNetwork)
    assert NETWORK.parameter_count == plain.parameter_count + width**2 + width + LENGTH * width
    assert NETWORK.parameter_count == sum(leaf.size for leaf in jax.tree.leaves(NETWORK.init(jax.random.key(0))))
    flops = NETWORK.training_flops_per_token(16, 0.5)
    assert flops == training_flops_per_token(plain.spec, 16, 0.5) + 3 * 2 * (width**2 + 2 * width * vocab)
    trees = (NETWORK.axes, NETWORK.kinds, NETWORK.lr_multipliers, NETWORK.wd_multipliers, NETWORK.eps_multipliers)
    shapes = jax.tree.structure(NETWORK.abstract())
    assert all(jax.tree.structure(tree, is_leaf=lambda leaf: isinstance(leaf, tuple)) == shapes for tree in trees)
    with pytest.raises(InputError, match="^model.anchor_depth=1 makes the network two"):
        NETWORK.spec  # noqa: B018


def nats_of(log_p_ZLK):
    """(NELBO, exact -log p of the random order) of every text, [X] each, by all masks: both from the network's own output."""
    index = {tuple(z_L): n for n, z_L in enumerate(STATES)}
    nelbo, exact = [], []
    for x_L in LAW.sequences_Xn:
        chance, total = {(): 1.0}, 0.0
        for count in range(1, LENGTH + 1):
            for revealed in itertools.combinations(range(LENGTH), count):
                chance[revealed] = 0.0
                for i in revealed:
                    before = tuple(j for j in revealed if j != i)
                    z_L = tuple(int(x) if j in before else MASK for j, x in enumerate(x_L))
                    log_q = float(log_p_ZLK[index[z_L], i, x_L[i]])
                    chance[revealed] += chance[before] * np.exp(log_q) / count
                    # A mask over k of n tokens has the weight 1/k, divided by the number of masks over k.
                    masked = LENGTH - len(before)
                    total -= log_q / masked / len(list(itertools.combinations(range(LENGTH), masked)))
        nelbo, exact = [*nelbo, total], [*exact, -np.log(chance[tuple(range(LENGTH))])]
    return np.asarray(nelbo), np.asarray(exact)


def batch_of(key, rows):
    x_BL = jnp.asarray(LAW.sequences_Xn)[jax.random.choice(key, len(LAW.probability_X), (rows,), p=jnp.asarray(LAW.probability_X))]
    return {"tokens": x_BL.astype(jnp.int32), "segments": jnp.ones(x_BL.shape, jnp.int32), "row": jnp.arange(rows)}


def loss(denoiser, key, weighting, rows):
    """(what is trained, terms) of a batch and noise that `key` draws."""
    objective = Objective(Masked(TOKENS + 1, MASK), weighting=weighting)
    return objective(denoiser, batch_of(key, rows), jax.random.fold_in(key, 1), rows)


def test_the_bound_is_one_and_tight(params):
    """Any weights: the NELBO of every text is not below the exact -log p of the model that reveals in random order, whose probabilities
    sum to 1. Trained, with the anchors' loss or without, it comes down to the entropy: the two parts are a network like any other."""
    nelbo_X, exact_X = nats_of(np.asarray(log_p(params)[0], np.float64))
    assert (nelbo_X >= exact_X - 1e-5).all() and (nelbo_X - exact_X).max() > 1e-3
    assert np.exp(-exact_X).sum() == pytest.approx(1, abs=1e-5)
    assert LAW.probability_X @ nelbo_X > LAW.entropy + 0.1
    # The mean NELBO of all texts as a function of the output: the weights of -log p(x_i = k | z) over all masks.
    weight_ZLK, index = np.zeros((len(STATES), LENGTH, TOKENS)), {tuple(z_L): n for n, z_L in enumerate(STATES)}
    for x_L, p in zip(LAW.sequences_Xn, LAW.probability_X, strict=True):
        for mask in itertools.product((False, True), repeat=LENGTH):
            count, state = sum(mask), index[tuple(np.where(mask, MASK, x_L))]
            for i in np.flatnonzero(mask):
                weight_ZLK[state, i, x_L[i]] += p / count / math.comb(LENGTH, count)
    assert -np.sum(weight_ZLK * log_p(params)[0]) == pytest.approx(LAW.probability_X @ nelbo_X, rel=1e-5)
    adam, params = optax.adam(optax.cosine_decay_schedule(5e-3, 400)), NETWORK.init(jax.random.key(3))

    def step(carry, _):
        def trained_loss(params):
            nelbo, of_anchors = (-jnp.sum(jnp.asarray(weight_ZLK) * of_part) for of_part in log_p(params))
            return nelbo + 0.1 * of_anchors, nelbo

        (_, nelbo), gradient = jax.value_and_grad(trained_loss, has_aux=True)(carry[0])
        updates, state = adam.update(gradient, carry[1])
        return (optax.apply_updates(carry[0], updates), state), nelbo

    (trained, _), nelbo_S = jax.jit(lambda carry: jax.lax.scan(step, carry, length=400))((params, adam.init(params)))
    assert LAW.entropy - 1e-5 < float(nelbo_S[-1]) < LAW.entropy + 1e-3 < LAW.entropy + 0.5 < float(nelbo_S[0])
    changed = jax.tree.map(lambda new, old: float(jnp.abs(new - old).max()), trained["anchor"], params["anchor"])
    assert min(jax.tree.leaves(changed)) > 0


@dataclasses.dataclass(frozen=True)
class Recorder(AnchoredDenoiser):
    """Keeps the states and times that it was called with."""

    calls: list = dataclasses.field(default_factory=list)

    def both(self, z_BL, t_BL):
        self.calls.append((z_BL, t_BL))
        return super().both(z_BL, t_BL)


def test_gamma_adds_the_loss_of_the_first_part_on_the_anchors(params):
    """What is trained: the bound + gamma x the sum over masked anchors of -log pi / t, by hand. What is reported: the bound."""
    key, rows, plain_denoiser = jax.random.key(5), 16, bound_to(params, 16)
    denoiser = Recorder(plain_denoiser.anchor, plain_denoiser.denoiser)
    plain, terms = loss(plain_denoiser, key, None, rows)
    total, with_anchors = loss(denoiser, key, Anchored(gamma=0.3, most=1), rows)
    assert float(with_anchors["nats"]) == pytest.approx(float(terms["nats"]), rel=1e-5) == pytest.approx(float(plain), rel=1e-5)
    x_BL, (z_BL, t_BL), by_hand = np.asarray(batch_of(key, rows)["tokens"]), denoiser.calls[0], 0.0
    log_pi_BLK = jax.nn.log_softmax(plain_denoiser.logits(plain_denoiser.both(z_BL, t_BL)[1])[..., :TOKENS])
    for b, i in zip(*np.nonzero(np.asarray(z_BL) == MASK), strict=True):
        if (x_BL[b] == x_BL[b, i]).sum() == 1:
            by_hand -= float(log_pi_BLK[b, i, x_BL[b, i]] / t_BL[b, i])
    assert by_hand > 1 and float(total - plain) == pytest.approx(0.3 * by_hand, rel=1e-4)


def test_the_name_of_what_is_trained():
    """With gamma it is no bound, beside a reported one; at gamma = 0 it is the bound."""
    some, none = (Objective(Masked(TOKENS + 1, MASK), weighting=Anchored(gamma)) for gamma in (0.3, 0.0))
    assert some.is_bound and not some.trains_bound and none.trains_bound
    with pytest.raises(InputError, match="weighting annealed: start is anchored"):
        make_weighting("annealed", start="anchored")


def test_anchors_are_the_rare_tokens_of_a_row():
    x_BL, valid_BL = jnp.asarray([[0, 0, 1, 2, 2, 2, 5, 5]]), jnp.asarray([[True] * 7 + [False]])
    found = [Anchored(1.0, most).anchors(x_BL, valid_BL)[0].astype(int).tolist() for most in (1, 2, 3)]
    assert found == [[0, 0, 1, 0, 0, 0, 1, 0], [1, 1, 1, 0, 0, 0, 1, 0], [1, 1, 1, 1, 1, 1, 1, 0]]


@pytest.mark.parametrize(
    "changes, named",
    [
        ({"anchor_depth": 3}, "model.anchor_depth=3 leaves no layer of model.depth=3"),
        ({"anchor_depth": -1}, "model.anchor_depth"),
        ({"self_condition": True}, "model.anchor_depth=1 conflicts with process.self_condition"),
        ({"input_dim": 4}, "model.anchor_depth=1 conflicts with a process on vectors"),
        ({"shift": True}, "model.anchor_depth=1 conflicts with model.family: shift"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_what_conflicts_with_an_anchor_network_is_refused_by_name(changes, named):
    with pytest.raises(InputError, match=named):
        tiny.spec(**{"depth": 3, "anchor_depth": 1, **changes})


@pytest.mark.parametrize("values", [{"gamma": -1.0}, {"most": 0}], ids=str)
def test_values_out_of_range_are_refused(values):
    with pytest.raises(InputError, match="weighting anchored: gamma is"):
        make_weighting("anchored", **values)
