"""The command line: complete help at once, one clear line on bad input, and the files that others build on."""

import argparse
import dataclasses
import html.parser
import importlib.util
import json
import os
import pathlib
import re
import subprocess
import sys

import pytest

from dlmjax import __version__
from dlmjax.choices import parse
from dlmjax.cli.main import _parser, main
from dlmjax.diffusion import make_times
from dlmjax.sampling import GRIDS, METHODS, RULES, SampleSettings
from tests.test_train import config_file, tiny_config

COMMANDS = ("prepare", "plan", "train", "evaluate", "interval", "sample", "report", "import", "merge", "export")
COMMANDS += ("quality", "puzzles", "solve", "embed", "activations", "lm-eval", "play")


@pytest.fixture(scope="module")
def run(small_corpus, tmp_path_factory):
    """A trained workdir, made by the command itself on eight devices."""
    root = tmp_path_factory.mktemp("cli")
    file = config_file(root / "tiny.py", tiny_config(small_corpus, train__steps=6, log__evaluate=0, log__sample=0))
    assert main(["train", "--config", str(file), "--workdir", str(root / "run")]) == 0
    return root / "run"


def refused(capsys, *argv):
    """The one line that a bad call ends with."""
    assert main([str(part) for part in argv]) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1 and lines[0].startswith("dlmjax: "), lines
    return lines[0]


@pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="libtpu is not installed")
def test_libtpu_says_nothing_where_there_is_no_tpu():
    """Nor in Python, where jax starts after the first use of a name of dlmjax; commands call the same function."""
    code = "import dlmjax, jax; dlmjax.load_config; print(jax.default_backend())"
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("JAX_PLATFORMS", "TPU_"))}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    assert done.stdout == "tpu\n" or not done.stderr


def test_help_is_complete_and_light():
    """Every command and flag is explained; nothing heavy is imported for it."""
    program = "import sys; from dlmjax.cli.main import _parser; print(_parser().format_help()); sys.exit('jax' in sys.modules)"
    shown = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert shown.returncode == 0
    assert all(command in shown.stdout for command in COMMANDS)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_flag_of_a_command_is_in_its_help(command, capsys):
    with pytest.raises(SystemExit) as done:
        main([command, "--help"])
    assert done.value.code == 0
    text = capsys.readouterr().out
    assert "--debug" in text and len(re.findall(r"^\s+--[a-z]", text, re.M)) >= 5


def test_every_setting_of_a_sampler_is_a_flag_with_its_default():
    """`sample` builds `SampleSettings` from flags by name: a field, an order or a method without a flag could not be chosen."""
    arguments = vars(_parser().parse_args(["sample", "--workdir", "."]))
    of_run = ("suppressed_ids", "end_ids")  # ids of the run's tokenizer
    fields = {field.name: field.default for field in dataclasses.fields(SampleSettings) if field.name not in of_run}
    assert {name: arguments.get(name, "absent") for name in fields} == fields
    flags = {action.dest: action for action in options(_parser())[1]["sample"]._actions}
    assert all(name in flags["rule"].help for name in RULES)
    assert all(name in flags["method"].help for name in METHODS) and all(name in flags["grid"].help for name in GRIDS)


