"""Names of hardware, its bandwidth by where a group's chips lie, and bad names in one line."""

import numpy as np
import pytest

from dlmjax.errors import InputError
from dlmjax.plan.topology import CHIPS, Topology, describe, fill_mesh

V5P = Topology("v5p:4x4x8", CHIPS["v5p"], 128, (4, 4, 8))
V5E = Topology("v5e:4x16", CHIPS["v5e"], 64, (4, 16))


def line(axis, size, dimensions=3, slices=1):
    """Coordinates of chips in a row along one torus dimension, in every slice."""
    coords = np.zeros((slices * size, 1 + dimensions), int)
    coords[:, 1 + axis] = np.tile(np.arange(size), slices)
    coords[:, 0] = np.repeat(np.arange(slices), size)
    return coords


def test_a_closed_ring_is_twice_a_line():
    """One of three dimensions has a third of the chip's links; half of a ring, or a dimension that does not close, half of that."""
    third = CHIPS["v5p"].link / 3
    assert V5P.rates(line(0, 4))[0] == pytest.approx(third)
    assert V5P.rates(line(2, 4))[0] == pytest.approx(third / 2)  # half of the eight: no way round
    assert V5E.rates(line(0, 4, 2))[0] == pytest.approx(CHIPS["v5e"].link / 4)  # v5e closes at 16
    assert V5E.rates(line(1, 16, 2))[0] == pytest.approx(CHIPS["v5e"].link / 2)


def test_dimensions_add_up_and_slices_are_counted():
    grid = np.asarray([(0, x, y, 0) for x in range(4) for y in range(4)])
    assert V5P.rates(grid)[0] == pytest.approx(2 * CHIPS["v5p"].link / 3)
    assert V5P.rates(line(0, 4, slices=2))[1:] == (CHIPS["v5p"].network, 2)


def test_gpus_lie_in_nodes_of_eight():
    gpus = describe("h100:16")
    coords = gpus.coords()
    assert gpus.chips == 16 and not gpus.devices
    assert gpus.rates(coords[:8]) == (450e9, 50e9, 1)
    assert gpus.rates(coords[[0, 8]])[2] == 2


def test_mesh_sizes_are_filled():
    sizes = {"data": -1, "fsdp": 8, "sequence": 1, "tensor": 2}
    assert fill_mesh(sizes, V5E) == {"data": 4, "fsdp": 8, "sequence": 1, "tensor": 2}
    with pytest.raises(InputError, match="64 chips of v5e:4x16"):
        fill_mesh({**sizes, "fsdp": 3}, V5E)


@pytest.mark.parametrize(
    ("name", "slices", "says"),
    [
        ("v5e", 1, "CHIP:SHAPE"),
        ("v5x:4x4", 1, "did you mean v5"),
        ("v5p:8x8", 1, "v5p:4x4x4"),
        ("v5e:0x4", 1, "no chips"),
        ("h100:64", 2, "nodes of 8"),
    ],
)
def test_bad_names_say_what_to_write(name, slices, says):
    with pytest.raises(InputError, match=says):
        describe(name, slices)


def test_without_libtpu_the_way_to_get_it_is_named(monkeypatch):
    import importlib.util

    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"pip install -e"):
        describe("v5e:2x2")
