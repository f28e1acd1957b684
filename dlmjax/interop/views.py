"""The views of a model that other programs load: the models that each can hold, its names of tensors, and its config.json.

One table, VIEWS; the weights are written by `export`, their names come from `layouts`. A view that cannot hold a model is refused
with the reason and the views that can: a file that loads and computes something else is worse than none.

    hf      transformers >= 5.2 as it is: qwen3, qwen2, llama, mistral or olmo2 with `is_causal: false`; autoregressive ones with `true`
    sdar    SGLang, LMDeploy: block-diffusion models only, mask at id 151669
    llada   dInfer, Fast-dLLM, llama.cpp: OLMo's names, fully bidirectional models without q/k-norm
    encoder sentence-transformers: the files of `hf` of a fully bidirectional model, the mean of the final hidden states as a text's vector

Shapes: V ids of the model, R rows of the exported embedding and head.
"""

import dataclasses
import json
import pathlib
from collections.abc import Callable

from dlmjax import __version__
from dlmjax.data import Tokenizer
from dlmjax.diffusion import Process
from dlmjax.errors import InputError
from dlmjax.interop.layouts import LAYOUTS
from dlmjax.models import ModelSpec
from dlmjax.sampling import suppressed_ids

SDAR_MASK = 151_669  # written into SGLang for every SDAR model
SDAR_ROWS = 151_680  # of embedding and head: the mask has a row, and the number divides by 128
# Bytes that valid UTF-8 does not contain: a token with one of them is in no text.
NEVER_IN_UTF8 = frozenset((0xC0, 0xC1, *range(0xF5, 0x100)))
HERE = pathlib.Path(__file__).parent


@dataclasses.dataclass(frozen=True)
class Exported:
    """The model that a view is chosen for. `length`: tokens of a training window."""

    spec: ModelSpec
    process: Process
    tokenizer: Tokenizer
    length: int

    @property
    def block_size(self) -> int | None:
        """Tokens of a block of block diffusion; None elsewhere."""
        return self.process.attention.block_size or self.process.attention.context_size

    @property
    def attention(self) -> str:
        """ "full", "causal" or "block-causal": what a position attends to."""
        return "block-causal" if self.block_size else "causal" if self.process.attention.causal else "full"

    @property
    def untrained_ids(self) -> tuple[int, ...]:
        """Ids that the model does not produce: their rows of the head were in no softmax, so training did not change them."""
        return tuple(sorted({self.tokenizer.mask_id, self.tokenizer.pad_id}))

    @property
    def suppressed_ids(self) -> tuple[int, ...]:
        """Ids that samples leave out: the untrained ones, and those that are not tokens, which were in the softmax."""
        return suppressed_ids(self.tokenizer, self.spec.vocab)

    @property
    def unused_ids(self) -> tuple[int, ...]:
        """Ids that were in every softmax and that no text can hold, so that their logits are low everywhere."""
        return tuple(i for i, piece in enumerate(self.tokenizer.token_bytes) if NEVER_IN_UTF8.intersection(piece))

    @property
    def anchor_ids(self) -> tuple[int, ...]:
        """The unused ids; all real ones where a tokenizer has none."""
        table = self.tokenizer.token_bytes
        return self.unused_ids or tuple(i for i, piece in enumerate(table) if piece or i == self.tokenizer.eos_id)


@dataclasses.dataclass(frozen=True)
class VocabularyRows:
    """The rows of the exported embedding and head.

    `count` R; `mask_id` in the export; `moved` (from, to) of the mask's row, where it moved; `filled`: rows of the head that get the mean
    of the rows `anchors`, so that no argmax selects them.
    """

    count: int
    mask_id: int
    moved: tuple[int, int] | None
    filled: tuple[int, ...]
    anchors: tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class View:
    """One row of the table. `refuse` returns why the view cannot hold a model, or "". `files`: further files, name -> content."""

    name: str
    readers: str
    refuse: Callable[[Exported], str]
    layout: Callable[[Exported], str]
    config: Callable[[Exported, VocabularyRows, str], dict]
    rows: Callable[[Exported], VocabularyRows]
    files: Callable[[Exported, VocabularyRows], dict[str, str]]


