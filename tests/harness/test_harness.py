"""lm-eval-harness itself, offline, on dlmjax: equal to enumeration on a law that can be written out, and whole on real runs."""

import itertools
import json
import lzma
import os
import pathlib
import re
import subprocess
import sys
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

pytest.importorskip("lm_eval", reason="the adapter needs lm-eval: pip install 'dlmjax[harness]'")
# No test may ask a server for anything; read when `datasets` is imported.
os.environ.update(HF_DATASETS_OFFLINE="1", HF_HUB_OFFLINE="1", HF_DATASETS_DISABLE_PROGRESS_BARS="1")

from lm_eval import simple_evaluate
from lm_eval.api.registry import get_model
from lm_eval.tasks import TaskManager

import dlmjax
from dlmjax.cli.main import main
from dlmjax.data import load_tokenizer
from dlmjax.data.tokenizers import TableTokenizer
from dlmjax.diffusion.processes.autoregressive import Autoregressive
from dlmjax.diffusion.processes.blocks import Blockwise
from dlmjax.diffusion.processes.masked import Masked
from dlmjax.errors import InputError
from dlmjax.evaluation.conditional import Request
from dlmjax.evaluation.continuations import encode_pairs
from dlmjax.experiment import assemble
from dlmjax.harness.adapter import GENERATION_ARGUMENTS, Adapter, DlmJax, Model
from dlmjax.harness.generate import Decoding, Generator
from dlmjax.models.layout import SINGLE
from dlmjax.run import Run, open_run
from tests.data.conftest import shared_file
from tests.evaluation.test_conditional import LAW, bind_law, exact_log_p
from tests.sampling.toy import Bound
from tests.test_train import config_file, tiny_config


def write_task(folder, name: str, documents: list[dict], **fields) -> str:
    """A task of a local file, as a user would write it; returns its name."""
    (folder / f"{name}.jsonl").write_text("".join(json.dumps(document) + "\n" for document in documents), encoding="utf-8")
    files = {"data_files": {"test": str(folder / f"{name}.jsonl")}, "cache_dir": str(folder / "cache")}
    task = {"task": name, "dataset_path": "json", "dataset_kwargs": files, "test_split": "test", "num_fewshot": 0, **fields}
    (folder / f"{name}.yaml").write_text(json.dumps(task), encoding="utf-8")  # JSON is YAML
    return name


def test_lm_evals_own_models_are_still_found():
    """lm-eval registers its models when it looks for one and knows none; ours must not be that one."""
    program = "import dlmjax.harness.adapter\nfrom lm_eval.api.registry import MODEL_REGISTRY, get_model\n"
    program += "print(get_model('dlmjax').__name__, get_model('dummy').__name__, 'hf' in MODEL_REGISTRY)"
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=300)
    assert found.stdout.split() == ["DlmJax", "DummyLM", "True"], found.stderr


def metric(name: str, aggregation: str = "mean", higher: bool = True) -> dict:
    return {"metric_list": [{"metric": name, "aggregation": aggregation, "higher_is_better": higher}]}


CHOICES = {
    "output_type": "multiple_choice",
    "doc_to_text": "{{context}}",
    "doc_to_choice": "{{choices}}",
    "doc_to_target": "{{gold}}",
    "target_delimiter": "",
    **metric("acc"),
}
LAST_WORD = {
    "output_type": "loglikelihood",
    "doc_to_text": "{{text.split(' ')[:-1]|join(' ')}}",
    "doc_to_target": "{{' '+text.split(' ')[-1]}}",
    "target_delimiter": "",
    "metric_list": metric("acc")["metric_list"] + metric("perplexity", "perplexity", False)["metric_list"],
}
ROLLING = {
    "output_type": "loglikelihood_rolling",
    "doc_to_text": "",
    "doc_to_target": "{{text}}",
    **metric("bits_per_byte", "bits_per_byte", False),
}
ANSWERS = {"output_type": "generate_until", "doc_to_text": "{{text}}", "doc_to_target": "{{target}}", **metric("exact_match")}


