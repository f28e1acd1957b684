"""Learned tokenizers: SentencePiece (trained here or loaded), Hugging Face tokenizer.json and GPT-2's vocab.json + merges.txt.

Each becomes a table of byte strings (see table_tokenizer.py); how a piece becomes bytes depends on its library:
  byte-level BPE   each character of a piece is one byte in GPT-2's printable alphabet
  SentencePiece    the character U+2581 in a piece is a space, "<0x41>" is the byte 0x41
A tokenizer that changes text (lower case, Unicode normalisation, unknown tokens) is refused when it is loaded: bits per byte would not
be those of the text. For the same reason the space that some put before a text, and Unicode's NFC, are switched off.

Shapes: N tokens of a text.
"""

import functools
import io
import itertools
import json
import pathlib
import re
from collections.abc import Iterable, Iterator, Sequence
from textwrap import shorten
from types import NoneType
from typing import Any

import numpy as np
from jaxtyping import Int

from dlmjax.data.table_tokenizer import MOST_IDS, TableTokenizer
from dlmjax.errors import InputError
from dlmjax.files import parse_json, read_bounded, require_shape, write_atomically

MASK_NAMES = ("<|mask|>", "<|mdm_mask|>", "<|MASK|>", "<mask>", "[MASK]")
PAD_NAMES = ("<|pad|>", "<pad>", "[PAD]", "<|finetune_right_pad_id|>")
EOS_NAMES = ("<|endoftext|>", "<|end_of_text|>", "</s>", "<eos>")
SPACE = "\u2581"  # SentencePiece writes a space as this character
PROBE = (
    "Hello,  World!\n\n\tIt's 12,345 \u2013 na\u00efve; \u4e2d\u6587 \u2581x \U0001f600\r\n <mask> <|endoftext|> </s> [MASK] <0x41> \x00 "
    "e\u0301 \ufb01 x\u00b2 \u2026 "  # characters that NFC changes, and characters that NFKC changes
)
WORDS_KEPT = 1 << 17  # about 30 MB
_SPACE_BEFORE_WORD = re.compile(r" (?=\S)")
_BYTE_PIECE = re.compile(r"<0x([0-9A-Fa-f]{2})>")


