"""The phases of a run: their steps, tokens and FLOPs sum to those of the run."""

import itertools

import jax
import pytest

from dlmjax import config as config_lib
from dlmjax.data import load_tokenizer
from dlmjax.experiment import _with_process, assemble
from dlmjax.report import trained_phases
from tests.test_experiment import smallest

BEFORE = ("autoregressive", "blocks(size=4); times=beta")
RUNS = {
    "several": ([f"process.before={BEFORE[0]}@0.2,{BEFORE[1]}@6", "process.name=masked"], [*BEFORE, "masked"], (2, 6)),
    "a curriculum": (["process.name=blocks(size=8,curriculum=((3,2),(5,4)))"], None, (3, 5)),
    "one": (["process.name=masked"], ["masked"], ()),
}


def experiment_of(changes):
    config = smallest()
    config_lib.override(config, ["model.time_input=none", "train.steps=10", *changes])
    return assemble(config, load_tokenizer("char27"), devices=jax.devices()[:1])


@pytest.mark.parametrize("name", RUNS)
def test_phases_are_those_that_were_trained(name):
    changes, texts, ends = RUNS[name]
    experiment = experiment_of(changes)
    found = trained_phases(experiment, 10)
    assert [(phase.start, phase.end) for phase in found] == list(itertools.pairwise((0, *ends, 10)))
    if texts is None:
        assert [phase.process.rpartition(", ")[2] for phase in found] == ["blocks of 2", "blocks of 4", "blocks of 8"]
    else:
        assert [phase.process for phase in found] == texts
        assert sum(phase.flops for phase in found) == pytest.approx(experiment.flops_per_token * 10 * 64)
    assert sum(phase.tokens for phase in found) == 10 * 64
    for phase in found:
        assert phase.flops == pytest.approx(experiment.at_step(phase.end - 1).flops_per_token * phase.tokens)
    # A run that is not complete, and one that is opened with another process for its weights.
    begun = trained_phases(experiment, 1)
    assert [(phase.start, phase.end, phase.tokens) for phase in begun] == [(0, 1, 64)] and begun[0].process == found[0].process
    if name == "several":
        assert trained_phases(_with_process(experiment, "blocks(size=2)", None), 10) == found
