"""Scorers: an enumerated law scored by itself, windows, other tokenizers, and a Hugging Face model token by token."""

import math

import numpy as np
import pytest

from dlmjax.data import load_tokenizer
from dlmjax.errors import InputError
from dlmjax.quality.generated import make_texts, measure
from dlmjax.quality.hf_scorer import open_scorer
from dlmjax.quality.scorers import RunScorer, Sample, Window, make_sample, windows_of
from dlmjax.sampling import SampleSettings, suppressed_ids
from tests.quality.conftest import random_run

CHAR27 = load_tokenizer("char27")


@pytest.fixture(scope="module")
def run():
    """A law of texts that nobody chose."""
    return random_run(8, "char27", 2.5, process__name="autoregressive", model__depth=1)


@pytest.fixture(scope="module")
def scorer(run):
    return RunScorer(run, CHAR27)


PAIRS = [(a, b) for a in (*range(27), CHAR27.eos_id) for b in (*range(27), CHAR27.eos_id)]


@pytest.fixture(scope="module")
def law(scorer):
    """nats of every text of two tokens, ends of document included."""
    return scorer.score([make_sample(CHAR27, np.array(pair)) for pair in PAIRS]).nats_N


def test_the_probabilities_of_all_texts_add_up(law):
    assert np.exp(-law).sum() == pytest.approx(1, abs=1e-5)
    assert 1 < np.sum(np.exp(-law) * law) / 2 < 3, "neither uniform (3.3) nor one text, or the tests below would say little"


def test_a_law_that_scores_its_own_samples_finds_its_entropy(run, scorer, law):
    """Generative perplexity = exp(entropy per token) of the enumerated law, within 4 of its own standard errors."""
    entropy = float(np.sum(np.exp(-law) * law)) / 2
    made = make_texts(run, SampleSettings(suppressed_ids=suppressed_ids(CHAR27, CHAR27.vocab_size)), count=512, length=2, batch=256)
    row, _ = measure(made.samples, scorer)
    assert row["scored_tokens"] == 1024 and row["stderr_nats_per_token"] < 0.1
    assert abs(row["nats_per_token"] - entropy) < 4 * row["stderr_nats_per_token"]
    assert row["perplexity"] == pytest.approx(math.exp(row["nats_per_token"]))
    assert row["stderr_perplexity"] == pytest.approx(row["perplexity"] * row["stderr_nats_per_token"])
    per_byte = sum(scorer.score(made.samples).nats_N) / math.log(2) / sum(sample.bytes for sample in made.samples)
    assert row["bits_per_byte"] == pytest.approx(per_byte)


def test_documents_are_scored_apart(scorer):
    """Behind an end of document a text has the nats that it has alone."""
    first, second = np.array([3, 1, 20, CHAR27.eos_id]), np.array([4, 15, 7])
    together = scorer.score([make_sample(CHAR27, np.concatenate([first, second]))])
    alone = scorer.score([make_sample(CHAR27, first), make_sample(CHAR27, second)])
    assert together.nats_N[0] == pytest.approx(alone.nats_N.sum(), rel=1e-5)
    assert together.tokens_N[0] == 7 and alone.tokens_N.tolist() == [4, 3]


def test_another_tokenizer_scores_the_text(run, scorer):
    """Bytes that read "cat": the text is what counts."""
    bytes_ = load_tokenizer("bytes")
    sample = make_sample(bytes_, bytes_.encode("cat"))
    found = RunScorer(run, bytes_).score([sample])
    expected = scorer.score([make_sample(CHAR27, CHAR27.encode("cat"))])
    assert found.nats_N[0] == pytest.approx(expected.nats_N[0]) and found.tokens_N[0] == 3
    assert (RunScorer(run, bytes_).record["tokens"], scorer.record["tokens"]) == ("the text encoded anew", "as made")


@pytest.mark.parametrize("first", [0, 1])
@pytest.mark.parametrize("length", [0, 1, 2, 7, 8, 9, 12, 13, 40])
def test_windows_count_every_token_once_with_half_a_context(length, first):
    windows = windows_of(length, 8, first)
    counted = [i for window in windows for i in range(window.scored, window.end)]
    assert counted == list(range(first, length))
    assert all(window.end - window.begin <= 8 and window.scored - window.begin >= 4 for window in windows[1:])
    assert not windows or windows[0] == Window(0, min(8, length), first)


def test_a_long_text_is_scored_in_windows(scorer):
    """The second window reads from the middle of the first: its tokens are those of the text from there on, given half a context."""
    ids = np.random.default_rng(0).integers(0, 27, 12)
    whole = scorer.score([make_sample(CHAR27, ids)]).nats_N[0]
    head, tail, known = (scorer.score([make_sample(CHAR27, part)]).nats_N[0] for part in (ids[:8], ids[4:], ids[4:8]))
    assert whole == pytest.approx(head + tail - known, rel=1e-5)


def test_features_are_of_the_last_token(scorer):
    """They change with the last token, and a text alone has those it has beside others."""
    ids = [np.array([1, 2, 3]), np.array([1, 2, 4]), np.array([9, 2, 3]), np.arange(12)]
    together = scorer.score([make_sample(CHAR27, part) for part in ids], features=True).features_ND
    assert together.shape == (4, 16)
    for number, part in enumerate(ids):
        alone = scorer.score([make_sample(CHAR27, part)], features=True).features_ND[0]
        np.testing.assert_allclose(alone, together[number], rtol=1e-4, atol=1e-5)
    assert np.abs(together[0] - together[1]).max() > 0.1 < np.abs(together[0] - together[2]).max()


