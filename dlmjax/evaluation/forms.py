"""The likelihoods of an evaluation by name: "nelbo", "order:RULE", "subsets", "tube", with values as in "order:margin(count=2)".

    nelbo      the bound of `likelihood.Evaluator`
    order      exact: of the sampler that reveals tokens by a rule which does not look at the drawn tokens (DUEL 2603.01367)
    subsets    exact: of the sampler that reveals one token a step in random order, by a recursion over all sets of masked tokens
    tube       a bound on the other side, -log p >= the number, of the same sampler (TUBE 2605.24292)

`paths` computes the last three. Imports no jax.
"""

import dataclasses
import math
from typing import Any, Literal

from dlmjax import choices
from dlmjax.errors import InputError

MOST_SUBSETS = 10  # tokens of a set whose 2^n - 1 sets of masks are all read
MOST_TUBE = 32  # tokens of a set; the variance over orders grows with them, and the estimate of p is then hopeless
MOST_ORDERS = 2**16

# rule -> the sampler's `--order` of the same law.
RULES = {
    "confidence": "top_probability",
    "margin": "margin",
    "entropy": "entropy",
    "threshold": "top_probability",
    "left_to_right": "left_to_right",
}
_NONE = {
    "random": "its text has many paths; give subsets or tube for its likelihood, nelbo for the mean over its paths",
    "drawn_confidence": "its order depends on the drawn tokens, so a text has many paths; give order:confidence, which compares the "
    "positions' most likely tokens",
    "ancestral": "its text has many paths; give nelbo",
    "remask": "it masks tokens again, so a text has many paths; give order:confidence",
}


@dataclasses.dataclass(frozen=True)
class Order:
    """The law of a sampler that reveals the masked positions with the highest scores, given what is revealed; equal scores left to right.

    rule: confidence (the largest probability of the position), margin, entropy, threshold (all positions whose largest probability is at
      least `value`, and always the one with the largest), left_to_right.
    count: tokens revealed in a step; the last step reveals what is left.  temperature: divisor of the logits where a token is drawn; scores
      are those of temperature 1, as in the sampler.
    """

    rule: Literal["confidence", "margin", "entropy", "threshold", "left_to_right"]
    count: int = 1
    temperature: int | float = 1.0
    value: int | float | None = None

    def __post_init__(self):
        what = f"--likelihood order:{self.rule}"
        if (self.rule == "threshold") != (self.value is not None):
            needs = "requires a value" if self.rule == "threshold" else "takes no value"
            raise InputError(f"{what} {needs}, the least probability that is revealed; write order:threshold(value=0.9)")
        if self.value is not None and not 0 < self.value < 1:
            raise InputError(f"{what}: value is {self.value}; it is a probability and must lie in (0, 1)")
        if self.count < 1:
            raise InputError(f"{what}: count is {self.count}; give at least 1 token a step")
        if self.rule == "threshold" and self.count != 1:
            raise InputError(f"{what} decides how many tokens a step reveals; leave count out")
        _check_temperature(what, self.temperature)


@dataclasses.dataclass(frozen=True)
class Subsets:
    """The law of random order, one token a step.  temperature: as of `Order`."""

    temperature: int | float = 1.0

    def __post_init__(self):
        _check_temperature("--likelihood subsets", self.temperature)


@dataclasses.dataclass(frozen=True)
class Tube:
    """The bound of the same law from the other side.  orders: random orders in each of the two independent halves; temperature: as of
    `Order`."""

    orders: int = 16
    temperature: int | float = 1.0

    def __post_init__(self):
        if not 1 <= self.orders <= MOST_ORDERS:
            raise InputError(f"--likelihood tube: orders is {self.orders}; it must be 1 to {MOST_ORDERS:,}")
        _check_temperature("--likelihood tube", self.temperature)


def parse_likelihood(text: str) -> Order | Subsets | Tube | None:
    """The likelihood of a text; None for "nelbo". Raises InputError: an unknown name or rule, one that has no likelihood, bad values."""
    family, colon, rule = text.partition(":")
    if colon:
        if family != "order":
            raise InputError(f"--likelihood {text!r:.100} has a rule, which only order has; write order:{rule:.60}")
        name, values = choices.parse(rule, "the rule of --likelihood order")
        _refuse_top_p(text, values)
        if name in _NONE:
            raise InputError(f"--likelihood order:{name} has no likelihood that can be written down: {_NONE[name]}")
        choices.lookup("rule of --likelihood order", name, RULES)
        return choices.build(f"--likelihood order:{name}", Order, {"rule": name, **_without_rule(name, values)})
    name, values = choices.parse(text, "--likelihood")
    _refuse_top_p(text, values)
    if name == "order":
        raise InputError(f"--likelihood order requires a rule, one of {', '.join(RULES)}: write order:confidence")
    if name in RULES:
        raise InputError(f"--likelihood {name} is a rule of order; write order:{text:.100}")
    forms = {"nelbo": None, "subsets": Subsets, "tube": Tube}
    form = choices.lookup("--likelihood", name, {**forms, "order:RULE": None})
    if form is None:
        if values:
            raise InputError("--likelihood nelbo takes no values; --nodes, --draws and --rule are its settings")
        return None
    return choices.build(f"--likelihood {name}", form, values)


def _without_rule(name: str, values: dict[str, Any]) -> dict[str, Any]:
    if "rule" in values:
        raise InputError(f"--likelihood order:{name} has no value 'rule'; the rule is its name")
    return values


def _refuse_top_p(text: str, values: dict[str, Any]) -> None:
    if "top_p" in values:
        raise InputError(f"--likelihood {text:.100}: with top_p most texts have probability 0, and no finite likelihood; leave top_p out")


def _check_temperature(what: str, temperature: int | float) -> None:
    if temperature == 0:
        raise InputError(
            f"{what}: at temperature 0 each context has one text, and all others have probability 0; give a temperature above 0"
        )
    if not (math.isfinite(temperature) and 1e-6 <= temperature <= 1e6):
        raise InputError(f"{what}: temperature is {temperature}; it must be 1e-06 to 1e+06")
