"""What docs/architecture.md promises, held by a test: short files and functions, no hidden defaults, no loose ends."""

import ast
import pathlib
import re
import sys
import threading
import tomllib

import jax
import pytest

from dlmjax import config as config_lib
from dlmjax.data import TrainWindows, train_batches
from dlmjax.experiment import assemble, open_corpora
from dlmjax.train import train_step_of
from dlmjax.training import abstract_state

ROOT = pathlib.Path(__file__).parents[1]
PLACES = ("docs/site/*.py", "dlmjax/**/*.py", "tests/**/*.py", "benchmarks/*.py", "configs/**/*.py", "launch/*.py")
FILES = sorted(path for place in PLACES for path in ROOT.glob(place))


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_file_is_short_and_finished(path):
    text = path.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 600
    assert not re.search(r"\b(TO" r"DO|FIX" r"ME|NotImplemented" r"Error)\b", text)
    assert not re.search(r"getattr\(config,[^)]*,", text)
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef):
            length = node.end_lineno - node.lineno + 1
            assert length <= 80, f"{node.name} has {length} lines"
            if path.is_relative_to(ROOT / "dlmjax") and not node.name.startswith("_") and length > 12:
                assert ast.get_docstring(node), f"{node.name} has no docstring"


# Functions with more than 8 parameters, `self` excluded: to be grouped into dataclasses. The list may only shrink.
MANY_PARAMETERS = {
    "dlmjax/diffusion/processes/d3pm.py": {"make_d3pm"},
    "dlmjax/diffusion/registry.py": {"make_blocks"},
    "dlmjax/evaluation/conditional.py": {"ConditionalScorer.__init__"},
    "dlmjax/evaluation/likelihood.py": {"WindowEvaluator.__call__", "evaluate_nelbo"},
    "dlmjax/evaluation/windows.py": {"cut_windows"},
    "dlmjax/harness/adapter.py": {"Adapter.__init__"},
    "dlmjax/interop/export.py": {"export"},
    "dlmjax/quality/generated.py": {"steps_curve"},
    "dlmjax/run.py": {"open_run"},
    "dlmjax/training/step.py": {"make_train_step"},
}


def functions_of(node: ast.AST, prefix: str = ""):
    """(qualified name, number of parameters without `self` and `cls`) of every function and method, also of those inside others."""
    for inner in ast.iter_child_nodes(node):
        name = prefix
        if isinstance(inner, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            name = f"{prefix}.{inner.name}".removeprefix(".")
        if isinstance(inner, ast.FunctionDef | ast.AsyncFunctionDef):
            arguments = inner.args
            named = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs, arguments.vararg, arguments.kwarg]
            yield name, len([argument for argument in named if argument and argument.arg not in ("self", "cls")])
        yield from functions_of(inner, name)


def test_a_function_has_at_most_eight_parameters():
    source = "class A:\n  def f(self, a, /, b=(lambda c: c), *d, e, **f):\n    def g(x): pass\n"
    assert list(functions_of(ast.parse(source))) == [("A.f", 5), ("A.f.g", 1)]
    found = {}
    for path in ROOT.glob("dlmjax/**/*.py"):
        functions = functions_of(ast.parse(path.read_text(encoding="utf-8")))
        found[path.relative_to(ROOT).as_posix()] = {name for name, count in functions if count > 8}
    assert {file: names for file, names in found.items() if names} == MANY_PARAMETERS


# Progress and the log of processes go to standard error from where they arise; one file is shipped with exports.
LOGS = {"progress.py", "cluster/start.py", "cluster/supervise.py", "cluster/host.py"}
SCRIPTS = {"interop/shipped/load_dlm.py", "diffusion/capabilities.py"}


def test_only_commands_print_and_parse():
    """Libraries return values, so that a notebook uses them without a terminal; flags and what a person reads are in cli/."""
    for path in (ROOT / "dlmjax").rglob("*.py"):
        name = path.relative_to(ROOT / "dlmjax").as_posix()
        if name.startswith("cli/") or name in LOGS | SCRIPTS | {"flags.py"}:
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            assert not (isinstance(node, ast.Name) and node.id == "print"), f"{name}:{node.lineno} prints"
            imported = [alias.name for alias in node.names] if isinstance(node, ast.Import) else [getattr(node, "module", "")]
            assert not isinstance(node, ast.Import | ast.ImportFrom) or "argparse" not in imported, f"{name}:{node.lineno} parses flags"


def test_only_the_sharding_table_names_a_mesh_axis():
    """ "fsdp" and "tensor" stand for mesh axes; the mesh itself, the table and the config's sizes are where they may be written."""
    allowed = {"dlmjax/parallel/sharding.py", "dlmjax/parallel/mesh.py", "dlmjax/fields.py", "dlmjax/experiment.py"}
    for path in ROOT.glob("dlmjax/**/*.py"):
        if str(path.relative_to(ROOT)) not in allowed:
            assert not re.search(r"[\"'](fsdp|tensor|sequence)[\"']", path.read_text(encoding="utf-8")), path


