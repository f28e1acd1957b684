"""Memory, collectives and time of a training step on hardware that is not attached.

For a TPU the step of `dlmjax train` itself is compiled for the named slice, with abstract arguments; memory and collectives are then the
compiler's own. For GPUs, and for the rows of a search that are not compiled, everything is the analytic model of `plan.roofline`.
Times are a roofline in both cases: nothing is run. docs/plan.md explains the result.
"""

import contextlib
import dataclasses
import itertools
import re
import time
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np

from dlmjax.data import Corpus
from dlmjax.data.tokenizers import TableTokenizer
from dlmjax.diffusion.process import loss_share
from dlmjax.errors import InputError
from dlmjax.experiment import Experiment, assemble
from dlmjax.models.attention import tiles_of
from dlmjax.models.families import run_once
from dlmjax.models.flops import training_flops_per_token
from dlmjax.models.masks import as_mask, within
from dlmjax.parallel import RULES, make_mesh
from dlmjax.parallel.sharding import on_paper
from dlmjax.plan import roofline
from dlmjax.plan.audit import Finding, audit, step_shapes
from dlmjax.plan.collectives import Collective, read_collectives
from dlmjax.plan.topology import Topology, fill_mesh
from dlmjax.train import train_step_of

# Rows of a search that are tried: the most microbatches, as a factor on the config's.
MOST_MICROBATCHES = 16
# The compiler's effort from -1 to 1; 0 is its default, which training uses.
QUICK = {"exec_time_optimization_effort": -1.0}
# Amounts of memory in the compiler's messages.
_UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


class Vocabulary(TableTokenizer):
    """The tokenizer of a plan: a number of ids, the last three of them special, without text."""

    def __init__(self, size: int):
        super().__init__("plan", [b""] * size, mask_id=size - 1, pad_id=size - 2, eos_id=size - 3)


@dataclasses.dataclass(frozen=True)
class Memory:
    """Bytes on one chip. `peak` = the rest added up; `capacity` of the chip. `compiled`: peak is the compiler's figure.

    Activations are the analytic count of what the remat policy keeps; temporaries are what is left of the peak: gradients, gathered
    weights, logits, buffers of collectives.
    """

    parameters: float
    average: float
    optimizer: float
    activations: float
    temporaries: float
    capacity: float
    compiled: bool

    @property
    def state(self) -> float:
        """Bytes of the state that a checkpoint holds."""
        return self.parameters + self.average + self.optimizer

    @property
    def peak(self) -> float:
        return self.state + self.activations + self.temporaries


@dataclasses.dataclass(frozen=True)
class HardwarePlan:
    """One layout on one topology. `problem`: the compiler's line when it does not fit; `seconds`: what compiling took, 0 = analytic;
    `faults`: those of the compiled program, None without one."""

    topology: Topology
    load: roofline.Load
    mesh: dict[str, int]
    memory: Memory
    work: roofline.Work
    collectives: tuple[Collective, ...]
    times: roofline.Times
    coords: Any
    seconds: float = 0.0
    problem: str = ""
    layer_flops: float | None = None
    faults: tuple[Finding, ...] | None = None

    @property
    def fits(self) -> bool:
        """Whether the program fits by the compiler; without one, whether the analytic sum is within the chip's memory."""
        return not self.problem and (self.memory.compiled or self.memory.peak <= self.memory.capacity)

    def mfu(self, worst: bool = False) -> float:
        """Expected model-FLOP utilisation at the roofline, or with nothing overlapped."""
        return roofline.mfu(self.work, self.times.serial if worst else self.times.overlapped, self.topology)


def vocabulary_of(config, data: str | None) -> tuple[Any, Any]:
    """The tokenizer's facts and the token counts: of a prepared corpus, or from `model.vocab` alone. Raises InputError: neither."""
    if data is not None:
        corpus = Corpus.open(data, split="train")
        return corpus.tokenizer, corpus.counts_V
    if config.model.vocab < 5:
        raise InputError(
            f"model.vocab={config.model.vocab} leaves the vocabulary to a corpus; pass --data DIR with a prepared one, or set it"
        )
    return Vocabulary(config.model.vocab), None


