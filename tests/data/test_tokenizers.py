"""Every tokenizer gives text back unchanged, counts its bytes exactly, and never makes a special id out of text."""

import itertools
import json
import lzma
import os
import pathlib
import random
import re
import subprocess
import sys

import numpy as np
import pytest

from dlmjax.data import subword
from dlmjax.data.subword import HuggingFaceTokenizer, load_sentencepiece, train_sentencepiece
from dlmjax.data.tokenizers import Tokenizer, clean27, load_tokenizer, save_tokenizer
from dlmjax.errors import InputError
from dlmjax.interop.tokenizer_files import tokenizer_json
from tests.data.conftest import NASTY, make_documents, shared_file


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> dict[str, str]:
    """Small learned tokenizers on disk: kind -> spec."""
    from tokenizers import Tokenizer as Backend
    from tokenizers import decoders, models, pre_tokenizers, trainers

    directory = tmp_path_factory.mktemp("tokenizers")
    texts = make_documents(100, 800)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    backend = Backend(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=400, initial_alphabet=alphabet, special_tokens=["<|endoftext|>", "<pad>"], show_progress=False)
    backend.train_from_iterator(texts, trainer)
    backend.add_tokens(["<tool>"])  # an added token that is not special: ordinary text with an id of its own
    backend.save(str(directory / "tokenizer.json"))

    backend = Backend(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.train_from_iterator(texts, trainers.BpeTrainer(vocab_size=350, initial_alphabet=alphabet, show_progress=False))
    backend.model.save(str(directory))
    vocabulary = json.loads((directory / "vocab.json").read_text())
    (directory / "vocab.json").write_text(json.dumps(vocabulary | {"<|endoftext|>": len(vocabulary)}))
    train_sentencepiece(texts, 400, directory / "small.model")
    return {
        "bytes": "bytes",
        "hf": f"hf:{directory}/tokenizer.json",
        "gpt2": f"gpt2:{directory}",
        "sentencepiece": f"sentencepiece:{directory}/small.model",
    }


LOSSLESS = ["bytes", "hf", "gpt2", "sentencepiece"]


@pytest.mark.parametrize("kind", LOSSLESS)
def test_text_comes_back_and_bytes_are_counted(files, kind):
    tokenizer = load_tokenizer(files[kind])
    assert isinstance(tokenizer, Tokenizer)
    specials = {tokenizer.mask_id, tokenizer.pad_id, tokenizer.bos_id, tokenizer.eos_id}
    assert len({tokenizer.mask_id, tokenizer.pad_id, tokenizer.eos_id}) == 3 and max(specials) < tokenizer.vocab_size
    assert tokenizer.byte_lengths_V.shape == (tokenizer.vocab_size,)
    assert not tokenizer.byte_lengths_V[sorted(specials)].any()
    every_character = "".join(chr(c) for c in itertools.chain(range(0xD800), range(0xE000, 0x11000)))
    texts = [*NASTY, *make_documents(20, 400, seed=1), every_character, ""]
    for text, ids in zip(texts, tokenizer.encode_many(texts), strict=True):
        assert tokenizer.decode(ids) == text
        assert int(tokenizer.byte_lengths_V[ids].sum()) == len(text.encode("utf-8"))
        assert not specials & set(ids.tolist())
        np.testing.assert_array_equal(ids, tokenizer.encode(text))
    assert tokenizer.decode([tokenizer.mask_id, *tokenizer.encode("ab").tolist(), tokenizer.eos_id]) == "ab"


@pytest.mark.parametrize("kind", ["char27", *LOSSLESS])
def test_saved_tokenizer_is_the_same_one(files, kind, tmp_path):
    tokenizer = load_tokenizer(files.get(kind, kind))
    save_tokenizer(tokenizer, tmp_path / "tokenizer")
    again = load_tokenizer(f"saved:{tmp_path / 'tokenizer'}")
    assert again.hash == tokenizer.hash and again.name == tokenizer.name
    np.testing.assert_array_equal(again.encode(NASTY[0]), tokenizer.encode(NASTY[0]))
    assert [again.mask_id, again.pad_id, again.eos_id] == [tokenizer.mask_id, tokenizer.pad_id, tokenizer.eos_id]


def test_hash_is_the_same_in_another_process_and_differs_between_tokenizers(files):
    specs = ["char27", *files.values()]
    code = f"from dlmjax.data.tokenizers import load_tokenizer\nfor s in {specs!r}: print(load_tokenizer(s).hash)"
    env = os.environ | {"PYTHONHASHSEED": "7", "PYTHONPATH": str(pathlib.Path(__file__).parents[2])}
    hashes = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True).stdout.split()
    assert hashes == [load_tokenizer(spec).hash for spec in specs]
    assert len(set(hashes)) == len(specs)


