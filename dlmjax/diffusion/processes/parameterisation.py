"""What a denoiser's output means where noise is not absorbing, and the exact way from each meaning to the others.

Of a token x_i seen as z_i among the others z_{-i}, a network may predict
    posterior      softmax = p(x_i | z)                   what plain cross-entropy on all tokens learns
    leave_one_out  softmax = p(x_i | z_{-i})              what the bound of uniform and hybrid noise wants
    score          output_y = log p_t(z_i := y, z_{-i}) / p_t(z)    what score entropy learns
They are bound together by the process's likelihood q_t(z_i | x_i) and by its marginal map p -> q_t(. | x ~ p):
    p(x | z) = q_t(z_i | x) p(x | z_{-i}) / normaliser,    score(y) = q_t(y | x ~ p(. | z_{-i})) / q_t(z_i | x ~ p(. | z_{-i})).
A posterior put where leave-one-out is due gives a bound that is far from tight, so the meaning is a type and the bridge is exact
(GIDD 2503.04482 appendix; SEDD 2310.16834 section 3; the simple losses of uniform noise learn the posterior).

Shapes: `*n` any shape, V classes of the output. All results are log-probabilities or log-ratios in at least float32; classes that text
never holds have EXCLUDED.
"""

import abc
import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from dlmjax.diffusion.process import EXCLUDED, Output, exclude
from dlmjax.diffusion.shapes import Ids, PerClass, Values


class Parameterisation(Output):
    """Abstract. The process gives what the bridge needs:

    suppressed_ids: ids that text never holds;  log_likelihood(z, t): log q_t(z | x = k), [*n, V];
    log_marginal(log_p, t): log q_t(y | x ~ p), [*n, V], and its inverse log_unmixed(log_q, t).
    """

    name: str

    @abc.abstractmethod
    def loo_logits(self, logits: PerClass, z: Ids, t: Values) -> PerClass:
        """log p(x_i | z_{-i}) up to a constant: what a loss that normalises anyway is given."""
        ...

    def log_loo(self, logits: PerClass, z: Ids, t: Values) -> PerClass:
        """log p(x_i | z_{-i})."""
        return _normalised(self.process, self.loo_logits(logits, z, t))

    def log_posterior(self, logits: PerClass, z: Ids, t: Values) -> PerClass:
        """log p(x_i | z)."""
        return _normalised(self.process, self.loo_logits(logits, z, t) + self.process.log_likelihood(z, t))

    def log_score(self, logits: PerClass, z: Ids, t: Values) -> PerClass:
        """log of p_t(z with z_i := y) / p_t(z); 0 at y = z."""
        log_q = self.process.log_marginal(self.log_loo(logits, z, t), t)
        own = jnp.take_along_axis(log_q, z[..., None], axis=-1)
        return jnp.where(log_q <= EXCLUDED / 2, EXCLUDED, log_q - own)


@dataclasses.dataclass(frozen=True)
class LeaveOneOut(Parameterisation):
    """softmax(logits) = p(x_i | z_{-i})."""

    process: Any

    name = "leave_one_out"

    def loo_logits(self, logits: PerClass, z: Ids, t: Values) -> PerClass:
        del z, t
        return exclude(logits, self.process.suppressed_ids)


@dataclasses.dataclass(frozen=True)
class Posterior(Parameterisation):
    """softmax(logits) = p(x_i | z)."""

    process: Any

    name = "posterior"

    def loo_logits(self, logits: PerClass, z: Ids, t: Values) -> PerClass:
        return exclude(logits, self.process.suppressed_ids) - self.process.log_likelihood(z, t)

    def log_posterior(self, logits: PerClass, z: Ids, t: Values) -> PerClass:
        del z, t
        return _normalised(self.process, logits)


class Scores(Parameterisation):
    """Abstract: log ratios of noisy probabilities. A subclass defines `log_score`.

    A network's scores need not belong to any law. Where q_theta(y) = score(y) / sum of scores falls below the share of noise that every
    token has, its clean part is taken for a trillionth of it: a valid prediction again, and unchanged for scores that do belong to a law.
    """

    predicts = "scores"

    @abc.abstractmethod
    def log_score(self, logits: PerClass, z: Ids, t: Values) -> PerClass: ...

    def loo_logits(self, logits: PerClass, z: Ids, t: Values) -> PerClass:
        return self.process.log_unmixed(jax.nn.log_softmax(self.log_score(logits, z, t), axis=-1), t)


@dataclasses.dataclass(frozen=True)
class Score(Scores):
    """output_y = log score(y); the output's own entry is 0 whatever the network gives."""

    process: Any

    name = "score"

    def log_score(self, logits: PerClass, z: Ids, t: Values) -> PerClass:
        del t
        own = jnp.arange(self.process.vocab) == z[..., None]
        return jnp.where(own, 0.0, exclude(logits, self.process.unseen_ids))


PARAMETERISATIONS: dict[str, type[Parameterisation]] = {kind.name: kind for kind in (LeaveOneOut, Posterior, Score)}


def _normalised(process: Any, logits: PerClass) -> PerClass:
    return exclude(jax.nn.log_softmax(exclude(logits, process.suppressed_ids), axis=-1), process.suppressed_ids)
