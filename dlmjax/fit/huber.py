"""The fitting engine: Huber loss on log L, from many starts, for many resamples at once. float64; imports no jax.

Least squares would follow a few outliers; the Huber loss with delta = 1e-3 (2203.15556 eq. 3) is linear beyond 0.1 % of
the loss. The *sum* over runs is minimised: a mean is so small that an optimiser's tolerances would end it early (2404.10102).

`solve` is iteratively reweighted Levenberg-Marquardt on all parameter vectors together; `fit` starts it from a grid and lets BFGS polish
the best.
"""

import dataclasses
import itertools

import numpy as np
from scipy.optimize import minimize

from dlmjax.errors import InputError
from dlmjax.fit.forms import Columns, Form

DELTA = 1e-3
MAX_STARTS = 500


@dataclasses.dataclass(frozen=True)
class Fit:
    """A fit. objective: the sum of Huber losses; boundaries: parameters that ended at a bound, or terms without effect;
    agree: share of the starts that ended within 1 % of the best objective; residuals_R: log L of the runs - log L of the law."""

    form: Form
    theta_P: np.ndarray
    objective: float
    boundaries: tuple[str, ...]
    starts: int
    agree: float
    residuals_R: np.ndarray

    @property
    def values(self) -> dict[str, float]:
        return self.form.values(self.theta_P)


def huber(residual: np.ndarray, delta: float = DELTA) -> np.ndarray:
    """r^2 / 2 up to delta, delta (|r| - delta / 2) beyond."""
    size = np.abs(residual)
    return np.where(size <= delta, 0.5 * size**2, delta * (size - 0.5 * delta))


def fit(form: Form, columns: Columns, loss_R: np.ndarray, *, warm: np.ndarray | None = None, delta: float = DELTA) -> Fit:
    """The law that fits R runs best.

    Args:
      columns: [R] each, those of `form.columns`. loss_R: nats per token. warm: a further start, [P].
    Raises InputError: too few runs (at least one more than parameters is needed), fewer different ones than parameters, or values that are
      not finite.
    """
    count, size = len(loss_R), len(form.names)
    if count <= size:
        raise InputError(f"{count} runs for the {size} parameters of the {form.name} law; at least {size + 1} are needed")
    target_R = np.log(loss_R)
    columns = {name: np.asarray(columns[name], float) for name in form.columns}
    if not np.isfinite(target_R).all() or not all(np.isfinite(column).all() for column in columns.values()):
        raise InputError(f"a run has no finite loss, size or tokens; the {form.name} law requires {', '.join(form.columns)} of each")
    different = len(np.unique(np.stack(list(columns.values())), axis=1).T)
    if different < size:
        raise InputError(f"{different} different runs for the {size} parameters of the {form.name} law; repeated ones determine no more")
    starts_SP = _starts(form, target_R, warm)
    weights_SR = np.ones((1, count))
    # Few iterations from every start, many from the best.
    theta_SP, value_S = solve(form, columns, target_R, weights_SR, starts_SP, iterations=30, delta=delta)
    best = np.argsort(value_S)[:24]
    theta_SP, value_S = solve(form, columns, target_R, weights_SR, theta_SP[best], iterations=400, delta=delta)
    order = np.argsort(value_S)
    theta_P, objective = theta_SP[order[0]], value_S[order[0]]
    polished_P, polished = _polish(form, columns, target_R, theta_P, delta)
    if polished < objective:
        theta_P, objective = polished_P, polished
    agree = float(np.mean(value_S <= objective * 1.01 + 1e-12))
    residuals_R = target_R - form.log_loss(theta_P, columns)
    return Fit(form, theta_P, float(objective), _boundaries(form, theta_P, columns), len(starts_SP), agree, residuals_R)


