"""SIGTERM, SIGINT and SIGHUP as a flag that the training loop reads between two steps."""

import signal
import threading

from dlmjax.cluster.signals import not_ignored


class Interrupt:
    """`with Interrupt() as stop: ... if stop.requested: save and leave`.

    The first signal only sets the flag; a second SIGINT raises KeyboardInterrupt.  SIGHUP stays ignored where it was ignored at the
    start, as under `nohup`.  The earlier handlers are restored at the end.  Outside the main thread signals cannot be handled, and the
    flag stays False.
    """

    def __init__(self):
        self._previous = {}
        self.signal_name = ""

    @property
    def requested(self) -> bool:
        """Has a signal arrived?"""
        return bool(self.signal_name)

    def __str__(self) -> str:
        return f"stopped by {self.signal_name or 'a signal to another process'}"

    def _handle(self, number, frame):
        if self.requested and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.signal_name = self.signal_name or signal.Signals(number).name

    def __enter__(self) -> "Interrupt":
        if threading.current_thread() is threading.main_thread():
            self._previous = {number: signal.signal(number, self._handle) for number in not_ignored()}
        return self

    def __exit__(self, *_) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous = {}