def byte_alphabet() -> dict[str, int]:
    """GPT-2's reversible map: a printable Latin-1 character is its own byte, the other bytes are U+0100 and on."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [b for b in range(256) if b not in set(printable)]
    return {chr(b): b for b in printable} | {chr(256 + i): b for i, b in enumerate(others)}


_BYTE_OF = byte_alphabet()


def _byte_level_bytes(piece: str) -> bytes:
    return bytes(_BYTE_OF[c] for c in piece) if all(c in _BYTE_OF for c in piece) else piece.encode("utf-8")


def _space_bytes(piece: str) -> bytes:
    byte = _BYTE_PIECE.fullmatch(piece)
    return bytes([int(byte.group(1), 16)]) if byte else piece.replace(SPACE, " ").encode("utf-8")


# Text before and after an added token: some tokens remove adjacent white space, some are found only between letters.
_NEIGHBOURS = [(left, right) for left in ("", " ", "  ", "\t", "\n", "a") for right in ("", " ", " \n", "\t", "\n", "a")]


def _check_lossless(tokenizer: TableTokenizer, source: str, added: Iterable[str] = ()) -> TableTokenizer:
    """Refuses a tokenizer that changes text, counts bytes wrongly, or encodes text as a special id. added: tokens that the library searches
    for in a text before it is cut into pieces."""
    _check_added(tokenizer, source, list(added))
    ids = tokenizer.encode(PROBE)
    decoded = tokenizer.decode(ids)
    if decoded != PROBE:
        at = next((i for i, (a, b) in enumerate(zip(decoded, PROBE, strict=False)) if a != b), min(len(decoded), len(PROBE)))
        raise InputError(
            f"{source}: this tokenizer changes text ({PROBE[at : at + 12]!r} comes back as {decoded[at : at + 12]!r}), so bits per byte "
            "would be wrong; use one without normalisation and unknown tokens (byte-level BPE, or SentencePiece with byte fallback)"
        )
    specials = {tokenizer.mask_id, tokenizer.pad_id, tokenizer.eos_id} & set(ids.tolist())
    if specials:
        raise InputError(f"{source}: ordinary text produces the special ids {sorted(specials)}")
    return tokenizer


def _check_added(tokenizer: TableTokenizer, source: str, added: list[str]) -> None:
    """Tries every added token between white space and letters: tokens with lstrip or rstrip remove adjacent white space."""
    specials = np.array([tokenizer.mask_id, tokenizer.pad_id, tokenizer.eos_id])
    texts = [f"x{left}{token}{right}x" for token in added for left, right in _NEIGHBOURS]
    for number, ids in enumerate(tokenizer.encode_many(texts)):
        token, text, decoded = added[number // len(_NEIGHBOURS)], texts[number], tokenizer.decode(ids)
        if decoded != text:
            raise InputError(
                f"{source}: the added token {token!r:.60} changes the text around it ({text!r:.80} comes back as {decoded!r:.80}), so "
                "bits per byte would be wrong; switch lstrip, rstrip and normalized off for it, or use another tokenizer"
            )
        if np.isin(ids, specials).any():
            raise InputError(f"{source}: the text {text!r:.80} produces a special id")


def _special(names: tuple[str, ...], vocabulary: dict[str, int], table: list[bytes], taken: set[int]) -> int:
    """The id of the first of these names that is in the vocabulary; if none is, a new id at the end of the table."""
    found = next((vocabulary[n] for n in names if n in vocabulary and vocabulary[n] not in taken), None)
    if found is None:
        found = len(table)
        table.append(b"")
    table[found] = b""
    taken.add(found)
    return found


def _specials(vocabulary: dict[str, int], table: list[bytes]) -> dict[str, int]:
    """Special ids in the order end of document, mask, pad: for GPT-2 that is 50256 (its own), 50257 and 50258 (added)."""
    taken: set[int] = set()
    return {
        key: _special(names, vocabulary, table, taken)
        for key, names in (("eos_id", EOS_NAMES), ("mask_id", MASK_NAMES), ("pad_id", PAD_NAMES))
    }


# ---- Hugging Face tokenizers ------------------------------------------------------------------------------------------------------


class HuggingFaceTokenizer(TableTokenizer):
    """A `tokenizers.Tokenizer` with the members of `Tokenizer`; its post-processor (template of BOS and EOS) is not used."""

    def __init__(self, name: str, backend, byte_level: bool, token_bytes: list[bytes], files: dict[str, bytes], **specials: int):
        super().__init__(name, token_bytes, files=files, **specials)
        backend.encode_special_tokens = True  # "<|endoftext|>" in a text is ordinary text
        backend.no_truncation()
        backend.no_padding()
        self._backend = backend
        # U+2581 in a text would be decoded as a space; it is encoded as three byte pieces.
        self._space_ids = None if byte_level else [backend.token_to_id(f"<0x{b:02X}>") for b in SPACE.encode()]

    def _own_ids(self) -> Int[np.ndarray, "N"]:
        return np.fromiter(self._backend.get_vocab(with_added_tokens=True).values(), np.int64)

    def encode(self, text: str) -> Int[np.ndarray, "N"]:
        return self.encode_many([text])[0]

    def encode_many(self, texts: list[str]) -> list[np.ndarray]:
        if self._space_ids and any(SPACE in text for text in texts):
            return [
                _around_space(text, self._space_ids, lambda part: self._backend.encode(part, add_special_tokens=False).ids)
                for text in texts
            ]
        return [np.array(e.ids, np.int32) for e in self._backend.encode_batch_fast(texts, add_special_tokens=False)]

    def encode_at(self, text: str, edges: Sequence[int], rendered: bool = False, ordinary: Sequence[tuple[int, int]] = ()):
        """As of every tokenizer, by the positions that the library gives."""
        ids, starts, ends = [], [], []
        for at, part, backend in self._parts(text, rendered, ordinary):
            if part == SPACE and self._space_ids:
                ids += self._space_ids
                starts += [at] * len(self._space_ids)
                ends += [at + 1] * len(self._space_ids)
                continue
            found = backend.encode(part, add_special_tokens=False)
            ids += found.ids
            starts += [at + start for start, _ in found.offsets]
            ends += [at + end for _, end in found.offsets]
        return np.array(ids, np.int32), np.searchsorted(ends, edges, side="right"), np.searchsorted(starts, edges)

    def _parts(self, text: str, rendered: bool, ordinary: Sequence[tuple[int, int]]) -> Iterator[tuple[int, str, Any]]:
        """(place, part, the tokenizer of the library for it): U+2581 by itself, and in a text with `ordinary` ranges the texts of special
        tokens outside of these by themselves, as the library divides it."""
        cuts = list(re.finditer(SPACE, text)) if self._space_ids else []
        if ordinary:
            controls = re.compile("|".join(re.escape(control) for control in sorted(self.control_texts, key=len, reverse=True)))
            at = 0
            for begin, end in [*ordinary, (len(text), len(text))]:
                cuts += controls.finditer(text, at, begin)
                at = end
            cuts.sort(key=lambda cut: cut.start())
        at = 0
        for cut in cuts:
            if cut.start() > at:
                yield at, text[at : cut.start()], self._backend if ordinary or not rendered else self._rendering
            yield cut.start(), cut[0], self._rendering
            at = cut.end()
        if at < len(text):
            yield at, text[at:], self._backend if ordinary or not rendered else self._rendering

    @functools.cached_property
    def _rendering(self):
        """The library's tokenizer that takes the texts of special tokens for their ids."""
        backend = type(self._backend).from_str(self._backend.to_str())
        backend.encode_special_tokens = False
        return backend

    @functools.cached_property
    def control_texts(self) -> dict[str, int]:
        """The texts of the special tokens, with their ids."""
        return {token.content: number for number, token in self._backend.get_added_tokens_decoder().items() if token.special}


