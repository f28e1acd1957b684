"""A choice with its values, written as a call: "shifted(alpha=3)", or just "uniform".  What is recorded is what was asked for."""

from collections.abc import Mapping
from typing import Any

from dlmjax.choices import check_values, lookup, parameters_of, parse


def build(what: str, text: str, choices: Mapping[str, type]) -> Any:
    """The dataclass that `text` names, with the values it gives; a whole number for a float becomes one.

    Raises:
      InputError: not a name or a call, an unknown name or value (with the nearest valid one), a value of another type.
    """
    name, values = parse(text, what)
    make = lookup(what, name, choices)
    parameters = parameters_of(make)
    check_values(f"{what} {name}", parameters, values)
    return make(**{key: float(value) if parameters[key].annotation is float else value for key, value in values.items()})
