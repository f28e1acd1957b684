"""The fields of a request, checked before anything is allocated or compiled: names, types and bounds."""

import dataclasses
import math
import re
import typing
from collections.abc import Iterable
from typing import Any

from dlmjax.choices import nearest
from dlmjax.errors import InputError
from dlmjax.files import brief
from dlmjax.sampling import SampleSettings

LONGEST_CHOICE = 1000  # characters of a call string such as rule or regex
LARGEST_WHOLE = 2**16  # of a whole number inside a call string: rounds, history
_WHOLE = re.compile(r"(?<![\w.])\d+(?![\w.])")
# Not taken: ids, which are the run's; a guide, which is a function of a module; a canvas that grows.
_TAKEN = ("steps", "rule", "method", "grid", "sweep", "temperature", "top_p", "guidance", "cache", "regex", "stop", "eos", "draft")
_OF_SAMPLER = {"stride": int | None}


@dataclasses.dataclass(frozen=True)
class Limits:
    """Bounds of a request. length: tokens of a canvas.  steps: of a sample.  positions: rows x length x steps of a request, which bounds
    the states that are kept.  rows: samples of a prompt, and prompts.  body_bytes: of a request.  trace_bytes: of a trace that is opened.
    """

    length: int = 2048
    steps: int = 4096
    positions: int = 2**22
    rows: int = 16
    body_bytes: int = 2**20
    trace_bytes: int = 2**24

    @property
    def characters(self) -> int:
        """Of a text that is tokenized; a token has about four."""
        return 32 * self.length


class Fields:
    """The fields of one JSON object. Raises InputError: not an object, an unknown name (with the nearest one)."""

    def __init__(self, values: Any, known: Iterable[str], what: str = "the request"):
        if not isinstance(values, dict):
            raise InputError(f"{what} is not a JSON object; give an object of fields")
        known = list(known)
        for name in values:
            if name not in known:
                raise InputError(f"{what} has the unknown field {brief(name)!r}{nearest(name[:40], known)}")
        self._values, self._what = values, what

    def __contains__(self, name: str) -> bool:
        return self._values.get(name) is not None

    def get(self, name: str) -> Any:
        """The value as it is; None where there is none."""
        return self._values.get(name)

    def whole(self, name: str, default: int | None, least: int, most: int) -> int | None:
        """A whole number. Raises InputError: another type, out of bounds."""
        value = self._values.get(name)
        if value is None:
            return default
        if not _is_whole(value) or not least <= value <= most:
            raise InputError(f"{name} is {value!r:.60}; give a whole number from {least} to {most}")
        return int(value)

    def number(self, name: str, default: float, least: float, most: float) -> float:
        """A finite number. Raises InputError: another type, out of bounds."""
        value = self._values.get(name)
        if value is None:
            return default
        if isinstance(value, bool) or not isinstance(value, int | float) or not (math.isfinite(value) and least <= value <= most):
            raise InputError(f"{name} is {value!r:.60}; give a number from {least:g} to {most:g}")
        return float(value)

    def text(self, name: str, default: str | None, most: int) -> str | None:
        """A text. Raises InputError: another type, too long."""
        value = self._values.get(name)
        if value is None:
            return default
        if not isinstance(value, str):
            raise InputError(f"{name} is {value!r:.60}; give a text")
        if len(value) > most:
            raise InputError(f"{name} has {len(value):,} characters; give at most {most:,}")
        return value

    def switch(self, name: str) -> bool:
        """True or false; false where there is none. Raises InputError: another type."""
        value = self._values.get(name)
        if value is not None and not isinstance(value, bool):
            raise InputError(f"{name} is {value!r:.60}; give true or false")
        return bool(value)


def setting_kinds() -> dict[str, Any]:
    """Type of each setting of a sampler that a request may give, by its name."""
    hints = typing.get_type_hints(SampleSettings)
    return {name: hints[name] for name in _TAKEN} | _OF_SAMPLER


def settings_of(values: Any, limits: Limits) -> dict[str, Any]:
    """The settings of a request, for `Run.sampler`. Raises InputError: an unknown name, another type, more than the limits allow."""
    kinds = setting_kinds()
    Fields(values, kinds, "settings")
    found = {}
    for name, value in values.items():
        allowed = typing.get_args(kinds[name]) or (kinds[name],)
        if value is None and type(None) in allowed:
            continue
        found[name] = _of_kind(name, value, allowed)
    steps = found.get("steps", SampleSettings.steps)
    if not 1 <= steps <= limits.steps:
        raise InputError(f"steps is {steps}; give a whole number from 1 to {limits.steps}")
    return found


def _is_whole(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value) and value == int(value)


def _of_kind(name: str, value: Any, allowed: tuple) -> Any:
    if isinstance(value, bool):
        fits = bool in allowed
    elif isinstance(value, int | float):
        fits = (float in allowed and math.isfinite(value)) or (int in allowed and _is_whole(value))
        # A page sends 1 for 1.0; a trace that says so is refused where types are checked.
        value = value if not fits else float(value) if float in allowed else int(value)
    else:
        fits = isinstance(value, str) and str in allowed
    if not fits:
        words = {bool: "true or false", int: "a whole number", float: "a number", str: "a text"}
        raise InputError(f"{name} is {value!r:.60}; give {' or '.join(words[kind] for kind in allowed if kind in words)}")
    if isinstance(value, str):
        if len(value) > LONGEST_CHOICE:
            raise InputError(f"{name} has {len(value):,} characters; give at most {LONGEST_CHOICE:,}")
        if name == "draft" and value.partition("(")[0].strip() != "own":
            raise InputError(f"draft {value!r:.100} is left to the command line; give own(depth=4)")
        if name != "regex" and any(len(digits) > 9 or int(digits) > LARGEST_WHOLE for digits in _WHOLE.findall(value)):
            raise InputError(f"{name} {value!r:.100} has a whole number above {LARGEST_WHOLE}; give a smaller one")
    return value


def check_size(canvases: int, rows: int, length: int, steps: int, limits: Limits) -> None:
    """Raises InputError: a canvas that is too long, or more positions in all steps together than the limits allow."""
    if not 1 <= length <= limits.length:
        raise InputError(f"the canvas has {length:,} tokens; a canvas here has 1 to {limits.length:,}")
    positions = canvases * rows * length * steps
    if positions > limits.positions:
        raise InputError(
            f"{canvases * rows} texts x {length} tokens x {steps} steps are {positions:,} positions; a request has at most "
            f"{limits.positions:,}; give fewer steps, texts or tokens"
        )
