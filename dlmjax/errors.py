"""The one exception that is meant for a person: raised on bad input, printed as one line, exit code 2. Imports nothing."""


class InputError(ValueError):
    """Bad input. The message is one line: what is wrong, where, and what to do about it; nothing already written was changed."""


class Diverged(InputError):
    """The loss of a run is not finite, and its config says to stop then."""


class NoSplit(InputError):
    """A corpus that is whole and was prepared without the split that is wanted."""


class NoCorpus(InputError):
    """No corpus is named, or nothing at all is at the place of the one that is."""


class LostPeer(RuntimeError):
    """Another process of the run is gone or never came. Exit code START_AGAIN: the same command, started again, resumes."""


START_AGAIN = 75  # EX_TEMPFAIL of sysexits.h: the same command, started again, continues
