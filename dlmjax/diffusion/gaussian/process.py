"""Gaussian diffusion of token embeddings: z_t = a(t) e_x + s(t) eps, where the table of embeddings e is learned with the network.

    NELBO(x) = 1/2 integral -SNR'(t) E |e_x - x0(output, z_t, t)|^2 dt + KL(q(z_1 | x) || N(0, I)) - E log p(x | z_0)

(VDM 2107.00630 eq. 18), or with `steps` = T the sum of the T step KLs (DDPM 2006.11239 eq. 5). The field `prediction`
says what the network predicts: logits, whose mean embedding is the clean vector (Plaid 2305.18619), or the vector itself in a form of
parameterisation.py. `loss` is this bound for every prediction; the published training losses are weightings (weightings/gaussian.py).

Shapes: B batch, L length, V vocabulary, E dim; states [B, L, E]; `*n` any shape. Losses in nats per token.
"""

import abc
import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from dlmjax.diffusion.declarations import Boundary, Capabilities, Ends, Parameter
from dlmjax.diffusion.gaussian import embedding, parameterisation
from dlmjax.diffusion.gaussian.schedules import PATHS, LogLinear, Path, Point, Straight, snr_drop
from dlmjax.diffusion.gaussian.steps import VARIANCES, ancestral, normal_kl, reverse_variance
from dlmjax.diffusion.process import Output, Process, States, check_ids, draw_tokens, exclude
from dlmjax.diffusion.shapes import Ids, Logits, Mask, PerClass, PerToken, RowKeys, Tokens, Values, Vectors, VectorState
from dlmjax.diffusion.time_domain import AllTimes, TimeDomain
from dlmjax.diffusion.weightings.base import OF_VECTORS, Bound, Weighting
from dlmjax.errors import InputError

ROUNDINGS = ("bayes", "tied", "separate")


@dataclasses.dataclass(frozen=True)
class _StepEnds(TimeDomain):
    """T steps: t is taken to the end of the step that it lies in."""

    steps: int

    def quantize(self, t_BL: PerToken, valid_BL: Mask) -> PerToken:
        del valid_BL
        return jnp.clip(jnp.ceil(t_BL * self.steps), 1, self.steps) / self.steps


