"""A sweep's file and its grids: what they yield, and what they refuse."""

import dataclasses
import pathlib
import subprocess
import sys

import pytest

from dlmjax import config as config_lib
from dlmjax.data import load_tokenizer
from dlmjax.errors import InputError
from dlmjax.plan.hardware import alone
from dlmjax.sweep import counts, ladder
from dlmjax.sweep.definition import BatchRate, IsoFlop, Mixture, NearOptimum, Objective, Repeated, Sweep, _typed, load, short
from dlmjax.sweep.manifest import Validation

SWEEPS = sorted((ROOT := pathlib.Path(__file__).parents[2]).glob("configs/sweeps/*.py"))
FILE = """
from dlmjax.sweep.manifest import Validation
from dlmjax.sweep.definition import IsoFlop, Sweep

def get_sweep(data, budgets=(1e12,), seeds=(0,), name="x", count=1, share=0.5):
    return Sweep(name=name, data=data, objectives={"m": "../masked.py:tiny"}, grid=IsoFlop(budgets, (16,), seeds))
"""


@pytest.fixture
def file(tmp_path) -> str:
    (tmp_path / "mine.py").write_text(FILE)
    return str(tmp_path / "mine.py")


def test_arguments_take_the_type_of_their_default(file):
    found = load(file, ["data=x", "budgets=3e12", "seeds=[1,2]", "name=7", "count=2", "share=1"])
    assert (found.paths, found.name, found.grid.budgets, found.grid.seeds) == (("x",), "7", (3e12,), (1, 2))
    count = _typed("count", "1e1", 1)
    assert count == 10 and type(count) is int


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([], "requires data; pass --set data=VALUE"),
        (["data"], "write --set data=VALUE"),
        (["data=x", "budget=1"], "did you mean 'budgets'"),
        (["data=x", "count=many"], "--set count requires int, not 'many'"),
        (["data=x", "count=16.5"], "--set count requires int, not '16.5'"),
        (["data=x", "count=True"], "--set count requires int, not 'True'"),
        (["data=x", "count=1e400"], "--set count requires int, not '1e400'"),
        (["data=x", "name=Upper"], "use lower-case"),
    ],
)
def test_arguments_that_are_refused(file, values, message):
    with pytest.raises(InputError, match=message):
        load(file, values)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("x = 1", r"has no get_sweep\(\)"),
        ("def get_sweep(): return 3", "returns int, not a Sweep"),
        ("get_sweep = 3", "has no get_sweep"),
        ("x = 1\ndef get_sweep(:\n", r"bad.py, line 2: SyntaxError: invalid syntax"),
        ("x = 1\nimport no_such_module", "bad.py, line 2: ModuleNotFoundError: No module named 'no_such_module'"),
        ("def get_sweep():\n    return 3 * nothing", "bad.py, line 2: NameError: name 'nothing'"),
        ("def get_sweep():\n    return int(\n'x')", "bad.py, line 2: ValueError: invalid literal"),
        ("import re\ndef get_sweep():\n    return re.compile('(')", "bad.py, line 3: (re.)?(error|PatternError): "),
        ("raise ValueError('two\\nlines')", "bad.py, line 1: ValueError: two lines"),
        (
            "from dlmjax.sweep import definition\ndef get_sweep(): return definition.Sweep(title='x')",
            "bad.py, line 2: TypeError: .*--debug",
        ),
    ],
)
def test_files_that_are_no_sweep(tmp_path, content, message):
    (tmp_path / "bad.py").write_text(content)
    with pytest.raises(InputError, match=message) as error:
        load(str(tmp_path / "bad.py"))
    assert "\n" not in str(error.value)
    (tmp_path / "bad.txt").write_text(content)
    with pytest.raises(InputError, match="is not a Python file"):
        load(str(tmp_path / "bad.txt"))
    with pytest.raises(InputError, match="does not exist; the sweeps that ship"):
        load(str(tmp_path / "none.py"))