def evaluated(model, folder, *tasks: str, **options) -> dict:
    """lm-eval's results of local tasks."""
    manager = TaskManager(include_path=str(folder), include_defaults=False)
    return simple_evaluate(model=model, tasks=list(tasks), task_manager=manager, bootstrap_iters=0, **options)


# --- a law that can be written out ----------------------------------------------------------------------------------------------


class Abc(TableTokenizer):
    """The tokens of the law: a, b and c."""

    def __init__(self):
        super().__init__("abc", [b"a", b"b", b"c", b"", b"", b""], mask_id=3, pad_id=4, eos_id=5)

    def encode(self, text):
        return np.frombuffer(text.encode(), np.uint8).astype(np.int32) - 97


def bind_abc(params, segments_BL, positions_BL, attention):
    """The exact denoiser, over all ids of the tokenizer."""
    denoiser = bind_law(LAW)(params, segments_BL, positions_BL, attention)

    def denoise(z, t_BL):
        # Pad and end are not in the law: what they stand for is not known.
        return jnp.pad(denoiser.hidden(jnp.minimum(z, LAW.mask_id), t_BL), ((0, 0), (0, 0), (0, 2)), constant_values=-1e9)

    return Bound(denoise)


def adapter_of(process, **options) -> Adapter:
    network = types.SimpleNamespace(bind=bind_abc, self_condition=False, layout=SINGLE)
    return Adapter(Model(process, network, bind_abc, jnp.float32(1.0), Abc(), 4, "the law"), **options)


PROCESSES = {
    "masked": Masked(6, 3, excluded=(4, 5)),
    "autoregressive": Autoregressive(6, bos_id=5, mask_id=3, excluded=(4, 5)),
    "blocks": Blockwise(Masked(6, 3, excluded=(4, 5)), size=2),
}


@pytest.mark.parametrize("name", PROCESSES)
def test_choices_and_whole_texts_are_scored_as_enumerated(name, tmp_path):
    """Contexts of none, one and two letters; choices of several lengths. The likelihoods, the chosen ones, and the accuracy."""
    documents = []
    for n, context in enumerate(["", "a", "b", "ca", "bb"]):
        texts = ["".join(t) for t in itertools.product("abc", repeat=4 - len(context))][:: 3 + n][:5] + ["a", "cb"]
        documents.append({"context": context, "choices": texts, "gold": n})
    write_task(tmp_path, "letters", documents, **CHOICES)
    adapter = adapter_of(PROCESSES[name])
    results = evaluated(adapter, tmp_path, "letters")
    right = []
    for sample in sorted(results["samples"]["letters"], key=lambda sample: sample["doc_id"]):
        document = documents[sample["doc_id"]]
        given = Abc().encode(document["context"])
        exact = [exact_log_p(LAW, given, Abc().encode(choice)) for choice in document["choices"]]
        np.testing.assert_allclose([float(answer[0][0]) for answer in sample["resps"]], exact, atol=2e-5)
        right.append(int(np.argmax(exact)) == document["gold"])
    assert results["results"]["letters"]["acc,none"] == np.mean(right)
    assert {record["stderr"] for record in adapter.records} == {0.0} and len(adapter.records) == sum(len(d["choices"]) for d in documents)
    # Texts of one row and of several: windows of four letters with one of context.
    write_task(tmp_path, "roll", [{"text": "abca"}, {"text": "cabbacabca"}], **ROLLING)
    text = Abc().encode("cabbacabca")
    pieces = [([], text[:4]), (text[3:4], text[4:7]), (text[6:7], text[7:10])]
    nats = -exact_log_p(LAW, [], Abc().encode("abca")) - sum(exact_log_p(LAW, *piece) for piece in pieces)
    rolled = evaluated(adapter, tmp_path, "roll")["results"]["roll"]["bits_per_byte,none"]
    assert rolled == pytest.approx(nats / np.log(2) / 14, rel=1e-5)
    told = results["config"]["dlmjax"]
    assert told["likelihood"] == ("exact" if name == "autoregressive" else "counted") and told["draws"] == 128