def make_plan(
    config, topology: Topology, vocabulary: Any, counts: Any = None, *, analytic: bool = False, quick: bool = False
) -> HardwarePlan:
    """The plan of one config: compiled where the topology has a compiler, unless `analytic`.

    Raises:
      InputError: the mesh does not divide the chips, the batch or the model.
    """
    mesh = fill_mesh(dict(config.mesh), topology)
    config = _with(config, mesh=mesh)
    expected = Estimator(alone(config, vocabulary, counts), topology)(mesh, config.execution.remat, config.train.accumulation)
    if analytic or not topology.devices:
        return dataclasses.replace(expected, layer_flops=counted_layer_flops(config, vocabulary, counts))
    return _compiled(config, expected, vocabulary, counts, quick)


def _with(config, **sections: dict) -> Any:
    """A copy of a config with some leaves of some sections replaced."""
    copy = config.copy_and_resolve_references()
    with copy.unlocked():
        for section, values in sections.items():
            copy[section].update(values)
    return copy


# --- The analytic model -------------------------------------------------------------------------------------------------------------


def alone(config, vocabulary: Any, counts: Any = None, embedding_VE: Any = None) -> Experiment:
    """The experiment of a config, for counting. Shapes do not depend on the devices: one device of this machine stands in."""
    one = _with(config, mesh=dict.fromkeys(config.mesh, 1))
    return assemble(one, vocabulary, devices=jax.local_devices(backend="cpu")[:1], counts_V=counts, embedding_VE=embedding_VE)


class Estimator:
    """Plans without a compiler of one config's experiment (`alone`), for any mesh, remat policy, number of microbatches and batch."""

    def __init__(self, experiment: Experiment, topology: Topology):
        self._experiment, self._topology = experiment, topology
        _suits(experiment.network.execution.attention, topology)
        self._load, self._flops_per_token = load_of(experiment), experiment.flops_per_token
        network = experiment.network
        axes = jax.tree.leaves(network.axes, is_leaf=lambda leaf: isinstance(leaf, tuple))
        leaves = jax.tree.leaves(network.abstract())
        self._shapes = [(leaf.shape, tuple(names)) for leaf, names in zip(leaves, axes, strict=True)]
        self._layouts: dict[tuple, tuple] = {}

    def __call__(self, mesh: dict[str, int], remat: str, accumulation: int, batch: int | None = None) -> HardwarePlan:
        """The plan of one layout; `batch` in windows, by default the config's. Raises InputError where the mesh does not divide them."""
        topology, execution = self._topology, dataclasses.replace(self._load.execution, remat=remat)
        load = dataclasses.replace(self._load, execution=execution, accumulation=accumulation, batch=batch or self._load.batch)
        spec, batch = load.spec, load.batch // accumulation
        on_paper(mesh).check(batch, load.length, spec.width, spec.heads, spec.kv_heads, spec.ffn)
        key = tuple(mesh.items())
        if key not in self._layouts:
            self._layouts[key] = self._layout(mesh)
        coords, sizes = self._layouts[key]
        memory = Memory(
            *sizes,
            activations=roofline.activation_bytes(load, mesh),
            temporaries=sizes[0] + roofline.gathered_bytes(load, mesh, self._shapes),
            capacity=topology.chip.memory,
            compiled=False,
        )
        tokens = load.batch * load.length
        work = roofline.Work(self._flops_per_token * tokens, roofline.executed_flops(load), tokens)
        found = roofline.expected_collectives(load, mesh, self._shapes)
        traffic = roofline.memory_traffic(load, mesh, memory.state)
        times = roofline.step_times(work.executed_flops / topology.chips, traffic, found, topology, coords)
        return HardwarePlan(topology, load, mesh, memory, work, tuple(found), times, coords)

    def _layout(self, mesh: dict[str, int]) -> tuple[Any, tuple[float, float, float]]:
        """Where the chips of the mesh are, and each chip's bytes of parameters, averages and optimizer state."""
        devices = list(make_mesh(**mesh, devices=list(self._topology.devices)).devices.flat) if self._topology.devices else []
        state = dataclasses.replace(self._experiment, partition=on_paper(mesh)).abstract_state()
        return self._topology.coords(devices), tuple(_per_chip(state[name]) for name in ("params", "ema", "opt"))


def _suits(attention: str, topology: Topology) -> None:
    """Raises InputError for an attention kernel of the other kind of chip, as the trainer does."""
    foreign = {"tpu": "cudnn", "gpu": "splash"}[topology.chip.kind]
    if attention == foreign:
        other = {"tpu": "splash", "gpu": "cudnn"}[topology.chip.kind]
        raise InputError(f"attention={foreign} does not run on {topology.chip.name}; pass --config.execution.attention={other} (or dense)")


