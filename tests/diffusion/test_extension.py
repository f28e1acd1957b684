"""Uniform noise, whose denoiser needs the time and a leave-one-out posterior, and block diffusion, whose state holds the noisy and the
clean text, each written once more as a user would and passed through the unchanged objective and battery.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dlmjax.diffusion import Cosine, Masked, Objective, Process, Schedule, draw_tokens, row_keys
from dlmjax.diffusion.declarations import Capabilities
from dlmjax.diffusion.oracle import enumeration as oracle
from dlmjax.diffusion.oracle.toy import ToyDenoiser, masked_likelihood
from dlmjax.diffusion.process import split_rows, uniform_rows
from dlmjax.diffusion.times import Times
from tests.diffusion import test_battery as battery
from tests.diffusion.battery import COSINE, MASK, TOKENS, VOCAB, Case, batch_of, sample_joint


@dataclasses.dataclass(frozen=True)
class Uniform(Process):
    """UDLM 2412.10193 on the first `tokens` classes; the logits are the full posterior, brought to leave-one-out by the exact bridge."""

    vocab: int
    tokens: int
    schedule: Schedule = Cosine()

    name = "uniform"
    capabilities = Capabilities(methods=("ancestral", "rdm", "self_correct"))
    time_input = True

    def corrupt(self, keys_B, x_BL, t_BL, valid_BL=None):
        hit_B, token_B = split_rows(keys_B)
        noise_BL = draw_tokens(token_B, jnp.zeros((*x_BL.shape, self.tokens)))
        hit_BL = uniform_rows(hit_B, x_BL.shape[1]) < self.schedule.noise(t_BL)
        return jnp.where(hit_BL if valid_BL is None else hit_BL & valid_BL, noise_BL, x_BL)

    def forward_step(self, keys_B, z_BL, s_BL, t_BL, valid_BL=None):
        rate_BL = 1 - self.schedule.alpha(t_BL) / self.schedule.alpha(s_BL)
        return self.corrupt(keys_B, z_BL, self.schedule.inverse(1 - rate_BL), valid_BL)

    def marginal(self, p, t):
        """q_t(. | x) for x ~ p."""
        return self.schedule.alpha(t)[..., None] * p + (self.schedule.noise(t) / self.tokens)[..., None]

    def loo(self, logits, z, t):
        likelihood = self.marginal(jax.nn.one_hot(z, self.tokens, dtype=logits.dtype), t)
        return jax.nn.softmax(logits[..., : self.tokens] - jnp.log(likelihood))

    def loss(self, logits, x, z, t):
        true = self.tokens * self.marginal(jax.nn.one_hot(x, self.tokens, dtype=logits.dtype), t)
        model = self.tokens * self.marginal(self.loo(logits, z, t), t)

        def at_z(p):
            return jnp.take_along_axis(p, z[..., None], axis=-1)

        ratio = true / at_z(true)
        inner = self.tokens / at_z(true)[..., 0] - self.tokens / at_z(model)[..., 0]
        inner -= jnp.sum(ratio * jnp.log(at_z(model) * true / (model * at_z(true))), axis=-1)
        return self.schedule.alpha_prime(t) / (self.tokens * self.schedule.alpha(t)) * inner

    def prior(self, keys_B, length):
        return draw_tokens(keys_B, jnp.zeros((keys_B.shape[0], length, self.tokens)))

    def reverse_step(self, keys_B, logits_BLV, z_BL, t_BL, s_BL):
        loo_BLK = self.loo(logits_BLV, z_BL, t_BL)
        keep_BL = self.schedule.alpha(t_BL) / jnp.maximum(self.schedule.alpha(s_BL), 1e-12)
        step_BLK = keep_BL[..., None] * jax.nn.one_hot(z_BL, self.tokens) + ((1 - keep_BL) / self.tokens)[..., None]
        return draw_tokens(keys_B, jnp.log(step_BLK * self.marginal(loo_BLK, s_BL)))


def _uniform_likelihood(z_BL, t_BL):
    return jnp.log(Uniform(VOCAB, TOKENS).marginal(jax.nn.one_hot(z_BL, TOKENS, dtype=t_BL.dtype), t_BL))


UNIFORM = Case("uniform", Uniform(VOCAB, TOKENS), oracle.uniform_kernel(TOKENS, *COSINE), _uniform_likelihood)


def test_uniform_noise_passes_the_battery():
    """The shared battery's own tests, on a process of forty lines."""
    battery.test_case_is_a_process(UNIFORM)
    battery.test_bound_is_tight(UNIFORM, battery.LAW2)
    battery.test_monte_carlo_is_unbiased(UNIFORM, "power")  # its weights have a heavy tail at t = 0: draw small levels more often
    battery.test_composed_steps_are_the_one_shot_marginal(UNIFORM, 6)
    battery.test_few_reverse_steps_have_the_enumerated_distribution(UNIFORM)
    battery.test_a_batch_is_its_rows(UNIFORM)


