"""The mesh and the table: sizes that fit, sizes that do not, and who owns which rows."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dlmjax.errors import InputError
from dlmjax.models import ModelSpec, build_network
from dlmjax.models.layout import Layout
from dlmjax.parallel import RULES, Partition, make_mesh

SIZES = [(8, 1, 1, 1), (4, 2, 1, 1), (1, 2, 2, 2), (2, 1, 4, 1), (1, 1, 1, 8)]


@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_sizes_and_axis_types(sizes):
    mesh = make_mesh(*sizes)
    assert tuple(mesh.shape.values()) == sizes and tuple(mesh.axis_names) == ("data", "fsdp", "sequence", "tensor")
    assert set(mesh.axis_types) == {jax.sharding.AxisType.Auto}
    assert sorted(d.id for d in mesh.devices.flat) == list(range(8))


def test_minus_one_takes_what_is_left():
    assert dict(make_mesh().shape) == {"data": 8, "fsdp": 1, "sequence": 1, "tensor": 1}
    assert make_mesh(2, -1, 1, 2).shape["fsdp"] == 2
    assert make_mesh(devices=jax.devices()[:3]).shape["data"] == 3


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ((3, 1, 1, 1), "does not divide 8 devices"),
        ((-1, 3, 1, 1), "does not divide 8 devices"),
        ((2, 2, 1, 1), "does not divide 8 devices"),
        ((-1, -1, 1, 1), "at most one is -1"),
        ((0, 1, 1, 8), "sizes are positive"),
    ],
    ids=str,
)
def test_meshes_that_do_not_fit_are_refused(sizes, message):
    with pytest.raises(InputError, match=message):
        make_mesh(*sizes)


def test_every_logical_axis_of_every_weight_is_in_the_table():
    """And no weight is split twice by the same mesh axis, which JAX would refuse."""
    spec = ModelSpec(vocab=27, depth=2, width=32, heads=8, kv_heads=8, head_dim=8, ffn=64, time_input="adaln")
    network = build_network(spec)
    partition = Partition(make_mesh(1, 2, 1, 4))
    shardings = partition.tree(network.axes)
    assert jax.tree.structure(shardings) == jax.tree.structure(network.abstract())
    assert isinstance(partition, Layout)
    used = [axis for axes in jax.tree.leaves(network.axes, is_leaf=lambda a: isinstance(a, tuple)) for axis in axes if axis]
    assert set(used) <= set(RULES)
    shard = jax.tree.map(lambda s, p: s.shard_shape(p.shape), shardings, network.abstract())
    assert shard["layers"]["query"]["kernel"] == (2, 16, 16)
    assert shard["layers"]["output"]["kernel"] == (2, 16, 16)
    assert shard["embedding"]["table"] == (27, 4) and shard["head"]["kernel"] == (4, 27)
    assert shard["norm"]["scale"] == (32,)


def test_check_names_what_does_not_divide():
    partition = Partition(make_mesh(1, 2, 2, 2))
    sizes = dict(batch=8, length=16, width=32, heads=4, kv_heads=2, ffn=48)
    partition.check(**sizes)
    for name, bad, ways in (("batch", 7, 2), ("length", 6, 4), ("width", 30, 4), ("heads", 3, 2), ("kv_heads", 1, 2), ("ffn", 47, 2)):
        with pytest.raises(InputError, match=f"{name}={bad} is not a multiple of the mesh's .* = {ways}"):
            partition.check(**(sizes | {name: bad}))
    with pytest.raises(InputError, match="batch=3"):
        partition.constrain(jnp.zeros((3, 16)), ("batch", "length"))


@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_one_process_owns_all_rows_and_puts_them_in_order(sizes):
    partition = Partition(make_mesh(*sizes))
    assert partition.rows_of_host(16) == range(16)
    batch = {"tokens": np.arange(16 * 8, dtype=np.int32).reshape(16, 8), "row": np.arange(16, dtype=np.int32)}
    placed = partition.put_batch(batch)
    for name, value in batch.items():
        np.testing.assert_array_equal(placed[name], value)
        assert placed[name].sharding == partition.sharding(("batch", "length")[: value.ndim])
    assert placed["tokens"].addressable_shards[0].data.shape == (16 // (sizes[0] * sizes[1]), 8 // sizes[2])


def test_rows_that_do_not_divide_or_do_not_exist():
    partition = Partition(make_mesh(4, 2))
    with pytest.raises(InputError, match="batch=12 is not a multiple of the mesh's data x fsdp = 8"):
        partition.rows_of_host(12)
    with pytest.raises(InputError, match="process 5 has no device"):
        partition.rows_of_host(16, process=5)


@dataclasses.dataclass(frozen=True)
class Chip:
    """A TPU as the compiler describes one: what a mesh is arranged by."""

    id: int
    slice_index: int
    coords: tuple[int, int, int]
    process_index: int
    platform: str = "tpu"
    device_kind: str = "TPU v5 lite"
    core_on_chip: int = 0


def slices(count, side=2):
    """`count` slices of side x side chips, one host a row of chips."""
    places = itertools.product(range(count), range(side), range(side))
    return [Chip(n, s, (x, y, 0), s * side + y) for n, (s, y, x) in enumerate(places)]


@pytest.mark.parametrize("sizes", [(2, 4, 1, 1), (4, 2, 1, 1), (8, 1, 1, 1), (2, 2, 1, 2), (-1, 2, 1, 2)])
def test_only_data_crosses_from_slice_to_slice(sizes):
    mesh = make_mesh(*sizes, devices=slices(2))
    slice_of = np.vectorize(lambda device: device.slice_index)(mesh.devices)
    for axis in range(1, 4):
        assert (slice_of == slice_of.take([0], axis)).all()
    assert {0, 1} == set(slice_of[:, 0, 0, 0])
    # Half of the data axis lies in each slice, side by side: a ring crosses the slow network twice, not at every hop.
    assert (np.diff(slice_of[:, 0, 0, 0]) != 0).sum() == 1


def test_other_axes_may_not_cross_slices():
    with pytest.raises(InputError, match="data=1 is not a multiple of the 2 slices"):
        make_mesh(1, 8, devices=slices(2))
