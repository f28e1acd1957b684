"""A dlmjax run as a model of lm-eval-harness (0.4.9 and later): loglikelihood, loglikelihood_rolling, generate_until.

docs/lm_eval.md defines each answer.  Log-likelihoods are those of `evaluation.conditional`: exact for causal processes and blocks of one
token, a lower bound for others.  A context is clean; an empty context has no tokens, also no BOS, as in training.  is_greedy tells whether
deterministic decoding writes the continuation; see `ConditionalScorer.greedy`.
"""

import dataclasses
import logging
import os
from collections.abc import Callable
from typing import Any

import lm_eval.models  # noqa: F401  (lm-eval registers its own models only while it knows none, so they go before ours)
from lm_eval.api.model import LM
from lm_eval.api.registry import register_model

from dlmjax.errors import InputError
from dlmjax.evaluation.conditional import ConditionalScorer
from dlmjax.evaluation.continuations import encode_pairs, question_number, score_pairs
from dlmjax.harness.generate import Decoding, Generator
from dlmjax.quadrature import NODES
from dlmjax.run import Run, open_run
from dlmjax.sampling import make_rule


def _rule(value: Any) -> str:
    """A rule of a task, which is a file from elsewhere: no module is imported for it. Raises ValueError: not a rule."""
    try:
        make_rule(value if isinstance(value, str) else "")
    except InputError as error:
        raise ValueError(value) from error
    return value


LOG = logging.getLogger(__name__)
# Generation arguments of a task -> field of `Decoding` and its type.  Of several names for one field the last one counts.
_FIELDS = {
    **dict.fromkeys(("max_completion_tokens", "max_tokens", "max_new_tokens", "max_gen_toks"), ("length", int)),
    "temperature": ("temperature", float),
    "top_p": ("top_p", float),
    "block": ("block", int),
    "tokens_per_step": ("tokens_per_step", int),
    "rule": ("rule", _rule),
}
GENERATION_ARGUMENTS = ("until", "do_sample", *_FIELDS)  # the others are left out with a warning


@dataclasses.dataclass(frozen=True)
class Model:
    """A run as the adapter uses it.

    network: the network on one device, with `bind` and `spec`; bind: that of the network on the devices of `params`.
    length: tokens of the longest row.  name: name of the run in results.
    """

    process: Any
    network: Any
    bind: Callable[..., Any]
    params: Any
    tokenizer: Any
    length: int
    name: str
    put_batch: Callable[[dict], dict] | None = None
    ways: int = 1

    @classmethod
    def of_run(cls, run: Run, name: str) -> "Model":
        """An opened run."""
        experiment = run.experiment.any_length
        layout = {"put_batch": experiment.partition.put_batch, "ways": experiment.partition.ways("batch")}
        network, length = experiment.network, experiment.config.data.length
        return cls(experiment.process, experiment.for_canvases, network.bind, run.params, experiment.tokenizer, length, name, **layout)


