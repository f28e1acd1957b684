"""The exported tokenizer files give our ids and our text, through the tokenizer class of transformers."""

import pytest

from dlmjax.data import load_tokenizer
from dlmjax.data.subword import train_sentencepiece
from dlmjax.interop.tokenizer_files import CONFIG, FILE, tokenizer_json, write_tokenizer
from dlmjax.interop.views import SDAR_MASK
from tests.data.conftest import NASTY, make_documents, shared_file

transformers = pytest.importorskip("transformers", minversion="5.2", reason="the reader (pip install dlmjax[interop])")
KINDS = ("bytes", "char27", "bpe", "unigram", "hf", "gpt2")
TEXTS = [*make_documents(60, 400, seed=3), *(text for text in NASTY if "<" not in text and "\u2581" not in text)]


@pytest.fixture(scope="module")
def tokenizers(tmp_path_factory):
    """name -> tokenizer; those that need files are trained or taken from the optional data."""
    root, made = tmp_path_factory.mktemp("tokenizers"), {}

    def get(kind):
        if kind in ("bpe", "unigram") and kind not in made:
            made[kind] = train_sentencepiece(make_documents(200, 1500), 380, root / f"{kind}.model", kind)
        elif kind == "hf" and kind not in made:
            write_tokenizer(load_tokenizer("bytes"), root, 64)
            made[kind] = load_tokenizer(f"hf:{root / FILE}")
        elif kind == "gpt2":
            return load_tokenizer(f"gpt2:{shared_file('gpt2_bpe')}")
        return made[kind] if kind in made else load_tokenizer(kind)

    return get


@pytest.mark.parametrize("mask_id", [None, SDAR_MASK], ids=["own-mask", "sdar-mask"])
@pytest.mark.parametrize("kind", KINDS)
def test_transformers_reads_texts_as_we_do(tokenizers, kind, mask_id, tmp_path):
    ours = tokenizers(kind)
    assert write_tokenizer(ours, tmp_path, 64, mask_id) == ""
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path, model_max_length=1 << 30)
    for text in TEXTS:
        ids = ours.encode(text).tolist()
        assert theirs(text).input_ids == ids, text
        assert theirs.decode(ids) == ours.decode(ids)
    mask = ours.mask_id if mask_id is None else mask_id
    assert (theirs.mask_token_id, theirs.pad_token_id, theirs.eos_token_id) == (mask, ours.pad_id, ours.eos_id)
    # The one place where they differ from training on purpose: the name of a special token is that token.
    given = theirs(f"a{theirs.mask_token}b").input_ids
    assert given == [*ours.encode("a").tolist(), mask, *ours.encode("b").tolist()]
    assert theirs.decode(given, skip_special_tokens=True).strip() == "ab"


def test_added_tokens_outside_of_the_models_vocabulary_keep_their_ids(tmp_path):
    """A tokenizer as published: the model's vocabulary, behind it tokens of text and special ones, and behind those our mask."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    made = Tokenizer(models.BPE(vocab={piece: i for i, piece in enumerate(alphabet)}, merges=[]))
    made.pre_tokenizer, made.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False), decoders.ByteLevel()
    made.add_tokens([AddedToken("~~", normalized=False)])
    made.add_special_tokens(["<|endoftext|>", "<|user|>"])
    made.save(str(tmp_path / "source.json"))
    ours = load_tokenizer(f"hf:{tmp_path / 'source.json'}")
    size = made.get_vocab_size()
    assert (ours.eos_id, ours.mask_id, ours.pad_id) == (size - 2, size, size + 1)
    (tmp_path / "out").mkdir()
    assert write_tokenizer(ours, tmp_path / "out", 64) == ""
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    assert theirs.convert_tokens_to_ids(["~~", "<|endoftext|>", "<|user|>"]) == [size - 3, size - 2, size - 1]
    for text in ("a~~b ~~", "plain text\n", " caf\u00e9 "):
        assert theirs(text).input_ids == ours.encode(text).tolist() and theirs.decode(ours.encode(text).tolist()) == text
    assert theirs("a<|mask|>").input_ids[-1] == theirs.mask_token_id == size


def test_our_own_reader_takes_the_files_back(tmp_path):
    ours = load_tokenizer("bytes")
    write_tokenizer(ours, tmp_path, 64)
    again = load_tokenizer(f"hf:{tmp_path / FILE}")
    assert (again.mask_id, again.pad_id, again.eos_id, again.vocab_size) == (256, 257, 258, 259)
    assert again.token_bytes == ours.token_bytes


def test_a_tokenizer_without_such_a_form_is_named_and_not_written(tmp_path):
    class Words(type(load_tokenizer("char27"))):
        """Reads as nothing else does."""

        def encode(self, text):
            return super().encode(text)[::-1]

    reason = write_tokenizer(Words(), tmp_path, 64)
    assert "char27" in reason and "to other ids" in reason
    assert not (tmp_path / FILE).exists() and not (tmp_path / CONFIG).exists()


def test_special_tokens_have_their_ids_in_the_description():
    description = tokenizer_json(load_tokenizer("bytes"), SDAR_MASK)
    assert {token["content"]: token["id"] for token in description["added_tokens"]} == {
        "<|mask|>": SDAR_MASK,
        "<|pad|>": 257,
        "<|endoftext|>": 258,
    }
    assert "<|mask|>" in description["model"]["vocab"] and 256 not in description["model"]["vocab"].values()
