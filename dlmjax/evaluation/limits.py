"""The numbers of an evaluation that a person may give, checked before anything is opened."""

from dlmjax.errors import InputError

SEEDS = 2**32  # what both jax's keys (without x64) and numpy's seeds take


def check_numbers(*, seed: int, batch: int) -> None:
    """Raises InputError for a seed that no generator of random numbers takes, and for an empty batch."""
    if not 0 <= seed < SEEDS:
        raise InputError(f"--seed is {seed}; give a whole number from 0 to {SEEDS - 1}")
    if batch < 1:
        raise InputError(f"--batch is {batch}; give at least 1")
