"""Settings of a sampler, checked together and recorded with each sample."""

import dataclasses
from typing import Any

from dlmjax.errors import InputError
from dlmjax.sampling.daedal import make_growth
from dlmjax.sampling.drafts import make_draft
from dlmjax.sampling.ends import make_hold_back
from dlmjax.sampling.grids import make_grid
from dlmjax.sampling.guidance import Cfg, Guide, make_guidance, make_guide
from dlmjax.sampling.methods import make_method
from dlmjax.sampling.regex import byte_automaton
from dlmjax.sampling.reuse import make_reuse
from dlmjax.sampling.rule_names import IN_TIME, make_rule, rule_of_old
from dlmjax.sampling.rules import MOST_STEPS, Rule
from dlmjax.sampling.stops import make_stop

AUTO = "auto"  # the grid of the process
MIN_TEMPERATURE, MAX_TEMPERATURE = 1e-6, 1e6  # beyond these, quotients of logits overflow float32


@dataclasses.dataclass(frozen=True)
class SampleSettings:
    """Settings of a sampler; each field except `cache=True` and most of `draft` changes the text.

    steps: number of denoising steps. Rules take at most one per masked position; causal processes take exactly one.
    rule: which positions a step reveals, one of `rule_names.RULES` with its values, as in "threshold(value=0.9)"; "ancestral" = steps in
      time by `method`.
    stop: when all masked positions of a row are revealed at once, one of `stops.STOPS` with its values, as in "exit(bound=0.1)"; None =
      when the rule has revealed them.
    method: step method, one of `methods.METHODS` with its values, as in "remask(eta=0.2)".
    grid: times of the steps, one of `grids.GRIDS` with its values, as in "shifted(alpha=3)"; "auto" = the process's default
      (`Capabilities.sampling_grid`), "uniform" with `sweep`.
    sweep: width, positions, of the window in which t falls from left to right (hyperschedule); 1 is the chain rule, None = all together.
    temperature: divisor of the logits; 0 = the most likely token.  top_p: probability of the nucleus, after the temperature; 1 = off.
      Both apply where a token is drawn. Rules compare probabilities without them.
    guidance: weight w of classifier-free guidance, (1 + w) log p(x | condition) - w log p(x); 0 = off, else two network calls per step.
      "cfg(weight=1, low=0.2, high=0.8)" = only where t is between low and high.
    guide: control by a classifier, one of `guidance.GUIDES` with its values, as in "classifier(of=my_module.log_p)"; "" = none.
    cache: True = leave out network calls where no token has changed since the last call (networks that are not conditioned on t); no
      change of the text. A policy of `reuse.REUSES` with its values, as in "dual(block=32)" = fill the canvas block by block, `steps` steps
      each, and read only a part of the row at most calls.
    regex: regular expression that the whole text of a canvas matches, up to its end of document (rules, whole canvas); "" = any
      text.
    suppressed_ids: ids that are not produced (mask, pad, BOS); see `canvas.suppressed_ids`.
    eos: how far the end of document is held back, one of `ends.HOLD_BACKS` with its values, as in "first(tokens=16)"; None = not.
    grow: how a canvas gets longer while it is filled, one of `daedal.GROWTHS` with its values, as in "daedal(initial=32)"; None = not.
    draft: how several steps are checked by one network call, one of `drafts.DRAFTS` with its values, as in "own(depth=4)"; no change of
      the text beyond rounding but with accept=ratio and accept=mixture; None = one call or more for each step.
    end_ids: the ids that `eos` holds back and `grow` reads: the end of document, and those of a tail behind it.
    """

    steps: int = 64
    rule: str = IN_TIME
    method: str = "ancestral"
    grid: str = "auto"
    sweep: int | None = None
    temperature: float = 1.0
    top_p: float = 1.0
    guidance: float | str = 0.0
    cache: bool | str = False
    regex: str = ""
    suppressed_ids: tuple[int, ...] = ()
    stop: str | None = None
    eos: str | None = None
    end_ids: tuple[int, ...] = ()
    guide: str = ""
    grow: str | None = None
    draft: str | None = None

    def __post_init__(self):
        if not 1 <= self.steps <= MOST_STEPS:
            raise InputError(f"steps is {self.steps}; it must be at least 1 and at most {MOST_STEPS}")
        if self.temperature != 0 and not MIN_TEMPERATURE <= self.temperature <= MAX_TEMPERATURE:
            raise InputError(
                f"temperature is {self.temperature}; it must be 0 (most likely token), or {MIN_TEMPERATURE:g} to {MAX_TEMPERATURE:g}"
            )
        if not 0 < self.top_p <= 1:
            raise InputError(f"top_p is {self.top_p}; it must lie in (0, 1], 1 meaning off")
        self.make_guide()
        if not self.make_guidance().always and self.rule != IN_TIME:
            raise InputError(f"guidance {self.guidance}: low and high are times and require steps in time (rule {IN_TIME}); leave them out")
        self.make_rule()
        if self.regex:
            byte_automaton(self.regex)
            if self.rule == IN_TIME or self.top_p < 1:
                raise InputError(
                    "regex requires a rule that reveals tokens, such as rule=random, and top_p=1: a nucleus may hold no such text"
                )
        if self.stop is not None:
            if self.regex and not make_stop(self.stop).draws:
                raise InputError(f"stop {self.stop} conflicts with regex: most likely tokens may not match it; give stop exit, which draws")
            make_stop(self.stop)
            if self.rule == IN_TIME:
                raise InputError(f"stop {self.stop} requires a rule, and rule is {IN_TIME}, steps in time; give one, or leave stop out")
        if self.eos is not None:
            make_hold_back(self.eos)
            if self.regex or self.cache is True:
                other = "regex, whose pattern decides where a text ends" if self.regex else "cache without a policy; leave cache off"
                raise InputError(f"eos {self.eos} conflicts with {other}")
        if self.grow is not None:
            make_growth(self.grow)
        if self.draft is not None:
            make_draft(self.draft)
        make_method(self.method)
        if isinstance(self.cache, str):
            make_reuse(self.cache)
        if self.cache is True and (self.guide or not self.make_guidance().always):
            raise InputError("cache leaves out calls where no token has changed, but guide, and guidance between low and high, depend on t")
        if self.grid != AUTO:
            make_grid(self.grid).times(self.steps)
        in_time = self.method != "ancestral" or self.grid not in (AUTO, "uniform") or self.sweep is not None
        if self.rule != IN_TIME and in_time:
            raise InputError(f"method, grid and sweep require steps in time (rule {IN_TIME}); leave them out with rule {self.rule}")
        if self.sweep is not None and (not 1 <= self.sweep <= MOST_STEPS or make_method(self.method).plans):
            raise InputError(
                f"sweep is {self.sweep}; it requires 1 to {MOST_STEPS} positions and a method that follows the grid, not {self.method}"
            )

    def make_guidance(self) -> Cfg:
        """The classifier-free guidance; weight 0 = off. Raises InputError: a value that it does not take."""
        return make_guidance(self.guidance)

    def make_guide(self) -> Guide | None:
        """The guide; None = none. Raises InputError: no such guide, a value that it does not take."""
        return make_guide(self.guide) if self.guide else None

    def make_rule(self) -> Rule | None:
        """The rule; None = steps in time. Raises InputError: no such rule, a value that it does not take."""
        return None if self.rule == IN_TIME else make_rule(self.rule)

    def on_grid(self, own: str) -> "SampleSettings":
        """The settings with the process's grid in place of "auto", as they are recorded."""
        if self.grid != AUTO:
            return self
        # With a sweep the times of the grid are shared out over the positions, so the process's grid does not apply.
        return dataclasses.replace(self, grid=own if self.rule == IN_TIME and self.sweep is None else "uniform")

    def to_json(self) -> dict[str, Any]:
        """Every field as plain JSON; `suppressed_ids` is called "never" there, as in the files of older versions."""
        values = dataclasses.asdict(self)
        # Records without a guide or drafts are those of the versions before them.
        values = {name: value for name, value in values.items() if name not in ("guide", "draft") or value}
        return values | {"never": list(values.pop("suppressed_ids")), "end_ids": list(self.end_ids)}

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> "SampleSettings":
        """The settings of a `to_json` record, of this version or of one before rules had call strings."""
        values = rule_of_old(dict(values))
        return cls(suppressed_ids=tuple(values.pop("never")), end_ids=tuple(values.pop("end_ids", ())), **values)
