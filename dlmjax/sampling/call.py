"""A choice with its values, written as a call: "shifted(alpha=3)", or just "uniform".  What is recorded is what was asked for."""

import dataclasses
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
        values[key] = float(value) if isinstance(fields[key], float) and isinstance(value, int) else value
    try:
        return choices[name](**values)
    except TypeError as error:
        raise InputError(f"{what} {text!r}: {error}") from error
