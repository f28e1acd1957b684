"""The programs of docs/python.md, as they stand there, on a small text."""

import pathlib
import re

PAGE = pathlib.Path(__file__).parents[1] / "docs" / "python.md"
PROGRAMS = re.findall(r"^## (.*?)\n\n```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)


def execute(program: str) -> None:
    exec(compile(program, str(PAGE), "exec"), {"__name__": "__main__"})


def test_programs_are_short_and_say_what_they_import():
    assert len(PROGRAMS) == 4
    for _, program in PROGRAMS:
        assert program.count("\n") < 20 and program.startswith("import dlmjax")


def test_a_run_is_trained_and_opened(tmp_path, monkeypatch, capsys):
    """The first two programs, one after the other, the README's on the same run, and the loop over the same corpus."""
    monkeypatch.chdir(tmp_path)
    pathlib.Path("texts.txt").write_text("".join(f"The cat sat on mat {n}, and the dog sat near it.\n" for n in range(60)))
    for _, program in PROGRAMS[:2]:
        execute(program)
    (program,) = re.findall(r"```python\n(.*?)```", (PAGE.parents[1] / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    execute(program.replace("runs/demo", "runs/first"))
    printed = capsys.readouterr().out
    execute(PROGRAMS[3][1])
    found = re.search(r"^(\d+\.\d\d) nats/token after 40 steps$", capsys.readouterr().out, re.MULTILINE)
    assert float(found[1]) < 4.5  # a batch is noisy; the uniform distribution over 259 ids has 5.6
    assert re.search(r"^4 steps$", printed, re.MULTILINE) and re.search(r"^The .{20}", printed, re.MULTILINE | re.DOTALL)
    assert re.search(r"\d\.\d\d ± \d\.\d\d bits/byte of the held-out text", printed) and "(7, 259)" in printed
    assert "bits/byte, perplexity" in printed.splitlines()[-1]
    assert re.search(r"log p: -\d+\.\d\d ± \d\.\d\d and -\d", printed)


def test_parts_are_trained_by_an_optimizer_of_optax(capsys):
    """A batch whose rows are all alike is learned: the uniform distribution over 31 tokens has 3.4 nats/token."""
    execute(PROGRAMS[2][1])
    found = re.search(r"(\d+\.\d\d) nats/token after 30 steps", capsys.readouterr().out)
    assert float(found[1]) < 2.5
