"""The page of a run: it says what the files of the workdir say, needs nothing else, and whatever stands in them remains text."""

import html.parser
import json
import re
import shutil
import time

import pytest

from dlmjax.cli.main import main
from dlmjax.errors import InputError
from dlmjax.report import TrainedPhase, read_facts, render
from dlmjax.training import read
from tests.test_train import config_file, tiny_config


class Page(html.parser.HTMLParser):
    """The elements of a page, and its text."""

    def __init__(self, content):
        super().__init__()
        self.tags, self.outside, self.text = [], [], ""
        self.feed(content)

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.outside += [value for name, value in attributes if name in ("src", "href", "action") or name.startswith("on")]

    def handle_data(self, data):
        self.text += data


@pytest.fixture(scope="module")
def run(small_corpus, tmp_path_factory):
    """A trained run with an evaluation, made by the commands."""
    root = tmp_path_factory.mktemp("report")
    file = config_file(root / "tiny.py", tiny_config(small_corpus, train__steps=6, log__evaluate=3, log__sample=6))
    workdir = root / "a run"
    assert main(["train", "--config", str(file), "--workdir", str(workdir)]) == 0
    assert main(["evaluate", "--workdir", str(workdir), "--nodes", "2", "--windows", "8", "--json", str(workdir / "valid.json")]) == 0
    return workdir


def page(workdir):
    return render(read_facts(workdir), {"dlmjax": "0"})


def test_the_command_writes_one_page_that_needs_no_other_file(run, capsys):
    assert main(["report", "--workdir", str(run), "--steps", "4", "--prompt", "The "]) == 0
    assert capsys.readouterr().out.strip() == f"report: {run / 'report.html'}"
    content = (run / "report.html").read_text(encoding="utf-8")
    found = Page(content)
    assert not found.outside and "http" not in re.sub(r"http-equiv", "", content)
    assert found.tags.count("script") == 2 and found.tags.count("svg") >= 4  # the trace's data and its script
    evaluation = json.loads((run / "valid.json").read_text())
    assert f"{evaluation['bits_per_byte']:.4f} ± {evaluation['stderr_bits_per_byte']:.4f}" in found.text
    assert not evaluation["baselines_bits_per_byte"] and "baselines" not in found.text, "only a whole split is compared with baselines"
    held_out = read(run / "metrics.jsonl", "held_out")[-1]
    assert f"{held_out['nats_per_token']:.4f} ± {held_out['stderr_nats_per_token']:.4f}" in found.text
    for part in ("Run a run", "complete", "6 of 6", "Learning rate", "Loss by noise time", "Wall time", "data.length", "tokenizer bytes, "):
        assert part in found.text, part


def test_the_phases_are_listed_where_there_are_several(run):
    phases = [TrainedPhase("<autoregressive>", 0, 2, 1024, 1e9), TrainedPhase("masked", 2, 6, 2048, 3e9)]
    facts = read_facts(run)
    assert "Phases" not in render(facts, {}, phases=phases[:1]) and "Phases" not in (run / "report.html").read_text(encoding="utf-8")
    content = render(facts, {}, phases=phases)
    assert "<h2>Phases</h2>" in content and "&lt;autoregressive&gt;" in content and "2 to 6" in content and "2,048" in content


def test_a_run_in_progress_is_shown_as_far_as_it_is(run, tmp_path):
    """No evaluation, sample or goodput yet, and a line that is being written."""
    workdir = tmp_path / "run"
    shutil.copytree(run, workdir)
    for name in ("valid.json", "goodput.json", "report.html"):
        (workdir / name).unlink(missing_ok=True)
    lines = (workdir / "metrics.jsonl").read_bytes().splitlines(keepends=True)
    (workdir / "metrics.jsonl").write_bytes(b"".join(line for line in lines if b'"train"' in line) + b'{"step": 7, "ki')
    found = Page(page(workdir))
    assert "No evaluation lies in the workdir yet" in found.text and "Learning rate" in found.text
    assert "Wall time" not in found.text and "Samples" not in found.text


def test_a_run_that_has_logged_nothing_says_so(run, tmp_path):
    workdir = tmp_path / "run"
    shutil.copytree(run, workdir)
    (workdir / "metrics.jsonl").unlink()
    assert "has logged nothing yet" in page(workdir) and "svg" not in Page(page(workdir)).tags


@pytest.mark.parametrize("attack", ["</script><script>alert(1)</script>", "<img src=x onerror=alert(1)>", "\u2028'\"&<b>"])
def test_what_the_files_say_remains_text(run, tmp_path, attack):
    workdir = tmp_path / "run"
    shutil.copytree(run, workdir)
    with (workdir / "metrics.jsonl").open("a", encoding="utf-8") as lines:
        lines.write(json.dumps({"step": 6, "kind": "samples", "text": attack}) + "\n")
    report = json.loads((workdir / "valid.json").read_text())
    report["protocol"]["corpus"], report["weights"], report["split"] = attack, attack, attack
    report["baselines_bits_per_byte"] = {attack: 1.0}
    (workdir / "valid.json").write_text(json.dumps(report))
    found = Page(page(workdir))
    assert "script" not in found.tags and "img" not in found.tags and "b" in found.tags  # <b> of our own figures
    assert "baselines, bits/byte" in found.text and found.text.count(attack) >= 5 and not found.outside


def test_files_that_are_not_evaluations_are_left_alone(run, tmp_path):
    workdir = tmp_path / "run"
    shutil.copytree(run, workdir)
    for name, content in {"mine.json": "[1, 2", "list.json": "[]", "other.json": '{"protocol": 3, "bits_per_byte": "x"}'}.items():
        (workdir / name).write_text(content)
    assert [name for name, _ in read_facts(workdir).evaluations] == ["valid.json"]


def test_a_long_run_gives_a_small_page_soon(run, tmp_path):
    workdir = tmp_path / "run"
    shutil.copytree(run, workdir)
    line = read(run / "metrics.jsonl", "train")[-1]
    with (workdir / "metrics.jsonl").open("w") as lines:
        lines.writelines(json.dumps(line | {"step": step}) + "\n" for step in range(100_000))
    began = time.process_time()
    assert len(page(workdir)) < 500_000 and time.process_time() - began < 30


def test_damage_is_reported(run, tmp_path):
    with pytest.raises(InputError, match="not the workdir of a run"):
        read_facts(tmp_path)
    workdir = tmp_path / "run"
    shutil.copytree(run, workdir)
    (workdir / "metrics.jsonl").write_text("no event\n")
    with pytest.raises(InputError, match="line 1 is not a metrics event"):
        read_facts(workdir)
