"""`dlmjax evaluate`: suites, comparisons and what is written; the same numbers on any mesh, in any batch."""

import contextlib
import io
import json
import lzma
import pathlib
import re
import shutil

import jax
import numpy as np
import pytest

import dlmjax
from dlmjax.cli.main import main
from dlmjax.data import Corpus, load_tokenizer
from dlmjax.data.prepare import prepare
from dlmjax.data.tokenizers import save_tokenizer
from dlmjax.errors import READER_LEFT
from dlmjax.evaluation.breakdown import ByDocument
from dlmjax.evaluation.document_ends import LengthLaw, lengths_of
from dlmjax.evaluation.record import git_state, provenance
from dlmjax.evaluation.suites import SUITES
from dlmjax.evaluation.text import Cut, suite_text
from dlmjax.experiment import assemble, claim_workdir
from dlmjax.files import sealed, unsealed
from dlmjax.run import open_run
from dlmjax.training import Checkpoints
from tests.cli.test_streams import closed_pipe
from tests.models.tiny import lively
from tests.test_train import tiny_config

ARTICLES = " \n = One = \n \n A @-@ b , c . \n And so on , for more than one window of it , word by word . \n = Two = \n \n Short . \n"
SENTENCES = ["It is so .", "Why not ?", "This sentence is a good deal longer than a window of the network is ."]


def weights(experiment):
    return jax.jit(lambda: lively(experiment.init(jax.random.key(0))))()


@pytest.fixture(scope="module")
def runs(small_corpus, tmp_path_factory):
    """Two workdirs whose weights say something, without training."""
    root = tmp_path_factory.mktemp("evaluate")
    config = tiny_config(small_corpus, train__ema=0.0, model__vocab=264)
    experiment = assemble(config, Corpus.open(small_corpus).tokenizer)
    params = weights(experiment)
    for name, scale in (("a", 1.0), ("b", 1.1)):
        claim_workdir(root / name, config, experiment.tokenizer)
        with Checkpoints(root / name / "checkpoints") as checkpoints:
            scaled = jax.jit(lambda tree, scale=scale: jax.tree.map(lambda leaf: leaf * scale, tree))(params)
            checkpoints.save(3, {"params": scaled}, {"step": 3, "metric": None, "pending": []})
            checkpoints.wait()
    return root / "a", root / "b"


@pytest.fixture(scope="module")
def texts(tmp_path_factory):
    root = tmp_path_factory.mktemp("texts")
    with lzma.open(root / "wiki.raw.xz", "wt") as file:
        file.write(ARTICLES)
    (root / "sentences.txt").write_text("\n".join(SENTENCES) + "\n")
    pairs = [{"UID": u, "pairID": str(i), "field": "f", "sentence_good": "ab" * i, "sentence_bad": "ba" * i} for u in "xy" for i in (1, 4)]
    (root / "pairs.jsonl").write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
    return root


def evaluated(workdir, file, *flags):
    assert main(["evaluate", "--workdir", str(workdir), "--nodes", "2", "--json", str(file), *map(str, flags)]) == 0
    return json.loads(file.read_text())


@pytest.fixture(scope="module")
def wiki(runs, texts, tmp_path_factory):
    """A suite, evaluated with everything that can be asked for: the result, what was printed, the file of documents."""
    root, shown = tmp_path_factory.mktemp("wiki"), io.StringIO()
    flags = ["--suite", "wikitext2", "--input", texts / "wiki.raw.xz", "--draws", 2, "--breakdown", "--per-document", root / "d.npz"]
    with contextlib.redirect_stdout(shown):
        found = evaluated(runs[0], root / "r.json", *flags, "--batch", 8)
    return found, shown.getvalue(), root / "d.npz", flags[:-1]


