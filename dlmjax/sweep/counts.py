"""Parameters of a network, counted three ways, and FLOPs of a training token, counted two ways. No array is made.

The FLOPs are those of `models.flops` with the passes that the process requires (`Experiment.flops_per_token`): attention in full, the
head on the positions that carry loss, two streams for block diffusion, further passes for self-conditioning and boundary terms. Rates,
lengths and shapes determine them, so the count is the same on every device; tests require it within 3 % of XLA's own count of the
compiled gradient.
"""

from __future__ import annotations

import dataclasses

import jax

from dlmjax.diffusion.process import init_params
from dlmjax.experiment import Experiment
from dlmjax.models import ModelSpec, build_network
from dlmjax.plan import roofline
from dlmjax.plan.hardware import load_of
from dlmjax.sweep.ladder import Shape

# Branches of a network's tree that are tables or the head; all others count as layers (`models.weights`).
_KINDS = {"embedding": "table", "position": "table", "token_type": "table", "head": "head"}


@dataclasses.dataclass(frozen=True)
class Counts:
    """The counts of one network under one objective.

    parameters: all that is trained, process parameters included.  non_embedding: without tables of tokens, positions and types and
    without the head (Kaplan 2001.08361).  active: parameters in one token's forward pass, which are all but tables that are
    only looked up; the head counts, also where it is the embedding.
    flops_per_token: of training, forward and backward, nothing twice.  hardware_flops_per_token: with what rematerialisation and fused
    attention kernels compute again, without the score blocks that they skip.
    """

    parameters: int
    non_embedding: int
    active: int
    flops_per_token: float
    hardware_flops_per_token: float


def count(experiment: Experiment) -> Counts:
    """Counts an assembled config."""
    tables, head, inner = _sizes(experiment.network.spec)
    learned = jax.eval_shape(lambda: init_params(experiment.process, jax.random.key(0)))
    for leaf, parameter in zip(jax.tree.leaves(learned), jax.tree.leaves(experiment.process.parameters), strict=True):
        tables, inner = (tables + leaf.size, inner) if parameter.kind == "embedding" else (tables, inner + leaf.size)
    spec, parameters = experiment.network.spec, tables + head + inner
    load = load_of(experiment)
    return Counts(
        parameters=parameters,
        non_embedding=inner,
        active=inner + head + (spec.vocab * spec.width if spec.tied else 0),
        flops_per_token=experiment.flops_per_token,
        hardware_flops_per_token=roofline.executed_flops(load) / (load.batch * load.length),
    )


def with_shape(experiment: Experiment, shape: Shape) -> Experiment:
    """The same objective on a network of other sizes, in a fraction of the time of assembling it: no process depends on these sizes.

    For counts alone: config, optimizer and mesh stay those of the first.
    """
    spec = dataclasses.replace(experiment.network.spec, **dataclasses.asdict(shape))
    return dataclasses.replace(experiment, network=build_network(spec, experiment.network.execution))


def _sizes(spec: ModelSpec) -> tuple[int, int, int]:
    """Numbers in tables that are looked up, in the head, and in the rest of a network."""
    sizes = dict.fromkeys(("table", "head", "inner"), 0)
    for name, branch in build_network(spec).abstract().items():
        sizes[_KINDS.get(name, "inner")] += sum(leaf.size for leaf in jax.tree.leaves(branch))
    return sizes["table"], sizes["head"], sizes["inner"]
