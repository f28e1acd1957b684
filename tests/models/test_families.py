"""What a family's name stands for, and that its weights train like those of any other: sharded, in pieces, with every gradient."""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dlmjax import config as config_lib
from dlmjax.data import load_tokenizer
from dlmjax.errors import InputError
from dlmjax.experiment import assemble
from dlmjax.models import BlockCausal, Execution, ModelSpec, build_network, model_spec
from dlmjax.models.cache import bind_cached, empty_cache
from dlmjax.models.families import FAMILIES, VALUES, family_fields, family_text
from dlmjax.models.flops import training_flops_per_token
from dlmjax.models.layers import rotary_tables
from dlmjax.parallel import Partition, make_mesh
from tests.models import tiny

NEW = ("qwen2", "gpt2", "bert")
SPEC = tiny.spec()


def spec_of(family, **changes):
    short = {"max_positions": 24} if family in ("gpt2", "bert") else {}
    return tiny.spec(**{**family_fields(family), **short, **changes})


def test_a_name_is_read_back_and_the_default_is_unchanged():
    assert model_spec(config_lib.default().model, vocab=9) == ModelSpec(9, 6, 384, 6, 6, 64, 1024)
    for name in FAMILIES:
        assert family_text(name) == name and family_text(name, norm_eps=0.5, shift=True) == f"{name}(norm_eps=0.5, shift=True)"
        assert family_fields(family_text(name, norm_eps=0.5)) == {**FAMILIES[name], "norm_eps": 0.5}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("qwen4", "did you mean 'qwen3'"),
        ("llama(norm_esp=1)", "did you mean 'norm_eps'"),
        ("llama(max_positions=8)", "no value 'max_positions'"),
        ("gpt2(rope_original=8)", "no value 'rope_original'"),
        ("qwen3(shift=1)", "shift requires True or False"),
        ("gpt2(max_positions=0)", "leaves no row"),
        ("llama(window=-1)", "window=-1 is negative"),
        ("llama(rope_slow=4.0)", "rope_slow=4.0 above 0 and below rope_fast=4.0"),
        ("gpt2(", "cannot read model.family"),
    ],
)
def test_what_is_no_family_is_told(text, said):
    config = config_lib.default()
    config.model.family = text
    with pytest.raises(InputError, match=said):
        model_spec(config.model, vocab=9)


BOUNDED = [name for name in VALUES if type(getattr(SPEC, name)) in (int, float)]
IMPOSSIBLE = {
    float: ("-1", "0", "0.0", "1e-45", "1e999", "-1e999", "1e300", "1" + "0" * 400),
    int: ("-1", str(2**31), "1" + "0" * 30),
}


@pytest.mark.parametrize("name", BOUNDED)
def test_no_number_of_a_family_is_one_that_no_network_can_have(name):
    """Every number that a person may write in the brackets: below its range, not finite, or beyond the device's arithmetic."""
    config = config_lib.default()
    for value in IMPOSSIBLE[type(getattr(SPEC, name))]:
        config.model.family = f"{'bert' if name in ('max_positions', 'position_offset', 'token_types') else 'llama'}({name}={value})"
        with pytest.raises(InputError, match=f"model.*{name}") as told:
            model_spec(config.model, vocab=9)
        assert len(str(told.value)) < 400
    assert len(BOUNDED) >= 10


def test_an_older_runs_config_still_opens():
    def opened(**old):
        new = {name: value for name, value in config_lib.leaves(config_lib.default()).items() if name != "model.family"}
        return config_lib.from_json(json.dumps({**new, **old})).model.family

    assert (opened(**{"model.qk_norm": True}), opened(**{"model.qk_norm": False}), opened()) == ("qwen3", "llama", "qwen3")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"data.length": "600"}, "has positions for 512 tokens"),
        ({"model.time_input": "adaln"}, "model.time_input=adaln requires norms before each branch"),
        ({"model.completep_width": "8", "model.completep_depth": "2"}, "CompleteP"),
        ({"model.family": "qwen3(shift=True)", "process.name": "autoregressive"}, "conflicts with process.name=.*; drop shift"),
        ({"model.family": "qwen3(shift=True)", "process.name": "blocks(size=4)"}, "conflicts with process.name=.*; drop shift"),
    ],
)
def test_what_does_not_go_together_is_refused_before_anything_runs(changes, said):
    changes = {"model.family": "bert", **changes}
    with pytest.raises(InputError, match=said):
        config = config_lib.override(config_lib.default(), [f"{name}={value}" for name, value in changes.items()])
        assemble(config, load_tokenizer("bytes"))


def batch(rows=tiny.BATCH):
    return jax.tree.map(jnp.asarray, tiny.batch(rows))


