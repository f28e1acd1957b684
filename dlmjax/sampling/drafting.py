"""Self-drafting: the sampler of a whole canvas, with several of its steps checked by one network call (`drafts.Own`).

FreeDave (2510.00294) and SSD (2510.04147) draft the states after 1, 2, ... more steps from the distribution that the last call gave, read
them together, and keep those that a true step also comes to. Here the noise of a step is a function of (seed, row, step), so a sampler is a
function of the network's outputs, and draft and step share their noise:

    draft      d_0 = the state; d_{j+1} = step k + j + 1 from d_j, with its own keys, under p(x | z) of the last call
    read       all d_j, stacked as rows of one call
    check      s_0 = the state; s_{j+1} = step k + j + 1 from s_j under the output for d_j, as long as s_j asks the network what d_j asked

A kept step is the step of the sampler without drafts: same input, same output, same keys, same memory. The text is therefore the same, bit
for bit, at any temperature and under any rule, also those that sharpen it, wherever the network's output for a row does not depend on the
number of rows of the call. Matrix products of other shapes round differently, so a network's text may change where two tokens are equally
good to rounding (docs/sampling.md has the rate). A call keeps at least one step: there are never more calls than without drafts. Each row
has its own step.

Shapes: D drafts and the state, B rows, n streams of a row (2 with guidance), L positions, V vocabulary.
"""

import functools
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from dlmjax.errors import InputError
from dlmjax.models.layout import SINGLE, Layout
from dlmjax.parallel.arrays import device_get, device_put
from dlmjax.progress import Progress
from dlmjax.sampling.canvas import Canvas
from dlmjax.sampling.drafts import make_draft
from dlmjax.sampling.sampler import Sampler
from dlmjax.sampling.sampler_state import SamplerState
from dlmjax.sampling.samples import Counts
from dlmjax.sampling.settings import SampleSettings

_OUTPUT = "output of a row"  # entry of the params of a step whose network output is known


class Drafted(NamedTuple):
    """What one call leaves for the next.

    rows: the state of each row by itself: a leading axis of B, then one row.  step_B: steps that each row has taken.
    output_BnLV: the network's output for the last step of each row.
    """

    rows: SamplerState
    step_B: Int[Array, "B"]
    output_BnLV: Float[Array, "B n L V"]


