"""Rates, peaks, and what a person sees where stderr is not a terminal."""

import time

import pytest

from dlmjax.cluster.chips import peak_flops
from dlmjax.training import Throughput, TrainingProgress


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
    with TrainingProgress(total=100, initial=20) as progress:
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
    with TrainingProgress(total=200, initial=20) as progress:
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
    with TrainingProgress(total=60) as progress:
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