def test_last_letters_that_are_greedy_are_those_generated(tmp_path):
    """is_greedy, of which lm-eval makes LAMBADA's accuracy, against the text that generate_until writes; stop strings cut that."""
    contexts = ["a", "b", "c", "ab", "ca"]
    write_task(tmp_path, "write", [{"text": context, "target": ""} for context in contexts], **ANSWERS, generation_kwargs={"until": []})
    adapter = adapter_of(PROCESSES["masked"], batch=2)
    written = {s["doc"]["text"]: s["resps"][0][0] for s in evaluated(adapter, tmp_path, "write")["samples"]["write"]}
    assert [len(written[context]) for context in contexts] == [3, 3, 3, 2, 2]
    other = {context: "".join("abc"["bca".index(c)] for c in text) for context, text in written.items()}
    pairs = [{"text": context, "end": end[context]} for context in contexts for end in (written, other)]
    fields = {**LAST_WORD, "doc_to_text": "{{text}}", "doc_to_target": "{{end}}"}
    write_task(tmp_path, "last", pairs, **fields)
    samples = sorted(evaluated(adapter, tmp_path, "last")["samples"]["last"], key=lambda sample: sample["doc_id"])
    assert [sample["acc"] for sample in samples] == [True, False] * len(contexts)
    stop = written["a"][1]
    write_task(tmp_path, "stop", [{"text": "a", "target": ""}], **ANSWERS, generation_kwargs={"until": ["zz", stop], "do_sample": False})
    assert evaluated(adapter, tmp_path, "stop")["samples"]["stop"][0]["resps"][0][0] == written["a"].split(stop)[0]


# --- real runs ------------------------------------------------------------------------------------------------------------------

SENTENCES = [
    "the trainer is a story that is read from top to bottom",
    "each row of the batch draws its noise from its own key",
    "a loss that is reweighted is never taken for a likelihood",
    "bad input ends with one clear line and exit code two",
]


@pytest.fixture(scope="module")
def workdir(small_corpus, tmp_path_factory):
    """A few steps of the smallest masked run, made by the command itself."""
    root = tmp_path_factory.mktemp("harness")
    config = tiny_config(small_corpus, data__length=64, train__steps=3, log__evaluate=0, log__sample=0)
    assert main(["train", "--config", str(config_file(root / "tiny.py", config)), "--workdir", str(root / "run")]) == 0
    return root / "run"


@pytest.fixture(scope="module")
def tasks(tmp_path_factory):
    """Task files of sentences of this project: two choices, a last word, a rolling likelihood, an answer."""
    folder = tmp_path_factory.mktemp("tasks")
    pairs = [{"context": "", "choices": [text, text[::-1]], "gold": 0} for text in SENTENCES]
    write_task(folder, "pairs", pairs, **CHOICES)
    write_task(folder, "last_word", [{"text": text} for text in SENTENCES], **LAST_WORD)
    write_task(folder, "whole", [{"text": " ".join(SENTENCES)}], **ROLLING)
    generation = {"until": ["\n"], "max_gen_toks": 8, "do_sample": False}
    write_task(folder, "answer", [{"text": text, "target": "x"} for text in SENTENCES], **ANSWERS, generation_kwargs=generation)
    return folder


