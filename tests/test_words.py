"""The words of docs/glossary.md: its definitions exist, and words with several meanings stay out of names, messages and documents."""

import ast
import dataclasses
import functools
import io
import pathlib
import re
import tokenize

import pytest

ROOT = pathlib.Path(__file__).parents[1]
FILES = sorted(path for form in ("dlmjax/**/*.py", "launch/*.py", "benchmarks/*.py", "configs/**/*.py") for path in ROOT.glob(form))
PAGES = sorted(path for form in ("*.md", "docs/*.md", "launch/*.md") for path in ROOT.glob(form) if path.name != "glossary.md")


@dataclasses.dataclass(frozen=True)
class Word:
    """A word that names must not contain. `only`: where it had its other meaning (path prefixes); `form`: the names that are
    meant (a regular expression), where the word alone has its plain meaning; `allowed`: names that contain it, each with the reason."""

    word: str
    use: str
    only: tuple[str, ...] = ("",)
    form: str = ""
    allowed: dict[str, str] = dataclasses.field(default_factory=dict)

    def is_in(self, name: str) -> bool:
        found = re.fullmatch(self.form, name) if self.form else self.word in words_of(name)
        return bool(found) and name not in self.allowed


# Names of classes and functions that stood for a term of the field, or for two things.
NICKNAMES = (
    "Carry|_?Guided|_Board|_Pieces|Moment|Calls|Numbers|Parts|_?Place|LAWS|Law|Flat|Journal|Account|Life|Rung|"
    "FREE_TO_CHANGE|FREE_LEAVES|made_with|nats_fn"
)
WORDS = (
    Word("place", "index, sharding, topology, coords, ProcessInfo, CorpusStore", allowed={"in_place": "text that is edited in place"}),
    Word("places", "coords, indices"),
    Word("given", "condition_mask, dynamic_args, requested", allowed={}),
    Word("told", "conditioned on, requested"),
    Word("marks", "baselines"),
    Word("even", "uniform"),
    Word("barred", "suppressed_ids"),
    Word("silent", "suppressed, untrained"),
    Word("never", "suppressed_ids", allowed={"NEVER_IN_UTF8": "bytes that valid UTF-8 does not hold"}),
    Word("turn", "rotate, transpose, order, CompileLock"),
    Word("turns", "rotate, transpose, order, CompileLock"),
    Word("turned", "rotated, transposed"),
    Word("hyper", "hyperschedule"),
    Word("heard", "requested, received"),
    Word("law", "TimeDistribution, JointDistribution", only=("dlmjax/diffusion", "dlmjax/sampling", "benchmarks")),
    Word("laws", "time distributions", only=("dlmjax/diffusion", "dlmjax/sampling", "benchmarks")),
    Word("parts", "Experiment, loss_terms", only=("dlmjax/train.py", "dlmjax/diffusion/objective.py", "dlmjax/training")),
    Word("holes", "masked"),
    Word("rows", "loss_mask", only=("dlmjax/diffusion",), form="rows"),
    Word("hidden", "masked", form="_?hidden_(B|L|BL|SBL|BLV|DN)"),
    Word("retouch", "corrector"),
    Word("rung", "model size"),
    Word("account", "counters, goodput"),
    Word("say", "log", only=("dlmjax/cluster", "dlmjax/train.py", "dlmjax/sweep", "dlmjax/cli", "launch")),
    Word(
        "series",
        "objective",
        only=("dlmjax/fit", "dlmjax/sweep", "dlmjax/cli"),
        allowed={"series": "a key of records", "Series": "a name in older sweep files"},
    ),
    Word("portion", "token_budget"),
    Word("journal", "run log"),
    Word("life", "attempt"),
    Word("lives", "attempts"),
    Word("moment", "step times, sampler state"),
    Word("send", "device_put"),
    Word("says", "reports, states"),
    Word("speaks", "logs"),
    Word("wants", "requires, requested"),
    Word("level", "time t, a point of a path", only=("dlmjax/diffusion",)),
    Word("levels", "times t, points of a path", only=("dlmjax/diffusion",)),
    Word(
        "guess",
        "x0 prediction",
        only=("dlmjax/diffusion", "dlmjax/models", "dlmjax/evaluation", "dlmjax/quality", "dlmjax/training", "benchmarks"),
    ),
    Word("asked", "requested", only=("dlmjax/evaluation", "dlmjax/models", "dlmjax/parallel", "dlmjax/cli", "launch", "benchmarks")),
    Word(
        "made",
        "generated, sampled",
        only=("dlmjax/interop", "dlmjax/models", "dlmjax/training", "dlmjax/evaluation", "launch", "benchmarks"),
    ),
    Word("fetch", "device_get, load", only=("dlmjax/interop", "dlmjax/models", "dlmjax/training", "dlmjax/parallel", "dlmjax/evaluation")),
    Word("nicknames", "the words of docs/glossary.md", form=NICKNAMES),
)
# Phrases of messages, docstrings, comments and documents: (pattern, what to say instead).
PHRASES = (
    (r"\b(is|are|was|were) told\b", "is conditioned on, receives"),
    (r"(?<![Tt]here )(?<!that )\b(is|are|was) no (?!longer\b|more\b|larger\b|less\b)[a-z]", "is not a"),
    (r"\bwants? (a|an|the|rows|at|another)\b", "requires"),
    (r"\beven draw", "uniform draw"),
    (r"\b(un)?barred\b", "suppressed"),
    (r"\bturned heads\b", "rotated heads"),
    (r"\b(n-gram|entropy) marks\b|\bmarks on the same\b", "baselines"),
    (r"\bhyper\.py\b", "hyperschedule.py"),
    (r"\bnoise clock", "time t"),
    (r"\bnoise famil(y|ies)\b", "noise process"),
    (r"\bneed not be here\b", "is not attached"),
    (r"\bslip of the pen\b|\bcalled so\b|\b[Bb]ehind (a|the) row\b", "subject, verb and object"),
)
# Words and phrases that are still to be replaced there: path prefixes.
OPEN: dict[str, tuple[str, ...]] = {}


