"""A run in Python: the numbers of the commands, a meaning of logits for every process, one line for what does not apply."""

import dataclasses
import functools
import inspect
import json
import pathlib
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import dlmjax
from dlmjax import config as config_lib
from dlmjax.cli.main import main
from dlmjax.data import Corpus, load_tokenizer
from dlmjax.diffusion.registry import PROCESSES
from dlmjax.errors import InputError, as_arguments
from dlmjax.evaluate import TextSettings
from dlmjax.experiment import OpenedRun, assemble, claim_workdir
from dlmjax.models import from_nnx
from dlmjax.run import Run, open_run
from dlmjax.training import Checkpoints
from tests.models.test_own import Attending
from tests.models.tiny import lively

LENGTH = 8


def tiny_run(process: str, **changes) -> Run:
    """A run of a small network with random weights, on one device."""
    config = config_lib.default()
    config.data.length = LENGTH
    config.model.update(depth=1, width=8, heads=1, kv_heads=1, head_dim=8, ffn=8, time_input="adaln")
    config.process.name = process
    config_lib.override(config, [f"{name.replace('__', '.')}={value}" for name, value in changes.items()])
    tokenizer = load_tokenizer("char27")
    counts_V = np.arange(1, tokenizer.vocab_size + 1)
    experiment = assemble(config, tokenizer, devices=jax.devices()[:1], counts_V=counts_V)
    return Run(experiment, lively(experiment.init(jax.random.key(0))), 0, "raw", pathlib.Path())


tiny = functools.cache(tiny_run)


def log_softmax(logits):
    return np.asarray(jax.nn.log_softmax(np.asarray(logits, np.float32)))


@pytest.mark.parametrize("name", sorted(PROCESSES))
def test_logits_of_every_process_are_finite_and_give_special_ids_nothing(name):
    run = tiny(name)
    tokens_BL = np.stack([run.tokenizer.encode("the cat "), run.tokenizer.encode("sat on a")])
    if run.process.bound.output.predicts == "vectors":
        with pytest.raises(InputError, match="predicts vectors and provides no logits"):
            run.logits(tokens_BL, 0.5)
        return
    logits_BLV = run.logits(tokens_BL, 0.5)
    assert logits_BLV.shape == (2, LENGTH, run.process.vocab) and logits_BLV.dtype == np.float32
    p_BLV = np.exp(log_softmax(logits_BLV))
    assert np.isfinite(p_BLV).all() and not p_BLV[..., list(run.suppressed_ids)].any()
    np.testing.assert_array_equal(logits_BLV, run.logits(tokens_BL, np.full((2, LENGTH), 0.5), seed=0))
    if name == "masked":  # another shape compiles again
        np.testing.assert_allclose(run.logits("the cat ", 0.5), logits_BLV[0], atol=1e-5)


SINGLE_TOKENS = [*sorted(set(PROCESSES) - {"blocks"}), "blocks(size=4)", "blocks(size=1)"]


@pytest.mark.parametrize("name", SINGLE_TOKENS)
def test_the_score_of_one_token_is_its_logit(name):
    """For causal processes, and for masked ones, where one token has one mask. Others are integrated over t, or have no likelihood."""
    run = tiny(name)
    process = run.process.bound
    if not process.attention.causal and not process.capabilities.any_order:
        if not process.capabilities.is_bound:
            with pytest.raises(InputError, match="is not a likelihood bound"):
                run.score("the", "c")
        return
    score = run.score("the", "c")
    assert score.tokens == 1 and score.stderr == 0
    z_L = run.tokenizer.encode("thec")
    if not process.attention.causal:
        z_L[-1] = process.absorbing_id
    log_p_LV = log_softmax(run.logits(z_L, np.where(np.arange(4) == 3, 1.0, 0.0)))
    assert score.log_likelihood == pytest.approx(log_p_LV[3, run.tokenizer.encode("c")[0]], abs=2e-4)


