"""The counter of collectives against hand-counted text of each form, and against the collectives of a program compiled here."""

import jax
import jax.numpy as jnp
import pytest

from dlmjax.parallel import Partition, make_mesh
from dlmjax.plan.collectives import Collective, group_of, read_collectives

MESH = {"data": 2, "fsdp": 4}

# A loop of six layers, counter stepping by 2 up to 12; inside it a gather that a chain of fusions repeats, and a scattered sum.
TEXT = """HloModule step, is_scheduled=true

%part_one (p: bf16[1,32,64]) -> bf16[1,128,64] {
  ROOT %all-gather.1 = bf16[1,128,64]{2,1,0} all-gather(%p), channel_id=6, replica_groups=mesh['a'=2,'b'=4] {'b'}, dimensions={1}
}

%part_two (p: bf16[1,32,64]) -> bf16[1,128,64] {
  %all-gather.2 = bf16[1,128,64]{2,1,0} all-gather(%p), channel_id=6, replica_groups=mesh['a'=2,'b'=4] {'b'}, dimensions={1}
  ROOT %c = bf16[1,128,64]{2,1,0} copy(%all-gather.2)
}

%all-reduce-scatter.7 (g: f32[128,64]) -> f32[32,64] {
  %all-reduce.3 = f32[128,64]{1,0} all-reduce(%g), channel_id=9, replica_groups={{0,1,2,3},{4,5,6,7}}, to_apply=%sum
  ROOT %slice = f32[32,64]{1,0} dynamic-slice(%all-reduce.3, %i)
}

%body (state: (s32[], bf16[1,32,64])) -> (s32[], bf16[1,32,64]) {
  %state = (s32[], bf16[1,32,64]) parameter(0)
  %two = s32[]{:T(128)} constant(2)
  %i = s32[] get-tuple-element(%state), index=0
  %w = bf16[1,32,64] get-tuple-element(%state), index=1
  %f1 = bf16[1,128,64] fusion(%w), kind=kCustom, calls=%part_one
  %f2 = bf16[1,128,64] fusion(%w), kind=kCustom, calls=%part_two
  %f3 = f32[32,64] fusion(%f2), kind=kCustom, calls=%all-reduce-scatter.7
  %next = s32[] add(%i, %two)
  ROOT %out = (s32[], bf16[1,32,64]) tuple(%next, %w)
}

%condition (state: (s32[], bf16[1,32,64])) -> pred[] {
  %limit = s32[] constant(12)
  %state = (s32[], bf16[1,32,64]) parameter(0)
  %i = s32[] get-tuple-element(%state), index=0
  ROOT %lt = pred[] compare(%i, %limit), direction=LT
}

%unknown (state: (s32[], s32[])) -> pred[] {
  %state = (s32[], s32[]) parameter(0)
  %i = s32[] get-tuple-element(%state), index=0
  %n = s32[] get-tuple-element(%state), index=1
  ROOT %lt = pred[] compare(%i, %n), direction=LT
}

%chunks (state: (s32[], s32[])) -> (s32[], s32[]) {
  %state = (s32[], s32[]) parameter(0)
  %permuted = (f32[16]{0}, f32[16]{0}, u32[], u32[]) collective-permute-start(%x), channel_id=11, PAIRS
  ROOT %out = (s32[], s32[]) tuple(%i, %n)
}

ENTRY %main (a: f32[8]) -> f32[] {
  %a = f32[8] parameter(0)
  %layers = (s32[], bf16[1,32,64]) while(%init), condition=%condition, body=%body, metadata={op_name="jit(step)/while"}
  %rows = (s32[], s32[]) while(%start), condition=%unknown, body=%chunks
  %sums = (f32[], f32[8]{0}) all-reduce(%x, %y), channel_id=1, replica_groups=[4,2]<=[2,4]T(1,0), to_apply=%sum
  %scatter = f32[2,8]{1,0} reduce-scatter(%z), channel_id=2, replica_groups=[1,8]<=[8], dimensions={0}
  ROOT %alone = f32[] all-reduce(%v), channel_id=3, replica_groups={{0},{1},{2},{3},{4},{5},{6},{7}}, to_apply=%sum
}
""".replace("PAIRS", "source_target_pairs={{0,1},{1,2},{2,3},{3,0},{4,5},{5,6},{6,7},{7,4}}")