class DraftingSampler(Sampler):
    """`Sampler` with the drafts of `settings.draft`; bind and the rest as there.

    Raises InputError: settings, a process or a network that drafts cannot serve.
    """

    drafts = True

    def __init__(self, process, bind, settings: SampleSettings, *, self_condition: bool = False, constraint=None, layout: Layout = SINGLE):
        self.draft = make_draft(str(settings.draft))
        if self.draft.verifies:
            raise InputError(f"draft {settings.draft} requires an autoregressive run, which verifies the drafts; give draft own here")
        if process.attention.sequential or process.states.dim:
            raise InputError(
                f"draft {settings.draft} requires tokens and a network that reads the whole canvas, which process {process.name} does "
                "not provide; leave draft out"
            )
        if self_condition:
            raise InputError(
                f"draft {settings.draft} conflicts with self-conditioning, which reads the last call's output; leave draft out"
            )
        super().__init__(process, bind, settings, self_condition=self_condition, constraint=constraint, layout=layout)
        for name in ("cache", "sweep"):
            if getattr(settings, name):
                raise InputError(f"draft {settings.draft} conflicts with {name}; leave one of them out")
        if self._shadows:
            raise InputError(f"draft {settings.draft} conflicts with rule {self.rule.name}, which reads a second stream; leave draft out")
        if self.rule is None and not self.stepper.reads_canvas:
            raise InputError(f"draft {settings.draft} requires one network call a step, and method {settings.method} takes several")

    @property
    def streams(self) -> int:
        """How often a network call reads each position."""
        return 1 + self.draft.depth

    @property
    def _cost(self) -> int:
        """Calls that a call counts as, as without drafts: twice with guidance."""
        return 2 if self.settings.guidance else 1

    def _of_call(self, length: int) -> Counts:
        """The counts of a call for one text; a guide's classifier sees the text of each draft when it is made and when it is checked."""
        rows = self._cost * self.streams
        extra = 0 if self.guide is None else 2 * self.streams * self.guide.passes(length, self.process.vocab)
        return Counts(self._cost, rows, rows * length, extra)

    # --- the run ------------------------------------------------------------------------------------------------------------

    def _run(self, params, canvas: Canvas, seed: int, progress: bool) -> Iterator[tuple[int, int, SamplerState]]:
        """Yields the start and the state after each call; a row's step is its own, and the number of the state the largest."""
        sharding, arrays, state = self._begin(params, canvas, seed)
        steps = self._steps(state)
        state = state._replace(accepted_B=jnp.zeros_like(state.fixed_BL[:, 0]))
        yield 0, steps, state
        drafted, last = self._jitted(self._first_rows, sharding)(state), device_put(np.int32(steps), sharding)
        closing, goes_on = self._closing_functions, True
        with Progress(steps + len(closing), "denoising", " steps", show=None if progress else False) as bar:
            while goes_on:
                drafted, state, goes_on_B = self._jitted(self._call, sharding)(params, arrays, drafted, last)
                step, goes_on = int(device_get(drafted.step_B).max()), bool(device_get(goes_on_B).any())
                bar.reach(step)
                yield step, steps, state
            for step, function in enumerate(closing, steps + 1):
                if self._ends_early and not device_get(self._open(state)).any():
                    return
                state = self._jitted(function, sharding)(params, arrays, state, device_put(np.int32(step), sharding))
                bar.reach(step)
                yield step, steps, state

    # --- on the device ------------------------------------------------------------------------------------------------------

    def _first_rows(self, state: SamplerState) -> Drafted:
        """The rows of the start; the output before the first call is that of a network that knows nothing."""
        batch, length = state.tokens_BL.shape
        rows = jax.tree.map(lambda a: a[:, None] if a.ndim else jnp.broadcast_to(a, (batch,)), state)
        shape = (batch, self._cost, length, self.process.output.columns)
        return Drafted(rows, jnp.zeros(batch, jnp.int32), jnp.zeros(shape, jnp.float32))

    def _call(self, params, canvas, drafted: Drafted, steps) -> tuple[Drafted, SamplerState, Bool[Array, "B"]]:
        """One network call: (what it leaves, the state of all rows, the rows that go on)."""
        of_rows = {name: array[:, None] for name, array in canvas.items() if name != "seed"}

        def each(function):
            """`function(canvas, ...)` for every row; a row's canvas has one row."""
            return functools.partial(jax.vmap(lambda row, *of_row: function({**row, "seed": canvas["seed"]}, *of_row)), of_rows)

        def draft(before, _):
            rows, step_B = before
            after, asked = each(functools.partial(self._row_step, params))(drafted.output_BnLV, rows, jnp.minimum(step_B + 1, steps))
            return (after, step_B + 1), asked

        def check(before, read):
            return each(functools.partial(self._checked, params, steps))(before, read)

        _, asked = jax.lax.scan(draft, drafted[:2], None, length=self.streams)
        output_DBnLV = self._outputs(params, canvas, *asked)
        first_DB = jnp.broadcast_to(jnp.arange(self.streams)[:, None] == 0, (self.streams, len(drafted.step_B)))
        goes_B = jnp.ones(len(drafted.step_B), bool)
        (*after, _), taken_DB = jax.lax.scan(check, (*drafted, goes_B), (output_DBnLV, *asked, first_DB))
        after = Drafted(*after)
        before, needed_B = drafted.rows, taken_DB[0].astype(jnp.int32)
        rows = after.rows._replace(
            calls=before.calls + self._cost,
            counts=before.counts.plus(self._of_call(canvas["tokens_BL"].shape[1]), needed_B[:, None]),
            accepted_B=before.accepted_B + (taken_DB.sum(axis=0) - needed_B)[:, None],
        )
        state = jax.tree.map(lambda a: a[:, 0] if a.ndim > 1 else jnp.max(a), rows)
        goes_on_B = each(functools.partial(self._goes_on, steps))(rows, after.step_B)
        return after._replace(rows=rows), state, goes_on_B

    def _row_step(self, params, canvas, output_nLV, state: SamplerState, step) -> tuple[SamplerState, tuple[Array, Array]]:
        """Step number `step` of one row under a known output: (the state after it, what the network was asked)."""
        denoiser = _Known(output_nLV)
        process_params = params.get("process") if isinstance(params, dict) else None
        after = self._one_step({"process": process_params, _OUTPUT: denoiser}, canvas, state, step)
        return after, denoiser.asked

    def _checked(self, params, steps, canvas, before, read):
        """One more step of a row, if the output is the one that it asks for, and it goes on.

        before: (state, number of steps, last output, whether all outputs so far were right).  read: (output, what it is the answer to,
        whether that is what the row asks for in any case).
        """
        (state, step, last_nLV, goes), (output_nLV, z_nL, t_nL, first) = before, read
        after, asked = self._row_step(params, canvas, output_nLV, state, step + 1)
        same = jnp.all(asked[0] == z_nL) & jnp.all(asked[1] == t_nL)
        goes &= (same | first) & self._goes_on(steps, canvas, state, step)
        state, last_nLV = jax.tree.map(functools.partial(jnp.where, goes), (after, output_nLV), (state, last_nLV))
        return (state, step + goes, last_nLV, goes), goes

    def _goes_on(self, steps, canvas, state: SamplerState, step) -> Bool[Array, ""]:
        """Whether a row has a step to take."""
        del canvas
        goes_on = step < steps
        if state.plan is not None:
            goes_on &= step < jnp.max(state.plan.call_BL)
        return goes_on & self._open(state)[0] if self.rule is not None or self.stepper.ends else goes_on

    def _outputs(self, params, canvas, z_DBnL, t_DBnL) -> Float[Array, "D B n L V"]:
        """The network's outputs for all drafts of all rows, by one call."""
        drafts, batch, streams, length = z_DBnL.shape
        z_nDBL, t_nDBL = (jnp.moveaxis(array, 2, 0) for array in (z_DBnL, t_DBnL))
        of_canvas = (jnp.broadcast_to(canvas[name], z_nDBL.shape) for name in ("segments_BL", "positions_BL"))
        of_rows = (array.reshape(-1, length) for array in of_canvas)
        denoiser = self.bind(params, *of_rows, attention=self.process.attention)
        output_RLV = denoiser.logits(denoiser.hidden(z_nDBL.reshape(-1, length), t_nDBL.reshape(-1, length)))
        return jnp.moveaxis(output_RLV.astype(jnp.float32).reshape(streams, drafts, batch, length, -1), 0, 2)

    def _bind_rows(self, params, canvas, times: int = 1):
        known = params.get(_OUTPUT) if isinstance(params, dict) else None
        return super()._bind_rows(params, canvas, times) if known is None else known


class _Known:
    """A denoiser of one row whose output is known; `asked` are the inputs (z, t) of its call."""

    def __init__(self, output_nLV: Array):
        self._output_nLV, self.asked = output_nLV, None

    def hidden(self, z_nL, t_nL) -> Any:
        assert self.asked is None, "a step of several calls"
        self.asked = z_nL, t_nL
        return self._output_nLV

    def logits(self, output_nLV):
        return output_nLV