@pytest.fixture(scope="module")
def workdir(small_corpus, tmp_path_factory):
    """What training leaves behind, without the training: the network has ids that the tokenizer lacks."""
    root = tmp_path_factory.mktemp("face") / "run"
    config = config_lib.default()
    config.data.update(length=16, paths=(str(small_corpus),))
    config.model.update(depth=1, width=8, heads=1, kv_heads=1, head_dim=8, ffn=8, vocab=264, family="qwen3(loops=2)")
    config.train.ema = 0.0
    experiment = assemble(config, Corpus.open(small_corpus).tokenizer, devices=jax.devices()[:1])
    claim_workdir(root, config, experiment.tokenizer)
    with Checkpoints(root / "checkpoints") as checkpoints:
        checkpoints.save(3, {"params": lively(experiment.init(jax.random.key(0)))}, {"step": 3})
    return root


@pytest.fixture(scope="module")
def run(workdir):
    return open_run(workdir)


def command(name, workdir, file, *flags):
    """The JSON that a command writes."""
    assert main([name, "--workdir", str(workdir), "--json", str(file), *map(str, flags)]) == 0
    return json.loads(file.read_text())


def test_an_opened_run_has_what_measures_read(run, workdir):
    assert isinstance(run, OpenedRun) and (run.step, run.weights, run.workdir) == (3, "raw", workdir)
    assert run.process is run.experiment.process and run.tokenizer.name == "bytes" and run.suppressed_ids[-1] == 263
    assert repr(run) == f"Run({workdir}, step 3, raw weights, masked, {run.experiment.parameter_count:,} parameters)"


@pytest.mark.parametrize(
    ("options", "flags"),
    [
        ({"prompt": "The ", "length": 12, "steps": 4, "count": 2}, ["--prompt", "The ", "--length", 12, "--steps", 4, "--count", 2]),
        (
            {"template": "a [MASK*4] b", "rule": "confidence", "temperature": 0.5, "seed": 7},
            ["--template", "a [MASK*4] b", "--rule", "confidence", "--temperature", 0.5, "--seed", 7],
        ),
    ],
)
def test_samples_are_those_of_the_command(run, workdir, tmp_path, options, flags):
    found, written = run.sample(**options), command("sample", workdir, tmp_path / "s.json", *flags)
    assert list(found.texts) == [row["text"] for row in written["samples"]]
    assert found.samples.tokens_BL.tolist() == [row["token_ids"] for row in written["samples"]]
    assert written["settings"] == found.samples.settings.to_json() and set(run.suppressed_ids) <= set(written["settings"]["never"])
    assert str(found) == "\n---\n".join(found.texts) and run.sample(**options).texts == found.texts


def test_looped_layers_are_run_another_number_of_times_and_records_say_so(run, workdir, tmp_path):
    """Three runs of a layer that was trained with two: the network of three layers with its weights."""
    more = open_run(workdir, loops=3)
    params = more.params | {"layers": jax.tree.map(lambda leaf: np.repeat(np.asarray(leaf), 3, axis=0), more.params["layers"])}
    spec = dataclasses.replace(more.experiment.network.spec, depth=3, loops=1)
    network = dataclasses.replace(more.experiment.network, spec=spec)
    deep = Run(dataclasses.replace(more.experiment, network=network), params, 3, "raw", workdir)
    np.testing.assert_allclose(more.logits("the cat ", 0.5), deep.logits("the cat ", 0.5), atol=1e-5)
    assert np.abs(more.logits("the cat ", 0.5) - run.logits("the cat ", 0.5))[:, :26].max() > 1e-3

    loops = {"run": 3, "trained": 2}
    found = command("evaluate", workdir, tmp_path / "e.json", "--nodes", 2, "--loops", 3)
    assert found["made"]["loops"] == loops and "the looped layers were run 3 times, 2 in training (--loops)" in found["cautions"]
    written = command("sample", workdir, tmp_path / "s.json", "--length", 12, "--steps", 4, "--loops", 3)
    assert written["loops"] == loops
    assert [row["text"] for row in written["samples"]] == list(more.sample(length=12, steps=4).texts)
    # The number of training is no other number.
    assert open_run(workdir, loops=2).experiment.loops == {} == run.experiment.loops


@pytest.mark.parametrize(
    ("changes", "loops", "message"),
    [
        ({}, 2, "--loops 2 requires a network that was trained with looped layers, and model.family=qwen3 runs each layer once"),
        ({"model__family": "qwen3(loops=2)"}, 0, "open_run(loops=0): give a whole number of at least 1"),
        ({"model__family": "qwen3(loops=2)"}, 257, "open_run(loops=257): give a whole number of at most 256"),
        ({"model__family": "qwen3(loops=2)", "model__completep_width": 8, "model__completep_depth": 1}, 3, "conflicts with CompleteP"),
    ],
)
def test_loops_that_a_network_cannot_have_are_refused(changes, loops, message):
    with pytest.raises(InputError, match=re.escape(message)):
        tiny_run("masked", **changes).experiment.with_loops(loops)


