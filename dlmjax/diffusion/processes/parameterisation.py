"""What a denoiser's output means where noise is not absorbing, and the exact conversion of each meaning into the others.

For a token x_i with state z_i, among the other states z_{-i}, a network can predict
    posterior      softmax = p(x_i | z)                   learned with plain cross-entropy on all tokens
    leave_one_out  softmax = p(x_i | z_{-i})              learned with the bound of uniform and hybrid noise
    score          output_y = log p_t(z_i := y, z_{-i}) / p_t(z)    learned with score entropy
They are related by the process's likelihood q_t(z_i | x_i) and by its marginal map p -> q_t(. | x ~ p):
    p(x | z) = q_t(z_i | x) p(x | z_{-i}) / normaliser,    score(y) = q_t(y | x ~ p(. | z_{-i})) / q_t(z_i | x ~ p(. | z_{-i})).
A posterior in place of the leave-one-out posterior gives a bound that is far from tight; so the meaning is declared and converted exactly
(GIDD 2503.04482 appendix; SEDD 2310.16834 section 3; the simple losses of uniform noise learn the posterior).

Shapes: `*n` any shape, V classes of the output. All results are log-probabilities or log-ratios in at least float32; classes that do
not occur in text have EXCLUDED.
"""

import abc
import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from dlmjax.diffusion.process import EXCLUDED, Output, exclude
from dlmjax.diffusion.shapes import Ids, PerClass, Values


class Parameterisation(Output):
    """Abstract. The conversions use these members of the process:

    suppressed_ids: ids that do not occur in text;  log_likelihood(z, t): log q_t(z | x = k), [*n, V];
    log_marginal(log_p, t): log q_t(y | x ~ p), [*n, V], and its inverse log_unmixed(log_q, t).
    """

    name: str

    @abc.abstractmethod
    def loo_logits(self, logits: PerClass, z: Ids, t: Values) -> PerClass:
        """log p(x_i | z_{-i}) up to a constant: the input of a loss that normalises it."""
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

    A network's scores need not be those of a distribution of tokens. Where q_theta(y) = score(y) / sum of scores is below the share of
    noise that every token has, its clean part is set to 1e-12 of it: this is a valid x0 prediction, exact for scores of a distribution.
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
