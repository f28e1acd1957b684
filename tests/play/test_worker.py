"""The queue: turns, places, cancelling, and jobs that fail."""

import asyncio

import pytest

from dlmjax.errors import InputError
from dlmjax.play.worker import CANCELLED, DEFECT, Busy, Job, Worker


def counting(log, name, steps=3):
    """A job's work that writes each of its steps down."""

    def work(job):
        for step in range(steps):
            log.append((name, step))
            yield
        job.emit("end", name)

    return work


async def last(job):
    while True:
        kind, value = await asyncio.wait_for(job.outbox.get(), 10)
        if kind in ("end", "error"):
            return kind, value


def test_jobs_take_turns_and_clients_too():
    """One client sends three jobs, then another one sends one: with two places it does not wait for the third."""

    async def play():
        log, worker = [], Worker(together=2)
        jobs = [Job(counting(log, f"a{n}"), "a") for n in range(3)] + [Job(counting(log, "b"), "b")]
        for job in jobs:
            worker.submit(job)
        worker.start()
        ends = [await last(job) for job in jobs]
        worker.close()
        return log, ends

    log, ends = asyncio.run(play())
    assert ends == [("end", name) for name in ("a0", "a1", "a2", "b")]
    assert log[:4] == [("a0", 0), ("b", 0), ("a0", 1), ("b", 1)]  # one step each, of each client one
    assert log.index(("b", 2)) < log.index(("a2", 0))


def test_places_are_bounded_in_all_and_for_each_client():
    async def play():
        worker = Worker(waiting=3, each=2)
        jobs = [worker.submit(Job(counting([], "a"), "a")) for _ in range(2)]
        with pytest.raises(Busy, match="2 requests of this client wait"):
            worker.submit(Job(counting([], "a"), "a"))
        worker.submit(Job(counting([], "b"), "b"))
        with pytest.raises(Busy, match="3 requests wait"):
            worker.submit(Job(counting([], "c"), "c"))
        assert worker.cancel(jobs[0].id) and not worker.cancel("none")
        worker.submit(Job(counting([], "c"), "c"))  # a cancelled job leaves its place before a turn of its own
        assert await last(jobs[0]) == ("error", CANCELLED) and worker.count == 3

    asyncio.run(play())


def test_a_job_is_cancelled_between_two_steps_and_a_failed_one_leaves_the_others(capsys):
    def endless(job):
        closed.append(False)
        try:
            while True:
                yield
        finally:
            closed.append(True)

    def bad(job):
        yield
        raise InputError("the canvas is empty")

    def broken(job):
        yield
        raise ZeroDivisionError("of ours")

    closed = []

    async def play():
        worker = Worker()
        worker.start()
        jobs = [worker.submit(Job(work, str(number))) for number, work in enumerate((endless, bad, broken))]
        assert await last(jobs[1]) == ("error", "the canvas is empty")
        assert await last(jobs[2]) == ("error", DEFECT)
        jobs[0].cancel()
        assert await last(jobs[0]) == ("error", CANCELLED)
        good = worker.submit(Job(counting([], "good"), "x"))
        assert await last(good) == ("end", "good")
        worker.close()

    asyncio.run(play())
    assert closed == [False, True] and "ZeroDivisionError: of ours" in capsys.readouterr().err
