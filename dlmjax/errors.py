"""The exceptions that are meant for a person, each printed as one line, and exit codes. Imports nothing."""


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
