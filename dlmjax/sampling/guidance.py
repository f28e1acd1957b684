"""Control of what a sampler writes, by another output of the network or by a classifier.

    guidance    classifier-free (2207.12598): `Cfg`, a weight w and the times at which it holds.
    guide       a classifier log p(c | text), a function of one's own: `Classifier` shifts log p(x_i | z), `Gradient` moves the vectors of
                Gaussian noise. Or a constraint: `Project` replaces p(x_i | z) by the nearest distributions that satisfy it.

A classifier is a function in JAX, (p_BLV, t_BL) -> log p(c | z) of each row [B], in nats. p_BLV: the text, one row of V probabilities a
position: one 1 where a token (or the mask) stands there, and under Gaussian noise q(x_i | z_i). t_BL: time of each position; 0 = clean.

What `Classifier` draws (tests/sampling/test_guidance.py): given x_i, z_i tells nothing about c, so p(x_i | z, c) is in proportion to
p(x_i | z) p(c | z, z_i := x_i clean). order=exact calls the classifier on all of these texts, L x V of them: exact at each position for
any noise on tokens. order=first takes one forward and one backward pass: log p(c | z, z_i := v) is linearised at z, whose constants
cancel, and the slope at v is left. It is exact where log p(c) is linear in p_BLV.

A constraint is such a function g with g <= tau, where p_BLV is the distribution of the clean text: all on the token where one is
revealed, nowhere on the mask. Where g is the probability that a text of this product violates the constraint, a draw of all positions at
once violates it with a probability of at most tau.

A function is named by its dotted name. Only `import_guide`, for a text that a person has typed, imports its module.

Shapes: B rows, L positions, V vocabulary, E width of the vectors.
"""

import dataclasses
import hashlib
import importlib
import inspect
import sys
from collections.abc import Callable
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from dlmjax.diffusion.process import exclude
from dlmjax.errors import InputError
from dlmjax.sampling.by_name import build
from dlmjax.sampling.projection import project

LARGEST_WEIGHT = 1e6
ADAGRAD_EPSILON = 1e-10
GRADIENT = 3  # forward passes that a gradient counts as


@dataclasses.dataclass(frozen=True)
class Cfg:
    """Classifier-free guidance. weight: w of (1 + w) log p(x | condition) - w log p(x).

    low, high: times t between which it holds, both included (2404.07724); outside of them w is 0.
    """

    weight: float
    low: float = 0.0
    high: float = 1.0

    def __post_init__(self):
        if not 0 <= self.weight < LARGEST_WEIGHT:
            raise InputError(f"guidance is {self.weight}; it must be 0 (off) or positive")
        if not 0 <= self.low < self.high <= 1:
            raise InputError(f"guidance: low is {self.low} and high {self.high}; they are times and require 0 <= low < high <= 1")

    @property
    def always(self) -> bool:
        """Whether the weight holds at all times."""
        return (self.low, self.high) == (0.0, 1.0)

    def weight_at(self, t: Float[Array, "*n"]) -> float | Float[Array, "*n 1"]:
        """The weight of each position, for the last axis of an output."""
        return self.weight if self.always else jnp.where((t >= self.low) & (t <= self.high), self.weight, 0.0)[..., None]


def make_guidance(value: float | str) -> Cfg:
    """The guidance of a setting: a weight, or "cfg(weight=1, low=0.2, high=0.8)". Raises InputError: another name, values out of range."""
    if not isinstance(value, str):
        return Cfg(float(value))
    made = build("guidance", value, {"cfg": Cfg})
    if not made.weight:
        raise InputError(f"guidance {value} has the weight 0; give a positive one, or 0 alone to switch guidance off")
    return made


@runtime_checkable
class Guide(Protocol):
    """Control by a classifier. of: dotted name of its function.

    on_vectors: whether it moves the vectors of Gaussian noise (`moved`).  on_text: whether it replaces p(x_i | z) (`projected`). Else it
      shifts the distribution of tokens (`shift`).
    guarantee: what it states of the text.
    """

    name: str
    of: str
    on_vectors: bool = False
    on_text: bool = False
    guarantee: str = ""

    def passes(self, length: int, vocab: int) -> int:
        """Forward passes of the classifier for each text in one network call, or step where `on_vectors`; a gradient counts as 3."""
        raise InputError(f"guide {self.name} does not count the passes of its classifier")

    def shift(self, log_p_c: Callable, z_BL: Int[Array, "B L"], t_BL: Float[Array, "B L"], vocab: int) -> Float[Array, "B L V"]:
        """What is added to log p(x_i | z), nats, up to a constant of each position."""
        raise InputError(f"guide {self.name} does not shift the distribution of tokens")

    def moved(self, process: Any, log_p_c: Callable, z_BLE: Float[Array, "B L E"], s_BL: Float[Array, "B L"]) -> Float[Array, "B L E"]:
        """The vectors after a step, at time s, moved towards the class."""
        raise InputError(f"guide {self.name} does not move vectors")

    def projected(self, g: Callable, log_p_BLV: Float[Array, "B L V"], t_BL: Float[Array, "B L"]) -> Float[Array, "B L V"]:
        """What takes the place of log p(x_i | z), normalised."""
        raise InputError(f"guide {self.name} does not replace the distribution of tokens")


