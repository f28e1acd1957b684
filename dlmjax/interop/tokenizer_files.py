"""A tokenizer of ours as the `tokenizer.json` and `tokenizer_config.json` that transformers loads, with `mask_token` defined.

    bytes           byte-level BPE without merges: a character of GPT-2's printable alphabet for each byte
    char27          text8's cleaning as normalizers, BPE without merges over 27 characters
    gpt2, hf        the library's own description, special tokens added
    sentencepiece   Unigram, or BPE whose merges are read off the scores, both with byte fallback

A file is only written when it gives the ids of our tokenizer on texts that contain everything but the names of special tokens. Two
differences remain, and the run card names them: transformers turns the name of a special token in a text ("<|mask|>") into that token,
where ours reads ordinary characters; and U+2581 in a text is a space to SentencePiece's alphabet, where ours keeps it.
"""

import json
import pathlib
from typing import Any

from dlmjax.data import Tokenizer
from dlmjax.data.subword import EOS_NAMES, MASK_NAMES, PAD_NAMES, SPACE, byte_alphabet
from dlmjax.data.tokenizers import ALPHABET, TableTokenizer
from dlmjax.errors import InputError

FILE = "tokenizer.json"
CONFIG = "tokenizer_config.json"
DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
PROBES = (
    "The import statement  finds a module;\n\n\tit's loaded, then bound to 3 names (1,234 of them) \u2013 na\u00efve caf\u00e9.\r\n",
    " \u4e2d\u6587 \U0001f600 e\u0301 \x00\x7f {}[]<> ABC xyz  ",
    "a",
    "  \n",
)


class NoTokenizerFile(InputError):
    """The tokenizer cannot be written as a tokenizer.json; the message says why."""


def special_names(tokenizer: Tokenizer) -> dict[str, str]:
    """Names of the special tokens in files: {"mask": ..., "pad": ..., "eos": ...}; those of the vocabulary where it has them."""
    ids = {"mask": tokenizer.mask_id, "pad": tokenizer.pad_id, "eos": tokenizer.eos_id}
    named = {index: piece for piece, index in pieces_of(tokenizer).items()}
    fallback = {"mask": MASK_NAMES[0], "pad": PAD_NAMES[0], "eos": EOS_NAMES[0]}
    return {key: named.get(index, fallback[key]) for key, index in ids.items()}


def tokenizer_json(tokenizer: Tokenizer, mask_id: int | None = None) -> dict:
    """The description of the `tokenizers` library.

    mask_id: another id for the mask token than the tokenizer's (SDAR's is fixed).
    Raises NoTokenizerFile where the library cannot express the tokenizer, or would encode a text to other ids.
    """
    if not isinstance(tokenizer, TableTokenizer) or tokenizer.name not in _KINDS:
        raise NoTokenizerFile(f"tokenizer {tokenizer.name} cannot be expressed by the tokenizers library")
    parts = _KINDS[tokenizer.name](tokenizer)
    names = special_names(tokenizer)
    ids = {"mask": tokenizer.mask_id if mask_id is None else mask_id, "pad": tokenizer.pad_id, "eos": tokenizer.eos_id}
    ours = {names[key]: index for key, index in ids.items()}
    added = [token for token in parts.pop("added_tokens", []) if token["content"] not in ours]
    added += [_added(name, index) for name, index in ours.items()]
    empty = dict.fromkeys(("truncation", "padding", "normalizer", "pre_tokenizer", "post_processor", "decoder"))
    description = {"version": "1.0", **empty, **parts, "added_tokens": sorted(added, key=lambda token: token["id"])}
    _with_ids(description["model"], {token["content"]: token["id"] for token in description["added_tokens"]})
    _check(tokenizer, description)
    return description


def tokenizer_config(tokenizer: Tokenizer, length: int) -> dict:
    """The tokenizer_config.json that `AutoTokenizer` reads; BOS is the end of document, as in training."""
    names = special_names(tokenizer)
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "mask_token": names["mask"],
        "pad_token": names["pad"],
        "eos_token": names["eos"],
        "bos_token": names["eos"],
        "model_max_length": length,
        "clean_up_tokenization_spaces": False,
    }


