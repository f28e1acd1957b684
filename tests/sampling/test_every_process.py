"""Whatever process is in the registry, on a small network with random weights: a prompt is kept, text comes out, and nothing else."""

import contextlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dlmjax.diffusion.capabilities import make_named, reveal_orders
from dlmjax.diffusion.process import init_params, row_keys, split_rows
from dlmjax.diffusion.registry import PROCESSES
from dlmjax.errors import InputError
from dlmjax.models import Execution, build_network
from dlmjax.sampling.blocks import sampler_for
from dlmjax.sampling.canvas import Canvas, blank_canvas
from dlmjax.sampling.methods import METHODS, make_method
from dlmjax.sampling.sampler import Sampler
from dlmjax.sampling.settings import SampleSettings
from tests.models.tiny import lively, spec
from tests.sampling.toy import ORDERS, Law

VOCAB, PAD, BOS, MASK = 29, 26, 27, 28
LENGTH = 8


def make(name, **changes):
    """(process, network, weights), as a run has them."""
    process = make_named(name)
    time_input = "adaln" if process.time_input else "none"
    classes = process.output.columns if process.states.dim else VOCAB
    network = build_network(spec(depth=1, vocab=classes, input_dim=process.states.dim, time_input=time_input, **changes), Execution())
    start = init_params(process, jax.random.key(1))
    params = lively(network.init(jax.random.key(2)))
    return process, network, {**params, **({"process": start} if start else {})}


def canvas_of(process):
    """A prompt of three; where the process can, a suffix and a token that is sent to level 0.5."""
    tokens = np.random.default_rng(3).integers(0, PAD, (3, LENGTH)).astype(np.int32)
    start = np.r_[0, 0, 0, 1, 1, 1, 1, 1].astype(np.float32)
    if not process.attention.sequential:
        start[-2:] = 0.5, 0
    start = np.tile(start, (3, 1))
    return Canvas(tokens, start == 0, start)


@pytest.mark.parametrize("name", sorted(PROCESSES))
def test_a_prompt_is_kept_and_text_comes_out(name):
    process, network, params = make(name)
    canvas = canvas_of(process)
    sampler = sampler_for(process, network, SampleSettings(steps=3, suppressed_ids=(PAD, BOS, MASK)))
    states = list(sampler.states(params, canvas, seed=4))
    assert all((s.tokens_BL[canvas.condition_mask_BL] == canvas.tokens_BL[canvas.condition_mask_BL]).all() for s in states)
    last = states[-1]
    assert not last.masked_BL.any() and last.time == 0
    assert last.tokens_BL.min() >= 0
    # BOS may be noise, but not what comes out.
    assert last.tokens_BL.max() < PAD, "no special id is made"
    assert np.isfinite(last.confidence_BL).all() and ((last.confidence_BL >= 0) & (last.confidence_BL <= 1 + 1e-6)).all()
    again = sampler.sample(params, canvas, seed=4)
    assert (again.tokens_BL == last.tokens_BL).all() and again.evaluations == last.calls > 0 and again.process == process.name


SLOW = pytest.mark.slow


@pytest.mark.parametrize(
    ("name", "hint"),
    [("masked", "hidden")] + [pytest.param(*case, marks=SLOW) for case in (("masked", "x0"), ("uniform", "x0"), ("plaid", "x0"))],
)
def test_self_conditioning_and_guidance_together(name, hint):
    """Three calls' worth of state: the hint of the guided half goes on to the next step."""
    process, network, params = make(name, self_condition=True, hint=hint)
    sampler = sampler_for(process, network, SampleSettings(steps=3, guidance=1.5, suppressed_ids=(PAD, BOS, MASK)))
    assert isinstance(sampler, Sampler) and sampler.self_condition
    samples = sampler.sample(params, canvas_of(process), seed=5)
    assert samples.evaluations == 2 * (3 + process.boundary.reconstruction) and samples.tokens_BL.max() < VOCAB


