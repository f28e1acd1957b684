"""Tiny shapes, many programs: nearly all of these tests' time would go into compiling well what then runs for a millisecond."""

import jax
import pytest

FLAG = "jax_disable_most_optimizations"


@pytest.fixture(autouse=True)
def quick_compilation():
    before = jax.config.read(FLAG)
    jax.config.update(FLAG, True)
    yield
    jax.config.update(FLAG, before)


@pytest.fixture
def full_compilation(quick_compilation):
    """For the test that runs longer than it compiles."""
    jax.config.update(FLAG, False)
