"""Evaluation suites as data: everything that a number on a text depends on besides the model.

A number without its protocol cannot be compared: the detokeniser, what stands before and after a document, the window, how much of it is
carried on to the next one, and what happens to what is left over all move it. Each suite below fixes them, `dlmjax evaluate --suite NAME
--input FILE...` applies them to local files, and the result records them. `protocol` is what a result holds.
"""

import dataclasses
from typing import Any, Literal

from dlmjax.errors import InputError
from dlmjax.evaluation.detokenise import DETOKENISERS


@dataclasses.dataclass(frozen=True)
class Suite:
    """A protocol.

    corpus, split: which text it is meant for; the file that is given is taken at its word.
    documents: how a text file falls into documents: "file", "line" (empty ones left out), "article" (WikiText: at its level-1 headings), or
      "pair" (JSON lines with two sentences). Of .jsonl and .parquet files each record is a document whatever this says.
    field: the field of a record that holds the text.
    parts: (split, first, end): characters of a file that holds several splits; empty where a file is one split.
    detokeniser: see `detokenise`; applied to each line of a text file, to each record of others.
    bos: a BOS before each document, given clean, not scored.  eos: an EOS behind each document, scored.
    window: tokens the network sees at a time.  stride: new tokens of each further window, the rest is context that was scored before and
      is given clean; 0 = `window`, no context.
    packing: "stream": documents one after another, cut every `stride` tokens (attention never leaves a document); "alone": each document
      has windows of its own.
    remainder: of what does not fill a last window: "keep" scores it in a shorter one, "drop" leaves it out (of a stream), "truncate" scores
      the first window of each document only, "tail" the last window (alone).
    words: what a perplexity per word divides by, counted before detokenising: "spaces" = pieces between white space, "spaces+lines" =
      one more for each line; "none" = not given.
    task: "likelihood"; "last_word" = the bound of the last word given the words before; "pairs" = how often the better of two
      sentences has the lower bound.
    units: what papers report for it, first the headline.
    note: what to know before comparing with a paper.
    """

    name: str
    corpus: str
    split: str
    documents: Literal["file", "line", "article", "pair"]
    units: tuple[str, ...]
    window: int
    field: str = "text"
    parts: tuple[tuple[str, int, int], ...] = ()
    detokeniser: str = "none"
    bos: bool = False
    eos: bool = True
    stride: int = 0
    packing: Literal["stream", "alone"] = "stream"
    remainder: Literal["keep", "drop", "truncate", "tail"] = "keep"
    words: Literal["none", "spaces", "spaces+lines"] = "none"
    task: Literal["likelihood", "last_word", "pairs"] = "likelihood"
    note: str = ""

    def __post_init__(self):
        if self.window < 1 or not 0 <= self.stride <= self.window:
            raise InputError(
                f"suite {self.name}: window is {self.window}, stride {self.stride}; a window has at least 1 token, a stride no more than it"
            )
        if self.remainder not in ("keep", *{"stream": ("drop",), "alone": ("truncate", "tail")}[self.packing]):
            raise InputError(f"suite {self.name}: remainder {self.remainder!r} does not go with packing {self.packing!r}")
        if self.detokeniser not in DETOKENISERS:
            raise InputError(f"suite {self.name}: there is no detokeniser {self.detokeniser!r}; there are {', '.join(DETOKENISERS)}")

    @property
    def step(self) -> int:
        """New tokens of each window behind the first."""
        return self.stride or self.window

    def protocol(self) -> dict[str, Any]:
        """All fields but the note, JSON-ready."""
        fields = dataclasses.asdict(self)
        del fields["note"]
        return {**fields, "stride": self.step, "parts": [list(part) for part in self.parts], "units": list(self.units)}


_ZERO_SHOT = (
    "MDLM's published code (2406.07524) cuts blocks of 1022 tokens between BOS and EOS, scores both, drops what is left of each batch of "
    "texts that a worker is handed, and lets attention cross texts; here all is scored and attention stays inside each text"
)
_SHORT_TEXTS = dict(window=1024, remainder="keep", units=("perplexity", "bits_per_byte"), note=_ZERO_SHOT)
_PAPERS = dict(_SHORT_TEXTS, split="test", documents="line", field="article", detokeniser="papers")

