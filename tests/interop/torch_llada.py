"""LLaDA's network in plain PyTorch, from its published description (2502.09992, appendix B; the block of OLMo 2402.00838): names, shapes
and arithmetic of the files that `--view llada` writes, independent of dlmjax."""

import torch
import torch.nn.functional as F
from torch import nn


class RmsNorm(nn.Module):
    def __init__(self, width, eps):
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.ones(width)), eps

    def forward(self, x):
        return self.weight * x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.eps)


class Block(nn.Module):
    def __init__(self, config):
        super().__init__()
        width, self.heads, self.kv_heads = config["d_model"], config["n_heads"], config["n_kv_heads"]
        self.size, self.theta = width // self.heads, config["rope_theta"]
        self.attn_norm = RmsNorm(width, config["rms_norm_eps"])
        self.ff_norm = RmsNorm(width, config["rms_norm_eps"])
        self.q_proj = nn.Linear(width, width, bias=config["include_qkv_bias"])
        self.k_proj = nn.Linear(width, self.kv_heads * self.size, bias=config["include_qkv_bias"])
        self.v_proj = nn.Linear(width, self.kv_heads * self.size, bias=config["include_qkv_bias"])
        self.attn_out = nn.Linear(width, width, bias=config["include_bias"])
        self.ff_proj = nn.Linear(width, config["mlp_hidden_size"], bias=config["include_bias"])
        self.up_proj = nn.Linear(width, config["mlp_hidden_size"], bias=config["include_bias"])
        self.ff_out = nn.Linear(config["mlp_hidden_size"], width, bias=config["include_bias"])

    def split(self, x, heads):
        return x.view(*x.shape[:2], heads, self.size).transpose(1, 2)

    def turn(self, x):
        """Rotary positions: channel c of the first half with channel c of the second."""
        frequency = 1.0 / self.theta ** (torch.arange(0, self.size, 2) / self.size)
        angle = torch.arange(x.shape[2])[:, None] * frequency
        cos, sin = (torch.cat([wave, wave], -1) for wave in (angle.cos(), angle.sin()))
        first, second = x.chunk(2, -1)
        return x * cos + torch.cat([-second, first], -1) * sin

    def forward(self, x):
        y = self.attn_norm(x)
        q, k = self.turn(self.split(self.q_proj(y), self.heads)), self.turn(self.split(self.k_proj(y), self.kv_heads))
        v = self.split(self.v_proj(y), self.kv_heads)
        k, v = (z.repeat_interleave(self.heads // self.kv_heads, dim=1) for z in (k, v))
        weights = (q @ k.transpose(-1, -2) / self.size**0.5).softmax(-1)  # nothing is hidden from anything
        x = x + self.attn_out((weights @ v).transpose(1, 2).reshape(x.shape))
        y = self.ff_norm(x)
        return x + self.ff_out(F.silu(self.ff_proj(y)) * self.up_proj(y))


class LLaDA(nn.Module):
    """`load_state_dict(strict=True)` takes the tensors of an export as they are."""

    def __init__(self, config):
        super().__init__()
        rows, width = config["embedding_size"], config["d_model"]
        parts = {
            "wte": nn.Embedding(rows, width),
            "blocks": nn.ModuleList(Block(config) for _ in range(config["n_layers"])),
            "ln_f": RmsNorm(width, config["rms_norm_eps"]),
            "ff_out": nn.Linear(width, rows, bias=config["include_bias"]),
        }
        self.model = nn.ModuleDict({"transformer": nn.ModuleDict(parts)})

    def forward(self, tokens):
        parts = self.model["transformer"]
        x = parts["wte"](tokens)
        for block in parts["blocks"]:
            x = block(x)
        return parts["ff_out"](parts["ln_f"](x))
