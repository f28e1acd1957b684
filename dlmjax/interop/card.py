"""The run card, README.md of an export: model, data, training, likelihood, how to load it, and its limits."""

import dataclasses
import math
import pathlib
import re
from collections.abc import Callable
from typing import Any

from dlmjax import __version__
from dlmjax import config as config_lib
from dlmjax.data.manifest import Manifest
from dlmjax.data.token_budget import parse_path
from dlmjax.errors import InputError
from dlmjax.experiment import Experiment
from dlmjax.files import read_json
from dlmjax.interop.views import Exported, View, VocabularyRows
from dlmjax.report.phases import HEAD, trained_phases
from dlmjax.training import read

SHIPPED = pathlib.Path(__file__).parent / "shipped" / "load_dlm.py"
# Keys that `evaluate` and the trainer share.
NUMBERS = ("nats_per_token", "stderr_nats_per_token", "bits_per_byte", "stderr_bits_per_byte")
CIRCUMSTANCES = ("step", "weights", "split", "is_bound", "tokens")
# The protocol of the measurement; files of older versions lack these keys.
PROTOCOL = ("suite", "corpus", "window", "stride", "complete", "changed")
GRID = ("rule", "nodes", "draws")


@dataclasses.dataclass(frozen=True)
class Facts:
    """The content of a card. `evaluation`: see `evaluation_of`; `no_tokenizer`: why no tokenizer files were written, or ""; `imported`:
    source, layout and family of weights that `dlmjax import` read and that no run has trained since, else None."""

    experiment: Experiment
    view: View
    model: Exported
    rows: VocabularyRows
    dtype: str
    step: int
    weights: str
    evaluation: dict[str, Any] | None
    no_tokenizer: str
    imported: dict[str, str] | None = None


def evaluation_of(workdir: str, file: str | None) -> dict[str, Any] | None:
    """The likelihood: a file of `dlmjax evaluate --json`, evaluation.json of the workdir, or the last held-out line.

    Raises InputError: the named file is not an evaluation.
    """
    root = pathlib.Path(workdir)
    found = pathlib.Path(file) if file else root / "evaluation.json"
    if file or found.is_file():
        try:
            result = read_json(found)
            protocol = result.get("protocol", {})
            how = {name: protocol.get(name) for name in PROTOCOL} | {name: result.get(name) for name in GRID}
            return {"source": "dlmjax evaluate", **{name: result[name] for name in (*NUMBERS, *CIRCUMSTANCES)}, **how}
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            if file:
                raise InputError(
                    f"{found} is not the result of an evaluation ({error}); write one: dlmjax evaluate --workdir {workdir} --json FILE"
                ) from None
    lines = read(root / "metrics.jsonl", "held_out") if (root / "metrics.jsonl").is_file() else []
    if not lines:
        return None
    line = {name: lines[-1].get(name) for name in (*NUMBERS, "step")}
    return {
        "source": "during training, on a part of the split",
        "weights": None,
        "split": "valid",
        "is_bound": None,
        "tokens": None,
        **dict.fromkeys((*PROTOCOL, *GRID)),
        **line,
    }


def write(facts: Facts, files: list[str]) -> str:
    """The card as Markdown. `files`: names of the other files of the export."""
    loading = LOADING[facts.view.name](facts)
    sections = [_head(facts), _model(facts), _data(facts), _training(facts), _score(facts), loading, _tokens(facts), _files(files)]
    return "\n\n".join(section for section in sections if section) + "\n"


def _head(facts: Facts) -> str:
    tags = ["diffusion", "masked-language-model", "dlmjax", facts.model.process.name]
    front = ["---", "library_name: transformers", "pipeline_tag: text-generation", "tags:", *(f"- {tag}" for tag in tags), "---"]
    kind = {"full": "diffusion language model", "block-causal": "block-diffusion language model", "causal": "autoregressive language model"}
    origin = f"trained with dlmjax {__version__}, step {facts.step:,}, {facts.weights} weights"
    if facts.imported:
        origin = "imported from `{source}` (layout {layout}, model.family={family}) ".format(**facts.imported) + f"by dlmjax {__version__}"
    text = f"A {kind[facts.model.attention]} {origin}, {facts.dtype}."
    return "\n".join([*front, "", "# Run card", "", text, f"View `{facts.view.name}`, for {facts.view.readers}."])


def _model(facts: Facts) -> str:
    spec = facts.model.spec
    rows = [
        ("parameters", f"{facts.experiment.network.parameter_count:,} as trained"),
        ("layers x width", f"{spec.depth} x {spec.width}, MLP {spec.ffn}"),
        (
            "heads",
            f"{spec.heads} of {spec.head_dim}, {spec.kv_heads} for keys and values, {'with' if spec.qk_norm else 'without'} q/k-norm",
        ),
        ("window", f"{facts.model.length} tokens" + (f"; a token attends to those less than {spec.window} away" if spec.window else "")),
        ("vocabulary", f"{facts.model.tokenizer.vocab_size:,} ids of tokenizer {facts.model.tokenizer.name}, {facts.rows.count:,} rows"),
    ]
    folded = []
    if spec.completep_depth:
        folded = [f"CompleteP's factors (1/{spec.depth_ratio:g} on branches, 1/{spec.width_ratio:g} on logits) are in the weights."]
    if spec.tied:
        folded.append("The model was trained with a tied head; it is written out here, because some of its rows differ (below).")
    return _table("Model", rows) + ("\n\n" + " ".join(folded) if folded else "")


