"""Choices with values, written as calls: "masked", "hybrid(p_uniform=0.2)". One parser and one check for configs, flags and files.

Values are Python literals; words and choices without quotes, also with dots between, are texts. The values that a choice takes, and
their types, are the parameters of what it makes: a class or a function with annotations. Nothing is made for a check. Imports no jax.
"""

import ast
import dataclasses
import difflib
import inspect
import keyword
import sys
import types
import typing
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from dlmjax.errors import InputError

Parameters = Mapping[str, inspect.Parameter]


def parse(text: str, what: str = "value") -> tuple[str, dict[str, Any]]:
    """The name and the values of a choice: "power(exponent=0.5)" is ("power", {"exponent": 0.5}), "cosine" is ("cosine", {}).

    Args:
      what: the field or flag that the text is of, for the message.

    Raises:
      InputError: the text is neither a name nor a name with values, or gives a value twice.
    """
    try:
        node = ast.parse(text.strip(), mode="eval").body
        if repeated := _repeated(node):
            raise InputError(f"{what} {text!r:.200} has the value {repeated:.100} twice; give it once")
        if isinstance(node, ast.Name):
            return node.id, {}
        if _has_values(node):
            return node.func.id, {word.arg: _value_of(word.value) for word in node.keywords}
    except InputError:
        raise
    except (SyntaxError, ValueError, TypeError, MemoryError, RecursionError):  # the last two: thousands of brackets
        pass
    raise InputError(f"cannot read {what} {text!r:.200}; write a name, or a name with values, like power(exponent=0.5)")


def split_suffix(text: str) -> tuple[str, str]:
    """("DIR", "(tokens=5)") of "DIR(tokens=5)", for values behind what is not a Python name; ("DIR", "") without values."""
    head, bracket, values = text.rpartition("(")
    return (head, f"({values}") if head and values.endswith(")") and "=" in values else (text, "")


def text_of(name: str, values: Mapping[str, Any]) -> str:
    """The text that `parse` reads as this name with these values; words that need no quotes have none."""
    return f"{name}({', '.join(f'{key}={_written(value)}' for key, value in values.items())})" if values else name


def lookup(kind: str, name: Any, table: Mapping[str, Any]) -> Any:
    """The entry of a table. Raises InputError: no such name; the message has the nearest one."""
    if not isinstance(name, str) or name not in table:
        raise InputError(f"unknown {kind} {name!r:.100}{nearest(str(name), table)}")
    return table[name]


def nearest(name: str, valid: Iterable[str]) -> str:
    """`; did you mean ...?` with the valid name that is nearest, or with one of the same last part; else the list of valid names."""
    valid = list(valid)
    close = difflib.get_close_matches(name, valid, n=1) or [one for one in valid if one.rpartition(".")[2] == name.rpartition(".")[2]]
    return f"; did you mean {close[0]!r}?" if close else f"; choose one of {', '.join(valid)}"


def parameters_of(make: Callable[..., Any]) -> dict[str, inspect.Parameter]:
    """What a class or a function is called with, by name."""
    return dict(inspect.signature(make, eval_str=True).parameters)


def build(where: str, make: Callable[..., Any], values: Mapping[str, Any]) -> Any:
    """`make(**values)`, checked. Raises InputError as `check_values` does, or from the class itself."""
    check_values(where, parameters_of(make), values)
    return make(**values)


def check_values(where: str, parameters: Parameters, values: Mapping[str, Any]) -> None:
    """Checks names and types of values; `where`: the choice, for the message.

    Raises:
      InputError: a value that is not a parameter (with the nearest one), a missing parameter, a plain value of another type.
    """
    for name, value in values.items():
        if name not in parameters:
            raise InputError(f"{where} has no value {name!r}" + (nearest(name, parameters) if parameters else "; it takes none"))
        kind = parameters[name].annotation
        if isinstance(value, _PLAIN) and not _fits(value, kind):
            raise InputError(f"{where}: {name} requires {requirement(kind)}, not {value!r:.100}")
    missing = [name for name, parameter in parameters.items() if parameter.default is parameter.empty and name not in values]
    if missing:
        raise InputError(f"{where} requires {', '.join(missing)}")