def test_every_form_is_counted():
    fsdp, data, everything = (0, 1, 2, 3), (0, 4), tuple(range(8))
    found = read_collectives(TEXT, MESH)
    assert set(found) == {
        Collective("all-gather", ("fsdp",), fsdp, 6.0, 128 * 64 * 2.0),
        Collective("reduce-scatter", ("fsdp",), fsdp, 6.0, 128 * 64 * 4.0),
        Collective("collective-permute", ("fsdp",), fsdp, 1.0, 64.0, bounded=False),
        Collective("all-reduce", ("data",), data, 1.0, 9 * 4.0),
        Collective("reduce-scatter", ("data", "fsdp"), everything, 1.0, 8 * 16 * 4.0),
    }
    assert found == sorted(found, key=lambda each: -each.received)


@pytest.mark.parametrize(
    ("kind", "factor"), [("all-gather", 0.75), ("reduce-scatter", 0.75), ("all-reduce", 1.5), ("collective-permute", 1)]
)
def test_what_a_device_receives(kind, factor):
    assert Collective(kind, ("fsdp",), (0, 1, 2, 3), 5.0, 100.0).received == 500 * factor


@pytest.mark.parametrize(
    ("groups", "first"),
    [
        ("mesh['a'=2,'b'=4], device_ids=([4,2]T(1,0)) {'b'}", (0, 2, 4, 6)),
        ("mesh['a'=2,'b'=4] {'a','b'}", tuple(range(8))),
        ("[2,4]<=[8]", (0, 1, 2, 3)),
        ("{}", tuple(range(8))),
    ],
)
def test_groups_as_xla_writes_them(groups, first):
    text = (
        f"ENTRY %main () -> f32[] {{\n  ROOT %sum = f32[4]{{0}} all-reduce(%x), channel_id=1, replica_groups={groups}, to_apply=%add\n}}\n"
    )
    assert [each.group for each in read_collectives(text, MESH)] == [first]


def test_what_crosses_slices():
    """A program of one of two slices: each of its chips sums its own piece with the chip of its position in the other."""
    attributes = '_xla_host_transfer_handler_name="xla_megascale_runtime",_xla_megascale_target="{1,2}x{0:3}"'
    recv = f'recv(%t), channel_id=1, frontend_attributes={{{attributes},_xla_megascale_transfer_type="ALL_REDUCE"}}'
    text = f"ENTRY %main () -> f32[] {{\n  %got = (f32[32,8,128]{{2,1,0}}, u32[], token[]) {recv}\n}}\n"
    assert read_collectives(text, MESH) == [Collective("all-reduce", ("data",), (0, 4), 1.0, 32 * 8 * 128 * 4.0)]


def test_groups_in_an_unknown_form_are_not_left_out():
    text = "ENTRY %main () -> f32[] {\n  ROOT %sum = f32[4]{0} all-reduce(%x), channel_id=1, replica_groups=novel(8), to_apply=%add\n}\n"
    with pytest.raises(ValueError, match="novel"):
        read_collectives(text, MESH)


def test_groups_of_axes():
    assert group_of(("data",), MESH) == (0, 4)
    assert group_of(("fsdp",), MESH) == (0, 1, 2, 3)
    assert group_of(("data", "fsdp"), MESH) == tuple(range(8))


def test_a_program_that_is_compiled_here():
    """Three layers whose weights are stored split over four: three gathers of one layer's weight, in bytes of what is gathered."""
    partition = Partition(make_mesh(2, 4))
    stored, rows = partition.sharding(("layer", "embed", None)), partition.sharding(("batch", None))

    def run(w_LDD, x_BD):
        def layer(x, w):
            whole = jax.lax.with_sharding_constraint(w, partition.sharding((None, None)))
            return jax.lax.with_sharding_constraint(jnp.tanh(x @ whole), rows), None

        return jax.lax.scan(layer, x_BD, w_LDD)[0]

    w = jax.ShapeDtypeStruct((3, 64, 64), jnp.float32, sharding=stored)
    x = jax.ShapeDtypeStruct((8, 64), jnp.float32, sharding=rows)
    compiled = jax.jit(run).lower(w, x).compile()
    found = [each for each in read_collectives(compiled.as_text(), dict(partition.mesh.shape)) if each.kind == "all-gather"]
    assert sum(each.count * each.bytes for each in found) == 3 * 64 * 64 * 4
    assert {each.axes for each in found} == {("fsdp",)}
