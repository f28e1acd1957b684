"""The Gaussian processes and their losses by name."""

import inspect

import pytest

from dlmjax.diffusion import make_process, make_weighting
from dlmjax.diffusion.weightings.gaussian import EndToEnd
from dlmjax.errors import InputError

FACTS = {"vocab": 9, "mask_id": 8, "pad_id": 7, "bos_id": 6, "eos_id": 5, "schedule": "linear", "excluded": (7,)}


@pytest.mark.parametrize("name", ["gaussian", "plaid", "diffusion_lm", "sed", "embedding_flow"])
def test_by_name_from_what_a_tokenizer_knows(name):
    process = make_process(name, **FACTS, dim=8)
    assert (process.name, process.states.dim, process.excluded) == (name, 8, (7, 8))
    for field in inspect.signature(type(process)).parameters.values():
        assert field.default is inspect.Parameter.empty or isinstance(field.default, int | float | str | tuple | None), field
    with pytest.raises(InputError, match="did you mean 'prediction'"):
        make_process(name, **FACTS, predicton="v")


def test_losses_by_name():
    assert make_weighting("simple", target="v").target == "v"
    assert make_weighting("anchor", weight=0.5).weight == 0.5
    assert make_process("diffusion_lm", **FACTS).capabilities.weighting == make_weighting("end_to_end") == EndToEnd()
