"""Signals as a person or a scheduler sends them, in this process and to a child."""

import os
import signal
import subprocess
import sys
import threading

import pytest

from dlmjax.cluster.interrupt import Interrupt


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_sets_the_flag_and_nothing_else(number):
    outside = signal.signal(number, signal.default_int_handler)  # the tests themselves may run under nohup
    try:
        with Interrupt() as stop:
            assert not stop.requested and stop.signal_name == ""
            os.kill(os.getpid(), number)
            assert stop.requested and stop.signal_name == signal.Signals(number).name
        assert signal.getsignal(number) is signal.default_int_handler
    finally:
        signal.signal(number, outside)


def test_what_is_ignored_at_the_start_stays_ignored():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with Interrupt() as stop:
            os.kill(os.getpid(), signal.SIGHUP)
            assert not stop.requested
    finally:
        signal.signal(signal.SIGHUP, before)


def test_the_second_ctrl_c_does_not_wait():
    with pytest.raises(KeyboardInterrupt), Interrupt() as stop:
        os.kill(os.getpid(), signal.SIGINT)
        assert stop.requested
        os.kill(os.getpid(), signal.SIGINT)
    with Interrupt() as stop:  # SIGTERM afterwards, once or again, changes nothing
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.signal_name == "SIGINT"


def test_handlers_come_back_after_an_error():
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(RuntimeError), Interrupt():
        raise RuntimeError
    assert signal.getsignal(signal.SIGTERM) is before


def test_outside_the_main_thread_it_is_inert():
    seen = []

    def work():
        with Interrupt() as stop:
            seen.append(stop.requested)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [False]


def test_a_loop_that_is_terminated_ends_in_order():
    """Signalled from outside, the child finishes its step, leaves its loop and exits 0."""
    loop = """
import importlib.util, sys, time
spec = importlib.util.spec_from_file_location("interrupt", sys.argv[1])
interrupt = importlib.util.module_from_spec(spec)
spec.loader.exec_module(interrupt)
with interrupt.Interrupt() as stop:
    print("ready", flush=True)
    while not stop.requested:
        time.sleep(0.01)
print("saved after", stop.signal_name)
"""
    path = sys.modules["dlmjax.cluster.interrupt"].__file__
    process = subprocess.Popen([sys.executable, "-c", loop, path], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "ready\n"
    process.terminate()
    out, _ = process.communicate(timeout=30)
    assert out == "saved after SIGTERM\n" and process.returncode == 0
