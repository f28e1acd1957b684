"""Pictures of a fit: whatever is drawn has space."""

import struct

import pytest

from dlmjax.fit import plots


@pytest.mark.parametrize("entries", [1, 12, 40, 150])
def test_a_legend_leaves_space_for_the_axes(entries):
    """Warnings are errors: matplotlib warns where a legend has left the axes no height."""
    figure, (axes,) = plots._figure(1, "many runs")
    for entry in range(entries):
        axes.plot([1.0, 2.0], [entry + 1.0, entry + 2.0], label=f"autoregressive, {entry} unique")
    axes.set(xscale="log", yscale="log", xlabel="epochs", ylabel="validation loss, nats/token")
    axes.legend(fontsize=6)
    content = plots._png(figure)
    assert content.startswith(b"\x89PNG") and struct.unpack(">I", content[20:24])[0] >= 110 * 3.8
