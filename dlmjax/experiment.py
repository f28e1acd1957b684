"""From a config, or a workdir, to an assembled experiment: for the trainer, and for commands that open a finished run.

`workdir` reads the files of a workdir and checks that the run wrote them.
"""

import dataclasses
import functools
import itertools
import logging
import pathlib
from typing import Any, Protocol, runtime_checkable

import jax
import numpy as np
from ml_collections import ConfigDict

from dlmjax import checks, choices, module_file
from dlmjax import config as config_lib
from dlmjax.data import Corpus, Tokenizer, counts
from dlmjax.data.roles import with_scored
from dlmjax.data.supervised import SupervisedRows
from dlmjax.diffusion import Objective, Process, make_masks, make_process, make_times, make_weighting
from dlmjax.diffusion.declarations import Phases
from dlmjax.diffusion.phases import PhaseText, earlier_phases, phase_texts
from dlmjax.diffusion.process import init_params, loss_share
from dlmjax.diffusion.registry import check_process, process_fields, schedule_of
from dlmjax.errors import InputError, NoCorpus, NoSplit
from dlmjax.evaluation import Evaluator
from dlmjax.evaluation.conditional import ConditionalScorer
from dlmjax.evaluation.paths import PathEvaluator, path_evaluator
from dlmjax.fields import MOST_LOOPS
from dlmjax.models import Execution, ModelSpec, TrainableNetwork, build_network, model_spec
from dlmjax.models.attention import SPLASH_LANES, runs_on
from dlmjax.models.families import own_module
from dlmjax.models.layout import SINGLE, Layout
from dlmjax.models.masks import Annealed
from dlmjax.module_file import ModuleFile
from dlmjax.parallel import UNPLACED, Partition, Placement, make_mesh
from dlmjax.training import Hyperparameters, OptimizerSpec, abstract_state, build_optimizer, hyperparameters_of
from dlmjax.workdir import claim_workdir as claim_workdir
from dlmjax.workdir import embedding_of as embedding_of
from dlmjax.workdir import newest_meta, stored_bytes, stored_config, stored_embedding, stored_inputs, stored_table, stored_tokenizer

logger = logging.getLogger("dlmjax")


@dataclasses.dataclass(frozen=True)
class EarlierPhase:
    """What is trained before the process of a config, on the same weights: until the step `end`, the share `share` of the steps."""

    objective: Objective
    end: int
    share: float


