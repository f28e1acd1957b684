"""Canvases on eight virtual devices: the same texts, steps and counts as on one device, whichever axes split rows and weights."""

import functools

import jax
import numpy as np
import pytest

from dlmjax.diffusion.gaussian.plaid import Plaid
from dlmjax.diffusion.process import init_params
from dlmjax.diffusion.processes.autoregressive import Autoregressive
from dlmjax.diffusion.processes.blocks import Blockwise
from dlmjax.diffusion.processes.masked import Masked
from dlmjax.diffusion.processes.uniform import Uniform
from dlmjax.models import Execution, build_network
from dlmjax.parallel import make_mesh
from dlmjax.parallel.sharding import CanvasPartition
from dlmjax.sampling import Canvas, SampleSettings, sampler_for
from dlmjax.sampling.search import Searcher
from tests.models.tiny import VOCAB, lively, spec

MASK, BOS, LENGTH = VOCAB - 1, VOCAB - 2, 8
MASKED = Masked(VOCAB, MASK)
SIZES = dict(depth=1, heads=4, kv_heads=4)
SPECS = {"plain": spec(**SIZES), "timed": spec(**SIZES, time_input="adaln")}
#          data, fsdp, sequence, tensor
MESHES = {"data": (8, 1, 1, 1), "fsdp": (1, 8, 1, 1), "mixed": (2, 2, 1, 2), "tensor": (1, 2, 1, 4)}

CASES = {
    "rule": (MASKED, "plain", {"rule": "entropy_bound(gamma=1)"}, {}),
    "steps": (MASKED, "timed", {"method": "remask(eta=0.2)"}, {}),
    "guided": (MASKED, "plain", {"guidance": 1.5, "rule": "confidence"}, {}),
    "stopped": (MASKED, "plain", {"rule": "left_to_right", "stop": "exit(bound=2.0)", "eos": "first(tokens=2)", "end_ids": (0,)}, {}),
    "calls": (MASKED, "plain", {"cache": True, "steps": 12}, {}),
    "uniform": (Uniform(VOCAB, excluded=(MASK, BOS)), "timed", {}, {}),
    "corrected": (Uniform(VOCAB, excluded=(MASK, BOS)), "timed", {"method": "self_correct(rounds=3)"}, {}),
    "blocks": (Blockwise(MASKED, 4), "plain", {"guidance": 1.0}, {"eos_id": 3}),
    "causal": (Autoregressive(VOCAB, bos_id=BOS, mask_id=MASK), "plain", {}, {"eos_id": 3}),
    "seeded": (Blockwise(MASKED, 4, seed_bos=BOS), "plain", {}, {}),
    "dual": (MASKED, "plain", {"cache": "dual(block=4,every=2)", "rule": "threshold(value=0.3)"}, {}),
    "prompt": (MASKED, "plain", {"cache": "prompt", "guidance": 0.5}, {}),
    "delayed": (MASKED, "plain", {"cache": "delayed(every=3)"}, {}),
    "ordered": (MASKED, "plain", {"cache": "delayed_greedy(every=2,window=4)", "rule": "random"}, {}),
    "stride": (MASKED, "plain", {}, {"stride": 2, "window": 6}),
    "drafted": (MASKED, "plain", {"draft": "own(depth=2)", "rule": "confidence", "temperature": 0.5}, {}),
    "grown": (MASKED, "plain", {"grow": "daedal(initial=4,window=2,longest=8,add=1)", "end_ids": (0,)}, {}),
}
FAST = [("rule", "mixed"), ("blocks", "mixed"), ("dual", "fsdp")]
LONG = [pytest.param(case, mesh, marks=pytest.mark.slow) for case in CASES for mesh in ("fsdp", "mixed") if (case, mesh) not in FAST]
LONG += [pytest.param(case, mesh, marks=pytest.mark.nightly) for case in CASES for mesh in ("data", "tensor")]


@functools.cache
def weights(name):
    return lively(build_network(SPECS[name]).init(jax.random.key(3)))


@functools.cache
def on(name, sizes, dtype="float32"):
    """(network, weights) on a mesh of these sizes; None = on one device."""
    layout = () if sizes is None else (CanvasPartition(make_mesh(*sizes)),)
    network = build_network(SPECS[name], Execution(dtype=dtype), *layout)
    return network, weights(name) if sizes is None else jax.device_put(weights(name), layout[0].tree(network.axes))


def prompts(rows=3, length=LENGTH):
    """Prompts of 1, 2, 3 tokens."""
    tokens_BL = np.random.default_rng(1).integers(0, BOS, (rows, length)).astype(np.int32)
    condition_mask_BL = np.arange(length) < 1 + np.arange(rows)[:, None]
    return Canvas(tokens_BL, condition_mask_BL, (~condition_mask_BL).astype(np.float32))


def sampler_of(case, network):
    process, _, settings, options = CASES[case]
    ids = (MASK, BOS) if case not in ("uniform", "corrected") else ()
    return sampler_for(process, network, SampleSettings(**{"steps": 4, "suppressed_ids": ids, **settings}), **options)


@functools.cache
def alone(case):
    network, params = on(CASES[case][1], None)
    return [sampler_of(case, network).sample(params, prompts(), seed=seed) for seed in (5, 6)]


