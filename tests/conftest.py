"""Every test sees eight virtual CPU devices and runtime-checked shapes; the flags must be set before jax starts."""

import importlib.metadata
import json
import os
import shutil

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
# Tests compile much and compute little: without XLA's back-end optimisations the suite takes about half the time, without its fusion
# emitters another quarter less, and a program of one piece instead of up to 32 compiles in three quarters of the time. XLA ends the process
# at a flag that it does not know: these two are set for the version they were tried on.
FLAGS = "--xla_backend_optimization_level=0"
if importlib.metadata.version("jaxlib").startswith("0.10."):
    FLAGS += " --xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1"
os.environ.setdefault("XLA_FLAGS", FLAGS)

from jaxtyping import install_import_hook  # noqa: E402

install_import_hook("dlmjax", "beartype.beartype")

import jax  # noqa: E402

jax.config.update("jax_num_cpu_devices", 8)

from dlmjax.cluster.host import keep_programs  # noqa: E402
from dlmjax.cluster.start import make_room  # noqa: E402

if "NPROC" not in os.environ:
    # For the eight devices of this process, which is made here; the processes that tests start make their own room.
    make_room(alone=True)
    jax.devices()
    del os.environ["NPROC"]

import pytest  # noqa: E402

pytest_plugins = ["tests.resources"]


@pytest.fixture(scope="session", autouse=True)
def programs_are_compiled_once(tmp_path_factory):
    """A worker keeps what it compiles on disk: many tests compile one program anew, as do those after memory was freed (resources.py).

    Each worker has a folder of its own: jax does not write these files in one act, so that another process could read half of one.
    """
    folder = tmp_path_factory.mktemp("programs")
    keep_programs(folder, 0.0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
    yield
    shutil.rmtree(folder, ignore_errors=True)


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
