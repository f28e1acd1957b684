"""Drafts: states that a sampler may come to, guessed before they are known, so that one network call checks several steps.

`--draft "own(depth=4)"`. A draft changes no text: what is kept are the states of the sampler without drafts, bit for bit where the output
of a row does not depend on how many rows are read together (`drafting`).
"""

import abc
import dataclasses
from typing import ClassVar

from dlmjax.errors import InputError
from dlmjax.sampling.by_name import build
from dlmjax.sampling.verdicts import make_verdict

MOST_DEPTH = 256


class Draft(abc.ABC):
    """Abstract: a frozen dataclass; `make_draft` makes it from a text such as "own(depth=4)".

    name: as in DRAFTS.  source: of its form.  depth: drafts of a call; 0 = none.
    verifies: whether the run that is sampled is autoregressive and verifies the tokens of a drafter (`verified`).
    of_process: whether that drafter is the run itself, by its blocks.
    """

    name: ClassVar[str]
    source: ClassVar[str]
    depth: int
    verifies: ClassVar[bool] = False
    of_process: ClassVar[bool] = False


@dataclasses.dataclass(frozen=True)
class Own(Draft):
    """The network of the sampler: draft j is the state after j more steps, if p(x | z) stayed what the last call gave."""

    depth: int = 4

    name = "own"
    source = "FreeDave 2510.00294, SSD 2510.04147; with the keys of the steps, and depth=4: ours"

    def __post_init__(self):
        check_depth(self)


@dataclasses.dataclass(frozen=True)
class OfRun(Draft):
    """Another run, with masks, for an autoregressive one, whose call verifies the drafts.

    path: workdir of the run.  depth: tokens that a call of the verifier reads.  accept: one of `verdicts.VERDICTS` with its values.
    steps: network calls for one set of drafts.
    """

    path: str
    depth: int = 8
    accept: str = "replay"
    steps: int = 1

    name = "run"
    source = "SpecDiff 2408.05636; depth=8: ours"
    verifies = True

    def __post_init__(self):
        check_verified(self, self.steps)


@dataclasses.dataclass(frozen=True)
class Joint(Draft):
    """The blocks of a run that is an autoregressive network, too, which verifies the drafts. depth, accept: as for `OfRun`."""

    depth: int = 8
    accept: str = "replay"

    name = "joint"
    source = "Nemotron-Labs-Diffusion's code; depth=8: ours"
    verifies = True
    of_process = True

    def __post_init__(self):
        check_verified(self, 1)


DRAFTS: dict[str, type[Draft]] = {cls.name: cls for cls in (Own, OfRun, Joint)}


def make_draft(text: str) -> Draft:
    """The draft of a text: "own(depth=4)". Raises InputError: no such draft, a value that it does not take."""
    return build("draft", text, DRAFTS)


def check_depth(draft: Draft) -> None:
    """Raises InputError: a depth that is not 0 to MOST_DEPTH."""
    if not 0 <= draft.depth <= MOST_DEPTH:
        raise InputError(f"draft {draft.name}: depth is {draft.depth}; it must be 0 (no drafts) to {MOST_DEPTH} steps")


def check_verified(draft: "OfRun | Joint", steps: int) -> None:
    """Raises InputError: values of drafts for an autoregressive run that it does not take."""
    if not 1 <= draft.depth <= MOST_DEPTH:
        raise InputError(f"draft {draft.name}: depth is {draft.depth}; it must be 1 to {MOST_DEPTH} tokens")
    if not 1 <= steps <= draft.depth:
        raise InputError(f"draft {draft.name}: steps is {steps}; it must be 1 to depth, {draft.depth}: each reveals a draft at least")
    if make_verdict(draft.accept).one_call and steps > 1:
        raise InputError(
            f"draft {draft.name}: accept={draft.accept} requires drafts of one call; what several steps draw a token from is not its "
            "distribution given the drafts before it; leave steps out, or give accept=replay"
        )
