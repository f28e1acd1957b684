"""A trained run in Python: text in, text and numbers out, by the functions that the commands of dlmjax call.

    run = open_run("runs/char27")
    run.sample("the ", length=64).texts             as `dlmjax sample`
    run.evaluate().result.bits_per_byte             as `dlmjax evaluate`
    run.score("the cat sat on the ", "mat")         as `dlmjax lm-eval`
    run.logits(tokens, t=0.5)                       what the network predicts

Everything that draws has a `seed`, 0 to 4294967295, by default 0, and equal seeds give equal results. Special ids, and ids that no text
of the tokenizer has, are suppressed everywhere.

Shapes: B rows, L positions, V vocabulary, D width of a vector state.
"""

import dataclasses
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from dlmjax import checks, choices
from dlmjax.cluster.host import make_ready
from dlmjax.cluster.start import make_room
from dlmjax.data import Tokenizer
from dlmjax.data.supervised import pads_of
from dlmjax.diffusion import Process, hint_of
from dlmjax.diffusion.process import bind_process, exclude, row_keys
from dlmjax.errors import InputError, names_arguments
from dlmjax.evaluate import Evaluation, EvaluationSettings, PairEvaluation, TextSettings, evaluate, evaluate_pairs, with_table
from dlmjax.evaluation.conditional import ConditionalScorer, Score
from dlmjax.evaluation.continuations import encode_pairs, question_number, score_pairs
from dlmjax.experiment import Experiment, kept, open_experiment
from dlmjax.files import brief
from dlmjax.module_file import ModuleFile
from dlmjax.parallel import Placement
from dlmjax.parallel.arrays import device_get
from dlmjax.parallel.placement import record_of
from dlmjax.sampling import Canvas, Samples, SampleSettings, build_canvas, sampler_for, suppressed_ids
from dlmjax.sampling.drafters import MaskedDrafter
from dlmjax.sampling.drafts import OfRun, make_draft
from dlmjax.sampling.placement import CanvasRows
from dlmjax.sampling.text import text_of
from dlmjax.seeds import check_seed
from dlmjax.training import Checkpoints

_CANVAS = ("suffix", "template", "edit", "start_t")


@dataclasses.dataclass(frozen=True)
class GeneratedTexts:
    """Generated text. texts: one a sample, with prompt and suffix.  samples: their token ids, network calls and settings."""

    texts: tuple[str, ...]
    samples: Samples

    def __str__(self) -> str:
        return "\n---\n".join(self.texts)


