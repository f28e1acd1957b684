"""Masking by frequency: schedules from counts that are proper ones, and a bound that stays one."""

import jax.numpy as jnp
import numpy as np
import pytest

from dlmjax.diffusion.processes.frequency import FrequencyMasked, Spindle, commonness, entropy_share, information
from dlmjax.diffusion.processes.table import Table
from dlmjax.errors import InputError
from tests.diffusion.battery import BOS, MASK, TOKENS, VOCAB
from tests.diffusion.cases_discrete import COUNTS

PROCESSES = [Spindle(VOCAB, MASK, (BOS,), COUNTS), FrequencyMasked(VOCAB, MASK, (BOS,), counts_V=COUNTS)]
every_process = pytest.mark.parametrize("process", PROCESSES, ids=lambda process: process.name)


@every_process
def test_schedules_are_proper_and_rare_tokens_go_first(process):
    """From 0 to 1, rising, with the hazard that is their log-derivative; the rarer the token, the more noise at every level."""
    t = jnp.linspace(0, 1, 201)
    noise_TK = np.stack([np.asarray(process.noise_of(jnp.full(t.shape, v), t)) for v in range(TOKENS)], axis=1)
    assert (noise_TK[0] == 0).all() and (noise_TK[-1] == 1).all() and (np.diff(noise_TK, axis=0) > 0).all()
    assert (np.diff(noise_TK[1:-1], axis=1) > 0).all() and (np.diff(noise_TK[60], axis=0) > 0.01).all()
    slope_TK = np.gradient(np.log(noise_TK[20:-1]), float(t[1]), axis=0)[1:-1]
    np.testing.assert_allclose(np.asarray(process.hazards(t))[21:-2, :TOKENS], slope_TK, rtol=2e-2)
    assert np.isfinite(np.asarray(process.hazards(t))).all()
    np.testing.assert_allclose(process.noise_rate(t), noise_TK @ np.asarray(COUNTS[:TOKENS]) / 1000, atol=1e-6)


def test_without_strength_all_tokens_are_alike():
    x, t = jnp.arange(VOCAB), jnp.full(VOCAB, 0.3)
    for process in (Spindle(VOCAB, MASK, counts_V=COUNTS, strength=0.0), FrequencyMasked(VOCAB, MASK, counts_V=COUNTS, strength=1.0)):
        np.testing.assert_allclose(process.noise_of(x, t), 0.3, rtol=1e-6)
        np.testing.assert_allclose(process.hazards(t), 1 / 0.3, rtol=1e-6)


def test_statistics_of_counts():
    counts_V = np.asarray(COUNTS)
    p = (counts_V + 1) / 1005
    np.testing.assert_allclose(information(counts_V), -np.log(p))
    mean = counts_V @ -np.log(p) / 1000
    np.testing.assert_allclose(entropy_share(counts_V), np.maximum(1 + mean / np.log(p), -1))
    np.testing.assert_allclose(commonness(counts_V), [0.55, 0.055, 0.005, 0, 0])
    assert commonness(counts_V) @ counts_V / 1000 == pytest.approx(0.5)
    # Tokens as common as each other are alike.
    np.testing.assert_allclose(commonness(np.asarray([5, 5, 10])), [0.25, 0.25, 0.75])
    w_V = FrequencyMasked(VOCAB, MASK, counts_V=COUNTS)._w_V
    assert np.log(w_V) @ counts_V == pytest.approx(0, abs=1e-9)


def test_counts_are_compared_by_content():
    """A process is a static argument of jit: counts read twice from a file must not compile twice."""
    one, two = (Spindle(VOCAB, MASK, (BOS,), np.asarray(COUNTS)) for _ in range(2))
    assert one == two and hash(one) == hash(two) and one != Spindle(VOCAB, MASK, (BOS,), np.asarray(COUNTS) + 1)
    table = Table(COUNTS)
    assert table != Table((900.0, 90, 10, 0, 0)) and "int64[5]" in repr(table)
    with pytest.raises(ValueError, match="read-only"):
        table.array[0] = 1


@pytest.mark.parametrize(
    "make, says",
    [
        (lambda: Spindle(VOCAB, MASK), "requires counts_V"),
        (lambda: FrequencyMasked(VOCAB, MASK, counts_V=(1, 2)), "one number for each of 5"),
        (lambda: Spindle(VOCAB, MASK, counts_V=(0,) * 5), "not all zero"),
        (lambda: Spindle(VOCAB, MASK, counts_V=("a",) * 5), "finite numbers"),
        (lambda: Spindle(VOCAB, MASK, counts_V=((1, 2), (3,))), "unequal length"),
        (lambda: Spindle(VOCAB, MASK, counts_V=COUNTS, strength=0.5), "strength is 0.5"),
        (lambda: FrequencyMasked(VOCAB, MASK, counts_V=COUNTS, strength=0.5), "at least 1"),
    ],
)
def test_impossible_processes_are_refused(make, says):
    with pytest.raises(InputError, match=says):
        make()
