"""The denoiser: what it must not depend on, what it must depend on, and how it may be run."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dlmjax.errors import InputError
from dlmjax.models import BlockDiffusion, Execution, Full, ModelSpec, build_network
from dlmjax.models.layers import dropout, rotary_tables, rotate
from tests.models import tiny

KEY = jax.random.key(3)
BATCH = tiny.batch()
SEGMENTS, POSITIONS, TOKENS = (jnp.asarray(BATCH[name]) for name in ("segments", "positions", "tokens"))


@functools.cache
def start(spec):
    return tiny.lively(build_network(spec).init(jax.random.key(0)))


@functools.cache
def gradients(spec, execution):
    network = build_network(spec, execution)
    function = jax.value_and_grad(tiny.loss_of(network), has_aux=True)
    return jax.jit(function, compiler_options=tiny.AS_USED)(start(spec), BATCH, KEY)


@functools.cache
def logits_fn(spec, attention="full", execution=None):
    network = build_network(spec, execution or Execution(scan=False))

    @jax.jit
    def run(params, tokens, segments, positions, t):
        denoiser = network.bind(params, segments, positions, attention)
        return denoiser.logits(denoiser.hidden(tokens, t))

    return run


def logits(spec, data, t=0.5, attention="full", params=None):
    level = jnp.broadcast_to(jnp.asarray(t, jnp.float32), data["tokens"].shape)
    params = start(spec) if params is None else params
    return np.asarray(logits_fn(spec, attention)(params, data["tokens"], data["segments"], data["positions"], level))


PLAIN = tiny.spec()
TIMED = tiny.spec(time_input="adaln", tied=True, dropout=0.1)


@pytest.mark.parametrize(
    ("spec", "execution"),
    [(PLAIN, Execution(scan=False)), (TIMED, Execution(remat="dots", head_chunk=3))]
    + [pytest.param(PLAIN, Execution(remat="full"), marks=pytest.mark.slow)]
    + [pytest.param(PLAIN, Execution(remat="dots", scan=False), marks=pytest.mark.slow)]
    + [pytest.param(TIMED, Execution(scan=False), marks=pytest.mark.slow)],
    ids=lambda value: f"{value.remat}-{'scan' if value.scan else 'unrolled'}" if isinstance(value, Execution) else value.time_input,
)
def test_execution_does_not_change_the_result(spec, execution):
    (value, (nats, _)), grads = gradients(spec, execution)
    (want, (want_nats, _)), want_grads = gradients(spec, Execution())
    np.testing.assert_allclose(value, want, rtol=1e-6)
    np.testing.assert_allclose(nats, want_nats, atol=1e-5)
    assert tiny.worst(grads, want_grads) < 1e-5


@pytest.mark.parametrize(
    ("changes", "remat"),
    [
        (dict(time_input="adaln", qk_norm_all=True, loops=2), "none"),
        pytest.param({}, "full", marks=pytest.mark.slow),
        pytest.param(dict(norm_placement="post"), "none", marks=pytest.mark.slow),
    ],
    ids=["adaln, loops", "grouped, remat", "post"],
)
def test_the_last_layer_of_two_streams_leaves_out_the_clean_states(changes, remat):
    """Unrolled layers do, scanned ones compute all positions: equal hidden states and gradients."""
    spec, L = tiny.spec(**changes), tiny.LENGTH
    pairs, t = jnp.stack([TOKENS, jnp.roll(TOKENS, 1, axis=0)], axis=-1), jnp.full(TOKENS.shape, 0.3)

    def both(params):
        def hidden(params, execution):
            return build_network(spec, execution).bind(params, SEGMENTS, POSITIONS, BlockDiffusion(4, L)).hidden(pairs, t)

        executions = Execution(scan=False, remat=remat), Execution()
        runs = [jax.vjp(functools.partial(hidden, execution=execution), params) for execution in executions]
        return [(out, pull(jnp.cos(out))[0]) for out, pull in runs]

    (got, got_grads), (want, want_grads) = jax.jit(both, compiler_options=tiny.AS_USED)(start(spec))
    np.testing.assert_allclose(got, want, atol=1e-5)
    assert tiny.worst(got_grads, want_grads) < 1e-5


def test_bfloat16_is_close_and_keeps_master_weights():
    (value, _), grads = gradients(PLAIN, Execution(dtype="bfloat16"))
    (want, _), want_grads = gradients(PLAIN, Execution())
    np.testing.assert_allclose(value, want, rtol=2e-2)
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves((grads, start(PLAIN))))
    assert tiny.worst(grads, want_grads) < 0.25
    network = build_network(PLAIN, Execution(dtype="bfloat16"))
    denoiser = network.bind(start(PLAIN), SEGMENTS, POSITIONS)
    hidden = jax.eval_shape(denoiser.hidden, TOKENS, jnp.ones(TOKENS.shape))
    assert hidden.dtype == jnp.bfloat16
    assert jax.eval_shape(denoiser.logits, hidden).dtype == jnp.float32


@pytest.mark.slow
def test_remat_keeps_less():
    """Residuals of the backward pass shrink from none over dots to full."""
    kept = []
    for remat in ("none", "dots", "full"):
        network = build_network(tiny.spec(depth=4), Execution(remat=remat))
        step = jax.jit(jax.grad(lambda p, b, network=network: tiny.loss_of(network)(p, b, KEY)[0]))
        kept.append(step.lower(network.abstract(), tiny.batch(length=64)).compile().memory_analysis().temp_size_in_bytes)
    assert kept[0] > kept[1] > kept[2]


def test_documents_and_padding_do_not_leak():
    """Changing one document changes no logit of the other; changing padding changes no logit of any token."""
    base = logits(PLAIN, BATCH)
    first = np.asarray(BATCH["segments"]) == 1
    changed = BATCH | {"tokens": np.where(first, (BATCH["tokens"] + 1) % tiny.VOCAB, BATCH["tokens"]).astype(np.int32)}
    moved = np.abs(logits(PLAIN, changed) - base).max(-1)
    assert moved[~first].max() == 0.0 and moved[first].min() > 0.0
    padding = np.asarray(BATCH["segments"]) == 0
    changed = BATCH | {"tokens": np.where(padding, 0, BATCH["tokens"]).astype(np.int32)}
    assert np.abs(logits(PLAIN, changed) - base)[~padding].max() == 0.0
    assert np.isfinite(base).all()


def test_a_packed_document_equals_the_document_alone():
    """Segments and per-document positions together make packing invisible."""
    alone = {name: BATCH[name][:, 8:14] for name in ("tokens", "segments", "positions")}
    np.testing.assert_allclose(logits(PLAIN, alone)[:-1], logits(PLAIN, BATCH)[:-1, 8:14], atol=2e-5)


@pytest.mark.parametrize("attention", ["full", "causal"])
def test_full_sees_ahead_and_causal_does_not(attention):
    data = {"tokens": BATCH["tokens"][:1], "segments": np.ones((1, 16), np.int32), "positions": np.arange(16, dtype=np.int32)[None]}
    changed = data | {"tokens": data["tokens"].copy()}
    changed["tokens"][0, 9] = (changed["tokens"][0, 9] + 1) % tiny.VOCAB
    moved = np.abs(logits(PLAIN, changed, attention=attention) - logits(PLAIN, data, attention=attention)).max(-1)[0]
    assert (moved[9:] > 0).all()
    assert (moved[:9] > 0).all() if attention == "full" else moved[:9].max() == 0.0


def test_a_mask_description_can_be_bound():
    """One block in the 2L form: the noisy half is the plain bidirectional model on the noisy half."""
    data = {name: np.concatenate([BATCH[name], BATCH[name]], axis=1) for name in ("tokens", "segments", "positions")}
    noisy = logits(PLAIN, data, attention=BlockDiffusion(16, 16))[:, :16]
    np.testing.assert_allclose(noisy, logits(PLAIN, BATCH, attention=Full()), atol=2e-5)


def test_positions_are_relative():
    shifted = BATCH | {"positions": BATCH["positions"] + 5}
    np.testing.assert_allclose(logits(PLAIN, shifted), logits(PLAIN, BATCH), atol=2e-4)
    reversed_ = BATCH | {"positions": BATCH["positions"][:, ::-1].copy()}
    assert np.abs(logits(PLAIN, reversed_) - logits(PLAIN, BATCH))[:-1].max() > 1e-2


def test_rotary_scaling():
    """Half rotation of the first pair by position * 1 radian; linear divides positions, ntk keeps the fastest channel."""
    positions = jnp.arange(16)[None]
    cos, sin = rotary_tables(positions, PLAIN)
    x = jnp.zeros((1, 16, 1, 8)).at[..., 0].set(1.0)
    rotated = np.asarray(rotate(x, cos, sin))[0, :, 0]
    np.testing.assert_allclose(rotated[:, 0], np.cos(np.arange(16)), atol=1e-6)
    np.testing.assert_allclose(rotated[:, 4], np.sin(np.arange(16)), atol=1e-6)
    linear = rotary_tables(positions * 4, tiny.spec(rope_scaling=4.0))
    np.testing.assert_allclose(linear[0], cos, atol=1e-5)
    ntk = rotary_tables(positions, tiny.spec(rope_scaling=4.0, rope_scaling_type="ntk"))
    np.testing.assert_allclose(ntk[1][..., 0], sin[..., 0], atol=1e-6)
    slowest = rotary_tables(positions * 4, tiny.spec(rope_scaling=4.0, rope_scaling_type="ntk"))
    np.testing.assert_allclose(slowest[1][..., -1], sin[..., -1], rtol=1e-5)


def test_time_input_starts_at_nothing_and_is_used():
    for tied in (False, True):
        spec = tiny.spec(time_input="adaln", tied=tied)
        fresh = build_network(spec).init(jax.random.key(0))
        assert np.abs(logits(spec, BATCH, params=fresh)).max() == 0.0
        low, high = logits(spec, BATCH, 0.1), logits(spec, BATCH, 0.9)
        assert np.abs(low - high).max() > 1e-2
    one_token = np.full(BATCH["tokens"].shape, 0.1, np.float32)
    one_token[:, 2] = 0.9
    assert np.abs(logits(spec, BATCH, one_token) - low).max(-1)[:-1, 2].min() > 1e-4
    np.testing.assert_array_equal(logits(PLAIN, BATCH, 0.1), logits(PLAIN, BATCH, 0.9))


def test_dropout_is_keyed_by_row():
    """The same key per row gives the same states whatever batch the row is in; no key or rate 0 gives no dropout."""
    spec = tiny.spec(dropout=0.3)
    network, params = build_network(spec), start(spec)
    level = jnp.full(BATCH["tokens"].shape, 0.5)
    keys = jax.vmap(jax.random.fold_in, (None, 0))(KEY, jnp.asarray(BATCH["row"]))

    def hidden(rows, key):
        bound = network.bind(params, SEGMENTS[rows], POSITIONS[rows], dropout_key=key)
        return bound.hidden(TOKENS[rows], level[rows])

    whole = hidden(slice(None), keys)
    np.testing.assert_allclose(hidden(slice(2, 4), keys[2:4]), whole[2:4], atol=1e-5)
    np.testing.assert_allclose(hidden(slice(None), KEY), whole, atol=1e-5)
    off = hidden(slice(None), None)
    assert np.abs(off - whole).max() > 1e-2
    # Inverted dropout: the kept entries are scaled up, so the mean over many keys comes back to the value without.
    kept = dropout(jnp.ones((64, 500)), jax.random.split(KEY, 4), 0.3)
    np.testing.assert_allclose(np.unique(np.asarray(kept)), [0.0, 1 / 0.7], rtol=1e-6)
    assert abs(float(kept.mean()) - 1.0) < 0.02


def test_start_values():
    """Matrices at init_std, residual projections smaller by sqrt(2 depth), norms at one; layers differ from each other."""
    params = build_network(tiny.spec(width=128, ffn=256, depth=4)).init(jax.random.key(0))
    layers = params["layers"]
    for name in ("query", "key", "value", "gate", "up"):
        np.testing.assert_allclose(np.std(layers[name]["kernel"]), 0.02, rtol=0.05)
    for name in ("output", "down"):
        np.testing.assert_allclose(np.std(layers[name]["kernel"]), 0.02 / np.sqrt(8), rtol=0.05)
    np.testing.assert_array_equal(layers["mlp_norm"]["scale"], 1.0)
    assert np.abs(layers["gate"]["kernel"][0] - layers["gate"]["kernel"][1]).max() > 0.01
    assert np.abs(layers["gate"]["kernel"][0] - layers["up"]["kernel"][0]).max() > 0.01


@pytest.mark.parametrize("spec", [PLAIN, TIMED, tiny.spec(qk_norm=False)], ids=["plain", "timed", "no-qk-norm"])
def test_trees_agree(spec):
    """Every tree an optimizer or a partition reads has the structure of the weights, and one logical axis per dimension."""
    network = build_network(spec)
    params = network.abstract()
    assert all(type(node) is dict for node in (params, params["layers"], params["layers"]["query"]))
    is_axes = lambda leaf: isinstance(leaf, tuple)  # noqa: E731
    assert jax.tree.structure(network.axes, is_leaf=is_axes) == jax.tree.structure(params)
    assert jax.tree.all(jax.tree.map(lambda axes, p: len(axes) == p.ndim, network.axes, params, is_leaf=is_axes))
    assert {axes[0] for axes in jax.tree.leaves(network.axes["layers"], is_leaf=is_axes)} == {"layer"}
    for tree in (network.kinds, network.lr_multipliers, network.wd_multipliers, network.eps_multipliers):
        assert jax.tree.structure(tree) == jax.tree.structure(params)
    kinds = jax.tree.leaves(jax.tree.map(lambda kind, p: (kind, p.ndim), network.kinds, params), is_leaf=is_axes)
    assert {kind for kind, _ in kinds} == {"matrix", "embedding", "vector"} | (set() if spec.tied else {"head"})
    assert all(ndim <= 2 for kind, ndim in kinds if kind == "vector") and all(ndim >= 2 for kind, ndim in kinds if kind != "vector")
    assert jax.tree.structure(jax.jit(network.init)(jax.random.key(0))) == jax.tree.structure(params)


def test_eight_billion_parameters_without_allocating():
    """LLaDA-8B's shape (2502.09992, table 4): 8.02e9 weights, 6.98e9 of them outside embedding and head."""
    spec = ModelSpec(vocab=126_464, depth=32, width=4096, heads=32, kv_heads=32, head_dim=128, ffn=12_288, qk_norm=False)
    network = build_network(spec)
    leaves = jax.tree.leaves(network.abstract())
    assert all(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in leaves)
    assert network.parameter_count == 8_015_581_184
    assert network.parameter_count - 2 * 126_464 * 4096 == 6_979_588_096
    tokens = jax.ShapeDtypeStruct((2, 64), jnp.int32)

    def forward(params, tokens):
        denoiser = network.bind(params, jnp.ones_like(tokens), jnp.zeros_like(tokens))
        return denoiser.logits(denoiser.hidden(tokens, jnp.ones(tokens.shape)))

    assert jax.eval_shape(forward, network.abstract(), tokens).shape == (2, 64, 126_464)


