"""The exceptions that are meant for a person, each printed as one line, and exit codes. Imports nothing of dlmjax."""

import contextlib
import functools
import re
from collections.abc import Callable, Iterator


class InputError(ValueError):
    """Bad input. The message is one line: what is wrong, where, and what to do about it; nothing already written was changed."""


class Diverged(InputError):
    """The loss of a run is not finite, and train.on_nonfinite is "stop"."""


class NoSplit(InputError):
    """A whole corpus that was prepared without the requested split."""


class NoCorpus(InputError):
    """No corpus is named, or nothing exists at its path."""


class LostPeer(RuntimeError):
    """Another process of the run has ended or did not start. Exit code START_AGAIN: the same command, started again, resumes."""


START_AGAIN = 75  # EX_TEMPFAIL of sysexits.h: the same command, started again, continues
READER_LEFT = 141  # a command that has done its work, and whose output nobody reads any more: 128 + SIGPIPE, as a shell reports other tools


# ---- flags on the command line, arguments in Python ----------------------------------------------------------------------------------

_typed = False  # whether a command is running, whose person has typed flags
# A command to be given in a shell keeps its flags; `--config.a.b=VALUE` is the override "a.b=VALUE" of `load_config`.
_FLAGS = re.compile(r"\bdlmjax [a-z][a-z-]*[^;()]*| \(--debug shows more\)|(?<![\w./-])--(?:config\.(?=\w)|([a-z][a-z0-9-]*)(?!\w))")


@contextlib.contextmanager
def flags_typed() -> Iterator[None]:
    """Inside, messages name flags: they are for the person who typed them."""
    global _typed
    before, _typed = _typed, True
    try:
        yield
    finally:
        _typed = before


def as_arguments(message: str, names: dict[str, str]) -> str:
    """A message that names flags, with the arguments of Python in their place: "--text-field" is text_field, others are in `names`."""

    def argument(found: re.Match) -> str:
        if found[0].startswith("dlmjax "):
            return found[0]
        return names.get(found[1], found[1].replace("-", "_")) if found[1] else ""

    return _FLAGS.sub(argument, message)


def names_arguments(**names: str) -> Callable[[Callable], Callable]:
    """Decorates a function of the Python interface: its InputErrors name arguments where no command is running.

    names: flag, without its hyphens -> argument, where they differ otherwise than in hyphens and underscores.
    """

    def decorate(function: Callable) -> Callable:
        @functools.wraps(function)
        def call(*args, **kwargs):
            try:
                return function(*args, **kwargs)
            except InputError as error:
                if not _typed and len(error.args) == 1:
                    error.args = (as_arguments(str(error), names),)
                raise

        call.names_arguments = True
        return call

    return decorate
