"""Runs drawn from known laws, in place of trained ones."""

import numpy as np

from dlmjax.fit import forms
from dlmjax.fit.points import Points
from dlmjax.sweep.records import Record

LAW = forms.QUOKKA_MASKED
NOISE = 0.003  # of a run's loss, as between seeds
VALIDATION = "512 windows of valid, 8 gauss levels x 1, seed 0"


def isoflop_grid(budgets=7, sizes=9, decades=0.75, law=LAW, lowest=6e18, highest=3e21, off=0.0):
    """N, D, C, budget of each run: sizes `decades` on either side of the optimum (moved by `off` decades) under C = 6 N D."""
    flops_G = np.geomspace(lowest, highest, budgets)
    best_G, _, _ = forms.optimum(law, flops_G)
    size_R = (best_G[:, None] * 10 ** (off + np.linspace(-decades, decades, sizes))).ravel()
    flops_R = np.repeat(flops_G, sizes)
    return size_R, flops_R / 6 / size_R, flops_R, np.repeat(np.arange(budgets), sizes)


def additive_loss(size_R, tokens_R, law=LAW, noise=0.0, seed=0):
    """L of the law, with log-normal noise."""
    clean_R = law["E"] + law["A"] / size_R ** law["a"] + law["B"] / tokens_R ** law["b"]
    return clean_R * np.exp(noise * np.random.default_rng(seed).standard_normal(len(size_R)))


def points(size_R, tokens_R, flops_R, loss_R, budget_R=None, unique_R=None, objective="masked", **sizes) -> Points:
    """The same as `Points`."""
    nothing_R = np.full(len(size_R), np.nan)
    return Points(
        objective=objective,
        sizes={"total": size_R, **sizes},
        tokens_R=tokens_R,
        flops_R=flops_R,
        loss_R=loss_R,
        stderr_R=nothing_R,
        budget_R=nothing_R if budget_R is None else budget_R,
        unique_R=nothing_R if unique_R is None else unique_R,
        ids=tuple(f"run{i}" for i in range(len(size_R))),
    )


def record(name="r", series="masked", size=1e6, tokens=1e7, loss=3.0, **changes) -> Record:
    """A finished run at 6 N D; all other fields plausible."""
    values = dict(
        id=name,
        series=series,
        status="finished",
        parameters=int(size),
        non_embedding=int(0.9 * size),
        active=int(size),
        depth=4,
        width=128,
        vocab=28,
        flops_per_token=6.0 * size,
        hardware_flops_per_token=6.0 * size,
        flops=6.0 * size * tokens,
        tokens=int(tokens),
        unique_tokens=int(1e12),
        epochs=tokens / 1e12,
        steps=max(int(tokens / 8192), 1),
        batch=64,
        length=128,
        lr=1e-3,
        schedule="cosine",
        seed=0,
        loss=loss,
        loss_stderr=0.002,
        bits_per_byte=None,
        bits_per_byte_stderr=None,
        validation=VALIDATION,
        train_loss=9.0,  # never to be fitted: a fit that reads it is far off
    )
    return Record(**(values | changes))


# Laws of two objectives at the scale of a CPU; the second needs more compute for the same loss.
SMALL = {
    "ar": {"E": 1.2, "A": 60.0, "a": 0.35, "B": 250.0, "b": 0.36},
    "masked": {"E": 1.3, "A": 70.0, "a": 0.34, "B": 420.0, "b": 0.365},
}


def sweep(series=("ar", "masked"), budgets=(1e12, 3e12, 1e13, 3e13), sizes=5, noise=NOISE, seed=0, config=None) -> list[Record]:
    """Records of an isoFLOP sweep, the same cells for each series, noise of a cell partly shared."""
    rng = np.random.default_rng(seed)
    found = []
    shared = {(flops, i): rng.standard_normal() for flops in budgets for i in range(sizes)}
    for name in series:
        law = SMALL[name]
        for flops in budgets:
            best, _, _ = forms.optimum(law, flops)
            for i, size in enumerate(best * 10 ** np.linspace(-0.6, 0.6, sizes)):
                tokens = int(flops / 6 / size)
                error = noise * (0.6 * shared[flops, i] + 0.8 * rng.standard_normal())
                loss = float(additive_loss(np.array([size]), np.array([tokens]), law)[0] * np.exp(error))
                cell = {"budget": flops, "width": i, "seed": 0}
                found.append(
                    record(f"{name}-{flops:.0e}-{i}", name, size, tokens, loss, budget=flops, cell=cell, config=dict(config or {}))
                )
    return found