def view_of(name: str, model: Exported) -> View:
    """The view of that name.

    Raises InputError: an unknown name; a model that it cannot hold, with the reason and the views that can.
    """
    if name not in VIEWS:
        raise InputError(f"view {name!r} is unknown; choose one of {', '.join(VIEWS)}")
    reason = VIEWS[name].refuse(model)
    if not reason:
        return VIEWS[name]
    # An encoder generates no text, so it cannot replace another view.
    others = [f"--view {other}" for other, view in VIEWS.items() if other != "encoder" and not view.refuse(model)]
    way_out = f"{' or '.join(others)} can hold it" if others else "no other view can either; sample and evaluate it with dlmjax"
    raise InputError(f"view {name} cannot hold this model: {reason}; {way_out}")


# ---- what a view can hold ---------------------------------------------------------------------------------------------------------


def refuse_everywhere(model: Exported) -> str:
    """Why no loader of weights and a config can run the model, or ""."""
    spec, process = model.spec, model.process
    if spec.input_dim:
        return f"process {process.name} is Gaussian noise on embeddings, so its network reads vectors, but loaders pass token ids"
    if process.attention.seeded:
        return "its blocks are seeded, and loaders predict a block in place (as a model of the next token: --process autoregressive)"
    if spec.time_input != "none":
        return f"its network is conditioned on the time t (model.time_input={spec.time_input}), which no loader passes to it"
    if spec.self_condition:
        return "its network reads its last prediction (process.self_condition), which no loader passes to it"
    if spec.shift:
        return "its logits are those of the next position (model.family: shift), which no loader moves back"
    if spec.board or spec.peers:
        return "it reads boards of 9 x 9 cells (model.family: board, peers), which no loader knows"
    if spec.loops > 1:
        which = f"layers {spec.looped[0]} to {spec.looped[1] - 1}" if spec.looped else "layers"
        return f"its {which} are run {spec.loops} times (model.family: loops), and loaders run each layer once"
    if process.output.predicts != "logits":
        return f"the network of process {process.name} predicts scores, not logits of tokens"
    if not process.attention.causal and process.capabilities.prior_mask_id is None:
        return f"process {process.name} has no mask token to start from"
    return ""


def _family(spec: ModelSpec, *names: str) -> str:
    """The first of these layouts that holds the network, or ""."""
    for name in names:
        try:
            LAYOUTS[name].check(spec)
        except InputError:
            continue
        return name
    return ""


def _shape(spec: ModelSpec) -> str:
    return f"norm={spec.norm}, positions={spec.positions}, bias={spec.bias}, norm_placement={spec.norm_placement}"


def _refuse_hf(model: Exported) -> str:
    spec, reason = model.spec, refuse_everywhere(model)
    name = _family(spec, *HF)
    if reason:
        return reason
    if not name:
        return f"transformers' qwen3, qwen2, llama and olmo2 have different norms, positions or biases ({_shape(spec)})"
    if spec.window and name == "olmo2":
        return f"its positions attend within a window of {spec.window} (model.family: window), and transformers' Olmo2 has no windows"
    if spec.window and model.attention == "block-causal":
        return f"its positions attend within a window of {spec.window} (model.family: window), which the block mask of loaders lacks"
    if spec.window == 1 and model.attention == "full":
        return "its positions attend only to themselves (model.family: window=1), and transformers has no bidirectional window of that size"
    if name == "llama" and not spec.window and spec.width % spec.heads:
        return f"transformers' Llama requires a width ({spec.width}) that its heads ({spec.heads}) divide"
    if name == "qwen2" and spec.width != spec.heads * spec.head_dim:
        return f"transformers' Qwen2 requires heads x head_dim ({spec.heads} x {spec.head_dim}) to be the width ({spec.width})"
    return ""


def _refuse_encoder(model: Exported) -> str:
    return _refuse_hf(model) or (
        "" if model.attention == "full" else f"its attention is {model.attention}, but in an encoder every token attends to all"
    )


