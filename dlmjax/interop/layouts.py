"""Name and orientation of each of our weights in the files of other code bases: one table for import and export.

A row of a table pairs a name in a file with one of our weights (`models.weights`). Kernels are [in, out] here and [out, in] in a
torch.nn.Linear, so they are transposed; GPT-2's Conv1D is [in, out] and is not. GPT-2 keeps queries, keys and values in one matrix, whose
columns are then those of three of ours. Rotary positions need no permutation: all of these layouts rotate channel c with channel
c + head_dim / 2, as `models.layers.rotate` does (Meta's own release of Llama pairs neighbours; Hugging Face's copy does not).

    llama, qwen2, qwen3   transformers' LlamaForCausalLM, Qwen2ForCausalLM, Qwen3ForCausalLM
    mistral, olmo2        MistralForCausalLM, Olmo2ForCausalLM
    sdar                  Qwen3's names (SDAR 2510.06303)          dream     Qwen2's names (Dream 2508.15487)
    llada                 OLMo's names (LLaDA 2502.09992)          gpt2      GPT2LMHeadModel
    bert                  BertForMaskedLM                          roberta, xlm-roberta   RobertaForMaskedLM, XLMRobertaForMaskedLM
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from dlmjax.errors import InputError
from dlmjax.interop.hf_config import Fields, bert, gpt2, llada, llama_like
from dlmjax.models import ModelSpec, build_network
from dlmjax.models.families import FAMILIES, STRUCTURE

Path = tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Entry:
    """One tensor of a file.

    `paths` are the keys, in our tree, of the weights it holds: nearly always one; several are concatenated along its last axis, `sizes`
    wide. `layer` is the index in our stacked weights (None: not stacked). `transpose`: its two axes are exchanged in the file.
    `shape` is the one in the file, `vocab_axis` the axis of it that counts token ids (None: no axis does).
    """

    name: str
    paths: tuple[Path, ...]
    sizes: tuple[int, ...]
    layer: int | None
    transpose: bool
    shape: tuple[int, ...]
    vocab_axis: int | None

    @property
    def path(self) -> Path:
        """The key path of an entry that holds one weight."""
        (path,) = self.paths
        return path

    def pack(self, weights: Sequence[np.ndarray]) -> np.ndarray:
        """The file's tensor from our weights of this layer, in the order of `paths`."""
        joined = weights[0] if len(weights) == 1 else np.concatenate(weights, axis=-1)
        return joined.T if self.transpose else joined

    def unpack(self, tensor: np.ndarray) -> list[np.ndarray]:
        """Our weights, in the order of `paths`, as views of the file's tensor."""
        transposed = tensor.T if self.transpose else tensor
        starts = np.cumsum((0, *self.sizes))
        return [transposed[..., low:high] for low, high in zip(starts[:-1], starts[1:], strict=True)]


@dataclasses.dataclass(frozen=True)
class Row:
    """A line of a table: the name in the file ("{i}" is the layer), our weights ("layers.query.kernel"), whether the axes are exchanged."""

    name: str
    weights: tuple[str, ...]
    transpose: bool


@dataclasses.dataclass(frozen=True)
class Layout:
    """The names of one kind of checkpoint.

    `family` is the family of networks that it holds, `fields` reads the sizes from a config.json; `model_type` is the file's name for it;
    `process` is the noise process that the weights were trained under. Published files differ: `prefix` may be missing from all
    names, and tensors that match `unread` may be present, which our networks do not read.
    """

    name: str
    family: str
    rows: tuple[Row, ...]
    fields: Callable[[str, Fields], dict[str, Any]]
    process: str
    prefix: str
    model_type: str
    unread: tuple[str, ...]

    def spec_of(self, hf_config: dict[str, Any]) -> dict[str, Any]:
        """The leaves of `config.model` that a config.json decides; `vocab` is that of the files.

        Raises InputError for a network that none of our families computes, with the field of the file, for an unknown field,
        and for a damaged file.
        """
        try:
            fields = Fields(hf_config)
            found = self.fields(self.family, fields)
            fields.finish()
            return found
        except InputError:
            raise
        except (KeyError, TypeError, ValueError, ArithmeticError, AttributeError) as error:
            raise InputError(f"config.json is not that of layout {self.name} ({error!r}); correct it, or choose another --family") from None

    def entries(self, spec: ModelSpec) -> tuple[Entry, ...]:
        """One entry per tensor of the file, in the file's order.

        Raises InputError for a network that this layout cannot hold, with the first reason.
        """
        return _entries(self, spec)

    def check(self, spec: ModelSpec) -> None:
        """Raises InputError when the network is of another family than this layout's, naming the field."""
        wanted = {**_PLAIN, **FAMILIES[self.family]}
        for field in STRUCTURE:
            if getattr(spec, field) != wanted[field]:
                raise InputError(
                    f"layout {self.name} holds networks with {field}={wanted[field]!r}, this one has {getattr(spec, field)!r} "
                    f"(model.family={self.family} would fit)"
                )