def test_grids_yield_every_cell_once():
    grids = {
        8: IsoFlop((1e12, 1e13), (16, 32), (0, 1)),
        12: Repeated((16,), (1000, 2000), (1, 2, 4), (0, 1)),
        18: BatchRate((16, 32), (1e6,), (8, 16, 32), (1e-3, 2e-3, 4e-3)),
        4: Mixture((16,), (1e6, 2e6), ((1, 1), (1, 3))),
    }
    for count, grid in grids.items():
        cells = list(grid.points())
        assert len(cells) == count == len({cell.id_parts for cell in cells})
        assert all((cell.flops is None) != (cell.tokens is None) for cell in cells)
        assert all(cell.values["width"] == cell.width and cell.values["seed"] == cell.seed for cell in cells)


def test_sizes_near_a_law():
    # Quokka's N* at 1e21 FLOPs is 1.24B: the rungs around it, narrow to wide.
    widths = NearOptimum(count=5).widths(1e21)
    assert widths == tuple(sorted(widths)) and len(widths) == 5 and 2048 in widths
    cells = list(IsoFlop((1e18, 1e21), NearOptimum(count=3)).points())
    assert [cell.width for cell in cells[3:]] == list(NearOptimum(count=3).widths(1e21))


def test_short_numbers_are_file_names():
    assert [short(x) for x in (1e12, 3.1623e13, 0.003, 1e-5, 0.25)] == ["1e12", "3.162e13", "0.003", "1e-5", "0.25"]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: IsoFlop((), (16,)), "list of positive numbers"),
        (lambda: IsoFlop((1e12, 1e12), (16,)), "occurs twice"),
        (lambda: IsoFlop((1e12,), (17,)), "not on the ladder"),
        (lambda: IsoFlop((1e12,), (16, 16)), "different whole numbers"),
        (lambda: IsoFlop((1e12,), (16,), (-1,)), "at least 0"),
        (lambda: IsoFlop((1e12,), (16,), (2**32,)), "at most 4294967295"),
        (lambda: IsoFlop((1e12,), (16,), (10**400,)), "at most 4294967295"),
        (lambda: Validation(seed=2**32), "at most 4294967295"),
        (lambda: Validation(windows=10**400), "at most 9007199254740992"),
        (lambda: IsoFlop((10**400,), (16,)), "list of positive numbers"),
        (lambda: IsoFlop((1e12,), (16,), range(10**12)), "more than 10,000 runs"),
        (lambda: Mixture((16,), (1e6,), ((1, 1),) * 10_001), "more than 10,000 runs"),
        (lambda: Repeated((16,), (1000,), (0,)), "at least 1"),
        (lambda: BatchRate((16,), (1e6,), (8,), (-1e-3,)), "list of positive numbers"),
        (lambda: Mixture((16,), (1e6,), ((1, 1), (1, 1))), "same mixture twice"),
        (lambda: Mixture((16,), (1e6,), ((1, 0),)), "list of positive numbers"),
        (lambda: Sweep("s", {}, IsoFlop((1e12,), (16,))), "has no objective"),
        (lambda: Sweep("s", {"m-1": "x.py"}, IsoFlop((1e12,), (16,))), "use lower-case"),
        (lambda: Sweep("s", {"m": "x.py"}, IsoFlop((1e12,), (16,)), checkpoints=0), "at least 1"),
        (lambda: IsoFlop((1e12,), NearOptimum(count=0)), r"NearOptimum\(count=0\): give a whole number of at least 1"),
        (lambda: NearOptimum(count=-40), "at least 1"),
        (lambda: NearOptimum(a=0), "give a positive number"),
        (lambda: Sweep("s", {"m": "x.py"}, Repeated((16,), (1000,), (1,)), data=("a", "b")), "one corpus"),
        (lambda: Sweep("s", {"m": "x.py"}, Mixture((16,), (1e6,), ((1, 1),)), data="a"), "a weight for each"),
        (lambda: Sweep("s", {"m": "x.py"}, IsoFlop((1e12,), (16,), range(10_001))), "more than 10,000 runs"),
    ],
)
def test_what_is_refused(make, message):
    with pytest.raises(InputError, match=message):
        make()


