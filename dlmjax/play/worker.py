"""The one thread that computes: jobs wait in a bounded queue, and those that run take turns, one step each.

A job is a generator that yields after each step, so that it can be cancelled between two steps and long jobs do not hold up short ones.
The clients (a tab, a connection) take turns: a client with many jobs waits for its own.
"""

import asyncio
import collections
import secrets
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from typing import Any

from dlmjax.flags import message_of

CANCELLED = "cancelled"
DEFECT = "the server met a defect, which its terminal shows; the other requests go on"


class Busy(Exception):
    """The queue is full. retry: seconds after which a place may be free."""

    def __init__(self, message: str, retry: int = 2):
        super().__init__(message)
        self.retry = retry


class Job:
    """What one request asks to be computed, and its events, which the request's coroutine reads from `outbox`.

    work: makes the generator; it calls `emit` and yields after each step.  client: who asked.
    The last event is ("end", value) or ("error", one line).
    """

    def __init__(self, work: Callable[["Job"], Iterator[None]], client: str = ""):
        self.id = secrets.token_hex(8)
        self.client, self._work = client, work
        self.outbox: asyncio.Queue = asyncio.Queue()
        self._loop = asyncio.get_running_loop()
        self._cancelled = threading.Event()
        self._steps: Iterator[None] | None = None

    def emit(self, kind: str, value: Any) -> None:
        """Hands an event to the request, from the thread that computes."""
        try:
            self._loop.call_soon_threadsafe(self.outbox.put_nowait, (kind, value))
        except RuntimeError:  # the server has ended
            self._cancelled.set()

    def cancel(self) -> None:
        """Ends the job before its next step."""
        self._cancelled.set()

    @property
    def cancelled(self) -> bool:
        """Whether `cancel` was called."""
        return self._cancelled.is_set()

    def advance(self) -> bool:
        """Computes one step; False where the job has ended."""
        try:
            if self.cancelled:
                self.close()
                self.emit("error", CANCELLED)
                return False
            if self._steps is None:
                self._steps = self._work(self)
            next(self._steps)
            return True
        except StopIteration:
            return False
        except Exception as error:
            said = message_of(error)
            if not said:
                traceback.print_exception(error, file=sys.stderr)
            self.emit("error", said or DEFECT)
            return False

    def close(self) -> None:
        """Drops what the job holds."""
        if self._steps is not None:
            self._steps.close()
        self._steps = None


class Worker:
    """The thread, the jobs that wait and those that run.

    waiting: places of the queue.  each: places of one client.  together: jobs that take turns.
    """

    def __init__(self, waiting: int = 32, each: int = 8, together: int = 4):
        self._most, self._each, self._together = waiting, each, together
        self._waiting: collections.OrderedDict[str, collections.deque[Job]] = collections.OrderedDict()
        self._running: list[Job] = []
        self._jobs: dict[str, Job] = {}
        self._condition = threading.Condition()
        self._ended = False
        self._thread = threading.Thread(target=self._run, name="dlmjax play", daemon=True)

    def start(self) -> None:
        """Starts the thread."""
        self._thread.start()

    def submit(self, job: Job) -> Job:
        """Puts a job into the queue. Raises Busy."""
        with self._condition:
            self._drop_cancelled()
            count = sum(map(len, self._waiting.values()))
            if count >= self._most:
                raise Busy(f"the sampler is busy: {count} requests wait; send it again later")
            if len(self._waiting.get(job.client, ())) >= self._each:
                raise Busy(f"the sampler is busy: {self._each} requests of this client wait; send it again later")
            self._waiting.setdefault(job.client, collections.deque()).append(job)
            self._jobs[job.id] = job
            self._condition.notify()
        return job

    def cancel(self, name: str) -> bool:
        """Cancels the job of an id; False where none waits or runs."""
        with self._condition:
            job = self._jobs.get(name)
        if job is not None:
            job.cancel()
        return job is not None

    @property
    def count(self) -> int:
        """Jobs that wait or run."""
        with self._condition:
            return len(self._jobs)

    def close(self) -> None:
        """Ends the thread after its step."""
        with self._condition:
            self._ended = True
            self._condition.notify()

    def _run(self) -> None:
        while True:
            with self._condition:
                self._condition.wait_for(lambda: self._ended or self._jobs)
                if self._ended:
                    return
                self._drop_cancelled()
                self._admit()
                if not self._running:
                    continue
                job = self._running.pop(0)
            goes_on = job.advance()
            with self._condition:
                if goes_on:
                    self._running.append(job)
                else:
                    job.close()
                    del self._jobs[job.id]
            del job  # its states are not kept until the next request

    def _drop_cancelled(self) -> None:
        """Takes jobs that wait and are cancelled out of the queue."""
        for client, jobs in list(self._waiting.items()):
            for job in [job for job in jobs if job.cancelled]:
                jobs.remove(job)
                del self._jobs[job.id]
                job.emit("error", CANCELLED)
            if not jobs:
                del self._waiting[client]

    def _admit(self) -> None:
        """Fills the places of the jobs that run: the client with the fewest of them first, of equal ones the one that waits longest."""
        while self._waiting and len(self._running) < self._together:
            runs = collections.Counter(job.client for job in self._running)
            client = min(self._waiting, key=lambda name: runs[name])  # the first of equal ones
            jobs = self._waiting.pop(client)
            self._running.append(jobs.popleft())
            if jobs:
                self._waiting[client] = jobs  # at the end: the others come first
