"""The seeds of random numbers that are different: no two of them give the same draws."""

from dlmjax.errors import InputError

SPLIT_SEEDS = 2**64  # values of the salt of the hash that splits documents
SEEDS = 2**32  # that both jax's keys (without x64) and numpy's old seeds distinguish


def check_seed(seed: int, name: str = "--seed", seeds: int = SEEDS) -> None:
    """Raises InputError: a seed, called `name`, that is not one of the `seeds` that its generator distinguishes."""
    if isinstance(seed, bool) or not hasattr(seed, "__index__") or not 0 <= seed < seeds:
        raise InputError(f"{name} is {seed}; give a whole number from 0 to {seeds - 1}")


def following(seed: int, number: int) -> int:
    """The seed at distance `number` after `seed`; 0 follows the last one."""
    return (seed + number) % SEEDS
