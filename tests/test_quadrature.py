"""The settings of a quadrature, refused alike by all that take them."""

import pathlib

import pytest

import dlmjax
from dlmjax.diffusion.processes.masked import Masked
from dlmjax.errors import InputError
from dlmjax.evaluate import EvaluationSettings
from dlmjax.evaluation.conditional import ConditionalScorer
from dlmjax.evaluation.likelihood import Evaluator
from dlmjax.quadrature import MOST_CALLS, RULES
from dlmjax.sweep.manifest import Validation


def bind(*_):
    raise AssertionError("refused before the network is used")


SETTINGS = [{"rule": "simpson"}, {"rule": ""}, {"nodes": 0}, {"draws": -1}, {"draws": MOST_CALLS}, {"nodes": 1024, "draws": 1024}]
OWNERS = {
    "Evaluator": (lambda **settings: Evaluator(Masked(4, 3), bind, **settings), SETTINGS),
    "EvaluationSettings": (EvaluationSettings, SETTINGS),
    "Validation": (Validation, SETTINGS),
    # It takes no rule, and divides its draws among the nodes.
    "ConditionalScorer": (lambda **settings: ConditionalScorer(Masked(4, 3), bind, longest=8, **settings), SETTINGS[2:-1]),
}


@pytest.mark.parametrize("owner", OWNERS)
def test_settings_out_of_range_are_refused_by_name(owner):
    make, cases = OWNERS[owner]
    for settings in cases:
        with pytest.raises(InputError, match=f"^{owner}") as refused:
            make(**settings)
        assert "\n" not in str(refused.value)


def test_the_rules_have_one_home():
    files = pathlib.Path(dlmjax.__file__).parent.rglob("*.py")
    homes = [file.name for file in files if ", ".join(f'"{rule}"' for rule in RULES) in file.read_text(encoding="utf-8")]
    assert homes == ["quadrature.py"]
