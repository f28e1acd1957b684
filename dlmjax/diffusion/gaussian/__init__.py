"""Gaussian diffusion on token embeddings: the processes, their paths of noise, parameterisations and steps."""

from dlmjax.diffusion.gaussian.diffusion_lm import DiffusionLm, Sed
from dlmjax.diffusion.gaussian.flow import EmbeddingFlow
from dlmjax.diffusion.gaussian.plaid import Plaid
from dlmjax.diffusion.gaussian.process import GaussianEmbedding, make_path
from dlmjax.diffusion.weightings.gaussian import Anchor, EndToEnd, Simple

__all__ = ["Anchor", "DiffusionLm", "EmbeddingFlow", "EndToEnd", "GaussianEmbedding", "Plaid", "Sed", "Simple", "make_path"]