def _refuse_sdar(model: Exported) -> str:
    spec, tokenizer = model.spec, model.tokenizer
    reason = refuse_everywhere(model)
    if reason:
        return reason
    if model.attention != "block-causal":
        return (
            f"in SGLang a block attends to the blocks before it and to no later one, but process {model.process.name} was trained with "
            f"{model.attention} attention, so SGLang would compute a different model; train with process.name=blocks(size=...)"
        )
    if not _family(spec, "sdar"):
        return "SDAR is Qwen3, with RMSNorm on queries and keys (model.family=qwen3)"
    if spec.window:
        return f"SDAR's positions attend to whole blocks, those of this model to a window of {spec.window} (model.family: window)"
    if tokenizer.mask_id != SDAR_MASK and tokenizer.vocab_size > SDAR_MASK:
        return f"the mask must have the id {SDAR_MASK}, which is another token of this tokenizer"
    return ""


def _refuse_llada(model: Exported) -> str:
    spec = model.spec
    reason = refuse_everywhere(model)
    if reason:
        return reason
    if model.attention != "full":
        return f"LLaDA attends to the whole row, but process {model.process.name} was trained with {model.attention} attention"
    if not _family(spec, "llada"):
        return "LLaDA has no norm on queries and keys and no biases (model.family=llama)"
    if spec.width != spec.heads * spec.head_dim:
        return f"LLaDA's heads share the width: heads x head_dim ({spec.heads} x {spec.head_dim}) must be the width ({spec.width})"
    if spec.window:
        return f"LLaDA's positions attend to the whole row, those of this model to a window of {spec.window} (model.family: window)"
    if _rope_scaling(spec):
        return f"LLaDA's config has no stretched positions (model.rope_scaling={spec.rope_scaling})"
    return ""


# ---- rows of embedding and head ---------------------------------------------------------------------------------------------------


def _rows_as_trained(model: Exported) -> VocabularyRows:
    return VocabularyRows(model.spec.vocab, model.tokenizer.mask_id, None, model.untrained_ids, model.anchor_ids)


def _rows_sdar(model: Exported) -> VocabularyRows:
    mask, count = model.tokenizer.mask_id, max(SDAR_ROWS, model.spec.vocab)
    filled = {*model.untrained_ids, SDAR_MASK, *range(model.spec.vocab, count)}
    return VocabularyRows(count, SDAR_MASK, None if mask == SDAR_MASK else (mask, SDAR_MASK), tuple(sorted(filled)), model.anchor_ids)


# ---- config.json ------------------------------------------------------------------------------------------------------------------

HF = {"qwen3": "Qwen3ForCausalLM", "llama": "LlamaForCausalLM", "qwen2": "Qwen2ForCausalLM", "olmo2": "Olmo2ForCausalLM"}


def _theta(spec: ModelSpec) -> float:
    """The base of the rotary frequencies, with "ntk" scaling applied."""
    if spec.rope_scaling_type == "ntk":
        return spec.rope_base * spec.rope_scaling ** (spec.head_dim / max(spec.head_dim - 2, 1))
    return spec.rope_base


def _rope_scaling(spec: ModelSpec) -> dict:
    kind = spec.rope_scaling_type
    if kind == "ntk" or (spec.rope_scaling == 1.0 and not (kind == "yarn" and spec.rope_attention != 1.0)):
        return {}
    found = {"rope_type": kind, "factor": spec.rope_scaling}
    if kind == "linear":
        return {"rope_scaling": found}
    found["original_max_position_embeddings"] = spec.rope_original
    if kind == "llama3":
        return {"rope_scaling": {**found, "low_freq_factor": spec.rope_slow, "high_freq_factor": spec.rope_fast}}
    ramp = {"beta_slow": spec.rope_slow, "beta_fast": spec.rope_fast, "truncate": spec.rope_truncate}
    return {"rope_scaling": {**found, **ramp, "attention_factor": spec.rope_attention}}


def _sliding(model: Exported) -> dict:
    """The window in transformers' convention: a bidirectional window does not count the position itself."""
    window = model.spec.window - (model.attention == "full")
    return {"use_sliding_window": True, "sliding_window": window, "max_window_layers": 0} if model.spec.window else {}


