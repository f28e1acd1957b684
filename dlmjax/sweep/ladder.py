"""The ladder of shapes: the width sets every size of a network. Imports no jax.

    depth      round(12 (width / 768)^0.586), at least 1: 4 at 128, 12 at 768 (GPT-2 small), 32 at 4096 (Llama 7B)
    head_dim   the largest power of two that divides the width, at most 8 below 32, 16 below 128, 32 below 256, 64 below 2048, then 128
    kv heads   as many as heads below 2048; from there on one for every four (grouped-query attention 2305.13245)
    ffn        8/3 of the width, rounded up to a multiple of 16 below 128, then of 128: 384 at 128, 2048 at 768, 11008 at 4096
    vocabulary is not part of the shape: `model.vocab` of the config, 0 = the corpus's tokenizer

The exponent of the depth is that of the line through those two published shapes, so that both sizes grow together at every scale:
non-embedding parameters grow as width^2.6. The sizes are four to an octave of width, a factor of 1.2 to 2.1 apart in parameters (uneven
because layers are whole), and 4 at the very first step. Any other multiple of 8 is a shape too.
"""

from __future__ import annotations

import bisect
import dataclasses
import math

from dlmjax.errors import InputError

WIDTHS = tuple(
    sorted(width for octave in range(1, 12) for quarter in (8, 10, 12, 14) if (width := quarter * 2**octave) % 8 == 0 and width <= 16384)
)
_HEAD_DIMS = ((32, 8), (128, 16), (256, 32), (2048, 64), (math.inf, 128))
_GROUPED_FROM, _GROUP = 2048, 4


@dataclasses.dataclass(frozen=True)
class Shape:
    """Sizes of a network, under the names that they have in `config.model`."""

    depth: int
    width: int
    heads: int
    kv_heads: int
    head_dim: int
    ffn: int

    def __str__(self) -> str:
        heads = f"{self.heads}" if self.kv_heads == self.heads else f"{self.heads}/{self.kv_heads}"
        return f"{self.depth} x {self.width}, {heads} heads of {self.head_dim}, ffn {self.ffn}"

    @property
    def layers(self) -> int:
        """Parameters of all layers in the default family (no biases, SwiGLU, norms of queries and keys).

        `counts.Counts` counts whole networks of any family.
        """
        attention = 2 * self.width * self.head_dim * (self.heads + self.kv_heads)
        norms = 2 * self.width + 2 * self.head_dim
        return self.depth * (attention + 3 * self.width * self.ffn + norms)

    def parameters(self, vocab: int = 0, tied: bool = False) -> int:
        """Layers and the last norm; with a vocabulary the token embedding too, and the head where it is not tied."""
        return self.layers + self.width + (1 if tied else 2) * vocab * self.width


def shape(width: int) -> Shape:
    """The network of one width.

    Raises InputError: the width is not a positive multiple of 8 (heads have an even number of channels, and at least 8).
    """
    if width < 8 or width % 8:
        raise InputError(f"width {width} is not on the ladder: it must be a multiple of 8, such as {', '.join(map(str, WIDTHS[:8]))}, ...")
    most = next(head_dim for limit, head_dim in _HEAD_DIMS if width < limit)
    head_dim = math.gcd(width, most)
    heads = width // head_dim
    grouped = width >= _GROUPED_FROM and heads % _GROUP == 0
    multiple = 16 if width < 128 else 128
    return Shape(
        depth=max(1, round(12 * (width / 768) ** 0.586)),
        width=width,
        heads=heads,
        kv_heads=heads // _GROUP if grouped else heads,
        head_dim=head_dim,
        ffn=-(-8 * width // (3 * multiple)) * multiple,
    )


def shape_near(parameters: float | int, vocab: int = 0, tied: bool = False) -> Shape:
    """The size of the ladder whose parameters are nearest in ratio to a number.

    Args:
      vocab: 0 compares without embedding and head; otherwise they are counted.
    Raises InputError: the number is not finite and positive, or beyond the ladder's ends by more than a factor of two.
    """
    if not (math.isfinite(parameters) and parameters > 0):
        raise InputError(f"{parameters} parameters: give a positive number")
    sizes = [(shape(width).parameters(vocab, tied), width) for width in WIDTHS]
    least, most = sizes[0][0], sizes[-1][0]
    if not least / 2 <= parameters <= most * 2:
        raise InputError(f"the ladder has no shape of {parameters:.3g} parameters; it goes from {least:.3g} to {most:.3g}")
    index = bisect.bisect(sizes, (parameters, 0))
    near = sizes[max(index - 1, 0) : index + 1]
    return shape(min(near, key=lambda size: abs(math.log(size[0] / parameters)))[1])