def _check_weight(guide: Any) -> None:
    if not 0 < guide.weight < LARGEST_WEIGHT:
        raise InputError(f"guide {guide.name}: weight is {guide.weight}; it must be positive")


@dataclasses.dataclass(frozen=True)
class Classifier(Guide):
    """Draws from p(x_i | z) p(c | z, x_i)^weight. order: "first", by the gradient, or "exact", by L x V calls of the classifier."""

    of: str
    weight: float = 1.0
    order: str = "first"

    name = "classifier"
    guarantee = "exact at each position with order=exact, and where log p(c) is linear in the one-hots"

    def __post_init__(self):
        _check_weight(self)
        if self.order not in ("first", "exact"):
            raise InputError(f"guide {self.name}: order is {self.order!r}; choose first or exact")

    def passes(self, length, vocab):
        """One gradient, or a call for each token at each position."""
        return GRADIENT if self.order == "first" else length * vocab

    def shift(self, log_p_c, z_BL, t_BL, vocab):
        """The first order or the exact one, times the weight."""
        p_BLV = jax.nn.one_hot(z_BL, vocab)
        if self.order == "first":
            return self.weight * jax.grad(lambda p_BLV: jnp.sum(log_p_c(p_BLV, t_BL)))(p_BLV)

        def at_position(i):
            clean_BL = t_BL.at[:, i].set(0.0)
            return jax.lax.map(lambda v: log_p_c(p_BLV.at[:, i].set(jax.nn.one_hot(v, vocab)), clean_BL), jnp.arange(vocab))

        log_p_LVB = jax.lax.map(at_position, jnp.arange(z_BL.shape[1]))
        return self.weight * jnp.moveaxis(log_p_LVB, 2, 0)


@dataclasses.dataclass(frozen=True)
class Gradient(Guide):
    """Diffusion-LM's control (2205.14217): after each step, `steps` Adagrad steps of z on
    -weight log p(c | z) + keep |z - drawn z|^2 / sigma^2, with the deviation sigma of the noise at that time.

    rate: of Adagrad.  keep: weight of staying at the drawn vectors (published: 0.01 content and length, 0.1 spans, around the mean of the
    step).  until: time below which nothing is moved (published: the last 10 of 200 steps).
    """

    of: str
    weight: float = 1.0
    steps: int = 3
    rate: float = 0.1
    keep: float = 0.01
    until: float = 0.05

    name = "gradient"
    on_vectors = True
    guarantee = "sharpened"

    def __post_init__(self):
        _check_weight(self)
        if not 1 <= self.steps <= 1000 or not 0 < self.rate < LARGEST_WEIGHT or not 0 <= self.keep < LARGEST_WEIGHT:
            raise InputError(
                f"guide {self.name}: steps is {self.steps}, rate {self.rate} and keep {self.keep}; they require 1 to 1000 steps, a "
                "positive rate, and keep of 0 or more"
            )
        if not 0 <= self.until <= 1:
            raise InputError(f"guide {self.name}: until is {self.until}; it is a time and must lie in [0, 1]")

    def passes(self, length, vocab):
        """A gradient for each Adagrad step."""
        return GRADIENT * self.steps

    def moved(self, process, log_p_c, z_BLE, s_BL):
        """Adagrad steps down the energy above, summed over rows, which do not depend on each other."""
        variance_BL1 = jnp.maximum(process.curve.at(s_BL).over().s ** 2, 1e-8)

        def energy(moved_BLE):
            p_BLV = jax.nn.softmax(exclude(process.evidence(moved_BLE, s_BL), process.suppressed_ids))
            stays = jnp.sum((moved_BLE - z_BLE) ** 2 / variance_BL1)
            return self.keep * stays - self.weight * jnp.sum(log_p_c(p_BLV, s_BL))

        moved_BLE, squares_BLE = z_BLE, jnp.zeros_like(z_BLE)
        for _ in range(self.steps):
            slope_BLE = jax.grad(energy)(moved_BLE)
            squares_BLE += slope_BLE**2
            moved_BLE -= self.rate * slope_BLE / (jnp.sqrt(squares_BLE) + ADAGRAD_EPSILON)
        return jnp.where((s_BL >= self.until)[..., None], moved_BLE, z_BLE)


