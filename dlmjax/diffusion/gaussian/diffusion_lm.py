"""Diffusion-LM (2205.14217) and SED (2211.04236): Gaussian diffusion of embeddings with a network that predicts the clean vector.

Both are the base process with other values; their published losses are weightings (weighting.py), so the bound stays at hand. What
Diffusion-LM does when it samples, the clamping trick and the rounding, is in embedding.py.
"""

import dataclasses

from dlmjax.diffusion.gaussian.process import EmbeddingNoise
from dlmjax.diffusion.weightings.gaussian import EndToEnd


@dataclasses.dataclass(frozen=True)
class DiffusionLm(EmbeddingNoise):
    """Free embeddings learned end to end, the sqrt path, x0 predicted, rounding by softmax(z . e). The paper has 2000 steps; 0 is their
    limit."""

    path: str = "sqrt"
    prediction: str = "x0"
    rounding: str = "tied"

    name = "diffusion_lm"
    weighting = EndToEnd()


@dataclasses.dataclass(frozen=True)
class Sed(EmbeddingNoise):
    """Small fixed embeddings of length sqrt(dim), the cosine path, x0 predicted, a readout of its own.

    The embeddings are random unless others are imported into `init`'s tree. At gamma_0 the noise is an eighth of an entry, and random
    embeddings lie much further apart: a cleaner start would only cost the bound. Self-conditioning and given spans are the objective's:
    self_condition, prompt.
    """

    norm: float | None = None
    frozen: bool = True
    gamma_0: float | None = -4.0
    prediction: str = "x0"
    rounding: str = "separate"

    name = "sed"
    weighting = EndToEnd(terminal=0.0)
