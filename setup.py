"""Packaging of dlmjax. Ranges live here; the versions that the tests pin live in requirements.lock.

A wheel holds a copy of configs/ as dlmjax/configs/: its user has no checkout, and the commands of the documents name these files.
"""

import pathlib
import re
import shutil

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py

HERE = pathlib.Path(__file__).resolve().parent
VERSION = re.search(r'__version__ = "([^"]+)"', (HERE / "dlmjax" / "__init__.py").read_text(encoding="utf-8")).group(1)
README = HERE / "README.md"

INTEROP = ["torch>=2.8", "transformers>=5.2", "safetensors>=0.5"]
HARNESS = ["lm_eval>=0.4.9"]
SCALING = ["matplotlib>=3.9"]
# MAUVE's own library, with its faiss and scikit-learn; without it `dlmjax quality` leaves that one number out.
QUALITY = ["mauve-text>=0.4", *SCALING]
NOTEBOOKS = ["matplotlib>=3.9", "nbclient>=0.10", "nbformat>=5.10", "ipykernel>=6.29"]
DOCS = ["mkdocs>=1.6,<2", "mkdocs-material>=9.7,<10"]
BEAM = ["apache-beam>=2.77"]
PLAY = ["starlette>=1.0", "uvicorn>=0.40"]
# Drives an installed chromium in the tests of the page of `dlmjax play`; nothing is downloaded.
BROWSER = [*PLAY, "playwright>=1.55"]
CHAT = ["jinja2>=3.1.6"]
TEST = [
    "pytest>=8.3",
    "pytest-xdist>=3.6",
    "pytest-timeout>=2.3",
    "jaxtyping>=0.3.2",
    "beartype>=0.21",
    "ruff>=0.11",
    "import-linter>=2.3",
    "kubeflow-trainer-api>=2.3",
    "tenacity>=9",  # of lm-eval's client of completions
]


class BuildWithConfigs(build_py):
    """Copies configs/ into the package that is built; an editable installation reads the checkout's."""

    def run(self):
        super().run()
        if not self.editable_mode:
            target = pathlib.Path(self.build_lib) / "dlmjax" / "configs"
            shutil.copytree(HERE / "configs", target, dirs_exist_ok=True, ignore=shutil.ignore_patterns("__pycache__"))


setup(
    name="dlmjax",
    version=VERSION,
    description="Pretraining of diffusion language models in JAX with exact likelihood bounds",
    long_description=README.read_text(encoding="utf-8") if README.exists() else "",
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    license_files=["LICENSE"],
    python_requires=">=3.11,<3.14",
    cmdclass={"build_py": BuildWithConfigs},
    packages=find_packages(include=["dlmjax", "dlmjax.*"]),
    package_data={"dlmjax.play": ["static/*"]},
    install_requires=[
        "jax>=0.10.2",
        "flax>=0.12.8",
        "optax>=0.2.8",
        "orbax-checkpoint>=0.12.8",
        "grain>=0.2.18",
        "array_record>=0.8",
        "ml-collections>=1.1",
        "sentencepiece>=0.2.1",
        "tokenizers>=0.22",
        "scipy>=1.14",
        "tensorboard>=2.20",
        "jaxtyping>=0.3.2",
        "numpy>=2.1",
        "pyarrow>=21",
        "zstandard>=0.24",
        "fsspec>=2025.5",
        "tqdm>=4.67",
    ],
    extras_require={
        "test": TEST + NOTEBOOKS + CHAT,
        "tpu": ["jax[tpu]>=0.10.2"],
        "gpu": ["jax[cuda13]>=0.10.2"],
        "interop": INTEROP,
        "harness": HARNESS,
        "scaling": SCALING,
        "quality": QUALITY,
        "beam": BEAM,
        "chat": CHAT,
        "play": PLAY,
        "browser": BROWSER,
        "notebooks": NOTEBOOKS,
        "docs": DOCS,
    },
    entry_points={"console_scripts": ["dlmjax = dlmjax.__main__:main"]},
    classifiers=[
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Programming Language :: Python :: 3.13",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
    ],
)