class Gpt2Tokenizer(HuggingFaceTokenizer):
    """GPT-2's BPE with a table of the words that were encoded before; several times as fast as the library alone on natural text.

    It is exact, because GPT-2's pattern " ?\\p{L}+| ?\\p{N}+| ?[^\\s\\p{L}\\p{N}]+|\\s+(?!\\S)|\\s+" begins a new unit at every space
    that is followed by a character other than white space: the text between two such spaces has the same ids wherever it occurs.
    """

    def __init__(self, *args, **specials):
        super().__init__(*args, **specials)
        self._seen: dict[str, list[int]] = {}  # text after a space -> ids of the space and the text

    def encode_many(self, texts: list[str]) -> list[np.ndarray]:
        """Looks words up in the table; the library encodes the new ones in one call."""
        parted = [_SPACE_BEFORE_WORD.split(text) for text in texts]
        if len(self._seen) > WORDS_KEPT:
            self._seen = {}
        seen = self._seen
        new = list(set().union(*(words[1:] for words in parted)) - seen.keys())
        for word, ids in zip(new, super().encode_many([" " + word for word in new]), strict=True):
            seen[word] = ids.tolist()
        results = super().encode_many([words[0] for words in parted])
        for number, (first, words) in enumerate(zip(results, parted, strict=True)):
            rest = itertools.chain.from_iterable(map(seen.__getitem__, words[1:]))
            results[number] = np.concatenate([first, np.fromiter(rest, np.int32)])
        return results


def _around_space(text: str, space_ids: list[int], encode) -> Int[np.ndarray, "N"]:
    """Encodes the parts between occurrences of U+2581 and puts that character's byte pieces between them."""
    parts = [encode(part) if part else [] for part in text.split(SPACE)]
    joined = list(parts[0])
    for part in parts[1:]:
        joined += space_ids + list(part)
    return np.array(joined, np.int32)


def _read(path: pathlib.Path) -> bytes:
    return read_bounded(path, advice="give the file of a tokenizer")


