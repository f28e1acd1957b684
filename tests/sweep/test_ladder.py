"""One dial sets a valid network at every rung; the named shapes are where they are published."""

import dataclasses
import itertools

import pytest

from dlmjax.errors import InputError
from dlmjax.models.spec import ModelSpec
from dlmjax.sweep.ladder import WIDTHS, shape, shape_near


@pytest.mark.parametrize("width", WIDTHS)
def test_every_rung_is_a_network(width):
    found = shape(width)
    ModelSpec(vocab=30, **dataclasses.asdict(found))  # refuses heads that do not divide, odd head sizes, sizes below one
    assert found.heads * found.head_dim == width and found.heads >= 2
    assert found.ffn % 16 == 0 and 8 / 3 * width <= found.ffn < 8 / 3 * width + 128


def test_rungs_grow_evenly():
    sizes = [shape(width).parameters() for width in WIDTHS]
    ratios = [large / small for small, large in itertools.pairwise(sizes)]
    assert 4 < ratios[0] < 4.2 and all(1.1 < ratio < 2.2 for ratio in ratios[1:])
    assert all(shape(a).depth <= shape(b).depth for a, b in itertools.pairwise(WIDTHS))


def test_known_shapes():
    assert dataclasses.astuple(shape(128)) == (4, 128, 4, 4, 32, 384)
    assert dataclasses.astuple(shape(768)) == (12, 768, 12, 12, 64, 2048)  # the configs' "gpt2_small"
    assert dataclasses.astuple(shape(4096)) == (32, 4096, 32, 8, 128, 11008)  # Llama's depth, width and MLP, Llama 3's groups
    assert shape(768).parameters() == pytest.approx(85e6, rel=0.01)


def test_nearest_rung():
    for width in WIDTHS:
        for vocab in (0, 50_000):
            assert shape_near(1.04 * shape(width).parameters(vocab), vocab) == shape(width)
    assert shape_near(1.24e9).width == 2048
    small, large = shape(64).parameters(), shape(80).parameters()
    assert shape_near((small * large) ** 0.5 * 0.99).width == 64 and shape_near((small * large) ** 0.5 * 1.01).width == 80


@pytest.mark.parametrize("width", [0, -16, 4, 100])
def test_widths_that_are_none(width):
    with pytest.raises(InputError, match="multiple of 8"):
        shape(width)


@pytest.mark.parametrize("parameters", [0, -1.0, float("nan"), float("inf"), 1e3, 1e12])
def test_sizes_beyond_the_ladder(parameters):
    with pytest.raises(InputError, match=r"positive number|it goes from"):
        shape_near(parameters)