def test_a_suite_records_its_protocol(wiki):
    """WikiText: rolling windows over articles, a perplexity per word of the file, everything needed to do it again."""
    found, shown, _, _ = wiki
    protocol, made = found["protocol"], found["made"]
    assert (protocol["suite"], protocol["window"], protocol["stride"]) == ("wikitext2", 32, 16)
    assert protocol["changed"] == {"window": 1024, "stride": 512}
    assert protocol["complete"] and protocol["lossless"] and protocol["documents"] == 2 and protocol["detokeniser"] == "wikitext"
    assert {"bos", "eos", "remainder", "packing", "units", "text_hash", "tokenizer", "split", "files"} <= set(protocol)
    assert {"git", "dlmjax", "jax", "device", "precision", "seconds", "calls_per_token", "config"} <= set(made)
    assert (made["precision"], made["calls_per_token"], found["seed"], found["step"]) == ("float32", 4, 0, 3)
    text = "\n = One =\n\n A-b, c.\n And so on, for more than one window of it, word by word.\n = Two =\n\n Short.\n"
    assert found["bytes"] == len(text) and found["tokens"] == len(text) + 2
    words = len(ARTICLES.split()) + ARTICLES.count("\n")
    assert found["words"]["words"] == words
    assert found["words"]["perplexity"] == pytest.approx(np.exp(found["nats_per_token"] * found["tokens"] / words))
    assert set(found["errors"]) == {"sequences", "masks", "levels", "levels_stderr", "levels_windows"}
    assert found["cautions"] and all(line in shown for line in found["cautions"])
    assert found["errors"]["levels_windows"] == found["windows"] and "quadrature: 2 nodes, within" in shown
    assert "not the suite's own protocol: window 32, not 1024; stride 16, not 512" in shown and "perplexity per word <=" in shown


def test_the_batch_changes_nothing(wiki, runs, tmp_path):
    one, _, documents, flags = wiki
    other = evaluated(runs[0], tmp_path / "2.json", *flags, tmp_path / "2.npz", "--batch", 24)
    # To the rounding of float32, which XLA adds in another order for another shape; it averages out over more tokens than these hundred.
    assert one["nats_per_token"] == pytest.approx(other["nats_per_token"], rel=1e-7)
    assert one["protocol"] == other["protocol"] and one["tokens"] == other["tokens"]
    for table in ("position", "frequency"):
        pairs = zip(one["breakdown"][table], other["breakdown"][table], strict=True)
        assert all(a["nats_per_token"] == pytest.approx(b["nats_per_token"], rel=1e-6) for a, b in pairs)
    with np.load(documents) as a, np.load(tmp_path / "2.npz") as b:
        np.testing.assert_allclose(a["nats"], b["nats"], rtol=1e-6)
        assert a["tokens"].sum() == one["tokens"] and a["ids"].tolist() == b["ids"].tolist()
        assert a["nats"].sum() == pytest.approx(one["nats_per_token"] * one["tokens"], rel=1e-9)


@pytest.mark.slow
@pytest.mark.parametrize("process", ["masked", *(pytest.param(p, marks=pytest.mark.nightly) for p in ("blocks(size=4)", "autoregressive"))])
def test_the_mesh_changes_nothing(small_corpus, texts, process):
    """One device and eight, two batch sizes: the bound of every document, under a stride."""
    found = []
    for devices, mesh, size in ((1, {}, 5), (8, {"data": 2, "fsdp": 2, "tensor": 2}, 8)):
        config = tiny_config(small_corpus, process__name=process)
        with config.unlocked():
            config.mesh.update(**mesh)
            config.model.update(vocab=264, kv_heads=4)
        experiment = assemble(config, load_tokenizer("bytes"), devices=jax.devices()[:devices])
        text = suite_text(SUITES["ptb"], [str(texts / "sentences.txt")], experiment.tokenizer, Cut(trained=32, stride=12), None, None)
        observer, evaluator = ByDocument(text.windows, experiment.tokenizer.byte_lengths_V), experiment.evaluator(nodes=2)
        params = jax.device_put(weights(experiment), experiment.param_shardings)
        measured = evaluator.measure(params, text.windows.batches(size), observers=[observer])
        found.append((measured.nats_W.sum(), observer.nats_D))
    for whole, nats_D in found[1:]:
        assert whole == pytest.approx(found[0][0], rel=1e-7)
        np.testing.assert_allclose(nats_D, found[0][1], rtol=1e-6)