@dataclasses.dataclass(frozen=True)
class EmbeddingNoise(Process):
    """Abstract: Gaussian noise on embeddings. A subclass has its own defaults and defines `weighting`.

    vocab: number of token ids; mask_id, excluded: suppressed ids, which neither text nor predictions contain.
    dim: E. norm: length of every embedding, 0 = free, None = sqrt(dim). frozen: the table is imported or random and is not trained.
    path: one of schedules.PATHS, from gamma_0 = -log SNR at t = 0 to gamma_1 at t = 1; None = the path's own ends.
    prediction: "logits", or a name of parameterisation.NAMES, the output then being a vector.
    output_prior: add log q(z | x = k) to predicted logits (Plaid section 3.3): the network only predicts what the context says of x_i.
    rounding: p(x | z_0) where the prediction is a vector: "bayes" assumes equally likely tokens, "tied" is softmax(z . e),
      "separate" softmax(z W + b) (Diffusion-LM 2205.14217 section 4.1).
    steps: T of the discrete bound; 0 = continuous time. variance: of the reverse steps, one of VARIANCES.
    """

    vocab: int
    mask_id: dataclasses.InitVar[int | None] = None
    excluded: tuple[int, ...] = ()
    dim: int = 16
    norm: float | None = 0.0
    frozen: bool = False
    path: str = "cosine"
    gamma_0: float | None = None
    gamma_1: float | None = None
    prediction: str = "logits"
    output_prior: bool = True
    rounding: str = "bayes"
    steps: int = 0
    variance: str = "fixed_small"
    params: Any = dataclasses.field(default=None, kw_only=True)

    time_input = True
    boundary = Boundary(any=True, reconstruction=True)
    # Embeddings that lie far apart stay distinguishable near t = 1; rows of correlated tokens even later.
    ends = Ends(power=1.0, clean=4.0, noise=5.5)

    def __post_init__(self, mask_id: int | None):
        if mask_id is not None and mask_id not in self.excluded:
            object.__setattr__(self, "excluded", (*self.excluded, mask_id))
        if self.norm is None:
            object.__setattr__(self, "norm", math.sqrt(max(self.dim, 0)))
        check_ids(self.name, self.vocab, **{f"excluded[{i}]": id_ for i, id_ in enumerate(self.excluded)})
        choices = {
            "prediction": ("logits", *parameterisation.NAMES),
            "rounding": ROUNDINGS,
            "variance": VARIANCES,
        }
        for field, valid in choices.items():
            if getattr(self, field) not in valid:
                raise InputError(f"process {self.name}: {field} is {getattr(self, field)!r}; choose one of {', '.join(valid)}")
        if self.dim < 1 or self.norm < 0 or self.steps < 0:
            raise InputError(
                f"process {self.name}: dim must be positive, norm and steps not negative: {self.dim}, {self.norm}, {self.steps}"
            )
        if self.prediction == "mu" and not self.steps:
            raise InputError(f"process {self.name}: mu is the mean of a step, and continuous time has none; set steps, say to 1000")
        if self.variance == "learned_range" and (not self.steps or self.prediction == "logits"):
            raise InputError(f"process {self.name}: variance learned_range requires steps and a prediction that is a vector")
        self.curve  # noqa: B018  a bad path is refused now

    @property
    @abc.abstractmethod
    def weighting(self) -> Weighting:
        """How the loss is weighted in training by default."""

    @property
    def capabilities(self) -> Capabilities:
        return Capabilities(("ancestral", "ddpm", "ddim", "heun"), ("bound", *OF_VECTORS), weighting=self.weighting)

    # --- what is learned -------------------------------------------------------------------------------------------------------

    @property
    def parameters(self) -> dict[str, Any]:
        """{"embedding": [V, E]}, rows as long as `norm`, or with entries ~ N(0, 1) where they are free; and the separate rounding's
        {"rounding": {"weight": [V, E], "bias": [V]}}. Put an imported table (`embedding.import_table`) in the place of its start value."""

        def table_VE(key: Key[Array, ""]) -> Float[Array, "V E"]:
            return embedding.with_norm(jax.random.normal(key, (self.vocab, self.dim), jnp.float32), self.norm)

        # A frozen table has no gradient; as a vector it has no weight decay either.
        learned: dict[str, Any] = {"embedding": Parameter(table_VE, "vector" if self.frozen else "embedding")}
        if self._has_rounding:
            weight = Parameter(lambda key: table_VE(key) / math.sqrt(self.dim), "embedding")
            learned["rounding"] = {"weight": weight, "bias": Parameter(lambda _: jnp.zeros((self.vocab,)), "vector")}
        return learned

    @property
    def table(self) -> Float[Array, "V E"]:
        """The embeddings in use."""
        if self.params is None:
            raise InputError(f"process {self.name} requires embeddings; bind them with process.with_params(init_params(process, key))")
        table_VE = embedding.with_norm(self.params["embedding"], self.norm)
        return jax.lax.stop_gradient(table_VE) if self.frozen else table_VE

    @property
    def curve(self) -> Path:
        """The path of the noise."""
        return make_path(self.path, self.gamma_0, self.gamma_1)

    @property
    def states(self) -> "_EmbeddedTokens":
        return _EmbeddedTokens(self)

    @property
    def suppressed_ids(self) -> tuple[int, ...]:
        return self.excluded

    @property
    def output(self) -> "_Prediction":
        return _Prediction(self)

    @property
    def _has_rounding(self) -> bool:
        return self.rounding == "separate"

    # --- forward ---------------------------------------------------------------------------------------------------------------

    def noise_share(self, t: Values) -> Values:
        """Of the variance: 1 / (1 + SNR)."""
        return jax.nn.sigmoid(self.curve.at(t).gamma)

    @property
    def time_domain(self) -> TimeDomain:
        return _StepEnds(self.steps) if self.steps else AllTimes()

    def corrupt(self, keys_B: RowKeys, x_BL: Tokens, t_BL: PerToken, valid_BL: Mask | None = None) -> VectorState:
        now = self.curve.at(t_BL).over()
        z_BLE = now.a * self.table[x_BL] + now.s * normals(keys_B, x_BL.shape[1], self.dim)
        return z_BLE if valid_BL is None else jnp.where(valid_BL[..., None], z_BLE, 0.0)

    def forward_step(self, keys_B: RowKeys, z_BL: VectorState, s_BL: PerToken, t_BL: PerToken, valid_BL: Mask | None = None) -> VectorState:
        late, early = self.curve.at(t_BL).over(), self.curve.at(s_BL).over()
        deviation = jnp.sqrt(reverse_variance("fixed_large", late, early))
        moved_BLE = late.a / early.a * z_BL + deviation * normals(keys_B, z_BL.shape[1], self.dim)
        return moved_BLE if valid_BL is None else jnp.where(valid_BL[..., None], moved_BLE, z_BL)

    def corrupted(self, x_BL: Tokens, z_BL: VectorState) -> Mask:
        """Every embedding is a little noisy."""
        del z_BL
        return jnp.ones(x_BL.shape, bool)

    # --- what an output means --------------------------------------------------------------------------------------------------

    def clean(self, output: PerClass, z: Vectors, t: Values) -> Vectors:
        """The x0 prediction as a vector."""
        if self.prediction == "logits":
            return embedding.mean_embedding(self.belief(output, z, t), self.table)
        return parameterisation.to_x0(self.prediction, self._vector(output), z, *self._step_points(t))

    def belief(self, logits: PerClass, z: Vectors, t: Values) -> PerClass:
        """Predicted logits with the output prior: log p(x | z) up to a constant."""
        return exclude(logits + self.evidence(z, t) if self.output_prior else logits, self.excluded)

    def evidence(self, z: Vectors, t: Values) -> PerClass:
        """log q(z | x = k) up to a term that does not depend on k: (a / s^2) z . e_k - (SNR / 2) |e_k|^2."""
        now = self.curve.at(t).over()
        return embedding.similarity(z * (now.a / now.s**2), self.table) - jnp.exp(-now.gamma) / 2 * jnp.sum(self.table**2, axis=-1)

    def round(self, z0: Vectors) -> PerClass:
        """Logits of p(x | z_0) without the network: the reconstruction where it predicts a vector."""
        if self.rounding == "bayes":
            return exclude(self.evidence(z0, jnp.zeros(z0.shape[:-1], z0.dtype)), self.excluded)
        if self.rounding == "tied":
            return exclude(embedding.similarity(z0, self.table), self.excluded)
        own = self.params["rounding"]
        return exclude(embedding.similarity(z0, own["weight"]) + own["bias"], self.excluded)

    def _vector(self, output: Float[Array, "*n D"]) -> Vectors:
        return output[..., : self.dim].astype(jnp.promote_types(output.dtype, jnp.float32))

    def input_points(self, time_input: Values) -> tuple[Point, Point | None]:
        """The points of the path that `time_embedding_input` encodes, as `_step_points` gives them: read by exact denoisers."""
        return self._step_points(time_input)

    def _step_points(self, t: Values) -> tuple[Point, Point | None]:
        """The point at time t, and the one that a step of the discrete chain leads to; None in continuous time."""
        now = self.curve.at(t).over()
        return now, self.curve.at(jnp.maximum(t - 1 / self.steps, 0)).over() if self.steps else None

    # --- the bound -------------------------------------------------------------------------------------------------------------

    def loss(self, logits: PerClass, x: Ids, z: Vectors, t: Values) -> Values:
        error = self.table[x] - self.clean(logits, z, t)
        if not self.steps:
            return self.curve.snr_rate(t) / 2 * jnp.sum(error**2, axis=-1)
        now, to = self._step_points(t)
        if self.variance == "fixed_small":
            return self.steps / 2 * snr_drop(now, to)[..., 0] * jnp.sum(error**2, axis=-1)
        _, x0_part, small = parameterisation.posterior(now, to)
        variance = reverse_variance(self.variance, now, to, self.share(logits))
        return self.steps * jnp.sum(normal_kl(x0_part * error, small, jnp.zeros_like(error), variance), axis=-1)

    def share(self, output: Float[Array, "*n D"]) -> Vectors | None:
        """Position of the predicted variance between beta_tilde (0) and beta (1): the second E outputs, in [-1, 1] as published."""
        return (output[..., self.dim :] + 1) / 2 if self.variance == "learned_range" else None

    def prior_nats(self, x: Ids) -> Values:
        end = self.curve.at(1.0)
        signal, missing = end.a**2, jnp.maximum(1 - end.s**2, 0.0)
        return (signal * jnp.sum(self.table[x] ** 2, axis=-1) - self.dim * (missing + jnp.log1p(-missing))) / 2

    def reconstruction(self, logits: PerClass, x: Ids, z0: Vectors) -> Values:
        log_p = jax.nn.log_softmax(self._text(logits, z0), axis=-1)
        return -jnp.take_along_axis(log_p, x[..., None], axis=-1)[..., 0]

    def _text(self, output: PerClass, z0: Vectors) -> Float[Array, "*n T"]:
        """Logits of p(x | z_0)."""
        return self.belief(output, z0, jnp.zeros(z0.shape[:-1], z0.dtype)) if self.prediction == "logits" else self.round(z0)

    # --- reverse ---------------------------------------------------------------------------------------------------------------

    def prior(self, keys_B: RowKeys, length: int) -> Float[Array, "B {length} E"]:
        return normals(keys_B, length, self.dim)

    def reverse_step(self, keys_B: RowKeys, logits_BLV: Logits, z_BL: VectorState, t_BL: PerToken, s_BL: PerToken) -> VectorState:
        """DDPM's step; other steps, which also use the x0 prediction `clean`, are in steps.py."""
        now, to = self.curve.at(t_BL).over(), self.curve.at(s_BL).over()
        variance = reverse_variance(self.variance, now, to, self.share(logits_BLV))
        noise_BLE = normals(keys_B, z_BL.shape[1], self.dim)
        # The state keeps its type, whatever the type of the times: a loop over steps carries it.
        return ancestral(noise_BLE, self.clean(logits_BLV, z_BL, t_BL), z_BL, now, to, variance).astype(z_BL.dtype)

    def decode(self, keys_B: RowKeys, logits_BLV: Logits, z_BL: VectorState) -> Tokens:
        return draw_tokens(keys_B, self._text(logits_BLV, z_BL))


