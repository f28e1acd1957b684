"""The phases of `process.before`: what a run trains first, each with its own process, and where it differs its own times and weighting.

    autoregressive@0.2                                       until a fifth of the steps
    blocks(size=4); weighting=bound; times=stratified@2000   until step 2000, with a weighting and times of its own

A phase is a function of the step and of the number of steps alone, so a resumed run needs no state for it.
"""

import dataclasses
import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any

from dlmjax.choices import lookup
from dlmjax.errors import InputError

SETTINGS = ("schedule", "times", "weighting", "masks")  # fields of the config's section `process` that a phase may have its own of


@dataclasses.dataclass(frozen=True)
class PhaseText:
    """One entry of `process.before`, read.

    entry: as written.  process: its name with values.  until: the share of the steps (a float), or the step (an int), before which it ends.
    settings: its own of SETTINGS, by name.
    """

    entry: str
    process: str
    until: float | int
    settings: Mapping[str, str]

    def end(self, steps: int) -> int:
        """The step before which it ends in a run of `steps` steps."""
        return self.until if isinstance(self.until, int) else round(self.until * steps)

    def share(self, steps: int) -> float:
        """The share of the steps at which it ends."""
        return self.until / steps if isinstance(self.until, int) else self.until


def phase_texts(entries: Sequence[Any]) -> list[PhaseText]:
    """The phases of `entries`, texts PROCESS@UNTIL or PROCESS; NAME=VALUE@UNTIL.

    Raises InputError: another form; a share that is not between 0 and 1, a step below 1; ends of one kind that do not rise.
    """
    found: list[PhaseText] = []
    for entry in entries:
        phase = _read(entry)
        before = [other.until for other in found if type(other.until) is type(phase.until)]
        if before and phase.until <= before[-1]:
            raise InputError(f"the phase {entry!r:.100} ends no later than the one before it; give rising shares, or rising steps")
        found.append(phase)
    return found


def _read(entry: Any) -> PhaseText:
    """Raises InputError: see `phase_texts`."""
    text, _, until = entry.rpartition("@") if isinstance(entry, str) else ("", "", "")
    process, *settings = (part.strip() for part in text.split(";"))
    try:
        end = int(until) if until.strip().isdecimal() else float(until)
    except ValueError:
        end = math.nan
    if not process or not (end >= 1 if isinstance(end, int) else 0 < end < 1):
        raise InputError(
            f"cannot read the phase {entry!r:.100}; write PROCESS@SHARE with a share of steps above 0 and below 1, or PROCESS@STEP with "
            "a whole number: autoregressive@0.2, autoregressive@2000"
        )
    own: dict[str, str] = {}
    for setting in settings:
        name, equals, value = (part.strip() for part in setting.partition("="))
        if not equals or not value or name in own:
            raise InputError(f"cannot read {setting!r:.100} of the phase {entry!r:.100}; write NAME=VALUE once: times=beta")
        lookup("setting of a phase", name, dict.fromkeys(SETTINGS))
        own[name] = value
    return PhaseText(entry, process, end, own)


def earlier_phases(entries: Sequence[Any], steps: int) -> list[tuple[PhaseText, int]]:
    """The phases of a run of `steps` steps before its last, and the step before which each ends; see `phase_texts`.

    Raises InputError: an entry that cannot be read; a phase, or what follows the last of them, without a step of the run.
    """
    found = [(phase, phase.end(steps)) for phase in phase_texts(entries)]
    for phase, end in found:
        if isinstance(phase.until, int) and end >= steps:
            raise InputError(
                f"the phase {phase.entry!r:.100} ends at step {end}, and the run has {steps} steps, of which the last phase requires one; "
                f"raise --config.train.steps above {end}, or give an earlier end"
            )
    ends = [0, *(end for _, end in found), steps]
    if found and any(start >= end for start, end in itertools.pairwise(ends)):
        raise InputError(f"of the {steps} steps of the run, none is left for a phase of {', '.join(map(str, entries))}; give other shares")
    return found
