"""The network of a Hugging Face config.json, as leaves of our `config.model`.

Every key of the file is accounted for: it is applied, it has a value that changes nothing, it is known to change nothing
(`HARMLESS`), or the import is refused with its name. A key that only transformers reads would change the function without an error.

Each function takes the family and the fields of the file, and returns every leaf of `config.model` that the file decides. A missing
key has the value that the class of transformers gives it.
"""

from __future__ import annotations

import math
from typing import Any

from dlmjax.errors import InputError
from dlmjax.models.families import family_text

# Keys that change no logit of a network in evaluation, by the reason. The tests prove it key by key against transformers.
HARMLESS = {
    "where the file comes from": """
        architectures model_type _name_or_path name_or_path transformers_version _commit_hash auto_map _from_model_config
        transformers.js_config unsloth_version unsloth_fixed _diffusers_version is_llama_config custom_pipelines""",
    "the type of the stored numbers, which each tensor states itself": "dtype torch_dtype precision use_bfloat16",
    "how it is run": """
        use_cache pretraining_tp _attn_implementation attn_implementation _attn_implementation_autoset flash_attention use_flash_attn
        chunk_size_feed_forward torchscript gradient_checkpointing fuse_cross_entropy skip_checkpoint micro_forward ep_size
        use_deepep debug""",
    "what a call returns": "return_dict use_return_dict output_attentions output_hidden_states output_past output_scores",
    "start values of weights": "initializer_range initializer_factor init_std init_fn init_cutoff_factor init_device",
    "heads for other tasks": """
        _num_labels
        num_labels id2label label2id problem_type finetuning_task task_specific_params classifier_dropout summary_type summary_use_proj
        summary_activation summary_proj_to_labels summary_first_dropout pooler_fc_size pooler_num_attention_heads pooler_num_fc_layers
        pooler_size_per_head pooler_type directionality n_special predict_special_tokens""",
    "how long rows were in training, which no position depends on": "seq_length",
    "dropout, which evaluation does not apply": """
        attention_dropout hidden_dropout hidden_dropout_prob attention_probs_dropout_prob resid_pdrop embd_pdrop attn_pdrop
        residual_dropout embedding_dropout""",
    "decoding": """
        max_length max_new_tokens min_length do_sample early_stopping num_beams num_beam_groups diversity_penalty temperature top_k top_p
        typical_p repetition_penalty length_penalty no_repeat_ngram_size encoder_no_repeat_ngram_size bad_words_ids num_return_sequences
        return_dict_in_generate forced_bos_token_id forced_eos_token_id remove_invalid_values exponential_decay_length_penalty
        suppress_tokens begin_suppress_tokens prefix decoder_start_token_id sep_token_id cls_token_id unk_token_id tokenizer_class
        tf_legacy_loss tie_encoder_decoder cross_attention_hidden_size model_max_length""",
    "read elsewhere in the import (importer.py, vocabulary.py)": """
        vocab_size embedding_size max_position_embeddings max_sequence_length n_positions dlm is_causal quantization_config
        mask_token_id pad_token_id eos_token_id bos_token_id mask_token pad_token eos_token""",
}
_HARMLESS = {key for keys in HARMLESS.values() for key in keys.split()}
# More layers, channels or ids than any network has: a larger number is damage.
LARGEST = 1 << 24
LARGEST_NUMBER = 1e30


