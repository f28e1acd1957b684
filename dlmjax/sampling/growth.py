"""The sampler of canvases that grow, `--grow "daedal(...)"`; what makes them grow is in `daedal`.

A row is read in the smallest bucket that holds it, of `initial`, twice, four times that many positions and so on, so there is one
compilation for each bucket; the rest of a bucket is padding, to which no position attends. A text does not depend on the
other rows: neither its decisions nor its bucket do. Tokens are moved on the host, between calls.

Shapes: B rows, L positions of the longest canvas, S positions of a bucket, V vocabulary.
"""

import dataclasses
from collections.abc import Iterator

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from dlmjax.diffusion.process import bind_process, draw_tokens, exclude, split_rows
from dlmjax.errors import InputError
from dlmjax.models.layout import SINGLE, Layout
from dlmjax.parallel.arrays import device_get, device_put, replicated_like
from dlmjax.progress import Progress
from dlmjax.sampling.canvas import Canvas
from dlmjax.sampling.daedal import Daedal, Look, Row, make_growth, next_of
from dlmjax.sampling.reveal import probability_of
from dlmjax.sampling.sampler import Sampler
from dlmjax.sampling.samples import Counts, Samples, State, unigram_entropy
from dlmjax.sampling.settings import SampleSettings
from dlmjax.sampling.step_denoiser import StepDenoiser
from dlmjax.seeds import check_seed


def check_growth(settings: SampleSettings) -> Daedal:
    """The growth of the settings. Raises InputError: it conflicts with another one of them."""
    growth = make_growth(str(settings.grow))
    plain = SampleSettings()
    others = ("rule", "method", "grid", "sweep", "guidance", "cache", "regex", "stop", "eos", "guide", "draft")
    conflicts = [name for name in others if getattr(settings, name, None) != getattr(plain, name, None)]
    if conflicts:
        raise InputError(f"grow {settings.grow} decides itself what is revealed and conflicts with {', '.join(conflicts)}; leave it out")
    if not settings.end_ids:
        raise InputError(f"grow {settings.grow} requires the id of the end of document, end_ids, of which none is given")
    return growth