_PLAIN = {field.name: field.default for field in dataclasses.fields(ModelSpec)}


@functools.lru_cache(maxsize=64)
def _entries(layout: Layout, spec: ModelSpec) -> tuple[Entry, ...]:
    layout.check(spec)
    leaves = jax.tree_util.tree_flatten_with_path(build_network(spec).abstract())[0]
    shapes = {tuple(key.key for key in path): leaf.shape for path, leaf in leaves}
    outer = [_entry(row, shapes, None) for row in layout.rows if "{i}" not in row.name and _present(row, shapes)]
    inner = [row for row in layout.rows if "{i}" in row.name and _present(row, shapes)]
    layers = [_entry(row, shapes, i) for i in range(spec.depth) for row in inner]
    first = sum(entry.paths[0][0] in _BEFORE_LAYERS for entry in outer)
    named = {path for entry in (*outer, *layers) for path in entry.paths}
    unnamed = [".".join(path) for path in shapes if path not in named]
    if unnamed:
        raise InputError(f"layout {layout.name} has no name for {', '.join(unnamed)}: its networks have no such weight")
    return (*outer[:first], *layers, *outer[first:])


_BEFORE_LAYERS = ("embedding", "position", "token_type", "embedding_norm")


def _present(row: Row, shapes: dict[Path, tuple[int, ...]]) -> bool:
    return all(tuple(weight.split(".")) in shapes for weight in row.weights)


def _entry(row: Row, shapes: dict[Path, tuple[int, ...]], layer: int | None) -> Entry:
    paths = tuple(tuple(weight.split(".")) for weight in row.weights)
    ours = [shapes[path] if layer is None else shapes[path][1:] for path in paths]
    joined = (*ours[0][:-1], sum(shape[-1] for shape in ours))
    # The axis of ours that counts token ids: rows of the embedding, columns of the head and of its bias.
    vocab = {("embedding", "table"): 0, ("head", "kernel"): 1, ("head", "bias"): 0}.get(paths[0])
    return Entry(
        name=row.name.format(i=layer),
        paths=paths,
        sizes=tuple(shape[-1] for shape in ours),
        layer=layer,
        transpose=row.transpose,
        shape=joined[::-1] if row.transpose else joined,
        vocab_axis=vocab if vocab is None or not row.transpose else 1 - vocab,
    )


def _rows(*lines: str) -> tuple[Row, ...]:
    """Lines "name <- weight", "name <- weight + weight"; "name <- weight transposed"."""
    rows = []
    for line in lines:
        name, _, right = line.partition(" <- ")
        weights, transposed, _ = right.partition(" transposed")
        rows.append(Row(name, tuple(weights.split(" + ")), bool(transposed)))
    return tuple(rows)


def _linear(name: str, weight: str) -> tuple[str, str]:
    """A torch.nn.Linear, with its bias where the network has one."""
    return f"{name}.weight <- {weight}.kernel transposed", f"{name}.bias <- {weight}.bias"


def _norm(name: str, weight: str) -> tuple[str, str]:
    """A norm, with its bias where it is a LayerNorm."""
    return f"{name}.weight <- {weight}.scale", f"{name}.bias <- {weight}.bias"


