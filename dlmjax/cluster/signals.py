"""The signals that request a run to stop. Imports no jax."""

import signal

FORWARDED = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


def not_ignored() -> list[signal.Signals]:
    """The signals of FORWARDED that this process may handle: SIGHUP stays ignored where `nohup` ignored it at the start."""
    return [number for number in FORWARDED if number != signal.SIGHUP or signal.getsignal(number) is not signal.SIG_IGN]
