"""Every key of a source's config.json is applied as transformers applies it, changes nothing there either, or is refused by name."""

import dataclasses
import functools
import json

import jax.numpy as jnp
import numpy as np
import pytest

from dlmjax import config as config_lib
from dlmjax.errors import InputError
from dlmjax.interop.hf_config import HARMLESS
from dlmjax.interop.importer import _process_of, read_weights
from dlmjax.interop.layouts import LAYOUTS
from dlmjax.interop.safetensors import Reader
from dlmjax.models import Execution, build_network, model_spec
from tests.interop import sources
from tests.interop.runs import experiment_of

torch = pytest.importorskip("torch", reason="the classes to compare with need PyTorch (pip install dlmjax[interop])")
transformers = pytest.importorskip(
    "transformers", reason="the classes to compare with are those of transformers (pip install dlmjax[interop])"
)

torch.set_num_threads(1)  # of layers this small, threads only wait for each other
TOKENS_BL = np.random.default_rng(0).integers(2, 256, (2, 16)).astype(np.int32)
FAST = ("mistral", "gpt2", "roberta")
ROPES = (
    {"rope_type": "default", "rope_theta": 77.0},
    {"rope_type": "linear", "factor": 3.0},
    {"type": "linear", "factor": 2.0, "rope_theta": 99.0},
    {"rope_type": "llama3", "factor": 4.0, "low_freq_factor": 0.5, "high_freq_factor": 3.0, "original_max_position_embeddings": 12},
    {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 12},
    {"rope_type": "yarn", "factor": 4.0, "rope_theta": 50.0, "beta_fast": 2, "beta_slow": 0.5, "truncate": False, "attention_factor": 0.7},
    {"rope_type": "yarn", "factor": 2.0, "mscale": 0.7, "mscale_all_dim": 1.5, "original_max_position_embeddings": 20},
    {"rope_type": "dynamic", "factor": 4.0},
    {"rope_type": "longrope", "factor": 4.0, "short_factor": [2.0, 1.5], "long_factor": [3.0, 4.0]},
    {"rope_type": "default", "partial_rotary_factor": 0.5},
    {"rope_type": "default", "factor": 4.0},
    {"full_attention": {"rope_type": "default", "rope_theta": 5.0}},
)
# What a key is changed to where the rule of `other` would only give what transformers refuses itself.
CHANGES = {
    "hidden_act": ("relu", "gelu"),
    "activation_function": ("relu", "gelu_pytorch_tanh"),
    "dtype": ("bfloat16",),
    "torch_dtype": ("float16",),
    "architectures": (["Other"],),
    "problem_type": ("regression",),
    "id2label": ({"0": "a"},),
    "label2id": ({"a": 0},),
    "num_labels": (5,),
    "_attn_implementation": ("eager",),
    "attn_implementation": ("eager",),
    "layer_types": (["sliding_attention"] * 2, ["full_attention", "sliding_attention"], ["full_attention"] * 3),
    "rope_parameters": ROPES,
    "rope_scaling": ROPES,
    "num_attention_heads": (2,),
    "num_key_value_heads": (1, None),
    "head_dim": (2, None),
    "sliding_window": (3, None),
    "pad_token_id": (3, None),
    "partial_rotary_factor": (0.5,),
    "original_max_position_embeddings": (7,),
    "chunk_size_feed_forward": (2,),
    "model_type": (),  # chooses the layout
    "quantization_config": (),  # read before all else
    "dlm": (),  # ours
    "initializer_range": (0.5,),
}
# Keys of other networks, which some of these classes read although their own configs do not list them.
FOREIGN = (
    "no_rope_layers no_rope_layer_interval embedding_multiplier logits_scaling residual_multiplier attention_multiplier "
    "rope_theta rope_scaling rope_parameters partial_rotary_factor layer_types use_sliding_window sliding_window "
    "max_window_layers attention_bias mlp_bias head_dim attn_logit_softcapping final_logit_softcapping logit_scale "
    "qk_layernorm use_qk_norm parallel_residual clip_qkv per_layer_config is_causal is_decoder position_embedding_type "
    "pruned_heads layer_norm_eps rms_norm_eps norm_eps attention_chunk_size mup_width original_max_position_embeddings "
    "reorder_and_upcast_attn rope_interleaved block_size num_experts tie_last_hidden_states "
)


