"""A corpus directory with a value: `DIR(tokens=100000)` is the first 100,000 tokens of its train split.

For runs on repeated data. Every epoch then has the same windows, each once, in an order of its own; held-out splits stay whole.
"""

import os
import re

from dlmjax.errors import InputError

_FORM = re.compile(r"(?P<directory>.+)\(\s*(?P<name>[A-Za-z_]\w*)\s*=\s*(?P<value>[^()=]*)\)", re.DOTALL)


def parse_path(path: str | os.PathLike) -> tuple[str, int | None]:
    """("DIR", tokens) of `DIR(tokens=N)`; ("DIR", None) of a plain directory.

    Raises InputError: another name than tokens, or no positive whole number.
    """
    text = os.fspath(path)
    found = _FORM.fullmatch(text)
    if not found:
        return text, None
    if found["name"] != "tokens" or not re.fullmatch(r"[0-9]{1,18}(_[0-9]{1,18}){0,6}", found["value"].strip()) or not int(found["value"]):
        example = f"{found['directory']}(tokens=100000)"
        raise InputError(f"{text}: a corpus takes one value, the tokens of its train split that are read, as in {example}")
    return found["directory"], int(found["value"])


def with_tokens(path: str | os.PathLike, tokens: int) -> str:
    """The path of the first `tokens` tokens of a corpus. Raises InputError where the path has a value already."""
    directory, given = parse_path(path)
    if given is not None:
        raise InputError(f"{os.fspath(path)} already says how many tokens are read; leave (tokens=...) out")
    return f"{directory}(tokens={tokens})"
