"""Windows over the text of an evaluation (a prepared corpus or the files of a suite), with the protocol that a result records."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Int, UInt8

from dlmjax import checks
from dlmjax.data.corpus import Corpus
from dlmjax.data.roles import HIDDEN, SCORED, carries_loss, is_filled, is_message_start, use_of
from dlmjax.data.supervised import Tail, with_tail
from dlmjax.data.tokenizers import Tokenizer
from dlmjax.errors import InputError
from dlmjax.evaluation.documents import Document, Pair, encode_documents, fingerprint, read_documents, read_pairs
from dlmjax.evaluation.suites import Suite
from dlmjax.evaluation.windows import Windows, cut_windows


@dataclasses.dataclass(frozen=True)
class Cut:
    """Settings of windows. window, stride: tokens; None = those of the protocol.  trained: tokens of a row in training; the default window
    is no longer.  multiple: windows are multiples of it (blocks).  limit: number of windows, from the first on.
    tail: what follows an answer of supervised data; None: nothing.
    """

    trained: int
    window: int | None = None
    stride: int | None = None
    remainder: str | None = None
    multiple: int = 1
    limit: int | None = None
    tail: Tail | None = None

    def sizes(self, window: int, step: int) -> tuple[int, int]:
        """(window, step) for a protocol with these values: a window longer than the trained length is cut to it, and the step keeps its
        share of the window.

        Raises InputError for a window or stride below 1."""
        for name, value in (("window", self.window), ("stride", self.stride)):
            if value is not None and value < 1:
                raise InputError(f"--{name} is {value}; give at least 1")
        chosen = min(window, self.trained) if self.window is None else self.window
        return chosen, max(step * chosen // window, 1) if self.stride is None else self.stride


@dataclasses.dataclass(frozen=True)
class Text:
    """The text to score. ids: ids of the documents.  words: number of words, None where not counted or not all of the text is scored.
    roles_T: of the tokens of the windows, where the text is supervised data.  ends_hidden: whether no row shows by its length where its
    text ends.
    """

    windows: Windows
    ids: list[str]
    words: int | None
    split: str
    protocol: dict[str, Any]
    roles_T: UInt8[np.ndarray, "T"] | None = None
    ends_hidden: bool = False


def corpus_text(corpus: Corpus, cut: Cut, copies: bool = False) -> Text:
    """A split of a prepared corpus: its documents one after another, each with its EOS, in windows as in training. Of supervised data each
    document has its own window.

    copies: for a network that reads the whole row: each answer of a document in a copy of its own, which ends with it.

    Raises InputError: an empty split; sizes or a remainder that conflict with a stream.
    """
    if corpus.has_roles:
        return _supervised_text(corpus, cut, copies)
    window, step = cut.sizes(cut.trained, cut.trained)
    wanted = corpus.num_tokens if cut.limit is None else min(corpus.num_tokens, window + (cut.limit - 1) * step)
    if wanted < 1:
        raise InputError(f"the split {corpus.split} of {corpus.directory} holds no tokens; an evaluation requires at least one")
    tokens_T = corpus.read(0, wanted)
    ends_D = _ends_within(corpus, wanted)
    windows, protocol = _stream(tokens_T, ends_D, corpus.tokenizer, cut, "a prepared corpus")
    protocol |= {"corpus": str(corpus.directory), "split": corpus.split, "complete": windows.complete and wanted == corpus.num_tokens}
    return Text(windows, [str(number) for number in range(len(ends_D))], None, corpus.split, protocol)


def _ends_within(corpus: Corpus, wanted: int) -> Int[np.ndarray, "D"]:
    """Offsets after the ends of the documents of the first `wanted` tokens, where the last one may be cut off."""
    ends = []
    for ends_D in corpus.document_ends():
        ends.append(ends_D[: int(np.searchsorted(ends_D, wanted))])
        if len(ends_D) and ends_D[-1] >= wanted:
            break
    return np.append(np.concatenate(ends), wanted)


def _supervised_text(corpus: Corpus, cut: Cut, copies: bool) -> Text:
    """The documents of supervised data that have answers, each in its own windows."""
    window, step = cut.sizes(cut.trained, cut.trained)
    limit, tokens, roles, ids, whole = cut.limit or corpus.num_tokens, [], [], [], True
    begin = 0
    for number, end in enumerate(end for ends_D in corpus.document_ends() for end in ends_D.tolist()):
        if len(ids) >= limit:
            whole = False
            break
        tokens_L, roles_L = corpus.read(begin, end - begin), corpus.read_roles(begin, end - begin)
        begin, shown_L = end, use_of(roles_L) != HIDDEN
        of_document = tokens_L[shown_L], roles_L[shown_L]
        for answer, (tokens_L, roles_L) in enumerate(_answers(*of_document) if copies else [of_document]):
            scored_N, first = np.flatnonzero(carries_loss(roles_L)), 0
            if len(scored_N) and scored_N[-1] + 1 - scored_N[0] <= window:
                first = max(int(scored_N[-1]) + 1 - window, 0)  # a prompt that is too long loses its start
            size = {"length": window, "block": cut.multiple, "number": len(ids)}
            tokens_L, roles_L = with_tail(tokens_L[first:], roles_L[first:], cut.tail, corpus.tokenizer, **size)
            tokens.append(tokens_L)
            roles.append(roles_L)
            ids.append(f"{number}.{answer}" if copies else str(number))
    if not any(carries_loss(roles_L).any() for roles_L in roles):
        raise InputError(f"the split {corpus.split} of {corpus.directory} holds no tokens to score; an evaluation requires at least one")
    tokens_T, roles_T, ends_D = np.concatenate(tokens), np.concatenate(roles), np.cumsum([len(part) for part in tokens])
    windows = cut_windows(
        tokens_T,
        ends_D,
        window=window,
        step=step,
        packing="alone",
        pad_id=corpus.tokenizer.pad_id,
        scorable_T=carries_loss(roles_T),
        multiple=cut.multiple,
    ).first(cut.limit)
    windows = dataclasses.replace(windows, tail_T=None if cut.tail is None else is_filled(roles_T))
    hidden = cut.tail is not None and cut.tail.hides_end and all(len(part) == window for part in tokens)
    protocol = {"suite": None, "bos": False, "eos": True, "packing": "alone", "window": window, "stride": step, "remainder": "keep"}
    protocol |= {
        "detokeniser": "none",
        "documents": len(ends_D),
        "answers_alone": copies,
        "tail": cut.tail is not None,
        **_of(corpus.tokenizer, tokens_T),
    }
    protocol |= {"corpus": str(corpus.directory), "split": corpus.split, "complete": windows.complete and whole}
    return Text(windows, ids, None, corpus.split, protocol, roles_T, hidden)


def _answers(tokens_L: Int[np.ndarray, "L"], roles_L: UInt8[np.ndarray, "L"]) -> list[tuple[np.ndarray, np.ndarray]]:
    """A copy of a document for each message that has scored tokens: what came before is given, what follows is not there."""
    scored_L, message_L = carries_loss(roles_L), np.cumsum(is_message_start(roles_L))
    found = []
    for message in np.unique(message_L[scored_L & (use_of(roles_L) == SCORED)]):
        count = int(np.searchsorted(message_L, message, side="right"))
        context_N = scored_L[:count] & (message_L[:count] < message)
        found.append((tokens_L[:count], np.where(context_N, roles_L[:count] & ~np.uint8(3), roles_L[:count])))
    return found


def documents_text(texts: Sequence[str], tokenizer: Tokenizer, cut: Cut) -> Text:
    """Texts, each a document: in windows as `corpus_text` cuts those of a corpus, so that both give the same numbers.

    Raises InputError: what is not Unicode text; sizes or a remainder that conflict with a stream.
    """
    for number, text in enumerate(texts):
        checks.text(f"text {number}", text)
    encoded = encode_documents([Document(str(number), text) for number, text in enumerate(texts)], tokenizer, bos=False, eos=True)
    windows, protocol = _stream(encoded.tokens_T, encoded.ends_D, tokenizer, cut, "texts")
    protocol |= {"corpus": None, "split": "texts", "complete": windows.complete, "lossless": encoded.lossless}
    return Text(windows, [str(number) for number in range(len(texts))], None, "texts", protocol)


def _stream(
    tokens_T: Int[np.ndarray, "T"], ends_D: Int[np.ndarray, "D"], tokenizer: Tokenizer, cut: Cut, of: str
) -> tuple[Windows, dict[str, Any]]:
    """(windows over documents one after another, the protocol as applied)."""
    remainder, (window, step) = cut.remainder or "keep", cut.sizes(cut.trained, cut.trained)
    if remainder not in ("keep", "drop"):
        # The others keep one window of each stretch; here all documents are one stretch.
        raise InputError(f"--remainder {remainder} conflicts with {of}, whose documents are one stream; give keep or drop")
    windows = cut_windows(
        tokens_T, ends_D, window=window, step=step, remainder=remainder, pad_id=tokenizer.pad_id, multiple=cut.multiple
    ).first(cut.limit)
    protocol = {"suite": None, "bos": False, "eos": True, "packing": "stream", "window": window, "stride": step, "remainder": remainder}
    return windows, {**protocol, "detokeniser": "none", "documents": len(ends_D), **_of(tokenizer, tokens_T)}


def suite_text(suite: Suite, files: Sequence[str], tokenizer: Tokenizer, cut: Cut, split: str | None, documents: int | None) -> Text:
    """The documents of a suite in local files. Raises InputError as `documents.read_documents`."""
    found = read_documents(suite, files, split, documents)
    windows, protocol = _cut(suite, found, tokenizer, cut)
    protocol |= {"split": split or suite.split, "files": list(files), "documents_spread": documents}
    counted = [document.words for document in found if document.words is not None]
    words = sum(counted) if len(counted) == len(found) and protocol["complete"] and protocol["lossless"] else None
    return Text(windows, [document.id for document in found], words, split or suite.split, protocol)


def pair_texts(suite: Suite, files: Sequence[str], tokenizer: Tokenizer, cut: Cut, pairs: int | None) -> tuple[Text, Text, list[Pair]]:
    """Both sides of minimal pairs. Window w of each is a sentence of pair w: equal numbers give equal times and masks.

    Raises:
      InputError: a sentence longer than the window.
    """
    found, sides = read_pairs(suite, files, pairs), []
    for side in ("good", "bad"):
        documents = [Document(pair.id, pair.good if side == "good" else pair.bad) for pair in found]
        windows, protocol = _cut(suite, documents, tokenizer, dataclasses.replace(cut, stride=None, limit=None))
        if len(windows) != len(found):
            raise InputError(f"a sentence of {', '.join(files)} is longer than the window, {protocol['window']} tokens; raise --window")
        protocol |= {"files": list(files), "pairs_spread": pairs}
        sides.append(Text(windows, [pair.id for pair in found], None, suite.split, protocol))
    return sides[0], sides[1], found


def _cut(suite: Suite, documents: list[Document], tokenizer: Tokenizer, cut: Cut) -> tuple[Windows, dict[str, Any]]:
    """(windows over the documents of a suite, the protocol as applied)."""
    encoded = encode_documents(documents, tokenizer, suite.bos, suite.eos)
    if suite.packing == "stream" and not suite.eos and len(documents) > 1:
        raise InputError(f"suite {suite.name} has no end of document (eos), and --input has {len(documents)} documents; give one file")
    window, step = cut.sizes(suite.window, suite.step)
    applied = dataclasses.replace(suite, window=window, stride=step, remainder=cut.remainder or suite.remainder)
    windows = cut_windows(
        encoded.tokens_T,
        encoded.ends_D,
        window=window,
        step=step,
        pad_id=tokenizer.pad_id,
        packing=suite.packing,
        remainder=applied.remainder,
        scorable_T=encoded.scorable_T,
        multiple=cut.multiple,
    ).first(cut.limit)
    now, published = applied.protocol(), suite.protocol()
    changed = {name: published[name] for name in ("window", "stride", "remainder") if now[name] != published[name]}
    protocol = {**now, "suite": suite.name, "changed": changed, "documents": len(documents)}
    protocol |= {"documents_are": suite.documents, "complete": windows.complete, "lossless": encoded.lossless}
    return windows, protocol | _of(tokenizer, encoded.tokens_T)


def _of(tokenizer: Tokenizer, tokens_T: np.ndarray) -> dict[str, Any]:
    return {"tokenizer": tokenizer.name, "tokenizer_hash": tokenizer.hash[:16], "text_hash": fingerprint(tokens_T)}