def _special_ids(model: Exported, rows: VocabularyRows) -> dict[str, int]:
    tokenizer = model.tokenizer
    ids = {"bos_token_id": tokenizer.eos_id, "eos_token_id": tokenizer.eos_id, "pad_token_id": tokenizer.pad_id}
    return {**ids, "mask_token_id": rows.mask_id}


def describe(model: Exported, rows: VocabularyRows) -> dict:
    """The `dlm` block: the facts about a diffusion model that a sampler requires; the same for all layouts."""
    schedule = model.process.schedule
    return {
        "dlmjax": __version__,
        "process": model.process.name,
        "schedule": None if schedule is None else repr(schedule),
        "attention": model.attention,
        "block_size": model.block_size,
        "shift": False,
        "length": model.length,
        "vocab_size": model.tokenizer.vocab_size,
        "embedding_size": rows.count,
        # Samples leave out suppress_ids and all from trained_size on. Those of them that were in no softmax have rows of the head that no
        # argmax selects; the others, which pad the vocabulary, are as training left them.
        "mask_in_softmax": False,
        "trained_size": model.spec.vocab,
        "suppress_ids": sorted({*model.suppressed_ids, rows.mask_id}),
    }


def _qwen_like(model: Exported, rows: VocabularyRows, dtype: str) -> dict:
    """The fields that transformers' Llama, Qwen2, Qwen3 and their derivatives read."""
    spec = model.spec
    return {
        "vocab_size": rows.count,
        "hidden_size": spec.width,
        "intermediate_size": spec.ffn,
        "num_hidden_layers": spec.depth,
        "num_attention_heads": spec.heads,
        "num_key_value_heads": spec.kv_heads,
        "head_dim": spec.head_dim,
        "hidden_act": "silu",
        "max_position_embeddings": model.length,
        "initializer_range": spec.init_std,
        "rms_norm_eps": spec.norm_eps,
        "rope_theta": _theta(spec),
        **_rope_scaling(spec),
        "attention_dropout": 0.0,
        "tie_word_embeddings": False,
        "dtype": dtype,
        "torch_dtype": dtype,  # the name before transformers 5
        **_special_ids(model, rows),
        "dlm": describe(model, rows),
    }


def _config_hf(model: Exported, rows: VocabularyRows, dtype: str) -> dict:
    name = _family(model.spec, *HF)
    causal = model.attention == "causal"
    biased = {} if name == "qwen2" else {"attention_bias": False}
    windowed, architecture = _sliding(model), HF[name]
    if windowed and name == "llama":  # Llama with a window is Mistral
        name, architecture, windowed = "mistral", "MistralForCausalLM", {"sliding_window": windowed["sliding_window"]}
    # A cache of keys and values is valid only where no position attends to a later one.
    head = {"architectures": [architecture], "model_type": name, "is_causal": causal, "use_cache": causal}
    return {**head, **biased, **windowed, **_qwen_like(model, rows, dtype)}


def _config_sdar(model: Exported, rows: VocabularyRows, dtype: str) -> dict:
    head = {
        "architectures": ["SDARForCausalLM"],
        "model_type": "sdar",
        "auto_map": {"AutoConfig": "configuration_sdar.SDARConfig"},
        "block_size": model.block_size,
        "attention_bias": False,
        "use_cache": True,
    }
    return {**head, **_qwen_like(model, rows, dtype)}