@pytest.mark.nightly
def test_runs_without_jit():
    """The debug recipe: every line can be stepped through."""
    network, data = build_network(tiny.spec(depth=1), Execution(scan=False)), jax.tree.map(jnp.asarray, tiny.batch(2, 8))
    params, loss = start(network.spec), tiny.loss_of(network)
    with jax.disable_jit():
        value, _ = loss(params, data, KEY)
    np.testing.assert_allclose(value, jax.jit(loss)(params, data, KEY)[0], rtol=1e-5)


def test_one_compilation_for_all_draws():
    """The number of masked rows is data: other keys, levels and tokens compile nothing new."""
    loss, traces = tiny.loss_of(build_network(PLAIN, Execution())), []

    @jax.jit
    def step(*args):
        traces.append(args)
        return loss(*args)

    for seed in range(3):
        step(start(PLAIN), tiny.batch(seed=seed), jax.random.key(seed))
    assert len(traces) == 1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"kv_heads": 3}, "does not divide model.heads"),
        ({"head_dim": 7}, "is odd"),
        ({"depth": 0}, "model.depth is 0"),
        ({"dropout": 1.0}, r"model.dropout is 1.0; it must be in \[0, 1\)"),
        ({"rope_scaling": 0.5}, "model.rope_scaling is 0.5; it must be at least 1"),
        ({"time_input": "film"}, "choose one of none, adaln"),
        ({"completep_width": 32}, "go together"),
    ],
)
def test_contradictory_specs_are_refused(changes, message):
    with pytest.raises(InputError, match=message):
        tiny.spec(**changes)


def test_unknown_execution_is_refused():
    with pytest.raises(InputError, match="execution.remat is 'some'; choose one of none, full, dots"):
        Execution(remat="some")
    with pytest.raises(InputError, match="execution.head_chunk is -1; it must be at least 0"):
        Execution(head_chunk=-1)