@functools.cache
def value_and_gradient(devices=1, family="bert"):
    """((loss, parts), gradient) of lively weights of a family and the batch of tiny, on one device or a mesh."""
    spec = spec_of(family, kv_heads=4)
    mesh = None if devices == 1 else Partition(make_mesh(data=2, fsdp=2, sequence=1, tensor=2))
    network = build_network(spec, Execution(head_chunk=16), mesh)
    params = tiny.lively(network.init(jax.random.key(0)))
    data = tiny.batch()
    if mesh is not None:
        params, data = jax.device_put(params, mesh.tree(network.axes)), mesh.put_batch(data)
    return jax.jit(jax.value_and_grad(tiny.loss_of(network), has_aux=True))(params, data, jax.random.key(1))


def without_key_bias(gradient):
    """Where positions do not turn, a bias of all keys moves all scores of a query alike: its gradient is rounding."""
    layers = {
        name: {leaf: a for leaf, a in weights.items() if (name, leaf) != ("key", "bias")} for name, weights in gradient["layers"].items()
    }
    return {**gradient, "layers": layers}


@pytest.mark.slow
@pytest.mark.parametrize("family", ["bert", "olmo2(window=5)"])
def test_a_mesh_computes_the_same_and_every_weight_learns(family):
    """BERT has every kind of weight that the default has not; OLMo 2 norms heads that lie on several devices."""
    (one, _), gradient = value_and_gradient(family=family)
    (many, _), sharded = value_and_gradient(8, family)
    np.testing.assert_allclose(one, many, rtol=1e-5)
    gradient, sharded = without_key_bias(gradient), without_key_bias(sharded)
    assert tiny.worst(sharded, gradient) < 1e-4
    for path, leaf in jax.tree_util.tree_flatten_with_path(gradient)[0]:
        assert np.abs(leaf).max() > 1e-6, f"{path} has no gradient"


def test_the_bias_of_the_head_has_the_gradient_of_plain_logits():
    """The chunked head against logits of all rows, differentiated by jax."""
    network = build_network(spec_of("bert", kv_heads=4), Execution())
    params, data, key = tiny.lively(network.init(jax.random.key(0))), batch(), jax.random.key(1)

    def plain(params):
        noisy_BL, rows_BL, level_BL = tiny.corrupt(data, key)
        denoiser = network.bind(params, data["segments"], data["positions"])
        logits_BLV = denoiser.logits(denoiser.hidden(noisy_BL, level_BL))
        nats_N = tiny.cross_entropy(logits_BLV.reshape(-1, tiny.VOCAB), data["tokens"].reshape(-1))
        return jnp.sum(jnp.where(rows_BL, nats_N.reshape(rows_BL.shape) / level_BL, 0.0))

    value, wanted = jax.jit(jax.value_and_grad(plain))(params)
    (found, _), gradient = value_and_gradient()
    np.testing.assert_allclose(found, value, rtol=1e-5)
    assert tiny.worst(without_key_bias(gradient), without_key_bias(wanted)) < 1e-4


def test_soft_estimates_know_the_bias_of_the_head():
    network = build_network(spec_of("bert", kv_heads=4))
    params, data = tiny.lively(network.init(jax.random.key(0))), batch(2)
    denoiser = network.bind(params, data["segments"], data["positions"])
    hidden_BLD = denoiser.hidden(data["tokens"], jnp.zeros(data["tokens"].shape))
    table = params["embedding"]["table"]
    np.testing.assert_allclose(denoiser.expect(hidden_BLD), jax.nn.softmax(denoiser.logits(hidden_BLD)) @ table, atol=1e-5)


@pytest.mark.parametrize("family", ["gpt2", "bert", "olmo2", "llama(window=5)"])
def test_a_row_read_in_pieces_is_the_row(family):
    network = build_network(spec_of(family, kv_heads=4))
    params, tokens_BL = tiny.lively(network.init(jax.random.key(0))), batch(2)["tokens"]
    ones_BL, mask, level_BL = jnp.ones_like(tokens_BL), BlockCausal(4), jnp.zeros(tokens_BL.shape)
    positions_BL = jnp.broadcast_to(jnp.arange(tiny.LENGTH), tokens_BL.shape)
    whole_BLD = network.bind(params, ones_BL, positions_BL, mask).hidden(tokens_BL, level_BL)
    step = jax.jit(lambda cache, at, z_BS: bind_cached(network, params, cache, at, 4, mask).advance(z_BS, jnp.zeros(z_BS.shape)))
    cache, pieces = empty_cache(network, 2, tiny.LENGTH), []
    for at in range(0, tiny.LENGTH, 4):
        piece_BSD, cache = step(cache, at, tokens_BL[:, at : at + 4])
        pieces.append(piece_BSD)
    np.testing.assert_allclose(jnp.concatenate(pieces, axis=1), whole_BLD, atol=2e-5)