class Fields:
    """A JSON object that records which of its keys were read. `path` precedes its keys in messages."""

    def __init__(self, values: dict[str, Any], path: str = ""):
        self._values, self._path, self._read = values, path, set()

    def __contains__(self, key: str) -> bool:
        return key in self._values

    def get(self, key: str, default: Any = None) -> Any:
        """The value as it stands; `default` where the file has no such key."""
        self._read.add(key)
        return self._values.get(key, default)

    def count(self, key: str, default: int | None, absent: int | None = None, least: int = 1) -> int | None:
        """A count; `default` where the value is null, `absent` (or `default`) where the key is missing.

        Raises InputError for a value that is not a whole number from `least` on, or is beyond any network.
        """
        value = self.get(key, default if absent is None else absent)
        if value is None:
            return default
        if not isinstance(value, int) or isinstance(value, bool) or value < least:
            raise InputError(f"{self._at(key)}, which is not a whole number from {least} on; correct the file")
        if value > LARGEST:
            raise InputError(f"{self._at(key)}, which is more than any network has ({LARGEST:,}); correct the file")
        return value

    def size(self, key: str) -> int:
        """A required count."""
        found = self.count(key, None)
        if found is None:
            raise InputError(f"config.json has no {self._path}{key}; set --family if the model is of another kind")
        return found

    def number(self, key: str, default: float | None, least: float = 0.0, null: bool = False) -> float:
        """A finite number above `least`; `default` (None: required) where the key is missing, or, with `null`, the value is null."""
        value = self.get(key)
        if value is None and default is not None and (null or key not in self):
            return default
        if value is None and key not in self:
            raise InputError(f"config.json has no {self._path}{key}; correct the file")
        if not isinstance(value, int | float) or isinstance(value, bool) or not least < value < LARGEST_NUMBER:
            raise InputError(f"{self._at(key)}, which is not a finite number above {least:g}; correct the file")
        return float(value)

    def flag(self, key: str, default: bool) -> bool:
        """true or false; `default` where the key is missing."""
        value = self.get(key)
        if value is None:
            return default
        if not isinstance(value, bool):
            raise InputError(f"{self._at(key)}, which is neither true nor false; correct the file")
        return value

    def expect(self, key: str, *allowed: Any) -> None:
        """Requires a switch that our networks do not have to hold a value that changes nothing; a missing key does."""
        value = self.get(key, allowed[0])
        if not any(type(value) is type(one) and value == one for one in allowed) and not (value is None and not allowed[0]):
            raise InputError(f"{self._at(key)}; only {key}={allowed[0]!r} can be computed here")

    def section(self, key: str) -> Fields | None:
        """An object inside; None where it is missing, null or empty."""
        value = self.get(key)
        if not isinstance(value, dict | None):
            raise InputError(f"{self._at(key)}, which is not an object; correct the file")
        return Fields(value, f"{self._path}{key}.") if value else None

    def finish(self) -> None:
        """Raises InputError for the first key that was not read; at the top of the file, the `HARMLESS` ones are allowed."""
        known = set() if self._path else _HARMLESS
        for key in self._values:
            if key not in self._read and key not in known:
                raise InputError(
                    f"{self._at(key)}, which is unknown and might change what the network computes; "
                    "take the key out of a copy of the file if you know that it changes nothing"
                )

    def _at(self, key: str) -> str:
        text = repr(self._values.get(key))
        return f"config.json has {self._path}{key}={text if len(text) <= 60 else text[:57] + '...'}"


