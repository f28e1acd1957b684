"""Laws for runs that vary something else: repeated data, active parameters, batch and learning rate, mixtures. Imports no jax."""

import dataclasses
import math
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from scipy.optimize import minimize

from dlmjax.errors import InputError
from dlmjax.fit import bootstrap, fitness, huber, isoflop
from dlmjax.fit.fitness import AGAIN
from dlmjax.fit.forms import JOINT, MIXING, OVERFITTING, OVERFITTING_OF_ONE_SIZE, REPETITION, REPETITION_OF_ONE_SIZE, Form
from dlmjax.fit.isoflop import PowerLaw, power_law
from dlmjax.fit.points import Points, tuning_of
from dlmjax.sweep.records import Record

SPARSE = 0.25  # share of the parameters that a token does not use, from which a network is called sparse


@dataclasses.dataclass(frozen=True)
class Special:
    """One such law of one objective: its fit and, by block, parameters of the resamples [S, P]; or why there is none."""

    form: Form
    fit: huber.Fit | None
    resampled: dict[str, np.ndarray]
    refused: str = ""

    def record(self, derived: Callable[[Mapping[str, Any]], Mapping[str, Any]] = lambda values: {}) -> dict:
        """Plain JSON; `derived`: numbers that follow from the parameters (of arrays too), with their intervals."""
        head = {"equation": self.form.equation, "source": self.form.source}
        if self.fit is None:
            return head | {"refused": self.refused}
        values = self.fit.values
        numbers = values | dict(derived(values))
        head |= {"objective": self.fit.objective, "boundaries": list(self.fit.boundaries), "runs": len(self.fit.residuals_R)}
        head |= {"starts": self.fit.starts, "starts_that_agree": self.fit.agree, "parameters": numbers, "intervals": {}}
        for blocks, theta_SP in self.resampled.items():
            samples = self.form.values(theta_SP)
            head["intervals"][blocks] = bootstrap.intervals(numbers, samples | dict(derived(samples)))
        return head


def fit_special(form: Form, columns: Mapping, loss_R: np.ndarray, block_R: np.ndarray, *, resamples: int, seed: int) -> Special:
    """Fits a form with its error bars; runs are drawn within `block_R`."""
    try:
        if fitness.is_flat(loss_R):
            raise InputError(f"all losses are equal, {loss_R[0]:.6g}")
        found = huber.fit(form, columns, loss_R)
    except InputError as error:
        return Special(form, None, {}, str(error))
    resampled = {}
    for blocks in bootstrap.BLOCKS if resamples else ():
        weight_SR = bootstrap.draw(block_R, resamples, blocks, seed)
        start_SP = np.tile(found.theta_P, (resamples, 1))
        used = {name: columns[name] for name in form.columns}
        resampled[blocks], _ = huber.solve(form, used, np.log(loss_R), weight_SR, start_SP, iterations=60, tolerance=1e-7)
    return Special(form, found, resampled)


def repeated(points: Points, *, definition: str = "total", resamples: int = 200, seed: int = 0) -> dict[str, Special]:
    """The two laws of repeated tokens, for runs of which some see theirs more than once and corpora differ. Blocks are the corpora.

    Runs of one size have the laws without terms in N, which could be anything.
    """
    forms = (REPETITION, OVERFITTING)
    if len(np.unique(points.sizes[definition])) < 2:
        forms = (REPETITION_OF_ONE_SIZE, OVERFITTING_OF_ONE_SIZE)
    reason = ""
    if not np.isfinite(points.unique_R).all():
        reason = "the tokens of the runs' corpora are not known"
    elif (points.epochs_R > AGAIN).sum() < fitness.REPEATED_RUNS:
        reason = "fewer than three runs see their tokens more than once"
    elif len(np.unique(points.unique_R)) < 2:
        reason = "all runs have corpora of one size"
    if reason:
        return {form.name: Special(form, None, {}, reason) for form in forms}
    _, block_R = np.unique(points.unique_R, return_inverse=True)
    columns = points.columns(definition)
    return {form.name: fit_special(form, columns, points.loss_R, block_R, resamples=resamples, seed=seed) for form in forms}


