"""The config of a predicted run: what files say stays text in it, and how to train it is said so that it can be done."""

import ast
import dataclasses
import json
import re
import shlex

import pytest

from dlmjax import config as config_lib
from dlmjax.cli import next_run
from dlmjax.cli.main import main, train_flags
from dlmjax.errors import InputError
from dlmjax.experiment import open_corpora
from dlmjax.fit import predict, results
from dlmjax.fit.pipeline import analyse_files
from dlmjax.sweep.records import Record
from tests.cli.test_fit import write
from tests.fit.synthetic import record, sweep

HOSTILE = [
    '"""\nimport os\nos.abort()\n"""',
    "'''\nimport os\n'''",
    "\\",
    '\\"""',
    '"',
    'a""',
    "{__import__('os').abort()}",
    "a\r__import__('os').abort()",
    "\x0c\x00\u2028\x85",
    "%s {0} \\N{BULLET} \\x41",
]
VOCAB = 259  # ids of the tokenizer of bytes, special ones included: what `small_corpus` has


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A fit of runs that have a config."""
    root = tmp_path_factory.mktemp("saved")
    leaves = json.loads(config_lib.to_json(config_lib.default())) | {"data.length": 128, "data.paths": ["no such/corpus"]}
    runs = [dataclasses.replace(run, vocab=VOCAB) for run in sweep(series=("masked",), config=leaves)]
    analyse_files([write(root / "records.jsonl", runs)], resamples=0).write(root / "fit")
    return results.read(root / "fit")


def literal_parts(text):
    """The leaves of a config file, which may hold nothing but a docstring, the import, literals and the function that ships."""
    said, imported, leaves, function = ast.parse(text).body
    assert isinstance(said, ast.Expr) and isinstance(said.value, ast.Constant) and isinstance(said.value.value, str)
    assert ast.unparse(imported) == "from dlmjax import config as config_lib"
    assert isinstance(leaves, ast.Assign) and ast.unparse(leaves.targets[0]) == "LEAVES"
    expected = "config = config_lib.default()\nconfig.update_from_flattened_dict(LEAVES)\nreturn config"
    assert "\n".join(map(ast.unparse, function.body)) == expected and ast.unparse(function.args) == ""
    return ast.literal_eval(leaves.value)


@pytest.mark.parametrize("text", [*HOSTILE, "".join(HOSTILE), "", "ends with \\", 'ends with "'])
def test_a_text_is_one_literal(text):
    (only,) = ast.parse(next_run.docstring(text)).body
    assert isinstance(only.value, ast.Constant) and only.value.value == text


@pytest.mark.parametrize("field", ["series", "id", "fit", "data.paths", "data.packing", "process.name", "model.family", "new\nleaf"])
def test_what_a_fit_says_is_no_code_in_a_config(saved, field):
    """Each text of a fit in turn is hostile, and has come past the reader: it is refused, or a literal."""
    text = "".join(HOSTILE)
    record = json.loads(json.dumps(saved.record))
    found = record["series"]["masked"]
    if field == "id":
        found["reference"]["id"] = text
    elif field not in ("series", "fit"):
        found["reference"]["config"][field] = [text] if field == "data.paths" else text
    name = text if field == "series" else "masked"
    hostile = dataclasses.replace(saved, record=record | {"series": {name: found}})
    prediction = predict.predicted(hostile, name, "total", 1e14)
    try:
        leaves = literal_parts(next_run.config_text(hostile, prediction, text if field == "fit" else "fit"))
    except InputError as error:
        assert field not in ("series", "id", "fit", "data.paths") and str(error).count("\n") == 0
    else:
        assert leaves["data.paths"] == (text,) if field == "data.paths" else leaves["data.length"] == 128


@pytest.mark.parametrize("text", [*HOSTILE, "", " ", "../up", "a/b", "x" * 201, "\x1b[31m", "-rf", "a b"])
def test_an_id_that_is_no_name_is_refused(saved, tmp_path, text):
    values = dataclasses.asdict(record()) | {"id": text}
    with pytest.raises(InputError, match="id of the record"):
        Record.of(values)
    changed = json.loads(json.dumps(saved.record))
    changed["series"]["masked"]["reference"]["id"] = text
    (tmp_path / "fit.json").write_text(json.dumps(changed))
    (tmp_path / "resamples.npz").write_bytes((saved.directory / "resamples.npz").read_bytes())
    with pytest.raises(InputError, match="the reference of masked"):
        results.read(tmp_path)


@pytest.mark.parametrize("text", ["a\nb", "\x1b[31m", "\x00", "a\u2028b"])
@pytest.mark.parametrize("field", ["series", "validation", "schedule", "cell", "config", "mixture", "domains"])
def test_texts_of_more_than_a_line_are_refused(field, text):
    value = {"data.packing": text, text: 1} if field in ("cell", "config") else {text: 0.5} if field in ("mixture", "domains") else text
    values = dataclasses.asdict(record()) | {field: value}
    with pytest.raises(InputError) as error:
        Record.of(values)
    assert str(error.value).isprintable()


def predicted(saved, capsys, *flags):
    assert main(["fit", "predict", "--flops", "1e13", "--fit", str(saved.directory), *flags]) == 0
    return capsys.readouterr().out


def test_a_corpus_that_is_not_there_is_said_with_the_way_to_make_it(saved, tmp_path, capsys):
    file = str(tmp_path / "next run.py")
    said = predicted(saved, capsys, "--config", file)
    assert "it cannot be trained yet: no such/corpus holds no prepared corpus" in said
    assert "dlmjax prepare --input FILE ... --valid-fraction 0.01 --output 'no such/corpus' --tokenizer bytes;" in said
    assert f"then: dlmjax train --config {shlex.quote(file)} --workdir {shlex.quote(file[:-3])}" in said


def test_the_printed_command_can_be_run_where_the_corpus_is_there(saved, small_corpus, tmp_path, capsys):
    record = json.loads(json.dumps(saved.record))
    record["series"]["masked"]["reference"]["config"]["data.paths"] = [str(small_corpus)]
    (tmp_path / "fit.json").write_text(json.dumps(record))
    (tmp_path / "resamples.npz").write_bytes((saved.directory / "resamples.npz").read_bytes())
    there = dataclasses.replace(saved, directory=tmp_path)
    (line,) = [line for line in predicted(there, capsys, "--config", str(tmp_path / "next.py")).splitlines() if line.startswith("written")]
    command = shlex.split(line.partition("train it with: ")[2])
    assert command[:2] == ["dlmjax", "train"]
    arguments, overrides = train_flags(command[2:])
    assert open_corpora(config_lib.load(arguments.config, overrides), "train") and arguments.workdir == str(tmp_path / "next")


@pytest.mark.parametrize(
    "there, vocab, words",
    [
        (False, VOCAB, "it names no corpus; prepare it with: .* --output DIR --tokenizer bytes"),
        (False, 30, "--tokenizer char27"),
        (True, 300, r"has 259 ids, that of the fitted runs 300.*--tokenizer SPEC, that of the fitted runs \(300 ids\)"),
        (True, VOCAB, "$"),
    ],
)
def test_what_else_may_be_missing_is_said(small_corpus, there, vocab, words):
    config = config_lib.default()
    config.data.paths = (str(small_corpus),) if there else ()
    said = next_run.missing(config, vocab)
    assert re.search(words, said) and (said == "") is (words == "$")


@pytest.mark.parametrize("vocab", [0, 4, 2**24 + 1, 2**60])
def test_a_vocabulary_beyond_reason_makes_no_room(saved, vocab):
    record = json.loads(json.dumps(saved.record))
    record["series"]["masked"]["reference"]["vocab"] = vocab
    with pytest.raises(InputError, match="which no tokenizer has"):
        next_run.config_text(dataclasses.replace(saved, record=record), predict.predicted(saved, "masked", "total", 1e14), "fit")