def options(parser) -> tuple[set[str], dict[str, argparse.ArgumentParser]]:
    """(flags, parsers of the commands below) of a parser."""
    below = [action.choices for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
    return {flag for action in parser._actions for flag in action.option_strings}, below[0] if below else {}


def test_every_command_that_is_written_down_has_its_flags():
    """In README, documents, configs and docstrings: no flag that was renamed or never was. Abbreviations are off."""
    root, found, wrong, top = pathlib.Path(__file__).parents[2], 0, [], _parser()
    pages = [
        page
        for form in ("*.md", "docs/*.md", "configs/**/*.py", "benchmarks/*.*", "dlmjax/**/*.py", "launch/*.py", "Makefile")
        for page in root.glob(form)
    ]
    for page in pages:
        for line in page.read_text(encoding="utf-8").replace("\\\n", " ").splitlines():
            for call in re.findall(r"(?:^|[`&;]|-- )\s*(dlmjax [a-z][\w-]*[^`|;#]*)", line):
                parser = top
                for word in call.split()[1:]:
                    flags, below = options(parser)
                    parser = below.get(word, parser)
                    flag = word.partition("=")[0]
                    if re.fullmatch(r"--[a-z][a-z-]*", flag):
                        found += 1
                        ours = flag in flags or "--engine beam" in call  # which takes Beam's own options, too
                        wrong += [] if ours else [f"{page.name}: {call}: {flag}"]
                    elif word == "&&":
                        break
    assert found > 200 and not wrong, "\n".join(wrong)


def test_the_module_is_the_command():
    one = subprocess.run([sys.executable, "-m", "dlmjax", "--version"], capture_output=True, text=True, timeout=60)
    assert one.stdout.strip() == f"dlmjax {__version__}"
    script = pathlib.Path(sys.executable).with_name("dlmjax")
    if not script.exists():
        pytest.skip("the package is not installed in this environment: no console script to compare with")
    other = subprocess.run([str(script), "--version"], capture_output=True, text=True, timeout=60)
    assert other.stdout == one.stdout


def test_the_readme_prepares_what_it_says(tmp_path, monkeypatch, capsys):
    """The first command of the README's jobs, word for word but for where the corpus goes."""
    root = pathlib.Path(__file__).parents[2]
    line = next(
        line for line in (root / "README.md").read_text().splitlines() if line.startswith("dlmjax prepare --input README.md docs/*.md")
    )
    pages = sorted(str(page.relative_to(root)) for page in root.glob("docs/*.md"))
    words = [word for part in line.split()[1:] for word in (pages if part == "docs/*.md" else [part])]
    words[words.index("--output") + 1] = str(tmp_path / "data")
    monkeypatch.chdir(root)
    assert main(words) == 0
    assert "valid" in capsys.readouterr().out


def test_bad_flags_end_in_one_line(capsys, run, tmp_path):
    assert "invalid choice" in refused(capsys, "trian")
    assert "--workdri" in refused(capsys, "sample", "--workdir", run, "--workdri", "x")
    assert "required" in refused(capsys, "train", "--workdir", tmp_path)
    assert "configs/" in refused(capsys, "train", "--config", "none.py", "--workdir", tmp_path)
    assert "belongs to `dlmjax train`" in refused(capsys, "evaluate", "--workdir", run, "--config.seed=1")
    assert "config.json" in refused(capsys, "evaluate", "--workdir", tmp_path)
    assert "did you mean 'optimizer.lr'" in refused(
        capsys, "train", "--config", "configs/quickstart.py", "--workdir", tmp_path, "--config.optimizer.lrr=1"
    )
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_evaluation_is_the_same_number_whatever_the_batch(run, tmp_path, capsys):
    for batch in (8, 24):
        assert (
            main(["evaluate", "--workdir", str(run), "--split", "valid", "--batch", str(batch), "--json", str(tmp_path / f"{batch}.json")])
            == 0
        )
    shown = capsys.readouterr().out
    assert "bigram" in shown and "unigram" in shown and "bits/byte" in shown
    one, other = (json.loads((tmp_path / f"{batch}.json").read_text()) for batch in (8, 24))
    names = {"nats_per_token", "bits_per_byte", "perplexity", "stderr_nats_per_token", "tokens", "step", "process", "is_bound"}
    assert names <= set(one)
    # To the rounding of float32: XLA adds in another order for another shape.
    numbers = [name for name in one if isinstance(one[name], float)]
    assert one["protocol"] == other["protocol"] and one["made"]["batch"] == 8
    apart = [*numbers, "levels", "errors", "made"]
    assert {name: one[name] for name in numbers} == pytest.approx({name: other[name] for name in numbers}, rel=1e-6)
    assert {name: one[name] for name in one if name not in apart} == {name: other[name] for name in other if name not in apart}
    assert one["step"] == 6 and one["is_bound"] is True and one["process"] == "masked"


def test_raw_and_averaged_weights_are_two_models(run, tmp_path, capsys):
    for weights in ("ema", "raw"):
        flags = ["--split", "valid", "--windows", "8", "--weights", weights, "--json", str(tmp_path / f"{weights}.json")]
        assert main(["evaluate", "--workdir", str(run), *flags]) == 0
    ema, raw = (json.loads((tmp_path / f"{weights}.json").read_text()) for weights in ("ema", "raw"))
    assert ema["nats_per_token"] != raw["nats_per_token"]


@pytest.mark.parametrize(("flag", "value"), [("--windows", 0), ("--draws", 0), ("--batch", 0), ("--seed", -1)])
def test_numbers_of_an_interval_are_checked_before_the_run_is_opened(tmp_path, capsys, flag, value):
    assert main(["interval", "--workdir", str(tmp_path), f"{flag}={value}"]) == 2
    assert f"{flag} is {value}; give" in capsys.readouterr().err


def test_an_interval_of_times_is_measured_and_can_be_trained_on(run, tmp_path, capsys):
    argv = ["interval", "--workdir", str(run), "--windows", "16", "--draws", "8", "--split", "train", "--json", str(tmp_path / "i.json")]
    assert main(argv) == 0
    found, shown = json.loads((tmp_path / "i.json").read_text()), capsys.readouterr().out
    assert found["low"] >= 0 and found["high"] <= 1 and found["high"] - found["low"] >= 0.5 - 1e-6
    assert found["variance"] < found["variance_of_all"] and found["samples"] == 128
    assert len(found["gradient_norms"]) == 10 and f"{found['gradient_norms'][9]:.3g}" in shown
    override = re.search(r"--config\.(process\.times=)\"(.*)\"", shown)
    assert make_times(*parse(override[2])[:1], **parse(override[2])[1]).distribution.low == pytest.approx(found["low"])


def test_a_split_that_is_not_there_is_refused(run, capsys):
    assert "test" in refused(capsys, "evaluate", "--workdir", run, "--split", "test")


def test_samples_keep_what_is_given(run, tmp_path, capsys):
    argv = ["sample", "--workdir", str(run), "--prompt", "def f(", "--suffix", "):", "--length", "24", "--steps", "8", "--count", "2"]
    assert main([*argv, "--seed", "3", "--json", str(tmp_path / "a.json")]) == 0
    assert main([*argv, "--seed", "3", "--json", str(tmp_path / "b.json"), "--trace", str(tmp_path / "t.html"), "--watch"]) == 0
    one, other = (json.loads((tmp_path / name).read_text()) for name in ("a.json", "b.json"))
    assert one == other  # watching and tracing change nothing
    assert {"seed", "steps", "entropy", "samples"} <= set(one) and len(one["samples"]) == 2
    for row in one["samples"]:
        assert row["text"].startswith("def f(") and row["text"].endswith("):")
        assert len(row["token_ids"]) == 24
    page = (tmp_path / "t.html").read_text()
    html.parser.HTMLParser().feed(page)
    assert "<html" in page and "http://" not in page and "https://" not in page


@pytest.mark.parametrize("order", ["random", "confidence", "entropy", "margin"])
def test_every_order_fills_a_template(run, tmp_path, order, capsys):
    argv = ["sample", "--workdir", str(run), "--template", "a [MASK*6] b ___.", "--rule", order, "--steps", "4", "--temperature", "0.7"]
    assert main([*argv, "--top-p", "0.9", "--json", str(tmp_path / "a.json")]) == 0
    text = json.loads((tmp_path / "a.json").read_text())["samples"][0]["text"]
    assert re.fullmatch(r"(?s)a .{1,6} b .{1,3}\.", text)


@pytest.mark.parametrize(("cache", "message"), [("duel", "did you mean 'dual'"), ("dual(8)", "write a name"), ("dual(size=8)", "size")])
def test_an_unknown_cache_is_refused(run, capsys, cache, message):
    assert message in refused(capsys, "sample", "--workdir", run, "--cache", cache)


def test_a_text_matches_a_regex_or_is_refused(run, tmp_path, capsys):
    argv = ["--workdir", run, "--length", "12", "--steps", "3", "--prompt", "x", "--regex"]
    assert main(["sample", *map(str, argv), "x[a-c]{4}( [0-9é]+)?", "--rule", "random", "--json", str(tmp_path / "a.json")]) == 0
    record = json.loads((tmp_path / "a.json").read_text())
    assert re.fullmatch("x[a-c]{4}( [0-9é]+)?", record["samples"][0]["text"]) and record["settings"]["regex"]
    for regex, message in {
        "y.*": "matched by no text of 12 tokens with the tokens that row 0",
        "(": "is not a regular",
        "a": "requires",
    }.items():
        assert message in refused(capsys, "sample", *argv, regex, *([] if regex == "a" else ["--rule", "random"]))


def test_a_prompt_that_does_not_fit_is_refused(run, capsys):
    assert "length" in refused(capsys, "sample", "--workdir", run, "--prompt", "x" * 30, "--length", "20")


@pytest.mark.parametrize(
    "flags",
    [
        ["--method", "remask(rule=cap, eta=0.2)", "--grid", "cosine", "--prompt", "def f(", "--guidance", "0.5"],
        ["--method", "first_hitting", "--cache"],
        ["--rule", "margin", "--draft", "own(depth=2)"],
        ["--rule", "margin", "--cache", "dual(block=8, every=2)"],
        ["--stride", "32", "--length", "80", "--stop", "--rule", "confidence(on=drawn)"],
    ],
)
def test_methods_grids_and_strides(run, tmp_path, flags, capsys):
    assert main(["sample", "--workdir", str(run), "--length", "24", "--steps", "3", *flags, "--json", str(tmp_path / "a.json")]) == 0
    record = json.loads((tmp_path / "a.json").read_text())
    for flag, value in zip(flags, flags[1:], strict=False):
        if flag in ("--method", "--grid", "--draft") or (flag == "--cache" and value.startswith("dual")):
            assert record["settings"][flag[2:]] == value
    assert record["evaluations"] > 0 and len(record["samples"][0]["token_ids"]) == (80 if "--stride" in flags else 24)


def test_a_method_that_does_not_suit_the_process_is_refused(run, capsys):
    assert "Gaussian noise" in refused(capsys, "sample", "--workdir", run, "--method", "ddim")
    assert "did you mean 'remask'" in refused(capsys, "sample", "--workdir", run, "--method", "remsk")
    assert "all tokens at once" in refused(capsys, "sample", "--workdir", run, "--stop")


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--length", 2**24, "--count", 2], "2 rows of 16777216 tokens; it must have at most 16777216 tokens"),
        (["--temperature", "1e-300"], "temperature is 1e-300"),
        (["--temperature", "1e300"], "temperature is 1e+300"),
        (["--rule", "random(plan=frist)"], "plan is 'frist'"),
        (["--grid", "power(exponent=nan)"], "exponent requires a number, not 'nan'"),
        (["--grid", "shifted(alpha=1e999)"], "alpha requires a number, not inf"),
        (["--method", "remask(eta=nan)"], "eta requires a number, not 'nan'"),
        (["--method", "self_correct(rounds=1e9)"], "rounds requires a whole number, not 1000000000.0"),
        (["--template", "a [MASK*"], "is not a marker"),
        (["--draft", "own(depth=-1)"], "depth is -1"),
        (["--draft", "own", "--stride", "8"], "draft own requires a sampler of the whole canvas"),
    ],
)
def test_settings_out_of_range_end_in_one_line(run, flags, said, capsys):
    assert said in refused(capsys, "sample", "--workdir", run, *flags)


@pytest.mark.skipif(
    importlib.util.find_spec("lm_eval") is not None, reason="lm-eval is installed: tests/harness/test_harness.py runs the command"
)
def test_a_command_without_its_package_says_what_to_install(capsys):
    assert "pip install 'dlmjax[harness]'" in refused(capsys, "lm-eval", "--workdir", "anywhere", "--tasks", "blimp")