def test_saved_tokenizer_that_was_changed_is_refused(files, tmp_path):
    save_tokenizer(load_tokenizer(files["gpt2"]), tmp_path)
    merges = (tmp_path / "merges.txt").read_text().splitlines()
    (tmp_path / "merges.txt").write_text("\n".join(merges[:-1]) + "\n")
    with pytest.raises(InputError, match="by their hash"):
        load_tokenizer(f"saved:{tmp_path}")
    (tmp_path / "dlmjax_tokenizer.json").write_text("{")
    with pytest.raises(InputError, match="restore the folder from a copy"):
        load_tokenizer(f"saved:{tmp_path}")


# ---- char27 -----------------------------------------------------------------------------------------------------------------------


def slow_clean27(text: str) -> str:
    """Mahoney's rule as his Perl script has it: lower case, digits to words between spaces, squeeze everything else."""
    text = "".join(c.lower() if "A" <= c <= "Z" else c for c in text)
    for digit, word in enumerate(["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]):
        text = text.replace(str(digit), f" {word} ")
    return re.sub("[^a-z]+", " ", text)


@pytest.mark.parametrize("text", [*NASTY, "In 1984, B2B: 7up", "\u0660\u00b2\u212a", "", "zZ09aA"])
def test_char27_cleans_as_text8_was_cleaned(text):
    tokenizer = load_tokenizer("char27")
    assert clean27(text).decode() == slow_clean27(text)
    assert clean27(clean27(text).decode()) == clean27(text)
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == slow_clean27(text)
    assert int(tokenizer.byte_lengths_V[ids].sum()) == len(ids)
    assert ids.max(initial=0) < 27


def test_char27_ids_are_space_then_the_alphabet():
    assert load_tokenizer("char27").encode(" az").tolist() == [0, 1, 26]


def test_char27_of_the_novels_is_novels27():
    with lzma.open(shared_file("novels/test.jsonl.xz"), "rt", encoding="utf-8", newline="") as file:
        books = [json.loads(line)["text"] for line in file]
    expected = lzma.decompress(shared_file("novels27/test.txt.xz").read_bytes())
    assert b" ".join(b" ".join(clean27(book).split()) for book in books) == b" ".join(expected.split())


# ---- learned tokenizers -----------------------------------------------------------------------------------------------------------


def test_gpt2_ids_are_the_published_ones():
    tokenizer = load_tokenizer(f"gpt2:{shared_file('gpt2_bpe/vocab.json').parent}")
    assert tokenizer.encode("Hello world").tolist() == [15496, 995]
    assert (tokenizer.eos_id, tokenizer.mask_id, tokenizer.pad_id, tokenizer.vocab_size) == (50256, 50257, 50258, 50259)
    assert 50256 not in tokenizer.encode("<|endoftext|>")


def test_the_word_table_of_gpt2_changes_nothing(files, monkeypatch):
    """Against the library itself, on text with every kind of white space, with a table that is full and one that is empty."""
    tokenizer = load_tokenizer(files["gpt2"])
    rng = random.Random(0)
    atoms = [
        " ",
        " ",
        " ",
        "\n",
        "\t",
        "\r\n",
        "\u00a0",
        "\u2003",
        "\u3000",
        "\x1c",
        "\x85",
        "the",
        "The",
        "1",
        "23",
        "'s",
        "'",
        ",",
        "\u4e2d",
        "\u00e9",
    ]
    texts = ["".join(rng.choices(atoms, k=rng.randrange(40))) for _ in range(3000)] + [*NASTY, *make_documents(50, 2000, 8)]
    expected = [tokenizer._backend.encode(text, add_special_tokens=False).ids for text in texts]
    for kept in (1 << 17, 0):
        monkeypatch.setattr(subword, "WORDS_KEPT", kept)
        for at in range(0, len(texts), 100):
            for ids, ids_expected in zip(tokenizer.encode_many(texts[at : at + 100]), expected[at : at + 100], strict=True):
                assert ids.tolist() == ids_expected


def test_added_special_ids_stand_behind_the_vocabulary(files):
    tokenizer = load_tokenizer(files["hf"])
    vocabulary = json.loads(pathlib.Path(files["hf"][3:]).read_text())["model"]["vocab"]
    assert (tokenizer.eos_id, tokenizer.pad_id) == (vocabulary["<|endoftext|>"], vocabulary["<pad>"])
    assert tokenizer.mask_id == tokenizer.vocab_size - 1 == len(vocabulary) + 1  # behind <tool>
    ids = tokenizer.encode("a<tool>b")
    assert len(ids) == 3 and tokenizer.byte_lengths_V[ids[1]] == len("<tool>")


def test_sentencepiece_like_tokenizer_json(tmp_path):
    """Byte fallback and a prefixed space, as Llama's tokenizer.json: the prefix is dropped, U+2581 in text survives."""
    from tokenizers import Tokenizer as Backend
    from tokenizers import decoders, models, normalizers

    pieces = ["<unk>", "</s>", *(f"<0x{b:02X}>" for b in range(256)), "\u2581", "a", "b", "\u2581a"]
    model = models.BPE({p: i for i, p in enumerate(pieces)}, [("\u2581", "a")], unk_token="<unk>", byte_fallback=True, fuse_unk=True)
    backend = Backend(model)
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")])
    backend.decoder = decoders.Sequence(
        [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    backend.add_special_tokens(["</s>", "<unk>"])
    backend.save(str(tmp_path / "tokenizer.json"))
    tokenizer = load_tokenizer(f"hf:{tmp_path}")
    assert isinstance(tokenizer, HuggingFaceTokenizer)
    for text in [*NASTY, "a a b"]:
        assert tokenizer.decode(tokenizer.encode(text)) == text
        assert int(tokenizer.byte_lengths_V[tokenizer.encode(text)].sum()) == len(text.encode())
    assert tokenizer.encode("a a").tolist() == [259, 261] and tokenizer.eos_id == 1
    # In a rendered text the first "</s>" is said to be ordinary, the second stands for its id.
    text = "a</s> a\u2581b</s> b"
    ids, first_E, last_E = tokenizer.encode_at(text, [1, 5, 9, 13], rendered=True, ordinary=[(1, 5)])
    assert (ids == 1).sum() == 1 and tokenizer.decode(ids) == "a</s> a\u2581b b"
    assert first_E.tolist() == last_E.tolist() == [1, 5, 10, 11] and ids[10] == 1
    np.testing.assert_array_equal(ids[:5], tokenizer.encode("a</s>"))


def test_tokenizer_that_changes_text_is_refused(tmp_path):
    from tokenizers import Tokenizer as Backend
    from tokenizers import decoders, models, normalizers, pre_tokenizers

    pieces = ["[UNK]", "[PAD]", "[MASK]", "hello", "world"]
    backend = Backend(models.WordPiece({p: i for i, p in enumerate(pieces)}, unk_token="[UNK]"))
    backend.normalizer = normalizers.BertNormalizer()
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.decoder = decoders.WordPiece()
    backend.save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(InputError, match="is not byte-level and has no byte fallback"):
        load_tokenizer(f"hf:{tmp_path / 'tokenizer.json'}")
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Backend(models.BPE({c: i for i, c in enumerate(alphabet)}, []))
    backend.normalizer = normalizers.Lowercase()
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    backend.decoder = decoders.ByteLevel()
    backend.save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(InputError, match=r"changes text \('Hello.*' comes back as 'hello"):
        load_tokenizer(f"hf:{tmp_path / 'tokenizer.json'}")


SHAPES = [{}, {"lstrip": True}, {"rstrip": True}, {"lstrip": True, "rstrip": True}, {"single_word": True}, {"normalized": True}]


@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: "+".join(shape) or "plain")
@pytest.mark.parametrize("special", [False, True])
def test_an_added_token_that_swallows_what_stands_beside_it_is_refused(files, tmp_path, shape, special):
    """Whatever its kind: all texts that hold it come back and are counted, or the tokenizer is refused by the token's name."""
    description = json.loads(pathlib.Path(files["hf"].removeprefix("hf:")).read_text(encoding="utf-8"))
    added = description["added_tokens"]
    for content in ("<one>", "<two>"):  # the second of two: all are tried
        token = {"content": content, "single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": special}
        added.append(token | {"id": 1 + max(token["id"] for token in added)} | (shape if content == "<two>" else {}))
    (tmp_path / "tokenizer.json").write_text(json.dumps(description), encoding="utf-8")
    if {"lstrip", "rstrip"} & shape.keys() and not special:
        with pytest.raises(InputError, match="the added token '<two>' changes the text around it"):
            load_tokenizer(f"hf:{tmp_path}")
        return
    tokenizer = load_tokenizer(f"hf:{tmp_path}")
    for text in ("a <two> b", "<two>\n\n  <one> <two>", "a<two>b <two>\tc", "a\u00a0<two>\u3000b"):
        ids = tokenizer.encode(text)
        assert tokenizer.decode(ids) == text and int(tokenizer.byte_lengths_V[ids].sum()) == len(text.encode())


BROKEN_JSON = {
    "deep": "[" * 50_000,
    "a list": "[]",
    "no tokens": '{"added_tokens": 3}',
    "tokens of another kind": '{"added_tokens": [3], "decoder": null, "pre_tokenizer": null, "normalizer": null}',
    "a long integer": '{"added_tokens": [], "model": 1' + "0" * 500 + "}",
    "nothing": "",
}


@pytest.mark.parametrize("kind", BROKEN_JSON)
@pytest.mark.parametrize("reader", ["hf", "wordpiece", "gpt2", "saved"])
def test_files_of_another_shape_are_refused_in_one_line(tmp_path, reader, kind):
    for name in ("tokenizer.json", "vocab.json", "merges.txt", "dlmjax_tokenizer.json"):
        (tmp_path / name).write_text(BROKEN_JSON[kind])
    with pytest.raises(InputError) as refused:
        load_tokenizer(f"{reader}:{tmp_path}" + ("/tokenizer.json" if reader == "wordpiece" else ""))
    assert str(tmp_path) in str(refused.value) and "\n" not in str(refused.value) and len(str(refused.value)) < 500


@pytest.mark.parametrize(
    "changed",
    [{"vocab": {"a": 2**31}}, {"vocab": {"a": -1}}, {"vocab": "x"}, {"vocab": {}}, {"continuing_subword_prefix": 3}, {"unk_token": "?"}],
)
@pytest.mark.parametrize("reader", ["hf", "wordpiece"])
def test_a_model_of_another_shape_is_refused_in_one_line(files, tmp_path, reader, changed):
    description = json.loads(pathlib.Path(files["hf"].removeprefix("hf:")).read_text(encoding="utf-8"))
    if reader == "wordpiece":
        vocabulary = {piece: i for i, piece in enumerate(("[UNK]", "[SEP]", "[MASK]", "[PAD]", "a"))}
        words = {"unk_token": "[UNK]", "continuing_subword_prefix": "##", "max_input_chars_per_word": 9}
        description |= {"model": {"type": "WordPiece", "vocab": vocabulary, **words}, "added_tokens": []}
    elif "unk_token" in changed:
        pytest.skip("a byte-level model may name any unknown token, since it never needs one")
    description["model"] |= changed
    (tmp_path / "tokenizer.json").write_text(json.dumps(description))
    with pytest.raises(InputError) as refused:
        load_tokenizer(f"{reader}:{tmp_path / 'tokenizer.json'}")
    assert "\n" not in str(refused.value)


@pytest.fixture
def normalized(files, tmp_path):
    """A byte-level tokenizer.json with a normalizer: (name, within a sequence) -> spec."""

    def write(name: str, within: bool) -> str:
        part, description = {"type": name}, json.loads(pathlib.Path(files["hf"].removeprefix("hf:")).read_text(encoding="utf-8"))
        description["normalizer"] = {"type": "Sequence", "normalizers": [part]} if within else part
        description["added_tokens"] = [token for token in description["added_tokens"] if token["special"]]
        (tmp_path / "normalized.json").write_text(json.dumps(description), encoding="utf-8")
        return f"hf:{tmp_path / 'normalized.json'}"

    return write


@pytest.mark.parametrize("within", [False, True])
def test_nfc_of_a_byte_level_tokenizer_is_left_out(files, normalized, within):
    """As Qwen's has it: decomposed text comes back as it was, other text has the ids that it had; so does what is written for export."""
    tokenizer = load_tokenizer(normalized("NFC", within))
    for text in [*NASTY, "cafe\u0301 \u1100\u1161"]:
        assert tokenizer.decode(tokenizer.encode(text)) == text
    assert tokenizer.encode("caf\u00e9").tolist() == load_tokenizer(files["hf"]).encode("caf\u00e9").tolist()
    assert tokenizer_json(tokenizer)["normalizer"] is None


@pytest.mark.parametrize("name", ["NFD", "NFKC", "NFKD"])
def test_other_normal_forms_are_refused(normalized, name):
    with pytest.raises(InputError, match="changes text"):
        load_tokenizer(normalized(name, False))


def test_wordpiece_cleans_text_and_says_what_its_ids_stand_for(tmp_path):
    """Cleaned text comes back as it is but for an unknown word; names of special tokens in a text are ordinary characters."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers

    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "the", "un", "##aff", "##able", ".", "[", "]", "mask"]
    model = Tokenizer(models.WordPiece({piece: i for i, piece in enumerate(pieces)}, unk_token="[UNK]"))
    model.normalizer, model.pre_tokenizer = normalizers.BertNormalizer(lowercase=True), pre_tokenizers.BertPreTokenizer()
    model.add_special_tokens(pieces[:5])
    model.save(str(tmp_path / "tokenizer.json"))
    tokenizer = load_tokenizer(f"wordpiece:{tmp_path / 'tokenizer.json'}")
    assert (tokenizer.mask_id, tokenizer.pad_id, tokenizer.eos_id, tokenizer.vocab_size) == (4, 0, 3, 13)
    ids = tokenizer.encode("The  Unaffable [MASK].")
    assert [pieces[i] for i in ids] == ["the", "un", "##aff", "##able", "[", "mask", "]", "."]
    cleaned = tokenizer.decode(ids)
    assert cleaned == " the unaffable [ mask ] ." and tokenizer.byte_lengths_V[ids].sum() == len(cleaned)
    assert tokenizer.encode(cleaned).tolist() == ids.tolist()
    assert tokenizer.decode(tokenizer.encode("the xyz")) == " the \ufffd"
    save_tokenizer(tokenizer, tmp_path / "saved")
    assert load_tokenizer(f"saved:{tmp_path / 'saved'}").hash == tokenizer.hash
    with pytest.raises(InputError, match="not WordPiece"):
        (tmp_path / "bpe.json").write_text((tmp_path / "tokenizer.json").read_text().replace("WordPiece", "BPE"))
        load_tokenizer(f"wordpiece:{tmp_path / 'bpe.json'}")


def test_sentencepiece_dummy_prefix_is_switched_off(tmp_path):
    """A model as SentencePiece itself trains it by default, but for byte fallback and identity normalisation."""
    import sentencepiece

    with (tmp_path / "prefix.model").open("wb") as model:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(make_documents(60, 500)),
            model_writer=model,
            vocab_size=310,
            model_type="bpe",
            normalization_rule_name="identity",
            byte_fallback=True,
            remove_extra_whitespaces=False,
            minloglevel=2,
        )
    stock = sentencepiece.SentencePieceProcessor(str(tmp_path / "prefix.model"))
    assert stock.encode_as_pieces("tree")[0].startswith("\u2581")
    tokenizer = load_sentencepiece(tmp_path / "prefix.model")
    assert tokenizer.byte_lengths_V[tokenizer.encode("tree")].sum() == 4
    assert tokenizer.decode(tokenizer.encode(" a tree")) == " a tree"


@pytest.mark.parametrize("model_type", ["bpe", "unigram"])
def test_training_sentencepiece_twice_gives_the_same_model(tmp_path, model_type):
    texts = make_documents(60, 500)
    one = train_sentencepiece(texts, 310, tmp_path / "deep" / "one.model", model_type)
    two = train_sentencepiece(iter(texts), 310, tmp_path / "two.model", model_type)
    assert one.hash == two.hash
    assert one.vocab_size == 310
    assert len(one.encode(texts[3])) < len(texts[3].encode())
    assert sorted(p.name for p in tmp_path.iterdir()) == ["deep", "two.model"]


@pytest.mark.parametrize("model_type", ["bpe", "unigram"])
@pytest.mark.parametrize("spaces", ["", "\t", "\u3000", " ", "\u2581"])
def test_a_model_is_trained_losslessly_on_any_kind_of_text(tmp_path, model_type, spaces):
    """Chinese has no spaces, some tables have tabs only: a plain space must have a piece all the same."""
    rng = random.Random(3)
    letters = "".join(chr(0x4E00 + i) for i in range(40)) if spaces != " " else "abcdefgh"
    texts = [spaces.join("".join(rng.choices(letters, k=rng.randint(1, 4))) for _ in range(40)) for _ in range(60)]
    tokenizer = train_sentencepiece(texts, 302, tmp_path / "x.model", model_type)
    for text in [*NASTY, *texts[:3], " a  b ", "\u2581 \u2581"]:
        ids = tokenizer.encode(text)
        assert tokenizer.decode(ids) == text and int(tokenizer.byte_lengths_V[ids].sum()) == len(text.encode())


def test_the_tokenizer_of_a_corpus_or_a_run_is_named_by_its_folder(files, tmp_path):
    tokenizer = load_tokenizer(files["hf"])
    save_tokenizer(tokenizer, tmp_path / "corpus" / "tokenizer")
    for folder in ("corpus", "corpus/tokenizer"):
        assert load_tokenizer(f"saved:{tmp_path / folder}").hash == tokenizer.hash
    for folder, said in ((".", "is not a prepared corpus, nor the workdir of a run"), ("none", "does not exist")):
        with pytest.raises(InputError, match=said):
            load_tokenizer(f"saved:{tmp_path / folder}")


def test_bad_tokenizers_say_what_is_wrong(tmp_path):
    (tmp_path / "vocab.json").write_text('{"a": 0}')
    (tmp_path / "bad.model").write_bytes(b"no model")
    (tmp_path / "tokenizer.json").write_text('{"no": 1}')
    cases = {
        "gpt3": "unknown tokenizer 'gpt3'; give one of: bytes, char27, ",
        "bytes:x": "unknown tokenizer",
        "gpt2:" + str(tmp_path): "no vocab.json \\+ merges.txt",
        "gpt2:/nowhere": "/nowhere does not exist",
        "hf:" + str(tmp_path): "not a Hugging Face tokenizer.json",
        "sentencepiece:" + str(tmp_path / "bad.model"): "not a SentencePiece model",
    }
    for spec, message in cases.items():
        with pytest.raises(InputError, match=message):
            load_tokenizer(spec)
    # the vocabulary of one entry that another library silently makes of a wrong call
    (tmp_path / "merges.txt").write_text("#version: 0.2\n")
    with pytest.raises(InputError, match="lacks a byte"):
        load_tokenizer(f"gpt2:{tmp_path}")
    with pytest.raises(InputError, match="requires text, and the inputs hold none"):
        train_sentencepiece([], 300, tmp_path / "x.model")
    with pytest.raises(InputError, match="cannot train 100000 ids"):
        train_sentencepiece(["too little text"], 100000, tmp_path / "x.model")
    with pytest.raises(InputError, match="ids run from 0 to 300"):
        load_tokenizer("bytes").decode([0, 300])