def best_epochs(values: Mapping[str, Any]) -> dict[str, Any]:
    """Of the overfitting law: best epochs = scale U^unique_exponent / N^size_exponent, where its two terms in e balance; without the last
    for runs of one size."""
    b, h = values["b"], values["h"]
    found = {"epochs_scale": (b * values["B"] / (h * values["G"])) ** (1 / (h + b)), "epochs_unique_exponent": (values["d"] - b) / (h + b)}
    return found | ({"epochs_size_exponent": values["c"] / (h + b)} if "c" in values else {})


def joint(points: Points, *, resamples: int = 200, seed: int = 0) -> Special:
    """The law of total and active parameters, for runs of which at least two sparsities differ and some are sparse: in a dense network
    too a few per cent of the parameters, the embedding, are only looked up."""
    sparsity_R = 1 - points.sizes.get("active", points.sizes["total"]) / points.sizes["total"]
    if sparsity_R.max() < SPARSE:
        return Special(JOINT, None, {}, "all runs are dense: none leaves a quarter of its parameters out of a token")
    if len(np.unique(sparsity_R.round(3))) < 2:
        return Special(JOINT, None, {}, "all runs use the same share of their parameters for a token")
    return fit_special(JOINT, points.columns(), points.loss_R, points.groups(), resamples=resamples, seed=seed)


@dataclasses.dataclass(frozen=True)
class Tuning:
    """B*(D) and lr*(B) of one objective. minima: each parabola that was tried, as JSON. batch: tokens of a step, against training tokens;
    lr: against tokens of a step. None where fewer than two minima count; intervals come from dropping one minimum at a time (jackknife:
    the exponent's standard error)."""

    minima: list[dict]
    batch: PowerLaw | None
    lr: PowerLaw | None
    batch_stderr: float
    lr_stderr: float

    def record(self) -> dict:
        """Plain JSON: batch = coefficient (training tokens)^exponent, lr = coefficient (tokens of a step)^exponent. pivot: the mean of
        log x over the minima, undone: an error of the exponent rotates the line about it."""
        laws = {}
        for name, law, stderr in (("batch", self.batch, self.batch_stderr), ("lr", self.lr, self.lr_stderr)):
            error = stderr if math.isfinite(stderr) else None
            x = [row["tokens" if name == "batch" else "batch_tokens"] for row in self.minima if row["of"] == name and not row["rejected"]]
            laws[name] = law and {"coefficient": law.coefficient, "exponent": law.exponent, "exponent_stderr": error}
            if law:
                laws[name]["pivot"] = float(np.exp(np.log(x).mean()))
        return laws | {"minima": self.minima}


def tuning(records: Sequence[Record]) -> Tuning | None:
    """Critical batch and learning-rate laws from grids: for each size, number of tokens and batch the loss is a parabola in log lr; the
    lowest losses of the batches are one in log B. B* ~ D^p and lr* ~ B^q go through the minima that count (published for masked and
    uniform diffusion: p = 0.82, q = 0.34, 2512.10858). None: there is no such grid."""
    grids: dict[tuple, dict[int, list[Record]]] = defaultdict(lambda: defaultdict(list))
    for record in records:
        if record.status == "finished" and tuning_of(record):
            # Tokens as planned, or to three digits: runs are whole numbers of steps, so those of different batches differ a little.
            tokens = float(record.cell.get("tokens", f"{record.tokens:.2e}"))
            grids[record.parameters, tokens][record.batch * record.length].append(record)
    if not grids:
        return None
    minima, batches, rates = [], [], []
    for (parameters, tokens), by_batch in sorted(grids.items()):
        lowest = []
        for batch, runs in sorted(by_batch.items()):
            found = _log_minimum([run.lr for run in runs], [run.loss for run in runs])
            minima.append({"of": "lr", "parameters": parameters, "tokens": tokens, "batch_tokens": batch} | found)
            if not found["rejected"]:
                rates.append((float(batch), found["at"]))
                lowest.append((float(batch), found["loss"]))
        found = _log_minimum([batch for batch, _ in lowest], [loss for _, loss in lowest])
        minima.append({"of": "batch", "parameters": parameters, "tokens": tokens} | found)
        if not found["rejected"]:
            batches.append((tokens, found["at"]))
    (batch, batch_stderr), (lr, lr_stderr) = _through(batches), _through(rates)
    return Tuning(minima, batch, lr, batch_stderr, lr_stderr)


