"""The declarations of a config's fields, and what is derived from them."""

import dataclasses
import json
import math
import pathlib

import pytest

from dlmjax import config as config_lib
from dlmjax.cli.config_help import help_text, markdown_table
from dlmjax.cli.main import main
from dlmjax.data import load_tokenizer
from dlmjax.errors import InputError
from dlmjax.fields import ALL, FIELDS, NONE, Field, fields_by_programs, non_identity_fields
from dlmjax.models import Execution, ModelSpec
from dlmjax.models.families import model_spec
from dlmjax.sweep.manifest import run_id
from dlmjax.sweep.run_log import programs_of, shape_of
from dlmjax.training import OptimizerSpec
from dlmjax.workdir import claim_workdir, stored_config

ROOT = pathlib.Path(__file__).parents[1]
CONFIGS = ROOT / "configs"
# Of every config that ships, at each size: a change of these would make other runs of the runs that there are.
FINGERPRINTS = """
adapt_qwen3:0.6B ec992d87a689, adapt_qwen3:1.7B ceafe266d8a8, adapt_qwen3:4B 2594dea73fd8, autoregressive:gpt2_small 8d1870d4d546,
autoregressive:tiny ff825b90d2a1, babylm:100M e2ab36ab2772, babylm:tiny 3e9371c57027, blocks:gpt2_small d18dd906078e,
blocks:tiny 05c279d4c7f5, char27_small 6409b840ee7c, char27_tiny a29f5fead116, d3pm:gpt2_small 67cb3be44586, d3pm:tiny 1c095f726675,
data_limited:gpt2_small 74e04f1db3cb, data_limited:tiny e2322f94c125, diffusion_lm:gpt2_small e18e50a02a2c,
diffusion_lm:tiny 154933490715, duo:gpt2_small 542c43f81c0a, duo:tiny 635a60e1615f, embedding_flow:gpt2_small 3fb764556d73,
embedding_flow:tiny bb71f8302e47, flow_matching:gpt2_small 759596ee0e10, flow_matching:tiny 53a36ce5961d,
frequency:gpt2_small 0dddb48ab7ba, frequency:tiny e35aff6708da, genmd4:gpt2_small 7243c231909d, genmd4:tiny da9c7c9d7095,
hybrid:gpt2_small aa696f89b512, hybrid:tiny daee248af377, hyperschedule:gpt2_small 39ecea94498e, hyperschedule:tiny 34e856eef17b,
llada_8b 18162c86e877, masked:gpt2_small f5517975f0c4, masked:tiny c90c4bd3ce99, plaid:gpt2_small b12e57f342ff,
plaid:tiny e178f5f0af14, puzzles 5be885f63728, quickstart 7c88fc411014, score:gpt2_small eed69f89b0b5, score:tiny 6946bc810724,
sed:gpt2_small 14d1f56120dc, sed:tiny af1859230ccb, uniform:gpt2_small 99a1f5567915, uniform:tiny 5037434fe07e,
autoregressive:1b e53e52f5a2ec, blocks:1b b0a7ae7309a9, d3pm:1b 290844213d90, data_limited:1b 1e9bf52c2186, diffusion_lm:1b c85fb9bc90e2,
duo:1b 0065b0c9e78a, embedding_flow:1b cca3569e714e, flow_matching:1b f62df5e13344, frequency:1b 4c5dd79aacf0, genmd4:1b b853676bee0a,
hybrid:1b 3c08528d25f5, hyperschedule:1b 94dc7647532e, masked:1b 29235de69f2f, plaid:1b c44f02abee51, score:1b db2d00262172,
sed:1b bdbb4d5a44e4, uniform:1b 4750abccc507,
lomdm:gpt2_small 778957339458, lomdm:tiny 5c5a5e8c2da9, lomdm:1b e838d0ea8d96,
adlm:gpt2_small cf842867735c, adlm:tiny bed33ef43dad, adlm:1b dd03da762f52,
sudoku 9cdf883cbc3d, sudoku:board 7f29cf03495a, sudoku:plain 3fd6bd8831e8, sudoku:autoregressive 175dfa44c3d8,
sft:gpt2_small 7801fcc75523, sft:tiny e278eb955c77, sft:1b 9edd62d6bf38,
adapt_full:gpt2_medium 7302e719545a, adapt_full:tiny 33517ae10612, adapt_blocks:0.6B ccffa3c59b14, adapt_blocks:1.7B 3ae561e1b5f9,
adapt_blocks:tiny 24c27fcf6b4d, joint:gpt2_small 7f8820784c55, joint:1b 22f7fb33f527, joint:tiny 714340b793c8,
diffusionbert:base 0293db6a1c21, diffusionbert:tiny 901b70a50f50
"""
# Of the default config, by who hashes it.
BEFORE = {"fingerprint": "a36c1931932a", "id": "m-44a26a1b", "shape": "51427bb21602", "programs": "faf6a0e6c507"}
STORED = dict(entry.split() for entry in FINGERPRINTS.replace("\n", " ").split(","))


