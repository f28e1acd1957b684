"""Vectors of texts and outlier statistics: by hand on the network itself, and the same whatever stands beside a text."""

import dataclasses
import json
import shutil

import jax.numpy as jnp
import numpy as np
import pytest

from dlmjax.cli.main import main
from dlmjax.data import Corpus, manifest
from dlmjax.errors import InputError
from dlmjax.experiment import held_out_of
from dlmjax.interop.views import encoder_files
from dlmjax.quality.activations import TENSORS, activation_statistics, outliers
from dlmjax.quality.hidden import embed_texts
from dlmjax.run import open_run
from tests.cli.test_main import refused
from tests.quality.conftest import random_run


@pytest.mark.parametrize("which", ["masked", pytest.param("causal", marks=pytest.mark.slow)])
def test_a_vector_is_the_mean_state_of_its_tokens(which, request):
    run = request.getfixturevalue(f"{which}_run")
    text, room = "a text that is a little longer than a window of this run", 32 - (which == "causal")
    vectors_ND, tokens_N = embed_texts(run, ["other", text, ""], batch=2)
    assert vectors_ND.shape == (3, 16) and tokens_N.tolist() == [5, len(text), 0] and not vectors_ND[2].any()
    states = []
    for start in range(0, len(text), room):
        ids = run.experiment.tokenizer.encode(text[start : start + room])[None]
        if which == "causal":
            ids = np.concatenate([[[run.experiment.tokenizer.bos_id]], ids], axis=1)
        ids, ones = jnp.asarray(ids, jnp.int32), jnp.ones(ids.shape, jnp.int32)
        denoiser = run.experiment.unpartitioned.bind(run.params, ones, jnp.cumsum(ones, axis=1) - 1, run.experiment.process.attention)
        states += [*np.asarray(denoiser.hidden(ids, jnp.zeros(ids.shape)))[0][int(which == "causal") :]]
    np.testing.assert_allclose(vectors_ND[1], np.mean(states, axis=0), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(embed_texts(run, [text], batch=1)[0][0], vectors_ND[1], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "changes",
    [
        {"process__name": "blocks(size=4)"},
        {"process__name": "diffusion_lm(dim=4)", "model__time_input": "prefix"},
    ],
    ids=lambda changes: changes["process__name"],
)
def test_runs_of_other_processes_are_read_too(changes):
    """Two streams in training, vectors in place of tokens, a position in front for the level: text is read clean all the same."""
    run = random_run(16, model__depth=1, **changes)
    one, two, again = embed_texts(run, ["abcdefgh", "abcdefgx", "abcdefgh"], batch=3)[0]
    assert np.abs(one - two).max() > 1e-4 and (one == again).all()
    rows = activation_statistics(run, [run.experiment.tokenizer.encode("abcdefgh")], batch=1)
    assert [row["place"] for row in rows] == list(TENSORS) and all(row["largest"] > 0 for row in rows)


def test_the_command_writes_vectors_line_by_line(masked_workdir, tmp_path, capsys):
    (tmp_path / "t.txt").write_text("one line\n\nanother\n", encoding="utf-8")
    work = ["embed", "--workdir", str(masked_workdir), "--input", str(tmp_path / "t.txt"), "--output"]
    assert main([*work, str(tmp_path / "v.npz")]) == 0
    with np.load(tmp_path / "v.npz") as found:
        assert found["embeddings"].shape == (3, 16) and found["embeddings"].dtype == np.float32 and found["tokens"].tolist() == [8, 0, 7]
    # What Unicode calls line boundaries, but a file of lines does not.
    (tmp_path / "t.txt").write_text("one\u2028still one\x0c\nlast", encoding="utf-8")
    assert main([*work, str(tmp_path / "folder" / "v.npz")]) == 0
    with np.load(tmp_path / "folder" / "v.npz") as found:
        assert found["tokens"].tolist() == [16, 4]
    capsys.readouterr()
    assert "must end with .npz" in refused(capsys, *work, tmp_path / "v.npy")


def test_what_sentence_transformers_reads():
    files = {name: json.loads(text) for name, text in encoder_files(32, 128).items()}
    assert [module["path"] for module in files["modules.json"]] == ["", "1_Pooling"]
    pooling = files["1_Pooling/config.json"]
    assert pooling["word_embedding_dimension"] == 32
    assert [name for name, on in pooling.items() if on is True] == ["pooling_mode_mean_tokens"]


def test_outliers_by_hand():
    values_RC = np.array([[1.0, -1.0, 1.0], [-1.0, 9.0, -1.0]])
    found = outliers(values_RC)
    assert (found["largest"], found["median"], found["ratio"], found["channel"]) == (9.0, 1.0, 9.0, 1)
    centred = values_RC - values_RC.mean()
    assert found["kurtosis"] == pytest.approx((centred**4).mean() / (centred**2).mean() ** 2)
    normal = outliers(np.random.default_rng(0).normal(size=(400, 500)))
    assert normal["kurtosis"] == pytest.approx(3, abs=0.05) and np.isnan(outliers(np.ones((2, 2)))["kurtosis"])


def test_a_channel_that_sticks_out_is_found(masked_run):
    """A weight made large shows in the layer and the channel where it is, and nowhere before."""
    run = masked_run
    texts = [run.experiment.tokenizer.encode("some held-out text")] * 3
    before = {(row["layer"], row["place"]): row for row in activation_statistics(run, texts, batch=2)}
    assert set(before) == {(layer, place) for layer in (0, 1) for place in TENSORS}
    layers = run.params["layers"]
    down = {"kernel": layers["down"]["kernel"].at[1, :, 7].multiply(1e4)}
    loud = dataclasses.replace(run, params=run.params | {"layers": layers | {"down": down}})
    after = {(row["layer"], row["place"]): row for row in activation_statistics(loud, texts, batch=2)}
    assert after[1, "stream"]["channel"] == 7 and after[1, "stream"]["ratio"] > 10 * before[1, "stream"]["ratio"]
    assert after[0, "stream"] == before[0, "stream"] and after[1, "value"] == before[1, "value"]


def test_the_statistics_of_a_corpus_are_written(masked_workdir, tmp_path, capsys):
    work = ["activations", "--workdir", str(masked_workdir), "--windows", "2"]
    assert main([*work, "--json", str(tmp_path / "a.json")]) == 0
    report = json.loads((tmp_path / "a.json").read_text())
    assert report["windows"] == 2 and report["tokens"] == 64 and len(report["rows"]) == 5
    assert "| 0 | query |" in capsys.readouterr().out
    assert "none" in refused(capsys, *work, "--data", tmp_path / "none")


def test_a_damaged_corpus_of_the_run_is_refused_and_an_absent_one_is_not(masked_workdir, small_corpus, tmp_path):
    """Only that nothing is there, or that a whole corpus lacks the split, leaves figures without held-out text."""
    run = open_run(str(masked_workdir))
    for what, split, words in (
        ("whole", "valid", ""),
        ("whole", "none", "no split"),
        ("gone", "valid", "holds no prepared corpus"),
        ("emptied", "valid", None),
        ("broken manifest", "valid", None),
        ("short shard", "valid", None),
    ):
        corpus = tmp_path / what / "corpus"
        if what != "gone" and not corpus.exists():
            shutil.copytree(small_corpus, corpus)
        if what == "emptied":
            (corpus / manifest.FILE).unlink()
        elif what == "broken manifest":
            (corpus / manifest.FILE).write_text("{")
        elif what == "short shard":
            shard = corpus / Corpus.open(corpus, "valid").shards[0].file
            shard.write_bytes(shard.read_bytes()[:-1])
        run.experiment.config.data.paths = (str(corpus),)
        if words is None:
            with pytest.raises(InputError, match="corpus"):
                held_out_of(run, None, split)
        else:
            found, why_not = held_out_of(run, None, split)
            assert (found is None) == bool(words) and words in why_not