WRONG_TYPES = {
    "sweep(checkpoints=2.5)": "sweep s(checkpoints=2.5): give a whole number of at least 1",
    "Sweep('s', {'m': 'x.py'})": "Sweep(grid=None): give IsoFlop or Repeated or BatchRate or Mixture",
    "sweep(grid=None)": "Sweep(grid=None): give IsoFlop or Repeated or BatchRate or Mixture",
    "sweep(objectives={'m': 5})": "Sweep(objectives['m']=5): give str or Objective",
    "sweep(objectives=['m'])": "Sweep(objectives=['m']): give Mapping",
    "sweep(batch=8)": "Sweep(batch=8): give BatchLaw or FixedBatch or None",
    "sweep(data=None)": "Sweep(data=None): give a list of text",
    "sweep(overrides='seed=1')": "Sweep(overrides='seed=1'): give a list of text",
    "Objective('x.py', rate=1e-3)": "Objective(rate=0.001): give RateLaw or FixedRate or None",
    "NearOptimum(count=2.5)": "NearOptimum(count=2.5): give a whole number of at least 1",
    "BatchLaw(1, 1, multiple=1.5)": "BatchLaw(multiple=1.5): give a whole number of at least 0",
    "BatchLaw(1, 1, exponent='1')": "BatchLaw(exponent='1'): give a finite number",
    "FixedBatch(16.5)": "FixedBatch(count=16.5): give a whole number of at least 1",
    "CompleteP(64.5, 2)": "CompleteP(width=64.5): give a whole number of at least 1",
    "Validation(windows=2.5)": "Validation(windows=2.5): give a whole number of at least 1",
    "Policy(lr_factor='a')": "Policy(lr_factor='a'): give a positive number",
    "Policy(diverged_retries='2')": "Policy(diverged_retries='2'): give a whole number of at least 0",
}


def test_wrong_types_are_refused_where_nothing_else_checks_them():
    """In a process of its own: the tests' own checks of types come first in this one."""
    code = """
import sys
from dlmjax.sweep.manifest import *
from dlmjax.sweep.rules import *
from dlmjax.sweep.manifest import Validation
from dlmjax.sweep.definition import *

def sweep(**changes):
    return Sweep(**{**dict(name="s", objectives={"m": "x.py"}, grid=IsoFlop((1e12,), (16,))), **changes})

sweep()
for text in sys.argv[1:]:
    try:
        print(eval(text))
    except InputError as error:
        print(error)
"""
    done = subprocess.run([sys.executable, "-c", code, *WRONG_TYPES], capture_output=True, text=True)
    assert done.stdout.splitlines() == list(WRONG_TYPES.values()), done.stderr


def test_a_sweep_file_from_before_2026_12_opens():
    today = Sweep("s", {"m": "x.py"}, IsoFlop((1e12,), (16,)))
    assert Sweep(name="s", series={"m": "x.py"}, grid=IsoFlop((1e12,), (16,))) == today == dataclasses.replace(today)
    with pytest.raises(InputError, match="series conflicts with objectives"):
        Sweep("s", {"m": "x.py"}, IsoFlop((1e12,), (16,)), series={"n": "x.py"})


def test_objectives_take_the_rules_of_the_sweep_where_they_have_none():
    from dlmjax.sweep.rules import FixedBatch, FixedRate

    sweep = Sweep(
        "s", {"a": "x.py", "b": Objective("y.py", rate=FixedRate(2e-3))}, IsoFlop((1e12,), (16,)), batch=FixedBatch(8), rate=FixedRate(1e-3)
    )
    assert (sweep.objective_of("a").batch, sweep.objective_of("a").rate) == (FixedBatch(8), FixedRate(1e-3))
    assert (sweep.objective_of("b").batch, sweep.objective_of("b").rate) == (FixedBatch(8), FixedRate(2e-3))