@dataclasses.dataclass(frozen=True)
class Project(Guide):
    """The distributions nearest to p(x_i | z) with g <= tau, by `rounds` rounds of `steps` steps of `projection.project` (CDD 2503.09790).

    of: g, the violation of each row.  tau: what it may be at most.
    """

    of: str
    tau: float = 0.0
    rounds: int = 20
    steps: int = 5

    name = "project"
    on_text = True
    guarantee = "sharpened; g(y) <= tau where found"

    def __post_init__(self):
        if not -LARGEST_WEIGHT < self.tau < LARGEST_WEIGHT:
            raise InputError(f"guide {self.name}: tau is {self.tau}; it must be a number of less than {LARGEST_WEIGHT:g}")
        if not 1 <= self.rounds <= 1000 or not 1 <= self.steps <= 1000:
            raise InputError(f"guide {self.name}: rounds is {self.rounds} and steps {self.steps}; they require 1 to 1000")

    def passes(self, length, vocab):
        """A gradient for each step, and a look at the constraint after each round."""
        return self.rounds * (GRADIENT * self.steps + 1)

    def projected(self, g, log_p_BLV, t_BL):
        return project(log_p_BLV, lambda y_BLV: g(y_BLV, t_BL), self.tau, self.rounds, self.steps)


GUIDES: dict[str, type[Guide]] = {cls.name: cls for cls in (Classifier, Gradient, Project)}


def make_guide(text: str) -> Guide:
    """The guide of a text, "classifier(of=my_module.log_p, weight=2)". Raises InputError: no such guide, values out of range."""
    return build("guide", text, GUIDES)


def import_guide(text: str) -> Guide:
    """`make_guide` of a text that a person has typed: the module of its function is imported. Raises InputError: no such module."""
    guide = make_guide(text)
    module = guide.of.rpartition(".")[0]
    try:
        importlib.import_module(module or guide.of)
    except Exception as error:
        line = str(error).splitlines()[0][:200] if str(error) else ""
        raise InputError(f"guide of={guide.of:.80}: its module cannot be imported ({type(error).__name__}: {line})") from error
    function_of(guide)
    return guide


def function_of(guide: Guide) -> Callable[[Array, Array], Array]:
    """The function of a guide. Raises InputError: its module is not imported, or has no such function."""
    module, _, name = guide.of.rpartition(".")
    function = getattr(sys.modules.get(module), name, None)
    if not callable(function):
        raise InputError(
            f"guide of={guide.of:.80} is not a function of an imported module; give my_module.my_function, and import my_module"
        )
    return function


def check_numbers(guide: Guide, rows: int, length: int, vocab: int) -> None:
    """Raises InputError: the function of a guide does not give a number of each row of a canvas."""
    p_BLV, t_BL = jax.ShapeDtypeStruct((rows, length, vocab), jnp.float32), jax.ShapeDtypeStruct((rows, length), jnp.float32)
    try:
        shape = jax.eval_shape(function_of(guide), p_BLV, t_BL).shape
    except Exception as error:  # whatever a function of one's own may raise
        line = str(error).splitlines()[0][:200] if str(error) else ""
        raise InputError(
            f"guide of={guide.of:.80} fails for p_BLV of {rows} x {length} x {vocab} ({type(error).__name__}: {line})"
        ) from error
    if shape != (rows,):
        raise InputError(f"guide of={guide.of:.80} gives an array of {shape} for {rows} rows; it must give one number of each row")


def violation_of(guide: Guide, tokens_BL: Int[np.ndarray, "B L"], vocab: int) -> Float[np.ndarray, "B"]:
    """g of finished texts, each row."""
    return np.asarray(function_of(guide)(jax.nn.one_hot(tokens_BL, vocab), jnp.zeros(tokens_BL.shape)), np.float64)


def guide_sha256(settings: Any) -> str:
    """SHA-256 of the file of the function of the settings' guide, for records."""
    path = inspect.getsourcefile(inspect.unwrap(function_of(settings.make_guide())))
    with open(path, "rb") as file:
        return hashlib.sha256(file.read()).hexdigest()


def require_guide(guide: Guide, process: Any) -> None:
    """Raises InputError where a process does not support a guide."""
    vectors = process.output.predicts == "vectors" or bool(process.states.dim)
    if process.attention.causal or process.attention.block_size is not None:
        raise InputError(f"guide {guide.name} reads a whole canvas, but process {process.name} is sampled from left to right; leave it out")
    if vectors != guide.on_vectors:
        other = next(kind.name for kind in GUIDES.values() if kind.on_vectors == vectors)
        raise InputError(f"guide {guide.name} conflicts with process {process.name}; give guide {other}(of=...)")
    function_of(guide)