def _data(facts: Facts) -> str:
    if facts.imported:
        return ""
    lines = []
    for path in facts.experiment.config.data.paths:
        directory, tokens = parse_path(path)
        name = pathlib.Path(directory).name
        try:
            manifest = Manifest.load(pathlib.Path(directory))
        except InputError:
            lines.append(f"- `{name}` (not available at the time of the export)")
            continue
        counts = manifest.counts("train")
        inputs = ", ".join(pathlib.Path(source["name"]).name for source in manifest.request["inputs"][:5])
        more = len(manifest.request["inputs"]) - 5
        inputs += f" and {more} more" if more > 0 else ""
        budget = "" if tokens is None else f"the first {tokens:,} of "
        lines.append(f"- `{name}`: {budget}{counts['tokens']:,} tokens in {counts['documents']:,} documents of {inputs}")
    return "## Data\n\n" + ("\n".join(lines) or "The config names no corpus.")


def _training(facts: Facts) -> str:
    if facts.imported:
        return ""
    config, experiment = facts.experiment.config, facts.experiment
    tokens = facts.step * config.data.batch * config.data.length
    parts = trained_phases(experiment, facts.step)
    phases = [*config.process.before, config.process.name]
    trained = "`, then `".join(phases) + (f"`, exported as `{experiment.chosen_process}" if experiment.chosen_process else "")
    rows = [
        ("process", f"`{trained}`, schedule `{config.process.schedule}`, attention {facts.model.attention}"),
        ("steps", f"{facts.step:,} of {config.data.batch:,} x {config.data.length:,} tokens: {tokens:,} tokens"),
        ("training FLOPs", f"{sum(part.flops for part in parts):.3g} (multiply and add counted as two, attention in full)"),
        ("optimizer", f"{config.optimizer.name}, learning rate {config.optimizer.lr:g}, weight decay {config.optimizer.weight_decay:g}"),
        ("seed, config", f"{config.seed}, fingerprint {config_lib.fingerprint(config)}"),
    ]
    table = _table("Training", rows)
    if len(parts) > 1:
        lines = [f"| {' | '.join(cells)} |" for cells in (HEAD, ("---", "---", "---:", "---:"), *(part.cells() for part in parts))]
        table += "\n\n" + "\n".join(lines)
    return table


def _score(facts: Facts) -> str:
    found = facts.evaluation
    if found is None:
        return "## Likelihood\n\nNot evaluated. `dlmjax evaluate --workdir ... --json FILE`, then `dlmjax export --evaluation FILE`."
    exact = facts.model.attention == "causal"
    name = "Negative log-likelihood" if exact else "NELBO" if found["is_bound"] is not False else "Loss (not a bound)"
    figures = []
    for value, error, unit in ((*NUMBERS[:2], "nats/token"), (*NUMBERS[2:], "bits/byte")):
        if found[value] is not None:
            spread = f" ± {found[error]:.4f}" if found[error] is not None and math.isfinite(found[error]) else ""
            figures.append(f"{found[value]:.4f}{spread} {unit}")
    where = f"{found['split']} split" + (f", {found['tokens']:,} tokens" if found["tokens"] else "") + f"; {found['source']}"
    text = f"{name} {'=' if exact else '<='} {', '.join(figures)} ({where}); ± is one standard error."
    if found["step"] != facts.step or found["weights"] not in (None, facts.weights):
        text += f" Of step {found['step']}, {found['weights'] or 'averaged'} weights: not those of this export."
    text += _protocol(found)
    if facts.dtype != "float32":
        text += f" Computed with float32 weights; these files hold {facts.dtype}."
    return "## Likelihood\n\n" + text


def _protocol(found: dict[str, Any]) -> str:
    """How the number was measured, as a sentence; "" where that is not recorded."""
    words = [f"suite {found['suite']}"] if found["suite"] else []
    words += [f"corpus `{pathlib.Path(found['corpus']).name}`"] if found["corpus"] else []
    words += [f"windows of {found['window']:,}, {found['stride']:,} new tokens each"] if found["window"] and found["stride"] else []
    if found["rule"] == "exact":
        words.append("exactly")
    elif found["rule"]:
        words.append(f"{found['nodes']} levels (rule {found['rule']}) x {found['draws']} draws")
    if found["changed"]:
        words.append(f"not the suite's own {' and '.join(f'{name} ({value})' for name, value in found['changed'].items())}")
    if found["complete"] is False:
        words.append("not all of the text")
    return f" Measured: {', '.join(words)}." if words else ""


