"""dlmjax: pretraining of diffusion language models in JAX, from one laptop core to a pod, with exact likelihood bounds."""

__version__ = "0.1.0"
