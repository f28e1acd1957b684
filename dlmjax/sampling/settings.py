"""Settings of a sampler, checked together and recorded with each sample."""

import dataclasses
from typing import Any

from dlmjax.errors import InputError
from dlmjax.sampling.grids import make_grid
from dlmjax.sampling.methods import make_method
from dlmjax.sampling.reuse import make_reuse

REVEAL_ORDERS = ("random", "confidence", "top_probability", "entropy", "margin", "left_to_right")
ORDERS = ("ancestral", *REVEAL_ORDERS)
RANKED = ("confidence", "top_probability", "entropy", "margin")
REMAINDERS = ("spread", "first")
AUTO = "auto"  # the grid of the process
MOST_STEPS = 2**20
MIN_TEMPERATURE, MAX_TEMPERATURE = 1e-6, 1e6  # beyond these, quotients of logits overflow float32


@dataclasses.dataclass(frozen=True)
class SampleSettings:
    """Settings of a sampler; each field except `cache=True` changes the text.

    steps: number of denoising steps. Reveal orders take at most one per masked position; causal processes take exactly one.
    order: one of ORDERS; "ancestral" = steps in time by `method`.
    method: step method, one of `methods.METHODS` with its values, as in "remask(eta=0.2)".
    grid: times of the steps, one of `grids.GRIDS` with its values, as in "shifted(alpha=3)"; "auto" = the process's default
      (`Capabilities.sampling_grid`), "uniform" with `sweep`.
    sweep: width, positions, of the window in which t falls from left to right (hyperschedule); 1 is the chain rule, None = all together.
    temperature: divisor of the logits; 0 = the most likely token.  top_p: probability of the nucleus, after the temperature; 1 = off.
      Both apply where a token is drawn. Reveal orders and `threshold` compare probabilities without them.
    guidance: weight w of classifier-free guidance, (1 + w) log p(x | condition) - w log p(x); 0 = off, else two network calls per step.
    remask: mask a revealed token again where its score is below the step's plan (orders of RANKED).
    remainder: steps of a reveal order that reveal one token more, one of REMAINDERS; see `reveal.planned_reveals`.
    threshold: least probability of the drawn tokens that a step reveals (order top_probability: of the positions' most likely tokens); it
      reveals at least the one with the best score and replaces `steps`. None = off.
    cache: True = leave out network calls where no token has changed since the last call (networks that are not conditioned on t); no
      change of the text. A policy of `reuse.REUSES` with its values, as in "dual(block=32)" = fill the canvas block by block, `steps` steps
      each, and read only a part of the row at most calls.
    suppressed_ids: ids that are not produced (mask, pad, BOS); see `canvas.suppressed_ids`.
    """

    steps: int = 64
    order: str = "ancestral"
    method: str = "ancestral"
    grid: str = "auto"
    sweep: int | None = None
    temperature: float = 1.0
    top_p: float = 1.0
    guidance: float = 0.0
    remask: bool = False
    threshold: float | None = None
    remainder: str = "spread"
    cache: bool | str = False
    suppressed_ids: tuple[int, ...] = ()

    def __post_init__(self):
        if self.order not in ORDERS:
            raise InputError(f"unknown order {self.order!r}; the orders are {', '.join(ORDERS)}")
        if not 1 <= self.steps <= MOST_STEPS:
            raise InputError(f"steps is {self.steps}; it must be at least 1 and at most {MOST_STEPS}")
        if self.temperature != 0 and not MIN_TEMPERATURE <= self.temperature <= MAX_TEMPERATURE:
            raise InputError(
                f"temperature is {self.temperature}; it must be 0 (most likely token), or {MIN_TEMPERATURE:g} to {MAX_TEMPERATURE:g}"
            )
        if not 0 < self.top_p <= 1:
            raise InputError(f"top_p is {self.top_p}; it must lie in (0, 1], 1 meaning off")
        if not 0 <= self.guidance < 1e6:
            raise InputError(f"guidance is {self.guidance}; it must be 0 (off) or positive")
        if self.remask and self.order not in RANKED:
            raise InputError(f"remask requires one of the orders {', '.join(RANKED)}, not {self.order}")
        if self.threshold is not None and not 0 < self.threshold < 1:
            raise InputError(f"threshold is {self.threshold}; it is a probability and must lie in (0, 1)")
        if self.threshold is not None and (self.order not in RANKED or self.remask):
            raise InputError(f"threshold requires one of the orders {', '.join(RANKED)} and no remask")
        make_method(self.method)
        if isinstance(self.cache, str):
            make_reuse(self.cache)
        if self.grid != AUTO:
            make_grid(self.grid).times(self.steps)
        in_time = self.method != "ancestral" or self.grid not in (AUTO, "uniform") or self.sweep is not None
        if self.order != "ancestral" and in_time:
            raise InputError(f"method, grid and sweep require steps in time (order ancestral); leave them out with order {self.order}")
        if self.remainder not in REMAINDERS:
            raise InputError(f"remainder is {self.remainder!r}; it must be one of {', '.join(REMAINDERS)}")
        if self.remainder != "spread" and (self.order not in REVEAL_ORDERS or self.threshold is not None):
            raise InputError(
                f"remainder {self.remainder} requires steps with a planned number of tokens, which order {self.order} "
                + ("with a threshold does not have" if self.threshold is not None else "does not have")
            )
        if self.sweep is not None and (not 1 <= self.sweep <= MOST_STEPS or make_method(self.method).plans):
            raise InputError(
                f"sweep is {self.sweep}; it requires 1 to {MOST_STEPS} positions and a method that follows the grid, not {self.method}"
            )

    def on_grid(self, own: str) -> "SampleSettings":
        """The settings with the process's grid in place of "auto", as they are recorded."""
        if self.grid != AUTO:
            return self
        # With a sweep the times of the grid are shared out over the positions, so the process's grid does not apply.
        return dataclasses.replace(self, grid=own if self.order == "ancestral" and self.sweep is None else "uniform")

    def to_json(self) -> dict[str, Any]:
        """Every field as plain JSON; `suppressed_ids` is called "never" there, as in the files of older versions."""
        values = dataclasses.asdict(self)
        return values | {"never": list(values.pop("suppressed_ids"))}

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> "SampleSettings":
        """The settings of a `to_json` record."""
        values = dict(values)
        return cls(suppressed_ids=tuple(values.pop("never")), **values)