# The other kinds of noise, meanings of the output and ends of the schedule that the names above do not stand for.
VARIANTS = (
    *("score(noise=uniform)", "flow_matching(noise=uniform)", "d3pm(kernel=absorbing, steps=8)", "d3pm(kernel=gaussian, steps=8)"),
    *("uniform(parameterisation=posterior, eps=0.1)", "hybrid(p_uniform=0.9, parameterisation=posterior)", "masked(eps=0.1)"),
    *("mixed(mixing=constant, values=(0.3,))", "mixed(eps=0.1)", "score(eps=0.1)", "frequency_masked(strength=8.0)"),
    *("blocks(seeded=True)", "blocks(streams=1)"),
)


@pytest.mark.parametrize("name", [*PROCESSES, *VARIANTS])
def test_the_methods_that_a_process_declares_are_those_that_fit(name):
    """What is declared builds; what is not is refused in one line, where it is put together with the process."""
    process = make_named(name)
    network = build_network(spec(depth=1, vocab=VOCAB), Execution()) if process.attention.sequential else None
    for method in METHODS:
        settings = SampleSettings(steps=2, method=method)
        build = (lambda s: sampler_for(process, network, s)) if process.attention.sequential else lambda s: Sampler(process, Law().bind, s)
        if method in process.capabilities.methods:
            build(settings)
        else:
            with pytest.raises(InputError) as refusal:
                build(settings)
            assert "\n" not in str(refusal.value)
    reveals = {"all": ORDERS, "none": (), "left_to_right": ("left_to_right",)}[reveal_orders(process.bound)]
    for order in ORDERS if not process.attention.block_size else ():
        with contextlib.nullcontext() if order in reveals else pytest.raises(InputError):
            sampler_for(process, network or build_network(spec(depth=1, vocab=VOCAB), Execution()), SampleSettings(steps=2, rule=order))


# (spread, mean) of an output that no training has shaped, one for each row: sure and unsure; scores far from what the noise leaves.
OUTPUTS = np.array([(1, 0), (1000, 0), (1, -90), (30, 0), (1, -20), (3, 90)], np.float32)


def any_output(length, seed=0):
    """[B, L, V]"""
    spread_B11, mean_B11 = OUTPUTS.T[:, :, None, None]
    return mean_B11 + spread_B11 * np.random.default_rng(seed).normal(size=(len(OUTPUTS), length, VOCAB)).astype(np.float32)


class AnyOutput:
    """A network, or a denoiser that it has bound, whose rows are scaled and moved apart as in OUTPUTS."""

    def __init__(self, made):
        self.made = made

    def __getattr__(self, name):
        return getattr(self.made, name)

    def bind(self, *args, **options):
        return AnyOutput(self.made.bind(*args, **options))

    def logits(self, hidden):
        logits_BLV = self.made.logits(hidden)
        spread_B11, mean_B11 = OUTPUTS[np.arange(logits_BLV.shape[0]) * 2 % len(OUTPUTS)].T[:, :, None, None]
        return mean_B11 + spread_B11 * logits_BLV


TOKEN_PROCESSES = sorted(
    name
    for name in {*PROCESSES, *VARIANTS} - {"blocks", "autoregressive"}
    if not make_named(name).attention.sequential and not make_named(name).states.dim
)