@dataclasses.dataclass(frozen=True)
class GaussianEmbedding(EmbeddingNoise):
    """Gaussian diffusion with any values, trained on the bound."""

    name = "gaussian"
    weighting = Bound()


@dataclasses.dataclass(frozen=True)
class _EmbeddedTokens(States):
    """Vectors, shown as the token with the nearest embedding."""

    process: EmbeddingNoise

    @property
    def dim(self) -> int:
        return self.process.dim

    def of_tokens(self, x_BL: Tokens) -> VectorState:
        """The embeddings as they are at t = 0 on their path, without the noise of it: a text that conditions the rest is known."""
        now = self.process.curve.at(jnp.zeros(x_BL.shape, jnp.float32)).over()
        return now.a * self.process.table[x_BL]

    def to_tokens(self, z_BL: VectorState) -> Tokens:
        return embedding.nearest(z_BL, self.process.table, self.process.excluded)


@dataclasses.dataclass(frozen=True)
class _Prediction(Output):
    """Logits, or the vectors of `prediction`."""

    process: EmbeddingNoise

    @property
    def predicts(self) -> str:
        return "logits" if self.process.prediction == "logits" else "vectors"

    @property
    def columns(self) -> int:
        process = self.process
        if process.prediction == "logits":
            return process.vocab
        return 2 * process.dim if process.variance == "learned_range" else process.dim

    def x0(self, denoiser: Any, hidden_BLD: Float[Array, "B L D"], z_BL: VectorState, t_BL: PerToken) -> VectorState:
        """The clean vector for self-conditioning; from logits without the output prior, since the network also reads z."""
        if self.process.prediction == "logits":
            return denoiser.expect(hidden_BLD, self.process.table)
        return self.process.clean(denoiser.logits(hidden_BLD), z_BL, t_BL)


