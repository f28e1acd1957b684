"""launch/local.py with real processes: what they are told, whose lines come out, whose exit code it is, who is killed and when."""

import os
import pathlib
import re
import signal
import subprocess
import sys
import time

import pytest

ROOT = pathlib.Path(__file__).parents[2]
LOCAL = [sys.executable, str(ROOT / "launch/local.py")]


def start(*flags, code):
    """The launcher with a Python program as its command; R is the rank in it."""
    program = f"import os, signal, sys, time\nR = int(os.environ['DLMJAX_PROCESS'])\n{code}"
    return subprocess.Popen(
        [*LOCAL, *flags, "--", sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, bufsize=1
    )


def ends(child):
    out, err = child.communicate(timeout=60)
    return child.returncode, out, err


def test_each_process_is_told_its_place():
    names = "DLMJAX_COORDINATOR", "DLMJAX_PROCESSES", "DLMJAX_PROCESS", "JAX_PLATFORMS", "JAX_NUM_CPU_DEVICES"
    code, out, _ = ends(start("3", "--devices", "2", code=f"print(*(os.environ[n] for n in {names}))"))
    assert code == 0
    lines = sorted(out.splitlines())
    port = re.match(r"\[0\] 127\.0\.0\.1:(\d+) 3 0 cpu 2$", lines[0]).group(1)
    assert lines == [f"[{rank}] 127.0.0.1:{port} 3 {rank} cpu 2" for rank in range(3)]


def test_a_dry_run_prints_what_would_be_started_and_starts_nothing(tmp_path):
    flags = ["2", "--devices", "4", "--port", "24000", "--dry-run", "--", "touch", str(tmp_path / "a b")]
    done = subprocess.run([*LOCAL, *flags], capture_output=True, text=True, timeout=60)
    shared = "DLMJAX_COORDINATOR=127.0.0.1:24000 DLMJAX_PROCESSES=2 JAX_PLATFORMS=cpu JAX_NUM_CPU_DEVICES=4 PYTHONUNBUFFERED=1"
    assert done.stdout.splitlines() == [f"{shared} DLMJAX_PROCESS={rank} touch '{tmp_path}/a b'" for rank in range(2)]
    assert done.returncode == 0 and not list(tmp_path.iterdir())
    subprocess.run(done.stdout.splitlines()[0], shell=True, check=True)  # the printed line is the command
    assert [path.name for path in tmp_path.iterdir()] == ["a b"]


def test_no_line_is_lost_torn_or_moved_to_the_other_stream():
    write = (
        "for i in range(4000):\n    print(R, 'out', i)\n    print(R, 'err', i, file=sys.stderr)\nsys.stdout.write('end without a newline')"
    )
    code, out, err = ends(start("2", code=write))
    assert code == 0
    for text, name, last in ((out, "out", ["end without a newline"]), (err, "err", [])):
        for rank in "01":
            of_rank = [line[4:] for line in text.splitlines() if line.startswith(f"[{rank}] ")]
            assert of_rank == [f"{rank} {name} {i}" for i in range(4000)] + last
        assert all(re.match(r"\[[01]\] ", line) for line in text.splitlines())


def test_a_line_appears_when_it_is_written():
    """The process waits for an end that this test gives it only after the line has come through."""
    child = start("1", code="print('here')\nsignal.pause()")
    assert child.stdout.readline() == "[0] here\n"
    assert child.poll() is None
    child.terminate()
    assert ends(child)[0] == 128 + signal.SIGTERM


@pytest.mark.parametrize("end, expected", [("sys.exit(75)", 75), ("os.kill(os.getpid(), signal.SIGKILL)", 137), ("sys.exit(2)", 2)])
def test_the_first_failure_gives_the_code_and_the_others_may_end_by_themselves(end, expected):
    """Process 0 ends half a second after the failure with another code, and is not killed."""
    code, out, err = ends(start("2", code=f"if R == 1:\n    {end}\ntime.sleep(0.5)\nprint('saved')\nsys.exit(9)"))
    assert code == expected
    assert "[0] saved" in out and "process 0 ended with code 9" in err and "killing" not in err


def test_who_does_not_end_within_the_grace_is_killed_with_all_it_started(tmp_path):
    stubborn = (
        "import subprocess\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        "if R == 1:\n    time.sleep(0.5)\n    sys.exit(3)\n"
        f"child = subprocess.Popen(['sleep', '600'])\nopen({str(tmp_path / 'pid')!r}, 'w').write(str(child.pid))\ntime.sleep(600)"
    )
    began = time.monotonic()
    code, _, err = ends(start("2", "--grace", "0.5", code=stubborn))
    assert code == 3 and "killing process 0" in err
    assert time.monotonic() - began < 30
    for _ in range(100):
        left = pathlib.Path(f"/proc/{(tmp_path / 'pid').read_text()}/stat")
        if not left.exists() or left.read_text().split()[2] == "Z":
            break
        time.sleep(0.05)
    else:
        pytest.fail("a process that the killed one had started is still there")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=lambda number: number.name)