def test_every_shipped_config_is_the_same_run_as_ever():
    missing = {path.stem for path in CONFIGS.glob("*.py")} - {name.partition(":")[0] for name in STORED}
    assert not missing, f"{sorted(missing)} have no fingerprint here; CONTRIBUTING.md (Add a config) has the command that prints it"
    found = {}
    for name in STORED:
        stem, colon, size = name.partition(":")
        found[name] = config_lib.fingerprint(config_lib.load(f"{CONFIGS / stem}.py{colon}{size}"))
    assert found == STORED


# One field of each type, and one whose value is not part of a run's identity.
ADDED = {
    "seed2": Field(0, "a number", 0, added=True),
    "data.added": Field((), "a list", added=True),
    "process.added": Field("linear", "a choice", one_of=("linear", "cosine"), added=True),
    "train.added": Field(0.5, "a share", 0, 1, added=True),
    "train.switch": Field(False, "a switch", added=True),
    "log.added": Field(1, "steps", 1, identity=False, added=True),
}
OTHER = {"seed2": "7", "data.added": "a,b", "process.added": "cosine", "train.added": "0.25", "train.switch": "true", "log.added": "2"}


def hashes(config):
    """All that is hashed of a config, by who hashes it; of the config as it is, and as a file returns it."""
    found = []
    for values in (config_lib.leaves(config), json.loads(config_lib.to_json(config))):
        found.append((run_id("m", {}, values, []), shape_of(values), programs_of(values)))
    assert found[0] == found[1]
    return {"fingerprint": config_lib.fingerprint(config), **dict(zip(("id", "shape", "programs"), found[0], strict=True))}


def test_a_sweep_keeps_the_ids_of_its_runs():
    """A field that is declared without `added` changes them, also one that is not part of a run's identity."""
    assert hashes(config_lib.default()) == BEFORE


def test_an_added_field_changes_no_hash_unless_it_is_set(monkeypatch, tmp_path):
    old = json.loads(config_lib.to_json(config_lib.default()))
    for name, field in ADDED.items():
        monkeypatch.setitem(FIELDS, name, field)
    test_every_shipped_config_is_the_same_run_as_ever()
    opened = config_lib.from_json(json.dumps(old))
    assert set(config_lib.leaves(opened)) - set(old) == set(ADDED) and hashes(opened) == BEFORE
    assert config_lib.differences(old, config_lib.leaves(opened)) == []
    tokenizer = load_tokenizer("bytes")
    with monkeypatch.context() as before:
        for name in ADDED:
            before.delitem(FIELDS, name)
        claim_workdir(tmp_path, config_lib.default(), tokenizer)
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "kind": "train"}\n')
    for name, value in OTHER.items():
        changed = config_lib.override(config_lib.default(), [f"{name}={value}"])
        kinds = {"id", "programs", "fingerprint"} if ADDED[name].identity else {"id", "programs"}
        assert {kind for kind, value in hashes(changed).items() if value != BEFORE[kind]} == kinds
        assert config_lib.leaves(config_lib.from_json(config_lib.to_json(changed))) == config_lib.leaves(changed)
        if ADDED[name].identity:
            with pytest.raises(InputError, match=f"differs in {name}: .* -> "):
                claim_workdir(tmp_path, changed, tokenizer)
    claim_workdir(tmp_path, config_lib.default(), tokenizer)  # a run from before the fields resumes
    assert config_lib.fingerprint(stored_config(tmp_path, {})) == BEFORE["fingerprint"]


@pytest.mark.parametrize("name", ADDED)
def test_a_field_of_a_newer_version_is_refused_by_its_name(name):
    with pytest.raises(InputError, match=f"unknown field '{name}'"):
        config_lib.from_json(json.dumps({**config_lib.leaves(config_lib.default()), name: 2}))


