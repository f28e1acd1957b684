"""Families of Transformers by name: the fields of a `ModelSpec` that describe the network of a published checkpoint.

    qwen3   RMSNorm on queries and keys, no bias (Qwen3 2505.09388); the default
    llama   qwen3 without that norm (Llama 2302.13971, LLaDA 2502.09992)
    qwen2   llama with a bias on queries, keys and values (Qwen2 2407.10671, Dream 2508.15487)
    olmo2   RMSNorm on all queries and on all keys, norms after each branch (OLMo 2 2501.00656)
    gpt2    LayerNorm, learned positions, GELU in its tanh form, biases (Radford et al. 2019)
    bert    norms after each sum, learned positions, token types, GELU, a transform before the head (BERT 1810.04805, RoBERTa 1907.11692)

A config names one in `model.family`, with values that differ from the family's: `gpt2(max_positions=256)`, `llama(norm_eps=1e-5)`;
or a network of one's own, `my_module.py:build` (`models.own`).
Any may run its layers several times, `qwen3(loops=2)`, or a range of them, `qwen3(loops=3, looped=(1, 3))`, or attend within a window of
the row, `llama(window=4096)` (Mistral 2310.06825), or read boards of 9 x 9 cells, `qwen3(board=True)` and `qwen3(board=True, peers=True)`.
"""

from __future__ import annotations

import re
from typing import Any

from dlmjax import choices
from dlmjax.errors import InputError
from dlmjax.models.spec import TIME_FEATURES, TIME_GATES, TIME_INPUTS, ModelSpec

_LAYER_NORM = dict(qk_norm=False, bias="all", norm="layer", positions="learned")
FAMILIES: dict[str, dict[str, Any]] = {
    "qwen3": dict(qk_norm=True),
    "llama": dict(qk_norm=False),
    "qwen2": dict(qk_norm=False, bias="qkv"),
    "olmo2": dict(qk_norm=True, qk_norm_all=True, norm_placement="branch"),
    "gpt2": dict(_LAYER_NORM, mlp="gelu_tanh", max_positions=1024, norm_eps=1e-5),
    "bert": dict(_LAYER_NORM, mlp="gelu", max_positions=512, norm_placement="post", token_types=2, head="transform", norm_eps=1e-12),
}
# Values in brackets, by the kind of positions that they belong to.
_OF_ROTARY = ("rope_scaling_type", "rope_original", "rope_slow", "rope_fast", "rope_attention", "rope_truncate")
_OF_LEARNED = ("max_positions", "position_offset", "token_types")
VALUES = ("norm_eps", "shift", "loops", "looped", "window", "board", "peers", *_OF_LEARNED, *_OF_ROTARY)
# Fields that a family fixes: a network that differs in one of these belongs to another family.
STRUCTURE = ("qk_norm", "qk_norm_all", "bias", "norm", "mlp", "positions", "norm_placement", "head")
_FIELDS = choices.parameters_of(ModelSpec)
_OWN = re.compile(r"(?P<file>.+\.py)(?::(?P<function>[^/\\]*))?", re.DOTALL)


def own_module(text: str) -> tuple[str, str] | None:
    """(file, function) where `model.family` names a network of one's own, "my_module.py:build"; None for a family.

    Raises InputError: a Python file without a function.
    """
    found = _OWN.fullmatch(text)
    if found is None:
        return None
    if not (found["function"] or "").isidentifier():
        raise InputError(f"model.family={text!r:.200} names a Python file and no function in it; write {found['file'][-80:]}:FUNCTION")
    return found["file"], found["function"]


def family_fields(text: str) -> dict[str, Any]:
    """The fields of a `ModelSpec` that a family decides, from its name or its name with values.

    Raises InputError for an unknown name or value, with the nearest valid one, and for a value of another type.
    """
    name, values = choices.parse(text, "model.family")
    fields = choices.lookup("model.family", name, FAMILIES)
    others = _OF_ROTARY if fields.get("positions") == "learned" else _OF_LEARNED
    valid = {value: _FIELDS[value] for value in VALUES if value not in others}
    choices.check_values(f"model.family {name}", valid, values)
    return {**fields, **{key: type(_FIELDS[key].default)(value) for key, value in values.items()}}


def family_text(name: str, **values: Any) -> str:
    """The name with the values that differ from the family's own; `family_fields` is its inverse."""
    own = {key: field.default for key, field in _FIELDS.items()} | FAMILIES[name]
    return choices.text_of(name, {key: value for key, value in values.items() if value != own[key]})


def run_once(text: str) -> str:
    """The family of `model.family` with each layer run once."""
    name, values = choices.parse(text, "model.family")
    return choices.text_of(name, {key: value for key, value in values.items() if key not in ("loops", "looped")})


def model_spec(section: Any, **decided: Any) -> ModelSpec:
    """The network that the config's section `model` (or a dict like it) describes, with the fields that the process decides.

    Raises InputError for an unknown family or time input, and for sizes that contradict each other.
    """
    values = dict(section)
    time_input, of_time = choices.parse(values.pop("time_input"), "model.time_input")
    choices.lookup("model.time_input", time_input, dict.fromkeys(TIME_INPUTS))
    takes = {"features": TIME_FEATURES, **({"gates": TIME_GATES} if time_input == "adaln" else {})}
    choices.check_values(f"model.time_input {time_input}", {name: _FIELDS[f"time_{name}"] for name in takes}, of_time)
    for name, value in of_time.items():
        choices.lookup(f"model.time_input {time_input}: {name}", value, dict.fromkeys(takes[name]))
    values.update(family_fields(values.pop("family")), time_input=time_input, **{f"time_{name}": value for name, value in of_time.items()})
    return ModelSpec(**{**values, **decided})