@dataclasses.dataclass(frozen=True, repr=False)
class Run:
    """A trained run, opened: its experiment and one set of weights.

    params: the weights, a tree of arrays.  step: of the checkpoint.  weights: "ema" or "raw".  workdir: the run's folder.
    Methods compile on first use; keep the run.
    """

    experiment: Experiment
    params: dict
    step: int
    weights: str
    workdir: pathlib.Path
    _compiled: dict = dataclasses.field(init=False, default_factory=dict, compare=False)

    def __repr__(self) -> str:
        parameters = f"{self.experiment.parameter_count:,} parameters"
        return f"Run({self.workdir}, step {self.step}, {self.weights} weights, {self.process.name}, {parameters})"

    @property
    def process(self) -> Process:
        """The noise process that the run was trained with."""
        return self.experiment.process

    @property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer of the run's corpus."""
        return self.experiment.tokenizer

    @property
    def suppressed_ids(self) -> tuple[int, ...]:
        """Ids that `sample` does not produce and to which `logits` gives no probability."""
        return suppressed_ids(self.tokenizer, self.process.vocab, pads_of(self.experiment.config.data.tail))

    @property
    def end_ids(self) -> tuple[int, ...]:
        """Ids that end a text: the end of document, and those of the tail that the run was trained with behind it."""
        first, pads = self.tokenizer.vocab_size, pads_of(self.experiment.config.data.tail)
        return () if self.tokenizer.eos_id is None else (int(self.tokenizer.eos_id), *range(first, first + pads))

    @property
    def placement(self) -> dict[str, Any]:
        """For a record: the mesh and the type that `open_run` was given; empty where it was given none."""
        return record_of(self.experiment, self.params)

    # --- text ---------------------------------------------------------------------------------------------------------------

    @names_arguments()
    def sample(
        self, prompt: str = "", *, length: int | None = None, count: int = 1, seed: int = 0, progress: bool = False, **options: Any
    ) -> GeneratedTexts:
        """Generates text, as `dlmjax sample` does with the same values.

        Args:
          prompt: text at the start, kept as it is.
          length: tokens of a text, prompt included; None: the training length, or that of the template or edit.
          count: number of texts.
          progress: show a progress bar.
          options: `suffix`, `template`, `edit`, `start_t` of `sampling.build_canvas`, `stride` and `stop` of `sampler`, and the fields
            of `sampling.SampleSettings`, as in `steps=128, temperature=0.8, rule="confidence"`.

        Raises InputError: an unknown option, texts that do not fit into the length, settings that the process does not support.
        """
        check_seed(seed)
        texts = {name: options.pop(name) for name in _CANVAS if name in options}
        sampler = self.sampler(**options)
        canvas = self.canvas(prompt, length=length, count=count, **texts)
        samples = sampler.sample(self.params, canvas, seed=seed, progress=progress)
        return GeneratedTexts(tuple(text_of(self.tokenizer, tokens_L) for tokens_L in samples.tokens_BL), samples)

    @names_arguments()
    def canvas(self, prompt: str = "", *, length: int | None = None, count: int = 1, **texts: Any) -> Canvas:
        """`count` equal rows to be filled; `texts`: `suffix`, `template`, `edit`, `start_t` of `sampling.build_canvas`."""
        if length is None and texts.get("template") is None and texts.get("edit") is None:
            length = self.experiment.config.data.length
        return build_canvas(self.tokenizer, length=length, batch=count, prompt=prompt, **texts)

    @names_arguments()
    def sampler(self, *, stride: int | None = None, stop: bool | str | None = None, **settings: Any) -> Any:
        """The sampler that suits the process, for `sampling.record` and `replay`; one object for equal arguments.

        stride: step, tokens, of a window of the training length over a longer canvas.
        stop: "end" or True ends a text at its end of document; a stop of `SampleSettings` such as
          "exit(bound=0.1)"; both: "end+exit(bound=0.1)".
        settings: as for `sample_settings`.
        """
        how, ends = self._sampler_choice(stop, settings)
        key = (how, stride, ends)
        if key not in self._compiled:
            self._compiled[key] = self._make_sampler(how, stride, ends)
        return self._compiled[key]

    @names_arguments()
    def drafter(self, settings: SampleSettings) -> MaskedDrafter | None:
        """The drafter that `settings.draft` names, a run that is opened; None = it names none.

        Raises InputError: no such run, a run of another tokenizer or without masks.
        """
        draft = None if settings.draft is None else make_draft(settings.draft)
        if not isinstance(draft, OfRun):
            return None
        other = open_run(draft.path)
        if other.tokenizer.hash != self.tokenizer.hash or other.process.vocab != self.process.vocab:
            raise InputError(
                f"draft run: {draft.path} has another tokenizer than {self.workdir}, and its drafts are other ids; give a run of the same"
            )
        suppressed = tuple(sorted({*settings.suppressed_ids, *other.suppressed_ids}))
        return MaskedDrafter(other.process, other.experiment.for_canvases.bind, other.params, suppressed, draft.steps)

    @names_arguments()
    def new_sampler(self, *, stride: int | None = None, stop: bool | str | None = None, **settings: Any) -> Any:
        """As `sampler`, but a new object, which the run does not keep: what it compiles is freed with it."""
        how, ends = self._sampler_choice(stop, settings)
        return self._make_sampler(how, stride, ends)

    @names_arguments()
    def forget(self) -> None:
        """Drops samplers and compiled programs; the next call of a method compiles anew."""
        self._compiled.clear()

    def _sampler_choice(self, stop: bool | str | None, settings: dict[str, Any]) -> tuple[SampleSettings, bool]:
        """The settings, and whether a text ends at its end of document."""
        words = ["end"] if stop is True else [word.strip() for word in stop.split("+")] if stop else []
        exits = [word for word in words if word != "end"]
        return self.sample_settings(**settings, **({"stop": "+".join(exits)} if exits else {})), "end" in words

    def _make_sampler(self, how: SampleSettings, stride: int | None, ends: bool) -> Any:
        options = {"window": self.experiment.config.data.length, "eos_id": self.tokenizer.eos_id if ends else None}
        options |= {"drafter": self.drafter(how)}
        return sampler_for(self.process, self.experiment.for_canvases, how, stride=stride, tokenizer=self.tokenizer, **options)

    @names_arguments()
    def sample_settings(self, **values: Any) -> SampleSettings:
        """The `SampleSettings` of these values, with the run's `suppressed_ids` beside those that are given.

        Raises InputError: an unknown name, a value of another type, settings that conflict.
        """
        _check_options("sample", values, (SampleSettings,), (*_CANVAS, "length", "count", "seed", "stride"))
        suppressed = {*self.suppressed_ids, *values.pop("suppressed_ids", ())}
        if isinstance(values.get("rule"), str):
            values["rule"] = self.rule_text(values["rule"])
        if values.get("eos") is not None or values.get("grow") is not None:
            values.setdefault("end_ids", self.end_ids)
        return SampleSettings(**values, suppressed_ids=tuple(sorted(suppressed)))

    @names_arguments()
    def rule_text(self, rule: str) -> str:
        """The text of a rule with the table of the run's corpus where it requires one, see `evaluate.with_table`."""
        return with_table(self, rule)

    # --- numbers ------------------------------------------------------------------------------------------------------------

    @names_arguments(input="files")
    def evaluate(
        self,
        data: str | os.PathLike | Sequence[str] | None = None,
        *,
        against: "Run | None" = None,
        by_document: bool = False,
        tables: bool = False,
        seed: int = 0,
        **settings: Any,
    ) -> Evaluation | PairEvaluation:
        """The likelihood bound of a text under this run, as `dlmjax evaluate` measures it; `.result` has nats/token and bits/byte ± s.e.

        Args:
          data: a list of texts, each a document; or the folder of a prepared corpus; None: the corpus that the run was trained on.
          against: another run, measured on the same text under the same noise.
          by_document: keep nats, tokens and bytes of each document.  tables: nats/token by time, position and frequency.
          settings: fields of `evaluate.TextSettings` (`split`, `window`, `windows`, ...; `suite` and `files` in place of `data`) and of
            `evaluate.EvaluationSettings` (`nodes`, `draws`, `rule`, `batch`, `likelihood`).

        Raises InputError: no such corpus, split or setting, a corpus with another tokenizer, no texts.
        """
        _check_options("evaluate", settings, (TextSettings, EvaluationSettings), ("data", "against", "by_document", "tables", "seed"))
        of_text = {field.name for field in dataclasses.fields(TextSettings)}
        if data is not None:
            path = isinstance(data, str | os.PathLike)
            if isinstance(data, str) and "://" not in data and not os.path.isdir(choices.split_suffix(data)[0]):
                raise InputError(f"data is {brief(data)!r}, which is not the folder of a corpus; to score a text, pass [text], a list")
            settings["data" if path else "texts"] = os.fspath(data) if path else tuple(data)
            if not path and not settings["texts"]:
                raise InputError("evaluate requires at least one text, and the list has none")
        text = TextSettings(**{name: value for name, value in settings.items() if name in of_text})
        noise = EvaluationSettings(**{name: value for name, value in settings.items() if name not in of_text}, seed=seed)
        if text.protocol is not None and text.protocol.task == "pairs":
            if against or by_document or tables:
                raise InputError(f"against, by_document and tables conflict with suite {text.suite}, which has pairs; leave them out")
            return evaluate_pairs(self, text, noise)
        return evaluate(self, text, noise, against=against, documents=by_document, tables=tables)

    @names_arguments()
    def score(self, prompt: str, answer: str | Sequence[str], *, seed: int = 0, draws: int = 128, overlap: int = 1) -> Score | list[Score]:
        """log p(answer | prompt) in nats with its standard error, as `dlmjax lm-eval` computes it: exact for causal processes, a lower
        bound for others.

        Args:
          answer: a text, or the choices of one question, which are scored under the same masks; then the scores are a list. Spaces at
            the end of the prompt are scored with it, as lm-eval does.
          draws: network passes of each answer; causal processes make one.
          overlap: tokens of context of each later window, where prompt and answer are longer than a training row.

        Raises InputError: no text, a process whose loss is not a likelihood bound, values out of range.
        """
        answers = [answer] if isinstance(answer, str) else list(answer)
        for name, text in [("prompt", prompt), *(("answer", text) for text in answers)]:
            checks.text(name, text)
        key = ("score", seed, draws)
        if key not in self._compiled:
            self._compiled[key] = self.experiment.scorer(seed=seed, draws=draws)
        scorer: ConditionalScorer = self._compiled[key]
        pairs = encode_pairs(self.tokenizer, [(prompt, text) for text in answers])
        groups = [question_number(None, None, prompt)] * len(pairs)
        scores = [found for found, _ in score_pairs(scorer, self.params, pairs, groups, overlap=overlap)]
        return scores[0] if isinstance(answer, str) else scores

    @names_arguments()
    def logits(self, tokens: Any, t: Any = None, *, seed: int = 0) -> Float[np.ndarray, "*B L V"]:
        """log p(x_i | z) of each token, up to a constant of its position, float32 [B, L, V]; -1e30 or less at suppressed ids.

            masked, uniform and other noise on tokens    `tokens` is the noisy row z at times `t`, with `run.tokenizer.mask_id` where it is
                           masked. Outputs at tokens that are not masked carry no loss in masked processes and mean nothing there.
            autoregressive `tokens` is the text, and i is predicted from the tokens before it; `t` can be left out.
            blocks         each block is noisy at times `t`, and reads the blocks before it as they stand in `tokens`, at time 0.
            Gaussian       `tokens` is the clean text, to which noise of time `t` is added by `seed`; or vectors z [B, L, D].

        Args:
          tokens: token ids [B, L] or [L], or a text, which is encoded; the answer is [L, V] for the last two.
          t: times in [0, 1], 0 = clean, 1 = noise: a number, or an array that broadcasts to [B, L]; None where the network reads no time.

        Raises InputError: ids outside the vocabulary, times out of range or missing, a process whose network predicts vectors.
        """
        check_seed(seed)
        process = self.process.bound
        if process.output.predicts == "vectors":
            raise InputError(f"process {process.name} predicts vectors and provides no logits; use sample, evaluate or score")
        state = np.asarray(self.tokenizer.encode(tokens) if isinstance(tokens, str) else tokens)
        vectors = bool(process.states.dim) and np.issubdtype(state.dtype, np.floating)
        single = state.ndim == 1 + vectors
        state = self._checked(state[None] if single else state, vectors)
        t_BL = self._times(t, state.shape[:2], process)
        if "logits" not in self._compiled:
            self._compiled["logits"] = jax.jit(self._logits, static_argnames="vectors")
        rows = CanvasRows(self.experiment.canvas_layout)
        last = np.minimum(np.arange(rows.batch(len(state))), len(state) - 1)  # copies of the last row pad the batch to the mesh
        arrays = rows.put((state[last], t_BL[last]), len(last), self.params)
        logits_BLV = device_get(self._compiled["logits"](self.params, *arrays, jax.random.key(seed), vectors=vectors))[: len(state)]
        return logits_BLV[0] if single else logits_BLV

    def _checked(self, state: np.ndarray, vectors: bool) -> np.ndarray:
        """Ids as int32 [B, L], or vectors as float32 [B, L, D]. Raises InputError."""
        if vectors:
            if state.ndim != 3 or state.shape[2] != self.process.states.dim or not state.size:
                raise InputError(f"tokens has the shape {state.shape}; vectors here have the shape [B, L, {self.process.states.dim}]")
            return state.astype(np.float32)
        if state.ndim != 2 or not state.size or not np.issubdtype(state.dtype, np.integer):
            raise InputError(
                f"tokens is an array {state.dtype} of shape {state.shape}; give whole numbers of shape [B, L] or [L], or a text"
            )
        if not 0 <= state.min() <= state.max() < self.process.vocab:
            raise InputError(
                f"tokens holds ids from {state.min()} to {state.max()}; the vocabulary of this run has {self.process.vocab} ids"
            )
        return state.astype(np.int32)

    def _times(self, t: Any, shape: tuple[int, ...], process: Process) -> np.ndarray:
        """float32 [B, L]. Raises InputError."""
        own = self.experiment.module is not None  # a network of one's own may read t, whatever its process requires
        reads_time = process.time_input or self.experiment.config.model.time_input != "none" or bool(process.states.dim) or own
        if t is None and reads_time and not process.attention.causal:
            raise InputError(f"the network of this run reads the time of process {process.name}; give t, a number in [0, 1]")
        try:
            times = np.asarray(0.0 if t is None else t, np.float32)
        except (TypeError, ValueError):
            raise InputError(f"t is {t!r:.60}; give a number in [0, 1], or an array of such numbers") from None
        try:
            t_BL = np.broadcast_to(times, shape)
        except ValueError:
            raise InputError(f"t has the shape {times.shape}, which does not broadcast to the shape {shape} of tokens") from None
        if not np.all((t_BL >= 0) & (t_BL <= 1)):
            raise InputError(f"t is from {t_BL.min()} to {t_BL.max()}; a time lies in [0, 1], 0 = clean text, 1 = noise")
        return t_BL

    def _logits(self, params: dict, state: jax.Array, t_BL: jax.Array, key: jax.Array, *, vectors: bool) -> jax.Array:
        process, ids = bind_process(self.process.bound, params), self.suppressed_ids
        rows, length = t_BL.shape
        segments_BL = jnp.ones(t_BL.shape, jnp.int32)
        positions_BL = jnp.broadcast_to(jnp.arange(length, dtype=jnp.int32), t_BL.shape)
        z = state
        if process.attention.block_size is not None:
            z = process.states.of_tokens(state)  # noisy blocks beside the text that later blocks read
        elif process.attention.causal or (process.states.dim and not vectors):
            z = process.corrupt(row_keys(key, jnp.arange(rows)), state, t_BL)
        network = self.experiment.any_length.for_canvases
        denoiser, time_BL = network.bind(params, segments_BL, positions_BL, process.attention), process.time_embedding_input(t_BL)
        hints = ()
        if network.self_condition:
            hints = (hint_of(process, denoiser, denoiser.hidden(z, time_BL), z, t_BL),)
        raw_BLV = denoiser.logits(denoiser.hidden(z, time_BL, *hints))
        logits_BLV = process.output.suppressed(raw_BLV, ids, z, t_BL)
        return exclude(process.output.log_posterior(logits_BLV, z, t_BL), ids).astype(jnp.float32)


