"""The fields of a config as the help of `dlmjax train --help-config` and as the table of docs/config.md, both from `fields.FIELDS`."""

import argparse

from dlmjax.fields import FIELDS

HEAD = "Fields of a config: --config.FIELD=VALUE. Those with * may change when a run resumes; the others make another run."


def help_text() -> str:
    """One line for each field: name as it is typed, default, meaning, allowed values."""
    lines = [HEAD]
    for name, field in FIELDS.items():
        # Left out where the meaning holds it already, or where any value is allowed.
        allowed = "" if field.named or field.range in ("true or false", "a number", "a list with commas") else f" ({field.range})"
        lines.append(f"{' ' if field.identity else '*'} {name:<23}{_shown(field.default):<12}{field.doc}{allowed}")
    return "\n".join(lines)


def markdown_table() -> str:
    """The same as a table, with the compiled programs that depend on a field."""
    rows = ["| field | default | meaning | values | another run | programs |", "|---|---|---|---|---|---|"]
    for name, field in FIELDS.items():
        another = "yes" if field.identity else "no"
        rows.append(f"| `{name}` | {_shown(field.default)} | {field.doc} | {field.range} | {another} | {field.programs} |")
    return "\n".join(rows)


def _shown(default: object) -> str:
    return str(default).lower() if isinstance(default, bool) else str(default) if default not in ("", ()) else "(empty)"


class HelpConfig(argparse.Action):
    """Prints the fields of a config and ends, as --help does."""

    def __init__(self, option_strings: list[str], dest: str, **about):
        super().__init__(option_strings, argparse.SUPPRESS, nargs=0, default=argparse.SUPPRESS, **about)

    def __call__(self, parser, namespace, values, option_string=None):
        print(help_text())
        parser.exit()