_LLAMA = _rows(
    "model.embed_tokens.weight <- embedding.table",
    *_norm("model.layers.{i}.input_layernorm", "layers.attention_norm"),
    *_linear("model.layers.{i}.self_attn.q_proj", "layers.query"),
    *_linear("model.layers.{i}.self_attn.k_proj", "layers.key"),
    *_linear("model.layers.{i}.self_attn.v_proj", "layers.value"),
    *_norm("model.layers.{i}.self_attn.q_norm", "layers.query_norm"),
    *_norm("model.layers.{i}.self_attn.k_norm", "layers.key_norm"),
    *_linear("model.layers.{i}.self_attn.o_proj", "layers.output"),
    *_norm("model.layers.{i}.post_attention_layernorm", "layers.mlp_norm"),
    *_linear("model.layers.{i}.mlp.gate_proj", "layers.gate"),
    *_linear("model.layers.{i}.mlp.up_proj", "layers.up"),
    *_linear("model.layers.{i}.mlp.down_proj", "layers.down"),
    *_norm("model.norm", "norm"),
    *_linear("lm_head", "head"),
)


def _renamed(rows: tuple[Row, ...], names: dict[str, str]) -> tuple[Row, ...]:
    """The rows of a layout with different names for some tensors: {part of a name: its replacement}."""
    found = []
    for row in rows:
        part = next((part for part in names if part in row.name), "")
        found.append(dataclasses.replace(row, name=row.name.replace(part, names.get(part, ""))) if part else row)
    return tuple(found)


# The norms follow the branches, and are named after what they follow.
_OLMO2 = _renamed(_LLAMA, {"input_layernorm": "post_attention_layernorm", "post_attention_layernorm": "post_feedforward_layernorm"})

_LLADA = _rows(
    "model.transformer.wte.weight <- embedding.table",
    *_norm("model.transformer.blocks.{i}.attn_norm", "layers.attention_norm"),
    *_linear("model.transformer.blocks.{i}.q_proj", "layers.query"),
    *_linear("model.transformer.blocks.{i}.k_proj", "layers.key"),
    *_linear("model.transformer.blocks.{i}.v_proj", "layers.value"),
    *_linear("model.transformer.blocks.{i}.attn_out", "layers.output"),
    *_norm("model.transformer.blocks.{i}.ff_norm", "layers.mlp_norm"),
    *_linear("model.transformer.blocks.{i}.ff_proj", "layers.gate"),
    *_linear("model.transformer.blocks.{i}.up_proj", "layers.up"),
    *_linear("model.transformer.blocks.{i}.ff_out", "layers.down"),
    *_norm("model.transformer.ln_f", "norm"),
    *_linear("model.transformer.ff_out", "head"),
)

_GPT2 = _rows(
    "transformer.wte.weight <- embedding.table",
    "transformer.wpe.weight <- position.table",
    *_norm("transformer.h.{i}.ln_1", "layers.attention_norm"),
    "transformer.h.{i}.attn.c_attn.weight <- layers.query.kernel + layers.key.kernel + layers.value.kernel",
    "transformer.h.{i}.attn.c_attn.bias <- layers.query.bias + layers.key.bias + layers.value.bias",
    "transformer.h.{i}.attn.c_proj.weight <- layers.output.kernel",
    "transformer.h.{i}.attn.c_proj.bias <- layers.output.bias",
    *_norm("transformer.h.{i}.ln_2", "layers.mlp_norm"),
    "transformer.h.{i}.mlp.c_fc.weight <- layers.up.kernel",
    "transformer.h.{i}.mlp.c_fc.bias <- layers.up.bias",
    "transformer.h.{i}.mlp.c_proj.weight <- layers.down.kernel",
    "transformer.h.{i}.mlp.c_proj.bias <- layers.down.bias",
    *_norm("transformer.ln_f", "norm"),
    *_linear("lm_head", "head"),
)