def test_a_signal_reaches_every_process_once(number):
    catch = (
        "seen = []\nfor n in (signal.SIGTERM, signal.SIGINT):\n    signal.signal(n, lambda n, _: seen.append(n))\n"
        "print('ready')\nwhile not seen:\n    time.sleep(0.01)\ntime.sleep(0.5)\nprint(len(seen), signal.Signals(seen[0]).name)"
    )
    child = start("2", code=catch)
    ready = [child.stdout.readline() for _ in range(2)]
    assert sorted(ready) == ["[0] ready\n", "[1] ready\n"]
    child.send_signal(number)
    code, out, _ = ends(child)
    assert code == 0
    assert sorted(out.splitlines()) == [f"[{rank}] 1 {number.name}" for rank in range(2)]


def test_a_reader_that_goes_away_does_not_stop_the_run(tmp_path):
    child = start("1", code=f"for i in range(20000):\n    print(i)\nopen({str(tmp_path / 'done')!r}, 'w').close()")
    assert child.stdout.readline() == "[0] 0\n"
    child.stdout.close()
    assert child.wait(timeout=60) == 0, child.stderr.read()
    child.stderr.close()
    assert (tmp_path / "done").exists()


@pytest.mark.parametrize(
    "flags, said",
    [
        (["2"], "no command"),
        (["0", "--", "true"], "N is 0"),
        (["two", "--", "true"], "N is 'two'; give a whole number from 1 to 4096"),
        (["2", "--device", "3", "--", "true"], "--device"),
        (["2", "--devices", "0", "--", "true"], "--devices is 0"),
        (["2", "--grace", "nan", "--", "true"], "--grace is 'nan'"),
        (["2", "--port", "9" * 5000, "--", "true"], "--port is"),
        (["2", "--port", "a\nb", "--", "true"], "--port is"),
        (["2", "--", "no-such-program"], "no-such-program"),
        (["2", "--", "no\nprogram"], "no program is not a program"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_bad_input_is_one_line_and_code_two(flags, said):
    done = subprocess.run([*LOCAL, *flags], capture_output=True, text=True, timeout=60)
    assert done.returncode == 2 and said in done.stderr and len(done.stderr.splitlines()) == 1 and not done.stdout


@pytest.mark.parametrize("words", [("local.py", "1", "--", "true"), ("unfinished.py", "true")], ids=lambda words: words[0])
def test_a_checkout_alone_is_enough(words):
    """Both start without any installed package, before jax is there and as fast as Python does."""
    script = [sys.executable, "-S", "-I", str(ROOT / "launch" / words[0]), *words[1:]]
    assert subprocess.run(script, env={"PATH": os.environ["PATH"]}, timeout=60).returncode == 0