def test_document_ends_are_known_or_counted(runs, texts, small_corpus, tmp_path, capsys):
    """Counted, the number is that of a network which knows them plus the nats of their lengths, also in a difference of runs."""
    some = ("--windows", 2000)
    known = evaluated(runs[0], tmp_path / "k.json", *some)
    counted = evaluated(runs[0], tmp_path / "c.json", *some, "--document-ends", "counted", "--against", runs[1])
    assert (known["protocol"]["document_ends"], counted["protocol"]["document_ends"]) == ("known", "paid")
    train, valid = (Corpus.open(small_corpus, split=split) for split in ("train", "valid"))
    law, lengths_D = LengthLaw.fit(lengths_of(train.document_ends())), lengths_of(valid.document_ends())
    ended = law.nats(lengths_D[np.cumsum(lengths_D) <= 2000 * 32]).sum() / known["tokens"]
    assert ended > 0 and counted["document_ends_nats_per_token"] == pytest.approx(ended, rel=1e-9)
    assert counted["nats_per_token"] == pytest.approx(known["nats_per_token"] + ended, rel=1e-9)
    assert f"{ended:.4f} are for where documents end" in capsys.readouterr().out
    assert counted["difference"]["nats_per_token"] == pytest.approx(
        counted["nats_per_token"] - evaluated(runs[1], tmp_path / "o.json", *some)["nats_per_token"] - ended, rel=1e-6
    )
    flags = ("--suite", "ptb", "--input", texts / "sentences.txt")
    assert any("was known to the network" in line for line in evaluated(runs[0], tmp_path / "s.json", *flags)["cautions"])


def test_two_runs_under_the_same_noise(runs, small_corpus, tmp_path, capsys):
    found = evaluated(runs[0], tmp_path / "d.json", "--windows", 40, "--against", runs[1])
    other = evaluated(runs[1], tmp_path / "x.json", "--windows", 40)
    difference = found["difference"]
    assert difference["nats_per_token"] == pytest.approx(found["nats_per_token"] - other["nats_per_token"], rel=1e-6)
    assert difference["stderr_nats_per_token"] < difference["stderr_unpaired_nats_per_token"]
    shown = capsys.readouterr().out
    assert (difference["windows"], difference["against"]) == (40, str(runs[1])) and "standard errors" in shown
    assert "weights moved from its by" in shown and difference["weight_drift"]["embedding.table"] > 0
    assert found["protocol"]["complete"] is False and other["protocol"]["text_hash"] == found["protocol"]["text_hash"]


def test_each_run_has_the_weights_that_were_asked_for(runs, tmp_path):
    """The first keeps no average and is read raw; the other has one, which is taken, though its raw weights are there too."""
    averaged, params = tmp_path / "averaged", open_run(str(runs[1])).params
    shutil.copytree(runs[1], averaged, ignore=shutil.ignore_patterns("checkpoints"))
    with Checkpoints(averaged / "checkpoints") as checkpoints:
        checkpoints.save(3, {"params": jax.tree.map(np.zeros_like, params), "ema": params}, {"step": 3})
    config = json.loads((averaged / "config.json").read_text())
    (averaged / "config.json").write_text(json.dumps(sealed({**unsealed(config), "train.ema": 0.5})))
    found = [evaluated(runs[0], tmp_path / "d.json", "--windows", 4, "--against", other) for other in (averaged, runs[1])]
    assert [each["difference"]["against_weights"] for each in found] == ["ema", "raw"] and found[0]["weights"] == "raw"
    assert found[0]["difference"]["nats_per_token"] == found[1]["difference"]["nats_per_token"]


def test_runs_with_other_tokenizers_are_not_subtracted(runs, tmp_path, capsys):
    shutil.copytree(runs[1], tmp_path / "char")
    save_tokenizer(load_tokenizer("char27"), tmp_path / "char" / "tokenizer")
    (tmp_path / "char" / "texts.json").unlink()  # which holds the hash of the tokenizer that the run was claimed with
    assert main(["evaluate", "--workdir", str(runs[0]), "--against", str(tmp_path / "char")]) == 2
    assert "trained with tokenizer char27, the first run with bytes" in capsys.readouterr().err


