"""FLOPs of one training token, counted from shapes: forward and backward, attention in full, nothing for recomputation."""

from dlmjax.models.spec import ModelSpec


def training_flops_per_token(spec: ModelSpec, length: int, head_share: float = 1.0, *, streams: int = 1, passes: float = 1.0) -> float:
    """FLOPs per token of one training step: 3 x forward, a multiply and an add counted as two.

    Args:
      length: tokens in a window; scores and values cost 4 * length * heads * head_dim a layer (non-causal: every query sees every key).
      head_share: share of the rows whose logits are computed (masked diffusion with a linear schedule: one half).
      streams: 2 where the layers run over a noisy and a clean copy of the row, with every score between them computed.
      passes: times that the whole network runs forward and backward; a forward pass alone is a third of one.

    A layer counts as often as it is run. Norms, biases, rotary turns and softmax are left out (below 1 % at any width that matters), as
    in the usual 6 N D count.
    """
    attention_width = spec.heads * spec.head_dim
    projections = 2 * spec.width * attention_width + 2 * spec.width * spec.kv_heads * spec.head_dim
    layer = streams * (2 * (projections + spec.mlp_matrices * spec.width * spec.ffn) + 4 * streams * length * attention_width)
    transform = 2 * spec.width**2 if spec.head == "transform" else 0
    return 3.0 * passes * (spec.effective_depth * layer + transform + head_share * 2 * spec.width * spec.vocab)