class Adapter(LM):
    """A `Model` with the interface that lm-eval requires.

    draws, nodes: draws and nodes of the likelihoods, see `ConditionalScorer`.  batch: rows of the training length in a batch, and prompts.
    overlap: context of each later window of a text that is longer than a row, tokens.  block, tokens_per_step, max_gen_toks: defaults of
      generated text for tasks that do not set them; see `Decoding`.  seed: seed of masks and of generated text.

    records: one dict for each scored request, with its standard error, in the order of scoring.
    """

    def __init__(
        self,
        model: Model,
        *,
        draws: int = 128,
        nodes: int = NODES,
        batch: int = 8,
        overlap: int = 1,
        block: int = 32,
        tokens_per_step: int = 1,
        rule: str | None = None,
        eos: str | None = None,
        draft: str | None = None,
        stop: str | None = None,
        cache: str | None = None,
        max_gen_toks: int = 256,
        seed: int = 0,
    ):
        super().__init__()
        # lm-eval computes its bootstrap in forks of this process, and a fork of a process in which jax runs may hang.
        os.environ.setdefault("DISABLE_MULTIPROC", "1")
        self.model, self.overlap, self.records = model, overlap, []
        how = {"rule": rule, "eos": eos, "draft": draft, "stop": stop, "cache": cache}
        self.decoding = Decoding(length=max_gen_toks, block=block, tokens_per_step=tokens_per_step, **how)
        self.scorer = ConditionalScorer(
            model.process,
            model.bind,
            longest=model.length,
            draws=draws,
            nodes=nodes,
            seed=seed,
            tokens=batch * model.length,
            put_batch=model.put_batch,
            ways=model.ways,
            self_condition=model.network.self_condition,
        )
        self.generator = Generator(model.process, model.network, model.tokenizer, longest=model.length, batch=batch, seed=seed)
        self.generator.check(self.decoding)

    # --- lm-eval's interface ------------------------------------------------------------------------------------------------

    def loglikelihood(self, requests: list, disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """(log-likelihood of the continuation in nats, is_greedy) of each (context, continuation)."""
        pairs = encode_pairs(self.model.tokenizer, [request.args for request in requests])
        scored = self._score(requests, pairs, not disable_tqdm, greedy=True)
        for request, record in zip(requests, scored, strict=True):
            self.cache_hook.add_partial("loglikelihood", request.args, (record["log_likelihood"], record["is_greedy"]))
        return [(record["log_likelihood"], record["is_greedy"]) for record in scored]

    def loglikelihood_rolling(self, requests: list, disable_tqdm: bool = False) -> list[float]:
        """Log-likelihood in nats of each whole text, in windows where it is longer than a row; no end of document is added."""
        texts = self.model.tokenizer.encode_many([request.args[0] for request in requests])
        scored = self._score(requests, [(tokens[:0], tokens) for tokens in texts], not disable_tqdm, greedy=False)
        for request, record in zip(requests, scored, strict=True):
            self.cache_hook.add_partial("loglikelihood_rolling", request.args, record["log_likelihood"])
        return [record["log_likelihood"] for record in scored]

    def generate_until(self, requests: list, disable_tqdm: bool = False) -> list[str]:
        """The text after each prompt, up to the end of document or the first stop string of the task, which is left out."""
        del disable_tqdm
        prompts = self.model.tokenizer.encode_many([request.args[0] for request in requests])
        decodings = [self._decoding(request.args[1]) for request in requests]
        texts: list[str] = [""] * len(requests)
        for decoding in dict.fromkeys(decodings):
            chosen = [i for i, own in enumerate(decodings) if own == decoding]
            for i, text in zip(chosen, self.generator(self.model.params, [prompts[i] for i in chosen], decoding), strict=True):
                texts[i] = text
        for request, text in zip(requests, texts, strict=True):
            self.cache_hook.add_partial("generate_until", request.args, text)
        return texts

    @property
    def tokenizer_name(self) -> str:
        """Name of the tokenizer in lm-eval's caches of requests."""
        return f"{self.model.tokenizer.name}-{self.model.tokenizer.hash[:16]}"

    def get_model_info(self) -> dict[str, Any]:
        """The protocol and the cost of scoring, which lm-eval adds to the config in its results."""
        scorer, spent = self.scorer, self.scorer.spent
        return {
            "dlmjax": {
                "run": self.model.name,
                "process": self.model.process.name,
                "likelihood": scorer.form,
                "draws": scorer.draws,
                "nodes": scorer.nodes if scorer.form == "integrated" else None,
                "seed": scorer.seed,
                "row_tokens": self.model.length,
                "overlap": self.overlap,
                "passes": spent.passes,
                "tokens": spent.tokens,
                "padding": spent.padding,
                "shapes": len(spent.shapes),
                "scoring_seconds": spent.seconds,
            }
        }

    # --- scoring ----------------------------------------------------------------------------------------------------------------

    def _score(self, requests: list, pairs: list, progress: bool, greedy: bool) -> list[dict]:
        """A record for each request: the sums over its pieces, of which a request that is longer than a row has several."""
        groups = [question_number(request.task_name, request.doc_id, request.args[0]) for request in requests]
        scores = score_pairs(self.scorer, self.model.params, pairs, groups, overlap=self.overlap, greedy=greedy, progress=progress)
        records = [
            {
                "task": request.task_name,
                "doc_id": request.doc_id,
                "index": request.idx,
                "kind": request.request_type,
                "log_likelihood": score.log_likelihood,
                "stderr": score.stderr,
                "tokens": score.tokens,
                "passes": score.passes,
                "is_greedy": is_greedy,
            }
            for request, (score, is_greedy) in zip(requests, scores, strict=True)
        ]
        self.records += records
        return records

    def _decoding(self, options: dict) -> Decoding:
        """The decoding that a task requests by its generation arguments; null counts as absent.

        Raises InputError: a value of another type, or out of range.
        """
        until = options.get("until") or ()
        until = (until,) if isinstance(until, str) else until
        if not isinstance(until, list | tuple) or not all(isinstance(text, str) for text in until):
            raise InputError(f"generation_kwargs: until is {until!r:.60}, not a text or a list of texts; correct the task")
        changes: dict[str, Any] = {"until": tuple(until)}
        for name, (field, kind) in _FIELDS.items():
            if options.get(name) is not None:
                try:
                    changes[field] = kind(options[name])
                except (TypeError, ValueError, OverflowError):
                    what = "a rule of dlmjax sample --rule" if name == "rule" else "a number"
                    raise InputError(f"generation_kwargs: {name} is {options[name]!r:.60}, not {what}; correct the task") from None
        if options.get("do_sample") is False:
            changes["temperature"] = 0.0
        elif options.get("do_sample"):
            changes.setdefault("temperature", 1.0)
        ignored = sorted(options.keys() - set(GENERATION_ARGUMENTS))
        if ignored:
            LOG.warning("generation arguments that are not supported are left out: %s", ", ".join(ignored))
        return dataclasses.replace(self.decoding, **changes)


@register_model("dlmjax")
class DlmJax(Adapter):
    """The model `dlmjax` of lm-eval: `--model_args workdir=DIR,draws=128,...`; see `Adapter` for the other values.

    weights: "ema" or "raw".  step: step of the checkpoint; default: the newest.  batch_size: lm-eval's own flag, for `batch`.
    trust_code: whether the Python file of a network of one's own may be run.  process, mesh, dtype: see `open_run`.
    device, max_batch_size: lm-eval passes them in any case ("cuda:0"); they have no effect, jax chooses the devices.

    Raises InputError: an unknown value; what `open_run` refuses.
    """

    def __init__(
        self,
        workdir: str,
        weights: str = "ema",
        step: int | None = None,
        batch_size: int | str | None = None,
        max_batch_size: int | None = None,
        device: str | None = None,
        trust_code: bool = False,
        **options: Any,
    ):
        del max_batch_size, device
        opened = {name: options.pop(name, None) for name in ("process", "mesh", "dtype")}
        known = (
            "draws",
            "nodes",
            "batch",
            "overlap",
            "block",
            "tokens_per_step",
            "rule",
            "eos",
            "draft",
            "stop",
            "cache",
            "max_gen_toks",
            "seed",
        )
        if unknown := sorted(options.keys() - set(known)):
            raise InputError(
                f"model_args has no value {', '.join(unknown)}; choose from workdir, weights, step, trust_code, process, mesh, dtype, "
                f"{', '.join(known)}"
            )
        if batch_size is not None and str(batch_size).isdigit():
            options.setdefault("batch", int(batch_size))
        run = open_run(str(workdir), weights=weights, step=step, trust_code=trust_code is True, **opened)
        if options.get("rule") is not None:
            options["rule"] = run.rule_text(options["rule"])
        placed = "".join(f", {name} {value}" for name, value in run.placement.items())
        super().__init__(Model.of_run(run, f"{workdir}, step {run.step}, {run.weights} weights{placed}"), **options)
