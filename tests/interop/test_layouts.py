"""The tables of names: every tensor has one place on both sides, and going there and back changes no bit."""

import jax
import numpy as np
import pytest

from dlmjax.errors import InputError
from dlmjax.interop.layouts import LAYOUTS, layout_of
from dlmjax.models import build_network
from dlmjax.models.families import FAMILIES, family_fields
from tests.models import tiny

TIED = ("gpt2", "bert", "roberta")


def spec_for(layout, **changes):
    fields = family_fields(layout.family)
    short = {"max_positions": 24} if fields.get("positions") == "learned" else {}
    heads = {"kv_heads": 4} if layout.family in ("gpt2", "bert") else {}
    return tiny.spec(**{**fields, **short, **heads, "tied": layout.name in TIED, **changes})


@pytest.mark.parametrize("name", LAYOUTS)
@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
def test_there_and_back_changes_no_bit(name, tied):
    layout = layout_of(name)
    spec = spec_for(layout, tied=tied)
    entries, rng = layout.entries(spec), np.random.default_rng(0)
    assert len({entry.name for entry in entries}) == len(entries)
    file = {entry.name: rng.normal(size=entry.shape).astype(np.float32) for entry in entries}
    ours = {(path, entry.layer): part for entry in entries for path, part in zip(entry.paths, entry.unpack(file[entry.name]), strict=True)}
    shapes = {tuple(key.key for key in path): leaf.shape for path, leaf in leaves(spec)}
    for (path, layer), part in ours.items():
        assert part.shape == (shapes[path] if layer is None else shapes[path][1:]), path
    places = {(path, layer) for path, shape in shapes.items() for layer in (range(spec.depth) if path[0] == "layers" else (None,))}
    assert ours.keys() == places, "each weight of each layer has one tensor"
    for entry in entries:
        np.testing.assert_array_equal(entry.pack([ours[path, entry.layer] for path in entry.paths]), file[entry.name])
        if entry.vocab_axis is not None:
            assert entry.shape[entry.vocab_axis] == spec.vocab
    assert sum(entry.vocab_axis is not None for entry in entries) == (2 if not tied else 1) + (spec.head == "transform")


def leaves(spec):
    return jax.tree_util.tree_flatten_with_path(build_network(spec).abstract())[0]


@pytest.mark.parametrize(
    ("name", "spec", "said"),
    [
        ("llama", tiny.spec(), "qk_norm=False"),
        ("qwen3", tiny.spec(qk_norm=False), "qk_norm=True"),
        ("gpt2", tiny.spec(), "model.family=gpt2 would fit"),
        ("qwen3", tiny.spec(time_input="adaln"), "no name for layers.modulation.kernel"),
        ("qwen3", tiny.spec(self_condition=True), "no name for hint.kernel"),
        ("qwen3", tiny.spec(input_dim=8), "no name for input.kernel"),
    ],
)
def test_a_network_that_a_layout_cannot_hold_is_refused(name, spec, said):
    with pytest.raises(InputError, match=said):
        layout_of(name).entries(spec)


def test_every_layout_is_of_a_family_and_unknown_ones_are_refused():
    assert {layout.family for layout in LAYOUTS.values()} == set(FAMILIES)
    with pytest.raises(InputError, match="choose one of llama, "):
        layout_of("mamba")
