"""From a denoiser and a batch to the loss that is trained and the terms that are reported.

    t, 1/pdf  <- times        (rows of the global batch)
    z         <- process      corrupts x at t; padding is unchanged
    nats      <- denoiser's head on the rows that carry loss, process.loss
    total     =  sum of nats x 1/pdf x weighting, + boundary terms

Reported separately, so that a reweighted loss is not taken for a likelihood: `nats` (the bound, unweighted), `loss` (what is trained),
the realised noise rate, and the bound's integrand by time. All terms are sums over the batch's tokens, which add up over microbatches
and hosts; one division by `tokens` at the end gives means. (The mean over masked tokens would not be a bound.)

Three masks of a batch, [B, L]: `valid_BL`, positions that are not padding; among these `loss_mask_BL`, positions that carry loss, and
`condition_mask_BL`, the others, which the network reads without noise (a prompt). Where the prompt comes from the data
(`batch["scored"]`), the integral is the bound of -log p(scored tokens | the others).

Shapes: B batch, L length, D width, V vocabulary. Units: nats.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jax.tree_util import Partial
from jaxtyping import Array, Float, Int, Key

from dlmjax.diffusion.process import Process, bind_process, cross_entropy, row_keys, split_rows, uniform_rows
from dlmjax.diffusion.progressive import Progressive, log_confidence, most_confident
from dlmjax.diffusion.shapes import Mask, PerToken, RowKeys, Tokens
from dlmjax.diffusion.times import TIME_BINS, PerRow, Times
from dlmjax.diffusion.weightings.base import NAMES, Weighting
from dlmjax.errors import InputError

LEARNED = "learned/"
# What the trained loss is a mean of -> the name that it has in the log; "token" has none.
NORMALISERS = {"token": "", "answer": "answer_mean", "text": "per_text"}

LossTerms = dict[str, Array]


@runtime_checkable
class Denoiser(Protocol):
    """A network with its weights and one batch's segments, positions and mask already bound.

    reads_hidden: whether its hint is the hidden states of an earlier pass, and not an x0 prediction (see `hint_of`).
    """

    reads_hidden: bool = False

    def hidden(self, z_BL: Array, t_BL: Array, hint_BLI: Array | None = None) -> Array:
        """States [B, L, D] for tokens (or states) z at times t; `hint_BLI` is an earlier x0 prediction, for self-conditioning."""
        ...

    def logits(self, hidden: Array) -> Array:
        """Float32 logits [..., V] of states [..., D]."""
        ...

    def expect(self, hidden_BLD: Array, table_VI: Array | None = None) -> Array:
        """softmax(logits) @ table, [B, L, I]; by default with the embedding table of the network."""
        ...

    def row_losses(
        self, hidden_BLD: Array, loss_mask_BL: Array, loss_fn: Callable[..., Any], args: tuple[Array, ...], weight_BL: Array
    ) -> tuple[Array, Array]:
        """(sum of weight x trained over `loss_mask_BL`, nats [B, L] without gradient and 0 elsewhere).

        loss_fn(logits_NV, *args_N) gives nats [N], or (trained [N], nats [N]). Differentiable in hidden states, `args` and the arrays
        bound by `Partial(function, process)`.
        """
        ...

    def without_gradient(self) -> "Denoiser":
        """The same with its weights as constants, so that a pass whose output has no gradient computes none; itself where it has none."""
        return self

    def with_tokens_per_time(self, tokens: int) -> "Denoiser":
        """The same, told that each `tokens` neighbouring positions have one time or the lowest of their row, and may then compute what it
        makes of the time once for all of them; itself where it computes that for each position."""
        del tokens
        return self


@dataclasses.dataclass(frozen=True)
class Objective:
    """process x times x weighting.

    times: where these are not `corrected`, what is trained has no weight 1/density; what is reported has it.
    weighting: None takes the process's own.
    boundary: whether the prior and reconstruction terms are trained, where the process has them; the reconstruction costs a second pass of
      the network, at t = 0. None = where the weighting is the bound or ends as the bound. A prior term alone, which costs nothing, is
      reported in any case; where there is a reconstruction and it is left out, `is_bound` is False.
    self_condition: share of rows that are denoised twice, the second time with the first x0 prediction as a hint (Chen et al.
      2208.04202), or with the first hidden states (`hint_of`); costs one more forward pass of all rows. Requires a denoiser that takes
      hints.
    prompt: share of rows that are conditioned on their first tokens (a uniform number of them), which carry no loss; the other rows train
      the unconditional denoiser of classifier-free guidance (Ho & Salimans 2207.12598). The nats are those of the rest given the prompt.
    progressive: masks by the network's own confidence in place of independent ones; costs one more forward pass of all rows, and the loss
      is not a bound.
    normaliser: what the trained loss is a mean of, one of NORMALISERS: "token", over scored tokens (long answers count more); "answer",
      over texts, of the mean of each one's scored tokens (LLaDA 2502.09992); "text", over texts, of the sum of each. A text is a segment
      of a row that has scored tokens. All three are bounds, each of its own average.
    tail_weight: what the trained loss of the tokens of `batch["tail"]` is multiplied by; only 1 trains a bound.
    """

    process: Process
    times: Times = PerRow()
    weighting: Weighting | None = None
    boundary: bool | None = None
    self_condition: float = 0.0
    prompt: float = 0.0
    progressive: Progressive | None = None
    normaliser: str = "token"
    tail_weight: float = 1.0

    def __post_init__(self):
        if self.weighting is None:
            object.__setattr__(self, "weighting", self.process.capabilities.weighting)
        if self.boundary is None:
            object.__setattr__(self, "boundary", self.weighting.is_bound or self.weighting.ends_as_bound)
        if not 0 <= self.self_condition <= 1 or not 0 <= self.prompt <= 1:
            raise InputError(f"self_condition ({self.self_condition}) and prompt ({self.prompt}) are shares of rows, in [0, 1]")
        if self.normaliser not in NORMALISERS or not 0 <= self.tail_weight < float("inf"):
            raise InputError(
                f"normaliser is {self.normaliser!r} and requires one of {', '.join(NORMALISERS)}; tail_weight is {self.tail_weight} and "
                "requires a finite number of at least 0"
            )
        self.process.time_domain.adapt(self.times)  # refuses times that the process does not support
        if self.progressive:
            self.progressive.require_process(self.process)
        name, supported = self.weighting.supported_as, self.process.capabilities.weightings
        if name in NAMES and name not in supported:
            shown = name if name == self.weighting.name else f"{self.weighting.name}(start={name})"
            raise InputError(f"weighting {shown} conflicts with process {self.process.name}; it supports {', '.join(supported)}")

    def bind(self, weights: Any) -> "Objective":
        """This objective with the parameters of its process from the weights of a run; differentiate the loss through it."""
        return dataclasses.replace(self, process=bind_process(self.process, weights))

    def __call__(
        self,
        denoiser: Denoiser,
        batch: Mapping[str, Any],
        key: Key[Array, ""],
        global_batch: int,
        progress: Float[Array, ""] | None = None,
    ) -> tuple[Float[Array, ""], LossTerms]:
        """The loss of a batch (or of one of its microbatches).

        Args:
          denoiser: bound to this batch's segments and positions and to `process.attention`.
          batch: tokens, segments [B, L] and row [B] int32; segments == 0 is padding. Optional, bool [B, L]: "scored", False for tokens that
            condition the others; "tail", True for scored tokens behind an answer (end of text, filling).
          key: the key of the step; all randomness is drawn from it and the row numbers.
          global_batch: rows of the whole step.
          progress: share of the run's steps that are done; required by a weighting that changes during a run.
        Returns:
          total: the sum to be trained, in nats; divide by the summed `terms["tokens"]`.
          terms: sums without gradient: tokens, corrupted (int32); nats, loss, prior, reconstruction (float32); nats_by_level and
            tokens_by_level [10], sums in bins of t; text_nats under weighting joint; learned/NAME, tokens times each of the process's
            `scalars`; with "scored" also texts, with "tail" also tail_tokens and tail_nats.
            `nats` is the bound where `is_bound`, its diffusion part where the reconstruction is left out.
        """
        process, x_BL, valid_BL = self.process, batch["tokens"], batch["segments"] > 0
        bound_share = self.weighting.bound_share(progress)
        time_key, noise_key, boundary_key, prompt_key, hint_key = jax.random.split(key, 5)
        t_BL, inverse_pdf_BL = self.times.draw(time_key, batch["row"], global_batch, x_BL.shape[1])
        of_data_BL = ~batch["scored"] if "scored" in batch else False
        condition_mask_BL = valid_BL & (self._prompt(prompt_key, batch["row"], x_BL.shape[1]) | of_data_BL)
        loss_mask_BL = valid_BL & ~condition_mask_BL
        scale_BL = self._scale(batch, loss_mask_BL)
        t_BL = process.time_domain.quantize(t_BL, loss_mask_BL)
        # A prompt is text without noise. Padding keeps the time of its row, which nothing reads.
        t_BL = jnp.where(condition_mask_BL, 0.0, t_BL)
        denoiser = denoiser.with_tokens_per_time(self.times.tokens_per_time(x_BL.shape[1]))
        text = _Text(process, denoiser, x_BL, loss_mask_BL, row_keys(hint_key, batch["row"]))
        noise_keys_B = row_keys(noise_key, batch["row"])
        learns_noise = process.capabilities.reinforce and process.params is not None
        draws = [
            draw
            for keys_B in (split_rows(noise_keys_B) if learns_noise else [noise_keys_B])
            for draw in process.noisy_views(keys_B, x_BL, t_BL, valid_BL)
        ]
        if self.progressive:
            phase_keys_B = row_keys(jax.random.fold_in(key, 5), batch["row"])  # the sixth key: those of other runs stay as they are
            draws = [(text.progressive(self.progressive, phase_keys_B, noise_keys_B, t_BL, valid_BL), t_BL)]
        if self.prompt or "scored" in batch:
            draws = [(with_condition(process, z_BL, x_BL, condition_mask_BL), time_BL) for z_BL, time_BL in draws]
        totals, nats, row_sums, text_nats = zip(
            *(self._diffusion(text, z_BL, time_BL, inverse_pdf_BL, scale_BL, bound_share) for z_BL, time_BL in draws), strict=True
        )
        total, nats_BL, z_BL = sum(totals) / len(draws), sum(nats) / len(draws), draws[0][0]
        if learns_noise:
            total = total + _score_function(text, draws, row_sums)
        prior = reconstruction = jnp.zeros((), jnp.float32)
        if self._whole and process.boundary.any:
            ends, prior, reconstruction = text.boundary(row_keys(boundary_key, batch["row"]), valid_BL, scale_BL)
            if self.boundary:
                total = total + (ends if bound_share is None else bound_share * ends)
        terms = {
            "tokens": jnp.sum(loss_mask_BL, dtype=jnp.int32),
            "corrupted": jnp.sum(process.corrupted(x_BL, z_BL) & loss_mask_BL, dtype=jnp.int32),
            "nats": jnp.sum(nats_BL * inverse_pdf_BL) + prior + reconstruction,
            "loss": total,
            "prior": prior,
            "reconstruction": reconstruction,
            "nats_by_level": _by_time(t_BL, nats_BL),
            "tokens_by_level": _by_time(t_BL, loss_mask_BL.astype(jnp.float32)),
        }
        if "scored" in batch or self.normaliser != "token":
            terms["texts"] = jnp.sum(_tokens_of_text(batch["segments"], loss_mask_BL)[0], dtype=jnp.int32)
        terms |= _rows(valid_BL, loss_mask_BL) if "scored" in batch else {}
        if "tail" in batch:
            tail_BL = batch["tail"] & loss_mask_BL
            tail_nats = jnp.sum(jnp.where(tail_BL, nats_BL * inverse_pdf_BL, 0.0))
            terms |= {"tail_tokens": jnp.sum(tail_BL, dtype=jnp.int32), "tail_nats": tail_nats}
        terms |= {"text_nats": sum(text_nats) / len(draws)} if self.weighting.text_weight else {}
        terms |= {LEARNED + name: value * terms["tokens"] for name, value in process.scalars().items()}
        return total, jax.lax.stop_gradient(terms)

    def _prompt(self, key: Key[Array, ""], row_B: Int[Array, "B"], length: int) -> Mask:
        """Positions of a prompt: the first n of a row that has one, n uniform on 1 .. L - 1."""
        if not self.prompt:
            return jnp.zeros((row_B.shape[0], length), bool)
        which_B2 = uniform_rows(row_keys(key, row_B), 2)
        count_B = jnp.where(which_B2[:, 0] < self.prompt, 1 + jnp.floor(which_B2[:, 1] * (length - 1)), 0)
        return jnp.arange(length) < count_B[:, None]

    def _scale(self, batch: Mapping[str, Any], loss_mask_BL: Mask) -> PerToken | None:
        """What the trained loss of each token is multiplied by, besides its weighting; None where that is 1."""
        scale_BL = None
        if self.normaliser == "answer":
            scale_BL = 1 / jnp.maximum(_tokens_of_text(batch["segments"], loss_mask_BL)[1], 1).astype(jnp.float32)
        if "tail" in batch and self.tail_weight != 1:
            tail_BL = jnp.where(batch["tail"], jnp.float32(self.tail_weight), 1.0)
            scale_BL = tail_BL if scale_BL is None else scale_BL * tail_BL
        return scale_BL

    def _diffusion(self, text: "_Text", z_BL, t_BL, inverse_pdf_BL, scale_BL, bound_share):
        """(weighted sum with gradient; without: nats per token, weighted sum per row, the text's own nats) for one draw of z."""
        weighting, weight_BL = self.weighting, inverse_pdf_BL if self.times.corrected else jnp.ones_like(inverse_pdf_BL)
        trained = None if weighting.is_factor else weighting
        if trained is None:
            factor_BL = weighting.factor(self.process, text.x_BL, z_BL, t_BL)
            exact_BL = self.process.exact_mask(z_BL)
            factor_BL = factor_BL if exact_BL is None else jnp.where(exact_BL, weighting.exact_factor, factor_BL)
            weight_BL = weight_BL * (factor_BL if bound_share is None else factor_BL + bound_share * (1 - factor_BL))
        weight_BL = weight_BL if scale_BL is None else weight_BL * scale_BL
        hint_BLI = text.hint(z_BL, t_BL, self.self_condition)
        of_text = text_nats = jnp.zeros((), jnp.float32)
        if weighting.anchor_gamma:
            total, nats_BL = text.anchored_nats(z_BL, t_BL, weight_BL, weighting)
        else:
            hidden_BLD = text.states(z_BL, t_BL, hint_BLI, of_text=weighting.text_weight > 0)
            if weighting.text_weight:
                hidden_BLD, text_BLD = hidden_BLD
                of_text, text_nats = text.text_nats(text_BLD, scale_BL)
            total, nats_BL = text.nats(hidden_BLD, z_BL, t_BL, weight_BL, trained, bound_share)
        row_sums_B = jnp.sum(jax.lax.stop_gradient(nats_BL * weight_BL), axis=1)
        return total + weighting.text_weight * of_text, nats_BL, row_sums_B, text_nats

    @property
    def is_bound(self) -> bool:
        """True where the mean of terms["nats"] is an upper bound on -log p(x)."""
        covered = self.process.time_domain.covered_by(self.times) and self.progressive is None
        return self.process.capabilities.is_bound and covered and self._whole and not self.prompt

    @property
    def _whole(self) -> bool:
        """Whether no boundary term is left out of what is reported."""
        return self.boundary or not self.process.boundary.reconstruction

    @property
    def trains_bound(self) -> bool:
        """True where what is trained is that bound itself."""
        whole = self.boundary or not self.process.boundary.any
        return self.is_bound and self.weighting.is_bound and self.times.corrected and whole and self.tail_weight == 1

    @property
    def divisor(self) -> str:
        """The term whose sum divides the trained loss: "tokens" or "texts"."""
        return "tokens" if self.normaliser == "token" else "texts"

    @property
    def _trained(self) -> str:
        """What is trained, by its name in the log: "loss" alone is a bound in nats per token."""
        normaliser = filter(None, [NORMALISERS[self.normaliser]])
        if self.trains_bound:
            return "_".join(["loss", *normaliser])
        names = [self.weighting.name]
        if self.progressive:
            names = [self.progressive.name, *([] if self.weighting.is_bound else names)]
        names += [] if self.times.corrected else ["uncorrected"]
        names += [] if self.tail_weight == 1 else ["tail_weight"]
        return "_".join(["loss", *names, *normaliser, "not_a_bound"])

    def report(self, terms: Mapping[str, Any]) -> dict[str, float]:
        """Means in nats per token from summed loss terms (on the host). Only a bound is called `nelbo`.

        "nelbo" or "partial_nelbo"; "loss", or "loss_NAME_not_a_bound", with the names of a weighting and of masks that are not those of
        the bound ("loss_NAME_uncorrected_not_a_bound" where the times are not corrected, "loss_NAME_tail_weight_not_a_bound" where the tail
        has a weight of its own, "..._answer_mean" and "..._per_text" where the mean is one over texts); "noise_rate"; "level_0.05" ...
        "level_0.95": the integrand of the bound's diffusion part in that bin of t (bins without tokens are left out); "tail_share" and
        "tail_nats_share": the tail's part of the tokens and of the nats; "unscored_rows": the share of rows in which given tokens alone
        are shown; "tokens_per_text"; "text_nll", under weighting joint, the negative log-likelihood of the text by the clean stream;
        "learned/...": of learned process parameters.
        """
        tokens = max(float(terms["tokens"]), 1.0)
        report = {
            "nelbo" if self.is_bound else "partial_nelbo": float(terms["nats"]) / tokens,
            self._trained: float(terms["loss"]) / max(float(terms[self.divisor]), 1.0),
            "noise_rate": float(terms["corrupted"]) / tokens,
        }
        if "texts" in terms:
            report["tokens_per_text"] = float(terms["tokens"]) / max(float(terms["texts"]), 1.0)
        if "rows" in terms:
            report["unscored_rows"] = float(terms["unscored_rows"]) / max(float(terms["rows"]), 1.0)
        if "tail_tokens" in terms:
            report["tail_share"] = float(terms["tail_tokens"]) / tokens
            report["tail_nats_share"] = float(terms["tail_nats"]) / (float(terms["nats"]) or 1.0)
        for i, (nats, count) in enumerate(zip(terms["nats_by_level"], terms["tokens_by_level"], strict=True)):
            if count > 0:
                report[f"level_{(i + 0.5) / TIME_BINS:.2f}"] = float(nats) / float(count)
        if "text_nats" in terms:
            report["text_nll"] = float(terms["text_nats"]) / tokens
        return report | {name: float(total) / tokens for name, total in terms.items() if name.startswith(LEARNED)}

    def summary(self, report: Mapping[str, float]) -> dict[str, str]:
        """`report` for the terminal, name -> value: the bound, and the trained loss by its name where that is not the bound."""
        if (nats := report.get("nelbo", report.get("partial_nelbo"))) is None:
            return {"loss": "nan"}
        shown = {"bound" if self.is_bound else "loss (not a bound)": f"{nats:.4g} nats/token"}
        plain = self.weighting.is_bound and self.times.corrected and not self.progressive
        if not plain or self.divisor != "tokens" or self.tail_weight != 1:
            name = self._trained.removeprefix("loss_").removesuffix("_not_a_bound")
            shown["trained"] = f"{name} {report[self._trained]:.4g}"
        return shown


def nats_at(
    process: Process,
    denoiser: Denoiser,
    tokens_BL: Tokens,
    segments_BL: Tokens,
    keys_B: RowKeys,
    t_BL: PerToken,
    self_condition: bool = False,
    scored_BL: Mask | None = None,
) -> PerToken:
    """The bound's integrand at times t_BL, in nats per token, under the noise of `keys_B`; 0 on padding. Evaluations integrate it over t.

    scored_BL: False for tokens that condition the others, at t = 0: the integrand is then that of the others given these. None: all are
      scored.
    """
    valid_BL = segments_BL > 0
    loss_mask_BL = valid_BL if scored_BL is None else scored_BL & valid_BL
    condition_mask_BL = valid_BL & ~loss_mask_BL
    t_BL = jnp.where(condition_mask_BL, 0.0, process.time_domain.quantize(t_BL, loss_mask_BL))
    z_BL = process.corrupt(keys_B, tokens_BL, t_BL, valid_BL)
    z_BL = with_condition(process, z_BL, tokens_BL, condition_mask_BL)
    text = _Text(process, denoiser, tokens_BL, loss_mask_BL, keys_B)
    hidden_BLD = text.states(z_BL, t_BL, text.hint(z_BL, t_BL, float(self_condition)))
    return text.nats(hidden_BLD, z_BL, t_BL, jnp.ones_like(t_BL))[1]


def reconstruction_nats(
    process: Process,
    denoiser: Denoiser,
    x_BL: Tokens,
    valid_BL: Mask,
    keys_B: RowKeys,
    scored_BL: Mask | None = None,
    scale_BL: PerToken | None = None,
) -> tuple[Float[Array, ""], PerToken]:
    """-log p(x | z_0) with z_0 drawn from `keys_B`: its sum (with gradient) and per token (without). One pass of the network.

    valid_BL: False on padding.  scored_BL: False for tokens that condition the others, which the network reads as in `nats_at`; None: all
      are scored.  scale_BL: what each token's part of the sum is multiplied by; None: 1.
    """
    loss_mask_BL = valid_BL if scored_BL is None else scored_BL & valid_BL
    clean_BL = jnp.zeros(x_BL.shape, jnp.float32)
    z0_BL = process.corrupt(keys_B, x_BL, clean_BL, valid_BL)
    z0_BL = with_condition(process, z0_BL, x_BL, valid_BL & ~loss_mask_BL)
    hidden_BLD = denoiser.hidden(z0_BL, process.time_embedding_input(clean_BL))
    loss_fn, weight_BL = Partial(_reconstruction, process), loss_mask_BL.astype(jnp.float32)
    weight_BL = weight_BL if scale_BL is None else weight_BL * scale_BL
    return denoiser.row_losses(hidden_BLD, process.loss_mask(z0_BL, clean_BL) & loss_mask_BL, loss_fn, (x_BL, z0_BL), weight_BL)


def hint_of(process: Process, denoiser: Any, hidden_BLD: Array, z_BL: Array, t_BL: PerToken) -> Float[Array, "B L I"]:
    """What a self-conditioned denoiser reads of an earlier pass: its x0 prediction or, where it `reads_hidden`, its hidden states
    (loopholing, 2510.19304).

    The second pass is a function of (z, t) as long as the first was made on the same z and t, so the bound holds. Hints that a sampler
    carries from step to step are of other states: there is no bound for them.
    """
    return hidden_BLD if denoiser.reads_hidden else process.output.x0(denoiser, hidden_BLD, z_BL, t_BL)


def with_condition(process: Process, z_BL, x_BL, condition_mask_BL):
    """The state with clean text at the positions of a condition, whatever noise a schedule or a path of vectors leaves at t = 0.

    The input of a causal network is not changed: it has no noise and is shifted by one position.
    """
    if process.attention.causal:
        return z_BL
    return jnp.where(_over_state(condition_mask_BL, z_BL), process.states.of_tokens(x_BL), z_BL)


def _over_state(mask_BL, z_BL):
    """A mask of positions, with an axis of length 1 for each further axis of the state."""
    return mask_BL.reshape(*mask_BL.shape, *(1,) * (z_BL.ndim - mask_BL.ndim))


@dataclasses.dataclass(frozen=True)
class _Text:
    """A batch with its process and denoiser. keys_B: keys by which the rows with a hint are drawn."""

    process: Process
    denoiser: Denoiser
    x_BL: Any
    loss_mask_BL: Any
    keys_B: Any

    def hint(self, z_BL, t_BL, share: float):
        """The hint of a first pass on the same state in a share of the rows, zeros in the others; None where the share is 0."""
        if not share:
            return None
        process, z_BL, t_BL = jax.lax.stop_gradient((self.process, z_BL, t_BL))
        hidden_BLD = self.denoiser.hidden(z_BL, process.time_embedding_input(t_BL))
        hint_BLI = hint_of(process, self.denoiser, hidden_BLD, z_BL, t_BL)
        chosen_B11 = (uniform_rows(self.keys_B, 1) < share)[:, :, None]
        return jnp.where(chosen_B11, jax.lax.stop_gradient(hint_BLI), 0.0)

    def boundary(self, keys_B: RowKeys, valid_BL, scale_BL) -> tuple[Any, Any, Any]:
        """(prior and reconstruction with gradient, both scaled; prior; reconstruction), sums in nats."""
        prior_BL = jnp.where(self.loss_mask_BL, self.process.prior_nats(self.x_BL), 0.0)
        prior = jnp.sum(prior_BL)
        ends, reconstruction = prior if scale_BL is None else jnp.sum(prior_BL * scale_BL), jnp.zeros((), jnp.float32)
        if self.process.boundary.reconstruction:
            scaled, nats_BL = reconstruction_nats(self.process, self.denoiser, self.x_BL, valid_BL, keys_B, self.loss_mask_BL, scale_BL)
            ends, reconstruction = ends + scaled, scaled if scale_BL is None else jnp.sum(nats_BL)
        return ends, prior, reconstruction

    def progressive(self, rule: Progressive, phase_keys_B, noise_keys_B, t_BL, valid_BL):
        """The state at t whose masks are those of `rule`; positions that condition the others, at t = 0, are clean."""
        process, x_BL = self.process, self.x_BL
        drawn_BL = rule.earlier(t_BL, uniform_rows(phase_keys_B, 1))
        # Only what was drawn is rounded: a time that is rounded twice moves on.
        before_BL = jnp.where(drawn_BL > t_BL, process.time_domain.quantize(drawn_BL, self.loss_mask_BL), t_BL)
        before_BL = jnp.where(self.loss_mask_BL, before_BL, 0.0)
        # Of one key, the masks at t are among those at the earlier time.
        z_BL, at_t_BL = (
            with_condition(process, process.corrupt(noise_keys_B, x_BL, time_BL, valid_BL), x_BL, ~self.loss_mask_BL & valid_BL)
            for time_BL in (before_BL, t_BL)
        )
        masked_BL, left_BL = (process.corrupted(x_BL, state_BL) & self.loss_mask_BL for state_BL in (z_BL, at_t_BL))
        count_B = jnp.sum(masked_BL, axis=1) - jnp.sum(left_BL, axis=1)
        denoiser = self.denoiser.without_gradient()
        hidden_BLD = denoiser.hidden(z_BL, process.time_embedding_input(before_BL))
        score_BL = denoiser.row_losses(hidden_BLD, masked_BL, Partial(log_confidence, process), (), jnp.ones_like(t_BL))[1]
        return jnp.where(most_confident(score_BL, masked_BL, count_B), x_BL, z_BL)

    def states(self, z_BL, t_BL, hint_BLI, of_text: bool = False):
        """Hidden states; of_text: and those of the clean stream, of the same pass."""
        hints = () if hint_BLI is None else (hint_BLI,)
        run = self.denoiser.hidden_and_text if of_text else self.denoiser.hidden
        return run(z_BL, self.process.time_embedding_input(t_BL), *hints)

    def text_nats(self, text_BLD, scale_BL):
        """The negative log-likelihood of the tokens that carry loss, each given all before it: the scaled sum with gradient, the sum."""
        loss_fn = Partial(_token_nats, self.process)
        scale_BL = jnp.ones(self.x_BL.shape) if scale_BL is None else scale_BL
        total, nats_BL = self.denoiser.row_losses(text_BLD, self.loss_mask_BL, loss_fn, (self.x_BL,), scale_BL)
        return total, jnp.sum(nats_BL)

    def nats(self, hidden_BLD, z_BL, t_BL, weight_BL, weighting: Weighting | None = None, bound_share=None):
        """(weighted sum with gradient, nats per token without); `weighting` where what is trained is a function of its own, beside the
        share `bound_share` of the bound."""
        process = self.process
        loss_mask_BL = process.loss_mask(z_BL, t_BL) & self.loss_mask_BL

        def trained_and_nats(process, bound_share, logits, x, z, t, *of_rows):
            nats = process.loss(logits, x, z, t, *of_rows)
            trained = weighting.trained(process, logits, x, z, t, nats)
            return trained if bound_share is None else trained + bound_share * (nats - trained), nats

        if weighting is None:
            loss_fn = Partial(_loss, process)
        else:
            loss_fn = Partial(trained_and_nats, process, jax.lax.stop_gradient(bound_share))
        return self.denoiser.row_losses(hidden_BLD, loss_mask_BL, loss_fn, self._args(z_BL, t_BL), weight_BL)

    def anchored_nats(self, z_BL, t_BL, weight_BL, weighting: Weighting):
        """The same of a denoiser with an anchor network, whose own loss on the anchors is added to what is trained."""
        process, args = self.process, self._args(z_BL, t_BL)
        hidden_BLD, anchor_BLD = self.denoiser.both(z_BL, process.time_embedding_input(t_BL))
        loss_mask_BL = process.loss_mask(z_BL, t_BL) & self.loss_mask_BL
        loss_fn, anchors_BL = Partial(_loss, process), loss_mask_BL & weighting.anchors(self.x_BL, self.loss_mask_BL)
        total, nats_BL = self.denoiser.row_losses(hidden_BLD, loss_mask_BL, loss_fn, args, weight_BL)
        of_anchors, _ = self.denoiser.row_losses(anchor_BLD, anchors_BL, loss_fn, args, weight_BL)
        return total + weighting.anchor_gamma * of_anchors, nats_BL

    def _args(self, z_BL, t_BL) -> tuple:
        """The arguments of the loss after the logits."""
        return self.x_BL, z_BL, t_BL, *self.process.loss_inputs(self.x_BL, z_BL, t_BL)


def _loss(process: Process, *args: Array) -> Array:
    """A function of the process as an argument of its own: its parameters have gradients."""
    return process.loss(*args)


def _reconstruction(process: Process, *args: Array) -> Array:
    return process.reconstruction(*args)


def _token_nats(process: Process, logits: Array, x: Array) -> Array:
    """-log p of each token. The ids that are left out stay static: as values of a `Partial` they would have gradients."""
    return cross_entropy(logits, x, process.suppressed_ids)


def _score_function(text: _Text, draws: list, row_sums: tuple) -> Float[Array, ""]:
    """A term of value 0 whose gradient is that of the noise's parameters, estimated from two draws: the difference of their losses times
    the difference of the gradients of log q(z | x) (the leave-one-out estimator of MD4 2406.04329 section 6).

    row_sums: the loss [B] of every row under each draw.
    """
    first_B, second_B = (
        jnp.sum(jnp.where(text.loss_mask_BL, text.process.log_q(z_BL, text.x_BL, t_BL), 0.0), axis=1) for z_BL, t_BL in draws
    )
    surrogate = jnp.sum((row_sums[0] - row_sums[1]) * (first_B - second_B) / 2)
    return surrogate - jax.lax.stop_gradient(surrogate)


def _tokens_of_text(segments_BL: Tokens, loss_mask_BL: Mask) -> tuple[Int[Array, "B M"], Int[Array, "B L"]]:
    """(1 for each segment that has tokens with loss, 0 for other numbers; for each token the number of these in its segment)."""

    def row(segments_L, loss_mask_L):
        counts_M = jax.ops.segment_sum(loss_mask_L.astype(jnp.int32), segments_L, num_segments=segments_L.shape[0] + 1)
        return (counts_M > 0).astype(jnp.int32), counts_M[segments_L]

    return jax.vmap(row)(segments_BL, loss_mask_BL)


def _rows(valid_BL: Mask, loss_mask_BL: Mask) -> dict[str, Array]:
    """Numbers of rows, and of those without a loss: one inside a long document may have no answer, costs a row and teaches nothing."""
    rows_B = jnp.any(valid_BL, axis=1)
    return {"rows": jnp.sum(rows_B, dtype=jnp.int32), "unscored_rows": jnp.sum(rows_B & ~jnp.any(loss_mask_BL, axis=1), dtype=jnp.int32)}


def _by_time(t_BL: PerToken, value_BL: PerToken) -> Float[Array, "10"]:
    """Sums of `value_BL` over ten equal bins of t."""
    bin_BL = jnp.clip((t_BL * TIME_BINS).astype(jnp.int32), 0, TIME_BINS - 1)
    return jnp.stack([jnp.sum(jnp.where(bin_BL == i, value_BL, 0.0)) for i in range(TIME_BINS)])