def test_shift_hands_each_position_the_state_before_it():
    """Within a document; its first position keeps its own."""
    data = batch(2)
    plain, shifted = (build_network(spec_of("qwen3", shift=shift)) for shift in (False, True))
    params = tiny.lively(plain.init(jax.random.key(0)))
    before, after = (
        np.asarray(n.bind(params, data["segments"], data["positions"]).hidden(data["tokens"], jnp.zeros(data["tokens"].shape)))
        for n in (plain, shifted)
    )
    first = data["positions"] == 0
    np.testing.assert_array_equal(after[first], before[first])
    np.testing.assert_array_equal(after[:, 1:][~first[:, 1:]], before[:, :-1][~first[:, 1:]])
    assert first[0].sum() == 2
    with pytest.raises(InputError, match="shift=true cannot be read block by block"):
        bind_cached(shifted, params, empty_cache(shifted, 2, 16), 0, 4, BlockCausal(4))


def test_width_transfer_leaves_biases_at_their_rate():
    """CompleteP's table: a bias is a vector of its layer, whose gradient falls with width and depth."""
    network = build_network(spec_of("qwen2", completep_width=8, completep_depth=1))
    rates = [tree["layers"]["query"]["bias"] for tree in (network.lr_multipliers, network.wd_multipliers, network.eps_multipliers)]
    assert rates == [1.0, 1.0, 1 / 8] and network.lr_multipliers["layers"]["query"]["kernel"] == 1 / 4
    assert network.axes["layers"]["query"]["bias"] == ("layer", "heads")


def test_positions_end_where_the_table_does():
    network = build_network(spec_of("gpt2", max_positions=8))
    with pytest.raises(InputError, match="learned positions for 8"):
        network.bind({}, jnp.ones((1, 16), jnp.int32), jnp.zeros((1, 16), jnp.int32))


@pytest.mark.parametrize("kind", ["linear", "llama3", "yarn"])
def test_stretched_positions_are_those_of_transformers(kind):
    """Frequencies and the factor on sines, of heads as large as published ones, over values that meet every branch."""
    transformers = pytest.importorskip("transformers", reason="the functions to compare with (pip install dlmjax[interop])")
    rope = pytest.importorskip("transformers.modeling_rope_utils", reason="the functions to compare with")
    rng = np.random.default_rng(0)
    for original, base, dim in ((64, 1e4, 64), (4096, 1e6, 128), (8192, 5e5, 16), (8, 50.0, 8)):
        factor, slow = float(rng.uniform(1, 40)), float(rng.uniform(0.3, 2))
        fast, attention, truncate = slow * float(rng.uniform(2, 40)), float(rng.uniform(0.5, 2)), bool(rng.integers(2))
        ours = dict(rope_original=original, rope_slow=slow, rope_fast=fast, rope_attention=attention, rope_truncate=truncate)
        spec = tiny.spec(head_dim=dim, rope_base=base, rope_scaling=factor, rope_scaling_type=kind, **ours)
        cos_BLC, sin_BLC = rotary_tables(jnp.asarray([[0, 1, 7, 100]]), spec)
        theirs = {"rope_type": kind, "rope_theta": base, "factor": factor, "original_max_position_embeddings": original}
        theirs |= {"beta_slow": slow, "beta_fast": fast, "attention_factor": attention, "truncate": truncate} if kind == "yarn" else {}
        theirs |= {"low_freq_factor": slow, "high_freq_factor": fast} if kind == "llama3" else {}
        config = transformers.LlamaConfig(head_dim=dim, rope_parameters=theirs, max_position_embeddings=2 * original)
        frequency_C, scale = rope.ROPE_INIT_FUNCTIONS[kind](config)
        angle_LC = np.array([0, 1, 7, 100])[:, None] * frequency_C.numpy().astype(np.float64)
        np.testing.assert_allclose(cos_BLC[0], scale * np.cos(angle_LC), atol=1e-4)
        np.testing.assert_allclose(sin_BLC[0], scale * np.sin(angle_LC), atol=1e-4)


@pytest.mark.parametrize("family", NEW)
def test_flops_are_six_for_each_weight_of_a_matrix_and_the_scores(family):
    spec = spec_of(family, kv_heads=4)
    network = build_network(spec)
    kinds = jax.tree.leaves(network.kinds)
    matrices = sum(leaf.size for leaf, kind in zip(jax.tree.leaves(network.abstract()), kinds, strict=True) if kind in ("matrix", "head"))
    scores = 12 * 16 * spec.depth * spec.heads * spec.head_dim
    assert training_flops_per_token(spec, 16) == 6 * matrices + scores