def compiled(sampler):
    """{function: programs of it} of a sampler, and of those of its pieces."""
    inner = [own for name in ("inner", "_first") if (own := getattr(sampler, name, None)) is not None] or [sampler]
    found = {(number, name): run._cache_size() for number, own in enumerate(inner) for (_, name), run in own._compiled.items()}
    return found | {name: run._cache_size() for name in ("_advance", "_advance_unprompted") if (run := getattr(sampler, name, None))}


@pytest.mark.parametrize(("case", "mesh"), [*FAST, *LONG])
def test_texts_and_counts_are_those_of_one_device(case, mesh):
    """Three rows, which no mesh here divides: rows that pad the batch take no call, and are not in the result."""
    network, params = on(CASES[case][1], MESHES[mesh])
    sampler, seen = sampler_of(case, network), None
    for seed, want in zip((5, 6), alone(case), strict=True):
        got = sampler.sample(params, prompts(), seed=seed)
        np.testing.assert_array_equal(got.tokens_BL, want.tokens_BL)
        np.testing.assert_array_equal(got.fixed_BL, want.fixed_BL)
        np.testing.assert_allclose(got.confidence_BL, want.confidence_BL, atol=1e-4)
        assert (got.steps, got.evaluations) == (want.steps, want.evaluations)
        for name, count_B in want.counts._asdict().items():
            np.testing.assert_array_equal(getattr(got.counts, name), count_B, name)
        # A further batch compiles nothing; other programs are for other shapes, which these policies of the cache have.
        programs = compiled(sampler)
        assert programs and seen in (None, programs)
        seen = programs
        assert case in ("dual", "prompt", "delayed", "ordered", "grown", "blocks", "causal", "seeded") or set(programs.values()) == {1}
    assert (alone(case)[0].tokens_BL != alone(case)[1].tokens_BL).any()


@pytest.mark.slow
def test_gaussian_texts_are_those_of_one_device():
    process = Plaid(VOCAB, MASK, dim=8)
    own = spec(**SIZES, time_input="adaln", input_dim=8)
    texts = []
    for layout in ((), (CanvasPartition(make_mesh(*MESHES["mixed"])),)):
        network = build_network(own, Execution(), *layout)
        params = lively(build_network(own).init(jax.random.key(0))) | {"process": init_params(process, jax.random.key(1))}
        if layout:
            shardings = layout[0].tree(network.axes) | {"process": layout[0].sharding(())}
            params = {name: jax.device_put(tree, shardings[name]) for name, tree in params.items()}
        texts.append(sampler_for(process, network, SampleSettings(steps=4)).sample(params, prompts(), seed=1).tokens_BL)
    np.testing.assert_array_equal(*texts)


@pytest.mark.slow
def test_particles_are_those_of_one_device():
    """Rows that continue in place of others, on a batch that is padded."""
    found = []
    for sizes in (None, MESHES["mixed"]):
        network, params = on("plain", sizes)
        searcher = Searcher("smc(particles=3,resample=1)", sampler_of("rule", network))
        found.append(searcher.sample(params, prompts(), seed=4))
    np.testing.assert_array_equal(*(one.samples.tokens_BL for one in found))
    np.testing.assert_allclose(*(one.scores_PN for one in found), atol=1e-3)
    assert found[0].calls == found[1].calls


@pytest.mark.parametrize(
    ("name", "dtype"),
    [("plain", "float32"), *(pytest.param(*case, marks=pytest.mark.slow) for case in [("timed", "float32"), ("plain", "bfloat16")])],
)
def test_logits_where_rows_and_storage_are_split_are_those_of_one_device_bit_for_bit(name, dtype):
    """A device with one row computes what it computes alone: data and fsdp add no sum. A tensor axis adds two a layer, which round."""
    ones_BL = np.ones((8, LENGTH), np.int32)
    z_BL = np.random.default_rng(0).integers(0, VOCAB, ones_BL.shape).astype(np.int32)
    arrays = z_BL, np.full(z_BL.shape, 0.3, np.float32), ones_BL, np.cumsum(ones_BL, axis=1, dtype=np.int32) - 1

    def program(network):
        def logits(params, z_BL, t_BL, ones_BL, index_BL):
            denoiser = network.bind(params, ones_BL, index_BL)
            return denoiser.logits(denoiser.hidden(z_BL, t_BL))

        # In bfloat16 XLA may otherwise leave out roundings, and leaves out others on a mesh.
        return jax.jit(logits, compiler_options={"xla_allow_excess_precision": dtype == "float32"})

    def found(sizes):
        network, params = on(name, sizes, dtype)
        return np.asarray(program(network)(params, *jax.device_put(arrays, network.layout.sharding(("batch",)))))

    network, params = on(name, None, dtype)
    of_row = program(network)
    want = np.concatenate([np.asarray(of_row(params, *(array[r : r + 1] for array in arrays))) for r in range(8)])
    np.testing.assert_array_equal(found((2, 4, 1, 1)), want)
    if dtype == "float32":
        np.testing.assert_allclose(found((1, 2, 1, 4)), want, atol=1e-4)


def test_padding_conditions_everywhere():
    canvas = prompts()
    assert canvas.padded(3) is canvas
    padded = canvas.padded(8)
    assert padded.batch == 8 and padded.condition_mask_BL[3:].all() and not padded.start_BL[3:].any()
    np.testing.assert_array_equal(padded.tokens_BL[:3], canvas.tokens_BL)
    assert (canvas.condition_mask_BL.sum(axis=1) == [1, 2, 3]).all()