def _log_minimum(x: Sequence[float], loss: Sequence[float]) -> dict:
    """The minimum of a parabola in log x, or why it does not count."""
    found = {"at": None, "loss": None, "runs": len(x), "rejected": ""}
    if len(set(x)) < fitness.PARABOLA_VALUES:
        return found | {"rejected": f"too narrow: {len(set(x))} values, at least {fitness.PARABOLA_VALUES} are needed"}
    if fitness.is_flat(np.array(loss)):
        return found | {"rejected": f"flat: all losses are equal, {loss[0]:.6g}"}
    log_x = np.log(x)
    log_at, low, curvature = (float(each[0]) for each in isoflop.parabola(log_x, np.array(loss), np.ones((1, len(x)))))
    if not curvature > 0:
        return found | {"rejected": "concave"}
    at = isoflop.near_exp(log_at, log_x)
    found |= {"at": at, "loss": low}
    if not min(x) < at < max(x):
        return found | {"rejected": f"edge: the minimum, {at:.3g}, lies beyond the values tried"}
    return found


def _through(pairs: Sequence[tuple[float, float]]) -> tuple[PowerLaw | None, float]:
    """A power law through pairs, and the jackknife standard error of its exponent (nan with two)."""
    if len({x for x, _ in pairs}) < 2:
        return None, math.nan
    x_G, y_G = np.array(pairs, float).T
    count = len(pairs)
    law = power_law(x_G, y_G[None], np.concatenate([np.ones((1, count)), 1 - np.eye(count)]))
    without = law.exponent[1:]
    stderr = math.sqrt((count - 1) / count * ((without - without.mean()) ** 2).sum()) if np.isfinite(without).all() else math.nan
    return PowerLaw(float(law.coefficient[0]), float(law.exponent[0])), stderr


def mixing(records: Sequence[Record], *, resamples: int = 200, seed: int = 0) -> dict[str, Special]:
    """One law for each domain whose loss the runs recorded, by domain; empty where no run mixes. Runs without the domain are left out."""
    runs = [record for record in records if record.status == "finished" and record.mixture and record.domains]
    found = {}
    for domain in sorted({domain for run in runs for domain in run.domains}):
        rows = [(run.mixture.get(domain, 0.0), run.tokens, run.domains[domain]) for run in runs if domain in run.domains]
        rows = [row for row in rows if row[0] > 0]
        share_R, tokens_R, loss_R = np.array(rows, float).reshape(-1, 3).T
        if len(np.unique(share_R)) < 2 or len(np.unique(tokens_R)) < 2:
            found[domain] = Special(MIXING, None, {}, "runs of one share, or of one number of tokens")
            continue
        columns = {"log_r": np.log(share_R), "log_D": np.log(tokens_R)}
        _, block_R = np.unique(share_R, return_inverse=True)
        found[domain] = fit_special(MIXING, columns, loss_R, block_R, resamples=resamples, seed=seed)
    return found


def best_mixture(laws: Mapping[str, Mapping[str, float]], tokens: float, weights: Mapping[str, float] | None = None) -> dict[str, float]:
    """Shares of the domains that make the weighted sum of their losses least at a number of tokens.

    Args:
      laws: parameters of MIXING by domain (`Special.fit.values`). weights: of the domains' losses; default: all the same.
    """
    names = sorted(laws)
    weight_K = np.array([(weights or {}).get(name, 1.0) if weights else 1.0 for name in names])
    a_K = np.array([laws[name]["a"] for name in names])
    level_K = np.array([laws[name]["B"] / tokens ** laws[name]["b"] + laws[name]["C"] for name in names])

    def total(logits_K: np.ndarray) -> float:  # shares as a softmax stay positive and sum to one
        share_K = np.exp(logits_K - logits_K.max())
        return float((weight_K * level_K * (share_K / share_K.sum()) ** -a_K).sum())

    logits_K = minimize(total, np.zeros(len(names)), method="BFGS", options={"gtol": 1e-10}).x
    share_K = np.exp(logits_K - logits_K.max())
    return dict(zip(names, (share_K / share_K.sum()).tolist(), strict=True))
