"""Diffusion-LM (2205.14217) and SED (2211.04236): Gaussian diffusion of embeddings with a network that predicts the clean vector.

Both are the base process with other values; their published losses are weightings (weightings/gaussian.py), so the bound is available
too. The clamping trick and the rounding of Diffusion-LM's sampler are in embedding.py.
"""

import dataclasses

from dlmjax.diffusion.gaussian.process import EmbeddingNoise
from dlmjax.diffusion.weightings.gaussian import EndToEnd


@dataclasses.dataclass(frozen=True)
class DiffusionLm(EmbeddingNoise):
    """Embeddings of free length, learned end to end, the sqrt path, x0 predicted, rounding by softmax(z . e). The paper has 2000 steps; the
    default is their limit, continuous time."""

    path: str = "sqrt"
    prediction: str = "x0"
    rounding: str = "tied"

    name = "diffusion_lm"
    weighting = EndToEnd()


@dataclasses.dataclass(frozen=True)
class Sed(EmbeddingNoise):
    """Fixed embeddings of length sqrt(dim), the cosine path, x0 prediction, a separate rounding layer.

    The embeddings are random unless others are imported into `init`'s tree. At gamma_0 the noise of an entry is 1/8, and random embeddings
    are much further apart: less noise at t = 0 would only increase the bound. Self-conditioning and conditioning on a prompt are options of
    the objective: self_condition, prompt.
    """

    norm: float | None = None
    frozen: bool = True
    gamma_0: float | None = -4.0
    prediction: str = "x0"
    rounding: str = "separate"

    name = "sed"
    weighting = EndToEnd(terminal=0.0)
