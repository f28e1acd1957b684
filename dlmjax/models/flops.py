"""FLOPs of one training token, counted from shapes: forward and backward, attention in full, without recomputation.

A multiply and an add count as two. Norms, biases, rotations and softmax are omitted (below 1 % from a width of 256 on, by
XLA's count), as in the usual 6 N D count. `plan.roofline` combines the same terms for programs that recompute some of them.
"""

from dlmjax.models.spec import ModelSpec
from dlmjax.models.weights import TIME_FEATURES


def layer_products(spec: ModelSpec) -> int:
    """Forward FLOPs of a layer's products with weights for one token of one stream, without those of the modulation."""
    attention = spec.heads * spec.head_dim
    entries = 2 * spec.width * attention + 2 * spec.width * spec.kv_heads * spec.head_dim + spec.mlp_matrices * spec.width * spec.ffn
    return 2 * entries


def modulation_products(spec: ModelSpec) -> int:
    """Forward FLOPs of a layer's modulation ("adaln") for one time."""
    return 12 * spec.time_width * spec.width if spec.time_input == "adaln" else 0


def other_products(spec: ModelSpec, head_share: float = 1.0, streams: int = 1) -> float:
    """Forward FLOPs outside the layers for one token: the head on its share of the rows, and the input projections."""
    entries = head_share * spec.width * spec.vocab
    if spec.head == "transform":
        entries += spec.width**2
    if spec.input_dim:
        entries += streams * spec.input_dim * spec.width
    if spec.self_condition and spec.hint == "x0":
        entries += (spec.input_dim or spec.width) * spec.width
    return 2 * entries


def time_products(spec: ModelSpec) -> int:
    """Forward FLOPs outside the layers for one time: the MLP of t and what its output is projected to."""
    if spec.time_input not in ("adaln", "add"):  # "prefix" has one time per row
        return 0
    out = 2 * spec.width if spec.time_input == "adaln" else spec.width
    return 2 * spec.time_width * (TIME_FEATURES + spec.time_width + out)


def times_of_row(length: int, streams: int, tokens_per_time: int) -> int:
    """Times of a row for which the network computes its signal (`models.time_signal`): one for each group of tokens that share one, and the
    lowest; without such groups one for each position of every stream."""
    return length // tokens_per_time + 1 if tokens_per_time > 1 else streams * length


def training_flops_per_token(
    spec: ModelSpec, length: int, head_share: float = 1.0, *, streams: int = 1, passes: float = 1.0, tokens_per_time: int = 1
) -> float:
    """FLOPs per token of one training step: 3 x forward.

    Args:
      length: tokens in a window; scores and values cost 4 * length * heads * head_dim a layer (non-causal: every query sees every key).
      head_share: share of the rows whose logits are computed (masked diffusion with a linear schedule: one half).
      streams: 2 when the layers run over a noisy and a clean copy of the row, with every score between them computed.
      passes: number of forward and backward passes of the whole network; a forward pass without a backward pass is 1/3.
      tokens_per_time: neighbouring tokens that share a time (`diffusion.Times`): what is made of t is computed once for them.

    A layer counts once per run.
    """
    times = times_of_row(length, streams, tokens_per_time) / length
    layer = streams * (layer_products(spec) + 4 * streams * length * spec.heads * spec.head_dim) + times * modulation_products(spec)
    return 3.0 * passes * (spec.effective_depth * layer + other_products(spec, head_share, streams) + times * time_products(spec))