class GrowingSampler(Sampler):
    """Fills prompts with canvases that grow; see the module. The length of the canvas is the most that prompt and text may have.

    `bind` as for `Sampler`, of a network with full attention and masks.
    """

    def __init__(self, process, bind, settings: SampleSettings, *, self_condition: bool = False, layout: Layout = SINGLE):
        self.growth = check_growth(settings)
        if process.attention.sequential or process.output.predicts != "logits" or self_condition:
            raise InputError(
                f"grow {settings.grow} requires a network that reads the whole canvas, predicts logits and has no self-conditioning; "
                f"process {process.name} provides no such one, leave grow out"
            )
        super().__init__(process, bind, dataclasses.replace(settings, rule="confidence", grow=None), layout=layout)
        self.settings = settings

    # --- public methods -------------------------------------------------------------------------------------------------------

    def sample(self, params, canvas: Canvas, *, seed: int = 0, progress: bool = False) -> Samples:
        """See `Sampler.sample`."""
        with Progress(canvas.batch, "denoising", " texts", show=None if progress else False) as bar:
            for last in self.states(params, canvas, seed=seed):
                bar.reach(int((~last.masked_BL.any(axis=1)).sum()))
        return self.finish(last, canvas, seed)

    def finish(self, last: State, canvas: Canvas, seed: int) -> Samples:
        """See `Sampler.finish`; the entropy is of the positions of each row's own canvas."""
        own_BL = np.arange(canvas.length) < last.canvas_B[:, None]
        samples = super().finish(last, canvas, seed)
        entropy_B = unigram_entropy(last.tokens_BL, own_BL & ~canvas.condition_mask_BL)
        return dataclasses.replace(samples, canvas_B=last.canvas_B, entropy_B=entropy_B)

    def states(self, params, canvas: Canvas, *, seed: int = 0) -> Iterator[State]:
        """See `Sampler.states`. Positions after the canvas of a row are masked until its text is whole, and then hold the end."""
        self._check(canvas)
        check_seed(seed, "seed")
        rows = self._rows(canvas)
        step, counts = 0, Counts().for_rows(canvas.batch)
        yield self._state(canvas, rows, step, counts)
        while open_rows := [b for b, row in enumerate(rows) if (row.filled < 0).any()]:
            step += 1
            sizes = {b: self._bucket(rows[b], canvas.length) for b in open_rows}
            for size in sorted(set(sizes.values())):
                here = [b for b in open_rows if sizes[b] == size]
                look = self._call(params, canvas, rows, size, seed, step)
                for b in here:
                    row, prompt = rows[b], len(rows[b].prompt_P)
                    own = Look(*(field[b, prompt : prompt + len(row.filled)] for field in look))
                    most = min(self.growth.longest, canvas.length - prompt)
                    next_of(self.growth, row, own, most=most, end_id=self.settings.end_ids[0], step=step)
                counts = counts.plus(Counts.of_call(size), np.isin(np.arange(canvas.batch), here))
            yield self._state(canvas, rows, step, counts)

    # --- one call -------------------------------------------------------------------------------------------------------------

    def _check(self, canvas: Canvas) -> None:
        super()._check(canvas)
        if (np.diff(canvas.condition_mask_BL.astype(np.int8), axis=1) > 0).any() or (canvas.start_BL % 1).any():
            raise InputError(f"grow {self.settings.grow} continues a prompt: it takes no suffix, template or edited text")

    def _rows(self, canvas: Canvas) -> list[Row]:
        rows = []
        for tokens_L, condition_L in zip(canvas.tokens_BL, canvas.condition_mask_BL, strict=True):
            prompt = int(condition_L.sum())
            count = min(self.growth.initial, self.growth.longest, canvas.length - prompt)
            rows.append(Row(tokens_L[:prompt], np.full(count, -1, np.int32), np.zeros(count), np.full(count, -1)))
        return rows

    def _bucket(self, row: Row, longest: int) -> int:
        size, needed = self.growth.initial, len(row.prompt_P) + len(row.filled)
        while size < needed:
            size *= 2
        return min(size, longest)

    def _call(self, params, canvas: Canvas, rows: list[Row], size: int, seed: int, step: int) -> Look:
        """One call on a bucket. It holds all rows, so that its shape is one; those that are in other buckets are cut and ignored."""
        batch = self.rows.batch(canvas.batch)
        tokens_BS, segments_BS = (np.zeros((batch, size), np.int32) for _ in range(2))
        masked_BS, share_B1 = np.zeros((batch, size), bool), np.zeros((batch, 1), np.float32)
        for b, row in enumerate(rows):
            text = np.concatenate([row.prompt_P, row.filled])[:size]
            masked_BS[b, : len(text)], segments_BS[b, : len(text)] = text < 0, 1
            tokens_BS[b, : len(text)] = np.where(text < 0, self.mask_id, text)
            share_B1[b] = (row.filled < 0).mean()
        sharding = replicated_like(params)
        arrays = {"tokens": tokens_BS, "masked": masked_BS, "segments_BL": segments_BS, "share": share_B1}
        arrays |= {"positions_BL": np.broadcast_to(np.arange(size, dtype=np.int32), tokens_BS.shape)}
        arrays |= {"rows_B": np.arange(batch, dtype=np.int32), "seed": np.uint32(seed)}
        arrays = self.rows.put(arrays, batch, params)
        found = self._jitted(self._look, sharding)(params, arrays, device_put(np.int32(step), sharding))
        return Look(*(device_get(array) for array in found))

    def _look(self, params, arrays: dict[str, Array], step) -> Look:
        process, z_BS, masked_BS = bind_process(self.process, params), arrays["tokens"], arrays["masked"]
        keys_B = self._keys(arrays, step)
        denoise = StepDenoiser(process, self._bind_rows(params, arrays), self.settings, self._suppressed_ids)
        start_BS = masked_BS.astype(jnp.float32)
        # A canvas that grows has no number of steps; its time is the share that is masked.
        t_BS = process.time_domain.revealed(masked_BS, start_BS * arrays["share"], start_BS)
        logits_BSV = exclude(process.output.log_posterior(denoise(z_BS, t_BS), z_BS, t_BS), self._suppressed_ids)
        drawn_BS: Int[Array, "B S"] = draw_tokens(split_rows(keys_B)[0], logits_BSV)
        log_p_BSV: Float[Array, "B S V"] = denoise.log_posterior_BLV
        end = self.settings.end_ids[0]
        best_BS = jnp.argmax(log_p_BSV, axis=-1)
        p_drawn_BS = probability_of(log_p_BSV, drawn_BS)
        return Look(drawn_BS, p_drawn_BS, jnp.exp(jnp.max(log_p_BSV, axis=-1)), jnp.exp(log_p_BSV[..., end]), best_BS == end)

    def _state(self, canvas: Canvas, rows: list[Row], step: int, counts: Counts) -> State:
        tokens_BL = np.full(canvas.tokens_BL.shape, self.settings.end_ids[0], np.int32)
        masked_BL, confidence_BL = np.zeros(tokens_BL.shape, bool), np.ones(tokens_BL.shape, np.float32)
        fixed_BL = np.zeros(tokens_BL.shape, np.int32)
        for b, row in enumerate(rows):
            prompt, end = len(row.prompt_P), len(row.prompt_P) + len(row.filled)
            whole = not (row.filled < 0).any()
            tokens_BL[b, :prompt], tokens_BL[b, prompt:end] = row.prompt_P, np.where(row.filled < 0, self.mask_id, row.filled)
            masked_BL[b, prompt:end], masked_BL[b, end:] = row.filled < 0, not whole
            confidence_BL[b, prompt:end], fixed_BL[b, prompt:end] = row.confidence, row.fixed
            fixed_BL[b, end:] = row.fixed.max() if whole else -1
        canvas_B = np.asarray([len(row.prompt_P) + len(row.filled) for row in rows])
        share = max(float((row.filled < 0).mean()) for row in rows)
        return State(
            step=step,
            steps=step,
            time=share,
            tokens_BL=tokens_BL,
            masked_BL=masked_BL,
            confidence_BL=confidence_BL,
            fixed_BL=fixed_BL,
            calls=int(counts.calls_B.max()),
            counts=counts,
            exit_nats_B=np.zeros(len(rows), np.float32),
            canvas_B=canvas_B,
        )
