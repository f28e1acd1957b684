"""Repair of wrong tokens: held-out rows with planted errors, and what a method of revision makes of them.

    planted     positions of a row whose token is replaced: by a uniform id that is not the right one, or by the model's own errors of one
                parallel step, in which it fills many masked positions that do not see each other
    repaired    share of the planted positions whose token is right again
    collateral  share of the other positions whose token is no longer what it was
    left        wrong tokens after the revision, planted or made by it, over the planted ones: below 1 the row has become better

Nothing tells the method which positions are wrong. Methods that take steps in time first add noise of time `start` to the row; others
revise the row as it is. What the network cannot know (a rare name) cannot be repaired, so shares of methods compare, and none reaches 1.

Shapes: N rows, L positions, B rows of a batch.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, Int

from dlmjax import choices
from dlmjax.errors import InputError
from dlmjax.evaluation.result import ratio_with_error
from dlmjax.quality.frontier import parse_entry
from dlmjax.run import Run
from dlmjax.sampling import METHODS, RULES, Canvas, Sampler, SampleSettings, make_method, sampler_for
from dlmjax.sampling.rule_names import IN_TIME
from dlmjax.seeds import following

AS_IS = 1e-9  # start time of a row that is revised as it is
NOISED = 0.3  # default start time of methods that take steps in time
PLANTED = ("uniform", "own")
DRAWN_FOR_EACH = 4  # positions of the parallel step for each error that is planted


@dataclasses.dataclass(frozen=True)
class Planted:
    """Right tokens, the same with errors, and where these are. A row of the model's own errors may have fewer than asked for."""

    right_NL: Int[np.ndarray, "N L"]
    tokens_NL: Int[np.ndarray, "N L"]
    wrong_NL: Bool[np.ndarray, "N L"]


@dataclasses.dataclass(frozen=True)
class Way:
    """One method of revision. label: as typed; settings: of its sampler; start: time of the noise that it begins with."""

    label: str
    settings: SampleSettings
    start: float


def default_ways(run: Run) -> list[str]:
    """The methods of revision that a run's process declares."""
    known = run.experiment.process.capabilities
    gibbs = "gibbs(rounds=64, count=2, level=0.01)" if "self_correct" in known.methods else "gibbs(rounds=64, count=2)"
    ways = ["ancestral", "psi(kappa=0.5)", gibbs, "remask(eta=0.5)", "self_correct(rounds=32)"]
    ways += ["self_correct(by=probability, rounds=128, patience=32)"]
    found = [way for way in ways if way.partition("(")[0] in known.methods]
    return found + (["t2t"] if "self_correct" in known.methods and known.prior_mask_id is not None else [])


def way_of(run: Run, text: str, base: SampleSettings) -> Way:
    """The way of "METHOD" or "RULE", with its own values of other settings: "psi(kappa=0.5); start=0.2; steps=8".

    Raises InputError: an unknown method or value; a start that is not a time; what the process does not support; a sampler of blocks.
    """
    head, *parts = [part.strip() for part in text.split(";")]
    name, start = choices.parse(head, "by")[0], None
    for part in [part for part in parts if part.replace(" ", "").startswith("start=")]:
        parts.remove(part)
        try:
            start = float(part.partition("=")[2])
        except ValueError:
            start = -1.0
        if not 0 < start < 1:
            raise InputError(f"--by {text!r:.80}: {part} is not a time between 0 and 1; give one, such as start=0.3")
    if name not in RULES and name not in METHODS:
        choices.lookup("--by", name, {**METHODS, **RULES})
    if name in METHODS:
        parts = [IN_TIME, f"method={head}", *parts] if name != IN_TIME else [IN_TIME, *parts]
        corrects = make_method(head).rounds > 0
        parts += ["steps=1"] if corrects and not any(part.replace(" ", "").startswith("steps=") for part in parts) else []
    else:
        corrects, parts = True, [head, *parts]
    settings = parse_entry("; ".join(parts), base, "--by")
    sampler = sampler_for(run.experiment.process, run.experiment.for_canvases, settings, tokenizer=run.experiment.tokenizer)
    rule = settings.make_rule()
    if not isinstance(sampler, Sampler) or sampler.causal:
        raise InputError(f"--repair requires a process whose whole text is sampled at once, not {run.experiment.process.name}")
    if rule is not None and not rule.revises:
        raise InputError(f"--by {head}: the rule reveals masks and does not revise given text; give a method, or rule t2t")
    return Way(text, settings, start or (AS_IS if corrects else NOISED))


