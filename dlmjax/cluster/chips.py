"""Peak arithmetic rates of accelerators, by the names that jax reports. Imports nothing."""

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