def test_pairs_have_an_accuracy(runs, texts, tmp_path, capsys):
    found = evaluated(runs[0], tmp_path / "p.json", "--suite", "blimp", "--input", texts / "pairs.jsonl", "--draws", 2, "--batch", 8)
    pairs = found["pairs"]
    assert set(pairs["groups"]) == {"x", "y"} and pairs["pairs"] == 4 and 0 <= pairs["accuracy"] <= 1
    assert pairs["stderr_noise_nats"] > 0 and found["protocol"]["task"] == "pairs" and "git" in found["made"]
    shown = capsys.readouterr().out
    assert "chance 50 %" in shown and "not the suite's own protocol: window 32, not 256" in shown


def test_another_likelihood_stands_beside_the_bound(runs, tmp_path, capsys):
    """An order, with the bound of the same windows, their paired difference, another run and the cost; the same from Python."""
    flags = ["--windows", 6, "--likelihood", "order:entropy(count=8, temperature=0.9)", "--against", runs[1], "--per-document"]
    found = evaluated(runs[0], tmp_path / "o.json", *flags, tmp_path / "d.npz")
    shown = capsys.readouterr().out
    assert (found["likelihood"], found["rule"], found["calls_per_token"]) == ("order:entropy(count=8, temperature=0.9)", "exact", 4)
    assert found["price"]["nats_per_token"] == pytest.approx(found["nelbo"]["nats_per_token"] - found["nats_per_token"])
    assert found["price"]["stderr_nats_per_token"] > 0 and found["difference"]["windows"] == 6 and found["nelbo"]["seconds"] > 0
    parallel, less = found["parallel"], "less order:entropy(count=1, temperature=0.9) (32.0 network passes per token)"
    assert parallel["calls_per_token"] == 32 and parallel["stderr_nats_per_token"] > 0 and f"price of parallel steps, {less}" in shown
    assert "NELBO less order:entropy" in shown and "cost: 4.0 network passes per token" in shown and "quadrature: 2 nodes" in shown
    with np.load(tmp_path / "d.npz") as documents:
        assert documents["nats"].sum() == pytest.approx(found["nats_per_token"] * found["tokens"], rel=1e-9)
    again = open_run(str(runs[0])).evaluate(windows=6, nodes=2, likelihood="order:entropy(count=8, temperature=0.9)")
    assert (again.result.nats_per_token, again.price.nats_per_token) == (found["nats_per_token"], found["price"]["nats_per_token"])


def test_likelihoods_of_sets_of_tokens(runs, texts, tmp_path, capsys):
    """Windows of four: over all orders, and from below. Pairs are ranked by the first; none has documents."""
    short = ["--windows", 3, "--window", 4, "--likelihood"]
    subsets, tube = (evaluated(runs[0], tmp_path / "s.json", *short, name) for name in ("subsets", "tube(orders=3)"))
    assert (subsets["rule"], subsets["calls_per_token"], tube["rule"], tube["calls_per_token"]) == ("exact", 15, "tube", 24)
    shown = capsys.readouterr().out
    assert "(the price of the bound)" in shown and "-log p, tube(orders=3) >= " in shown
    pairs = ["--suite", "blimp", "--input", texts / "pairs.jsonl", "--batch", 8, "--likelihood"]
    found = evaluated(runs[0], tmp_path / "p.json", *pairs, "order:left_to_right")
    assert (found["likelihood"], found["rule"]) == ("order:left_to_right", "exact") and found["pairs"]["stderr_noise_nats"] is None
    for flags, message in [
        ([*pairs, "tube"], "bounds from below do not rank sentences"),
        (["--likelihood", "subsets"], "at most 10 scored tokens in a window, and one has 32"),
        ([*short, "subsets", "--breakdown"], "sum over sets of tokens, not over tokens"),
        (["--likelihood", "order:confidence(top_p=0.9)"], "with top_p most texts have probability 0"),
    ]:
        assert main(["evaluate", "--workdir", str(runs[0]), *map(str, flags)]) == 2
        error = capsys.readouterr().err
        assert message in error and error.count("\n") == 1


