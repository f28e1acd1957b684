"""What an import brings with it: modules that take long and that few commands require are imported where they are used."""

import ast
import inspect
import pathlib
import subprocess
import sys

import pytest

import dlmjax

CONFIG = pathlib.Path(__file__).parents[1] / "configs" / "quickstart.py"
# The module that is imported, and packages that must not be imported with it.
LIGHT = {
    "dlmjax": ("numpy", "jax"),
    "dlmjax.cli.main": ("numpy", "jax"),
    "dlmjax.train": ("scipy.stats", "scipy.optimize", "scipy.integrate", "matplotlib", "pandas", "pyarrow", "torch", "transformers"),
}


@pytest.mark.parametrize("module", LIGHT)
def test_imports_nothing_heavy(module):
    """Seconds differ between machines and loads; what is imported does not."""
    code = f"import sys, {module}; print([name for name in {LIGHT[module]!r} if name in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"


@pytest.mark.parametrize("name", dlmjax.__all__)
def test_each_name_of_the_package_is_there(name):
    assert callable(getattr(dlmjax, name)) and name in dir(dlmjax)


def test_a_module_that_is_named_like_its_function_is_called_like_it():
    """`import dlmjax.train` binds the module, and `dlmjax.train(...)` remains the function."""
    code = (
        "import inspect, dlmjax; lazily = dlmjax.train; import dlmjax.train, dlmjax.evaluate; assert dlmjax.train is lazily; "
        "print(inspect.signature(dlmjax.train) == inspect.signature(dlmjax.train.train), dlmjax.evaluate.__call__ is not None)"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split() == ["True", "True"]


def test_an_unknown_name_lists_those_there_are():
    with pytest.raises(AttributeError, match=r"no attribute 'load'; it has .*load_config.*open_run"):
        dlmjax.load  # noqa: B018


def test_type_checkers_see_the_names_that_there_are():
    """The imports that a type checker reads are those that are made."""
    tree = ast.parse(inspect.getsource(dlmjax))
    block = next(node for node in tree.body if isinstance(node, ast.If))
    seen = {alias.asname or alias.name: (node.module, alias.name) for node in block.body for alias in node.names}
    assert seen == {name: (module, attribute or name) for name, (module, attribute) in dlmjax._HOMES.items()}


def test_a_mistyped_field_is_refused_before_what_only_training_requires_is_imported(tmp_path):
    words = ["train", "--config", str(CONFIG), "--config.train.stepz=3", "--workdir", str(tmp_path / "run")]
    code = (
        f"import sys; from dlmjax.cli.main import main; code = main({words!r}); "
        "print(code, [name for name in ('grain', 'orbax', 'tensorboard', 'dlmjax.train') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "2 []" and "did you mean 'train.steps'" in done.stderr