def names_in(tree: ast.AST):
    """(name, line) of all classes, functions, arguments, variables and attributes that a module binds."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            yield node.name, node.lineno
        elif isinstance(node, ast.arg):
            yield node.arg, node.lineno
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.id, node.lineno
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            yield node.attr, node.lineno


def words_of(name: str) -> set[str]:
    """The words of a name: `never_BL` -> never, bl; `NoiseLaw` -> noise, law."""
    return {word.lower() for word in re.findall(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])", name)}


@functools.cache
def bound():
    """(file, line, name) of the whole project."""
    found = ((path, name, line) for path in FILES for name, line in names_in(ast.parse(path.read_text(encoding="utf-8"))))
    return [(str(path.relative_to(ROOT)), line, name) for path, name, line in found]


@functools.cache
def prose():
    """(file, line, text) of all comments, strings and documents."""
    found = [
        (str(path.relative_to(ROOT)), number, line) for path in PAGES for number, line in enumerate(path.read_text("utf-8").splitlines(), 1)
    ]
    kinds = (tokenize.COMMENT, tokenize.STRING, getattr(tokenize, "FSTRING_MIDDLE", tokenize.STRING))
    for path in FILES:
        for token in tokenize.generate_tokens(io.StringIO(path.read_text(encoding="utf-8")).readline):
            if token.type in kinds:
                found += [(str(path.relative_to(ROOT)), token.start[0] + n, line) for n, line in enumerate(token.string.splitlines())]
    return found


def test_the_words_of_a_name():
    assert words_of("never_sampled") == {"never", "sampled"} and words_of("PowerLaw") == {"power", "law"}
    assert words_of("even_BLV") >= {"even"} and "even" not in words_of("event_seven") and words_of("_Place") == {"place"}


@pytest.mark.parametrize("word", WORDS, ids=lambda word: word.word)
def test_a_word_of_several_meanings_is_in_no_name(word):
    wrong = [
        f"{file}:{line}: {name}"
        for file, line, name in bound()
        if word.is_in(name) and file.startswith(word.only) and not file.startswith(OPEN.get(word.word, ("?",)))
    ]
    assert not wrong, f"docs/glossary.md says {word.use} instead of {word.word!r}:\n" + "\n".join(wrong)
    assert all(any(name == other for _, _, other in bound()) for name in word.allowed), "an exception that nothing needs"
    for package in OPEN.get(word.word, ()):
        assert any(word.is_in(name) and file.startswith(package) for file, _, name in bound()), f"{package} is open without need"


@pytest.mark.parametrize("pattern, use", PHRASES, ids=[use for _, use in PHRASES])
def test_a_phrase_of_our_own_is_in_no_text(pattern, use):
    wrong = [
        f"{file}:{line}: {text.strip()}"
        for file, line, text in prose()
        if re.search(pattern, text) and not file.startswith(OPEN.get(use, ("?",)))
    ]
    assert not wrong, f"say {use!r}:\n" + "\n".join(wrong)
    for package in OPEN.get(use, ()):
        assert any(re.search(pattern, text) and file.startswith(package) for file, _, text in prose()), f"{package} is open without need"


def refusals():
    """(file, line, text) of what is raised as InputError; {} stands for a value."""
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call) and ast.unparse(node.exc.func) == "InputError":
                pieces = [value for part in node.exc.args for value in (part.values if isinstance(part, ast.JoinedStr) else [part])]
                text = "".join(str(piece.value) if isinstance(piece, ast.Constant) else "{}" for piece in pieces)
                yield str(path.relative_to(ROOT)), node.lineno, text


def test_errors_say_requires_and_is_not():
    """A refusal begins with what was typed, not with "there is no ..."; it says *requires*, *is not*, and no word for a person."""
    found = list(refusals())
    forms = r"\b(needs?|wants?|told|asks?)\b|\b(is|are) no (?!longer)|\bthere is no\b"
    wrong = [f"{file}:{line}: {text}" for file, line, text in found if re.search(forms, text)]
    assert len(found) > 500 and not wrong, "\n".join(wrong)


def test_what_the_glossary_names_is_defined_there():
    page = (ROOT / "docs" / "glossary.md").read_text(encoding="utf-8")
    links = re.findall(r"`(dlmjax/[\w/]+\.py)(?::(\w+))?`", page)
    assert len(links) > 30
    for file, name in links:
        assert (ROOT / file).is_file(), file
        names = {bound for bound, _ in names_in(ast.parse((ROOT / file).read_text(encoding="utf-8")))}
        assert not name or name in names, f"{file} does not define {name}"
