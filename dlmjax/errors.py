"""The one exception that is meant for a person: raised on bad input, printed as one line, exit code 2. Imports nothing."""


class InputError(ValueError):
    """Bad input. The message is one line: what is wrong, where, and what to do about it; nothing already written was changed."""
