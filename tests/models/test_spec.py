"""Which fields of a network decide what its weights compute: each one changed in turn, asked of the network itself."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dlmjax.models import Execution, ModelSpec, build_network
from dlmjax.models.layers import rotary_tables
from dlmjax.models.masks import BOARD_PERIOD
from dlmjax.models.spec import ROPE_SCALINGS
from tests.models import tiny

EVERY = [field.name for field in dataclasses.fields(ModelSpec)]
BASES = {
    "rotary": dict(time_input="add", rope_scaling=4.0, rope_scaling_type="llama3", rope_original=8),
    "plain": {},
    "adaln": dict(time_input="adaln"),
    "learned": dict(positions="learned", max_positions=24, position_offset=1, norm="layer", mlp="gelu", bias="all", token_types=2),
}
# What means something else beside the rest of the other two bases.
FIELDS = {
    "rotary": EVERY,
    "plain": ["rope_base", "rope_scaling", "rope_scaling_type", "rope_original", "time_width", "time_features", "input_dim"],
    "adaln": ["time_width", "time_features", "time_gates"],
    "learned": ["rope_base", "rope_scaling", "rope_scaling_type", "max_positions", "position_offset", "norm_eps", "mlp", "token_types"],
}
CHOICES = {
    "qk_norm": False,
    "tied": True,
    "rope_scaling_type": "ntk",
    "time_input": "prefix",
    "time_features": "fourier",
    "time_gates": "one",
    "self_condition": True,
    "hint": ("hidden", "x0"),
    "bias": "qkv",
    "norm": ("layer", "rms"),
    "mlp": ("gelu_tanh",),
    "positions": ("learned", "rotary"),
    "norm_placement": "post",
    "head": "transform",
    "shift": True,
    "dropout": 0.1,
    "completep_width": 16,
    "completep_depth": 1,
    "kv_heads": 1,
    "heads": 4,
    "looped": ((0, 1), (1, 2)),
    "anchor_depth": 1,
}
# What a field requires beside it: of one layer there is one range to loop, and none for an anchor network.
BESIDE = {"looped": {"depth": 2, "loops": 2}, "anchor_depth": {"depth": 2}}


def changed(base: ModelSpec, field: str) -> ModelSpec:
    """The network with another value in one field (CompleteP's two go together)."""
    old = getattr(base, field)
    usual = {int: lambda: old * 2 + 2, float: lambda: old * 1.5 + 1e-3, bool: lambda: not old}.get(type(old), lambda: None)()
    choice = CHOICES.get(field, usual)
    value = next(value for value in (choice if isinstance(choice, tuple) else (choice,)) if value != old)
    values = {field: value, **({"max_positions": 24} if value == "learned" else {})}
    if field.startswith("completep"):
        values = {"completep_width": base.width, "completep_depth": base.depth, field: value}
    return dataclasses.replace(base, **values)


def weights(shape):
    """Of a size with which no branch drowns another."""
    fan_in = shape[-2] if len(shape) > 1 and shape[-2] > 29 else 1
    return np.random.default_rng(0).normal(0, 0.7 / fan_in, shape).astype(np.float32)


def shapes(spec: ModelSpec):
    return jax.tree.map(lambda leaf: leaf.shape, build_network(spec).abstract())


@functools.cache
def logits(spec: ModelSpec, length: int = tiny.LENGTH):
    """Of weights that are the same for all networks of these shapes."""
    network, batch = (
        build_network(spec, Execution(scan=False)),
        jax.tree.map(jnp.asarray, tiny.batch(rows=2, length=length, vocab=spec.vocab)),
    )
    params = jax.tree.map(lambda leaf: jnp.asarray(weights(leaf.shape)), network.abstract())
    denoiser = network.bind(params, batch["segments"], batch["positions"], "full")
    logits_BLV = denoiser.logits(denoiser.hidden(batch["tokens"], jnp.full(batch["tokens"].shape, 0.3)))
    return np.where(batch["segments"][..., None] > 0, logits_BLV, 0.0)


@pytest.mark.parametrize(("base", "field"), [(base, field) for base, fields in FIELDS.items() for field in fields])
def test_a_field_is_named_exactly_where_it_changes_what_weights_compute(base, field):
    here = tiny.spec(**{"depth": 1, **BESIDE.get(field, {})}, width=8, head_dim=4, ffn=8, heads=2, kv_heads=2, **BASES[base])
    there = changed(here, field)
    length = BOARD_PERIOD if field in ("board", "peers") else tiny.LENGTH
    same = shapes(here) == shapes(there) and np.allclose(logits(here, length), logits(there, length), rtol=0, atol=1e-6)
    named = here.differing(there)
    assert bool(named) == (not same), f"{named}, and the weights compute {'the same' if same else 'something else'}"
    assert not named or field in named or field.startswith("completep")
    assert there.differing(here) == named


def by_path(tree):
    return {jax.tree_util.keystr(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


GAINS = [({}, dict(time_input="add")), ({}, dict(time_input="adaln", time_gates="one")), ({}, dict(self_condition=True))]
GAINS += [(old | dict(tied=True), new | dict(tied=True)) for old, new in GAINS] + [({}, dict(self_condition=True, hint="hidden"))]
GAINS += [(new, old) for old, new in GAINS if "time_input" not in new]
GAINS += [(dict(bias=old), dict(bias=new)) for old, new in (("none", "all"), ("qkv", "all"), ("qkv", "none"))]
GAINS += [({"time_input": way}, {}) for way in ("add", "adaln")]
GAINS += [({}, {"time_input": way}) for way in ("adaln", "prefix")]  # gates of zero, one more position: other functions


@pytest.mark.parametrize(
    ("old", "new"),
    [
        *(pytest.param(old, new, id=f"{old} to {new}") for old, new in GAINS),
        *(pytest.param({}, field, id=field) for field in EVERY if field not in ("time_input", "self_condition")),
    ],
)
def test_weights_start_another_network_only_as_the_same_function_to_the_bit(old, new):
    """Over all fields: where `misfits` names none, the weights that both have give the same logits, beside new ones as they start."""
    sizes = dict(depth=2 if new == "anchor_depth" else 1, width=8, head_dim=4, ffn=8, heads=2, kv_heads=2)
    there = tiny.spec(**sizes, **old)
    here = changed(there, new) if isinstance(new, str) else tiny.spec(**sizes, **new)
    misfits = here.misfits(there)
    assert set(misfits) <= set(here.differing(there))
    source, target = (by_path(build_network(one).abstract()) for one in (there, here))
    matched = {path for path in target if path in source}
    if misfits:
        fits = all(source[path].shape == target[path].shape for path in matched) and len(matched) == len(source)
        length = BOARD_PERIOD if new in ("board", "peers") else tiny.LENGTH
        assert not fits or not np.array_equal(*started(there, here, matched, length)), f"{misfits} is refused, and changes nothing"
    else:
        assert all(source[path].shape == target[path].shape for path in matched)
        np.testing.assert_array_equal(*started(there, here, matched))


def started(there: ModelSpec, here: ModelSpec, matched, length: int = tiny.LENGTH):
    """Logits of lively weights, and of the other network that takes them over beside its own start values."""
    found, batch = [], jax.tree.map(jnp.asarray, tiny.batch(rows=2, length=length, vocab=there.vocab))
    for spec in (there, here):
        network = build_network(spec, Execution(scan=False))
        params = jax.tree_util.tree_map_with_path(
            lambda path, leaf, of=spec: jnp.asarray(weights(leaf.shape)) if of is there or jax.tree_util.keystr(path) in matched else leaf,
            network.init(jax.random.key(0)),
        )
        denoiser = network.bind(params, batch["segments"], batch["positions"], "full")
        with jax.disable_jit():
            found.append(denoiser.logits(denoiser.hidden(batch["tokens"], jnp.full(batch["tokens"].shape, 0.3))))
    return found


ROPE_FIELDS = {  # each with a value that is no kind's default and moves the borders of "yarn" by whole channels
    "rope_base": 500.0,
    "rope_scaling": 8.0,
    "rope_scaling_type": ROPE_SCALINGS,
    "rope_original": 4096,
    "rope_slow": 0.01,
    "rope_fast": 300.0,
    "rope_attention": 1.3,
    "rope_truncate": False,
}


@functools.cache
def tables(spec: ModelSpec):
    with jax.disable_jit():  # nothing to compile for each network
        return np.stack(rotary_tables(jnp.arange(64)[None], spec))


@pytest.mark.parametrize("attention", [1.0, 1.2])
@pytest.mark.parametrize("factor", [1.0, 4.0])
@pytest.mark.parametrize("kind", ROPE_SCALINGS)
def test_a_field_of_positions_is_named_exactly_where_its_kind_reads_it(kind, factor, attention):
    """The kind of fault: each way to stretch positions reads fields of its own, and a list of them for one is wrong for another."""
    assert set(ROPE_FIELDS) == {name for name in EVERY if name.startswith("rope_")}
    values = dict(rope_scaling=factor, rope_scaling_type=kind, rope_original=32768, rope_fast=32.0, rope_attention=attention)
    here = tiny.spec(depth=1, width=64, head_dim=32, ffn=8, heads=2, kv_heads=2, **values)
    for field, choice in ROPE_FIELDS.items():
        for value in choice if isinstance(choice, tuple) else (choice,):
            there = dataclasses.replace(here, **{field: value})
            same = np.allclose(tables(here), tables(there), rtol=0, atol=1e-5)
            named = here.differing(there)
            assert bool(named) == (not same), f"{field}={value}: {named}, and the tables are {'the same' if same else 'others'}"
            assert there.differing(here) == named and all(getattr(here, name) != getattr(there, name) for name in named)
