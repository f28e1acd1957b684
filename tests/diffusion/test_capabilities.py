"""What a process declares of itself: other packages read the declarations and never look at its class."""

import ast
import contextlib
import dataclasses
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import dlmjax
from dlmjax.diffusion import Objective, PerRow, make_weighting
from dlmjax.diffusion.capabilities import make_named, table
from dlmjax.diffusion.declarations import Attention
from dlmjax.diffusion.oracle.enumeration import JointDistribution
from dlmjax.diffusion.oracle.toy import ToyDenoiser, masked_likelihood
from dlmjax.diffusion.process import (
    Bound,
    Forward,
    Process,
    Reverse,
    among,
    cross_entropy,
    draw_tokens,
    exclude,
    init_params,
    row_keys,
    split_rows,
    uniform_rows,
)
from dlmjax.diffusion.registry import PROCESSES, WEIGHTINGS, make_times, process_fields
from dlmjax.errors import InputError
from dlmjax.sampling import METHODS
from tests.diffusion.battery import members
from tests.sampling.test_every_process import VARIANTS

ROOT = pathlib.Path(dlmjax.__file__).parent
CONSUMERS = sorted(path for path in ROOT.rglob("*.py") if path.relative_to(ROOT).parts[0] != "diffusion")
LOOKS = ("isinstance", "issubclass", "getattr", "hasattr", "vars", "type")
# The one place that makes a mask of what a process declares as its attention.
ALLOWED = {("models/masks.py", f"isinstance(attention, {kind})") for kind in ("Attention", "str")}


def kinds(cls=Process):
    return {cls.__name__}.union(*(kinds(sub) for sub in cls.__subclasses__()))


def looks(source: str) -> list[str]:
    """The expressions of a file that look at the class of a process, or compare its attention."""
    names, found = kinds() | {Attention.__name__}, []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in LOOKS:
            words = {name.id for arg in node.args for name in ast.walk(arg) if isinstance(name, ast.Name)}
            words |= {name.attr for arg in node.args for name in ast.walk(arg) if isinstance(name, ast.Attribute)}
            leaf = "config.process" in ast.unparse(node)  # its text, not the process
            if not leaf and words & (names | {"process", "attention", "bound"}):
                found.append(ast.unparse(node))
        if isinstance(node, ast.Compare):
            sides = [side for side in (node.left, *node.comparators) if isinstance(side, ast.Attribute) and side.attr == "attention"]
            if any(ast.unparse(side.value).endswith(("process", "bound")) for side in sides):
                found.append(ast.unparse(node))
        if isinstance(node, ast.MatchClass) and ast.unparse(node.cls).split(".")[-1] in names:
            found.append(ast.unparse(node.cls))
    return found


def test_no_consumer_looks_at_the_class_of_a_process():
    assert looks('process.attention == "full" or isinstance(p, Masked) or type(process) is D or getattr(run.process, "a", 0)')[3:]
    found = {(path.relative_to(ROOT).as_posix(), look) for path in CONSUMERS for look in looks(path.read_text(encoding="utf-8"))}
    assert found == ALLOWED


@dataclasses.dataclass(frozen=True)
class Smallest(Process):
    """Masks with probability t, and what every process must define."""

    vocab: int

    name = "smallest"

    def corrupt(self, keys_B, x_BL, t_BL, valid_BL=None):
        return jnp.where(among(uniform_rows(keys_B, x_BL.shape[1]) < t_BL, valid_BL), self.vocab - 1, x_BL)

    def loss(self, logits, x, z, t):
        return jnp.where(z == self.vocab - 1, cross_entropy(logits, x, (self.vocab - 1,)) / jnp.where(z == x, 1.0, t), 0.0)

    def prior(self, keys_B, length):
        return jnp.full((keys_B.shape[0], length), self.vocab - 1)

    def reverse_step(self, keys_B, logits_BLV, z_BL, t_BL, s_BL):
        which_B, token_B = split_rows(keys_B)
        reveal_BL = uniform_rows(which_B, z_BL.shape[1]) * t_BL < t_BL - s_BL
        return jnp.where((z_BL == self.vocab - 1) & reveal_BL, draw_tokens(token_B, exclude(logits_BLV, (self.vocab - 1,))), z_BL)


def test_a_process_has_few_members_and_requires_five():
    """The counts are those of docs/processes.md. What differs between processes in groups is one declared value each."""
    assert [len(members(kind)) for kind in (Process, Forward, Bound, Reverse)] == [39, 10, 13, 6]
    assert "39 members" in (ROOT.parent / "docs" / "processes.md").read_text(encoding="utf-8")
    assert Process.__abstractmethods__ == {"corrupt", "loss", "prior", "reverse_step"}
    process, law = Smallest(4), JointDistribution.random(3, 2, seed=0)
    assert all(isinstance(process, part) for part in (Process, Forward, Bound, Reverse)) and Objective(process).trains_bound
    keys_B, denoiser = row_keys(jax.random.key(0), jnp.arange(4096)), ToyDenoiser(law, 4, masked_likelihood(3, 3))
    x_BL = law.sequences_Xn[np.random.default_rng(0).choice(9, 4096, p=law.probability_X)]
    batch = {"tokens": jnp.asarray(x_BL), "segments": jnp.ones(x_BL.shape, jnp.int32), "row": jnp.arange(4096)}
    nats = [float(Objective(process)(denoiser, batch, jax.random.key(i), 4096)[1]["nats"]) / 4096 for i in range(8)]
    assert abs(np.mean(nats) - law.entropy) < 4 * np.std(nats, ddof=1) / np.sqrt(8) < 0.1 * law.entropy
    z_BL, ones_BL = process.prior(keys_B, 2), jnp.ones((4096, 2))
    tokens_BL = process.reverse_step(keys_B, denoiser.logits(denoiser.hidden(z_BL, ones_BL)), z_BL, ones_BL, 0 * ones_BL)
    assert set(np.unique(tokens_BL)) == {0, 1, 2}