def test_the_command_runs_tasks_and_writes_what_they_are_worth(workdir, tasks, tmp_path, capsys):
    call = ["lm-eval", "--workdir", workdir, "--tasks", "pairs,last_word", "whole", "answer", "--include-path", tasks, "--limit", "2"]
    assert main([str(part) for part in [*call, "--draws", "8", "--offline", "--output", tmp_path / "out"]]) == 0
    printed = capsys.readouterr().out
    assert "bits_per_byte" in printed and "masks' stderr" in printed and "padding" in printed
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert set(results["results"]) == {"pairs", "last_word", "whole", "answer"}
    assert results["config"]["dlmjax"]["draws"] == 8 and results["config"]["limit"] == 2
    records = [json.loads(line) for line in (tmp_path / "out" / "likelihoods.jsonl").read_text().splitlines()]
    assert [sum(r["task"] == task for r in records) for task in ("pairs", "last_word", "whole")] == [4, 2, 1]
    assert all(r["stderr"] > 0 and r["log_likelihood"] < 0 for r in records if r["task"] == "pairs")
    assert 0 <= results["likelihoods"]["pairs"]["undecided"] <= 1 and results["likelihoods"]["last_word"]["undecided"] is None
    answers = [json.loads(line) for line in (tmp_path / "out" / "samples_answer.jsonl").read_text().splitlines()]
    assert len(answers) == 2 and all("\n" not in answer["resps"][0][0] for answer in answers)


LOCAL = {"dataset_path": "json", "dataset_kwargs": {"data_files": {"test": "data.jsonl"}}}


@pytest.mark.parametrize("offline", [True, False])
@pytest.mark.parametrize(
    ("source", "content", "said"),
    [
        ({"dataset_path": "nobody/nothing"}, "", "on a server that cannot be reached .*--offline.*--include-path DIR"),
        (
            {"dataset_path": "json", "dataset_kwargs": {"data_files": {"test": "data.jsonl"}}},
            None,
            "cannot be read .*data.jsonl.*data_files",
        ),
        (LOCAL, "{no", "cannot be read .*JSON parse error"),
    ],
    ids=["no network", "no file", "damaged file"],
)
def test_data_that_cannot_be_had_is_one_line(workdir, tmp_path, monkeypatch, capsys, source, content, said, offline):
    """A server that does not answer, with and without --offline (this process never asks one), and files that are missing or damaged."""
    if content is not None:
        (tmp_path / "data.jsonl").write_text(content)
    write_task(tmp_path, "mine", [{"text": "x"}], **{**ROLLING, "dataset_kwargs": {}, **source})
    monkeypatch.chdir(tmp_path)
    call = ["lm-eval", "--workdir", str(workdir), "--tasks", "mine", "--include-path", str(tmp_path), *["--offline"] * offline]
    assert main(call) == 2
    line = capsys.readouterr().err.strip().splitlines()[-1]
    assert re.search(said, line) and line.startswith("dlmjax: ")


@pytest.fixture(scope="module")
def adapter(workdir) -> DlmJax:
    """The run as lm-eval opens it for `--model dlmjax --model_args workdir=...,draws=8`."""
    made = get_model("dlmjax").create_from_arg_string(f"workdir={workdir},draws=8", {"batch_size": "auto", "device": "cuda:0"})
    assert type(made) is DlmJax
    return made


def test_a_run_is_scored_as_its_network_says(workdir, adapter):
    """The bound of three bytes, by all seven masks and the network alone; the adapter's rows lie on eight devices."""
    run, context = open_run(str(workdir)), SENTENCES[0]
    tokenizer, network, row_L = run.experiment.tokenizer, run.experiment.unpartitioned, run.experiment.tokenizer.encode(context + " no")
    request = types.SimpleNamespace(args=(context, " no"), task_name=None, doc_id=None, idx=0, request_type="loglikelihood")
    ((log_p, _),) = adapter.loglikelihood([request], disable_tqdm=True)
    masks = [list(c) for k in (1, 2, 3) for c in itertools.combinations(range(len(row_L) - 3, len(row_L)), k)]
    z_BL = np.tile(row_L, (len(masks), 1))
    for z_L, hidden in zip(z_BL, masks, strict=True):
        z_L[hidden] = tokenizer.mask_id
    z_BL = jnp.asarray(z_BL)
    denoiser = network.bind(run.params, jnp.ones_like(z_BL), jnp.broadcast_to(jnp.arange(len(row_L)), z_BL.shape))
    logits = np.array(denoiser.logits(denoiser.hidden(z_BL, jnp.zeros(z_BL.shape))), np.float64)
    logits[..., [tokenizer.mask_id, tokenizer.pad_id]] = -np.inf
    log_p_BLV = logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))
    bound = 0.0
    for log_p_LV, hidden in zip(log_p_BLV, masks, strict=True):
        alike = sum(len(other) == len(hidden) for other in masks)
        bound += sum(log_p_LV[i, row_L[i]] for i in hidden) * 3 / len(hidden) / alike / 3
    assert log_p == pytest.approx(bound, abs=2e-4)
    assert adapter.records[-1]["passes"] == 7 and adapter.records[-1]["tokens"] == 3
    score = run.score(context, " no", draws=8)
    assert (score.log_likelihood, score.stderr, score.tokens, score.passes) == (log_p, 0.0, 3, 7)
    request.args = (context, " no, it is not so")
    ((log_p, _),) = adapter.loglikelihood([request], disable_tqdm=True)
    score = run.score(*request.args, draws=8)
    assert score.log_likelihood == log_p and score.stderr == adapter.records[-1]["stderr"] > 0


