"""Checks of values that people write: fields of a sweep's file, lines of files that may have been edited. Imports no jax."""

from __future__ import annotations

import dataclasses
import functools
import math
import re
import sys
import types
import typing
from collections.abc import Collection
from typing import Any

from dlmjax.errors import InputError

MOST = 1e60  # of any number that a law is fitted to: its products stay finite
MOST_LOSS = 1e6  # nats per token
MOST_COUNT = 2**53  # up to here every whole number is a float too
LONGEST = 200  # letters of a name
_NAME = re.compile(r"[A-Za-z0-9][\w.+=,@-]*", re.ASCII)
_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")


def name(what: str, text: str) -> None:
    """Raises InputError: a text that is not a name, which occurs in commands, tables and file names."""
    if len(text) > LONGEST or not _NAME.fullmatch(text):
        raise InputError(
            f"{what} is {text[:60]!r}; a name has letters, digits and . _ - + = , @, at most {LONGEST}, the first a letter or digit"
        )


def label(what: str, text: str) -> None:
    """Raises InputError: a text that cannot stand in a table: empty, more than LONGEST letters, or more than one line."""
    if not text.strip() or len(text) > LONGEST or _CONTROL.search(text):
        raise InputError(f"{what} is {text[:60]!r}; give one line of 1 to {LONGEST} letters without control characters")


def text(what: str, value: Any) -> None:
    """Raises InputError: not a text, or one with half of a surrogate pair, which is not Unicode."""
    if not isinstance(value, str):
        raise InputError(f"{what} is {value!r:.60}, not a text")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise InputError(f"{what} is not Unicode text: character {error.start + 1} is half of a surrogate pair; leave it out") from None


def one_line(text: str) -> str:
    """A text from elsewhere, without control characters."""
    return _CONTROL.sub(" ", text)


def flat(what: str, values: dict[str, Any], least: float = -MOST) -> None:
    """Raises InputError: an entry of an object that is neither a text of one line, a switch, null or a number from `least` to MOST, nor a
    list of these (a tuple, before it was written)."""
    for key, value in values.items():
        label(f"a name in {what}", key)
        for each in value if isinstance(value, list | tuple) else [value]:
            if isinstance(each, str):
                if _CONTROL.search(each):
                    raise InputError(f"{key} of {what} is {each[:60]!r}; give one line without control characters")
            elif isinstance(each, int | float) and not isinstance(each, bool):
                if not least <= each <= MOST:
                    raise InputError(f"{key} of {what} is {each!r:.60}; give a number from {least:g} to {MOST:g}")
            elif not isinstance(each, bool | None):
                raise InputError(f"{key} of {what} is {str(each)[:60]!r}, neither a number nor a text")


def numbers(what: str, values: dict[str, Any], least: float = 0.0) -> None:
    """Raises InputError: an entry of an object that is not a number from `least` to MOST."""
    flat(what, values, least)
    for key, value in values.items():
        if not _is_number(value):
            raise InputError(f"{key} of {what} is {str(value)[:60]!r}, not a number")


def whole(name: str, least: int, most: int = MOST_COUNT, **values: Any) -> None:
    """Raises InputError: one of the values of `name` is not a whole number from `least` to `most`."""
    for field, value in values.items():
        if type(value) is not int or value < least:
            raise InputError(f"{name}({field}={value!r:.60}): give a whole number of at least {least}")
        if value > most:
            raise InputError(f"{name}({field}={value!r:.60}): give a whole number of at most {most}")


def finite(name: str, **values: Any) -> None:
    """Raises InputError: one of the values of `name` is not a finite number."""
    for field, value in values.items():
        if not _is_number(value):
            raise InputError(f"{name}({field}={value!r:.60}): give a finite number")


def positive(name: str, **values: Any) -> None:
    """Raises InputError: one of the values of `name` is not a finite number above 0."""
    for field, value in values.items():
        if not (_is_number(value) and value > 0):
            raise InputError(f"{name}({field}={value!r:.60}): give a positive number")


def from_json(kind: type, values: Any, what: str, signed: Collection[str] = ()) -> Any:
    """The dataclass `kind` from the values of a JSON file. what: its name in messages. signed: fields that may be negative.

    Raises InputError: not an object, a field that is missing, unknown or of another type, a number that is negative or not finite.
    """
    found = {}
    if not isinstance(values, dict):
        raise InputError(f"{what} is not a JSON object")
    fields = _fields(kind)
    for name, (_, needed) in fields.items():
        if needed and name not in values:
            raise InputError(f"{what} lacks {name!r}")
    for name, value in values.items():
        if name not in fields:
            raise InputError(f"{what} has the unknown field {name!r:.80}")
        wanted = fields[name][0]
        kinds = wanted.__args__ if isinstance(wanted, types.UnionType) else (wanted,)
        if not any(_fits(value, kind_) for kind_ in kinds):
            raise InputError(f"{name} of {what} is {str(value)[:60]!r}, not {getattr(wanted, '__name__', wanted)}")
        if isinstance(value, int | float) and not (-sys.float_info.max if name in signed else 0) <= value < math.inf:
            raise InputError(f"{name} of {what} is {value!r:.60}; it must be finite and not negative")
        if isinstance(value, int | float) and abs(value) > MOST:
            raise InputError(f"{name} of {what} is {value:.4g}; it must be at most {MOST:g}")
        found[name] = float(value) if type(value) is int and int not in kinds else value
    return kind(**found)


@functools.cache
def _fields(kind: type) -> dict[str, tuple[Any, bool]]:
    """(type, whether it is required) by field; what a container holds is not looked at."""
    hints = {name: dict if typing.get_origin(hint) is dict else hint for name, hint in typing.get_type_hints(kind).items()}
    missing = dataclasses.MISSING
    return {
        field.name: (hints[field.name], field.default is missing and field.default_factory is missing) for field in dataclasses.fields(kind)
    }


def _fits(value: Any, kind: type) -> bool:
    if isinstance(value, bool):
        return kind is bool
    return isinstance(value, int | float) if kind is float else isinstance(value, kind)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and bool(abs(value) <= sys.float_info.max)
