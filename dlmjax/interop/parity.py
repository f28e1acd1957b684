"""`parity.json`: logits of a fixed prompt, computed from the exported files by our network, as a reference for programs that load them.

A layer is read, run and freed before the next one, so that this requires the memory of one layer, whatever the model. Weights are
those of the files (bfloat16 where that was requested); arithmetic is float32.

Shapes: L positions, D width, R rows of the head, I ids that are compared.
"""

import dataclasses
import functools
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int

from dlmjax.interop.layouts import Entry, Layout
from dlmjax.interop.safetensors import Reader
from dlmjax.models import BlockCausal, Causal, Full, Mask, ModelSpec, build_network
from dlmjax.models.attention import make_attention
from dlmjax.models.denoiser import transformer_layer
from dlmjax.models.layers import normalise, rotary_tables
from dlmjax.models.masks import within

PROMPT = "The import statement finds a module, loads it,"
MASKS = 8
COMPARED = 64
HEAD_ROWS = 1 << 14  # of the head in memory at a time


def prompt_ids(tokenizer: Any, mask_id: int, length: int) -> list[int]:
    """The prompt's tokens followed by `MASKS` masks, at most `length`."""
    tokens = tokenizer.encode(PROMPT).tolist()[: max(length - MASKS, 1)]
    return [*tokens, *[mask_id] * min(MASKS, length - len(tokens))]


def mask_of(attention: str, block_size: int | None) -> Mask:
    """The attention mask of an export, as its `dlm` block names it."""
    return {"full": Full(), "causal": Causal()}[attention] if block_size is None else BlockCausal(block_size)


def parity(directory: pathlib.Path, layout: Layout, spec: ModelSpec, ids: list[int], mask: Mask) -> dict:
    """The content of `parity.json`: for each position of `ids` the logits of evenly spread ids, and the logsumexp over all rows.

    `spec`: the network as it was exported (its vocabulary counts the rows of the files).
    """
    reader = Reader(directory)
    compared = sorted({int(i) for i in np.linspace(0, spec.vocab - 1, COMPARED)})
    hidden_LD = final_states(reader, layout, spec, np.asarray(ids, np.int32), mask)
    logits_LI, total_L = _head(reader, layout.entries(spec), hidden_LD, compared)
    return {
        "text": PROMPT,
        "input_ids": ids,
        "ids": compared,
        "logits": [[float(f"{value:.8g}") for value in row] for row in logits_LI],
        "logsumexp": [float(f"{value:.8g}") for value in total_L],
    }


def final_states(reader: Reader, layout: Layout, spec: ModelSpec, tokens_L: Int[np.ndarray, "L"], mask: Mask) -> Float[np.ndarray, "L D"]:
    """States before the head of one row of tokens, from exported files, layer by layer in float32. Rotary families alone."""
    network = build_network(dataclasses.replace(spec, depth=1))
    length = len(tokens_L)
    entries = layout.entries(spec)
    segments_1L, positions_1L = np.ones((1, length), np.int32), np.arange(length, dtype=np.int32)[None]
    attend = make_attention(within(mask, spec.window), jnp.asarray(segments_1L), "dense", "float32", network.layout)
    rotary = rotary_tables(jnp.asarray(positions_1L), spec)
    layer = jax.jit(functools.partial(transformer_layer, network, attend, rotary, None, (1, length)))
    (table,) = (entry for entry in entries if entry.paths[0] == ("embedding", "table"))
    x_LD = jnp.asarray(reader.read(table.name)[tokens_L].astype(np.float32))
    for number in range(spec.depth):
        weights = _tree(reader, [entry for entry in entries if entry.layer == number])
        x_LD = layer(x_LD, weights["layers"], None)
    norm = _tree(reader, [entry for entry in entries if entry.paths[0][0] == "norm"])["norm"]
    return np.asarray(normalise(x_LD, norm, spec))


def _tree(reader: Reader, entries: list[Entry]) -> dict:
    """Our weights of these entries as a nested dict of float32 arrays."""
    tree: dict = {}
    for entry in entries:
        for path, weight in zip(entry.paths, entry.unpack(reader.read(entry.name)), strict=True):
            node = tree
            for key in path[:-1]:
                node = node.setdefault(key, {})
            node[path[-1]] = jnp.asarray(weight.astype(np.float32))
    return tree


def _head(reader: Reader, entries: tuple[Entry, ...], hidden_LD: np.ndarray, compared: list[int]) -> tuple[np.ndarray, np.ndarray]:
    """(logits of the compared ids, logsumexp over all rows); the head's rows in pieces."""
    (entry,) = (entry for entry in entries if entry.paths[0] == ("head", "kernel"))
    head_RD = reader.read(entry.name)
    total_L = np.full(len(hidden_LD), -np.inf)
    for start in range(0, len(head_RD), HEAD_ROWS):
        logits = hidden_LD @ head_RD[start : start + HEAD_ROWS].astype(np.float32).T
        total_L = np.logaddexp(total_L, np.logaddexp.reduce(logits.astype(np.float64), axis=1))
    return hidden_LD @ head_RD[compared].astype(np.float32).T, total_L
