"""The denoiser: `build_network(spec, execution, partition)`; `network.init(key)`, `network.bind(params, segments, positions)`."""

from dlmjax.models.denoiser import Denoiser, Network, build_network
from dlmjax.models.families import model_spec
from dlmjax.models.masks import BlockCausal, BlockDiffusion, Causal, Full, Mask
from dlmjax.models.spec import Execution, ModelSpec

__all__ = [
    "BlockCausal",
    "BlockDiffusion",
    "Causal",
    "Denoiser",
    "Execution",
    "Full",
    "Mask",
    "ModelSpec",
    "Network",
    "build_network",
    "model_spec",
]
