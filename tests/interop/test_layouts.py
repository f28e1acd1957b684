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


SIZES = dict(hidden_size=16, num_attention_heads=4, num_hidden_layers=2, intermediate_size=24)
YARN = {"rope_theta": 1e6, "rope_type": "yarn", "factor": 4.0}


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"rope_scaling": {"type": "linear"}}, "factor"),
        ({"rope_scaling": {"rope_type": "llama3", "factor": 4}}, "no original_max_position_embeddings"),
        ({"rope_scaling": {"rope_type": "longrope", "factor": 4}}, "stretches positions"),
        ({"rope_scaling": "linear"}, "not one of layout llama"),
        ({"rope_parameters": [1]}, "not one of layout llama"),
        ({"rope_parameters": {"full_attention": YARN}}, "several kinds"),
        ({"rope_theta": "x"}, "not one of layout llama"),
        ({"rms_norm_eps": None}, "not one of layout llama"),
        ({"num_attention_heads": 0}, "num_attention_heads=0, which is no whole number from 1 on"),
        ({"num_hidden_layers": True}, "num_hidden_layers=True"),
        ({"num_key_value_heads": "2"}, "num_key_value_heads='2'"),
        ({"head_dim": 4.0}, "head_dim=4.0"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_a_config_that_is_damaged_or_unknown_is_told_in_a_line(changes, said):
    with pytest.raises(InputError) as refused:
        LAYOUTS["llama"].spec_of({**SIZES, **changes})
    assert said in str(refused.value) and "\n" not in str(refused.value)


def test_what_a_config_leaves_open_has_its_usual_value():
    spec = LAYOUTS["llama"].spec_of({**SIZES, "head_dim": None, "num_key_value_heads": None})
    assert (spec["head_dim"], spec["kv_heads"]) == (4, 4)
    roberta = {**SIZES, "model_type": "roberta", "pad_token_id": None}
    assert "position_offset=2" in LAYOUTS["roberta"].spec_of(roberta)["family"]
    with pytest.raises(InputError, match="clip_qkv=8.0"):
        LAYOUTS["llada"].spec_of(dict(d_model=16, n_heads=4, n_layers=2, clip_qkv=8.0))


def test_every_layout_is_of_a_family_and_unknown_ones_are_refused():
    assert {layout.family for layout in LAYOUTS.values()} == set(FAMILIES)
    with pytest.raises(InputError, match="choose one of llama, "):
        layout_of("mamba")
