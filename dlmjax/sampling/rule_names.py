"""The rules by name, as `--rule` and records write them; a rule of one's own by its dotted name (see `by_name`)."""

import dataclasses
from typing import Any

from dlmjax.choices import text_of
from dlmjax.errors import InputError
from dlmjax.sampling.bounded_rules import EntropyBound, Factor, Klass, Pipeline, Profile, Spread
from dlmjax.sampling.by_name import build_own, import_own
from dlmjax.sampling.other_rules import Credit, Saber, apart
from dlmjax.sampling.position_rules import Pc
from dlmjax.sampling.revising_rules import T2t, Wino
from dlmjax.sampling.rules import Confidence, Entropy, LeftToRight, Margin, Random, Rule, Threshold
from dlmjax.sampling.steppers import rank


@dataclasses.dataclass(frozen=True)
class MinGap(Rule):
    """The positions of another rule, of which no two of a step are closer than `d`: the best first, those too near wait for a later step.

    rule: text of the other rule, as in min_gap(rule=entropy_bound(gamma=0.1), d=4).
    """

    rule: str
    d: int = 2

    name = "min_gap"
    source = "DUS 2506.19037, its filter of other rules"

    def __post_init__(self):
        if not 1 <= self.d <= 2**16:
            raise InputError(f"rule min_gap: d is {self.d}; it must be 1 to {2**16} positions")
        inner = self._inner
        if inner.reweighs or inner.revises or inner.shadows or isinstance(inner, MinGap):
            raise InputError(f"rule min_gap: rule {self._inner.name} conflicts with it; give another one")

    @property
    def _inner(self) -> Rule:
        return make_rule(self.rule)

    @property
    def looks_at_draw(self):
        return self._inner.looks_at_draw

    @property
    def has_path(self):
        return self._inner.has_path

    @property
    def ranked(self):
        return self._inner.ranked

    @property
    def guarantee(self):
        return self._inner.guarantee

    @property
    def one_by_one(self):
        return self._inner.one_by_one

    def begin(self, shape, vocab):
        return self._inner.begin(shape, vocab)

    def score(self, view):
        return self._inner.score(view)

    def choose(self, view, memory):
        choice = self._inner.choose(view, memory)
        reveal_BL = choice.reveal_BL & view.masked_BL
        taken_BL = apart(reveal_BL, rank(self.score(view), reveal_BL), self.d)
        if choice.remask_BL is None:
            return choice._replace(reveal_BL=taken_BL)
        # The other rule masks fewer than it reveals, and a row of which fewer are taken would not end.
        fewer_B1 = choice.remask_BL.sum(axis=1, keepdims=True) < taken_BL.sum(axis=1, keepdims=True)
        return choice._replace(reveal_BL=taken_BL, remask_BL=choice.remask_BL & fewer_B1)


RULES: dict[str, type[Rule]] = {
    cls.name: cls
    for cls in (
        *(Random, LeftToRight, Confidence, Margin, Entropy),
        *(Threshold, EntropyBound, Factor, Profile, Spread, Klass, Pipeline),
        *(Saber, Credit, Wino, T2t, MinGap, Pc),
    )
}
IN_TIME = "ancestral"  # not a rule: steps in time

# Fields of settings before rules had call strings, in traces and files of samples.
_OLD = ("order", "threshold", "remask", "remainder")
_OLD_ORDERS = {"confidence": {"on": "drawn"}, "top_probability": {}}


def make_rule(text: str) -> Rule:
    """The rule of a text: "margin", "threshold(value=0.9)". Raises InputError: no such rule, a value that it does not take."""
    return build_own("rule", text, RULES, Rule)


def import_rule(text: str) -> Rule:
    """`make_rule` of a text that a person has typed: the module of a dotted name is imported.

    Raises InputError: as `make_rule`; a module that cannot be imported.
    """
    import_own("rule", text)
    return make_rule(text)


def rule_of_old(values: dict[str, Any]) -> dict[str, Any]:
    """Settings with `rule` in place of order, threshold, remask and remainder, as records of before hold them.

    The `top_probability` of then is confidence; the confidence of then looked at the drawn token.
    """
    if "order" not in values:
        return values
    old = {name: values.get(name) for name in _OLD}
    rest = {name: value for name, value in values.items() if name not in _OLD}
    order, threshold = old["order"], old["threshold"]
    if order == IN_TIME:
        return {**rest, "rule": IN_TIME}
    name, of_rule = ("confidence" if order in _OLD_ORDERS else order), dict(_OLD_ORDERS.get(order, {}))
    if threshold is not None:
        on = "best" if order == "top_probability" else "drawn"
        return {**rest, "rule": text_of("threshold", {"value": threshold, "on": on, "by": name})}
    of_rule |= {"plan": "first"} if old["remainder"] == "first" else {}
    of_rule |= {"remask": True} if old["remask"] else {}
    return {**rest, "rule": text_of(name, of_rule)}
