"""Grids and step methods by name: a name, or a name with values written as a call, "shifted(alpha=3)"."""

from collections.abc import Mapping
from typing import Any

from dlmjax.choices import check_values, lookup, parameters_of, parse


def build(what: str, text: str, choices: Mapping[str, type]) -> Any:
    """Makes the dataclass that `text` names, with its values; a whole number becomes a float where the field is one.

    Args:
      what: the field or flag, for messages.

    Raises:
      InputError: the text is not a name or a call; an unknown name or value (the message has the nearest valid one); a value of a
        different type.
    """
    name, values = parse(text, what)
    make = lookup(what, name, choices)
    parameters = parameters_of(make)
    check_values(f"{what} {name}", parameters, values)
    return make(**{key: float(value) if parameters[key].annotation is float else value for key, value in values.items()})