def test_a_process_in_place_of_the_trained_one_is_used_and_recorded(workdir, tmp_path):
    """By every command with a run: the flags of all come from one place."""
    opened = open_run(workdir, process="blocks(size=4)")
    written = command("sample", workdir, tmp_path / "s.json", "--length", 12, "--steps", 4, "--process", "blocks(size=4)")
    assert written["chosen_process"] == "blocks(size=4)" and written["process"] == "blocks" == opened.process.name
    assert [row["text"] for row in written["samples"]] == list(opened.sample(length=12, steps=4).texts)


@pytest.mark.parametrize(
    ("process", "message"),
    [
        ("maskd", "--process maskd: unknown process 'maskd'; did you mean 'masked'?"),
        ("blocks(size=x)", "--process blocks(size=x): process blocks: size requires a whole number"),
        ("uniform", "--process uniform requires a network conditioned on the time"),
        ("score", "--process score conflicts with process.name=masked: its network predicts scores, not logits"),
        ("gaussian", "--process gaussian conflicts with process.name=masked: its network reads vectors"),
        ("genmd4", "--process genmd4 conflicts with process.name=masked: its network learns"),
    ],
)
def test_processes_that_the_weights_do_not_fit_are_refused(workdir, process, message):
    with pytest.raises(InputError, match=re.escape(message.replace("--process ", "process ", 1))) as error:
        open_run(workdir, process=process)
    assert "\n" not in str(error.value)


def test_an_evaluation_is_that_of_the_command_and_of_the_texts(run, workdir, small_corpus, tmp_path):
    written = command("evaluate", workdir, tmp_path / "e.json", "--nodes", 2, "--seed", 5)
    found = run.evaluate(nodes=2, seed=5)
    numbers = ("nats_per_token", "stderr_nats_per_token", "bits_per_byte", "tokens")
    assert [found.report[name] for name in numbers] == [written[name] for name in numbers]
    documents = list(Corpus.open(small_corpus, split="valid").documents())
    texts = run.evaluate(documents, nodes=2, seed=5, by_document=True)
    assert [texts.report[name] for name in numbers] == [written[name] for name in numbers]
    assert texts.report["protocol"]["text_hash"] == written["protocol"]["text_hash"] and len(texts.text.ids) == len(documents)
    other = run.evaluate(small_corpus, nodes=2, seed=5, against=run, windows=2)
    assert other.difference.nats_per_token == 0 and other.report["tokens"] == 32