def test_the_variants_of_the_sweep_of_efficiency_start_from_the_defaults_of_before():
    path = str(ROOT / "configs/sweeps/efficiency.py")
    found = load(path, ["variants=before,after,shipped", "data="]).objectives
    masked = str(ROOT / "configs/masked.py:tiny")
    fingerprints = {name: config_lib.fingerprint(config_lib.load(masked, objective.overrides)) for name, objective in found.items()}
    # Of masked:tiny as it was shipped until 2026-12, and by its first defaults of 2026-12.
    assert fingerprints == {"before": "cb39a4857bfa", "after": "ba00ab32a87e", "shipped": config_lib.fingerprint(config_lib.load(masked))}
    for objective in load(path, ["data=", "sizes=64,256"]).objectives.values():
        config_lib.check(config_lib.load(masked, objective.overrides))
    with pytest.raises(InputError, match="variants has 'afterr'; choose from before, "):
        load(path, ["variants=afterr"])


def test_the_sweep_of_conversions_spends_the_share_of_flops_that_it_names():
    """On autoregression first, for every target; the rate decays within the last phase. Of the rest all conversions differ in nothing."""
    path, tokenizer = str(ROOT / "configs/sweeps/convert.py"), load_tokenizer("char27")
    targets = ("masked", "masked_shift", "blocks4", "blocks4_seeded", "blocks16", "blocks16_seeded")
    found = load(path, ["data=", f"targets={','.join(targets)}"]).objectives
    assert len(found) == 4 * len(targets)
    for name, objective in found.items():
        config = config_lib.load(str(ROOT / "configs/masked.py:tiny"), objective.overrides)
        experiment = counts.with_shape(alone(config, tokenizer, None, None), ladder.shape(64))
        if name.endswith("_scratch"):
            assert not experiment.earlier
            continue
        (first,) = experiment.earlier
        spent = first.share * experiment.at_step(0).flops_per_token / experiment.flops_per_token
        assert spent == pytest.approx(int(name[-2:]) / 100, abs=0.001), name
        assert config.optimizer.decay < 1 - first.share
    for shares, said in (
        ("shares=0.5,1", "shares has 1; give shares"),
        ("targets=masked,none", "targets has 'none'; choose from masked, "),
    ):
        with pytest.raises(InputError, match=said):
            load(path, [shares])


@pytest.mark.parametrize("path", SWEEPS, ids=lambda path: path.stem)
def test_sweeps_that_ship_say_how_they_are_run(path):
    found = load(str(path))
    assert len(list(found.grid.points())) > 0
    text = path.read_text(encoding="utf-8")
    assert f"dlmjax sweep plan configs/sweeps/{path.name}" in text and "dlmjax sweep run" in text


def test_a_sweep_has_sizes_as_a_config_has(tmp_path):
    """FILE.py:SIZE, for `size` of get_sweep(); every objective of a size plans the same sweep points."""
    isoflop = str(ROOT / "configs/sweeps/isoflop.py")
    tiny = load(f"{isoflop}:tiny", ["seeds=0,1"])
    assert len(list(tiny.grid.points())) == 18 and list(tiny.objectives) == list(load(isoflop).objectives)
    assert [load(isoflop + size, ["windows=20"]).validation.windows for size in ("", ":tiny")] == [20, 20]
    for text, said in (
        (f"{isoflop}:huge", "has no size 'huge'; give gpt2_small or tiny"),
        (str(ROOT / "configs/sweeps/quick.py:tiny"), r"quick.py comes at one size; leave out :tiny"),
        (str(tmp_path / "none.py:tiny"), "none.py does not exist"),
    ):
        with pytest.raises(InputError, match=said):
            load(text)