def load_of(experiment: Experiment) -> roofline.Load:
    """The step in numbers."""
    config, spec, process = experiment.config, experiment.network.spec, experiment.process
    length, streams = config.data.length, process.attention.streams
    head_share, execution = loss_share(process), experiment.network.execution
    mask, tokens = within(as_mask(process.attention, length), spec.window, spec.peers), length * streams
    # As `models.attention.make_attention` and `models.denoiser.Denoiser` do.
    dense = experiment.network.layout.flat and execution.attention == "dense"
    tiles = tiles_of(mask, tokens) if dense else None
    shared = experiment.objective.times.tokens_per_time(length)
    counted = training_flops_per_token(spec, length, head_share, streams=streams, tokens_per_time=shared)
    return roofline.Load(
        spec=spec,
        execution=execution,
        length=length,
        batch=config.data.batch,
        accumulation=config.train.accumulation,
        parameters=experiment.parameter_count,
        head_share=head_share,
        passes=experiment.flops_per_token / counted,
        streams=streams,
        visible=roofline.visible_share(mask, tokens),
        tiled=(roofline.tiled_share(tiles, tokens, tokens), roofline.tiled_share(tiles, length, tokens)),
        noisy_last=dense and streams == 2 and not execution.scan and not spec.dropout,
        tokens_per_time=shared if experiment.network.layout.flat or shared == length else 1,  # as `models.time_signal`
    )


def _per_chip(tree: Any) -> float:
    """Bytes of one chip's shards."""
    leaves = jax.tree.leaves(tree)
    return float(sum(np.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize for leaf in leaves))


def counted_layer_flops(config, vocabulary: Any, counts: Any = None) -> float:
    """FLOPs of one layer for one row, forward and backward with its recomputation, by XLA's own count of the program for one device.

    The difference between networks of two layers and of one, unrolled, with dense attention: a count of the scanned program would see
    one layer whatever the depth, and fused kernels as nothing.
    """
    found = []
    for depth in (1, 2):
        small = _with(
            config,
            mesh=dict.fromkeys(config.mesh, 1),
            model={"depth": depth, "family": run_once(config.model.family)},
            execution={"scan": False, "attention": "dense"},
            data={"batch": 1},
            train={"accumulation": 1},
        )
        experiment = assemble(small, vocabulary, devices=jax.local_devices(backend="cpu")[:1], counts_V=counts)
        state, batch, key = experiment.abstract_arguments()
        lowered = jax.jit(jax.grad(lambda *arguments, loss=experiment.loss_fn: loss(*arguments)[0])).lower(state["params"], batch, key)
        found.append(lowered.cost_analysis()["flops"])
    return found[1] - found[0]


# --- The compiled program -----------------------------------------------------------------------------------------------------------


def compile_step(experiment: Experiment, quick: bool = False) -> Any:
    """The training step, compiled for the devices of its mesh, which need not be attached.

    `quick`: with the least effort for the speed of the program: a fifth of the time; its memory differs by some per cent.
    """
    platform = experiment.partition.mesh.devices.flat[0].platform
    with _without_cache():
        return (
            train_step_of(experiment)
            .trace(*experiment.abstract_arguments())
            .lower(lowering_platforms=(platform,))
            .compile(QUICK if quick else None)
        )


@contextlib.contextmanager
def _without_cache() -> Iterator[None]:
    """The persistent cache cannot hold programs for devices that are not attached; it is switched off meanwhile."""
    before = jax.config.jax_enable_compilation_cache
    jax.config.update("jax_enable_compilation_cache", False)
    try:
        yield
    finally:
        jax.config.update("jax_enable_compilation_cache", before)


