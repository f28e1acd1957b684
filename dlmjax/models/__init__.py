"""The denoiser: `build_network(spec, execution, partition)`; `network.init(key)`, `network.bind(params, segments, positions)`.

`from_nnx(module)` and `from_function(function, init)` make a network of one's own of the same use (docs/models.md).
"""

from dlmjax.models.anchored import AnchoredNetwork, build_network
from dlmjax.models.denoiser import Denoiser, Network
from dlmjax.models.families import model_spec
from dlmjax.models.masks import BlockCausal, BlockDiffusion, Causal, Full, Mask
from dlmjax.models.own import Declared, OwnNetwork, from_function, from_nnx
from dlmjax.models.protocol import TrainableNetwork
from dlmjax.models.spec import Execution, ModelSpec

__all__ = [
    "AnchoredNetwork",
    "BlockCausal",
    "BlockDiffusion",
    "Causal",
    "Declared",
    "Denoiser",
    "Execution",
    "Full",
    "Mask",
    "ModelSpec",
    "Network",
    "OwnNetwork",
    "TrainableNetwork",
    "build_network",
    "from_function",
    "from_nnx",
    "model_spec",
]
