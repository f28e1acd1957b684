"""The likelihoods of an evaluation by name: "nelbo", "order:RULE", "subsets", "tube", with values as in "order:margin(count=2)".

    nelbo      the bound of `likelihood.Evaluator`
    order      exact: of the sampler under a rule which does not look at the drawn tokens (`sampling.rules`; DUEL 2603.01367)
    subsets    exact: of the sampler that reveals one token a step in random order, by a recursion over all sets of masked tokens
    tube       a bound on the other side, -log p >= the number, of the same sampler (TUBE 2605.24292)

`paths` computes the last three.
"""

import dataclasses
import math
from typing import Any

from dlmjax import choices
from dlmjax.errors import InputError
from dlmjax.sampling.rule_names import IN_TIME, RULES, import_rule
from dlmjax.sampling.rules import Planned, Rule
from dlmjax.sampling.stops import Stop, make_stop

MOST_SUBSETS = 10  # tokens of a set whose 2^n - 1 sets of masks are all read
MOST_TUBE = 32  # tokens of a set; the variance over orders grows with them, and the estimate of p is then hopeless
MOST_ORDERS = 2**16


@dataclasses.dataclass(frozen=True)
class Order:
    """The law of the sampler under a rule that does not look at the drawn tokens; equal scores left to right.

    rule: its text, without `temperature` and `stop`; a rule of a planned number of positions reveals one in a step where it says nothing
    else.
    temperature: divisor of the logits where a token is drawn; the rule reads those of temperature 1, as in the sampler.
    stop: a stop of `sampling.stops` whose tokens are drawn, as in "exit(bound=0.1)"; None = none.
    """

    rule: str
    temperature: int | float = 1.0
    stop: str | None = None

    def __post_init__(self):
        what = f"--likelihood order:{self.rule}"
        if not self.make_rule().has_path:
            raise InputError(f"{what} has no likelihood that can be written down: {self._reason}")
        if self.stop is not None and not make_stop(self.stop).draws:
            raise InputError(f"{what}: stop {self.stop} takes most likely tokens, and other texts have probability 0; give stop=exit")
        _check_temperature(what, self.temperature)

    def make_stop(self) -> Stop | None:
        """The stop."""
        return None if self.stop is None else make_stop(self.stop)

    def make_rule(self) -> Rule:
        """The rule, with one position a step where it plans no other number. Raises InputError: as `rule_names.make_rule`."""
        rule = import_rule(self.rule)
        one = isinstance(rule, Planned) and (rule.count, rule.steps, rule.plan) == (None, None, "spread")
        return dataclasses.replace(rule, count=1) if one else rule

    @property
    def one_by_one(self) -> str | None:
        """The likelihood whose difference from this one is the price of parallel steps; None where this one reveals one a step."""
        rule = self.make_rule()
        if rule.guarantee == "exact" and self.stop is None:
            return None
        name, values = choices.parse(rule.one_by_one, "rule")
        return "order:" + choices.text_of(name, values | ({} if self.temperature == 1 else {"temperature": self.temperature}))

    @property
    def _reason(self) -> str:
        rule = self.make_rule()
        if rule.looks_at_draw:
            return (
                "its positions depend on the drawn tokens, so a text has many paths; give on=best, or another rule that compares the "
                "positions' most likely tokens"
            )
        if rule.name == "random":
            return "its text has many paths; give subsets or tube for its likelihood, nelbo for the mean over its paths"
        return "it masks tokens again or draws its positions, so a text has many paths; leave remask and noise out"


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
        if rule.partition("(")[0].strip() == IN_TIME:
            raise InputError(f"--likelihood order:{IN_TIME}: a text has many paths; give nelbo")
        head, values = rule_and_values(rule)
        _refuse_top_p(text, values)
        own = {name: values.pop(name) for name in ("temperature", "stop") if name in values}
        return choices.build(f"--likelihood order:{rule:.100}", Order, {"rule": choices.text_of(head, values), **own})
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


def rule_and_values(rule: str) -> tuple[str, dict[str, Any]]:
    """The name, which may have dots, and the values of the text of a rule."""
    head, bracket, rest = rule.partition("(")
    module, dot, name = head.strip().rpartition(".")
    name, values = choices.parse(name + bracket + rest, "the rule of --likelihood order")
    return module + dot + name, values


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
