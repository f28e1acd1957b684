"""What a config and a workdir mean: the assembled parts of a run, for the trainer and for whoever opens a finished run.

workdir/
    config.json        every leaf of the config, flat
    tokenizer/         the tokenizer of the corpus, so that a run can be sampled without its corpus
    checkpoints/       see `training.checkpoint`
    metrics.jsonl      one line per event;  tensorboard/  the same as curves
"""

import dataclasses
import json
import pathlib
from typing import Any

import jax
from ml_collections import ConfigDict

from dlmjax import config as config_lib
from dlmjax.data import Corpus, Tokenizer, load_tokenizer
from dlmjax.data.tokenizers import save_tokenizer
from dlmjax.diffusion import Objective, Process, make_process, make_schedule, make_times
from dlmjax.errors import InputError
from dlmjax.models import Execution, ModelSpec, Network, build_network
from dlmjax.parallel import Partition, make_mesh
from dlmjax.sampling.host import write_atomically
from dlmjax.training import Checkpoints, OptimizerSpec, abstract_state, build_optimizer, learning_rate


@dataclasses.dataclass(frozen=True)
class Parts:
    """A config made real: everything but the weights and the data."""

    config: ConfigDict
    tokenizer: Tokenizer
    process: Process
    objective: Objective
    partition: Partition
    network: Network
    optimizer: Any
    learning_rate: Any

    def loss_fn(self, params: dict, batch: dict, key: jax.Array) -> tuple[jax.Array, dict]:
        """(sum of nats over the batch, parts): what `make_train_step` differentiates."""
        dropout_key = None
        if self.network.spec.dropout:
            # A stream of its own, keyed by the row: microbatches and meshes cannot change the draw.
            dropout_key = jax.vmap(jax.random.fold_in, (None, 0))(jax.random.fold_in(key, 1), batch["row"])
        denoiser = self.network.bind(params, batch["segments"], batch["positions"], self.process.attention, dropout_key)
        return self.objective(denoiser, batch, jax.random.fold_in(key, 0), self.config.data.batch)

    @property
    def param_shardings(self) -> dict:
        """Where each weight lies on the mesh."""
        return self.partition.tree(self.network.axes)

    @property
    def unpartitioned(self) -> Network:
        """The same network without placement requests: for canvases, whose few rows need not divide by the devices."""
        return build_network(self.network.spec, self.network.execution)

    def abstract_state(self) -> dict:
        """Shapes and placement of the training state."""
        return abstract_state(self.network.init, self.optimizer, self.param_shardings, ema=self.config.train.ema > 0)


def assemble(config: ConfigDict, tokenizer: Tokenizer, devices: list | None = None) -> Parts:
    """Builds process, network, mesh and optimizer of a checked config.

    Raises:
      InputError: the vocabulary does not hold the tokenizer's ids, a name is unknown, the mesh does not fit the devices or the batch.
    """
    vocab = config.model.vocab or tokenizer.vocab_size
    if vocab < tokenizer.vocab_size:
        raise InputError(
            f"model.vocab is {vocab}, but the corpus's tokenizer {tokenizer.name} has {tokenizer.vocab_size} ids; raise it or set 0"
        )
    process = make_process(
        config.process.name,
        vocab=vocab,
        mask_id=tokenizer.mask_id,
        bos_id=tokenizer.bos_id,
        eos_id=tokenizer.eos_id,
        excluded=(tokenizer.pad_id,),  # text never holds it
        schedule=make_schedule(config.process.schedule),
    )
    if process.time_input != (config.model.time_input != "none"):
        wanted = '"adaln"' if process.time_input else '"none"'
        raise InputError(f"process {process.name} wants model.time_input={wanted}, not {config.model.time_input!r}")
    mesh = make_mesh(**config.mesh, devices=devices)
    partition = Partition(mesh)
    network = build_network(ModelSpec(**{**config.model, "vocab": vocab}), Execution(**config.execution), partition)
    spec = OptimizerSpec(**config.optimizer)
    return Parts(
        config=config,
        tokenizer=tokenizer,
        process=process,
        objective=Objective(process=process, times=make_times(config.process.times)),
        partition=partition,
        network=network,
        optimizer=build_optimizer(
            spec, config.train.steps, network.kinds, network.lr_multipliers, network.wd_multipliers, network.eps_multipliers
        ),
        learning_rate=learning_rate(spec, config.train.steps),
    )


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


def claim_workdir(workdir: pathlib.Path, config: ConfigDict, tokenizer: Tokenizer) -> None:
    """Writes config and tokenizer into a new workdir; refuses a workdir that holds another run.

    Raises:
      InputError: the workdir's config differs in fields that decide what is computed; they are named, nothing is changed.
    """
    stored = workdir / "config.json"
    if stored.exists():
        try:
            old = json.loads(stored.read_text(encoding="utf-8"))
        except ValueError as error:
            raise InputError(f"{stored} is not readable JSON; restore it, or train into another --workdir (nothing was changed)") from error
        differing = config_lib.differences(old, config_lib.leaves(config))
        if differing:
            raise InputError(
                f"{workdir} holds another run; it differs in {'; '.join(differing)}. Choose another --workdir (nothing was changed)"
            )
        if load_tokenizer(f"saved:{workdir / 'tokenizer'}").hash != tokenizer.hash:
            raise InputError(f"{workdir} was trained with another tokenizer than the corpus has; choose another --workdir or corpus")
    workdir.mkdir(parents=True, exist_ok=True)
    if jax.process_index() == 0:
        save_tokenizer(tokenizer, workdir / "tokenizer")
        write_atomically(stored, config_lib.to_json(config))


@dataclasses.dataclass(frozen=True)
class Run:
    """A trained run, opened: its parts and one set of weights."""

    parts: Parts
    params: dict
    step: int
    weights: str


def open_run(workdir: str, *, weights: str = "ema", step: int | None = None) -> Run:
    """Opens the newest (or the given) checkpoint of a workdir on the devices at hand, whatever mesh it was trained on.

    Args:
      weights: "ema" (the average; falls back to "raw" with a note when the run kept none) or "raw".

    Raises:
      InputError: not a workdir, no whole checkpoint.
    """
    root = pathlib.Path(workdir)
    stored = root / "config.json"
    if not stored.is_file():
        raise InputError(f"{workdir} is not the workdir of a run (it has no config.json); give the --workdir of `dlmjax train`")
    config = config_lib.from_json(stored.read_text(encoding="utf-8"))
    with config.unlocked():
        config.mesh.update(data=-1, fsdp=1, sequence=1, tensor=1)
        config.execution.attention = "dense" if jax.default_backend() == "cpu" else config.execution.attention
    if config.train.ema == 0:
        weights = "raw"
    tokenizer = load_tokenizer(f"saved:{root / 'tokenizer'}")
    parts = assemble(config, tokenizer)
    name = {"ema": "ema", "raw": "params"}[weights]
    asked = {name: parts.abstract_state()[name]}
    with Checkpoints(root / "checkpoints") as checkpoints:
        state, meta = checkpoints.restore(asked, step)
    return Run(parts, state[name], meta["step"], weights)
