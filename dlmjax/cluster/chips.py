"""Peak arithmetic rates of accelerators, by the names that jax reports; libtpu without a TPU. Imports no jax."""

import os
import pathlib

# Dense bfloat16 FLOP/s of one device as jax counts them. Sources: Google Cloud TPU documentation, "System architecture" pages of each
# version; NVIDIA A100, H100 and H200 datasheets (without sparsity). A name comes before its own prefixes: the first match counts.
PEAK_FLOPS = {
    "TPU v6 lite": 918e12,
    "TPU v6e": 918e12,
    "TPU v5 lite": 197e12,
    "TPU v5e": 197e12,
    "TPU v5p": 459e12,
    "TPU v5": 459e12,
    "TPU v4": 275e12,
    "NVIDIA A100": 312e12,
    "NVIDIA H100 PCIe": 756e12,
    "NVIDIA H100 NVL": 835e12,
    "NVIDIA H100": 989e12,
    "NVIDIA H200 NVL": 835e12,
    "NVIDIA H200": 989e12,
}


def peak_flops(device_kind: str) -> float | None:
    """Peak bfloat16 FLOP/s of a `jax.Device.device_kind`; None when it is unknown, in which case no MFU is reported."""
    return next((peak for name, peak in PEAK_FLOPS.items() if device_kind.startswith(name)), None)


# Values that libtpu would otherwise query from its host, with seconds of waiting and lines of warnings, where it only compiles.
_COMPILE_ONLY = {
    "TPU_SKIP_MDS_QUERY": "1",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",  # two plans at a time: none of them holds a TPU
    "TPU_ACCELERATOR_TYPE": "v5litepod-4",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_WORKER_ID": "0",
}


def compile_only() -> None:
    """Sets what libtpu reads on a machine without a TPU; values that are already set stay."""
    for variable, value in _COMPILE_ONLY.items():
        os.environ.setdefault(variable, value)


def quiet_libtpu() -> None:
    """`compile_only` where this machine has no TPU: libtpu, where it is installed, warns at jax's start that it found none."""
    if not _devices("accel*", "vfio/*"):
        compile_only()


def runs_on_cpu() -> bool:
    """Whether jax will compute on the CPU: JAX_PLATFORMS names it first, or names none and this machine has no accelerator."""
    platforms = os.environ.get("JAX_PLATFORMS")
    if platforms:
        return platforms.split(",")[0] == "cpu"
    return not _devices("accel*", "vfio/*", "nvidia[0-9]*", "kfd")


def _devices(*patterns: str) -> list[pathlib.Path]:
    """Device files of this machine."""
    return [path for pattern in patterns for path in pathlib.Path("/dev").glob(pattern)]
