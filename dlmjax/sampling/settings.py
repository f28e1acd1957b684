"""How to sample: the values that change the text, checked together and recorded with it."""

import dataclasses
from typing import Any

from dlmjax.errors import InputError
from dlmjax.sampling.grids import make_grid
from dlmjax.sampling.methods import make_method

REVEAL_ORDERS = ("random", "confidence", "entropy", "margin", "left_to_right")
ORDERS = ("ancestral", *REVEAL_ORDERS)
RANKED = ("confidence", "entropy", "margin")
REMAINDERS = ("spread", "first")
AUTO = "auto"  # the grid that the process says
MOST_STEPS = 2**20
COLDEST, HOTTEST = 1e-6, 1e6  # beyond, quotients of logits leave float32


@dataclasses.dataclass(frozen=True)
class SampleSettings:
    """How to sample; every field changes the text and is recorded with it.

    steps: denoising steps.  Reveal orders never take more steps than there are holes; causal processes take exactly one per hole.
    order: one of ORDERS; "ancestral" = by the steps of `method`.
    method: how a step from level t to level s is made, one of `methods.METHODS` with its values, as in "remask(eta=0.2)".
    grid: the levels of the steps, one of `grids.GRIDS` with its values, as in "shifted(alpha=3)"; "auto" = the process's own
      (`Capabilities.sampling_grid`), "uniform" where the levels sweep.
    sweep: the levels of a position fall one after another, from the left, while a window of so many positions passes (hyperschedules; 1 is
      the chain rule, None = all fall together).
    temperature: divides the logits; 0 takes the most likely token.  top_p: nucleus, 1 = off; applied after the temperature.
    guidance: w of classifier-free guidance by the frozen tokens, (1 + w) log p(given) - w log p(not given); 0 = off, else two calls.
    remask: a revealed token that scores below the step's plan is masked again (confidence, entropy and margin orders only).
    remainder: which steps of a reveal order show one token more where the steps do not divide the holes, one of REMAINDERS; see
      `reveal.planned`.
    threshold: reveal whatever the denoiser gives at least this probability, and always the best, until nothing is left; `steps` has no say
      then. None = off.
    cache: leave out the network where no token has changed since its last call (networks without time input only).  The one field that
      changes no text, only the number of calls.
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
    cache: bool = False
    suppressed_ids: tuple[int, ...] = ()

    def __post_init__(self):
        if self.order not in ORDERS:
            raise InputError(f"unknown order {self.order!r}; the orders are {', '.join(ORDERS)}")
        if not 1 <= self.steps <= MOST_STEPS:
            raise InputError(f"steps is {self.steps}; it must be at least 1 and at most {MOST_STEPS}")
        if self.temperature != 0 and not COLDEST <= self.temperature <= HOTTEST:
            raise InputError(
                f"temperature is {self.temperature}; it must be 0 (most likely token) or lie between {COLDEST:g} and {HOTTEST:g}"
            )
        if not 0 < self.top_p <= 1:
            raise InputError(f"top_p is {self.top_p}; it must lie in (0, 1], 1 meaning off")
        if not 0 <= self.guidance < 1e6:
            raise InputError(f"guidance is {self.guidance}; it must be 0 (off) or above")
        if self.remask and self.order not in RANKED:
            raise InputError(f"remask requires an order that ranks tokens ({', '.join(RANKED)}), not {self.order}")
        if self.threshold is not None and not 0 < self.threshold < 1:
            raise InputError(f"threshold is {self.threshold}; it is a probability and must lie in (0, 1)")
        if self.threshold is not None and (self.order not in RANKED or self.remask):
            raise InputError(f"threshold requires one of the orders {', '.join(RANKED)} and no remask")
        make_method(self.method)
        if self.grid != AUTO:
            make_grid(self.grid).levels(self.steps)
        in_time = self.method != "ancestral" or self.grid not in (AUTO, "uniform") or self.sweep is not None
        if self.order != "ancestral" and in_time:
            raise InputError(f"method, grid and sweep are for steps in time; order {self.order} reveals by rank, so leave them out")
        if self.remainder not in REMAINDERS:
            raise InputError(f"remainder is {self.remainder!r}; it must be one of {', '.join(REMAINDERS)}")
        if self.remainder != "spread" and (self.order not in REVEAL_ORDERS or self.threshold is not None):
            raise InputError(
                f"remainder {self.remainder} says how many tokens a step shows, which order {self.order} "
                + ("with a threshold does not plan" if self.threshold is not None else "leaves to chance")
            )
        if self.sweep is not None and (not 1 <= self.sweep <= MOST_STEPS or make_method(self.method).plans):
            raise InputError(f"sweep is {self.sweep}: it counts positions, and method {self.method} must not draw times of its own")

    def on_grid(self, own: str) -> "SampleSettings":
        """With the process's own grid in place of "auto": what is recorded."""
        if self.grid != AUTO:
            return self
        # A sweep spends its levels on one position after another, not on one level after another.
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