def test_the_battery_sees_a_wrong_process():
    """Without the bridge (the full posterior where leave-one-out is due) the bound is not tight: the battery fails, as it must."""

    class Unbridged(Uniform):
        def loo(self, logits, z, t):
            return jax.nn.softmax(logits[..., : self.tokens])

    wrong = dataclasses.replace(UNIFORM, process=Unbridged(VOCAB, TOKENS))
    with pytest.raises(AssertionError):
        battery.test_bound_is_tight(wrong, battery.LAW2)


@dataclasses.dataclass(frozen=True)
class Blocks(Masked):
    """BD3-LM 2503.09573: one level per block of `size`, blocks of clean text to the left in sight. State: [noisy, clean] per position."""

    size: int = 1

    name = "blocks"

    def corrupt(self, keys_B, x_BL, t_BL, valid_BL=None):
        return jnp.stack([Masked.corrupt(self, keys_B, x_BL, t_BL, valid_BL), x_BL], axis=-1)

    def loss_mask(self, z_BL2, t_BL):
        return z_BL2[..., 0] == self.mask_id

    def corrupted(self, x_BL, z_BL2):
        return z_BL2[..., 0] != x_BL

    def loss(self, logits, x, z, t):
        return Masked.loss(self, logits, x, z[..., 0], t)


@dataclasses.dataclass(frozen=True)
class BlockTimes(Times):
    """One level per block and row."""

    size: int
    covers = True
    corrected = True

    def draw(self, key, row_B, global_batch, length):
        t_BN = uniform_rows(row_keys(key, row_B), length // self.size)
        t_BL = jnp.repeat(t_BN, self.size, axis=1)
        return t_BL, jnp.ones_like(t_BL)


@dataclasses.dataclass(frozen=True, eq=False)
class BlockToy(ToyDenoiser):
    """Exact: block b is predicted from its own noisy tokens and the clean ones before it."""

    size: int = 1

    def hidden(self, z_BL2, t_BL):
        length = z_BL2.shape[1]
        outputs = []
        for start in range(0, length, self.size):
            place_L = jnp.arange(length)
            noisy_BL = jnp.where(place_L < start, z_BL2[..., 1], jnp.where(place_L < start + self.size, z_BL2[..., 0], MASK))
            outputs.append(ToyDenoiser.hidden(self, noisy_BL, t_BL)[:, start : start + self.size])
        return jnp.concatenate(outputs, axis=1)


@pytest.mark.parametrize("size", [1, 2, 4])
def test_block_diffusion_fits_the_protocol(size):
    """A state of two tokens per position and one level per block, through the unchanged objective: its bound is the entropy, from the
    autoregressive corner (size 1) to masked diffusion (size L)."""
    law, rows, steps = oracle.JointDistribution.random(2, 4, seed=3), 4096, 6
    objective = Objective(Blocks(VOCAB, MASK, size=size), BlockTimes(size))
    denoiser = BlockToy(law, VOCAB, masked_likelihood(2, MASK), size)
    means = []
    for step in range(steps):
        batch = batch_of(sample_joint(law, rows, seed=step))
        parts = objective(denoiser, batch, jax.random.key(step), rows)[1]
        means.append(float(parts["nats"]) / rows)
        assert int(parts["corrupted"]) / int(parts["tokens"]) == pytest.approx(0.5, abs=0.02)
    error = np.std(means, ddof=1) / np.sqrt(steps)
    assert error < 0.03 * law.entropy and abs(np.mean(means) - law.entropy) < 4 * error