@dataclasses.dataclass(frozen=True)
class Experiment:
    """The objects that a config describes: everything but the weights and the data.

    earlier: the phases of `process.before`. Evaluations and samples use `process`, that of the last phase, at all steps.
    phase_start: the step at which the phase began, where this is that of one (`at_step`): average and learning rate start anew there.
    rows: what training makes of the rows that it reads; None where it takes them as they are.
    """

    config: ConfigDict
    tokenizer: Tokenizer
    process: Process
    objective: Objective
    partition: Partition
    network: TrainableNetwork
    optimizer: Any
    hyperparameters: Hyperparameters
    module: ModuleFile | None = None  # the file of a network of one's own
    earlier: tuple[EarlierPhase, ...] = ()
    phase_start: int = 0
    chosen_process: str = ""  # the text of a process that is not the one trained last
    trained: "Experiment | None" = None  # that of the training, where a process was chosen
    rows: SupervisedRows | None = None
    trained_loops: int | None = None  # where the network runs its looped layers another number of times than in training
    canvas_layout: Layout = SINGLE  # a `CanvasPartition` where rows of canvases are split over the mesh

    def loss_fn(self, params: dict, batch: dict, key: jax.Array, progress: jax.Array | None = None) -> tuple[jax.Array, dict]:
        """(sum of nats over the batch, loss terms), for `make_train_step`; progress: see `Objective`."""
        dropout_key = None
        if self.network.dropout:
            # A stream of its own, keyed by the row: microbatches and meshes cannot change the draw.
            dropout_key = jax.vmap(jax.random.fold_in, (None, 0))(jax.random.fold_in(key, 1), batch["row"])
        attention = self.process.attention
        if self.config.process.anneal and not attention.sequential and progress is not None:
            done = (progress - self.phase_start / self.config.train.steps) / self.config.process.anneal
            attention = Annealed.draw(jax.random.fold_in(key, 2), batch["tokens"].shape[1], done)
        denoiser = self.network.bind(params, batch["segments"], batch["positions"], attention, dropout_key)
        return self.objective.bind(params)(denoiser, with_scored(batch), jax.random.fold_in(key, 0), self.config.data.batch, progress)

    def evaluator(self, **grid: Any) -> Evaluator:
        """Evaluates the bound of this process and network; `grid`: nodes, draws, seed, see `Evaluator`."""
        hints = self.network.self_condition
        return Evaluator(self.process.bound, self.network.bind, put_batch=self.partition.put_batch, self_condition=hints, **grid)

    def path_evaluator(self, likelihood: str, seed: int = 0) -> PathEvaluator:
        """Evaluates another likelihood of this process and network than the bound, see `evaluation.forms`."""
        hints, put_batch = self.network.self_condition, self.partition.put_batch
        return path_evaluator(
            self.process.bound, self.network.bind, likelihood=likelihood, seed=seed, put_batch=put_batch, self_condition=hints
        )

    def scorer(self, *, rows: int = 8, **how: Any) -> ConditionalScorer:
        """Scores continuations under this process and network. rows: of the training length in a batch; how: draws, nodes, seed."""
        network, length, partition = self.any_length.network, self.config.data.length, self.partition
        layout = {"put_batch": partition.put_batch, "ways": partition.ways("batch"), "self_condition": network.self_condition}
        return ConditionalScorer(self.process, network.bind, longest=length, tokens=rows * length, **layout, **how)

    @property
    def flops_per_token(self) -> float:
        """FLOPs of one training token: the network's passes and streams that the process requires, and the process's own networks.

        The mean over the steps, where there are earlier phases.
        """
        if self.earlier:
            shares = [0.0, *(phase.share for phase in self.earlier), 1.0]
            phases = [*(self._during(phase.objective) for phase in self.earlier), dataclasses.replace(self, earlier=())]
            pairs = zip(itertools.pairwise(shares), phases, strict=True)
            return sum((end - start) * phase.flops_per_token for (start, end), phase in pairs)
        process, objective = self.process, self.objective
        forward_only = (objective.self_condition > 0) + (objective.progressive is not None)
        passes = 1 + forward_only / 3 + (objective.boundary and process.boundary.reconstruction)
        passes *= process.capabilities.denoisings
        # An anchor network's own loss has logits at the same positions once more, where they are anchors: at most. Joint training has all.
        length, share = self.config.data.length, loss_share(process) * (1 + (objective.weighting.anchor_gamma > 0))
        share += objective.weighting.text_weight > 0
        how = {"streams": process.attention.streams, "passes": passes, "tokens_per_time": objective.times.tokens_per_time(length)}
        return self.network.training_flops_per_token(length, share, **how) + process.capabilities.own_flops

    def with_loops(self, loops: int) -> "Experiment":
        """The experiment whose looped layers are run another number of times than in training (LoopMDM 2605.26106).

        Raises InputError: a network of one's own, one without looped layers, one under CompleteP, which scales each layer by their number.
        """
        checks.whole("open_run", 1, MOST_LOOPS, loops=loops)
        spec, family = self.network.spec, f"model.family={self.config.model.family}"
        if not spec.looped and spec.loops == 1:
            raise InputError(f"--loops {loops} requires a network that was trained with looped layers, and {family} runs each layer once")
        if spec.completep_depth:
            raise InputError(f"--loops {loops} conflicts with CompleteP, which scales every layer by their number; leave it out")
        network = dataclasses.replace(self.network, spec=dataclasses.replace(spec, loops=loops))
        return dataclasses.replace(self, network=network, trained_loops=spec.loops)

    @property
    def loops(self) -> dict[str, int]:
        """For a record: how often the looped layers are run and were run in training; empty where the two agree."""
        loops = None if self.trained_loops is None else self.network.spec.loops
        return {} if loops == self.trained_loops else {"run": loops, "trained": self.trained_loops}

    def at_step(self, step: int) -> "Experiment":
        """The experiment as one training step uses it; it differs from this one where the process follows a curriculum."""
        start = max((phase.end for phase in self.earlier if phase.end <= step), default=0)
        found = self._of_phase(step)
        if not start:
            return found
        rates = found.hyperparameters.again(start, self.config.optimizer.rewarm, self.config.train.steps)
        return dataclasses.replace(found, phase_start=start, hyperparameters=rates)

    def _of_phase(self, step: int) -> "Experiment":
        """`at_step` without what depends on where the phase began."""
        earlier = next((phase for phase in self.earlier if step < phase.end), None)
        if earlier is not None:
            return self._during(earlier.objective)
        process = self.process.phases.at_step(step)
        if process == self.process:
            return dataclasses.replace(self, earlier=()) if self.earlier else self
        objective = dataclasses.replace(self.objective, process=process, times=process.time_domain.adapt(self.objective.times))
        return dataclasses.replace(self, process=process, objective=objective, earlier=())

    def _during(self, objective: Objective) -> "Experiment":
        """The experiment of an earlier phase. A causal or seeded process shifts its rows itself, so a network that predicts each token
        from the position before it (`shift`) is then the same network in place."""
        network = self.network.unshifted if objective.process.attention.shifted else self.network
        return dataclasses.replace(self, process=objective.process, objective=objective, network=network, earlier=())

    @property
    def phases(self) -> Phases:
        """The processes that training uses one after another: those of `earlier`, then the process with its curriculum. Each is compiled
        when its first step is reached."""
        before, own = [phase.objective.process for phase in self.earlier], self.process.phases
        if not before:
            return own
        ends = (*(phase.end for phase in self.earlier), *own.ends)
        return Phases(lambda i: before[i] if i < len(before) else own.process(i - len(before)), ends)

    def init(self, key: jax.Array) -> dict:
        """Initial values of all that is trained: the network's weights and, under "process", the process parameters."""
        return _beside(self.network.init(key), init_params(self.process, jax.random.fold_in(key, 1)))

    @property
    def parameter_count(self) -> int:
        """Numbers that are trained."""
        return sum(leaf.size for leaf in jax.tree.leaves(self.abstract_params()))

    @property
    def param_shardings(self) -> dict:
        """The sharding of each weight; process parameters are small and replicated."""
        learned = jax.eval_shape(lambda: init_params(self.process, jax.random.key(0)))
        return self.partition.tree(_beside(self.network.axes, jax.tree.map(lambda leaf: (None,) * leaf.ndim, learned)))

    @property
    def unpartitioned(self) -> TrainableNetwork:
        """The same network without sharding constraints: for canvases, whose few rows need not be divisible by the devices."""
        return dataclasses.replace(self.network, layout=SINGLE)

    @property
    def for_canvases(self) -> TrainableNetwork:
        """The network that samples: where `open_run` was given a mesh, on that mesh; elsewhere `unpartitioned`."""
        return dataclasses.replace(self.network, layout=self.canvas_layout)

    @property
    def any_length(self) -> "Experiment":
        """The same experiment with dense attention, which takes rows of any length; the fused kernels require multiples of 128."""
        execution = dataclasses.replace(self.network.execution, attention="dense")
        return dataclasses.replace(self, network=dataclasses.replace(self.network, execution=execution))

    def abstract_params(self) -> dict:
        """Shapes of the tree that `init` returns."""
        return _beside(self.network.abstract(), jax.eval_shape(lambda: init_params(self.process, jax.random.key(0))))

    def abstract_state(self) -> dict:
        """Shapes and shardings of the training state."""
        shapes = self.abstract_params()

        def zeros(key: jax.Array) -> dict:
            """Stands in for `init`, which takes a tenth of a second to trace."""
            del key
            return jax.tree.map(lambda leaf: jax.numpy.zeros(leaf.shape, leaf.dtype), shapes)

        return abstract_state(zeros, self.optimizer, self.param_shardings, ema=self.config.train.ema > 0)

    def abstract_arguments(self) -> tuple[dict, dict, jax.ShapeDtypeStruct]:
        """(state, batch, key) of a training step as shapes with their shardings; nothing is allocated."""
        batch, length = self.config.data.batch, self.config.data.length

        def ints(*axes: str, dtype: Any = np.int32) -> jax.ShapeDtypeStruct:
            return jax.ShapeDtypeStruct((batch, length)[: len(axes)], dtype, sharding=self.partition.sharding(axes))

        rows = {name: ints("batch", "length") for name in ("tokens", "segments", "positions")} | {"row": ints("batch")}
        rows |= {"roles": ints("batch", "length", dtype=np.uint8)} if self.rows is not None and self.rows.gives_roles else {}
        key = jax.eval_shape(lambda: jax.random.key(0))
        return self.abstract_state(), rows, jax.ShapeDtypeStruct(key.shape, key.dtype, sharding=self.partition.sharding(()))