def llama_like(
    family: str,
    hf: Fields,
    shift: bool = False,
    sliding: str = "never",
    head_dim: int | None = None,
    kv_heads: int | None = None,
    norm_eps: float = 1e-6,
) -> dict[str, Any]:
    """Llama, Qwen2, Qwen3, and what copies their config: SDAR, Dream, Mistral, OLMo 2.

    shift: the weights predict the position after the one they read. sliding: "never"; "always", layers have the file's `sliding_window`;
    "switch", where the file sets its switch; "off", the file has such a switch, and it must be off. head_dim, kv_heads, norm_eps:
    values of missing keys.
    """
    hf.expect("hidden_act", "silu", "swish")
    # Llama's and Qwen3's switch is for all four maps of attention; Qwen2's bias on three of them has none.
    for switch in ("attention_bias", "mlp_bias", "is_encoder_decoder", "add_cross_attention", "rope_interleaved", "use_mrope"):
        hf.expect(switch, False)
    width, heads, depth = hf.size("hidden_size"), hf.size("num_attention_heads"), hf.size("num_hidden_layers")
    window = _window(hf, depth, sliding)
    base, factor, of_rope = _rope(hf)
    return {
        "depth": depth,
        "width": width,
        "heads": heads,
        "kv_heads": hf.count("num_key_value_heads", heads, absent=kv_heads),
        "head_dim": hf.count("head_dim", max(width // heads, 1), absent=head_dim),
        "ffn": hf.size("intermediate_size"),
        "tied": hf.flag("tie_word_embeddings", False),
        "rope_base": base,
        "rope_scaling": factor,
        "family": family_text(family, norm_eps=hf.number("rms_norm_eps", norm_eps), shift=shift, window=window, **of_rope),
    }


def _window(hf: Fields, depth: int, sliding: str) -> int:
    """The window of all layers as `ModelSpec.window`, 0 where there is none.  sliding: see `llama_like`.

    transformers counts a position itself in a causal window, and not in a bidirectional one.
    """
    kinds = hf.get("layer_types")
    window, first = None, 0
    if sliding == "always":
        window = hf.count("sliding_window", None, absent=4096)
    else:
        hf.expect("use_sliding_window", False, *([True] if sliding == "switch" else []))
        found, after = hf.get("sliding_window"), hf.get("max_window_layers")  # Qwen's layers from `max_window_layers` on
        if hf.get("use_sliding_window"):
            window, first = hf.count("sliding_window", None, absent=4096), hf.count("max_window_layers", 0, absent=28, least=0)
        elif sliding == "never" and (found, after) != (None, None):
            hf.expect("sliding_window", None), hf.expect("max_window_layers", None)
    if kinds is None:
        slides = {first < depth and window is not None, first == 0 and window is not None}
    else:
        if not isinstance(kinds, list) or len(kinds) != depth or not set(kinds) <= {"full_attention", "sliding_attention"}:
            raise InputError(f"config.json has layer_types={str(kinds):.60}; only {depth} layers of full_attention can be computed here")
        slides = {kind == "sliding_attention" for kind in kinds}
    if len(slides) > 1 or slides != {window is not None}:
        raise InputError(
            f"config.json has layers that attend within a window (sliding_window={window}) and layers that do not (layer_types, "
            "max_window_layers); only layers of one kind can be computed here"
        )
    return 0 if window is None else window if hf.flag("is_causal", True) else window + 1


def llada(family: str, hf: Fields) -> dict[str, Any]:
    """LLaDA's config, which is OLMo's."""
    wanted = dict(block_type="llama", activation_type="silu", layer_norm_type="rms", rope=True, alibi=False, scale_logits=False)
    wanted |= dict(include_bias=False, include_qkv_bias=False, attention_layer_norm=False, input_emb_norm=False, multi_query_attention=None)
    wanted |= dict(clip_qkv=None, layer_norm_with_affine=True, bias_for_layer_norm=False, embedding_layer_norm=False, norm_after=False)
    for key, value in wanted.items():
        hf.expect(key, value)
    for unused in ("alibi_bias_max", "attention_layer_norm_with_affine"):  # read only with alibi, attention_layer_norm
        hf.get(unused)
    for kernel in ("block_group_size", "rope_full_precision"):  # how blocks are wrapped; sines are taken in float32 here, too
        hf.get(kernel)
    width, heads = hf.size("d_model"), hf.size("n_heads")
    ratio = hf.number("mlp_ratio", 4.0)
    return {
        "depth": hf.size("n_layers"),
        "width": width,
        "heads": heads,
        "kv_heads": hf.count("n_kv_heads", heads),
        "head_dim": max(width // heads, 1),
        "ffn": hf.count("mlp_hidden_size", None) or int(ratio * width),
        "tied": hf.flag("weight_tying", False),
        "rope_base": hf.number("rope_theta", 10_000.0, least=1.0),
        "rope_scaling": 1.0,
        "family": family_text(family, norm_eps=hf.number("rms_norm_eps", 1e-5)),
    }


def gpt2(family: str, hf: Fields) -> dict[str, Any]:
    """GPT-2's config."""
    hf.expect("activation_function", "gelu_new", "gelu_pytorch_tanh")
    for key, value in dict(scale_attn_weights=True, scale_attn_by_inverse_layer_idx=False, add_cross_attention=False).items():
        hf.expect(key, value)
    hf.expect("is_encoder_decoder", False)
    for unused in ("n_ctx", "reorder_and_upcast_attn"):  # n_positions under its old name; the order of the same arithmetic
        hf.get(unused)
    width, heads = hf.size("n_embd"), hf.size("n_head")
    values = dict(norm_eps=hf.number("layer_norm_epsilon", 1e-5), max_positions=hf.count("n_positions", 1024))
    return {
        **_equal_heads(width, heads),
        "depth": hf.size("n_layer"),
        "ffn": hf.count("n_inner", 4 * width),
        "tied": hf.flag("tie_word_embeddings", True),
        "family": family_text(family, **values),
    }


def bert(family: str, hf: Fields, from_padding: bool = False) -> dict[str, Any]:
    """BERT's and RoBERTa's config. from_padding: positions are numbered from the padding id on, plus one, as RoBERTa does."""
    hf.expect("hidden_act", "gelu")
    hf.expect("position_embedding_type", "absolute")
    for switch in ("is_decoder", "is_causal", "add_cross_attention", "is_encoder_decoder"):
        hf.expect(switch, False)
    hf.expect("pruned_heads", {})
    width, heads = hf.size("hidden_size"), hf.size("num_attention_heads")
    pad = hf.count("pad_token_id", 1, least=0)
    values = dict(
        norm_eps=hf.number("layer_norm_eps", 1e-12),
        max_positions=hf.count("max_position_embeddings", 512),
        token_types=hf.count("type_vocab_size", 2),
        position_offset=pad + 1 if from_padding else 0,
    )
    return {
        **_equal_heads(width, heads),
        "depth": hf.size("num_hidden_layers"),
        "ffn": hf.size("intermediate_size"),
        "tied": hf.flag("tie_word_embeddings", True),
        "family": family_text(family, **values),
    }


def _equal_heads(width: int, heads: int) -> dict[str, Any]:
    if width % heads:
        raise InputError(f"config.json has a width of {width}, which its {heads} heads do not divide; correct the file")
    return {"width": width, "heads": heads, "kv_heads": heads, "head_dim": width // heads, "rope_base": 10_000.0, "rope_scaling": 1.0}


def _rope(hf: Fields) -> tuple[float, float, dict[str, Any]]:
    """(base, factor, values of the family) of rotary positions.

    transformers 5 writes all of it into `rope_parameters`, older versions into `rope_theta` and `rope_scaling`. As in transformers,
    `rope_scaling` replaces `rope_parameters`, and a key inside either wins over the same key outside.
    """
    older, newer = hf.section("rope_scaling"), hf.section("rope_parameters")
    rope = older or newer or Fields({}, "rope_parameters.")
    outer = hf.number("rope_theta", 10_000.0, least=1.0)
    base = rope.number("rope_theta", outer, least=1.0)
    named = rope.get("type")
    kind = rope.get("rope_type", named or "default")
    part = rope.number("partial_rotary_factor", hf.number("partial_rotary_factor", 1.0))
    if part != 1.0:
        raise InputError("config.json rotates a part of each head's channels (partial_rotary_factor); only whole heads can be rotated here")
    if kind not in ("default", "linear", "llama3", "yarn"):
        raise InputError(f"config.json stretches positions by rope_type={kind!r}; only linear, llama3 and yarn can be computed here")
    factor, of_rope = (1.0, {}) if kind == "default" else _stretch(kind, hf, rope)
    rope.finish()
    return base, factor, of_rope


def _stretch(kind: str, hf: Fields, rope: Fields) -> tuple[float, dict[str, Any]]:
    """(factor, values of the family)."""
    if kind == "linear":
        return rope.number("factor", None), {}
    longest = hf.count("max_position_embeddings", None)
    original = hf.count("original_max_position_embeddings", rope.count("original_max_position_embeddings", longest))
    if original is None:
        raise InputError(f"config.json has rope_type={kind!r} and no original_max_position_embeddings; correct the file")
    values: dict[str, Any] = {"rope_scaling_type": kind, "rope_original": original}
    if kind == "llama3":
        values |= {"rope_slow": rope.number("low_freq_factor", None), "rope_fast": rope.number("high_freq_factor", None)}
        return rope.number("factor", None), values
    factor = rope.number("factor", longest and longest / original, null=True)
    scales = [rope.get("mscale"), rope.get("mscale_all_dim")]
    scales = [rope.number("mscale", None), rope.number("mscale_all_dim", None)] if all(scales) else [1.0, 0.0]
    above, below = (1.0 if factor <= 1 else 0.1 * scale * math.log(factor) + 1.0 for scale in scales)
    values |= {"rope_attention": rope.number("attention_factor", above / below, null=True), "rope_truncate": rope.flag("truncate", True)}
    return factor, values | {
        "rope_slow": rope.number("beta_slow", 1.0, null=True),
        "rope_fast": rope.number("beta_fast", 32.0, null=True),
    }