def test_answers_of_one_question_share_their_masks(run):
    alone, (first, second) = run.score("to be or", " not to be", draws=4), run.score("to be or", [" not to be"] * 2, draws=4)
    assert alone == first == second and alone != run.score("to be or", " not to be", draws=4, seed=1)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda run: run.sample(temprature=0), "sample has no option temprature; did you mean 'temperature'"),
        (lambda run: run.sample("x" * 40), "tokens"),
        (lambda run: run.sample(seed=-1), "seed"),
        (lambda run: run.evaluate([]), "requires at least one text"),
        (lambda run: run.evaluate(["\ud800"]), "surrogate"),
        (lambda run: run.evaluate(["a"], split="valid"), "texts conflict with data, split"),
        (lambda run: run.evaluate("A text (of one line)."), r"^data is 'A text .*', which is not the folder .*pass \[text\]"),
        (lambda run: run.evaluate(pathlib.Path("no such folder")), "no such folder"),
        (lambda run: run.evaluate(windows=0), "^windows is 0"),
        (lambda run: run.evaluate(nodes=2**20, draws=2**20), "give fewer nodes or draws"),
        (lambda run: run.evaluate(suite="wikitext"), "^suite requires files"),
        (lambda run: run.evaluate(suite="wikitext", files=["x"]), "^suite 'wikitext' is neither"),
        (lambda run: run.evaluate(remainder="tail"), "^remainder tail conflicts"),
        (lambda run: run.evaluate(seed=-1), "^seed is -1"),
        (lambda run: run.sample(start_t=0.5), "give edit TEXT"),
        (lambda run: run.score("a", "b", seed=-1), "^seed is -1"),
        (lambda run: run.logits([1, 2], 0.5, seed=-1), "^seed is -1"),
        (lambda run: open_run("nowhere"), "give the workdir of `dlmjax train`"),
        (lambda run: dlmjax.evaluate(run, TextSettings(windows=0)), "^windows is 0"),
        (lambda run: dlmjax.prepare(["x"], "bytes", "out", workers=0), "^workers is 0"),
        (lambda run: dlmjax.prepare(["x"], "bytes", "gs://a/b"), "^output gs://a/b: only engine beam"),
        (lambda run: dlmjax.prepare(["x"], "bytes", "out", valid_fraction=2), r"^valid_fraction \(2"),
        (lambda run: dlmjax.prepare(["x"], "bytes", "out", documents="word"), "^documents is 'word'"),
        (lambda run: dlmjax.export(workdir="w", output="o", shard_size="x"), "^shard_size 'x'"),
        (lambda run: dlmjax.load_config("masked:tiny", "train.steps"), "^train.steps has no value; write train.steps=VALUE"),
        (lambda run: run.evaluate(node=3), "evaluate has no option node; did you mean 'nodes'"),
        (lambda run: run.score("a", "\ud800"), "surrogate"),
        (lambda run: run.score("a", "b", draws=0), "draws"),
        (lambda run: run.score("a", "b", overlap=99), "overlap"),
        (lambda run: run.logits([[1.5]]), "give whole numbers"),
        (lambda run: run.logits([]), "give whole numbers"),
        (lambda run: run.logits([264]), "the vocabulary of this run has 264 ids"),
        (lambda run: run.logits([1, 2], 1.5), "a time lies in"),
        (lambda run: run.logits([1, 2], float("nan")), "a time lies in"),
        (lambda run: run.logits([1, 2], [0, 0, 0]), "does not broadcast"),
        (lambda run: run.logits([1, 2], "now"), "t is 'now'"),
        (lambda run: tiny("uniform").logits([1, 2]), "give t, a number in"),
        (lambda run: tiny("plaid").logits(np.zeros((1, 2, 3))), "vectors here have the shape"),
        (lambda run: open_run(run.workdir, weights="emma"), "weights is 'emma'"),
    ],
)
def test_bad_values_are_refused_in_one_line(run, call, message):
    """It names the arguments of Python; the flags, of which there are none in Python, are for commands."""
    with pytest.raises(InputError, match=message) as refused:
        call(run)
    assert "\n" not in str(refused.value) and not re.search(r"(?<!\w)--\w", str(refused.value).partition("dlmjax ")[0])


def test_every_function_of_the_interface_names_arguments():
    faces = [
        getattr(found := getattr(dlmjax, name), name, found)
        for name in ("evaluate", "export", "load_config", "open_run", "prepare", "train")
    ]
    faces += [value for name, value in vars(Run).items() if inspect.isfunction(value) and not name.startswith("_")]
    assert len(faces) > 12 and not [face.__name__ for face in faces if not hasattr(face, "names_arguments")]


@pytest.mark.parametrize(
    ("message", "shown"),
    [
        ("--text-field is empty", "text_field is empty"),
        ("give --config.train.steps above 3, or --input FILE", "give train.steps above 3, or inputs FILE"),
        (
            "make one with: dlmjax prepare --input FILE (x); or give --output",
            "make one with: dlmjax prepare --input FILE (x); or give output",
        ),
        ("/a--b/--c is not: 3 --- 4 (--debug shows more)", "/a--b/--c is not: 3 --- 4"),
        ("--direct_running_mode=x belongs to Beam", "--direct_running_mode=x belongs to Beam"),
    ],
)
def test_flags_in_a_message_become_arguments(message, shown):
    assert as_arguments(message, {"input": "inputs"}) == shown


def test_the_same_refusal_names_flags_to_a_command(capsys):
    for _ in range(2):  # a command changes nothing for the calls after it
        assert main(["export", "--workdir", "w", "--output", "o", "--shard-size", "x"]) == 2
        assert "--shard-size 'x'" in capsys.readouterr().err
        with pytest.raises(InputError, match="^shard_size 'x'"):
            dlmjax.export(workdir="w", output="o", shard_size="x")