def _repeated(node: ast.expr) -> str | None:
    """A name that stands twice in one pair of brackets, at any depth: of two values, Python's own readers take the last in silence."""
    for part in ast.walk(node):
        names = [word.arg for word in part.keywords] if isinstance(part, ast.Call) else []
        names += [key.value for key in part.keys if isinstance(key, ast.Constant)] if isinstance(part, ast.Dict) else []
        for index, name in enumerate(names):
            if name in names[:index]:
                return str(name)
    return None


def _has_values(node: ast.expr) -> bool:
    """Whether this is a name with values, NAME(key=value, ...)."""
    return isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and not node.args and all(word.arg for word in node.keywords)


def _value_of(node: ast.expr) -> Any:
    return ast.unparse(node) if isinstance(node, ast.Name | ast.Attribute) or _has_values(node) else ast.literal_eval(node)


def _written(value: Any) -> str:
    """A value as it stands in the brackets of a choice."""
    is_word = (
        isinstance(value, str) and value.isascii() and all(part.isidentifier() and not keyword.iskeyword(part) for part in value.split("."))
    )
    return value if is_word else repr(value)


# What a text can hold. Arrays, schedules and distributions come from callers who made them.
_PLAIN = (bool, int, float, complex, str, bytes, tuple, list, dict, set, types.NoneType)
_WORDS = {float: "a number", int: "a whole number", bool: "True or False", str: "a word", types.NoneType: "None"}
_PLURALS = {float: "numbers", int: "whole numbers", bool: "True or False", str: "words"}


def _fits(value: Any, kind: Any) -> bool:
    """Whether a plain value is of an annotated type. Every integer is a number; True and False are not."""
    kind = kind.type if isinstance(kind, dataclasses.InitVar) else kind
    if kind in (Any, inspect.Parameter.empty):
        return True
    if isinstance(kind, types.UnionType):
        return any(_fits(value, one) for one in typing.get_args(kind))
    if typing.get_origin(kind) is typing.Literal:
        return isinstance(value, str) and value in typing.get_args(kind)
    if typing.get_origin(kind) is tuple:
        inner = typing.get_args(kind)
        inner = inner[:1] * len(value) if isinstance(value, tuple | list) and inner[1:] == (...,) else inner
        return isinstance(value, tuple | list) and len(value) == len(inner) and all(map(_fits, value, inner))
    if kind is float:
        return type(value) in (int, float) and abs(value) <= sys.float_info.max
    if kind is int:
        return type(value) is int and abs(value) < 2**31
    return type(value) is kind if kind in _WORDS else isinstance(kind, type) and isinstance(value, kind)


def requirement(kind: Any) -> str:
    """A type in plain words: "a number", "a list of pairs of whole numbers", "a word or None"."""
    kind = kind.type if isinstance(kind, dataclasses.InitVar) else kind
    if isinstance(kind, types.UnionType):
        return " or ".join(map(requirement, typing.get_args(kind)))
    if typing.get_origin(kind) is typing.Literal:
        return " or ".join(typing.get_args(kind))
    if typing.get_origin(kind) is tuple:
        return f"a list of {_several(typing.get_args(kind))}"
    name = getattr(kind, "__name__", str(kind))
    return _WORDS.get(kind) or f"{'an' if name[0] in 'AEIOU' else 'a'} {name}, which cannot be written in a text"


def _several(kinds: tuple[Any, ...]) -> str:
    """The elements of a list type in plain words: "numbers", "2 words", "pairs of whole numbers", "lists of numbers"."""
    count = "" if kinds[1:] == (...,) else f"{len(kinds)} "
    inner = typing.get_args(kinds[0])
    if typing.get_origin(kinds[0]) is not tuple:
        return count + (_PLURALS.get(kinds[0]) or f"values of which each is {requirement(kinds[0])}")
    if inner[1:] != (...,) and len(inner) == 2:
        return f"{count}pairs of {_several((inner[0], ...))}"
    return f"{count}lists of {_several(inner)}"
