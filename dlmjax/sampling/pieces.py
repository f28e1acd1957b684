"""The loop over the pieces of a canvas, from left to right: what samplers of blocks, windows and cached blocks share.

Shapes: B rows, L positions of the canvas, S positions of a piece.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np

from dlmjax.errors import InputError
from dlmjax.progress import Progress
from dlmjax.sampling.canvas import Canvas
from dlmjax.sampling.sampler import Sampler
from dlmjax.sampling.samples import Counts, Samples, State, unigram_entropy
from dlmjax.sampling.settings import SampleSettings
from dlmjax.seeds import check_seed


class CanvasState:
    """The partly filled canvas, on the host."""

    def __init__(self, canvas: Canvas, length: int, eos_id: int | None):
        pad = ((0, 0), (0, length - canvas.length))
        self.tokens_BL = np.pad(canvas.tokens_BL, pad)
        self.condition_mask_BL = np.pad(canvas.condition_mask_BL, pad)
        self.masked_BL = ~self.condition_mask_BL
        self.confidence_BL = self.condition_mask_BL.astype(np.float32)
        self.fixed_BL = -self.masked_BL.astype(np.int32)
        self.valid_BL = np.pad(canvas.segments_BL > 0, pad)
        self.ended_B, self._eos_id = np.zeros(canvas.batch, bool), eos_id

    def piece(self, part: slice, new: slice) -> Canvas:
        """The canvas of the piece at `part`: the positions `new` are masked, the others condition; rows that have ended have no masks."""
        masked_BL = np.zeros_like(self.condition_mask_BL)
        masked_BL[:, new] = ~self.condition_mask_BL[:, new] & ~self.ended_B[:, None]
        masked_BS = masked_BL[:, part]
        before_B = (~self.condition_mask_BL)[:, : new.start].sum(axis=1)
        return Canvas(self.tokens_BL[:, part].astype(np.int32), ~masked_BS, masked_BS.astype(np.float32), before_B=before_B)

    def write(self, state: State, part: slice, canvas: Canvas, steps: int) -> None:
        """Writes a state of a piece; `steps` is the number of steps before the piece."""
        generated_BS = ~canvas.condition_mask_BL
        fixed_BS = np.where(state.fixed_BL > 0, state.fixed_BL + steps, state.fixed_BL)
        for row_BL, piece_BS in (
            (self.tokens_BL, state.tokens_BL),
            (self.masked_BL, state.masked_BL),
            (self.confidence_BL, state.confidence_BL),
            (self.fixed_BL, fixed_BS),
        ):
            row_BL[:, part] = np.where(generated_BS, piece_BS, row_BL[:, part])

    def end_rows(self, generated_BL: np.ndarray, step: int) -> None:
        """Fills the rows in which an end of document has been generated with that token."""
        if self._eos_id is None:
            return
        after_BL = np.cumsum(generated_BL & (self.tokens_BL == self._eos_id), axis=1) > 0
        self.ended_B |= after_BL.any(axis=1)
        rest_BL = after_BL & ~self.condition_mask_BL
        new_BL = rest_BL & (self.masked_BL | (self.tokens_BL != self._eos_id))
        self.tokens_BL[rest_BL] = self._eos_id
        self.masked_BL[rest_BL] = False
        self.confidence_BL[new_BL], self.fixed_BL[new_BL] = 1.0, step

    def generated_BL(self, length: int) -> np.ndarray:
        """Generated positions of the first `length`, up to a row's end of document."""
        if self._eos_id is None:
            return ~self.condition_mask_BL[:, :length]
        ends_BL = ~self.condition_mask_BL & (self.tokens_BL == self._eos_id)
        return (~self.condition_mask_BL & (np.cumsum(ends_BL, axis=1) - ends_BL == 0))[:, :length]


