"""Rates, peaks, and what a person sees where stderr is not a terminal."""

import io
import sys
import time

import pytest

from dlmjax.cluster.chips import peak_flops
from dlmjax.data import progress as data_progress
from dlmjax.training import Progress, Throughput


def test_peaks_of_known_devices_only():
    assert peak_flops("TPU v5 lite") == 197e12 and peak_flops("TPU v5p") == 459e12 and peak_flops("TPU v5") == 459e12
    assert peak_flops("TPU v4") == 275e12 and peak_flops("TPU v6 lite") == 918e12
    assert peak_flops("NVIDIA H100 80GB HBM3") == peak_flops("NVIDIA H200") == 989e12
    assert peak_flops("NVIDIA H100 PCIe") == 756e12 and peak_flops("NVIDIA A100-SXM4-80GB") == 312e12
    assert peak_flops("cpu") is None and peak_flops("Tesla T4") is None


def test_rates_follow_the_clock_without_the_pauses(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    throughput = Throughput(tokens_per_step=1000, devices=4, flops_per_step=8e12, peak=10e12)
    now[0] += 6
    with throughput.pause():
        now[0] += 50
    now[0] += 4
    rates = throughput.rates(5)
    assert rates == pytest.approx({"seconds_per_step": 2.0, "tokens_per_second_per_device": 125.0, "mfu": 8 / 2 / 4 / 10})
    now[0] += 1
    assert throughput.rates(1)["seconds_per_step"] == pytest.approx(1.0)  # since the last call, pauses forgotten


@pytest.mark.parametrize(("flops", "peak"), [(None, 1e12), (1e12, None)])
def test_no_mfu_without_both_numbers(flops, peak):
    assert set(Throughput(10, 1, flops, peak).rates(1)) == {"seconds_per_step", "tokens_per_second_per_device"}


def test_sparse_lines_without_a_terminal(capsys, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    with Progress(total=100, initial=20, every=30.0) as progress:
        for step in range(80):
            now[0] += 1
            progress.update(1, {"loss": 1.5} if step == 40 else None)
        progress.write("saved")
    lines = capsys.readouterr().err.splitlines()
    assert lines == ["train 50/100, 00:50 left", "train 80/100, 00:20 left, loss 1.5", "train 100/100, 00:00 left, loss 1.5", "saved"]


def test_the_first_step_compiles_and_is_no_measure_of_the_rest(capsys, monkeypatch):
    """An hour of compilation, then a step a second: neither the lines nor the bar tell of hours."""
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    with Progress(total=200, initial=20, every=30.0) as progress:
        for step in range(100):
            now[0] += 3600 if step == 0 else 1
            progress.update(1, {"bound": "4.2 nats/token", "mfu": 0.12345})
    first, *rest = capsys.readouterr().err.splitlines()
    assert first == "train 21/200, bound 4.2 nats/token, mfu 0.1235"
    assert [line.split(",")[:2] for line in rest] == [
        ["train 51/200", " 02:29 left"],
        ["train 81/200", " 01:59 left"],
        ["train 111/200", " 01:29 left"],
    ]


def test_steps_that_are_only_queued_are_not_done(capsys, monkeypatch):
    """The device is eight steps behind: it does one in ten seconds, whatever was handed to it at once."""
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    with Progress(total=60, every=30.0) as progress:
        now[0] += 100
        progress.update()
        for step in range(2, 10):
            progress.update(running=min(step, 8))
        for _ in range(10, 16):
            now[0] += 10
            progress.update(running=8)
        progress.update(running=0)
    lines = capsys.readouterr().err.splitlines()
    assert lines == ["train 1/60", "train 4/60, 09:20 left", "train 7/60, 08:50 left"]


@pytest.mark.parametrize("of_data", [False, True])
def test_the_bar_of_a_terminal_leaves_the_first_step_out(monkeypatch, of_data):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    now = [0.0]
    monkeypatch.setattr(sys, "stderr", Terminal())
    bar = data_progress.Progress(100, "prepare", "B") if of_data else Progress(total=100)
    bar._bar._time, bar._bar.start_t, bar._bar.last_print_t = (lambda: now[0]), 0.0, 0.0
    for step in range(1, 41):
        now[0] += 3600 if step == 1 else 1
        bar.reach(step) if of_data else bar.update()
    found = bar._bar.format_dict
    assert found["elapsed"] == 39 and found["n"] - found["initial"] == 39 and found["rate"] == pytest.approx(1, rel=0.01)
    bar._bar.close()


def test_lines_about_data_wait_for_a_second_count(capsys, monkeypatch):
    """Half an hour until the first count: start-up, and what an earlier call had done."""
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    with data_progress.Progress(1000, "preparing", "B", show=None) as progress:
        now[0] += 1800
        progress.reach(400)
        for count in range(401, 481):
            now[0] += 1
            progress.reach(count)
    assert capsys.readouterr().err.splitlines() == [
        "preparing: 400 of 1.00kB",
        "preparing: 431 of 1.00kB, 09:29 left",
        "preparing: 462 of 1.00kB, 08:58 left",
    ]