def solve(
    form: Form,
    columns: Columns,
    target_R: np.ndarray,
    weights_SR: np.ndarray,
    theta_SP: np.ndarray,
    *,
    iterations: int = 100,
    delta: float = DELTA,
    tolerance: float = 1e-10,
) -> tuple[np.ndarray, np.ndarray]:
    """Minimises sum_R weight Huber(target - log L) from each of S parameter vectors, under each of S (or one) sets of weights.

    Huber's loss is bounded from above by a weighted square that touches it at the present residuals; each iteration takes a damped
    Gauss-Newton step on that square, so the objective never grows. A vector that no longer gains `tolerance` (as a share) rests.
    Returns: parameters [S, P] and objectives [S].
    """
    theta_SP = np.array(theta_SP, float)
    weights_SR = np.broadcast_to(weights_SR, (len(theta_SP), len(target_R)))
    lower_P, upper_P = np.array(form.lower), np.array(form.upper)
    value_S = (weights_SR * huber(target_R - form.log_loss(theta_SP, columns), delta)).sum(1)
    damping_S = np.full(len(theta_SP), 1e-2)
    idle_S = np.zeros(len(theta_SP), int)
    going = np.arange(len(theta_SP))
    for _ in range(iterations):
        theta, weights, damping = theta_SP[going], weights_SR[going], damping_S[going]
        predicted, jacobian = form.value_and_jacobian(theta, columns)
        residual = target_R - predicted
        square = weights * np.minimum(1.0, delta / np.maximum(np.abs(residual), 1e-300))
        weighted = jacobian * square[:, :, None]
        curvature = weighted.swapaxes(1, 2) @ jacobian
        slope = (weighted * residual[:, :, None]).sum(1)
        scale = np.einsum("spp->sp", curvature)
        damped = curvature + np.eye(theta.shape[1]) * (damping[:, None] * scale + 1e-13 * scale.max(1, keepdims=True) + 1e-300)[:, None]
        moved = np.clip(theta + np.linalg.solve(damped, slope[..., None])[..., 0], lower_P, upper_P)
        value = (weights * huber(target_R - form.log_loss(moved, columns), delta)).sum(1)
        gain = value_S[going] - value
        better = gain > 0
        theta_SP[going[better]], value_S[going[better]] = moved[better], value[better]
        damping_S[going] = np.where(better, np.maximum(damping / 5, 1e-9), damping * 4)
        idle_S[going] = np.where(gain > tolerance * value_S[going], 0, idle_S[going] + 1)
        going = going[(idle_S[going] < 4) & (damping_S[going] < 1e9)]
        if not len(going):
            break
    return theta_SP, value_S


def _starts(form: Form, target_R: np.ndarray, warm: np.ndarray | None) -> np.ndarray:
    """All combinations of the form's start values (an equally spaced choice of them where they are many)."""
    grid = np.array(list(itertools.product(*form.starts)))
    if len(grid) > MAX_STARTS:
        grid = grid[np.linspace(0, len(grid) - 1, MAX_STARTS).astype(int)]
    if "log_E" in form.names:  # no loss is below E
        index = form.names.index("log_E")
        grid[:, index] = np.minimum(grid[:, index], target_R.min() - 0.02)
    return grid if warm is None else np.concatenate([[warm], grid])


def _polish(form: Form, columns: Columns, target_R: np.ndarray, theta_P: np.ndarray, delta: float) -> tuple[np.ndarray, float]:
    """L-BFGS with tight tolerances from the best vector. In units of delta^2, so that tolerances mean the same for every delta."""

    def objective(theta):
        predicted, jacobian = form.value_and_jacobian(theta[None], columns)
        residual = target_R - predicted[0]
        return huber(residual, delta).sum() / delta**2, -(np.clip(residual, -delta, delta) @ jacobian[0]) / delta**2

    bounds = list(zip(form.lower, form.upper, strict=True))
    options = {"maxiter": 5000, "maxfun": 20000, "ftol": 1e-15, "gtol": 1e-10, "maxcor": 20}
    found = minimize(objective, theta_P, jac=True, method="L-BFGS-B", bounds=bounds, options=options)
    return found.x, float(found.fun) * delta**2


def _boundaries(form: Form, theta_P: np.ndarray, columns: Columns) -> tuple[str, ...]:
    """Parameters at a bound, and those without effect on any run: the law is then a simpler one."""
    lower, upper = np.array(form.lower), np.array(form.upper)
    room = 1e-4 * (upper - lower)
    reasons = []
    for index, name in enumerate(form.names):
        if theta_P[index] <= lower[index] + room[index] or theta_P[index] >= upper[index] - room[index]:
            reasons.append(f"{name} ended at its bound {theta_P[index]:.3g}")
    _, jacobian = form.value_and_jacobian(np.asarray(theta_P, float)[None], columns)
    for index, name in enumerate(form.names):
        if np.abs(jacobian[0, :, index]).max() < 1e-5:
            reasons.append(f"{name} has no effect on any run")
    return tuple(reasons)