def test_a_causal_network_that_reads_the_time_reads_one_time_everywhere():
    """In training, scores, logits and samples: without noise there is no time, and a network would meet times it was not trained on."""
    run, text = tiny("autoregressive"), "the cat"
    experiment, ids_L = run.experiment, np.array([*run.tokenizer.encode(text), run.tokenizer.eos_id], np.int32)
    data = {"tokens": ids_L[None], "segments": np.ones((1, LENGTH), np.int32), "row": np.zeros(1, np.int32)}
    data |= {"positions": np.arange(LENGTH, dtype=np.int32)[None]}
    data = jax.tree.map(jnp.asarray, data)
    losses = [float(experiment.loss_fn(run.params, data, jax.random.key(seed))[0]) for seed in (0, 1)]
    logits_LV = run.logits(ids_L)
    nats = -log_softmax(logits_LV)[np.arange(LENGTH), ids_L].sum()
    assert losses[0] == losses[1] == pytest.approx(nats, rel=1e-5)
    result = run.evaluate([text]).result
    assert (result.tokens, result.nats_per_token) == (LENGTH, pytest.approx(nats / LENGTH, rel=1e-5))
    assert run.score("t", "he cat").log_likelihood == pytest.approx(log_softmax(logits_LV)[np.arange(1, 7), ids_L[1:7]].sum(), rel=1e-5)
    np.testing.assert_array_equal(logits_LV, run.logits(ids_L, 0.7))
    (greedy,) = run.sample(length=LENGTH, temperature=0.0).samples.tokens_BL
    assert (run.logits(greedy).argmax(-1) == greedy).all()


def test_an_opened_run_keeps_its_programs_where_nothing_else_is_set(workdir, tmp_path):
    before, folder = jax.config.jax_compilation_cache_dir, "jax_compilation_cache_dir"
    try:
        jax.config.update(folder, None)
        open_run(workdir)
        assert pathlib.Path(jax.config.jax_compilation_cache_dir).is_relative_to(workdir / "compiled")
        jax.config.update(folder, str(tmp_path))
        open_run(workdir)
        assert jax.config.jax_compilation_cache_dir == str(tmp_path)
    finally:
        jax.config.update(folder, before)


def test_gaussian_logits_read_text_with_noise_by_seed_or_vectors():
    run = tiny("plaid")
    ids_L = run.tokenizer.encode("the cat ")
    noisy = [run.logits(ids_L, 0.9, seed=seed) for seed in (0, 0, 1)]
    assert (noisy[0] == noisy[1]).all() and not np.allclose(noisy[0], noisy[2])
    z_LD = np.zeros((LENGTH, run.process.states.dim), np.float32)
    assert run.logits(z_LD, 0.9).shape == (LENGTH, run.process.vocab)


def test_a_text_longer_than_a_row_is_scored_in_pieces_that_add_up():
    run = tiny("autoregressive", model__time_input="none")
    text = "the cat sat on a mat"
    ids_L = run.tokenizer.encode(text)
    pieces = [(ids_L[:LENGTH], 0), (ids_L[LENGTH - 1 : 2 * LENGTH - 1], 1), (ids_L[12:], 3)]
    expected = sum(log_softmax(run.logits(piece))[np.arange(start, len(piece)), piece[start:]].sum() for piece, start in pieces)
    assert run.score("", text).log_likelihood == pytest.approx(expected, abs=1e-3)


def test_a_network_of_ones_own_gives_the_same_numbers():
    """Its denoiser is that of a family for sampler, scorer and logits."""
    family = tiny("masked")
    network = from_nnx(lambda rngs: Attending(rngs, vocab=family.process.vocab), vocab=family.process.vocab)
    experiment = dataclasses.replace(family.experiment, network=network)
    run = dataclasses.replace(family, experiment=experiment, params=network.init(jax.random.key(1)))
    z_L = run.tokenizer.encode("thec")
    target, z_L[-1] = z_L[-1], run.tokenizer.mask_id
    log_p_LV = log_softmax(run.logits(z_L, np.where(np.arange(4) == 3, 1.0, 0.0)))
    assert run.score("the", "c").log_likelihood == pytest.approx(log_p_LV[3, target], abs=2e-4)
    assert run.sample("the", length=6, steps=2).texts[0].startswith("the")