def _beside(network: dict, process: dict) -> dict:
    """The tree of the network's weights, with the process parameters under "process" where there are some."""
    return {**network, "process": process} if process else network


def assemble(
    config: ConfigDict,
    tokenizer: Tokenizer,
    devices: list | None = None,
    counts_V: Any = None,
    embedding_VE: Any = None,
    module: ModuleFile | None = None,
) -> Experiment:
    """Builds process, network, mesh and optimizer of a checked config.

    Args:
      counts_V: the corpus's token counts, for processes that require them.
      embedding_VE: the table of embeddings, where the process's values name a file of one (`embedding_of`).
      module: the file of a network of one's own, where it was read already; None = the one that `model.family` names, if it names one.

    Raises:
      InputError: the vocabulary does not hold the tokenizer's ids, a name is unknown, the mesh does not fit the devices or the batch,
        the attention kernel cannot train rows of this length, a curriculum leaves no steps for its last phase.
    """
    experiment = _assembled(config, tokenizer, devices, counts_V, embedding_VE, module or module_file.read(config))
    _check_rows(config, experiment.phases)
    config_lib.check_curriculum(config, experiment.process)
    return experiment


def _assembled(
    config: ConfigDict, tokenizer: Tokenizer, devices: list | None, counts_V: Any, embedding_VE: Any, module: ModuleFile | None
) -> Experiment:
    """`assemble` without the checks of a run that is to be trained: a finished run is opened as it is."""
    vocab = config.model.vocab or tokenizer.vocab_size
    if vocab < tokenizer.vocab_size:
        raise InputError(
            f"model.vocab is {vocab}, but the corpus's tokenizer {tokenizer.name} has {tokenizer.vocab_size} ids; raise it or set 0"
        )
    made = functools.partial(_process, config, tokenizer, vocab, counts_V, embedding_VE)
    process = made(config.process.name, config.process.schedule)
    texts = phase_texts(config.process.before)
    before = [made(one.process, one.settings.get("schedule", schedule_of(one.process, config.process.schedule))) for one in texts]
    partition = Partition(make_mesh(**config.mesh, devices=devices))
    if module is None:
        network = _network(config, before, process, vocab, partition)
    else:
        network = module.network(config, vocab, partition)
        for phase in (*before, process):
            network.require_process(phase, config.process.self_condition)
        network.require_mesh(partition)
    _check_shared(before, process)
    if config.process.anneal and (process.attention.sequential or module or not all(one.attention.sequential for one in before)):
        raise InputError(
            f"process.anneal={config.process.anneal:g} requires a network of a family, and full attention of the last process and of no "
            "phase before it; set it to 0"
        )
    optimizer, objective = OptimizerSpec(**config.optimizer), functools.partial(_objective, config)
    ends = earlier_phases(config.process.before, config.train.steps) if before else ()
    return Experiment(
        config=config,
        tokenizer=tokenizer,
        process=process,
        objective=objective(process),
        partition=partition,
        network=network,
        optimizer=_optimizer(optimizer, network, process),
        hyperparameters=hyperparameters_of(optimizer, config.train.steps),
        module=module,
        earlier=tuple(
            EarlierPhase(objective(phase, earlier=text), end, text.share(config.train.steps))
            for phase, (text, end) in zip(before, ends, strict=True)
        ),
    )