def test_the_page_is_the_declarations():
    page = (ROOT.parent / "docs" / "processes.md").read_text(encoding="utf-8")
    assert table() in page, "paste what this prints: python -m dlmjax.diffusion.capabilities"


@pytest.mark.parametrize("name", [*PROCESSES, *VARIANTS])
def test_declarations_agree_with_what_a_process_does(name):
    process = make_named(name)
    assert set(process.capabilities.methods) <= set(METHODS) and set(process.capabilities.weightings) <= set(WEIGHTINGS)
    assert process.capabilities.weighting.name in process.capabilities.weightings
    assert process.output.predicts in ("logits", "scores", "vectors") and (process.output.predicts == "vectors") >= (
        process.output.columns != process.vocab
    )
    assert process.attention.block_size in {phase.attention.block_size for phase in process.phases.processes}
    for times in (make_times("per_block", size=2), make_times("hyper", window=2)):
        with pytest.raises(InputError) if process.time_domain.one_time_per_row else contextlib.nullcontext():
            process.time_domain.adapt(times)
    process = process.bound.with_params(init_params(process.bound, jax.random.key(0)) or None)
    keys_B = row_keys(jax.random.key(0), jnp.arange(4))
    if not process.states.dim and not process.attention.causal:
        start_BL = process.states.to_tokens(process.prior(keys_B, 32))
        assert bool(jnp.any(start_BL == process.capabilities.prior_mask_id)) == (process.capabilities.prior_mask_id is not None), (
            "masks in the prior"
        )
    if process.absorbing_id is not None:
        x_BL = jnp.zeros((4, 32), jnp.int32)
        z_BL = process.states.to_tokens(process.corrupt(keys_B, x_BL, process.time_domain.quantize(jnp.full((4, 32), 0.5), x_BL == 0)))
        assert set(np.unique(z_BL)) == {0, process.absorbing_id} and process.absorbing_id in process.suppressed_ids
    counted = process.capabilities.count_form
    if counted is not None:
        assert (
            process.capabilities.any_order
            and counted.time_domain.one_time_per_row
            and counted.bound.suppressed_ids == process.suppressed_ids
        )


# Noise left at t = 0, and text left at t = 1 alone.
_ENDS = {"eps=0.1": {"eps", "schedule"}, "schedule=log_linear": {"schedule"}}
_NAMES = (*PROCESSES, "blocks(noise=uniform)", "uniform(parameterisation=posterior)")
_CLIPPED = [(name, end) for end, fields in _ENDS.items() for name in _NAMES if fields & process_fields(name.split("(")[0])]


@pytest.mark.parametrize("name, end", [*((name, "") for name in (*PROCESSES, *VARIANTS)), *_CLIPPED])
def test_a_pass_at_time_0_is_paid_where_noise_is_left_there(name, end):
    """`boundary.reconstruction` is whether any token is noisy at t = 0 and so costs something; else it is a pass for a zero."""
    process = make_named(f"{name.removesuffix(')')}{', ' if '(' in name else '('}{end})" if end else name).bound
    if process.states.dim:
        return  # vectors are never without noise
    x_BL, t_BL = jnp.zeros((64, 256), jnp.int32), jnp.zeros((64, 256))
    z_BL = process.corrupt(row_keys(jax.random.key(0), jnp.arange(64)), x_BL, t_BL)
    nats_BL = process.reconstruction(jax.random.normal(jax.random.key(1), (64, 256, process.output.columns)), x_BL, z_BL)
    assert bool(jnp.any(nats_BL != 0)) == process.boundary.reconstruction <= process.boundary.any
    assert (
        process.attention.causal
        or process.time_domain.steps
        or bool(jnp.any(process.corrupted(x_BL, z_BL))) == process.boundary.reconstruction
    )


@pytest.mark.parametrize("name", [*PROCESSES, *VARIANTS])
def test_every_weighting_fits_a_process_or_is_refused_by_name(name):
    """What is declared is differentiable on this process's states; what is not ends in one line before anything is traced."""
    process = make_named(name)
    process = process.with_params(init_params(process, jax.random.key(0)))
    keys_B, x_BL, t_BL = row_keys(jax.random.key(0), jnp.arange(2)), jnp.zeros((2, 8), jnp.int32), jnp.full((2, 8), 0.5)
    z_BL = jax.eval_shape(process.corrupt, keys_B, x_BL, t_BL)
    logits_BLV = jax.ShapeDtypeStruct((2, 8, process.output.columns), jnp.float32)
    for weighting in map(make_weighting, WEIGHTINGS):
        if weighting.supported_as not in process.capabilities.weightings:
            refusal = rf"^weighting {weighting.name}[^ ]* conflicts with process {process.name}; it supports .*$"
            with pytest.raises(InputError, match=refusal):
                Objective(process, process.time_domain.adapt(PerRow()), weighting)
            continue
        objective = Objective(process, process.time_domain.adapt(PerRow()), weighting)

        def total(logits_BLV, z_BL, objective=objective):
            of_rows = objective.process.loss_inputs(x_BL, z_BL, t_BL)
            nats_BL = objective.process.loss(logits_BLV, x_BL, z_BL, t_BL, *of_rows)
            return jnp.sum(objective.weighting.trained(objective.process, logits_BLV, x_BL, z_BL, t_BL, nats_BL))

        assert jax.eval_shape(jax.grad(total), logits_BLV, z_BL).shape == logits_BLV.shape
