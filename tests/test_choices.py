"""Choices with values: what is read, what is written back, what is refused and in which words."""

import dataclasses
import subprocess
import sys

import pytest

from dlmjax.choices import build, check_values, nearest, parameters_of, parse, requirement, split_suffix, text_of
from dlmjax.diffusion.schedules import Schedule
from dlmjax.errors import InputError


@pytest.mark.parametrize(
    ("text", "twice"),
    [
        ("hybrid(p_uniform=0.2, p_uniform=0.3)", "p_uniform"),
        ("power(exponent=0.5,exponent=0.5)", "exponent"),
        ("mixture(parts=[{'law': 'beta'}, {'law': 'flat', 'law': 'beta'}], probabilities=[0.5, 0.5])", "law"),
        ("name(a=1, b=2, c=3, a=[1])", "a"),
    ],
)
def test_a_value_is_given_once(text, twice):
    with pytest.raises(InputError, match=f"has the value {twice} twice"):
        parse(text, "process")
    parse(text.replace(f"{twice}=", "x=", 1).replace(f"'{twice}': 'flat', ", ""), "process")


def test_values_of_a_call_are_words_literals_and_file_names():
    read = parse("d3pm(kernel=neighbours, steps=8, embedding=table.npy)")
    assert read == ("d3pm", {"kernel": "neighbours", "steps": 8, "embedding": "table.npy"})
    assert parse("d3pm(embedding='runs/a-1.npy')")[1] == {"embedding": "runs/a-1.npy"}
    assert parse("blocks(noise=hybrid(p_uniform=0.3))")[1] == {"noise": "hybrid(p_uniform=0.3)"}
    with pytest.raises(InputError, match="cannot read"):
        parse("d3pm(embedding=f(1))")


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        (int, "a whole number"),
        (float | None, "a number or None"),
        (tuple[int, ...], "a list of whole numbers"),
        (tuple[str, ...] | None, "a list of words or None"),
        (tuple[float, float], "a list of 2 numbers"),
        (tuple[tuple[int, int], ...], "a list of pairs of whole numbers"),
        (tuple[tuple[float, ...], ...], "a list of lists of numbers"),
        (tuple[bool, ...], "a list of True or False"),
        (dataclasses.InitVar[int | None], "a whole number or None"),
        (Schedule, "a Schedule, which cannot be written in a text"),
        (tuple[Schedule, ...], "a list of values of which each is a Schedule, which cannot be written in a text"),
    ],
)
def test_a_type_is_said_in_plain_words(kind, said):
    assert requirement(kind) == said


@pytest.mark.parametrize(
    "values",
    [
        {},
        {"p_uniform": 0.3, "kernel": "neighbours", "embedding": "runs/a-1.npy"},
        {"embedding": "table.npy", "word": "True", "other": "class", "none": None, "flag": False, "empty": "", "accent": "\u00e9"},
        {"heights": (1, 2.5), "parts": [{"law": "beta", "a": 2}], "size": -3, "quote": "a'b\"c", "small": 1e-30},
    ],
)
def test_what_is_written_is_read_back(values):
    text = text_of("name", values)
    assert parse(text) == ("name", values) and text_of(*parse(text)) == text


def test_a_word_is_written_without_quotes():
    assert text_of("d3pm", {"kernel": "absorbing", "steps": 8}) == "d3pm(kernel=absorbing, steps=8)"


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("data/a", ("data/a", "")),
        ("d(1)", ("d(1)", "")),
        ("gs://b/c d(1)(tokens = 1)", ("gs://b/c d(1)", "(tokens = 1)")),
        ("(tokens=1)", ("(tokens=1)", "")),
        ("a(b=1)c", ("a(b=1)c", "")),
    ],
)
def test_values_behind_a_path(text, parts):
    assert split_suffix(text) == parts


def _scaled(factor: float, count: int = 1, *, names: tuple[str, ...] = ()) -> tuple:
    return factor, count, names


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"factr": 1.0}, "demo has no value 'factr'; did you mean 'factor'?"),
        ({"factor": True}, "demo: factor requires a number, not True"),
        ({"factor": "x"}, "demo: factor requires a number, not 'x'"),
        ({"factor": 1.0, "count": 1.0}, "demo: count requires a whole number, not 1.0"),
        ({"factor": 1.0, "names": (1,)}, r"demo: names requires a list of words, not \(1,\)"),
        ({"factor": 10**400}, "demo: factor requires a number"),
        ({"count": 2}, "demo requires factor"),
    ],
)
def test_values_are_checked_against_a_signature(values, said):
    with pytest.raises(InputError, match=said):
        check_values("demo", parameters_of(_scaled), values)
    with pytest.raises(InputError, match=said):
        build("demo", _scaled, values)
    assert build("demo", _scaled, {"factor": 1, "names": ["a"]}) == (1, 1, ["a"])


def test_the_nearest_name_may_be_the_last_part_of_another():
    assert nearest("rate.lr", ["optimizer.lr", "seed"]) == "; did you mean 'optimizer.lr'?"
    assert nearest("zzz", ["alpha", "beta"]) == "; choose one of alpha, beta"


def test_a_choice_is_checked_without_jax():
    code = "import sys; from dlmjax import choices; choices.parse('a(b=1)'); assert 'jax' not in sys.modules and 'numpy' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