class PieceSampler:
    """Base of the samplers of pieces.

    inner: sampler of one piece.  size: new tokens of a piece.  eos_id: token that ends a row; None = rows end with the canvas.
    """

    inner: Sampler
    size: int
    eos_id: int | None

    @property
    def name(self) -> str:
        """Name of the process."""
        return self.process.name

    @property
    def settings(self) -> SampleSettings:
        """Settings of the inner sampler, with the process's grid in place of "auto"."""
        return self.inner.settings

    @property
    def _steps_each(self) -> int:
        """Largest number of steps of a piece, for the number of all steps in `State.steps`."""
        if self.inner.causal:
            return 1
        rule = self.inner.rule
        return self.settings.steps if rule is None else rule.steps_of(self.size, self.settings.steps)

    def sample(self, params, canvas: Canvas, *, seed: int = 0, progress: bool = False) -> Samples:
        """Samples all pieces and returns the finished rows.  Raises InputError where the process does not support the canvas."""
        *_, last = self._run(params, canvas, seed, progress, watched=False)
        return self.finish(last, canvas, seed)

    def states(self, params, canvas: Canvas, *, seed: int = 0) -> Iterator[State]:
        """Yields the whole canvas before the first step and after each one."""
        return self._run(params, canvas, seed, progress=False, watched=True)

    def finish(self, last: State, canvas: Canvas, seed: int) -> Samples:
        """The samples of a run whose last state is `last`; its entropy is of the generated tokens up to the end of document."""
        canvas_state = CanvasState(canvas, canvas.length, self.eos_id)
        canvas_state.tokens_BL = last.tokens_BL
        return Samples(
            tokens_BL=last.tokens_BL,
            condition_mask_BL=canvas.condition_mask_BL,
            confidence_BL=last.confidence_BL,
            fixed_BL=last.fixed_BL,
            entropy_B=unigram_entropy(last.tokens_BL, canvas_state.generated_BL(canvas.length)),
            steps=last.step,
            evaluations=last.calls,
            counts=last.counts,
            exit_nats_B=last.exit_nats_B,
            seed=seed,
            process=self.name,
            settings=self.settings,
            drift_A3=last.drift_A3,
        )

    def _run(self, params, canvas: Canvas, seed: int, progress: bool, watched: bool) -> Iterator[State]:
        if canvas.spans_L is not None:
            raise InputError(
                "spans require a sampler of the whole canvas; leave out blocks, a stride and a cache policy, or write [MASK*12]"
            )
        self._check(canvas)
        check_seed(seed, "seed")
        canvas_state = CanvasState(self.inner.rows.padded(canvas), self._length(canvas), self.eos_id)
        canvas_state.ended_B[canvas.batch :] = True  # rows that pad the batch to the mesh
        starts, length = self._starts(canvas_state), canvas_state.tokens_BL.shape[1]
        caches, spent = self._first_caches(params, canvas_state, starts)
        step, total, counts, calls = 0, len(starts) * self._steps_each, spent.for_rows(len(canvas_state.ended_B)), spent.calls_B
        nats_B, drift_A3 = np.zeros(len(canvas_state.ended_B)), 0.0
        with Progress(len(starts), "denoising", " pieces", show=None if progress else False) as bar:
            yield self._state(canvas_state, canvas, 0, total, 1.0, calls)._replace(counts=counts.of_rows(canvas.batch))
            for index, start in enumerate(starts):
                for inner, part, new in self._parts(start, length):
                    piece = canvas_state.piece(part, new)
                    if not piece.masked_B.any():
                        continue
                    inner_params = self._piece_params(params, caches, canvas_state, start)
                    states = inner.states(inner_params, piece, seed=self._piece_seed(seed, start, inner, length))
                    *before, last = states if watched else [*states][-1:]
                    for state in before[1:]:
                        canvas_state.write(state, part, piece, step)
                        yield self._state(canvas_state, canvas, step + state.step, total, state.time, calls + state.calls)
                    canvas_state.write(last, part, piece, step)
                    nats_B = nats_B + last.exit_nats_B
                    step = step + last.step
                    if self._has_calls(inner):
                        calls, counts = calls + last.calls, counts.plus(last.counts, piece.masked_B > 0)
                    drift_A3 = None if last.drift_A3 is None else drift_A3 + last.drift_A3
                    generated_BL = np.zeros_like(canvas_state.condition_mask_BL)
                    generated_BL[:, part] = ~piece.condition_mask_BL
                    canvas_state.end_rows(generated_BL, step)
                    yield self._state(canvas_state, canvas, step, total, last.time, calls)._replace(
                        counts=counts.of_rows(canvas.batch), exit_nats_B=nats_B[: canvas.batch], drift_A3=drift_A3
                    )
                bar.reach(index + 1)
                if canvas_state.ended_B.all() or index + 1 == len(starts):
                    return
                caches, spent = self._advanced_caches(params, caches, canvas_state, start)
                calls, counts = calls + spent.calls_B, counts.plus(spent, ~canvas_state.ended_B)

    def _state(self, canvas_state: CanvasState, canvas: Canvas, step: int, total: int, time: float, calls: int) -> State:
        arrays = (
            a[: canvas.batch, : canvas.length].copy()
            for a in (canvas_state.tokens_BL, canvas_state.masked_BL, canvas_state.confidence_BL, canvas_state.fixed_BL)
        )
        return State(step, max(step, total), time, *arrays, calls)

    def _check(self, canvas: Canvas) -> None:
        if np.diff(canvas.condition_mask_BL.astype(np.int8), axis=1).max(initial=0) > 0:
            raise InputError(
                f"process {self.name} is sampled from left to right: it continues a prompt and does not fill in before a suffix"
            )
        if (canvas.start_BL % 1).any():
            raise InputError(f"process {self.name} is sampled from left to right: it continues a prompt and does not edit text")
        if canvas.tokens_BL.max() >= self.process.vocab or canvas.tokens_BL.min() < 0:
            raise InputError(
                f"the canvas holds token ids outside the vocabulary of {self.process.vocab}; encode the text with the tokenizer of the run"
            )

    def _length(self, canvas: Canvas) -> int:
        """Length of the canvas, rounded up to whole pieces."""
        ...

    def _starts(self, canvas_state: CanvasState) -> list[int]:
        """First positions of the pieces that have masked positions, in rising order."""
        ...

    def _span(self, start: int, length: int) -> tuple[slice, slice]:
        """(positions of the piece at `start` of a canvas of `length`, those of them that it fills)."""
        ...

    def _parts(self, start: int, length: int) -> list[tuple[Sampler, slice, slice]]:
        """What is sampled of the piece at `start`, in this order: (sampler, positions that it reads, those of them that it fills)."""
        return [(self.inner, *self._span(start, length))]

    def _piece_seed(self, seed: int, start: int, inner: Sampler, length: int) -> int:
        """Seed of a part of the piece at `start` of a canvas of `length`."""
        return piece_seed(seed, start, first=inner is not self.inner)

    def _has_calls(self, inner: Sampler) -> bool:
        """Whether the steps of a part take the network calls that its sampler counts."""
        del inner
        return True

    def _first_caches(self, params, canvas_state: CanvasState, starts: list[int]) -> tuple[Any, Counts]:
        """(caches before the first piece, what filling them took for each row)."""
        return None, Counts()

    def _piece_params(self, params, caches, canvas_state: CanvasState, start: int) -> Any:
        """The params of `inner` for this piece."""
        return params

    def _advanced_caches(self, params, caches, canvas_state: CanvasState, start: int) -> tuple[Any, Counts]:
        """(caches after this piece, what filling them took for each row)."""
        return caches, Counts()


def piece_seed(seed: int, start: int, first: bool = False) -> int:
    """Seed of the piece at `start`, or of its first token; they have independent random streams."""
    return int(np.random.SeedSequence((seed, start, 1) if first else (seed, start)).generate_state(1)[0])
