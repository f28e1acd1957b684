"""Pictures of a fit: whatever is drawn has space."""

import pathlib
import re
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
    axes.legend(fontsize=6, loc="best")
    content = plots._png(figure)
    assert content.startswith(b"\x89PNG") and struct.unpack(">I", content[20:24])[0] >= 110 * 3.8


def test_a_busy_machine_draws_legends_without_a_warning():
    """matplotlib warns where the search for a place, which it makes by default, takes a second; with loc="best" written it does not."""
    sources = (path.read_text(encoding="utf-8") for path in pathlib.Path(plots.__file__).parents[1].glob("**/*.py"))
    calls = [call for text in sources if "import Figure" in text for call in re.findall(r"\.legend\((.*)\)", text)]
    assert len(calls) > 6 and all("loc=" in call for call in calls)