SUITES: dict[str, Suite] = {
    suite.name: suite
    for suite in (
        Suite(
            name="text8",
            corpus="text8 (M. Mahoney), all 100,000,000 characters",
            split="test",
            documents="file",
            parts=(("train", 0, 90_000_000), ("valid", 90_000_000, 95_000_000), ("test", 95_000_000, 100_000_000)),
            eos=False,
            window=256,
            units=("bits_per_byte",),
            note="D3PM 2107.03006 and after: windows of 256; they drop the last, 64 of 5,000,000 characters",
        ),
        Suite(
            name="text8_head",
            corpus="the first 12,549,840 characters of text8: its numbers are not text8's",
            split="test",
            documents="file",
            parts=(("train", 0, 11_500_000), ("valid", 11_500_000, 12_000_000), ("test", 12_000_000, 12_500_000)),
            eos=False,
            window=256,
            units=("bits_per_byte",),
        ),
        Suite(
            name="char27",
            corpus="any text in the alphabet of text8, a file a split",
            split="test",
            documents="file",
            eos=False,
            window=256,
            units=("bits_per_byte",),
        ),
        Suite(
            name="wikitext2",
            corpus="WikiText-2 (1609.07843), raw; valid and test are also WikiText-103's",
            split="test",
            documents="article",
            detokeniser="wikitext",
            window=1024,
            stride=512,
            packing="alone",
            words="spaces+lines",
            units=("word_perplexity", "bits_per_byte", "perplexity"),
            note="rolling over articles; the number per word divides by the words and lines of the file as published",
        ),
        Suite(
            name="wikitext2_lines",
            corpus="WikiText-2 (1609.07843), raw",
            split="test",
            documents="line",
            detokeniser="wikitext",
            **_SHORT_TEXTS,
        ),
        Suite(
            name="lm1b",
            corpus="One Billion Word benchmark (1312.3005), heldout: a sentence a line",
            split="test",
            documents="line",
            detokeniser="lm1b",
            window=128,
            packing="alone",
            remainder="truncate",
            units=("perplexity", "bits_per_byte"),
            note="a sentence a window, cut at 128 tokens; MDLM 2406.07524 uses bert-base-uncased tokens and counts its [CLS]",
        ),
        Suite(
            name="lm1b_packed",
            corpus="One Billion Word benchmark (1312.3005), heldout: a sentence a line",
            split="test",
            documents="line",
            detokeniser="lm1b",
            **{**_SHORT_TEXTS, "window": 128},
        ),
        Suite(
            name="ptb",
            corpus="Penn Treebank as prepared by Mikolov: a sentence a line",
            split="test",
            documents="line",
            detokeniser="ptb",
            words="spaces+lines",
            **_SHORT_TEXTS,
        ),
        Suite(
            name="lambada",
            corpus="LAMBADA (1606.06031) in OpenAI's form, whole passages",
            split="test",
            documents="line",
            detokeniser="lambada",
            **_SHORT_TEXTS,
        ),
        Suite(
            name="lambada_last",
            corpus="LAMBADA (1606.06031) in OpenAI's form, last words",
            split="test",
            documents="line",
            eos=False,
            window=1024,
            packing="alone",
            remainder="tail",
            task="last_word",
            words="spaces",
            units=("word_perplexity", "perplexity"),
            note="a bound of the last word given the passage before it, not the accuracy",
        ),
        Suite(name="agnews", corpus="AG News (1509.01626)", split="test", documents="line", **_SHORT_TEXTS),
        Suite(name="pubmed", corpus="PubMed articles of Cohan et al. (1804.05685)", **_PAPERS),
        Suite(name="arxiv", corpus="arXiv articles of Cohan et al. (1804.05685)", **_PAPERS),
        Suite(
            name="blimp",
            corpus="BLiMP (1912.00582): 67 paradigms of 1,000 minimal pairs",
            split="test",
            documents="pair",
            window=256,
            packing="alone",
            task="pairs",
            units=("accuracy",),
            note="the bounds of both sentences under the same levels and masks; the mean over paradigms of the share that is right",
        ),
    )
}


def find_suite(name: str) -> Suite:
    """The suite of that name. Raises InputError, listing those there are."""
    if name not in SUITES:
        raise InputError(f"there is no suite {name!r}; the suites: {', '.join(SUITES)}")
    return SUITES[name]
