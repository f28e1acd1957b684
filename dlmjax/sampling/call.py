"""A choice with its values, written as a call: "shifted(alpha=3)", or just "uniform".  What is recorded is what was asked for."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

from dlmjax.diffusion.registry import nearest, parse_call
from dlmjax.errors import InputError


def build(what: str, text: str, choices: Mapping[str, type]) -> Any:
    """The dataclass that `text` names, with the values it gives; words without quotes are strings.

    Raises:
      InputError: not a name or a call, an unknown name or value (with the nearest valid one).
    """
    name, values = parse_call(text, what)
    if name not in choices:
        raise InputError(f"unknown {what} {name!r}{nearest(name, choices)}")
    fields = {field.name: field.default for field in dataclasses.fields(choices[name]) if field.init}
    for key, value in values.items():
        if key not in fields:
            raise InputError(f"{what} {name} has no value {key!r}{nearest(key, fields) if fields else '; it takes none'}")
        values[key] = _like(f"{what} {name}: {key}", value, fields[key])
    try:
        return choices[name](**values)
    except TypeError as error:
        raise InputError(f"{what} {text!r}: {error}") from error


def _like(where: str, value: Any, default: Any) -> Any:
    """A value of the default's type.  Raises InputError for any other, `where` in front."""
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if isinstance(default, float) and number:
        return float(value) if abs(value) < 1e300 else math.copysign(math.inf, value)
    if type(value) is type(default) and (not isinstance(value, tuple) or all(isinstance(part, int | float) for part in value)):
        return value
    wanted = {float: "a number", int: "a whole number", str: "a word", tuple: "numbers in parentheses"}
    raise InputError(f"{where} is {value!r}; give {wanted[type(default)]}")
