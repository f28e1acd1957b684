"""A corpus directory with a token budget: `DIR(tokens=100000)` is the first 100,000 tokens of its train split.

It is meant for runs on repeated data: every epoch has the same windows, each once, in a different order. Held-out splits stay whole.
"""

import os

from dlmjax.choices import parse, split_suffix
from dlmjax.errors import InputError


def parse_path(path: str | os.PathLike) -> tuple[str, int | None]:
    """Returns ("DIR", N) for `DIR(tokens=N)`, and ("DIR", None) for a plain directory.

    Raises InputError: a value of another name, or one that is not a positive whole number.
    """
    directory, suffix = split_suffix(os.fspath(path))
    if not suffix:
        return directory, None
    try:
        _, values = parse(f"corpus{suffix}")
    except InputError:
        values = {}
    tokens = values.get("tokens")
    if values.keys() != {"tokens"} or type(tokens) is not int or not 0 < tokens < 2**63:
        raise InputError(f"{os.fspath(path)}: a corpus takes one value, its token budget in whole tokens, as in {directory}(tokens=100000)")
    return directory, tokens


def with_tokens(path: str | os.PathLike, tokens: int) -> str:
    """The path with this token budget. Raises InputError: the path already has one."""
    directory, budget = parse_path(path)
    if budget is not None:
        raise InputError(f"{os.fspath(path)} has a token budget already; leave (tokens=...) out")
    return f"{directory}(tokens={tokens})"