def write_tokenizer(tokenizer: Tokenizer, directory: pathlib.Path, length: int, mask_id: int | None = None) -> str:
    """Writes both files. Returns "" or, where the tokenizer has no such form, why nothing was written."""
    try:
        description = tokenizer_json(tokenizer, mask_id)
    except NoTokenizerFile as reason:
        return str(reason)
    for name, content in ((FILE, description), (CONFIG, tokenizer_config(tokenizer, length))):
        (directory / name).write_text(json.dumps(content, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
    return ""


def _added(name: str, index: int) -> dict:
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    return {"id": index, "content": name, **flags, "special": True}


def _with_ids(model: dict, ids: dict[str, int]) -> None:
    """Added tokens in the model's own vocabulary: an added token that is not there gets the next free id, whatever its entry holds."""
    if isinstance(model["vocab"], dict):
        model["vocab"] = {piece: index for piece, index in model["vocab"].items() if index not in ids.values()} | ids
        return
    size = max(len(model["vocab"]), max(ids.values()) + 1)
    pieces = [*model["vocab"], *([f"<gap {i}>", -1e9] for i in range(len(model["vocab"]), size))]
    for name, index in ids.items():
        at = next((i for i, (piece, _) in enumerate(pieces) if piece == name and i != index), None)
        if at is not None:
            pieces[at] = [f"<gap {at}>", -1e9]
        pieces[index] = [name, pieces[index][1]]
    model["vocab"] = pieces


def _check(tokenizer: TableTokenizer, description: dict) -> None:
    """Raises NoTokenizerFile unless the description encodes and decodes as the tokenizer does."""
    from tokenizers import Tokenizer as Backend

    try:
        backend = Backend.from_str(json.dumps(description))
    except Exception as error:  # the library raises bare Exception
        raise NoTokenizerFile(f"tokenizer {tokenizer.name}: the tokenizers library refuses its description ({error})") from None
    for text in PROBES:
        ours = tokenizer.encode(text).tolist()
        theirs = backend.encode(text, add_special_tokens=False).ids
        if ours != theirs or backend.decode(ours) != tokenizer.decode(ours):
            raise NoTokenizerFile(f"tokenizer {tokenizer.name}: the tokenizers library would encode {text[:24]!r} to other ids")
    for token in description["added_tokens"]:
        if backend.token_to_id(token["content"]) != token["id"]:
            raise NoTokenizerFile(f"tokenizer {tokenizer.name}: {token['content']} cannot have the id {token['id']}")


# ---- one function for each kind: model, pre-tokenizer, normalizer, decoder --------------------------------------------------------


def _bpe(vocab: dict[str, int], merges: list[list[str]], **options) -> dict:
    plain = {"dropout": None, "unk_token": None, "continuing_subword_prefix": None, "end_of_word_suffix": None, "fuse_unk": False}
    return {"type": "BPE", **plain, "byte_fallback": False, "ignore_merges": False, **options, "vocab": vocab, "merges": merges}


def _byte_level(use_regex: bool) -> dict:
    return {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": use_regex}


def _replace(pattern: dict, content: str) -> dict:
    return {"type": "Replace", "pattern": pattern, "content": content}


def _of_bytes(tokenizer: TableTokenizer) -> dict:
    return {
        "model": _bpe({character: byte for character, byte in byte_alphabet().items()}, []),
        "pre_tokenizer": _byte_level(False),
        "decoder": _byte_level(False),
    }


def _of_char27(tokenizer: TableTokenizer) -> dict:
    words = [_replace({"String": str(digit)}, f" {word} ") for digit, word in enumerate(DIGITS)]
    to_space = _replace({"Regex": "[^A-Za-z0-9]+"}, " ")
    # Before lowercasing: some letters outside of ASCII have a lowercase letter in ASCII.
    steps = [to_space, {"type": "Lowercase"}, *words, _replace({"Regex": " +"}, " ")]
    return {
        "model": _bpe({chr(character): index for index, character in enumerate(ALPHABET)}, []),
        "normalizer": {"type": "Sequence", "normalizers": steps},
        "decoder": {"type": "Fuse"},
    }


def _of_gpt2(tokenizer: TableTokenizer) -> dict:
    lines = tokenizer.files["merges.txt"].decode("utf-8").splitlines()
    merges = [line.split(" ") for line in lines if line and not line.startswith("#version")]
    return {
        "model": _bpe(json.loads(tokenizer.files["vocab.json"]), merges),
        "pre_tokenizer": _byte_level(True),
        "decoder": _byte_level(True),
    }


def _of_hf(tokenizer: TableTokenizer) -> dict:
    description = json.loads(tokenizer.files[FILE])
    # The tokens that it adds around a text (BOS, EOS) were not used in training.
    copied = ("model", "normalizer", "pre_tokenizer", "decoder", "added_tokens")
    return {key: description[key] for key in copied}


def _of_sentencepiece(tokenizer: TableTokenizer) -> dict:
    processor = _sentencepiece(tokenizer)
    ids = range(processor.get_piece_size())
    pieces = [(processor.id_to_piece(i), processor.get_score(i)) for i in ids]
    unknown = processor.unk_id()
    others = (processor.is_unknown, processor.is_control, processor.is_unused, processor.is_byte)
    words = [i for i in ids if not any(kind(i) for kind in others)]
    # The scores of BPE are ranks, those of a unigram model logarithms of probabilities.
    if any(pieces[i][1] != round(pieces[i][1]) for i in words):
        model = {"type": "Unigram", "unk_id": unknown, "vocab": [list(piece) for piece in pieces], "byte_fallback": True}
    else:
        vocab = {piece: index for index, (piece, _) in enumerate(pieces)}
        options = {"unk_token": pieces[unknown][0], "fuse_unk": True, "byte_fallback": True}
        model = _bpe(vocab, _merges([pieces[i][0] for i in words], dict(pieces)), **options)
    back = [_replace({"String": SPACE}, " "), {"type": "ByteFallback"}, {"type": "Fuse"}]
    return {"model": model, "normalizer": _replace({"String": " "}, SPACE), "decoder": {"type": "Sequence", "decoders": back}}


def _sentencepiece(tokenizer: TableTokenizer) -> Any:
    import sentencepiece

    return sentencepiece.SentencePieceProcessor(model_proto=tokenizer.files["sentencepiece.model"])


def _merges(pieces: list[str], scores: dict[str, float]) -> list[list[str]]:
    """SentencePiece joins the neighbours whose union scores best: merges in falling order of the union's score."""
    known, merges = set(pieces), []
    for piece in pieces:
        splits = [(piece[:cut], piece[cut:]) for cut in range(1, len(piece))]
        merges += [[left, right] for left, right in splits if left in known and right in known]
    return sorted(merges, key=lambda pair: -scores[pair[0] + pair[1]])


_KINDS = {"bytes": _of_bytes, "char27": _of_char27, "gpt2": _of_gpt2, "hf": _of_hf, "sentencepiece": _of_sentencepiece}


def pieces_of(tokenizer: Tokenizer) -> dict[str, int]:
    """The pieces of a vocabulary that the tokenizer's files name."""
    if not isinstance(tokenizer, TableTokenizer):
        return {}
    if tokenizer.name == "gpt2":
        return json.loads(tokenizer.files["vocab.json"])
    if tokenizer.name in ("hf", "wordpiece"):
        description = json.loads(tokenizer.files[FILE])
        vocab = description["model"]["vocab"]
        own = vocab if isinstance(vocab, dict) else {piece: index for index, (piece, _) in enumerate(vocab)}
        return {**own, **{token["content"]: token["id"] for token in description["added_tokens"]}}
    if tokenizer.name == "sentencepiece":
        processor = _sentencepiece(tokenizer)
        return {processor.id_to_piece(i): i for i in range(processor.get_piece_size())}
    return {}
