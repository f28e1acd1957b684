"""Grids, step methods, rules and stops by name: a name, or a name with values written as a call, "shifted(alpha=3)".

A dotted name, "my_package.my_rules.MyRule(value=2)", is looked up among modules that are imported. Only `import_own`, for a text that a
person has typed, imports one: the settings in a file from elsewhere run no code.
"""

import importlib
import sys
from collections.abc import Mapping
from typing import Any

from dlmjax.choices import check_values, lookup, parameters_of, parse
from dlmjax.errors import InputError


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


def build_own(what: str, text: str, choices: Mapping[str, type], base: type) -> Any:
    """`build`, also of a dotted name of a class that inherits `base`.

    Raises InputError: as `build`; a module that is not imported, or has no such class.
    """
    dotted, bracket, values = text.partition("(")
    if "." not in dotted:
        return build(what, text, choices)
    module, _, name = dotted.strip().rpartition(".")
    own = getattr(sys.modules.get(module), name, None)
    if own is None:
        raise InputError(f"{what} {dotted!r:.100} is not in an imported module; import {module:.80} first, or give it as --{what}")
    if not (isinstance(own, type) and issubclass(own, base)):
        raise InputError(f"{what} {dotted!r:.100} is not a class that inherits {base.__module__}.{base.__name__}")
    return build(what, name + bracket + values, {name: own})


def import_own(what: str, text: str) -> None:
    """Imports the module of a dotted name that a person has typed. Raises InputError: it cannot be imported."""
    module, dot, _ = text.partition("(")[0].strip().rpartition(".")
    if not dot:
        return
    try:
        importlib.import_module(module)
    except Exception as error:
        line = str(error).splitlines()[0][:200] if str(error) else ""
        raise InputError(f"{what} {text!r:.100}: module {module:.80} cannot be imported ({type(error).__name__}: {line})") from error