def test_only_causal_runs_judge(masked_run):
    with pytest.raises(InputError, match="process masked, but a scorer must be autoregressive"):
        RunScorer(masked_run, CHAR27)
    with pytest.raises(InputError, match="not both"):
        open_scorer(CHAR27, "a", "b")


# --- Hugging Face -----------------------------------------------------------------------------------------------------------------


def save_hf(directory, bos):
    """A GPT-2 with random weights, 16 positions, and a byte-level tokenizer whose beginning of text has this name (None: it has none)."""
    pytest.importorskip("torch").manual_seed(0)
    transformers = pytest.importorskip("transformers")
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    words = {char: i for i, char in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))} | {"<end>": 256, "<begin>": 257}
    tokenizer = Tokenizer(models.BPE(vocab=words, merges=[]))
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    special = {"eos_token": "<end>"} | ({"bos_token": bos} if bos else {})
    transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special).save_pretrained(directory)
    config = transformers.GPT2Config(vocab_size=258, n_positions=16, n_embd=16, n_layer=2, n_head=2, initializer_range=0.5)
    transformers.GPT2LMHeadModel(config).eval().save_pretrained(directory)
    return directory


@pytest.mark.parametrize("bos", ["<end>", None])
def test_a_hugging_face_model_scores_as_torch_does_token_by_token(tmp_path, bos):
    torch = pytest.importorskip("torch")
    from dlmjax.quality.hf_scorer import HfScorer

    judge = HfScorer(str(save_hf(tmp_path / "gpt2", bos)))
    texts = ("hello world", "a", "né, twice the context of it!!", "")
    samples = [Sample(np.zeros(0), (text,), len(text.encode())) for text in texts]
    samples.append(Sample(np.zeros(0), ("two", "parts"), 8))
    found = judge.score(samples, features=True)
    for number, ids in enumerate(judge.tokenizer(text)["input_ids"] for text in ("hello world", "a")):
        nats = 0.0
        for i in range(0 if bos else 1, len(ids)):
            before = torch.tensor([([256] if bos else []) + ids[:i]])
            nats -= float(torch.log_softmax(judge.model(before).logits[0, -1], dim=-1)[ids[i]].detach())
        assert found.nats_N[number] == pytest.approx(nats, rel=1e-5, abs=1e-6)
    assert found.tokens_N.tolist() == [n if bos else max(n - 1, 0) for n in (11, 1, 30, 0, 9)]
    # A byte a token here: nobody pays for the byte of a token that is not scored.
    assert found.bytes_N.tolist() == [n if bos else max(n - 1, 0) for n in (11, 1, 30, 0, 8)]
    assert found.features_ND.shape == (5, 16) and not found.features_ND[3].any()
    last = judge.model(torch.tensor([([256] if bos else []) + judge.tokenizer("hello world")["input_ids"]]), output_hidden_states=True)
    np.testing.assert_allclose(found.features_ND[0], last.hidden_states[-1][0, -1].detach().numpy(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("bos", ["<end>", "<begin>", None])
def test_a_beginning_of_text_stands_only_where_a_document_begins(tmp_path, bos):
    """Long texts, one and several documents, against plain torch on the same windows of the true tokens; the record says the context."""
    torch = pytest.importorskip("torch")
    from dlmjax.quality.hf_scorer import HfScorer

    judge = HfScorer(str(save_hf(tmp_path / "gpt2", bos)))
    assert judge.context == judge.record["context"] == 16
    end, begin = 256, {"<end>": 256, "<begin>": 257, None: None}[bos]
    for documents in (("of twenty-three letters",), ("a document of its own", "and one more", "b")):
        stream, given = [], []
        for number, document in enumerate(documents):
            stream += [end] if number else []
            if begin is not None and not (number and begin == end):
                given.append(len(stream))
                stream.append(begin)
            stream += list(judge.tokenizer(document)["input_ids"])
        nats, count = 0.0, 0
        for i in range(1, len(stream)):
            # Windows of 16 that overlap by half: [0, 16), [8, 24), [16, 32)...
            at = 0 if i < 16 else (i // 8 - 1) * 8
            if i not in given:
                row = torch.tensor([stream[at:i]])
                nats -= float(torch.log_softmax(judge.model(row).logits[0, -1], dim=-1)[stream[i]].detach())
                count += 1
        found = judge.score([Sample(np.zeros(0), documents, sum(map(len, documents)))])
        assert found.tokens_N.tolist() == [count] and found.nats_N[0] == pytest.approx(nats, rel=1e-5)


def test_what_is_no_causal_model_is_refused(tmp_path):
    pytest.importorskip("transformers")
    from dlmjax.quality.hf_scorer import HfScorer

    with pytest.raises(InputError, match="gpt2/config.json cannot be read .No such file .*nothing is downloaded"):
        HfScorer("gpt2")
    (tmp_path / "config.json").write_text('{"model_type": ')
    with pytest.raises(InputError, match="config.json is not valid JSON.*line 1"):
        HfScorer(str(tmp_path))
    # Mamba-2's own: a value that is not a JSON number is left to the model.
    (tmp_path / "config.json").write_text('{"model_type": "mamba2", "time_step_limit": [0.0, Infinity], "is_causal": false}')
    with pytest.raises(InputError, match="must be a causal language model"):
        HfScorer(str(tmp_path))
    (tmp_path / "config.json").write_text('{"model_type": "qwen3", "is_causal": false}')
    with pytest.raises(InputError, match="must be a causal language model"):
        HfScorer(str(tmp_path))
    (tmp_path / "config.json").write_text('{"model_type": "gpt2"}')
    with pytest.raises(InputError, match="cannot load") as refused:
        HfScorer(str(tmp_path))
    assert "\n" not in str(refused.value)
