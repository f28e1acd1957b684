"""Loads the diffusion language model beside this file with transformers, checks it, and fills in masks.

python load_dlm.py                 loads the weights and compares their logits with parity.json
from load_dlm import load, check, generate
"""

import json
import pathlib
import re

import torch
import transformers

HERE = pathlib.Path(__file__).parent
# The first version in which `is_causal: false` reaches the attention. Older ones load the weights and run causally without a warning.
NEEDED = (5, 2)


def require(version: str) -> None:
    """Raises RuntimeError for a version of transformers that would run this model with causal attention."""
    if tuple(int(part) for part in re.findall(r"\d+", version)[:2]) < NEEDED:
        raise RuntimeError(
            f"transformers {version} ignores is_causal=false: it would run this model with causal attention and give wrong logits "
            f"without an error; use transformers >= {NEEDED[0]}.{NEEDED[1]}"
        )


def load(directory=HERE, dtype="float32"):
    """The model, in eval mode. Raises RuntimeError where the installed transformers would compute wrong logits."""
    config = json.loads((pathlib.Path(directory) / "config.json").read_text(encoding="utf-8"))
    if config["dlm"]["attention"] != "causal":
        require(transformers.__version__)
    if config["model_type"] != "sdar":
        return transformers.AutoModelForCausalLM.from_pretrained(directory, dtype=dtype).eval()
    # SDAR's weights are Qwen3's; the attention mask of each call defines its blocks.
    for name in ("model_type", "architectures", "auto_map", "torch_dtype"):
        del config[name]
    config = transformers.Qwen3Config(**config, is_causal=False)
    return transformers.Qwen3ForCausalLM.from_pretrained(directory, config=config, dtype=dtype).eval()


def attention_mask(length, block_size, dtype=torch.float32):
    """[1, 1, length, length]: 0 where a query attends to a key (of its own block or an earlier one), a very negative number elsewhere."""
    block = torch.arange(length) // block_size
    later = block[:, None] < block[None, :]
    return torch.zeros(length, length, dtype=dtype).masked_fill(later, torch.finfo(dtype).min)[None, None]


def logits_of(model, tokens):
    """Logits [length, ids] of one row of tokens [length], float32."""
    size = model.config.dlm["block_size"]
    mask = None if size is None else attention_mask(len(tokens), size, model.dtype).to(tokens.device)
    return model(tokens[None], attention_mask=mask, use_cache=False).logits[0].float()


@torch.no_grad()
def generate(model, tokens, steps=64):
    """Fills the mask tokens of a row [length], most confident first, at most `steps` calls (for each block, where there are blocks).

    Greedy: each mask becomes its most likely token; after call k of n, k/n of the masks are revealed.
    """
    config = model.config
    size, trained = config.dlm["block_size"] or len(tokens), config.dlm["trained_size"]
    row = torch.cat([tokens, tokens.new_full((-len(tokens) % size,), config.mask_token_id)])
    for start in range(0, len(row), size):
        block = row[start : start + size]
        masked = block == config.mask_token_id
        count = int(masked.sum())
        calls = min(steps, count)
        for call in range(1, calls + 1):
            logits = logits_of(model, row[: start + size])[start:]
            logits[:, trained:] = logits[:, config.dlm["suppress_ids"]] = -float("inf")  # never sampled
            confidence, prediction = logits.softmax(-1).max(-1)
            revealed = count - int(masked.sum())
            best = confidence.masked_fill(~masked, -1.0).argsort(descending=True, stable=True)
            new = best[: count * call // calls - revealed]
            block[new] = prediction[new]
            masked[new] = False
    return row[: len(tokens)]


@torch.no_grad()
def check(model, directory=HERE):
    """The largest difference between the model's logits and those in parity.json, on its prompt."""
    parity = json.loads((pathlib.Path(directory) / "parity.json").read_text(encoding="utf-8"))
    logits = logits_of(model, torch.tensor(parity["input_ids"], device=model.device))
    return (logits[:, parity["ids"]].cpu() - torch.tensor(parity["logits"])).abs().max().item()


if __name__ == "__main__":
    print(f"largest difference of logits from parity.json: {check(load()):.2e}")