def _bert(stem: str, transform: str, norm: str, decoder: str, bias: str) -> tuple[Row, ...]:
    layer = stem + ".encoder.layer.{i}"
    return _rows(
        f"{stem}.embeddings.word_embeddings.weight <- embedding.table",
        f"{stem}.embeddings.position_embeddings.weight <- position.table",
        f"{stem}.embeddings.token_type_embeddings.weight <- token_type.table",
        *_norm(f"{stem}.embeddings.LayerNorm", "embedding_norm"),
        *_linear(f"{layer}.attention.self.query", "layers.query"),
        *_linear(f"{layer}.attention.self.key", "layers.key"),
        *_linear(f"{layer}.attention.self.value", "layers.value"),
        *_linear(f"{layer}.attention.output.dense", "layers.output"),
        *_norm(f"{layer}.attention.output.LayerNorm", "layers.attention_norm"),
        *_linear(f"{layer}.intermediate.dense", "layers.up"),
        *_linear(f"{layer}.output.dense", "layers.down"),
        *_norm(f"{layer}.output.LayerNorm", "layers.mlp_norm"),
        *_linear(transform, "transform"),
        *_norm(norm, "norm"),
        f"{decoder} <- head.kernel transposed",
        f"{bias} <- head.bias",
    )


_BERT = _bert(
    "bert",
    "cls.predictions.transform.dense",
    "cls.predictions.transform.LayerNorm",
    "cls.predictions.decoder.weight",
    "cls.predictions.bias",
)
_ROBERTA = _bert("roberta", "lm_head.dense", "lm_head.layer_norm", "lm_head.decoder.weight", "lm_head.bias")

# Buffers that old files hold, and the parts of BERT that classify whole texts.
_BUFFERS = (r".*rotary_emb\.inv_freq", r".*\.attn\.(masked_)?bias", r".*position_ids")
_OF_TEXTS = (r"(.*\.)?pooler\.dense\..*", r"cls\.seq_relationship\..*")

# Defaults of transformers' classes for missing keys.
_of_qwen2 = functools.partial(llama_like, kv_heads=32, sliding="switch")
_of_qwen3 = functools.partial(llama_like, kv_heads=32, head_dim=128, sliding="switch")
_of_mistral = functools.partial(llama_like, kv_heads=8, sliding="always")
_of_olmo2 = functools.partial(llama_like, norm_eps=1e-5)
_of_roberta = functools.partial(bert, from_padding=True)


def _of_sdar(family: str, hf: Fields) -> dict[str, Any]:
    hf.get("block_size")  # read where the process is chosen
    return _of_qwen3(family, hf, sliding="off")


LAYOUTS: dict[str, Layout] = {
    layout.name: layout
    for layout in (
        Layout("llama", "llama", _LLAMA, llama_like, "autoregressive", "model.", "llama", _BUFFERS),
        Layout("mistral", "llama", _LLAMA, _of_mistral, "autoregressive", "model.", "mistral", _BUFFERS),
        Layout("olmo2", "olmo2", _OLMO2, _of_olmo2, "autoregressive", "model.", "olmo2", _BUFFERS),
        Layout("qwen2", "qwen2", _LLAMA, _of_qwen2, "autoregressive", "model.", "qwen2", _BUFFERS),
        Layout("qwen3", "qwen3", _LLAMA, _of_qwen3, "autoregressive", "model.", "qwen3", _BUFFERS),
        Layout("sdar", "qwen3", _LLAMA, _of_sdar, "blocks(size=4)", "model.", "sdar", _BUFFERS),
        Layout("dream", "qwen2", _LLAMA, functools.partial(_of_qwen2, shift=True, sliding="off"), "masked", "model.", "Dream", _BUFFERS),
        Layout("llada", "llama", _LLADA, llada, "masked", "model.", "llada", _BUFFERS),
        Layout("gpt2", "gpt2", _GPT2, gpt2, "autoregressive", "transformer.", "gpt2", _BUFFERS),
        Layout("bert", "bert", _BERT, bert, "masked", "bert.", "bert", _BUFFERS + _OF_TEXTS),
        Layout("roberta", "bert", _ROBERTA, _of_roberta, "masked", "roberta.", "roberta", _BUFFERS + _OF_TEXTS),
        Layout("xlm-roberta", "bert", _ROBERTA, _of_roberta, "masked", "roberta.", "xlm-roberta", _BUFFERS + _OF_TEXTS),
    )
}


def layout_of(name: str) -> Layout:
    """A layout by name. Raises InputError for an unknown one."""
    if name not in LAYOUTS:
        raise InputError(f"layout {name!r} is unknown; choose one of {', '.join(LAYOUTS)}")
    return LAYOUTS[name]