@pytest.mark.parametrize(("context", "continuation"), [("th", "e"), ("in", "to"), ("foo(", ")"), ("We", " know")])
def test_a_token_over_the_boundary_hides_nothing_of_the_continuation(context, continuation):
    """GPT-2's merges: the whole may be one token, whose context has none to cut off."""
    tokenizer = load_tokenizer(f"gpt2:{shared_file('gpt2_bpe/vocab.json').parent}")
    ((before, after),) = encode_pairs(tokenizer, [(context, continuation)])
    assert tokenizer.decode(before) + tokenizer.decode(after) == context + continuation and len(after)


def untrained(name: str, length: int = 32, time_input: str = "none", vocab: str = "bytes") -> Model:
    """A run at its start values."""
    config = tiny_config("nowhere", data__length=length, process__name=name, model__time_input=time_input)
    experiment = assemble(config, load_tokenizer(vocab), devices=jax.devices()[:1])
    params = experiment.init(jax.random.key(1))
    return Model.of_run(Run(experiment, params, 0, "raw", pathlib.Path()), name)


@pytest.mark.parametrize(
    ("name", "time_input"),
    [("autoregressive", "none"), pytest.param("blocks(size=8)", "none", marks=pytest.mark.nightly)]
    + [pytest.param("uniform", "adaln", marks=pytest.mark.slow)],
)
def test_every_kind_of_process_answers_every_kind_of_request(name, time_input, tasks):
    """Also: what is written without chance is greedy, and nothing else is."""
    adapter = Adapter(untrained(name, time_input=time_input), draws=8, nodes=4, batch=4, max_gen_toks=8)
    results = evaluated(adapter, tasks, "pairs", "whole", "answer", limit=1)["results"]
    # At the start every byte is about as likely as the others.
    assert results["whole"]["bits_per_byte,none"] == pytest.approx(np.log2(257), abs=2.0)
    assert {record["stderr"] == 0 for record in adapter.records} == {name == "autoregressive"}
    prompts = [adapter.model.tokenizer.encode(text) for text in (SENTENCES[0][:11], SENTENCES[1][:19])]
    for prompt, made_G in zip(prompts, adapter.generator.tokens(adapter.model.params, prompts, adapter.decoding), strict=True):
        other_G = np.where(np.arange(made_G.size) == made_G.size // 2, (made_G + 1) % 256, made_G)
        greedy = adapter.scorer.greedy(adapter.model.params, [Request(prompt, made_G), Request(prompt, other_G)])
        assert greedy == [name != "uniform", False] and made_G.size == 8


def test_generation_does_not_depend_on_the_prompts_beside_it():
    """Prompts of several lengths two at a time and alone; a prompt that is too long is cut from the left."""
    model = untrained("masked")
    prompts = [model.tokenizer.encode(text[:n]) for text, n in zip(SENTENCES, (9, 17, 50), strict=False)]
    decoding = Decoding(length=12, block=8, tokens_per_step=2)
    two, one = (Generator(model.process, model.network, model.tokenizer, longest=32, batch=batch) for batch in (2, 1))
    texts = two(model.params, prompts, decoding)
    assert texts == [one(model.params, [prompt], decoding)[0] for prompt in prompts]
    assert texts[2] == one(model.params, [prompts[2][-20:]], decoding)[0] and all(texts)


@pytest.mark.slow
def test_a_cache_and_a_stop_of_generated_text():
    """A text with a cache is what it is alone, whatever the lengths of its batch; a stop that always holds is one call."""
    model = untrained("masked")
    prompts = [model.tokenizer.encode(text[:n]) for text, n in zip(SENTENCES, (9, 17, 50), strict=False)]
    generator = Generator(model.process, model.network, model.tokenizer, longest=32, batch=3)
    for cache in ("dual(block=8)", "delayed(every=4)"):
        decoding = Decoding(length=12, cache=cache)
        together = generator.tokens(model.params, prompts, decoding)
        alone = [generator.tokens(model.params, [prompt], decoding)[0] for prompt in prompts]
        for one, other in zip(together, alone, strict=True):
            np.testing.assert_array_equal(one, other)
    at_once, stopped = (
        generator.tokens(model.params, prompts, Decoding(length=12, block=12, **how))
        for how in ({"tokens_per_step": 12}, {"stop": "exit(bound=1e4)"})
    )
    for one, other in zip(at_once, stopped, strict=True):
        np.testing.assert_array_equal(one, other)
    with pytest.raises(InputError, match="keeps what is finished anyway"):
        Adapter(untrained("autoregressive"), cache="dual")
    with pytest.raises(InputError, match="order that is known before a call"):
        Adapter(model, cache="delayed_greedy")


@pytest.mark.slow
def test_drafts_change_no_generated_text():
    """Prompts of several lengths, block after block; causal processes are refused before a text is made."""
    model = untrained("masked")
    prompts = [model.tokenizer.encode(text[:n]) for text, n in zip(SENTENCES, (9, 17, 50), strict=False)]
    generator = Generator(model.process, model.network, model.tokenizer, longest=32, batch=2)
    plain, drafting = (Decoding(length=12, block=8, draft=draft) for draft in (None, "own(depth=2)"))
    assert generator(model.params, prompts, plain) == generator(model.params, prompts, drafting)
    with pytest.raises(InputError, match="draft own requires a sampler of the whole canvas"):
        Adapter(untrained("autoregressive"), draft="own")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (["--tasks", ","], "--tasks has no name"),
        # lm-eval reads all of its own tasks first.
        pytest.param(["--tasks", "pears"], "'pears' is not a task of lm-eval or of", marks=pytest.mark.nightly),
        (["--include-path", "nowhere"], "--include-path nowhere is not a folder"),
        (["--draws", "0"], "--draws is 0"),
        (["--overlap", "64"], "overlap of 64"),
        (["--block", "0"], "--block is 0"),
        (["--draft", "owm"], "did you mean 'own'"),
        (["--cache", "duel"], "did you mean 'dual'"),
        (["--stop", "exot"], "did you mean 'exit'"),
        (["--batch", "0"], "--batch is 0"),
        (["--seed", "-1"], "--seed is -1"),
        (["--output", "/dev/null/out"], "--output is /dev/null/out, but /dev/null is not a folder"),
    ],
)
def test_what_cannot_be_run_is_told_in_one_line(workdir, tasks, capsys, change, said):
    flags = {"--workdir": str(workdir), "--tasks": "whole", "--include-path": str(tasks), "--limit": "1", "--draws": "2"}
    flags |= dict([change])
    assert main(["lm-eval", *(part for pair in flags.items() for part in pair)]) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("dlmjax: ")]
    assert len(lines) == 1 and said in lines[0]


