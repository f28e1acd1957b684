"""The numbers of an evaluation that a person may give, checked before anything is opened."""

from dlmjax.errors import InputError
from dlmjax.seeds import check_seed


def check_numbers(*, seed: int, batch: int) -> None:
    """Raises InputError for a seed that no generator of random numbers takes, and for an empty batch."""
    check_seed(seed)
    if batch < 1:
        raise InputError(f"--batch is {batch}; give at least 1")
