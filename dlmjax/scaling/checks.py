"""What a field may hold, asked of what people write: values of a sweep's file, lines of files that may have been edited. Imports no jax."""

from __future__ import annotations

import dataclasses
import functools
import math
import sys
import types
import typing
from collections.abc import Collection
from typing import Any

from dlmjax.errors import InputError


def whole(name: str, least: int, **values: Any) -> None:
    """Raises InputError: one of the values of `name` is no whole number of at least `least`."""
    for field, value in values.items():
        if type(value) is not int or value < least:
            raise InputError(f"{name}({field}={value!r}): give a whole number of at least {least}")


def finite(name: str, **values: Any) -> None:
    """Raises InputError: one of the values of `name` is no finite number."""
    for field, value in values.items():
        if not _is_number(value):
            raise InputError(f"{name}({field}={value!r}): give a finite number")


def positive(name: str, **values: Any) -> None:
    """Raises InputError: one of the values of `name` is no finite number above 0."""
    for field, value in values.items():
        if not (_is_number(value) and value > 0):
            raise InputError(f"{name}({field}={value!r}): give a positive number")


def from_json(kind: type, values: Any, what: str, signed: Collection[str] = ()) -> Any:
    """The dataclass `kind` of what a JSON file holds; `what` it is called in messages; `signed`: numbers that may be negative.

    Raises InputError: no object, a field that is missing, unknown or of another type, a number that is negative or not finite.
    """
    if not isinstance(values, dict):
        raise InputError(f"{what} is no JSON object")
    fields = _fields(kind)
    for name, (_, needed) in fields.items():
        if needed and name not in values:
            raise InputError(f"{what} lacks {name!r}")
    for name, value in values.items():
        if name not in fields:
            raise InputError(f"{what} has the unknown field {name!r}")
        wanted = fields[name][0]
        kinds = wanted.__args__ if isinstance(wanted, types.UnionType) else (wanted,)
        if not any(_fits(value, kind_) for kind_ in kinds):
            raise InputError(f"{name} of {what} is {str(value)[:60]!r}, not {getattr(wanted, '__name__', wanted)}")
        if isinstance(value, int | float) and not (-sys.float_info.max if name in signed else 0) <= value < math.inf:
            raise InputError(f"{name} of {what} is {value!r}; it must be finite and not negative")
    return kind(**values)


@functools.cache
def _fields(kind: type) -> dict[str, tuple[Any, bool]]:
    """(type, whether it must be given) by field; what a container holds is not looked at."""
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
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < math.inf
