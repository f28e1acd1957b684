"""Seeds of random numbers: which there are, so that no two of them draw the same."""

from dlmjax.errors import InputError

SPLIT_SEEDS = 2**64  # what the salt of the hash that splits documents holds
SEEDS = 2**32  # what both jax's keys (without x64) and numpy's old seeds tell apart


def check_seed(seed: int, name: str = "--seed", seeds: int = SEEDS) -> None:
    """Raises InputError for a seed, called `name`, that is not among the `seeds` that its generator tells apart."""
    if isinstance(seed, bool) or not hasattr(seed, "__index__") or not 0 <= seed < seeds:
        raise InputError(f"{name} is {seed}; give a whole number from 0 to {seeds - 1}")


def following(seed: int, number: int) -> int:
    """The seed `number` places after `seed`: after the last one comes 0."""
    return (seed + number) % SEEDS
