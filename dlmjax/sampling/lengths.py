"""Made lengths: how long texts are, beside the documents of the data; how much of a canvas is ends and pads.

A canvas has a fixed number of positions, and the text in it ends at its first end of document. A model whose rows were filled up with ends
makes texts that are shorter on a longer canvas. So lengths are reported for each size of a canvas.

Shapes: B rows, L positions, D documents.
"""

from typing import Any

import numpy as np
from jaxtyping import Bool, Int

QUANTILES = (0.1, 0.25, 0.5, 0.75, 0.9)


def made_lengths(tokens_BL: Int[np.ndarray, "B L"], generated_BL: Bool[np.ndarray, "B L"], eos_id: int) -> Int[np.ndarray, "B"]:
    """Number of generated tokens of each row before its first generated end of document; all of them where it has none."""
    ended_BL = np.cumsum(generated_BL & (tokens_BL == eos_id), axis=1) > 0
    return (generated_BL & ~ended_BL).sum(axis=1)


def length_report(
    tokens_BL: Int[np.ndarray, "B L"],
    condition_mask_BL: Bool[np.ndarray, "B L"],
    tokenizer: Any,
    *,
    canvas_B: Int[np.ndarray, "B"] | None = None,
    data_D: Int[np.ndarray, "D"] | None = None,
) -> list[dict[str, Any]]:
    """One JSON-ready entry for each size of a canvas, in tokens; empty where the tokenizer has no end of document.

    Each has: canvas; texts; length, its mean, s.e. (None for one text) and quantiles; without_end, the rows in which none was generated;
    end_share and pad_share, of the generated positions. With `data_D`, `data`: the same of the documents, and w1, the Wasserstein distance
    in tokens between the lengths of both, those of documents cut to the canvas.

    tokenizer: `eos_id`, `pad_id`, `vocab_size`; ids from that size on are the pads of a tail.
    canvas_B: size of the canvas of each row, where rows have several; positions from there on are ignored; None = L.
    data_D: lengths of documents, without their end.
    """
    if tokenizer.eos_id is None:
        return []
    batch, length = tokens_BL.shape
    sizes_B = np.full(batch, length) if canvas_B is None else canvas_B
    found = []
    for size in np.unique(sizes_B).tolist():
        tokens_NS, generated_NS = tokens_BL[sizes_B == size, :size], ~condition_mask_BL[sizes_B == size, :size]
        ends_NS = generated_NS & (tokens_NS == tokenizer.eos_id)
        pads_NS = generated_NS & ~ends_NS & ((tokens_NS >= tokenizer.vocab_size) | (tokens_NS == tokenizer.pad_id))
        positions, lengths_N = max(int(generated_NS.sum()), 1), made_lengths(tokens_NS, generated_NS, tokenizer.eos_id)
        entry = {"canvas": size, "texts": len(lengths_N), "length": _summary(lengths_N)}
        entry |= {"without_end": int((~ends_NS.any(axis=1)).sum()), "end_share": float(ends_NS.sum() / positions)}
        entry["pad_share"] = float(pads_NS.sum() / positions)
        if data_D is not None and len(data_D):
            room = int(generated_NS.sum(axis=1).max())
            entry["data"] = {"documents": len(data_D), "length": _summary(data_D), "w1": wasserstein(lengths_N, np.minimum(data_D, room))}
        found.append(entry)
    return found


def wasserstein(a_N: np.ndarray, b_M: np.ndarray) -> float:
    """The 1-Wasserstein distance of two samples: the area between their distribution functions."""
    values = np.unique(np.concatenate([a_N, b_M])).astype(np.float64)
    shares = (np.searchsorted(np.sort(one), values[:-1], side="right") / len(one) for one in (a_N, b_M))
    return float(np.sum(np.abs(np.subtract(*shares)) * np.diff(values)))


def text_of_lengths(entry: dict[str, Any]) -> str:
    """The 10, 50 and 90 % quantiles of an entry's lengths, as tables show them: "12 / 40 / 64"."""
    quantiles = entry["length"]["quantiles"]
    return " / ".join(f"{quantiles[share]:.0f}" for share in ("0.1", "0.5", "0.9"))


def _summary(lengths_N: np.ndarray) -> dict[str, Any]:
    error = float(lengths_N.std(ddof=1) / np.sqrt(len(lengths_N))) if len(lengths_N) > 1 else None
    quantiles = dict(zip(map(str, QUANTILES), np.quantile(lengths_N, QUANTILES).tolist(), strict=True))
    return {"mean": float(lengths_N.mean()), "stderr_mean": error, "quantiles": quantiles}
