"""Names and plain values in, frozen dataclasses out; what is wrong is said with the nearest valid name."""

import inspect
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dlmjax import diffusion
from dlmjax.choices import requirement
from dlmjax.diffusion import (
    Autoregressive,
    Capped,
    Clipped,
    Cosine,
    Linear,
    Llada,
    Masked,
    MaskedCount,
    Mixture,
    PerRow,
    Piecewise,
    Polynomial,
    Power,
    Process,
    Schedule,
    UniformTimes,
    llada,
    log_linear,
    make_process,
    make_schedule,
    make_times,
    make_weighting,
    symmetric,
)
from dlmjax.diffusion.hyperschedule import Hyperschedule, PerBlock
from dlmjax.diffusion.process import bind_process, init_params
from dlmjax.diffusion.registry import PROCESSES, SCHEDULES, TIME_DISTRIBUTIONS, TIMES, WEIGHTINGS
from dlmjax.diffusion.times import Beta, TwoMode
from dlmjax.errors import InputError

# What a run always hands over, whatever the process.
FACTS = {
    "vocab": 8,
    "mask_id": 5,
    "pad_id": 6,
    "bos_id": 7,
    "eos_id": 7,
    "schedule": "linear",
    "excluded": (6,),
    "counts_V": tuple(range(8)),
}


@pytest.mark.parametrize("name", PROCESSES)
def test_every_process_is_made_from_the_same_facts(name):
    process = make_process(name, **FACTS)
    assert isinstance(process, Process) and process.name == name and process.vocab == 8
    assert make_process(name, **{**FACTS, "schedule": Linear()}) == process
    assert hash(process) == hash(make_process(name, **FACTS))


@pytest.mark.parametrize("name", PROCESSES)
def test_every_process_is_a_tree_of_its_parameters(name):
    """Its leaves are the parameters; all else is static, hashable and the same for all their values, as compiled programs require."""
    process = make_process(name, **FACTS)
    params = init_params(process, jax.random.key(0))
    bound = bind_process(process, {"process": params} if params else {})
    assert jax.tree.structure(process.parameters) == jax.tree.structure(params)
    assert [*map(id, jax.tree.leaves(bound))] == [*map(id, jax.tree.leaves(params))] and not jax.tree.leaves(process)
    moved = jax.tree.map(lambda leaf: leaf + 1, bound)
    assert type(moved) is type(process) and moved.with_params(None) == process
    assert hash(jax.tree.structure(moved)) == hash(jax.tree.structure(bound)) and jax.tree.structure(moved) == jax.tree.structure(bound)
    for leaf, start in zip(jax.tree.leaves(moved.params), jax.tree.leaves(params), strict=True):
        np.testing.assert_array_equal(leaf, start + 1)


@pytest.mark.parametrize("name", PROCESSES)
def test_the_network_is_conditioned_on_t_by_all_but_plaid_and_autoregression(name):
    """docs/processes.md says so: a schedule that moves must be told by its log-SNR, autoregression has no t, all others stay where t
    says."""
    process = make_process(name, **FACTS)
    t_1L = jnp.linspace(0.1, 0.9, 5)[None]
    params = init_params(process, jax.random.key(0))
    process = process.with_params({**params, "ends": jnp.asarray([-2.0, 5.0])} if "ends" in params else params)
    told = np.allclose(process.time_embedding_input(t_1L), t_1L, atol=1e-6)
    assert told == (name not in ("plaid", "autoregressive"))


def test_processes():
    assert make_process("masked", **FACTS) == Masked(8, 5, Linear(), (6,))
    assert make_process("masked", vocab=8, mask_id=5, schedule="cosine", eps=1e-3) == Masked(8, 5, symmetric(Cosine(), 1e-3))
    assert make_process("masked", vocab=8, mask_id=5, schedule={"name": "polynomial", "power": 3.0}).schedule == Polynomial(3.0)
    assert make_process("masked", vocab=8, mask_id=5, schedule=Cosine(), eps=0.1).schedule == symmetric(Cosine(), 0.1)
    assert make_process("llada", vocab=8, mask_id=5, eps=0.01) == Llada(8, 5, eps=0.01)
    assert make_process("llada", vocab=8, mask_id=5).schedule == llada(1e-3)
    assert make_process("masked_count", vocab=8, mask_id=5) == MaskedCount(8, 5)
    assert make_process("autoregressive", **FACTS) == Autoregressive(8, 7, 5, (6,))


@pytest.mark.parametrize("name", SCHEDULES)
def test_every_schedule_has_a_name(name):
    assert isinstance(make_schedule(name), Schedule)
    assert make_schedule(name, eps=0.01).has_boundary


def test_schedules():
    assert make_schedule("cosine", eps=0.0) == Cosine()
    assert make_schedule("linear", eps=0.01) == Clipped(Linear(), 0.01, 0.99)
    assert make_schedule("log_linear", eps=0.01) == log_linear(0.01)
    assert make_schedule("llada", eps=0.01) == llada(0.01)


