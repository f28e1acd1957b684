"""Every test sees eight virtual CPU devices and runtime-checked shapes; the flags must be set before jax starts."""

import importlib.metadata
import json
import os

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
# Tests compile much and compute little: without XLA's back-end optimisations the suite takes about half the time, and without its fusion
# emitters another quarter less. XLA ends the process at a flag that it does not know: this one is set for the version it was tried on.
FLAGS = "--xla_backend_optimization_level=0"
if importlib.metadata.version("jaxlib").startswith("0.10."):
    FLAGS += " --xla_cpu_use_fusion_emitters=false"
os.environ.setdefault("XLA_FLAGS", FLAGS)

from jaxtyping import install_import_hook  # noqa: E402

install_import_hook("dlmjax", "beartype.beartype")

import jax  # noqa: E402

jax.config.update("jax_num_cpu_devices", 8)

from dlmjax.cluster.start import make_room  # noqa: E402

if "NPROC" not in os.environ:
    # For the eight devices of this process, which is made here; the processes that tests start make their own room.
    make_room(alone=True)
    jax.devices()
    del os.environ["NPROC"]

import pytest  # noqa: E402

pytest_plugins = ["tests.resources"]


@pytest.fixture(scope="session")
def small_corpus(tmp_path_factory):
    """A prepared corpus of bytes: a part of the text that CPython ships, with a held-out split."""
    from pydoc_data.topics import topics

    from dlmjax.data.prepare import prepare

    root = tmp_path_factory.mktemp("corpus")
    texts = [topics[name] for name in sorted(topics)][:24]
    source = root / "topics.jsonl"
    source.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), encoding="utf-8")
    prepare([str(source)], "bytes", str(root / "prepared"), valid_fraction=0.2)
    return root / "prepared"


@pytest.fixture(scope="session", autouse=True)
def freed_memory_is_returned():
    """A worker runs thousands of tests: it would stay at the peak of the largest of them. Commands in their own processes keep theirs."""
    from dlmjax.cluster import host, memory

    with pytest.MonkeyPatch.context() as patch:
        for module in (host, memory):
            patch.setattr(module, "keep_freed_memory", lambda: False)
        yield
