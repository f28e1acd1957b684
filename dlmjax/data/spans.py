"""A range of characters of a supervised text.  Imports nothing of the package."""

from typing import NamedTuple


class Unmarked(ValueError):
    """A record of supervised data that cannot be used; the text says why."""


class Span(NamedTuple):
    """Characters [start, end) of a text with their use and role (numbers of `roles.py`).

    starts_message: a message (a turn of a conversation) begins at `start`.
    """

    start: int
    end: int
    use: int
    role: int
    starts_message: bool
