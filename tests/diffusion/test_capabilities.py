"""What a process declares of itself: other packages read the declarations and never look at its class."""

import ast
import contextlib
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import dlmjax
from dlmjax.diffusion import Objective, PerRow, make_weighting
from dlmjax.diffusion.capabilities import make_named, table
from dlmjax.diffusion.process import Blocks, Process, row_keys
from dlmjax.diffusion.registry import PROCESSES, WEIGHTINGS, make_times, process_fields
from dlmjax.errors import InputError
from dlmjax.sampling import METHODS
from tests.sampling.test_every_process import VARIANTS

ROOT = pathlib.Path(dlmjax.__file__).parent
CONSUMERS = sorted(path for path in ROOT.rglob("*.py") if path.relative_to(ROOT).parts[0] != "diffusion")
LOOKS = ("isinstance", "issubclass", "getattr", "hasattr", "vars", "type")
# The one place that makes a mask of what a process declares as its attention.
ALLOWED = {("models/masks.py", f"isinstance(attention, {kind})") for kind in ("Blocks", "str")}


def kinds(cls=Process):
    return {cls.__name__}.union(*(kinds(sub) for sub in cls.__subclasses__()))


def looks(source: str) -> list[str]:
    """The expressions of a file that look at the class of a process, or compare its attention."""
    names, found = kinds() | {Blocks.__name__}, []
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


def test_the_page_is_the_declarations():
    page = (ROOT.parent / "docs" / "processes.md").read_text(encoding="utf-8")
    assert table() in page, "paste what this prints: python -m dlmjax.diffusion.capabilities"


@pytest.mark.parametrize("name", [*PROCESSES, *VARIANTS])
def test_declarations_agree_with_what_a_process_does(name):
    process = make_named(name)
    assert set(process.methods) <= set(METHODS) and set(process.weightings) <= set(WEIGHTINGS)
    assert process.weighting.name in process.weightings
    assert process.predicts in ("logits", "scores", "vectors") and (process.predicts == "vectors") >= (process.outputs != process.vocab)
    assert process.sequential == (process.attention != "full") and process.streams == 1 + (process.block_size is not None)
    assert process.block_size is None or process.block_size in process.block_sizes
    for times in (make_times("per_block", size=2), make_times("hyper", window=2)):
        with pytest.raises(InputError) if process.one_time_per_row else contextlib.nullcontext():
            process.adapt_times(times)
    process = process.bound.with_params(process.bound.init(jax.random.key(0)) or None)
    keys_B = row_keys(jax.random.key(0), jnp.arange(4))
    if not process.input_dim and not process.causal:
        start_BL = process.to_tokens(process.prior(keys_B, 32))
        assert bool(jnp.any(start_BL == process.prior_mask_id)) == (process.prior_mask_id is not None), "masks in the prior"
    if process.absorbing_id is not None:
        x_BL = jnp.zeros((4, 32), jnp.int32)
        z_BL = process.to_tokens(process.corrupt(keys_B, x_BL, process.quantize_time(jnp.full((4, 32), 0.5), x_BL == 0)))
        assert set(np.unique(z_BL)) == {0, process.absorbing_id} and process.absorbing_id in process.suppressed_ids
    counted = process.count_form()
    if counted is not None:
        assert process.any_order and counted.one_time_per_row and counted.bound.suppressed_ids == process.suppressed_ids


# Noise left at t = 0, and text left at t = 1 alone.
_ENDS = {"eps=0.1": {"eps", "schedule"}, "schedule=log_linear": {"schedule"}}
_NAMES = (*PROCESSES, "blocks(noise=uniform)", "uniform(parameterisation=posterior)")
_CLIPPED = [(name, end) for end, fields in _ENDS.items() for name in _NAMES if fields & process_fields(name.split("(")[0])]


@pytest.mark.parametrize("name, end", [*((name, "") for name in (*PROCESSES, *VARIANTS)), *_CLIPPED])
def test_a_pass_at_time_0_is_paid_where_noise_is_left_there(name, end):
    """`has_reconstruction` is whether any token is noisy at t = 0 and so costs something; declared by default, it is a pass for a zero."""
    process = make_named(f"{name.removesuffix(')')}{', ' if '(' in name else '('}{end})" if end else name).bound
    if process.input_dim:
        return  # vectors are never without noise
    x_BL, t_BL = jnp.zeros((64, 256), jnp.int32), jnp.zeros((64, 256))
    z_BL = process.corrupt(row_keys(jax.random.key(0), jnp.arange(64)), x_BL, t_BL)
    nats_BL = process.reconstruction(jax.random.normal(jax.random.key(1), (64, 256, process.outputs)), x_BL, z_BL)
    assert bool(jnp.any(nats_BL != 0)) == process.has_reconstruction <= process.has_boundary
    assert process.causal or process.steps or bool(jnp.any(process.corrupted(x_BL, z_BL))) == process.has_reconstruction


@pytest.mark.parametrize("name", [*PROCESSES, *VARIANTS])
def test_every_weighting_fits_a_process_or_is_refused_by_name(name):
    """What is declared is differentiable on this process's states; what is not ends in one line before anything is traced."""
    process = make_named(name)
    process = process.with_params(process.init(jax.random.key(0)))
    keys_B, x_BL, t_BL = row_keys(jax.random.key(0), jnp.arange(2)), jnp.zeros((2, 8), jnp.int32), jnp.full((2, 8), 0.5)
    z_BL = jax.eval_shape(process.corrupt, keys_B, x_BL, t_BL)
    logits_BLV = jax.ShapeDtypeStruct((2, 8, process.outputs), jnp.float32)
    for weighting in map(make_weighting, WEIGHTINGS):
        if weighting.name not in process.weightings:
            with pytest.raises(InputError, match=f"^weighting {weighting.name} conflicts with process {process.name}; it supports .*$"):
                Objective(process, process.adapt_times(PerRow()), weighting)
            continue
        objective = Objective(process, process.adapt_times(PerRow()), weighting)

        def total(logits_BLV, z_BL, objective=objective):
            nats_BL = objective.process.loss(logits_BLV, x_BL, z_BL, t_BL)
            return jnp.sum(objective.weighting.trained(objective.process, logits_BLV, x_BL, z_BL, t_BL, nats_BL))

        assert jax.eval_shape(jax.grad(total), logits_BLV, z_BL).shape == logits_BLV.shape