@pytest.mark.parametrize("name", TIMES)
def test_every_way_to_draw_times_has_a_name(name):
    values = {"importance": {"heights": [2.0, 1.0]}, "mixture": {"parts": [{"law": "flat"}, {"law": "power"}], "probabilities": [0.5, 0.5]}}
    times = make_times(name, **values.get(name, {}))
    assert times.covers and times.stratified == (name != "uniform") and hash(times)


def test_times():
    assert make_times("stratified") == PerRow(UniformTimes())
    assert make_times("uniform", low=0.1) == PerRow(UniformTimes(0.1, 1.0), stratified=False)
    assert make_times("power", exponent=0.3, stratified=False) == PerRow(Power(0.3), stratified=False)
    parts = [{"law": "piecewise", "heights": [1.0, 2.0]}, {}]
    mixed = make_times("mixture", parts=parts, probabilities=(0.25, 0.75))
    assert mixed.distribution == Mixture((Piecewise((1.0, 2.0)), UniformTimes()), (0.25, 0.75))
    assert make_times("per_block", size=4, low=0.3, high=0.8) == PerBlock(4, UniformTimes(0.3, 0.8))
    assert make_times("hyper", window=2, law="beta", a=1.0, b=2.0, stratified=False) == Hyperschedule(2, Beta(1.0, 2.0), False)
    assert make_times("two_mode", low=0.2) == PerRow(TwoMode(0.2))
    assert parts == [{"law": "piecewise", "heights": [1.0, 2.0]}, {}], "the caller's values are left alone"


def test_weightings():
    assert make_weighting("capped", cap=5.0) == Capped(5.0)
    assert [make_weighting(name).name for name in WEIGHTINGS] == list(WEIGHTINGS)
    assert [name for name in WEIGHTINGS if make_weighting(name).is_bound] == ["bound"]
    assert set(TIME_DISTRIBUTIONS) >= {law for law, _ in TIMES.values()}


@pytest.mark.parametrize(
    "make, says",
    [
        (lambda: make_process("maskd"), "unknown process 'maskd'; did you mean 'masked'"),
        (lambda: make_process("xyz"), "choose one of masked, masked_count, "),
        (lambda: make_process("masked", vocab=8), "process masked requires mask_id"),
        (lambda: make_process("masked", vocab=8, mask_id=5, shedule="cosine"), "no value 'shedule'; did you mean 'schedule'"),
        (lambda: make_process("llada", vocab=8, mask_id=5, schedule="cosine"), "schedule of its own"),
        (lambda: make_process("autoregressive", vocab=8, bos_id=7, schedule=Cosine()), "schedule of its own"),
        (lambda: make_process("autoregressive", vocab=8, bos_id=7, eps=0.1), "no value 'eps'"),
        (lambda: make_schedule("cosin"), "unknown schedule 'cosin'; did you mean 'cosine'"),
        (lambda: make_schedule("linear", power=2), "schedule linear has no value 'power'; it takes none"),
        (lambda: make_schedule("linear", eps=0.7), r"\(0, 0.5\)"),
        (lambda: make_times("stratifed"), "did you mean 'stratified'"),
        (lambda: make_times("importance"), "times importance requires heights"),
        (
            lambda: make_times("mixture", parts=[{"law": "flt"}], probabilities=[1.0]),
            "unknown time distribution 'flt'; did you mean 'flat'",
        ),
        (lambda: make_times("power", exponnt=0.5), "did you mean 'exponent'"),
        (lambda: make_times("per_block"), "times per_block requires size"),
        (lambda: make_times("hyper", windw=2), "has no value 'windw'"),
        (lambda: make_process("spindle", vocab=8, mask_id=5), "requires counts_V"),
        (lambda: make_process("d3pm", vocab=8, mask_id=5, kernel="knn"), "choose one of uniform, absorbing, gaussian, neighbours"),
        (lambda: make_weighting("cap"), "did you mean 'capped'"),
    ],
)
def test_mistakes_are_named(make, says):
    with pytest.raises(InputError, match=says):
        make()


def test_public_names_exist():
    assert len(set(diffusion.__all__)) == len(diffusion.__all__)
    assert all(hasattr(diffusion, name) for name in diffusion.__all__)
    assert {make.__name__ for make in PROCESSES.values() if inspect.isclass(make)} <= set(diffusion.__all__)


def test_the_words_of_every_value_are_grammatical():
    """Whatever any name in the registry takes: no doubled plural, no bracket of an annotation."""
    for table in (PROCESSES, SCHEDULES, TIME_DISTRIBUTIONS, WEIGHTINGS):
        for name, make in table.items():
            for field, parameter in inspect.signature(make, eval_str=True).parameters.items():
                words = requirement(parameter.annotation)
                assert not re.search(r"ss\b|\[|\ba list of list\b|\ba [AEIOUaeiou]", words), (name, field, words)
    with pytest.raises(InputError, match="curriculum requires a list of pairs of whole numbers, not 3"):
        make_process("blocks", **FACTS, curriculum=3)