def _objective(config: ConfigDict, process: Process, earlier: PhaseText | None = None) -> Objective:
    """The objective of a process. earlier: the phase of `process.before`, which has times, weighting and masks of its own, else those of
    the config, the last two where its process supports these and has times, and else those of its process."""
    own = earlier.settings if earlier else {}
    setting = {name: own.get(name, config.process[name]) for name in ("times", "weighting", "masks")}
    times, of_times = choices.parse(setting["times"])
    weighting = None
    if setting["weighting"]:
        name, values = choices.parse(setting["weighting"])
        weighting = make_weighting(name, **values)
        if weighting.anchor_gamma and (not config.model.anchor_depth or own_module(config.model.family)):
            raise InputError(f"process.weighting={name} requires an anchor network: set model.anchor_depth to 1 or more layers, or gamma=0")
        if weighting.text_weight and config.model.anchor_depth:
            raise InputError(f"process.weighting={name} requires one network; set model.anchor_depth to 0")
    unsupported = weighting and (process.attention.causal or weighting.supported_as not in process.capabilities.weightings)
    if earlier and unsupported and "weighting" not in own:
        weighting = None
    masks, of_masks = choices.parse(setting["masks"])
    progressive = make_masks(masks, **of_masks)
    if earlier and progressive and not progressive.suits(process) and "masks" not in own:
        progressive = None
    return Objective(
        process=process,
        times=process.time_domain.adapt(make_times(times, **of_times)),
        weighting=weighting,
        self_condition=config.process.self_condition,
        prompt=config.process.prompt,
        progressive=progressive,
        normaliser=config.process.normaliser,
        tail_weight=config.process.tail_weight,
    )


