"""docs/api.md names everything that is exported, and its example runs."""

import inspect
import pathlib
import re

import pytest

from dlmjax import diffusion
from dlmjax.diffusion.oracle import enumeration as oracle
from dlmjax.diffusion.oracle import toy
from dlmjax.diffusion.registry import PROCESSES, SCHEDULES, TIMES, WEIGHTINGS

PAGE = (pathlib.Path(__file__).parents[2] / "docs" / "api.md").read_text(encoding="utf-8")


def test_every_public_name_is_documented():
    missing = [name for name in diffusion.__all__ if not re.search(rf"`[^`\n]*\b{name}\b", PAGE)]
    assert not missing
    for name in (*PROCESSES, *SCHEDULES, *TIMES, *WEIGHTINGS):
        assert f"`{name}`" in PAGE
    members = [name for name in dir(diffusion.Process) if not name.startswith("_")]
    assert not [name for name in members if f"`{name}" not in PAGE]


def test_every_documented_name_is_exported():
    """Classes and functions of the page can be imported from where it says; other calls are methods of these, or names for configs."""
    spaces = (diffusion, diffusion.gaussian, oracle, toy)
    exported = {name for space in spaces for name in getattr(space, "__all__", vars(space))} | {"registry"}
    methods = {name for space in spaces for value in vars(space).values() if inspect.isclass(value) for name in dir(value)}
    registered = {*PROCESSES, *SCHEDULES, *TIMES, *WEIGHTINGS, "PROCESSES"}
    prose = re.sub(r"```.*?```", "", PAGE, flags=re.S)
    for code in re.findall(r"`([^`\n]+)`", prose):
        classes = {name for name in re.findall(r"\b[A-Z]\w*[a-z]\w*\b(?=\(|$)", code) if not re.search(rf"[\w.\"'=\[]{name}", code)}
        assert classes <= exported, f"{code}: {classes - exported}"
        calls = set(re.findall(r"(?<![\w.\"'=])([a-z_]\w*)\(", code))
        assert calls <= exported | methods | registered, f"{code}: {calls - exported - methods - registered}"


@pytest.mark.slow
def test_the_example_runs(capsys):
    (example,) = re.findall(r"```python\n(.*?)```", PAGE, re.S)
    exec(compile(example, "docs/api.md", "exec"), {})
    assert "nelbo" in capsys.readouterr().out
