"""The analytic model against counts made another way: XLA's cost analysis, shapes by hand, rings on paper."""

import dataclasses

import numpy as np
import pytest

from dlmjax.models import Execution
from dlmjax.models.flops import training_flops_per_token
from dlmjax.models.masks import BlockDiffusion, Causal, Full
from dlmjax.plan import roofline
from dlmjax.plan.collectives import Collective
from dlmjax.plan.topology import CHIPS, Topology, describe
from tests.models import tiny

SPEC = tiny.spec(depth=3, width=64, heads=8, kv_heads=4, head_dim=8, ffn=128)
MESH = {"data": 2, "fsdp": 4, "sequence": 1, "tensor": 2}
LOAD = roofline.Load(SPEC, Execution(dtype="bfloat16"), length=32, batch=16, accumulation=2, parameters=100_000, head_share=0.5)


def run_as(**execution):
    return dataclasses.replace(LOAD, execution=dataclasses.replace(LOAD.execution, **execution))


def test_without_recomputation_executed_flops_are_the_model_flops():
    assert roofline.executed_flops(LOAD) == pytest.approx(16 * 32 * training_flops_per_token(SPEC, 32, 0.5))


def test_recomputation_and_skipped_blocks():
    flops = {remat: roofline.executed_flops(run_as(remat=remat)) for remat in ("none", "dots", "full")}
    assert flops["none"] < flops["dots"] < flops["full"] < 4 / 3 * flops["none"]
    seen = dataclasses.replace(run_as(attention="splash"), visible=0.5)
    assert roofline.executed_flops(seen) < roofline.executed_flops(run_as(attention="splash"))


@pytest.mark.parametrize(("mask", "length", "share"), [(Full(), 64, 1.0), (Causal(), 64, 10 / 16), (BlockDiffusion(16, 64), 128, 20 / 64)])
def test_visible_share(mask, length, share):
    """Blocks of 16: causal is the triangle with its diagonal; the 2L mask has the noisy diagonal, what is before it, the clean triangle."""
    assert roofline.visible_share(mask, length, block=16) == share


def test_activations_by_policy():
    """ "full" keeps each layer's input: depth x rows x width x 2 bytes, rows split over data and fsdp and microbatches."""
    rows = 16 * 32 / 2 / 8
    assert LOAD.tokens(MESH) == rows
    kept = [roofline.activation_bytes(run_as(remat=remat), MESH) for remat in ("full", "dots", "none")]
    assert kept[0] == 3 * rows * 64 * 2
    assert kept == sorted(kept)
    assert roofline.activation_bytes(run_as(attention="splash"), MESH) < kept[2]  # no scores are kept


def test_collectives_of_a_layout():
    """One stacked matrix: gathered twice and scattered once a layer and microbatch, its shards summed over data."""
    shapes = [((3, 64, 128), ("layer", "embed", "ffn"))]
    found = {(each.kind, each.axes): each for each in roofline.expected_collectives(LOAD, MESH, shapes)}
    gather, scatter = found["all-gather", ("fsdp",)], found["reduce-scatter", ("fsdp",)]
    assert (gather.count, gather.bytes) == (2 * 3 * 2, 64 * 128 / 2 * 2)  # half of ffn on each tensor half, bfloat16
    assert (scatter.count, scatter.bytes) == (3 * 2, 64 * 128 / 2 * 4)
    assert found["all-reduce", ("data",)].bytes == 64 * 128 / 2 / 4 * 4
    assert found["all-reduce", ("tensor",)].count == 3 * 2 * 4
    alone = roofline.expected_collectives(LOAD, dict.fromkeys(MESH, 1), shapes)
    assert alone == []


def test_a_ring_on_paper():
    """Gathering 80 MB over a closed ring of four v5p chips: each receives three quarters at a third of the chip's rate."""
    topology = Topology("v5p:4x4x4", CHIPS["v5p"], 64, (4, 4, 4))
    coords = np.asarray([(0, x, 0, 0) for x in range(4)])
    gather = Collective("all-gather", ("fsdp",), (0, 1, 2, 3), 1.0, 80e6)
    assert roofline.seconds_of(gather, topology, coords) == pytest.approx((60e6 / 200e9, 0.0))
    both = dataclasses.replace(gather, kind="all-reduce")
    assert roofline.seconds_of(both, topology, coords)[0] == pytest.approx(2 * 60e6 / 200e9)


def test_between_nodes_each_chip_carries_its_share():
    """Sixteen GPUs in two nodes gather 160 MB: 7/8 by NVLink, and half of it, an eighth a GPU, by the network."""
    gpus = describe("h100:16")
    gather = Collective("all-gather", ("fsdp",), tuple(range(16)), 1.0, 160e6)
    fast, network = roofline.seconds_of(gather, gpus, gpus.coords())
    assert fast == pytest.approx(160e6 * 7 / 8 / 450e9)
    assert network == pytest.approx(160e6 / 2 / 8 / 50e9)
    assert roofline.crosses(gather, gpus, gpus.coords()) == "network"
    assert roofline.crosses(dataclasses.replace(gather, group=tuple(range(8))), gpus, gpus.coords()) == "NVLink"


def test_mfu_of_a_compute_bound_step_without_recomputation_is_one():
    gpus = describe("h100:16")
    work = roofline.Work(model_flops=1e18, executed_flops=1e18, tokens=1)
    times = roofline.step_times(1e18 / 16, 1.0, [], gpus, gpus.coords())
    assert times.bound == "compute" and roofline.mfu(work, times.overlapped, gpus) == pytest.approx(1.0)
