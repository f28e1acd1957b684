"""Drafts: states that a sampler may come to, guessed before they are known, so that one network call checks several steps.

`--draft "own(depth=4)"`. A draft changes no text: what is kept are the states of the sampler without drafts, bit for bit where the output
of a row does not depend on how many rows are read together (`drafting`).
"""

import abc
import dataclasses
from typing import ClassVar

from dlmjax.errors import InputError
from dlmjax.sampling.by_name import build

MOST_DEPTH = 256


class Draft(abc.ABC):
    """Abstract: a frozen dataclass; `make_draft` makes it from a text such as "own(depth=4)".

    name: as in DRAFTS.  source: of its form.  depth: drafts of a call; 0 = none.
    """

    name: ClassVar[str]
    source: ClassVar[str]
    depth: int


@dataclasses.dataclass(frozen=True)
class Own(Draft):
    """The network of the sampler: draft j is the state after j more steps, if p(x | z) stayed what the last call gave."""

    depth: int = 4

    name = "own"
    source = "FreeDave 2510.00294, SSD 2510.04147; with the keys of the steps, and depth=4: ours"

    def __post_init__(self):
        check_depth(self)


DRAFTS: dict[str, type[Draft]] = {cls.name: cls for cls in (Own,)}


def make_draft(text: str) -> Draft:
    """The draft of a text: "own(depth=4)". Raises InputError: no such draft, a value that it does not take."""
    return build("draft", text, DRAFTS)


def check_depth(draft: Draft) -> None:
    """Raises InputError: a depth that is not 0 to MOST_DEPTH."""
    if not 0 <= draft.depth <= MOST_DEPTH:
        raise InputError(f"draft {draft.name}: depth is {draft.depth}; it must be 0 (no drafts) to {MOST_DEPTH} steps")