def plant(run: Run, right_NL: Int[np.ndarray, "N L"], count: int, *, kind: str = "uniform", batch: int = 16, seed: int = 0) -> Planted:
    """Plants `count` errors in each row, at random positions.  kind: "uniform" or "own".

    Raises InputError: another kind; more errors than half of a row.
    """
    rows, length = right_NL.shape
    if kind not in PLANTED:
        raise InputError(f"--planted is {kind!r}; choose one of {', '.join(PLANTED)}")
    if not 1 <= count <= length // 2:
        raise InputError(f"--repair is {count}; it must be 1 to {length // 2} tokens, half of a row of {length}")
    draw = np.random.default_rng((seed, count, PLANTED.index(kind)))
    order_NL = np.argsort(draw.random(right_NL.shape), axis=1)
    if kind == "uniform":
        ids_K = np.setdiff1d(np.arange(run.experiment.process.vocab), run.sample_settings().suppressed_ids)
        wrong_NL = np.zeros(right_NL.shape, bool)
        np.put_along_axis(wrong_NL, order_NL[:, :count], True, axis=1)
        # One of the others: an id in place of the right one is drawn from a list without its last, which stands for the right one.
        other_NL = draw.choice(ids_K[:-1], right_NL.shape)
        other_NL = np.where(other_NL == right_NL, ids_K[-1], other_NL)
        return Planted(right_NL, np.where(wrong_NL, other_NL, right_NL).astype(np.int32), wrong_NL)
    asked_NL = np.zeros(right_NL.shape, bool)
    np.put_along_axis(asked_NL, order_NL[:, : min(length, DRAWN_FOR_EACH * count)], True, axis=1)
    settings = run.sample_settings(steps=1)
    sampler = sampler_for(run.experiment.process, run.experiment.for_canvases, settings, tokenizer=run.experiment.tokenizer)
    made = []
    for number, first in enumerate(range(0, rows, batch)):
        part = slice(first, first + batch)
        canvas = Canvas(right_NL[part], ~asked_NL[part], asked_NL[part].astype(np.float32))
        made.append(sampler.sample(run.params, canvas, seed=following(seed, number)).tokens_BL)
    made_NL = np.concatenate(made)
    differ_NL = made_NL != right_NL
    rank_NL = np.argsort(np.argsort(np.where(differ_NL, draw.random(right_NL.shape), 2.0), axis=1), axis=1)
    wrong_NL = differ_NL & (rank_NL < count)
    return Planted(right_NL, np.where(wrong_NL, made_NL, right_NL).astype(np.int32), wrong_NL)


def repair(run: Run, way: Way, planted: Planted, *, batch: int = 16, seed: int = 0) -> dict[str, Any]:
    """What a way makes of planted rows, as plain JSON: shares with their s.e. over rows, at the end and after each step (`rounds`)."""
    sampler = sampler_for(run.experiment.process, run.experiment.for_canvases, way.settings, tokenizer=run.experiment.tokenizer)
    counts, calls = [], []
    for number, first in enumerate(range(0, len(planted.right_NL), batch)):
        part = slice(first, first + batch)
        tokens_BL, right_BL, wrong_BL = planted.tokens_NL[part], planted.right_NL[part], planted.wrong_NL[part]
        canvas = Canvas(tokens_BL, np.zeros(tokens_BL.shape, bool), np.full(tokens_BL.shape, way.start, np.float32))
        steps = []
        for state in sampler.states(run.params, canvas, seed=following(seed, number)):
            is_right_BL = state.tokens_BL == right_BL
            steps.append(np.stack([(wrong_BL & is_right_BL).sum(axis=1), (~wrong_BL & ~is_right_BL).sum(axis=1)], axis=1))
        counts.append(steps)
        calls.append(np.asarray(state.calls_B))
    most = max(len(steps) for steps in counts)
    # A batch that has ended stays as it is.
    counts_SN2 = np.stack([np.concatenate([steps[min(step, len(steps) - 1)] for steps in counts]) for step in range(most)]).astype(
        np.float64
    )
    of_N2 = np.stack([planted.wrong_NL.sum(axis=1), (~planted.wrong_NL).sum(axis=1)], axis=1).astype(np.float64)
    left = float((of_N2[:, 0] - counts_SN2[-1, :, 0] + counts_SN2[-1, :, 1]).sum() / of_N2[:, 0].sum())
    rounds = [_shares(of_step_N2, of_N2) for of_step_N2 in counts_SN2]
    settings = way.settings.to_json()
    return {
        "label": way.label,
        "start": way.start,
        "calls": float(np.concatenate(calls).mean()),
        **rounds[-1],
        "left": left,
        "rounds": rounds,
    } | {"settings": settings}


def _shares(counts_N2: np.ndarray, of_N2: np.ndarray) -> dict[str, float]:
    found = {}
    for column, name in enumerate(("repaired", "collateral")):
        found[name], found[f"stderr_{name}"] = ratio_with_error(counts_N2[:, column], of_N2[:, column])
    return found


def compare(
    run: Run, ways: Sequence[Way], planted: Planted, *, batch: int = 16, seed: int = 0, log: Callable[[str], object] = lambda line: None
) -> list[dict[str, Any]]:
    """`repair` of each way on the same rows.  log: called with each label before it is run.  Raises InputError: no error was planted."""
    if not planted.wrong_NL.any():
        raise InputError("--planted own: the model made no errors in one parallel step; plant uniform ids, or more of them")
    rows = []
    for way in ways:
        log(f"repairing by {way.label}")
        rows.append(repair(run, way, planted, batch=batch, seed=seed))
    return rows


def table(rows: Sequence[dict[str, Any]]) -> str:
    """The rows as a Markdown table."""
    lines = ["| by | start | calls | repaired | collateral | wrong tokens left, of those planted |", "|---|---:|---:|---:|---:|---:|"]
    for row in rows:
        shares = " | ".join(f"{100 * row[name]:.1f} ± {100 * row[f'stderr_{name}']:.1f} %" for name in ("repaired", "collateral"))
        start = "as it is" if row["start"] == AS_IS else f"{row['start']:g}"
        lines.append(f"| `{row['label']}` | {start} | {row['calls']:.0f} | {shares} | {row['left']:.2f} |")
    return "\n".join(lines)
