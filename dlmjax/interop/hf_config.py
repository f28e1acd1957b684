"""What a Hugging Face config.json says about the network, as leaves of our `config.model`; what we cannot compute is refused by name.

Each function takes the family and the parsed file, and returns every leaf of `config.model` that the file decides.
"""

from __future__ import annotations

from typing import Any

from dlmjax.errors import InputError
from dlmjax.models.families import family_text


def llama_like(family: str, hf: dict[str, Any], shift: bool = False) -> dict[str, Any]:
    """Llama, Qwen2, Qwen3, and what copies their config: SDAR, Dream. `shift`: the weights predict the position after the one they read."""
    _expect(hf, "hidden_act", "silu")
    # Llama's and Qwen3's switch is for all four maps of attention; Qwen2's bias on three of them has none.
    for switch in ("attention_bias", "mlp_bias", "use_sliding_window"):
        _expect(hf, switch, False)
    for kind in hf.get("layer_types") or ():
        if kind != "full_attention":
            raise InputError(f"config.json has layers of {kind}; only full_attention can be computed here")
    width, heads = _size(hf, "hidden_size"), _size(hf, "num_attention_heads")
    base, factor, of_rope = _rope(hf)
    return {
        "depth": _size(hf, "num_hidden_layers"),
        "width": width,
        "heads": heads,
        "kv_heads": count(hf, "num_key_value_heads", heads),
        "head_dim": count(hf, "head_dim", width // heads),
        "ffn": _size(hf, "intermediate_size"),
        "tied": bool(hf.get("tie_word_embeddings", False)),
        "rope_base": base,
        "rope_scaling": factor,
        "family": family_text(family, norm_eps=float(hf.get("rms_norm_eps", 1e-6)), shift=shift, **of_rope),
    }


def llada(family: str, hf: dict[str, Any]) -> dict[str, Any]:
    """LLaDA's config, which is OLMo's."""
    wanted = dict(block_type="llama", activation_type="silu", layer_norm_type="rms", rope=True, alibi=False, scale_logits=False)
    wanted |= dict(include_bias=False, include_qkv_bias=False, attention_layer_norm=False, input_emb_norm=False, multi_query_attention=None)
    wanted |= dict(clip_qkv=None)
    for key, value in wanted.items():
        _expect(hf, key, value)
    width, heads = _size(hf, "d_model"), _size(hf, "n_heads")
    return {
        "depth": _size(hf, "n_layers"),
        "width": width,
        "heads": heads,
        "kv_heads": count(hf, "n_kv_heads", heads),
        "head_dim": width // heads,
        "ffn": count(hf, "mlp_hidden_size", None) or int(hf.get("mlp_ratio", 4) * width),
        "tied": bool(hf.get("weight_tying", False)),
        "rope_base": float(hf.get("rope_theta", 10_000.0)),
        "rope_scaling": 1.0,
        "family": family_text(family, norm_eps=float(hf.get("rms_norm_eps", 1e-5))),
    }


def gpt2(family: str, hf: dict[str, Any]) -> dict[str, Any]:
    """GPT-2's config."""
    if hf.get("activation_function", "gelu_new") not in ("gelu_new", "gelu_pytorch_tanh"):
        raise InputError(f"config.json has activation_function={hf['activation_function']!r}; only gelu_new can be computed here")
    for key, value in dict(scale_attn_weights=True, scale_attn_by_inverse_layer_idx=False, add_cross_attention=False).items():
        _expect(hf, key, value)
    width, heads = _size(hf, "n_embd"), _size(hf, "n_head")
    values = dict(norm_eps=float(hf.get("layer_norm_epsilon", 1e-5)), max_positions=count(hf, "n_positions", 1024))
    return {
        **_equal_heads(width, heads),
        "depth": _size(hf, "n_layer"),
        "ffn": count(hf, "n_inner", 4 * width),
        "tied": bool(hf.get("tie_word_embeddings", True)),
        "family": family_text(family, **values),
    }


def bert(family: str, hf: dict[str, Any]) -> dict[str, Any]:
    """BERT's and RoBERTa's config. RoBERTa numbers positions from the padding id on, plus one."""
    _expect(hf, "hidden_act", "gelu")
    _expect(hf, "position_embedding_type", "absolute")
    _expect(hf, "is_decoder", False)
    width, heads = _size(hf, "hidden_size"), _size(hf, "num_attention_heads")
    values = dict(
        norm_eps=float(hf.get("layer_norm_eps", 1e-12)),
        max_positions=count(hf, "max_position_embeddings", 512),
        token_types=count(hf, "type_vocab_size", 2),
        position_offset=count(hf, "pad_token_id", 1, least=0) + 1 if hf.get("model_type") == "roberta" else 0,
    )
    return {
        **_equal_heads(width, heads),
        "depth": _size(hf, "num_hidden_layers"),
        "ffn": _size(hf, "intermediate_size"),
        "tied": bool(hf.get("tie_word_embeddings", True)),
        "family": family_text(family, **values),
    }


def _equal_heads(width: int, heads: int) -> dict[str, Any]:
    return {"width": width, "heads": heads, "kv_heads": heads, "head_dim": width // heads, "rope_base": 10_000.0, "rope_scaling": 1.0}


def _rope(hf: dict[str, Any]) -> tuple[float, float, dict[str, Any]]:
    """(base, factor, values of the family). transformers 5 writes `rope_parameters`, older versions `rope_theta` and `rope_scaling`."""
    given = hf.get("rope_parameters") or {}
    scaling = {**given, **(hf.get("rope_scaling") or {})}
    if any(isinstance(value, dict) for value in scaling.values()):
        raise InputError(f"config.json turns layers of several kinds each in its own way ({scaling}); only one way can be computed here")
    base = float(given.get("rope_theta") or hf.get("rope_theta") or 10_000.0)
    kind = scaling.get("rope_type", scaling.get("type", "default"))
    if float(hf.get("partial_rotary_factor", scaling.get("partial_rotary_factor", 1.0))) != 1.0:
        raise InputError("config.json turns a part of each head's channels (partial_rotary_factor); only whole heads can be turned here")
    if kind == "default":
        return base, 1.0, {}
    if kind == "linear":
        return base, float(scaling["factor"]), {}
    if kind == "llama3" and (scaling.get("low_freq_factor", 1.0), scaling.get("high_freq_factor", 4.0)) == (1.0, 4.0):
        of_rope = {"rope_scaling_type": "llama3", "rope_original": _size(scaling, "original_max_position_embeddings")}
        return base, float(scaling["factor"]), of_rope
    raise InputError(f"config.json stretches positions by {scaling}; only linear, and llama3 with factors 1 and 4, can be computed here")


def _size(hf: dict[str, Any], key: str) -> int:
    size = count(hf, key, None)
    if size is None:
        raise InputError(f"config.json has no {key}; is it that of a model of another kind? Give its --family")
    return size


def count(hf: dict[str, Any], key: str, default: int | None, least: int = 1) -> int | None:
    """A number of things; `default` where the file does not say it.  Raises InputError for what is no whole number from `least` on."""
    value = hf.get(key)
    if value is None:
        return default
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise InputError(f"config.json has {key}={value!r}, which is no whole number from {least} on; correct the file")
    return value


def _expect(hf: dict[str, Any], key: str, value: Any) -> None:
    """A switch that our networks do not have must stand where it changes nothing; missing, it does."""
    if hf.get(key, value) != value:
        raise InputError(f"config.json has {key}={hf[key]!r}; only {key}={value!r} can be computed here")
