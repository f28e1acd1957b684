"""Whether a source whose config.json names another kind of model computes what the chosen layout does.

`--family llama` makes the import read a model of another kind by Llama's names. Equal names are not equal networks (SmolLM3 leaves every
fourth layer without positions, Granite multiplies embeddings and logits), and a missing key may have another default than Llama's. So the
logits of a few tokens are compared with those of transformers' own class before anything is written. Where transformers is not installed,
or has no class of its own for the model (code in the source directory is not run), only the keys of the config can be checked, and the
kinds that are known to differ are refused.

Shapes: B rows, L positions, V rows of the source's embedding.
"""

from __future__ import annotations

import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int

from dlmjax.errors import InputError
from dlmjax.experiment import Experiment
from dlmjax.interop.layouts import Layout

TOKENS = 24
TOLERANCE = 1e-3  # of the largest logit: float32 sums in another order differ by a hundredth of it
# Kinds whose tensors have Llama's or BERT's names in whole or in part, and which compute something else with them.
_DIFFERENT = """
    apertus arcee bitnet cohere cohere2 csm deepseek_v2 deepseek_v3 diffllama dots1 doge ernie4_5 exaone4 gemma gemma2 gemma3
    gemma3_text glm glm4 glm4_moe gpt_oss granite granitemoe helium hunyuan_v1_dense lfm2 llama4 llama4_text minimax ministral
    ministral3 mixtral modernbert moshi nanochat nemotron olmo olmo3 olmoe persimmon phi phi3 phimoe qwen2_moe qwen3_moe qwen3_next
    seed_oss smollm3 stablelm starcoder2 albert camembert-v2 convbert data2vec-text deberta deberta-v2 distilbert electra ernie esm
    longformer megatron-bert mobilebert mpnet nezha nomic_bert roberta-prelayernorm roformer squeezebert xlm xlm-roberta-xl xlnet xmod
"""
DIFFERENT = frozenset(_DIFFERENT.split())


class Reference:
    """The logits of a source by transformers, computed before our own weights take the memory; `check` compares them with ours."""

    def __init__(self, root: pathlib.Path, hf: dict[str, Any], layout: Layout, process: str, rows: int):
        """process: the noise process that the weights were trained under.

        Raises InputError: a kind that cannot be compared here, and is known to differ.
        """
        self.kind, self.layout, self.causal = str(hf.get("model_type")), layout, process == "autoregressive"
        self.tokens_BL = _tokens(hf, rows)
        self.compared = self.kind != layout.model_type and process in ("autoregressive", "masked")
        self.logits_BLV = _logits(root, self.kind, self.causal, self.tokens_BL) if self.compared else None
        if self.kind != layout.model_type and self.logits_BLV is None and self.kind in DIFFERENT:
            raise InputError(
                f"config.json has model_type={self.kind!r}, whose network differs from that of layout {layout.name}, although its "
                "tensors have the same names; no layout here computes it"
            )

    @property
    def summary(self) -> str:
        """A line on the comparison for the log of the import; "" where there was nothing to compare."""
        if self.kind == self.layout.model_type:
            return ""
        if self.logits_BLV is None:
            return (
                f"model_type={self.kind} read as {self.layout.name}: the keys of its config.json were checked, but no logits were compared"
            )
        return f"model_type={self.kind} read as {self.layout.name}: its logits are those of transformers"

    def check(self, experiment: Experiment, params: dict) -> None:
        """Raises InputError where our logits are not the source's."""
        if self.logits_BLV is None:
            return
        ours_BLV = _ours(experiment, jax.device_put(params, jax.devices()[0]), self.tokens_BL, "causal" if self.causal else "full")
        ours_BLV = ours_BLV[..., : self.logits_BLV.shape[-1]]
        away, largest = float(np.abs(ours_BLV - self.logits_BLV).max()), float(np.abs(self.logits_BLV).max())
        if not away <= TOLERANCE * max(largest, 1.0):  # NaN counts as different
            raise InputError(
                f"--family {self.layout.name} does not compute what model_type={self.kind!r} does: logits differ by up to {away:.3g}, the "
                f"largest is {largest:.3g}; no layout here computes this kind (nothing was written)"
            )


def _tokens(hf: dict[str, Any], rows: int) -> Int[np.ndarray, "B L"]:
    """Ids that no network treats specially, as it would a padding."""
    special = {hf.get(f"{key}_token_id") for key in ("pad", "bos", "eos", "mask") if isinstance(hf.get(f"{key}_token_id"), int)}
    usual = np.array([i for i in range(min(rows, 1 << 16)) if i not in special] or [0])
    return np.random.default_rng(0).choice(usual, (1, TOKENS)).astype(np.int32)


def _logits(root: pathlib.Path, kind: str, causal: bool, tokens_BL: Int[np.ndarray, "B L"]) -> Float[np.ndarray, "B L V"] | None:
    """Logits of transformers' own class, float32; None where it is not installed or has no such class."""
    try:
        import torch
        from transformers import AutoModelForCausalLM, AutoModelForMaskedLM
        from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES
    except ImportError:
        return None
    if kind not in CONFIG_MAPPING_NAMES:
        return None
    auto = AutoModelForCausalLM if causal else AutoModelForMaskedLM
    try:
        model, loading = auto.from_pretrained(
            root, dtype=torch.float32, local_files_only=True, trust_remote_code=False, use_safetensors=True, output_loading_info=True
        )
        if loading["missing_keys"] or loading["mismatched_keys"]:
            raise InputError(f"transformers finds no {sorted(map(str, loading['missing_keys']))[:3]} in {root} for model_type={kind!r}")
        with torch.no_grad():
            return model.eval()(input_ids=torch.from_numpy(tokens_BL.astype(np.int64))).logits.float().numpy()
    except InputError:
        raise
    except Exception as error:  # transformers' classes raise any type
        reason = " ".join(str(error).split())[:200]
        raise InputError(f"transformers cannot run {root} as model_type={kind!r} to compare its logits ({reason})") from None


def _ours(experiment: Experiment, params: dict, tokens_BL: Int[np.ndarray, "B L"], attention: str) -> Float[np.ndarray, "B L V"]:
    ones_BL = jnp.ones(tokens_BL.shape, jnp.int32)
    positions_BL = jnp.broadcast_to(jnp.arange(tokens_BL.shape[1], dtype=jnp.int32), tokens_BL.shape)

    @jax.jit
    def run(params: dict) -> jax.Array:
        denoiser = experiment.unpartitioned.bind(params, ones_BL, positions_BL, attention)
        return denoiser.logits(denoiser.hidden(jnp.asarray(tokens_BL), jnp.zeros(tokens_BL.shape)))

    return np.asarray(run(params))
