"""docs/api.md names everything that is exported, and its example runs."""

import pathlib
import re

from dlmjax import diffusion
from dlmjax.diffusion.registry import PROCESSES, SCHEDULES, TIMES, WEIGHTINGS

PAGE = (pathlib.Path(__file__).parents[2] / "docs" / "api.md").read_text(encoding="utf-8")


def test_every_public_name_is_documented():
    missing = [name for name in diffusion.__all__ if not re.search(rf"`[^`\n]*\b{name}\b", PAGE)]
    assert not missing
    for name in (*PROCESSES, *SCHEDULES, *TIMES, *WEIGHTINGS):
        assert f"`{name}`" in PAGE
    members = [name for name in vars(diffusion.Process) if not name.startswith("_")]
    assert not [name for name in members if f"`{name}" not in PAGE]


def test_the_example_runs(capsys):
    (example,) = re.findall(r"```python\n(.*?)```", PAGE, re.S)
    exec(compile(example, "docs/api.md", "exec"), {})
    assert "nelbo" in capsys.readouterr().out