def _check_shared(before: list[Process], process: Process, flag: str = "process.before") -> None:
    """Raises InputError: a process, of a phase of `process.before` or of `--process`, that cannot share weights with that of the last
    phase: their networks read or predict something else, or they learn other parameters. flag: what names it."""
    for phase in before:
        facts = {
            "reads": ("vectors" if phase.states.dim else "tokens", "vectors" if process.states.dim else "tokens"),
            "predicts": (phase.output.predicts, process.output.predicts),
            "has outputs": (phase.output.columns, process.output.columns),
            "reads vectors of size": (phase.states.dim, process.states.dim),
            "learns": tuple(str(jax.eval_shape(init_params, one, jax.random.key(0))) for one in (phase, process)),
        }
        for what, (here, there) in facts.items():
            if here != there:
                raise InputError(
                    f"{flag}{' ' if flag.startswith('-') else '='}{phase.name} conflicts with process.name={process.name}: its network "
                    f"{what} {here}, not {there}; leave one of them out"
                )


def _network(config: ConfigDict, before: list[Process], process: Process, vocab: int, partition: Partition) -> TrainableNetwork:
    """The network of a family. Raises InputError: the process, or one of the phases before it, requires what it does not have."""
    for leaf, phase in (*(("before", phase) for phase in before), ("name", process)):
        if phase.time_input and config.model.time_input == "none":
            raise InputError(f'process.{leaf}={phase.name} requires model.time_input="adaln", "add" or "prefix", not "none"')
    classes = process.output.columns if process.states.dim else vocab
    hints = {"self_condition": config.process.self_condition > 0, "hint": config.process.hint}
    spec = model_spec(config.model, vocab=classes, input_dim=process.states.dim, **hints)
    _check_family(config, spec, process)
    if spec.shift and any(phase.attention.sequential and not phase.attention.shifted for phase in before):
        raise InputError(
            f"model.family={config.model.family} predicts each token from the position before it, which conflicts with the blocks of "
            f"process.before={','.join(config.process.before)}; drop shift, or the blocks"
        )
    return build_network(spec, Execution(**config.execution), partition)


def _process(config: ConfigDict, tokenizer: Tokenizer, vocab: int, counts_V, embedding_VE, text: str, schedule: str) -> Process:
    """The process of a text like "hybrid(p_uniform=0.2)" and its schedule, with the ids of the tokenizer and, where it takes them, the
    token counts of the corpus."""
    name, values = choices.parse(text)
    if embedding_VE is not None and text == config.process.name:
        values["embedding"] = embedding_VE
    schedule, of_schedule = choices.parse(schedule)
    if "counts_V" in process_fields(name):
        if counts_V is None:
            raise InputError(f"process {name} requires the token counts of a corpus; none are given")
        values["counts_V"] = np.pad(counts_V, (0, vocab - len(counts_V)))
    return make_process(
        name,
        vocab=vocab,
        mask_id=tokenizer.mask_id,
        pad_id=tokenizer.pad_id,
        bos_id=tokenizer.bos_id,
        eos_id=tokenizer.eos_id,
        excluded=(tokenizer.pad_id,),  # text never holds it
        schedule={"name": schedule, **of_schedule},
        **values,
    )


