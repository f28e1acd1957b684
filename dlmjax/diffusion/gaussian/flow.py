"""Flow matching on embeddings (2210.02747; FlowSeq): the straight path z = (1 - t) e + t eps and its velocity eps - e.

The path is a Gaussian diffusion with gamma = 2 log(t / (1 - t)), so the process has the exact bound of the base class; the
trained loss, the squared error of the velocity, is not a bound. Euler and Heun steps of its ODE are in steps.py.
"""

import dataclasses

from dlmjax.diffusion.gaussian.process import EmbeddingNoise
from dlmjax.diffusion.weightings.gaussian import Simple


@dataclasses.dataclass(frozen=True)
class EmbeddingFlow(EmbeddingNoise):
    """Fixed embeddings of length sqrt(dim), that of the noise: a squared error alone would make learned ones collapse."""

    norm: float | None = None
    frozen: bool = True
    path: str = "straight"
    gamma_0: float | None = -4.0
    prediction: str = "velocity"

    name = "embedding_flow"
    weighting = Simple("velocity")
