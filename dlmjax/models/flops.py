"""FLOPs of one training token, counted from shapes: forward and backward, attention in full, without recomputation.

A multiply and an add count as two. Norms, biases, rotations and softmax are omitted (below 1 % from a width of 256 on, by
XLA's count), as in the usual 6 N D count. `plan.roofline` combines the same terms for programs that recompute some of them.
"""

from dlmjax.models.spec import ModelSpec
from dlmjax.models.weights import TIME_FEATURES


def layer_products(spec: ModelSpec) -> int:
    """Forward FLOPs of a layer's products with weights for one token of one stream; those of the modulation ("adaln") included."""
    attention = spec.heads * spec.head_dim
    entries = 2 * spec.width * attention + 2 * spec.width * spec.kv_heads * spec.head_dim + spec.mlp_matrices * spec.width * spec.ffn
    if spec.time_input == "adaln":
        entries += 6 * spec.time_width * spec.width
    return 2 * entries


def other_products(spec: ModelSpec, head_share: float = 1.0, streams: int = 1) -> float:
    """Forward FLOPs outside the layers for one token: the head on its share of the rows, the MLP of t, and the input projections."""
    entries = head_share * spec.width * spec.vocab
    if spec.head == "transform":
        entries += spec.width**2
    if spec.time_input in ("adaln", "add"):  # "prefix" has one time per row
        out = 2 * spec.width if spec.time_input == "adaln" else spec.width
        entries += streams * spec.time_width * (TIME_FEATURES + spec.time_width + out)
    if spec.input_dim:
        entries += streams * spec.input_dim * spec.width
    if spec.self_condition and spec.hint == "x0":
        entries += (spec.input_dim or spec.width) * spec.width
    return 2 * entries


def training_flops_per_token(spec: ModelSpec, length: int, head_share: float = 1.0, *, streams: int = 1, passes: float = 1.0) -> float:
    """FLOPs per token of one training step: 3 x forward.

    Args:
      length: tokens in a window; scores and values cost 4 * length * heads * head_dim a layer (non-causal: every query sees every key).
      head_share: share of the rows whose logits are computed (masked diffusion with a linear schedule: one half).
      streams: 2 when the layers run over a noisy and a clean copy of the row, with every score between them computed.
      passes: number of forward and backward passes of the whole network; a forward pass without a backward pass is 1/3.

    A layer counts once per run.
    """
    layer = streams * (layer_products(spec) + 4 * streams * length * spec.heads * spec.head_dim)
    return 3.0 * passes * (spec.effective_depth * layer + other_products(spec, head_share, streams))
