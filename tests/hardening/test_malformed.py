"""No malformed flag and no malformed file ends in a traceback, hangs, is taken for another value, or is told without its name."""

import io
import os
import shutil
import sys

import pytest

from tests.hardening import malformed

# Of the cases, each so-many-th is tried in the fast form: primes, so that all flags meet some values, and all values some flags.
FAST, FAST_READERS = 29, 3
PARTS = 8  # of the full form, some two minutes each


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Runs cases in a folder of their own, with a world of files in it; returns what was found, by case."""
    monkeypatch.chdir(tmp_path)
    values = malformed.world(tmp_path)

    def judged(case):
        out, err = io.StringIO(), io.StringIO()
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sys, "stdout", out)
            patch.setattr(sys, "stderr", err)
            said = malformed.judge(case, out, err)
        for made in ("out", "folder"):
            shutil.rmtree(tmp_path / made, ignore_errors=True)
        os.makedirs("folder", exist_ok=True)
        (tmp_path / "file").write_text("mine\n")
        return said

    judged.values = values
    return judged


def test_every_flag_takes_or_refuses_every_value(run, capsys):
    cases = list(malformed.cases_of_flags(run.values))
    assert len(cases) > 4000 and len({case.name.split(":")[0] for case in cases}) > 180
    _all_well(run, [case for case in cases[::FAST] if case.argv[0] != "lm-eval"], capsys)  # whose imports alone take ten seconds


@pytest.mark.nightly
@pytest.mark.parametrize("part", range(PARTS))
def test_every_flag_takes_or_refuses_every_value_in_full(run, capsys, part):
    _all_well(run, list(malformed.cases_of_flags(run.values))[part::PARTS], capsys)


def test_every_reader_refuses_what_it_cannot_read(run, tmp_path, capsys):
    _all_read(run, list(malformed.cases_of_readers())[::FAST_READERS], tmp_path, capsys)


@pytest.mark.nightly
def test_every_reader_refuses_what_it_cannot_read_in_full(run, tmp_path, capsys):
    _all_read(run, list(malformed.cases_of_readers()), tmp_path, capsys)


def _all_read(run, cases, tmp_path, capsys):
    found = {}
    for number, (file, content, case) in enumerate(cases):
        path = tmp_path / f"reader{number}" / file
        path.parent.mkdir(parents=True)
        path.write_bytes(content)
        if file.endswith("vocab.json"):
            (path.parent / "merges.txt").write_bytes(content)
        (tmp_path / f"reader{number}" / "file").write_text("mine\n")
        with pytest.MonkeyPatch.context() as patch:
            patch.chdir(tmp_path / f"reader{number}")
            if said := run(case):
                found[case.name] = said
    with capsys.disabled():
        print("\n" + malformed.tally(found, len(cases)))
    assert not found


def _all_well(run, cases, capsys):
    found = {case.name: said for case in cases if (said := run(case))}
    with capsys.disabled():
        print("\n" + malformed.tally(found, len(cases)))
    assert not found