def normals(keys_B: RowKeys, length: int, dim: int) -> Float[Array, "B {length} {dim}"]:
    """Standard normal vectors, each row from its own key."""
    return jax.vmap(lambda key: jax.random.normal(key, (length, dim), jnp.float32))(keys_B)


def make_path(name: str, gamma_0: float | None = None, gamma_1: float | None = None) -> Path:
    """A path by name, from gamma_0 at t = 0 to gamma_1 at t = 1; None = the path's own end."""
    if name not in PATHS:
        raise InputError(f"unknown path {name!r}; choose one of {', '.join(PATHS)}")
    if PATHS[name] is LogLinear:
        ends = {"gamma_0": gamma_0, "gamma_1": gamma_1}
    elif PATHS[name] is Straight:
        # gamma = 2 log(u / (1 - u)) at u = start.
        ends = {"start": None if gamma_0 is None else _sigmoid(gamma_0 / 2)}
        if gamma_1 is not None:
            raise InputError("path straight ends in pure noise and takes no gamma_1; set it to None")
    else:
        ends = {
            "high": None if gamma_0 is None else _sigmoid(-gamma_0),
            "low": None if gamma_1 is None else _sigmoid(-gamma_1),
        }
    return PATHS[name](**{end: value for end, value in ends.items() if value is not None})


def _sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))