def _check_family(config: ConfigDict, spec: ModelSpec, process: Process) -> None:
    """Raises InputError: windows longer than a table of learned positions, or a process that conflicts with the family's shift."""
    family = f"model.family={config.model.family}"
    if spec.context and config.data.length > spec.context:
        raise InputError(f"data.length={config.data.length}, but {family} has positions for {spec.context} tokens")
    if spec.shift and process.attention.sequential:
        raise InputError(
            f"{family} predicts each token from the position before it, which conflicts with process.name={config.process.name}; drop shift"
        )


def _check_rows(config: ConfigDict, phases: Phases) -> None:
    """Raises InputError: a row length for which the attention kernel has no backward pass, or that is not divisible by a block size."""
    processes = phases.processes
    for size in {phase.attention.block_size for phase in processes} - {None}:
        if config.data.length % size:
            raise InputError(
                f"data.length={config.data.length} is not a multiple of the {size} tokens of a block (process.name="
                f"{config.process.name}); change one of them"
            )
    attention, step = config.execution.attention, {"dense": 1, "cudnn": 2, "splash": SPLASH_LANES}[config.execution.attention]
    for positions in [config.data.length * phase.attention.streams for phase in processes]:
        if positions % step == 0:
            continue
        raise InputError(
            f"execution.attention={attention} requires a row length divisible by {step}, not {positions}; change data.length, "
            "or pass --config.execution.attention=dense"
        )


def _optimizer(spec: OptimizerSpec, network: TrainableNetwork, process: Process) -> Any:
    """One optimizer for the network and the process parameters, which may have another learning rate; CompleteP applies to the network
    alone."""
    learned = process.parameters
    plain = jax.tree.map(lambda _: 1.0, learned)
    trees = (
        (network.kinds, jax.tree.map(lambda parameter: parameter.kind, learned)),
        (network.lr_multipliers, jax.tree.map(lambda parameter: parameter.lr_multiplier, learned)),
        (network.wd_multipliers, plain),
        (network.eps_multipliers, plain),
    )
    return build_optimizer(spec, *(_beside(*pair) for pair in trees))


def open_corpora(config: ConfigDict, split: str) -> list[Corpus]:
    """The corpora of `data.paths`, all with one tokenizer.

    Raises:
      InputError: no path given, a path is not a prepared corpus, two corpora with different tokenizers.
    """
    if not config.data.paths:
        raise InputError("the config names no corpus; prepare one (dlmjax prepare --help) and pass --config.data.paths=DIR")
    corpora = [Corpus.open(path, split=split) for path in config.data.paths]
    for path, corpus in zip(config.data.paths, corpora, strict=True):
        if corpus.tokenizer.hash != corpora[0].tokenizer.hash:
            raise InputError(f"{path} and {config.data.paths[0]} were prepared with different tokenizers; prepare them with the same one")
    return corpora


def token_counts(config: ConfigDict, corpora: list[Corpus]) -> np.ndarray | None:
    """Occurrences of each token in the training text, where the process requires them; else None."""
    names = (config.process.name, *(phase.process for phase in phase_texts(config.process.before)))
    required = any("counts_V" in process_fields(choices.parse(name)[0]) for name in names)
    return sum(corpus.counts_V for corpus in corpora) if required else None


@runtime_checkable
class OpenedRun(Protocol):
    """What measures and tools read of a run (`dlmjax.run.Run`): its experiment and one set of weights."""

    experiment: Experiment
    params: dict
    step: int
    weights: str
    workdir: pathlib.Path


