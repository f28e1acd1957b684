"""Every test sees eight virtual CPU devices and runtime-checked shapes; the flags must be set before jax starts."""

import os

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")

from jaxtyping import install_import_hook

install_import_hook("dlmjax", "beartype.beartype")

import jax  # noqa: E402

jax.config.update("jax_num_cpu_devices", 8)
