"""What `pip install` of a wheel gives: the package with the configs that ship, which work in any folder."""

import json
import os
import pathlib
import subprocess
import sys

import pytest

from dlmjax import config as config_lib
from dlmjax.cli.main import main

ROOT = pathlib.Path(__file__).parents[1]
PROGRAM = """
import json, sys
import dlmjax
from dlmjax import config
from dlmjax.sweep import definition

loaded = [dlmjax.load_config("masked:tiny"), config.load("configs/masked.py:tiny"), dlmjax.load_config(config.SHIPPED / "quickstart.py")]
print(json.dumps([dlmjax.__file__, *map(config.fingerprint, loaded), definition.load("configs/sweeps/isoflop.py:tiny").name]))
"""


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """The files of a wheel, as setup.py builds them."""
    folder = tmp_path_factory.mktemp("installed")
    words = [sys.executable, "setup.py", "-q", "build_py", "--build-lib", str(folder)]
    subprocess.run(words, cwd=ROOT, check=True, capture_output=True, timeout=120)
    return folder


def test_the_configs_are_those_of_the_checkout(installed):
    files = {str(path.relative_to(ROOT / "configs")): path.read_bytes() for path in ROOT.glob("configs/**/*.py")}
    copies = installed / "dlmjax" / "configs"
    assert files == {str(path.relative_to(copies)): path.read_bytes() for path in copies.glob("**/*.py")} and len(files) > 20


def test_configs_that_ship_are_loaded_from_any_folder(installed, tmp_path):
    environment = {**os.environ, "PYTHONPATH": str(installed), "JAX_PLATFORMS": "cpu"}
    done = subprocess.run([sys.executable, "-c", PROGRAM], cwd=tmp_path, capture_output=True, text=True, timeout=120, env=environment)
    assert done.returncode == 0, done.stderr
    where, by_name, by_path, by_file, sweep = json.loads(done.stdout)
    assert where.startswith(str(installed)) and sweep == "isoflop_tiny"
    tiny, quick = (config_lib.fingerprint(config_lib.load_config(name)) for name in ("masked:tiny", "quickstart"))
    assert (by_name, by_path, by_file) == (tiny, tiny, quick)


def test_a_config_of_the_folder_comes_before_one_that_ships(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert config_lib.load("configs/quickstart.py") == config_lib.load_config("quickstart")
    (tmp_path / "configs").mkdir()
    text = (
        (config_lib.SHIPPED / "quickstart.py")
        .read_text(encoding="utf-8")
        .replace("    return config", "    config.seed = 7\n    return config")
    )
    (tmp_path / "configs/quickstart.py").write_text(text, encoding="utf-8")
    assert config_lib.load("configs/quickstart.py").seed == 7 != config_lib.load_config("quickstart").seed
    for name in ("configs/none.py", "configs/../setup.py", "none.py"):
        assert main(["train", "--config", name, "--workdir", "run"]) == 2
        assert f"config {name} does not exist; the configs that ship with dlmjax are in " in capsys.readouterr().err
