"""Outliers of activations, layer by layer, which limit a quantiser with one scale per tensor.

    ratio      largest magnitude / median magnitude of all entries ("massive activations" are those of ratio > 1000, Sun et al. 2402.17762)
    kurtosis   fourth moment / squared variance of all entries: 3 if normal, more for heavier tails (Bondarenko et al. 2306.12929)
    channel    index of the channel with the largest magnitude

Tensors of a layer: `query`, `key`, `value` (queries and keys after the rotary embedding; a cache stores keys and values), `attention`
(input of the output projection) and `stream` (residual stream after the layer). The network reads clean text at t = 0; padding is left out.

Shapes: N layers, B rows, L positions, D width; R positions of all windows without padding, C channels of a tensor.
"""

import dataclasses
from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dlmjax.models.attention import make_attention
from dlmjax.models.denoiser import Denoiser, split_stack, transformer_layer
from dlmjax.models.layers import rotary_tables
from dlmjax.parallel.arrays import device_get, device_put, replicated_like
from dlmjax.quality.hidden import Encoder
from dlmjax.run import Run

TENSORS = ("query", "key", "value", "attention", "stream")


@dataclasses.dataclass(frozen=True)
class _Tapped(Denoiser):
    """A denoiser that records the tensors of its layers, stacked over layers; `hidden` appends them to `seen`."""

    seen: list = dataclasses.field(default_factory=list)

    def _layers(self, x, time, rows):
        execution, spec = self.network.execution, self.network.spec
        attend = make_attention(rows.mask, rows.segments_BL, execution.attention, execution.dtype, self.network.layout)
        rotary = rotary_tables(rows.positions_BL, spec) if spec.positions == "rotary" else None
        shape = rows.segments_BL.shape

        def layer(x, weights):
            taps: dict[str, Any] = {}

            def tapped(q_BLHK, k_BLGK, v_BLGK):
                out_BLHK = attend(q_BLHK, k_BLGK, v_BLGK)
                taps.update(query=q_BLHK, key=k_BLGK, value=v_BLGK, attention=out_BLHK)
                return out_BLHK

            x = transformer_layer(self.network, tapped, rotary, time, shape, x, weights, None)
            taps["stream"] = x
            return x, {name: tap.reshape(*shape, -1) for name, tap in taps.items()}

        found = []
        for stacked, (_, _, runs) in zip(split_stack(self.params["layers"], spec.spans), spec.spans, strict=True):
            for _ in range(runs):
                x, seen = jax.lax.scan(layer, x, stacked)
                found.append(seen)
        self.seen.append(jax.tree.map(lambda *taps: jnp.concatenate(taps), *found))
        return x


def activation_statistics(run: Run, windows: Iterable[np.ndarray], batch: int = 8) -> list[dict[str, Any]]:
    """Statistics of each tensor of each layer: layer, place (name of the tensor), largest, median, ratio, kurtosis, channel.

    windows: rows of token ids, cut to the run's length (causal runs: one token less). The host holds all entries, so give tens of windows.
    batch: windows at a time.
    """
    encoder = Encoder(run, batch)
    rows = [np.asarray(ids)[: encoder.capacity] for ids in windows]

    @jax.jit
    def taps(params, tokens_BL, valid_BL):
        denoiser, z, t_BL = encoder.read(params, tokens_BL, valid_BL)
        tapped = _Tapped(denoiser.network, denoiser.params, denoiser.segments_BL, denoiser.positions_BL, denoiser.mask)
        tapped.hidden(z, t_BL)
        return tapped.seen[-1]

    found: dict[str, list[np.ndarray]] = {name: [] for name in TENSORS}
    for start in range(0, len(rows), batch):
        tokens_BL, valid_BL = encoder.clean(rows[start : start + batch])
        sharding = replicated_like(run.params)
        for name, tap_NBLC in taps(run.params, device_put(tokens_BL, sharding), device_put(valid_BL, sharding)).items():
            prefix = tap_NBLC.shape[2] - valid_BL.shape[1]  # networks with a first position for the time
            found[name].append(device_get(tap_NBLC)[:, :, prefix:][:, valid_BL].astype(np.float32))
    return [
        {"layer": layer, "place": name, **outliers(np.concatenate([part[layer] for part in found[name]]))}
        for layer in range(run.experiment.network.spec.effective_depth)
        for name in TENSORS
    ]


def outliers(values_RC: np.ndarray) -> dict[str, float | int]:
    """Largest and median magnitude, their ratio, kurtosis (nan for a constant), and the channel of the largest magnitude."""
    magnitude_RC = np.abs(values_RC)
    largest, median = float(magnitude_RC.max()), float(np.median(magnitude_RC))
    centred = values_RC.astype(np.float64) - values_RC.mean(dtype=np.float64)
    variance = float(np.mean(centred**2))
    return {
        "largest": largest,
        "median": median,
        "ratio": largest / median if median else float("inf"),
        "kurtosis": float(np.mean(centred**4)) / variance**2 if variance else float("nan"),
        "channel": int(magnitude_RC.argmax() % values_RC.shape[1]),
    }


def table(rows: list[dict[str, Any]]) -> str:
    """The rows as a Markdown table."""
    lines = ["| layer | tensor | max abs | median abs | ratio | kurtosis | channel |", "|---:|---|---:|---:|---:|---:|---:|"]
    for row in rows:
        numbers = " | ".join(f"{row[name]:.4g}" for name in ("largest", "median", "ratio", "kurtosis"))
        lines.append(f"| {row['layer']} | {row['place']} | {numbers} | {row['channel']} |")
    return "\n".join(lines)