def other(value):
    """A value of the same type that is not it."""
    if isinstance(value, bool):
        return (not value,)
    if isinstance(value, int | float):
        return (value + 1, value * 3 + 0.5) if isinstance(value, float) else (value + 1,)
    return {str: ("other",), list: ([*(value or []), 1],), dict: ({"x": 1},)}.get(type(value), (2, True))


@functools.cache
def saved(layout, root):
    """(directory of a tiny model, its config.json, its weights)."""
    model = sources.torch_model(layout)
    directory = sources.save(model, layout, root / layout)
    hf = json.loads((directory / "config.json").read_text())
    return directory, hf, model.state_dict(), type(model)


def theirs(kind, hf, weights):
    """[B, L, V] of transformers, or None where it refuses the config or the weights."""
    try:
        model = kind(kind.config_class.from_dict(json.loads(json.dumps(hf)))).eval()
        if model.load_state_dict(weights, strict=False).unexpected_keys:
            return None
        model.tie_weights()
        with torch.no_grad():
            out = model.float()(input_ids=torch.tensor(TOKENS_BL.astype(np.int64)))
    except Exception:  # it raises what its own checks and torch raise
        return None
    return (out[0] if isinstance(out, tuple) else out.logits).numpy()


@functools.cache
def anything():
    """A run on one device, of which only the placement is used."""
    return experiment_of()


def ours(layout, hf, directory):
    """[B, L, V] of dlmjax. Raises InputError where the import would."""
    config = config_lib.default()
    config.model.update(LAYOUTS[layout].spec_of(hf))
    network = build_network(model_spec(config.model, vocab=sources.VOCAB), Execution(scan=False))
    params = read_weights(dataclasses.replace(anything(), network=network), LAYOUTS[layout], Reader(directory))
    positions_BL = jnp.broadcast_to(jnp.arange(16), TOKENS_BL.shape)
    attention = "causal" if _process_of(LAYOUTS[layout], hf) == "autoregressive" else "full"
    denoiser = network.bind(params, jnp.ones(TOKENS_BL.shape, jnp.int32), positions_BL, attention)
    return np.asarray(denoiser.logits(denoiser.hidden(jnp.asarray(TOKENS_BL), jnp.zeros(TOKENS_BL.shape))))


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return tmp_path_factory.mktemp("keys")


# One layout for each function that reads a config; the others, and each harmless key by itself, in the slow form.
EVERY = [pytest.param(name, marks=[] if name in FAST else pytest.mark.slow) for name in (*FAST, "llama", "olmo2", "qwen2", "qwen3", "bert")]


@pytest.mark.parametrize("layout", EVERY)
def test_no_key_is_passed_over(layout, root):
    """The kind of fault: a key that transformers reads and we do not changes the function in silence."""
    directory, base, weights, kind = saved(layout, root)
    plain, known = theirs(kind, base, weights), sorted(set(" ".join(HARMLESS.values()).split()))
    defaults = kind.config_class().to_dict()
    unchanged, accepted, wrong = (LAYOUTS[layout].spec_of(base), _process_of(LAYOUTS[layout], base)), [], []
    counts = {"refused": 0, "applied": 0, "harmless": 0, "refused there too": 0}

    def compare(changes, found):
        wanted = theirs(kind, {**base, **changes}, weights)
        if wanted is not None and (found.shape != wanted.shape or np.abs(found - wanted).max() > 1e-5):
            wrong.append(changes)
        return wanted is not None

    for key in dict.fromkeys([*defaults, *base, *known, *FOREIGN.split()]):
        for value in (v for v in CHANGES.get(key, other(base.get(key, defaults.get(key)))) if v != base.get(key, ...)):
            hf = {**base, key: value}
            try:
                same = (LAYOUTS[layout].spec_of(hf), _process_of(LAYOUTS[layout], hf)) == unchanged
                found = plain if same else ours(layout, hf, directory)
            except InputError as error:
                counts["refused"] += 1
                assert "\n" not in str(error)
                continue
            if same:
                counts["harmless"] += 1
                accepted.append({key: value})
            else:
                counts["applied" if compare({key: value}, found) else "refused there too"] += 1
    # All at once: their effects do not cancel by chance. Where transformers takes no such file, one by one.
    if layout not in FAST or not compare({key: value for change in accepted for key, value in change.items()}, plain):
        for change in accepted:
            compare(change, plain)
    assert not wrong
    assert counts["applied"] >= 2 and counts["harmless"] >= 60 and counts["refused"] >= 20, counts