def test_files_in_new_folders_are_all_written(runs, tmp_path):
    """Also where nobody reads what is printed, as in `dlmjax evaluate ... | true`."""
    pytest.importorskip("matplotlib")
    flags = ["--plot", tmp_path / "a" / "p.png", "--per-document", tmp_path / "b" / "d.npz", "--json", tmp_path / "c" / "r.json"]
    with closed_pipe():
        assert main([str(part) for part in ["evaluate", "--workdir", runs[0], "--nodes", 2, "--windows", 4, *flags]]) == READER_LEFT
    found = json.loads((tmp_path / "c" / "r.json").read_text())
    assert (tmp_path / "a" / "p.png").read_bytes()[:4] == b"\x89PNG" and (tmp_path / "b" / "d.npz").is_file() and found["breakdown"]


def test_a_suite_of_a_file_is_evaluated(runs, texts, tmp_path):
    """The example of docs/evaluation.md, on the flags of that page."""
    page = (pathlib.Path(dlmjax.__file__).parents[1] / "docs" / "evaluation.md").read_text(encoding="utf-8")
    (suite,) = [json.loads(block) for block in re.findall(r"```json\n(.*?)```", page, re.DOTALL)]
    file = tmp_path / "minutes.json"
    file.write_text(json.dumps(suite))
    found = evaluated(runs[0], tmp_path / "r.json", "--suite", file, "--input", texts / "sentences.txt", "--remainder", "keep")
    protocol = {**found["protocol"], **found["protocol"]["changed"], "documents": found["protocol"]["documents_are"]}
    assert {name: protocol[name] for name in suite} == suite and protocol["complete"] and found["words"]["words"] == 22


def test_flags_that_do_not_go_together(runs, texts, capsys):
    blimp = ["--suite", "blimp", "--input", texts / "pairs.jsonl"]
    for flags, message in [
        (["--suite", "wikitext2"], "give --suite and --input together"),
        (["--input", texts / "sentences.txt"], "give --suite and --input together"),
        (["--suite", "none", "--input", texts / "sentences.txt"], "choose one of text8, text8_head"),
        ([*blimp, "--breakdown"], "--breakdown conflicts with --suite blimp"),
        (["--windows", "0"], "--windows is 0"),
        (["--batch", "0"], "--batch is 0"),
        (["--batch", "-8"], "--batch is -8"),
        (["--seed", "-1"], "--seed is -1"),
        (["--seed", 2**32], "--seed is 4294967296"),
        (["--json", texts / "sentences.txt" / "r.json"], "is not a folder"),
        (["--plot", texts], "a folder; name a file"),
        (["--window", "0"], "--window is 0"),
        (["--stride", "0"], "--stride is 0"),
        (["--remainder", "tail"], "give keep or drop"),
        (["--remainder", "truncate"], "give keep or drop"),
        (["--stride", "33"], "a stride lies in 1 .. window"),
        (
            ["--suite", "ptb", "--input", texts / "sentences.txt", "--remainder", "truncate"],
            "remainder=truncate conflicts with packing",
        ),
    ]:
        assert main(["evaluate", "--workdir", str(runs[0]), *map(str, flags)]) == 2
        assert message in capsys.readouterr().err


def test_marks_are_counted_where_the_train_split_is(runs, tmp_path, capsys):
    """With the token budget that is named; a corpus of which only the held-out split is here is evaluated without marks."""
    (tmp_path / "a.txt").write_text("\n".join(f"line {number} of a text" for number in range(60)))
    corpus = tmp_path / "corpus"
    prepare([tmp_path / "a.txt"], "bytes", corpus, documents="line", valid_fraction=0.1)
    whole = evaluated(runs[0], tmp_path / "1.json", "--data", corpus)
    assert "bigram table counted on the train split" in capsys.readouterr().out
    evaluated(runs[0], tmp_path / "2.json", "--data", f"{corpus}(tokens=200)")
    assert "unigram table counted on the first 200 tokens of the train split" in capsys.readouterr().out
    for shard in corpus.glob("train-*"):
        shard.unlink()
    alone = evaluated(runs[0], tmp_path / "3.json", "--data", corpus)
    assert "bigram" not in capsys.readouterr().out and alone["nats_per_token"] == whole["nats_per_token"]


def test_what_a_number_was_made_with(tmp_path):
    made = provenance()
    assert made["devices"] == len(jax.devices()) and made["jax"] == jax.__version__ and made["backend"] == "cpu"
    assert git_state(tmp_path) is None, "a folder in no checkout has no commit"
