"""dlmjax: pretraining of diffusion language models in JAX, from one laptop core to a pod, with exact likelihood bounds.

The names below are the Python interface (docs/python.md). Each is imported when it is first used: `import dlmjax` alone imports nothing.

The first use of a name sets, on a machine without a TPU, the variables of the environment without which an installed libtpu warns, at the
start of jax, that it finds none; values that are set already stay.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dlmjax.config import load_config as load_config
    from dlmjax.data.prepare import prepare as prepare
    from dlmjax.diffusion import Objective as Objective
    from dlmjax.diffusion import make_process as make_process
    from dlmjax.evaluate import evaluate as evaluate
    from dlmjax.experiment import assemble as assemble
    from dlmjax.interop.export import export as export
    from dlmjax.models import Execution as Execution
    from dlmjax.models import ModelSpec as ModelSpec
    from dlmjax.models import build_network as build_network
    from dlmjax.models import from_nnx as from_nnx
    from dlmjax.run import open_run as open_run
    from dlmjax.sampling import Sampler as Sampler
    from dlmjax.train import train as train
    from dlmjax.training import OptimizerSpec as OptimizerSpec
    from dlmjax.training import build_optimizer as build_optimizer
    from dlmjax.training import init_state as init_state
    from dlmjax.training import make_train_step as make_train_step


__version__ = "0.1.0"
# name -> (module, name there); "" is the module itself, which can be called: `dlmjax.train` is a module and the function in it.
_HOMES = {
    "Execution": ("dlmjax.models", "Execution"),
    "ModelSpec": ("dlmjax.models", "ModelSpec"),
    "Objective": ("dlmjax.diffusion", "Objective"),
    "OptimizerSpec": ("dlmjax.training", "OptimizerSpec"),
    "Sampler": ("dlmjax.sampling", "Sampler"),
    "assemble": ("dlmjax.experiment", "assemble"),
    "build_network": ("dlmjax.models", "build_network"),
    "build_optimizer": ("dlmjax.training", "build_optimizer"),
    "evaluate": ("dlmjax.evaluate", ""),
    "export": ("dlmjax.interop.export", "export"),
    "from_nnx": ("dlmjax.models", "from_nnx"),
    "init_state": ("dlmjax.training", "init_state"),
    "load_config": ("dlmjax.config", "load_config"),
    "make_process": ("dlmjax.diffusion", "make_process"),
    "make_train_step": ("dlmjax.training", "make_train_step"),
    "open_run": ("dlmjax.run", "open_run"),
    "prepare": ("dlmjax.data.prepare", "prepare"),
    "train": ("dlmjax.train", ""),
}
__all__ = [*_HOMES]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'dlmjax' has no attribute {name!r}; it has {', '.join(__all__)}")
    from dlmjax.cluster.chips import quiet_libtpu

    quiet_libtpu()
    module, attribute = _HOMES[name]
    found = importlib.import_module(module)
    value = globals()[name] = getattr(found, attribute) if attribute else found
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})