def test_model_args_that_mean_nothing_are_refused(workdir):
    with pytest.raises(InputError, match="no value draw; choose from workdir"):
        DlmJax(str(workdir), draw=3)


def test_the_page_lists_the_generation_arguments_that_are_read(caplog):
    """Each of them changes the decoding, null does not, and of those that lm-eval's tasks also set none does."""
    adapter = adapter_of(PROCESSES["masked"], max_gen_toks=64)
    page = (pathlib.Path(dlmjax.__file__).parents[1] / "docs" / "lm_eval.md").read_text(encoding="utf-8")
    rows = page.split("| argument |")[1].split("\n\n")[0].splitlines()[2:]
    listed = [re.findall(r"`(\w+)`", row.split("|")[1]) for row in rows]
    assert {name for names in listed for name in names} == set(GENERATION_ARGUMENTS)
    values = {"until": "x", "do_sample": True, "temperature": 0.5, "top_p": 0.9, "rule": "entropy_bound(gamma=0.2)"}
    for name in GENERATION_ARGUMENTS:
        value = values.get(name, 7)
        assert adapter._decoding({name: value}) != adapter.decoding == adapter._decoding({name: None}), name
        for wrong in ("many", [3], {}):
            if name == "until" and wrong == "many" or name == "do_sample" or (name, wrong) == ("until", {}):
                continue
            with pytest.raises(InputError, match=f"^generation_kwargs: {name} is "):
                adapter._decoding({name: wrong})
    (lengths,) = [names for names in listed if "max_gen_toks" in names]
    for first, second in itertools.pairwise(lengths):
        assert adapter._decoding({second: 5, first: 3}).length == 3
    assert adapter._decoding({"do_sample": False, "temperature": 0.5}).temperature == 0
    assert not caplog.records
    others = {"top_k": 5, "num_beams": 2, "repetition_penalty": 1.1, "stop": ["x"], "seed": 3}
    assert adapter._decoding(others) == adapter.decoding and all(name in caplog.text for name in others)


