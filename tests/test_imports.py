"""What an import brings with it: modules that take long and that few commands require are imported where they are used."""

import subprocess
import sys

import pytest

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