def test_the_default_config_is_what_is_declared():
    assert config_lib.leaves(config_lib.default()) == {name: field.default for name, field in FIELDS.items()}
    config_lib.check(config_lib.default())


def test_the_dataclasses_have_the_declared_fields_and_defaults():
    config = config_lib.default()
    assert Execution(**config.execution) == Execution() and OptimizerSpec(**config.optimizer) == OptimizerSpec()
    own = {field.name for field in dataclasses.fields(ModelSpec)} | {"family"}
    assert set(config.model) <= own
    assert model_spec(config.model, vocab=9) == ModelSpec(9, 6, 384, 6, 6, 64, 1024)


def test_what_makes_another_run_and_what_programs_depend_on():
    sections = {name: name.partition(".")[0] for name in FIELDS}
    assert non_identity_fields() == {
        name
        for name in FIELDS
        if sections[name] in ("execution", "mesh", "checkpoint", "log") or name in ("data.paths", "train.on_nonfinite")
    }
    free = {f"optimizer.{key}" for key in ("lr", "warmup", "decay", "final", "rewarm", "weight_decay")}
    free |= {"seed", "train.steps", "data.paths", "data.weights", "data.symmetries"}
    assert fields_by_programs(NONE) == free | {name for name in FIELDS if sections[name] in ("checkpoint", "log")}
    shapes = {"data.length", "data.batch", "optimizer.name", "train.accumulation"}
    assert fields_by_programs(ALL) == shapes | {name for name in FIELDS if sections[name] in ("model", "execution", "process", "mesh")}


def beyond(field: Field) -> list:
    """Values just outside what a field allows."""
    kind, values = type(field.default), []
    if kind is str:
        return ["no such"] if field.one_of or field.named else []
    if field.least is not None:
        values.append(kind(field.least) if field.above else kind(field.least) - 1)
    if field.most is not None:
        values.append(kind(field.most) if field.below else kind(field.most) + 1)
    return values + ([math.nan, math.inf] if kind is float else [])


CASES = [(name, value) for name, field in FIELDS.items() for value in beyond(field)]


@pytest.mark.parametrize(("name", "value"), CASES)
def test_a_value_beyond_its_bounds_is_refused_by_its_name(name, value):
    """By the check of a config and by the dataclass of its section, in the same words."""
    config = config_lib.default()
    with config.unlocked():
        config_lib._set(config, name, value)
    with pytest.raises(InputError) as refused:
        config_lib.check(config)
    assert name in str(refused.value) and "\n" not in str(refused.value)
    section, _, key = name.partition(".")
    made = {"execution": Execution, "optimizer": OptimizerSpec, "model": model_spec}.get(section)
    if made:
        with pytest.raises(InputError) as same:
            made(config[section]) if made is model_spec else made(**{key: value})
        assert str(same.value) == str(refused.value)


def test_a_bound_itself_is_allowed_unless_it_is_open():
    for name, field in FIELDS.items():
        if type(field.default) in (int, float):
            for bound, is_open in ((field.least, field.above), (field.most, field.below)):
                if bound is not None and not is_open:
                    field.check(name, type(field.default)(bound))
        for text in field.one_of:
            field.check(name, text)
        assert field.default in (field.one_of or (field.default,)) and field.doc and not field.doc.endswith(".")


def test_the_help_of_a_config_fits_two_screens(capsys):
    with pytest.raises(SystemExit) as ended:
        main(["train", "--help-config"])
    lines = capsys.readouterr().out.splitlines()
    assert ended.value.code == 0 and lines == help_text().splitlines()
    assert len(lines) <= 80 and max(map(len, lines)) <= 132
    for name in FIELDS:
        assert sum(line[2:].startswith(f"{name} ") for line in lines) == 1


def test_the_table_in_the_documents_is_the_declarations():
    page = (ROOT / "docs" / "config.md").read_text(encoding="utf-8")
    assert markdown_table() in page, "put the text of dlmjax.cli.config_help.markdown_table() into docs/config.md"


def test_a_newcomers_config_is_three_statements(tmp_path):
    page = (ROOT / "docs" / "config.md").read_text(encoding="utf-8")
    (tmp_path / "mine.py").write_text(page.partition("```python\n")[2].partition("```")[0])
    assert config_lib.leaves(config_lib.load(str(tmp_path / "mine.py"))) == config_lib.leaves(config_lib.default())