def _check_options(method: str, values: Mapping[str, Any], kinds: tuple[type, ...], others: tuple[str, ...]) -> None:
    """Raises InputError: a name that is a field of none of these classes; the message has the nearest one of all options."""
    fields = [field.name for kind in kinds for field in dataclasses.fields(kind) if field.name != "texts"]
    for name in values:
        if name not in fields:
            raise InputError(f"{method} has no option {name}{choices.nearest(name, [*fields, *others])}")


@names_arguments()
def open_run(
    workdir: str | os.PathLike,
    *,
    weights: str = "ema",
    step: int | None = None,
    trust_code: bool = False,
    module: ModuleFile | None = None,
    loops: int | None = None,
    process: str | None = None,
    mesh: str | Mapping[str, int] | None = None,
    dtype: str | None = None,
) -> Run:
    """Opens the newest (or the given) checkpoint of a workdir on the devices at hand, whatever mesh it was trained on.

    Sets in this process, as `dlmjax sample` does, where nothing else has set it: jax's folder of compiled programs
    (`jax_compilation_cache_dir`, to `compiled/` of the workdir, where the next session finds them), and on a machine without a TPU the
    variables of the environment without which an installed libtpu warns that it finds none; without an accelerator, glibc keeps freed
    memory.

    Args:
      weights: "ema" (the average; falls back to "raw" with a note when the run kept none) or "raw".
      trust_code: whether the workdir's Python file of a network of one's own may be run.
      module: a file to run in its place, `dlmjax.module_file.ModuleFile`.
      loops: how often the looped layers of the network are run (`qwen3(loops=2)`); None = as in training.
      process: another process for the same weights, as in `process.name`: "autoregressive", "blocks(size=16)"; None = the run's last one.
      mesh: sizes of the axes over which all devices are split, "data=2,fsdp=4" or a dict: data and fsdp split the rows of
        canvases, fsdp and tensor the weights, which are read into their shards; None: weights and canvases whole on each device.
      dtype: "bfloat16": weights are rounded to it as they are read, and layers compute in it; norms and biases stay float32. None: as in
        training, with float32 weights.

    Raises:
      InputError: not a workdir, no whole checkpoint, other weights, a network of one's own that nobody has said to trust, `loops` for a
        network without looped layers, a process that the weights do not fit; a mesh that does not fit the devices or the weights.
    """
    if mesh is not None:
        make_room(alone=True)  # before a device is used
    placement = Placement.of(mesh, dtype)
    if weights not in ("ema", "raw"):
        raise InputError(f'weights is {weights!r:.60}; give "ema", the average, or "raw", those of the last step')
    root = pathlib.Path(workdir)
    make_ready(root)
    experiment = open_experiment(str(root), trust_code=trust_code, module=module, loops=loops, process=process, placement=placement)
    weights = kept(experiment, weights)
    name = {"ema": "ema", "raw": "params"}[weights]
    asked = {name: placement.converted(experiment, experiment.abstract_state()[name])}
    with Checkpoints(root / "checkpoints") as checkpoints:
        state, meta = checkpoints.restore(asked, step, converts=dtype is not None)
    return Run(experiment, state[name], meta["step"], weights, root)
