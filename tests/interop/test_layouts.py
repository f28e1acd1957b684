"""The tables of names: every tensor has one place on both sides, and going there and back changes no bit."""

import json

import jax
import numpy as np
import pytest

from dlmjax.errors import InputError
from dlmjax.interop.hf_config import HARMLESS
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
        ({"rope_scaling": {"type": "linear"}}, "no rope_scaling.factor"),
        ({"rope_scaling": {"rope_type": "llama3", "factor": 4}}, "no original_max_position_embeddings"),
        ({"rope_scaling": {"rope_type": "longrope", "factor": 4}}, "stretches positions"),
        ({"rope_scaling": "linear"}, "rope_scaling='linear', which is not an object"),
        ({"rope_parameters": [1]}, "rope_parameters=[1], which is not an object"),
        ({"rope_parameters": {"full_attention": YARN}}, "rope_parameters.full_attention={'rope_theta': 1000000.0, "),
        ({"rope_scaling": {**YARN, "short_factor": [1]}, "max_position_embeddings": 64}, "rope_scaling.short_factor=[1]"),
        ({"rope_theta": "x"}, "rope_theta='x', which is not a finite number above 1"),
        ({"rope_theta": 10**400}, "rope_theta=10000"),
        ({"rope_theta": float("inf")}, "rope_theta=inf"),
        ({"rope_theta": float("nan")}, "rope_theta=nan"),
        ({"rms_norm_eps": None}, "rms_norm_eps=None"),
        ({"rms_norm_eps": -1.0}, "rms_norm_eps=-1.0, which is not a finite number above 0"),
        ({"tie_word_embeddings": "yes"}, "tie_word_embeddings='yes', which is neither true nor false"),
        ({"no_rope_layers": [1, 0]}, "no_rope_layers=[1, 0], which is unknown and might change what the network computes"),
        ({"embedding_multiplier": 12.0}, "embedding_multiplier=12.0, which is unknown and might change what the network computes"),
        ({"layer_types": 5}, "layer_types=5"),
        ({"num_hidden_layers": 1e9}, "num_hidden_layers=1000000000.0"),
        ({"num_hidden_layers": 10**9}, "num_hidden_layers=1000000000, which is more than any network has"),
        ({"num_hidden_layers": -2}, "num_hidden_layers=-2"),
        ({"hidden_size": 10**400}, "hidden_size=10000"),
        ({"num_attention_heads": 0}, "num_attention_heads=0, which is not a whole number from 1 on"),
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


LLADA = """{"activation_type": "silu", "alibi": false, "alibi_bias_max": 8.0, "architectures": ["LLaDAModelLM"], "attention_dropout": 0.0,
"attention_layer_norm": false, "attention_layer_norm_with_affine": true, "auto_map": {}, "bias_for_layer_norm": false,
"block_group_size": 1, "block_type": "llama", "d_model": 4096, "embedding_dropout": 0.0, "embedding_size": 126464, "eos_token_id":
126081, "flash_attention": false, "include_bias": false, "include_qkv_bias": false, "init_cutoff_factor": null, "init_device":
"meta", "init_fn": "mitchell", "init_std": 0.02, "input_emb_norm": false, "layer_norm_type": "rms", "layer_norm_with_affine":
true, "mask_token_id": 126336, "max_sequence_length": 4096, "mlp_hidden_size": 12288, "mlp_ratio": 4, "model_type": "llada",
"multi_query_attention": null, "n_heads": 32, "n_kv_heads": 32, "n_layers": 32, "pad_token_id": 126081, "precision": "amp_bf16",
"residual_dropout": 0.0, "rms_norm_eps": 1e-05, "rope": true, "rope_full_precision": true, "rope_theta": 500000.0, "scale_logits":
false, "transformers_version": "4.46.3", "use_cache": false, "vocab_size": 126464, "weight_tying": false}"""


# Keys beside the sizes that published files have, by layout: none of them is refused.
PUBLISHED = {
    "llama": dict(is_llama_config=True, rope_interleaved=False, rope_scaling=None, pretraining_tp=1, attention_bias=False, mlp_bias=False),
    "mistral": dict(sliding_window=None, attention_dropout=0.0, use_cache=True, torch_dtype="bfloat16", transformers_version="4.34.0.dev0"),
    "qwen2": dict(use_mrope=False, use_sliding_window=False, sliding_window=131072, max_window_layers=28, attention_dropout=0.0),
    "qwen3": dict(head_dim=8, attention_bias=False, use_sliding_window=False, sliding_window=None, max_window_layers=36, rope_scaling=None),
    "sdar": dict(head_dim=8, block_size=4, fuse_cross_entropy=True, debug=False, ep_size=1, micro_forward=False, skip_checkpoint=False),
    "dream": dict(use_mrope=False, use_sliding_window=False, sliding_window=None, mask_token_id=151666, auto_map={}, pad_token_id=151643),
    "bert": dict(gradient_checkpointing=False, position_embedding_type="absolute", classifier_dropout=None, directionality="bidi"),
    "roberta": dict(output_past=True, position_embedding_type="absolute", tokenizer_class="BertTokenizer", type_vocab_size=1),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_no_key_of_a_published_file_is_refused(name):
    """Nor is a window that is switched off; where only code that lies beside the weights knows what one means, it is refused."""
    given = {"num_key_value_heads": 4, "vocab_size": 32000, "initializer_range": 0.02, **PUBLISHED[name]}
    given = {key: value for key, value in given.items() if key != "num_key_value_heads" or name not in ("bert", "roberta")}
    given |= {**SIZES, "architectures": ["X"], "bos_token_id": 1, "eos_token_id": 2, "model_type": name}
    LAYOUTS[name].spec_of(given)
    if name in ("dream", "sdar"):
        with pytest.raises(InputError, match="use_sliding_window=True"):
            LAYOUTS[name].spec_of({**given, "use_sliding_window": True, "sliding_window": 8, "max_window_layers": 0})


def test_the_config_that_llada_published_is_read_key_by_key():
    """No class of transformers reads it: each key is applied, refused, or on one of the lists of those that change nothing."""
    hf = json.loads(LLADA)
    plain = LAYOUTS["llada"].spec_of(hf)
    assert (plain["depth"], plain["width"], plain["ffn"], plain["rope_base"]) == (32, 4096, 12288, 500_000.0)
    silent = set(" ".join(HARMLESS.values()).split()) | {"alibi_bias_max", "attention_layer_norm_with_affine", "block_group_size"}
    silent |= {"rope_full_precision", "mlp_ratio"}  # sines are float32 here too; the ratio stands behind mlp_hidden_size
    for key, value in hf.items():
        other = not value if isinstance(value, bool) else value * 2 if isinstance(value, int | float) else "x"
        try:
            applied = LAYOUTS["llada"].spec_of({**hf, key: other}) != plain
        except InputError as error:
            applied = key in str(error)
        assert applied or key in silent, key


def test_every_layout_is_of_a_family_and_unknown_ones_are_refused():
    assert {layout.family for layout in LAYOUTS.values()} == set(FAMILIES)
    with pytest.raises(InputError, match="choose one of llama, "):
        layout_of("mamba")
