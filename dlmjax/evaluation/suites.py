"""Evaluation suites: everything besides the model that a number on a text depends on.

Two numbers can be compared only under one protocol: the detokeniser, the tokens before and after a document, the window, its stride and the
treatment of the remainder all change the number. A suite fixes them. `dlmjax evaluate --suite NAME --input FILE...` applies one of `SUITES`
to local files, `--suite FILE.json` one that a file defines (`read_suite`), and the result records it (`protocol`).
"""

import dataclasses
from typing import Any, Literal

from dlmjax import checks, choices
from dlmjax.errors import InputError
from dlmjax.evaluation.detokenise import DETOKENISERS
from dlmjax.files import read_json

UNITS = ("bits_per_byte", "perplexity", "word_perplexity", "accuracy")


@dataclasses.dataclass(frozen=True)
class Suite:
    """A protocol.

    corpus, split: the text that it is made for; whether a file holds this text is not checked.
    documents: how a text file is split into documents: "file", "line" (empty lines left out), "article" (WikiText: at its level-1
      headings), or "pair" (JSON lines with two sentences). Each record of a .jsonl or .parquet file is a document in any case.
    field: the field of a record that holds the text.
    parts: (split, first, end): ranges of characters of a file that holds several splits; empty where a file is one split.
    detokeniser: a name in `detokenise.DETOKENISERS`; applied to each line of a text file, to each record of other files.
    bos: a BOS before each document, clean and not scored.  eos: an EOS after each document, scored.
    window: tokens of a window.  stride: scored tokens of each window but the first; its other tokens are clean context that earlier
      windows scored; 0 = `window`, no context.
    packing: "stream": all documents as one stream, cut every `stride` tokens (attention does not cross documents); "alone": each document
      has its own windows.
    remainder: treatment of text that does not fill a window: "keep" scores it in a shorter window, "drop" (stream) leaves it out,
      "truncate" (alone) scores only the first window of each document, "tail" (alone) only the last.
    words: denominator of a perplexity per word, counted before detokenising: "spaces" = pieces between white space, "spaces+lines" = these
      and the lines; "none" = no perplexity per word.
    task: "likelihood"; "last_word" = the bound of the last word, conditioned on the words before; "pairs" = how often the better of two
      sentences has the lower bound.
    units: the `UNITS` that papers report, the headline first.
    note: remarks for a comparison with a paper.

    Raises InputError: a field of another type, a value that is not one of a field's values, fields that conflict.
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
        choices.check_values(f"suite {self.name!r:.60}", choices.parameters_of(Suite), vars(self))
        checks.name("the name of a suite", self.name)
        for name in ("corpus", "split", "field"):
            checks.label(f"suite {self.name}: {name}", getattr(self, name))
        for flaw in filter(None, (self._flaw_of_windows(), self._flaw_of_units(), self._flaw_of_parts())):
            raise InputError(f"suite {self.name}: {flaw}")

    def _flaw_of_windows(self) -> str:
        """What is wrong with detokeniser, window, stride, remainder, packing, documents or task, and what to do; else empty."""
        if self.detokeniser not in DETOKENISERS:
            return f"detokeniser is {self.detokeniser!r:.60}{choices.nearest(self.detokeniser, DETOKENISERS)}"
        if self.window < 1 or not 0 <= self.stride <= self.window:
            return f"window is {self.window}, stride {self.stride}; a window requires at least 1 token, a stride at most `window`"
        remainders = ("keep", "drop") if self.packing == "stream" else ("keep", "truncate", "tail")
        if self.remainder not in remainders:
            return f"remainder={self.remainder} conflicts with packing={self.packing}; choose one of {', '.join(remainders)}"
        if (self.documents == "pair") != (self.task == "pairs"):
            return f"task={self.task} conflicts with documents={self.documents}; task=pairs and documents=pair require each other"
        return "task=pairs requires packing=alone" if self.task == "pairs" and self.packing != "alone" else ""

    def _flaw_of_units(self) -> str:
        """What is wrong with `units`, and what to do; else empty."""
        for unit in self.units:
            if unit not in UNITS:
                return f"units has {unit!r:.60}{choices.nearest(unit, UNITS)}"
        if not self.units or len(set(self.units)) < len(self.units):
            return f"units is {list(self.units)}; give at least one of {', '.join(UNITS)}, each once, the headline first"
        if "word_perplexity" in self.units and self.words == "none":
            return "units=word_perplexity requires words=spaces or words=spaces+lines"
        if ("accuracy" in self.units) != (self.task == "pairs") or (self.task == "pairs" and len(self.units) > 1):
            return f"units is {list(self.units)}; task=pairs requires the unit accuracy alone, other tasks do not provide it"
        return ""

    def _flaw_of_parts(self) -> str:
        """What is wrong with `parts`, and what to do; else empty."""
        names = [name for name, _, _ in self.parts]
        if any(not 0 <= first < end for _, first, end in self.parts) or len(set(names)) < len(names):
            return f"parts is {list(self.parts)!r:.200}; give [split, first, end] with 0 <= first < end, each split once"
        return f"split={self.split} is not in parts; choose one of {', '.join(names)}" if names and self.split not in names else ""

    @property
    def step(self) -> int:
        """Scored tokens of each window but the first."""
        return self.stride or self.window

    def protocol(self) -> dict[str, Any]:
        """All fields but the note, as JSON values."""
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
    """The suite of that name, or of a file that ends with .json. Raises InputError: no such suite, see `read_suite` for a file."""
    if name.endswith(".json"):
        return read_suite(name)
    if name not in SUITES:
        raise InputError(f"--suite {name!r:.60} is neither a file that ends with .json nor a suite{choices.nearest(name, SUITES)}")
    return SUITES[name]


def read_suite(file: str) -> Suite:
    """The suite that a JSON file defines: an object of the fields of `Suite`, of which those with a default may be left out.

    Raises InputError: a missing or damaged file, a field that is unknown, missing or malformed, the name of another suite.
    """
    values = read_json(file, dict, "give a file of a suite (docs/evaluation.md)")
    choices.check_values(f"--suite {file}", choices.parameters_of(Suite), values)
    lists = {name: tuple(values[name]) for name in ("units", "parts") if name in values}
    if "parts" in lists:
        lists["parts"] = tuple(map(tuple, lists["parts"]))
    try:
        suite = Suite(**{**values, **lists})
    except InputError as error:
        raise InputError(f"--suite {file}: {error}") from None
    if SUITES.get(suite.name, suite) != suite:
        raise InputError(f"--suite {file}: name={suite.name} is the name of a different suite; choose another name")
    return suite