def _load_hf(facts: Facts) -> str:
    if facts.model.attention == "causal":
        return (
            "## Loading\n\nA causal language model: `AutoModelForCausalLM.from_pretrained(...)`, `model.generate`. A text begins with BOS "
            f"(id {facts.model.tokenizer.bos_id}), which the tokenizer does not add.\n"
        )
    masks = ""
    if facts.model.block_size:
        masks = (
            f"\n\n**Every call needs a block-causal mask** (blocks of {facts.model.block_size}): `attention_mask(length, block_size)` of "
            "load_dlm.py. Without one, positions attend to later blocks, to which they did not attend in training."
        )
    return (
        "## Loading\n\n**transformers >= 5.2.** Older versions load these weights without an error and run them with causal attention: "
        "wrong logits. `load_dlm.load` refuses them.\n\n"
        "```python\nfrom load_dlm import load, check, generate  # load_dlm.py is in the directory of the weights\n"
        'model = load()                            # or AutoModelForCausalLM.from_pretrained(".") with transformers >= 5.2\n'
        f"print(check(model))                       # difference from parity.json: {_tolerance(facts)}\n```{masks}\n\n"
        "The model fills in masks; `model.generate` would append tokens, which it was not trained for. Greedy, most confident first "
        "(the loop of load_dlm.py; `dlmjax sample --rule confidence --temperature 0` gives the same tokens):\n\n"
        f"```python\n{_shipped_function('generate')}```"
    )


def _load_encoder(facts: Facts) -> str:
    return (
        "## Loading\n\n**transformers >= 5.2** (older versions run these weights with causal attention).\n\n"
        "```python\nfrom sentence_transformers import SentenceTransformer\n"
        'vectors = SentenceTransformer(".").encode(["a text", "another"])  # the mean of the final hidden states, not normalised\n```\n\n'
        "These vectors were not trained for similarity of texts: they are the denoiser's states for a clean text."
    )


def _load_sdar(facts: Facts) -> str:
    size = facts.model.block_size
    return (
        f"## Loading\n\nSGLang: `--model-path . --trust-remote-code --dllm-algorithm LowConfidence --dllm-algorithm-config sglang.yaml`. "
        f"sglang.yaml holds the block size ({size}), which SGLang otherwise takes to be 4.\n\n"
        f"LMDeploy: `PytorchEngineConfig(dllm_block_length={size})`.\n\n"
        "The weights are Qwen3's under Qwen3's names; `python load_dlm.py` (transformers >= 5.2) compares their logits with parity.json. "
        f"{facts.rows.count - facts.model.spec.vocab:,} rows of the head belong to no token (SGLang expects the mask at id "
        f"{facts.rows.mask_id}); with a small vocabulary they take some of the probability, and with it of the confidence that "
        "`threshold` is compared with: measure it before you rely on a threshold."
    )


def _load_llada(facts: Facts) -> str:
    return (
        "## Loading\n\nFor engines that implement LLaDA's network (dInfer, Fast-dLLM, llama.cpp's converter). transformers has "
        "none: there, use LLaDA's published modeling files, or `dlmjax export --view hf`. parity.json has the logits of a fixed prompt, "
        "to compare."
    )


# A view has a row here and one in `views.VIEWS`.
LOADING: dict[str, Callable[[Facts], str]] = {"hf": _load_hf, "encoder": _load_encoder, "sdar": _load_sdar, "llada": _load_llada}


def _tolerance(facts: Facts) -> str:
    return "about 1e-5" if facts.dtype == "float32" else "about 1e-4 in float32, more in bfloat16"


def _tokens(facts: Facts) -> str:
    rows, tokenizer = facts.rows, facts.model.tokenizer
    which = "mask, pad" + (", rows without a token" if len(rows.filled) > 2 else "")
    anchors = "of ids that no text holds" if facts.model.unused_ids else "of all real ids"
    text = (
        f"## Tokens\n\nMask {rows.mask_id}, pad {tokenizer.pad_id}, end of document and BOS {tokenizer.eos_id}. "
        f"{len(rows.filled):,} rows of the head ({which}) were in no softmax; they are the mean of {len(rows.anchors):,} rows ({anchors}), "
        "so that an argmax over all rows never selects them. Leave `suppress_ids` of config.json out of samples all the same."
    )
    if facts.no_tokenizer:
        return f"{text} No tokenizer.json: {facts.no_tokenizer}. Encode texts with dlmjax."
    text += " tokenizer.json gives the training ids. It reads the name of a special token in a text as that token, where training read"
    return text + " characters" + ("; U+2581 in a text becomes a space." if tokenizer.name in ("sentencepiece", "hf") else ".")


def _files(files: list[str]) -> str:
    return "## Files\n\n" + ", ".join(f"`{name}`" for name in files)


def _table(title: str, rows: list[tuple[str, str]]) -> str:
    return "\n".join([f"## {title}", "", "| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in rows)])


def _shipped_function(name: str) -> str:
    """The source of a function of load_dlm.py, so that the card and the file cannot differ."""
    source = SHIPPED.read_text(encoding="utf-8")
    return re.search(rf"(?:^@.*\n)?^def {name}\(.*\n(?:(?:    .*)?\n)+", source, re.M)[0].rstrip() + "\n"