def load_gpt2(directory: pathlib.Path) -> Gpt2Tokenizer:
    """GPT-2's byte-level BPE from `vocab.json` + `merges.txt` (or OpenAI's names `encoder.json` + `vocab.bpe`) in a directory.

    50,257 ids of its own, end of document 50256 (<|endoftext|>); mask 50257 and pad 50258 are added. Radford et al. 2019.
    The `tokenizers` classes are used directly: transformers' GPT2TokenizerFast(vocab_file=, merges_file=) yields one entry.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    names = next((n for n in (("vocab.json", "merges.txt"), ("encoder.json", "vocab.bpe")) if (directory / n[0]).exists()), None)
    if names is None or not (directory / names[1]).exists():
        raise InputError(f"{directory} holds no vocab.json + merges.txt; give a Hugging Face tokenizer.json as hf:FILE")
    files = {"vocab.json": _read(directory / names[0]), "merges.txt": _read(directory / names[1])}
    try:
        vocabulary = require_shape(parse_json(files["vocab.json"]), {str: int})
        lines = files["merges.txt"].decode("utf-8").splitlines()
        merges = [tuple(line.split(" ")) for line in lines if line and not line.startswith("#version")]
        if sorted(vocabulary.values()) != list(range(len(vocabulary))) or not all(c in vocabulary for c in _BYTE_OF):
            raise ValueError("the vocabulary lacks a byte or has gaps")
        model = models.BPE(vocab=vocabulary, merges=merges, cache_capacity=1 << 17)
        backend = Tokenizer(model)
    except Exception as error:  # the library raises bare Exception subclasses of its own
        raise InputError(f"{directory} holds no readable {names[0]} + {names[1]}: {shorten(str(error), 300)}") from None
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    table = [_byte_level_bytes(piece) for piece, _ in sorted(vocabulary.items(), key=lambda item: item[1])]
    tokenizer = Gpt2Tokenizer("gpt2", backend, True, table, files, **_specials(vocabulary, table))
    return _check_lossless(tokenizer, str(directory))


def _as_written(part):
    """A normalizer, pre-tokenizer or decoder description without two steps that change text: a space before it, and NFC.

    Every Unicode text has tokens, so without NFC only decomposed characters get other ids.
    """
    if not isinstance(part, dict):
        return part
    if part.get("type") == "Metaspace":
        return part | {"prepend_scheme": "never"}
    if part.get("type") == "ByteLevel" and part.get("add_prefix_space"):
        return part | {"add_prefix_space": False}
    if part.get("type") in ("Prepend", "NFC"):
        return None
    if part.get("type") == "Sequence":
        key = "pretokenizers" if "pretokenizers" in part else "normalizers" if "normalizers" in part else "decoders"
        rest = [r for r in (_as_written(p) for p in part[key]) if r is not None]
        return part | {key: rest} if rest else None
    return part


_ADDED = {"content": str, "special": bool}


def _empty_table(backend, path: pathlib.Path) -> tuple[dict[str, int], list[bytes]]:
    """The vocabulary of a tokenizer of the library, and a table with a row per id. Raises InputError: an id is out of range."""
    vocabulary = backend.get_vocab(with_added_tokens=True)
    highest = max(vocabulary.values(), default=-1)
    if not 0 <= highest < MOST_IDS:
        raise InputError(f"{path}: its highest id is {highest}, not one of a vocabulary of at most {MOST_IDS:,}")
    return vocabulary, [b""] * (highest + 1)


def load_hf(path: pathlib.Path) -> HuggingFaceTokenizer:
    """A Hugging Face `tokenizer.json`: byte-level BPE, or SentencePiece-like with byte fallback.

    End of document, mask and pad are the first of the names above that the vocabulary has; missing ones are added at its end.
    """
    from tokenizers import Tokenizer

    path = path / "tokenizer.json" if path.is_dir() else path
    try:
        shape = {"added_tokens": [_ADDED], "decoder": (dict, NoneType), "pre_tokenizer": (dict, NoneType), "normalizer": (dict, NoneType)}
        description = require_shape(parse_json(_read(path)), shape)
        added = {token["content"]: token for token in description["added_tokens"]}
        byte_level = '"ByteLevel"' in json.dumps([description["decoder"], description["pre_tokenizer"]])
        for name in MASK_NAMES + PAD_NAMES + EOS_NAMES:
            if name in added:
                added[name]["special"] = True  # so that text never produces it
        for key in ("normalizer", "pre_tokenizer"):
            description[key] = _as_written(description[key])
        content = json.dumps(description, ensure_ascii=False, sort_keys=True).encode("utf-8")
        backend = Tokenizer.from_str(content.decode("utf-8"))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{path} is not a Hugging Face tokenizer.json ({error})") from None
    except Exception as error:  # from_str raises bare Exception
        raise InputError(f"{path}: the tokenizers library cannot read it ({error})") from None
    vocabulary, table = _empty_table(backend, path)
    for piece, i in vocabulary.items():
        if piece in added:
            table[i] = b"" if added[piece]["special"] else piece.encode("utf-8")
        else:
            table[i] = _byte_level_bytes(piece) if byte_level else _space_bytes(piece)
    if not byte_level and any(f"<0x{b:02X}>" not in vocabulary for b in range(256)):
        raise InputError(f"{path} is not byte-level and has no byte fallback, so some text has no tokens; use another tokenizer")
    specials = _specials(vocabulary, table)
    tokenizer = HuggingFaceTokenizer("hf", backend, byte_level, table, {"tokenizer.json": content}, **specials)
    return _check_lossless(tokenizer, str(path), added)


# ---- WordPiece, which cleans text -------------------------------------------------------------------------------------------------


def load_wordpiece(path: pathlib.Path) -> HuggingFaceTokenizer:
    """BERT's WordPiece from a `tokenizer.json`, which BERT's published weights require.

    It cleans text as char27 does: white space, and in the uncased kind also case and accents, are lost, and an unknown word becomes
    U+FFFD. Bits per byte are those of the cleaned text. [SEP] ends a document; [CLS] is not used.
    """
    from tokenizers import Tokenizer

    content = _read(path)
    try:
        kinds = {"type": str, "continuing_subword_prefix": str, "unk_token": str}
        description = require_shape(parse_json(content), {"model": {"type": str}, "added_tokens": [_ADDED]})
        model = description["model"]
        if model["type"] != "WordPiece":
            raise InputError(f"{path} holds a {model['type']} model, not WordPiece; give it as hf:FILE")
        require_shape(model, kinds, "model")
        backend = Tokenizer.from_str(content.decode("utf-8"))
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path} is not a Hugging Face tokenizer.json ({error})") from None
    except InputError:
        raise
    except Exception as error:  # from_str raises bare Exception
        raise InputError(f"{path}: the tokenizers library cannot read it ({error})") from None
    vocabulary, table = _empty_table(backend, path)
    if model["unk_token"] not in vocabulary:
        raise InputError(f"{path} names the unknown token {model['unk_token']!r:.60}, which is not in its vocabulary")
    special = {token["content"] for token in description["added_tokens"] if token["special"]}
    inner = model["continuing_subword_prefix"]
    for piece, i in vocabulary.items():
        if piece not in special:
            table[i] = piece.removeprefix(inner).encode("utf-8") if piece.startswith(inner) else f" {piece}".encode()
    table[vocabulary[model["unk_token"]]] = " \ufffd".encode()
    taken: set[int] = set()
    names = {"eos_id": ("[SEP]",), "mask_id": ("[MASK]",), "pad_id": ("[PAD]",)}
    specials = {key: _special(of_key, vocabulary, table, taken) for key, of_key in names.items()}
    return HuggingFaceTokenizer("wordpiece", backend, True, table, {"tokenizer.json": content}, **specials)


# ---- SentencePiece ----------------------------------------------------------------------------------------------------------------


class SentencePieceTokenizer(TableTokenizer):
    """A SentencePiece model (Kudo & Richardson 2018) with byte fallback and identity normalisation."""

    def __init__(self, model: bytes, source: str):
        import sentencepiece

        if not model:  # the library accepts it, and encodes every text as no ids
            raise InputError(f"{source} is not a SentencePiece model (it is empty)")
        try:
            processor = sentencepiece.SentencePieceProcessor(model_proto=model)
        except RuntimeError as error:
            raise InputError(f"{source} is not a SentencePiece model ({str(error).splitlines()[0]})") from None
        pieces = [processor.id_to_piece(i) for i in range(processor.get_piece_size())]
        self._space_ids = [processor.piece_to_id(f"<0x{b:02X}>") for b in SPACE.encode()]
        if not all(processor.is_byte(i) for i in self._space_ids):
            raise InputError(f"{source}: this SentencePiece model has no byte fallback, so some text has no tokens; train one with dlmjax")
        special = [processor.is_control(i) or processor.is_unknown(i) or processor.is_unused(i) for i in range(len(pieces))]
        table = [b"" if quiet else _space_bytes(piece) for piece, quiet in zip(pieces, special, strict=True)]
        control = {piece: i for i, piece in enumerate(pieces) if processor.is_control(i)}
        specials = _specials(control, table)
        super().__init__("sentencepiece", table, files={"sentencepiece.model": model}, **specials)
        self._processor = processor

    def encode(self, text: str) -> Int[np.ndarray, "N"]:
        # U+2581 in a text would be decoded as a space; it is encoded as three byte pieces.
        return _around_space(text, self._space_ids, self._processor.encode)

    def _own_ids(self) -> Int[np.ndarray, "N"]:
        return np.arange(self._processor.get_piece_size())

    @property
    def adds_prefix(self) -> bool:
        """Whether the model puts a space before every text."""
        return self._processor.normalize("a").startswith(SPACE)


# What is appended to a serialised message is merged into it: normalizer_spec (field 3) with add_dummy_prefix (its field 3) false.
_NO_DUMMY_PREFIX = b"\x1a\x02\x18\x00"


def load_sentencepiece(path: pathlib.Path) -> SentencePieceTokenizer:
    """Loads a .model file. The dummy space before a text is switched off (so that byte counts are those of the text)."""
    content = _read(path)
    tokenizer = SentencePieceTokenizer(content, str(path))
    if tokenizer.adds_prefix:
        tokenizer = SentencePieceTokenizer(content + _NO_DUMMY_PREFIX, str(path))
    return _check_lossless(tokenizer, str(path))


def _sentences(texts: Iterable[str], limit: int) -> Iterator[str]:
    for text in texts:
        for line in text.splitlines():
            for at in range(0, len(line), limit):
                yield line[at : at + limit]


def train_sentencepiece(
    texts: Iterable[str], vocab_size: int, output: pathlib.Path, model_type: str = "bpe", max_lines: int = 1_000_000
) -> SentencePieceTokenizer:
    """Trains a SentencePiece model that decodes every text unchanged, and writes it to `output` (a .model file).

    Args:
        texts: documents; their first `max_lines` lines are used (lines are cut at 2,048 characters).
        vocab_size: number of ids, with the specials and 256 byte pieces.
        output: the file of the model; written atomically, parent directories are made.
        model_type: "bpe" or "unigram".
    Raises:
        InputError: no text, an unknown type, or too little text for this vocabulary.
    """
    import sentencepiece

    if model_type not in ("bpe", "unigram"):
        raise InputError(f"model_type is {model_type!r}; give bpe or unigram")
    lines = itertools.islice(_sentences(texts, 2048), max_lines)
    first = next(lines, None)
    if first is None:
        raise InputError("--tokenizer train-... requires text, and the inputs hold none; give inputs with text")
    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=itertools.chain([first], lines),
            model_writer=model,
            vocab_size=vocab_size,
            model_type=model_type,
            normalization_rule_name="identity",
            byte_fallback=True,
            add_dummy_prefix=False,
            remove_extra_whitespaces=False,
            allow_whitespace_only_pieces=True,
            character_coverage=0.9999,
            required_chars=SPACE,  # required even if the text has no spaces: no byte piece replaces it
            max_sentence_length=1 << 16,
            train_extremely_large_corpus=True,
            unk_id=0,
            eos_id=1,
            eos_piece="<eos>",
            pad_id=2,
            pad_piece="<pad>",
            bos_id=-1,
            control_symbols=["<mask>"],
            minloglevel=2,
        )
    except RuntimeError as error:
        raise InputError(f"SentencePiece cannot train {vocab_size} ids on this text: {' '.join(str(error).split())[-200:]}") from None
    tokenizer = _check_lossless(SentencePieceTokenizer(model.getvalue(), str(output)), str(output))
    write_atomically(output, model.getvalue())
    return tokenizer