def test_the_list_of_packages_is_one_and_complete():
    """The table of docs/architecture.md is the contract that lint-imports enforces, row by row, and every module is on it."""
    contract = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["importlinter"]["contracts"][0]
    layers = [[name.strip().removeprefix("dlmjax.") for name in layer.split("|")] for layer in contract["layers"]]
    page = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    table = page.partition("| package or module |")[2].partition("\n\n")[0].splitlines()[2:]
    rows = [[name.removesuffix("/").removesuffix(".py") for name in re.findall(r"`([^`]+)`", line.split("|")[1])] for line in table]
    assert rows == layers
    modules = {path.stem for path in ROOT.glob("dlmjax/*.py")} | {path.parent.name for path in ROOT.glob("dlmjax/*/__init__.py")}
    assert sorted(name for row in rows for name in row) == sorted(modules - {"__init__"})
    for path in ROOT.glob("dlmjax/*/*.py"):
        assert (path.parent / "__init__.py").exists(), f"{path.parent} is not a package, so that its imports are not checked"


def test_the_page_lists_the_files_of_one_batch(small_corpus):
    """docs/architecture.md: the files to open to follow a batch from the corpus to the new weights, by the calls of one trace."""
    config = config_lib.load(f"{ROOT}/configs/masked.py:tiny", [f"data.paths={small_corpus}", "data.length=8", "model.depth=1"])
    (corpus,) = open_corpora(config, "train")
    experiment = assemble(config, corpus.tokenizer, devices=jax.devices()[:1])
    windows, called = TrainWindows([corpus], None, config.data.length, config.data.batch, seed=0), {"train.py"}  # the loop itself
    state, step = abstract_state(experiment.init, experiment.optimizer), train_step_of(experiment)

    def note(frame, event, _):
        if event == "call" and (path := pathlib.Path(frame.f_code.co_filename)).is_relative_to(ROOT / "dlmjax"):
            called.add(path.relative_to(ROOT / "dlmjax").as_posix())

    threading.setprofile(note)
    sys.setprofile(note)
    try:
        rows = experiment.partition.rows_of_host(config.data.batch)
        batch = experiment.partition.put_batch(next(train_batches(windows, rows=rows, start_step=0)))
        step.trace(state, batch, jax.random.key(0))
    finally:
        sys.setprofile(None)
        threading.setprofile(None)
    page = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    listed = page.partition("follows the calls):")[2].split("```")[1].split()
    assert sorted(listed) == sorted(called)


def test_no_modules_import_each_other():
    """Imports, also those inside functions, form no circle of any length: a module can be read after those that it imports."""
    paths = {".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path for path in ROOT.glob("dlmjax/**/*.py")}

    def imported(path: pathlib.Path) -> set[str]:
        if path == ROOT / "dlmjax" / "__init__.py":
            return set()  # it names the Python interface for type checkers, and imports nothing
        nodes = list(ast.walk(ast.parse(path.read_text(encoding="utf-8"))))
        found = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
        for node in nodes:
            if isinstance(node, ast.ImportFrom):
                found |= {name if (name := f"{node.module}.{alias.name}") in paths else node.module for alias in node.names}
        return found & paths.keys()

    remaining = {module: imported(path) for module, path in paths.items()}
    while free := [module for module, names in remaining.items() if not names & remaining.keys()]:
        remaining = {module: names for module, names in remaining.items() if module not in free}
    assert not remaining, f"these modules are in a circle of imports, or import one that is: {sorted(remaining)}"


def test_the_lists_of_the_readme_are_complete():
    """Every command, config and page of the documents is named in README.md; what it names as `dlmjax NAME` is a command."""
    from dlmjax.cli.main import COMMANDS

    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert set(re.findall(r"\bdlmjax ([a-z][a-z-]*)", text)) - {"COMMAND"} == set(COMMANDS)
    configs = re.findall(r"`([^`]+)`", text.partition("\nConfigs of a process:")[2].partition("\n\n")[0])
    assert sorted(configs) == sorted(path.stem for path in ROOT.glob("configs/*.py"))
    missing = [path.name for path in ROOT.glob("docs/*.md") if f"(docs/{path.name})" not in text]
    assert not missing, f"README.md does not link to {missing}"


def test_notebooks_are_kept_without_outputs():
    import json

    books = sorted(ROOT.glob("notebooks/*.ipynb"))
    assert len(books) >= 2
    for book in books:
        for cell in json.loads(book.read_text(encoding="utf-8"))["cells"]:
            assert not cell.get("outputs") and cell.get("execution_count") is None, book
