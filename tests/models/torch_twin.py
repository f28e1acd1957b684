"""The same denoiser and masked loss written as one writes eager PyTorch: for the parity test and for benchmarks/step_speed.py."""

import math

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn


class Layer(nn.Module):
    def __init__(self, spec):
        super().__init__()
        self.spec = spec
        width, heads, kv = spec.width, spec.heads * spec.head_dim, spec.kv_heads * spec.head_dim
        self.attention_norm = nn.RMSNorm(width, eps=spec.norm_eps)
        self.query = nn.Linear(width, heads, bias=False)
        self.key = nn.Linear(width, kv, bias=False)
        self.value = nn.Linear(width, kv, bias=False)
        if spec.qk_norm:
            self.query_norm = nn.RMSNorm(spec.head_dim, eps=spec.norm_eps)
            self.key_norm = nn.RMSNorm(spec.head_dim, eps=spec.norm_eps)
        self.output = nn.Linear(heads, width, bias=False)
        self.mlp_norm = nn.RMSNorm(width, eps=spec.norm_eps)
        self.gate = nn.Linear(width, spec.ffn, bias=False)
        self.up = nn.Linear(width, spec.ffn, bias=False)
        self.down = nn.Linear(spec.ffn, width, bias=False)

    def forward(self, x, cos, sin, mask):
        B, L, _ = x.shape
        spec = self.spec
        y = self.attention_norm(x)
        q = self.query(y).view(B, L, spec.heads, spec.head_dim)
        k = self.key(y).view(B, L, spec.kv_heads, spec.head_dim)
        v = self.value(y).view(B, L, spec.kv_heads, spec.head_dim)
        if spec.qk_norm:
            q, k = self.query_norm(q), self.key_norm(k)
        q, k, v = rotate(q, cos, sin).transpose(1, 2), rotate(k, cos, sin).transpose(1, 2), v.transpose(1, 2)
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, enable_gqa=spec.kv_heads != spec.heads)
        x = x + self.output(out.transpose(1, 2).reshape(B, L, spec.heads * spec.head_dim))
        y = self.mlp_norm(x)
        return x + self.down(F.silu(self.gate(y)) * self.up(y))


def rotate(x, cos, sin):
    first, second = x.chunk(2, dim=-1)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)


class Twin(nn.Module):
    """The families qwen3 and llama, without time input, dropout and CompleteP."""

    def __init__(self, spec):
        super().__init__()
        self.spec = spec
        self.embedding = nn.Embedding(spec.vocab, spec.width)
        self.layers = nn.ModuleList(Layer(spec) for _ in range(spec.depth))
        self.norm = nn.RMSNorm(spec.width, eps=spec.norm_eps)
        self.head = None if spec.tied else nn.Linear(spec.width, spec.vocab, bias=False)

    def hidden(self, tokens, positions, mask=None):
        half = self.spec.head_dim // 2
        frequency = self.spec.rope_base ** (-torch.arange(half, dtype=torch.float32) / half) / self.spec.rope_scaling
        angle = positions[:, :, None, None].float() * frequency
        cos, sin = angle.cos(), angle.sin()
        x = self.embedding(tokens)
        for layer in self.layers:
            x = layer(x, cos, sin, mask)
        return self.norm(x)

    def logits(self, hidden):
        return F.linear(hidden, self.embedding.weight if self.head is None else self.head.weight)

    def loss(self, tokens, noisy, rows, weight, positions, mask=None):
        """sum over rows of weight * cross-entropy; the head sees the masked rows only, as in ours."""
        hidden = self.hidden(noisy, positions, mask)[rows]
        nats = F.cross_entropy(self.logits(hidden), tokens[rows], reduction="none")
        return (weight[rows] * nats).sum()

    @torch.no_grad()
    def load(self, params):
        """Copies a plain nested dict of ours (numpy-convertible leaves)."""
        self.embedding.weight.copy_(torch.tensor(np.asarray(params["embedding"]["table"])))
        self.norm.weight.copy_(torch.tensor(np.asarray(params["norm"]["scale"])))
        if self.head is not None:
            self.head.weight.copy_(torch.tensor(np.asarray(params["head"]["kernel"]).T))
        for name, leaf in params["layers"].items():
            (stacked,) = leaf.values()
            for n, layer in enumerate(self.layers):
                value = torch.tensor(np.asarray(stacked[n]))
                getattr(layer, name).weight.copy_(value.T if value.ndim == 2 else value)

    def gradients(self):
        """Gradients with the structure of our weights, numpy."""

        def stack(name):
            return np.stack([_transposed(getattr(layer, name).weight.grad) for layer in self.layers])

        names = [name for name, _ in self.layers[0].named_children()]
        tree = {
            "embedding": {"table": self.embedding.weight.grad.numpy()},
            "norm": {"scale": self.norm.weight.grad.numpy()},
            "layers": {name: {"scale" if name.endswith("norm") else "kernel": stack(name)} for name in names},
        }
        if self.head is not None:
            tree["head"] = {"kernel": self.head.weight.grad.numpy().T}
        return tree


def _transposed(grad):
    return grad.numpy().T if grad.ndim == 2 else grad.numpy()


def parameter_count(spec):
    return sum(math.prod(p.shape) for p in Twin(spec).parameters())