def _compiled(config, expected: HardwarePlan, vocabulary: Any, counts: Any, quick: bool) -> HardwarePlan:
    """The expected plan with the compiler's figures in place of the estimates."""
    experiment = assemble(config, vocabulary, devices=list(expected.topology.devices), counts_V=counts)
    start = time.perf_counter()
    try:
        compiled = compile_step(experiment, quick)
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error) and "Ran out of memory" not in str(error):
            raise
        return _too_large(expected, str(error), time.perf_counter() - start)
    seconds = time.perf_counter() - start
    mesh, memory = experiment.partition.mesh, expected.memory
    rest = max(compiled.memory_analysis().peak_memory_in_bytes - memory.state, 0.0)
    activations = min(memory.activations, rest)
    text = compiled.as_text()
    found = read_collectives(text, dict(mesh.shape))
    topology, coords = expected.topology, expected.topology.coords(list(mesh.devices.flat))
    traffic = roofline.memory_traffic(expected.load, expected.mesh, memory.state)
    return dataclasses.replace(
        expected,
        memory=dataclasses.replace(memory, activations=activations, temporaries=rest - activations, compiled=True),
        collectives=tuple(found),
        times=roofline.step_times(expected.work.executed_flops / topology.chips, traffic, found, topology, coords),
        coords=coords,
        seconds=seconds,
        faults=tuple(audit(text, step_shapes(experiment), dict(mesh.shape))),
    )


def _too_large(expected: HardwarePlan, message: str, seconds: float) -> HardwarePlan:
    """The analytic plan with the compiler's line; the peak is scaled up to the compiler's where it names one."""
    line = next(line for line in message.splitlines() if "memory" in line.lower())
    amounts = [float(number) * _UNITS[unit] for number, unit in re.findall(r"(\d+(?:\.\d+)?)([KMGT]?)(?= of |\)| hbm|\.?$)", line)]
    needed = max(amounts, default=0.0)
    memory = expected.memory
    temporaries = max(needed - memory.state - memory.activations, memory.temporaries)
    return dataclasses.replace(
        expected,
        memory=dataclasses.replace(memory, temporaries=temporaries),
        problem=line.removeprefix("RESOURCE_EXHAUSTED: "),
        seconds=seconds,
    )


# --- The search ---------------------------------------------------------------------------------------------------------------------


def search_plans(
    config, topology: Topology, vocabulary: Any, counts: Any = None, *, compiles: int = 3, quick: bool = False
) -> list[HardwarePlan]:
    """Plans of the layouts that divide the machine, best first: those that fit before those that do not, then by roofline step time.

    All are estimated by the analytic model; on a TPU the first `compiles` of them are compiled and ranked anew.

    Raises:
      InputError: no layout divides the batch and the model.
    """
    candidates, refused = [], None
    estimate = Estimator(alone(config, vocabulary, counts), topology)
    for changes in _choices(config, topology):
        try:
            expected = estimate(changes["mesh"], changes["execution"]["remat"], changes["train"]["accumulation"])
            candidates.append((changes, expected))
        except InputError as error:
            refused = error
    if not candidates:
        raise refused or InputError(f"no mesh divides the {topology.chips} chips of {topology.name}")
    candidates.sort(key=lambda candidate: _rank(candidate[1]))
    plans = [expected for _, expected in candidates]
    for number, (changes, expected) in enumerate(candidates[: compiles if topology.devices else 0]):
        plans[number] = _compiled(_with(config, **changes), expected, vocabulary, counts, quick)
    return sorted(plans, key=_rank)


def _rank(plan: HardwarePlan) -> tuple:
    """Compiled plans that fit, then estimates that fit, then the rest; within each, by the mean of overlapped and serial time."""
    return not plan.fits, not plan.memory.compiled, plan.times.overlapped + plan.times.serial


def _choices(config, topology: Topology) -> Iterator[dict[str, dict]]:
    """Changes to a config: how weights and heads are split, what is recomputed, how many microbatches."""
    weights, heads = RULES["embed"][0], RULES["heads"][0]
    base = dict(config.mesh)
    for split in _divisors(topology.chips):
        for ways in (1, 2, 4, 8):
            if topology.chips % (split * ways):
                continue
            mesh = base | {name: 1 for name in base} | {weights: split, heads: ways}
            mesh[next(iter(base))] = topology.chips // (split * ways)
            for remat, factor in itertools.product(("none", "dots", "full"), (1, 2, 4, 8, MOST_MICROBATCHES)):
                accumulation = config.train.accumulation * factor
                if config.data.batch % accumulation == 0:
                    yield {"mesh": mesh, "execution": {"remat": remat}, "train": {"accumulation": accumulation}}


def _divisors(number: int) -> list[int]:
    return [n for n in range(1, number + 1) if number % n == 0]