def open_experiment(
    workdir: str,
    *,
    trust_code: bool = False,
    module: ModuleFile | None = None,
    loops: int | None = None,
    process: str | None = None,
    placement: Placement = UNPLACED,
) -> Experiment:
    """The experiment of a run on the devices at hand, whatever mesh and attention kernel it was trained with; no weights.

      trust_code: whether the workdir's Python file of a network of one's own may be run.  module: a file to run in its place.
      loops: how often looped layers are run; None = as in training.
      process: another one for the same weights; None = that of the run's last phase.  placement: mesh and type of the weights.

    Raises InputError: not a workdir; a file that is damaged or of another run than the checkpoints; a network of one's own without
      `trust_code` or `module`; loops, a process or a placement that the weights do not fit.
    """
    root = pathlib.Path(workdir)
    meta = newest_meta(root)
    config, inputs = stored_config(root, meta), stored_inputs(root, meta)
    with config.unlocked():
        config.mesh.update(placement.sizes(jax.device_count()))
        config.execution.dtype = placement.dtype or config.execution.dtype
        if not runs_on(config.execution.attention, config.execution.dtype, jax.default_backend()):
            config.execution.attention = "dense"
    if (named := own_module(config.model.family)) and module is None:
        if not trust_code:
            raise InputError(
                f"{root} has a network of its own, whose Python code ({root / module_file.FILE}) would be run; read that file, and pass "
                "--trust-code where you trust it"
            )
        if module_file.FILE not in inputs.get("files", {}):
            raise InputError(
                f"{root} does not record the sha256 of {module_file.FILE}, so whose code that is nothing tells; restore its files"
            )
        module = ModuleFile(root / module_file.FILE, named[1], stored_bytes(root, module_file.FILE, inputs))
    tokenizer, embedding_VE = stored_tokenizer(root, inputs), stored_embedding(config, root, inputs)
    counts_V = stored_table(root, counts.FILE, inputs)
    found = _assembled(config, tokenizer, None, counts_V, embedding_VE, module if named else None)
    if process is not None:
        found = _with_process(found, process, counts_V)
    return placement.placed(found if loops is None else found.with_loops(loops))


def _with_process(experiment: Experiment, text: str, counts_V: Any) -> Experiment:
    """The experiment with another process on the same weights, for evaluation, sampling and export; it trains nothing, so that weighting,
    masks and phases are the process's own.

    Raises InputError: no such process; one that reads, predicts or learns something else, or requires a time that the network has not.
    """
    config = experiment.config
    try:
        schedule = schedule_of(text, config.process.schedule)
        check_process(text, schedule)
        process = _process(config, experiment.tokenizer, experiment.process.vocab, counts_V, None, text, schedule)
    except InputError as error:
        raise InputError(f"--process {text}: {error}") from None
    _check_shared([process], experiment.process, "--process")
    network = experiment.network
    if experiment.module is not None:
        network.require_process(process, config.process.self_condition)
    elif process.time_input and network.spec.time_input == "none":
        raise InputError(f"--process {text} requires a network conditioned on the time, and this run has model.time_input=none")
    elif network.spec.shift and process.attention.sequential and not process.attention.shifted:
        raise InputError(f"--process {text} conflicts with model.family={config.model.family}, which predicts from the position before")
    return dataclasses.replace(experiment._during(Objective(process)), chosen_process=text, trained=experiment)


def kept(experiment: Experiment, weights: str) -> str:
    """The requested weights, "ema" or "raw"; "raw" where the run kept no average."""
    return weights if experiment.config.train.ema else "raw"


def split_of(run: OpenedRun, data: str | None, split: str) -> Corpus:
    """A split of the corpus in `data`, by default of the one that a run was trained on; of a mixture the first, with a warning.

    Raises:
      InputError: no corpus there, or one that was prepared with another tokenizer than the run's.
    """
    paths = run.experiment.config.data.paths
    path = data or next(iter(paths), None)
    if path is None:
        raise NoCorpus("the run names no corpus; pass --data DIR, a directory written by dlmjax prepare")
    if not data and len(paths) > 1:
        logger.warning("the run mixes %d corpora; this is %s alone (--data names another)", len(paths), path)
    corpus = Corpus.open(path, split=split)
    if corpus.tokenizer.hash != run.experiment.tokenizer.hash:
        raise InputError(
            f"{path} was prepared with tokenizer {corpus.tokenizer.name}, the run was trained with {run.experiment.tokenizer.name}; "
            "prepare the text again with the run's tokenizer"
        )
    return corpus


def held_out_of(run: OpenedRun, data: str | None, split: str) -> tuple[Corpus | None, str]:
    """The corpus to compare with, or why there is none; one that `data` names must be there.

    Raises InputError: it is damaged, unfinished or prepared with a different tokenizer, also where it is the run's own.
    """
    try:
        return split_of(run, data, split), ""
    except (NoCorpus, NoSplit) as error:
        if data:
            raise
        return None, f"no held-out text: {error}"