# --- the data sets that the field uses, where they are beside the project ---------------------------------------------------------


def documents_of(name: str, count: int) -> list[dict]:
    with lzma.open(shared_file(name), "rt", encoding="utf-8") as lines:
        return [json.loads(line) for line in itertools.islice(lines, count)]


@pytest.mark.slow
def test_lambada_pads_less_than_three_slots_in_ten(tmp_path):
    """GPT-2's tokens, a network that is next to nothing: 64 passages."""
    write_task(tmp_path, "lambada", documents_of("lambada/lambada_test.jsonl.xz", 64), **LAST_WORD)
    model = untrained("masked", length=256, vocab=f"gpt2:{shared_file('gpt2_bpe/vocab.json').parent}")
    adapter = Adapter(model, draws=8, batch=8)
    results = evaluated(adapter, tmp_path, "lambada")
    assert results["results"]["lambada"]["acc,none"] < 0.1 and len(adapter.records) == 64
    assert 0 < adapter.scorer.spent.padding < 0.3 and len(adapter.scorer.spent.shapes) <= 20


def test_blimp_and_gsm8k_run(tmp_path, adapter):
    pairs = [
        {"context": "", "choices": [d["sentence_good"], d["sentence_bad"]], "gold": 0} for d in documents_of("blimp/blimp.jsonl.xz", 3)
    ]
    write_task(tmp_path, "minimal_pairs", pairs, **CHOICES)
    questions = [{"text": f"Q: {d['question']}\nA:", "target": d["answer"]} for d in documents_of("gsm8k/test.jsonl.xz", 2)]
    write_task(tmp_path, "sums", questions, **ANSWERS, generation_kwargs={"until": ["Q:"], "max_gen_toks": 8})
    results = evaluated(adapter, tmp_path, "minimal_pairs", "sums")
    assert 0 <= results["results"]["minimal_pairs"]["acc,none"] <= 1 and results["results"]["sums"]["exact_match,none"] == 0
    assert len(results["samples"]["sums"]) == 2