def _config_llada(model: Exported, rows: VocabularyRows, dtype: str) -> dict:
    spec = model.spec
    return {
        "architectures": ["LLaDAModelLM"],
        "model_type": "llada",
        "d_model": spec.width,
        "n_layers": spec.depth,
        "n_heads": spec.heads,
        "n_kv_heads": spec.kv_heads,
        "mlp_hidden_size": spec.ffn,
        "mlp_ratio": 4,  # read only where mlp_hidden_size is missing
        "activation_type": "silu",
        "block_type": "llama",
        "block_group_size": 1,
        "layer_norm_type": "rms",
        "layer_norm_with_affine": True,
        "bias_for_layer_norm": False,
        "attention_layer_norm": False,
        "rms_norm_eps": spec.norm_eps,
        "include_bias": False,
        "include_qkv_bias": False,
        "rope": True,
        "rope_full_precision": True,
        "rope_theta": _theta(spec),
        "alibi": False,
        "flash_attention": False,
        "attention_dropout": 0.0,
        "residual_dropout": 0.0,
        "embedding_dropout": 0.0,
        "input_emb_norm": False,
        "scale_logits": False,
        "weight_tying": False,
        "init_std": spec.init_std,
        "init_device": "meta",
        "max_sequence_length": model.length,
        "vocab_size": model.tokenizer.vocab_size,
        "embedding_size": rows.count,
        "use_cache": False,
        "dtype": dtype,
        "torch_dtype": dtype,
        **_special_ids(model, rows),
        "dlm": describe(model, rows),
    }


# ---- further files ----------------------------------------------------------------------------------------------------------------


def _shipped(name: str) -> str:
    return (HERE / "shipped" / name).read_text(encoding="utf-8")


def _files_hf(model: Exported, rows: VocabularyRows) -> dict[str, str]:
    return {"load_dlm.py": _shipped("load_dlm.py")}


def encoder_files(width: int, length: int) -> dict[str, str]:
    """The files that sentence-transformers requires in addition to an exported `hf` directory: path below the directory -> content.

    Mean pooling over the attention mask, no prompt, no normalisation: the vectors of `quality.hidden.embed_texts`, if the tokenizer adds
    no special tokens.
    """
    modules = [
        {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"},
        {"idx": 1, "name": "1", "path": "1_Pooling", "type": "sentence_transformers.models.Pooling"},
    ]
    pooling = {
        "word_embedding_dimension": width,
        "pooling_mode_cls_token": False,
        "pooling_mode_mean_tokens": True,
        "pooling_mode_max_tokens": False,
        "pooling_mode_mean_sqrt_len_tokens": False,
    }
    files = {
        "modules.json": modules,
        "1_Pooling/config.json": pooling,
        "sentence_bert_config.json": {"max_seq_length": length, "do_lower_case": False},
    }
    return {name: json.dumps(content, indent=2) + "\n" for name, content in files.items()}


def _files_encoder(model: Exported, rows: VocabularyRows) -> dict[str, str]:
    return _files_hf(model, rows) | encoder_files(model.spec.width, model.length)


def _files_sdar(model: Exported, rows: VocabularyRows) -> dict[str, str]:
    sglang = f"# --dllm-algorithm LowConfidence --dllm-algorithm-config sglang.yaml\nblock_size: {model.block_size}\nthreshold: 0.95\n"
    return {"load_dlm.py": _shipped("load_dlm.py"), "configuration_sdar.py": _shipped("configuration_sdar.py"), "sglang.yaml": sglang}


def _files_llada(model: Exported, rows: VocabularyRows) -> dict[str, str]:
    return {}


VIEWS: dict[str, View] = {
    view.name: view
    for view in (
        View(
            name="hf",
            readers="transformers >= 5.2",
            refuse=_refuse_hf,
            layout=lambda model: _family(model.spec, *HF),
            config=_config_hf,
            rows=_rows_as_trained,
            files=_files_hf,
        ),
        View(
            name="encoder",
            readers="sentence-transformers, on transformers >= 5.2",
            refuse=_refuse_encoder,
            layout=lambda model: _family(model.spec, *HF),
            config=_config_hf,
            rows=_rows_as_trained,
            files=_files_encoder,
        ),
        View(
            name="sdar",
            readers="SGLang, LMDeploy",
            refuse=_refuse_sdar,
            layout=lambda model: "sdar",
            config=_config_sdar,
            rows=_rows_sdar,
            files=_files_sdar,
        ),
        View(
            name="llada",
            readers="dInfer, Fast-dLLM, llama.cpp",
            refuse=_refuse_llada,
            layout=lambda model: "llada",
            config=_config_llada,
            rows=_rows_as_trained,
            files=_files_llada,
        ),
    )
}