@pytest.mark.parametrize("name", TOKEN_PROCESSES)
def test_the_last_step_of_every_method_leaves_text_whatever_the_network_says(name):
    """From any level to 0: masks and suppressed tokens are gone, though the output belongs to no law and what is learned is arbitrary."""
    process, rng, length = make_named(name).bound, np.random.default_rng(1), 48
    start = init_params(process, jax.random.key(0))
    process = process.with_params(jax.tree.map(lambda a: jnp.asarray(rng.normal(scale=1.5, size=a.shape), a.dtype), start))
    suppressed = (0, PAD, BOS, MASK)
    t_BL = jnp.tile(jnp.geomspace(1, 1e-8, length), (len(OUTPUTS), 1))
    t_BL = process.time_domain.quantize(t_BL, jnp.ones(t_BL.shape, bool))
    logits_BLV, keys_B = jnp.asarray(any_output(length)), row_keys(jax.random.key(2), jnp.arange(len(OUTPUTS)))
    hides = bool(jnp.any(process.corrupt(keys_B, jnp.ones(t_BL.shape, jnp.int32), jnp.ones(t_BL.shape)) == MASK))
    # Noise that only hides shows no token that is suppressed.
    z_BL = rng.integers(1 if process.absorbing_id is not None else 0, PAD, t_BL.shape)
    z_BL = jnp.asarray(np.where(rng.random(t_BL.shape) < 0.7, MASK, z_BL) if hides else z_BL, jnp.int32)
    made = 0
    for method in METHODS:
        stepper = make_method(method)
        try:
            stepper.check(process)
        except InputError:
            continue
        step_B, decode_B, touch_B = split_rows(keys_B, 3)

        def denoise(z_BL, t_BL):
            return process.output.suppressed(logits_BLV, suppressed, z_BL, t_BL)

        x_BL = stepper.step(process, step_B, denoise, z_BL, t_BL, jnp.zeros(t_BL.shape))
        if process.boundary.reconstruction:
            x_BL = process.decode(decode_B, denoise(x_BL, jnp.zeros(t_BL.shape)), x_BL)
        if stepper.rounds:
            x_BL = stepper.corrector_step(process, touch_B, denoise, x_BL, jnp.ones(t_BL.shape, bool))
        left_N = np.unique(np.asarray(x_BL)[np.isin(x_BL, suppressed) | (np.asarray(x_BL) < 0)])
        assert not left_N.size, f"{method} leaves ids {left_N.tolist()}"
        made += 1
    assert made


@pytest.mark.nightly
@pytest.mark.parametrize("way", [*METHODS, *ORDERS])
@pytest.mark.parametrize("name", sorted({*PROCESSES, *VARIANTS} - {"blocks", "autoregressive"}))
def test_every_pair_that_is_accepted_makes_text_and_nothing_else(name, way):
    """With guidance, a prompt and what else the process takes; what does not go together is refused, and only that."""
    process, network, params = make(name)
    if not process.states.dim and process.attention.block_size is None:  # blocks require a network with buffers
        network = AnyOutput(network)
    how = {"rule": way} if way in ORDERS else {"method": way}
    canvas = canvas_of(process)
    try:
        guidance = 0.0 if process.attention.seeded else 0.5  # seeds have no output without the text before them
        sampler = sampler_for(process, network, SampleSettings(steps=3, guidance=guidance, suppressed_ids=(PAD, BOS, MASK), **how))
        last = list(sampler.states(params, canvas, seed=7))[-1]
    except InputError as error:
        assert way != "ancestral" and "\n" not in str(error)
        known = [process, process.bound, *filter(None, [process.capabilities.in_blocks])]
        assert any(f"process {each.name}" in str(error) for each in known)
        return
    assert (last.tokens_BL[canvas.condition_mask_BL] == canvas.tokens_BL[canvas.condition_mask_BL]).all()
    assert not last.masked_BL.any() and last.tokens_BL.min() >= 0 and last.tokens_BL.max() < PAD
    assert ((last.confidence_BL >= 0) & (last.confidence_BL <= 1 + 1e-6)).all()


def test_a_process_gets_the_sampler_that_suits_it():
    masked, network, _ = make("masked")
    with pytest.raises(InputError, match="cannot stop at an end"):
        sampler_for(masked, network, SampleSettings(), eos_id=BOS)
    causal, network, params = make("autoregressive")
    with pytest.raises(InputError, match="leave the stride out"):
        sampler_for(causal, network, SampleSettings(), stride=2)
    ended = sampler_for(causal, network, SampleSettings(suppressed_ids=(PAD, MASK)), eos_id=BOS).sample(params, blank_canvas(64, 1), seed=6)
    assert ended.tokens_BL.shape == (1, 64) and ended.evaluations == ended.steps
