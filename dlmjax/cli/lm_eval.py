"""`dlmjax lm-eval`: tasks of lm-eval-harness on a run, its table, and what the likelihoods behind it are worth.

DIR of --output:
    results.json            lm-eval's results with the protocol (`config.dlmjax`), written last
    samples_TASK.jsonl      every document with its answers, as lm-eval logs them
    likelihoods.jsonl       every scored request with its standard error, tokens and passes
"""

import importlib.util
import math
import os
import pathlib
import re
from collections.abc import Iterable
from typing import Any

from dlmjax.errors import InputError
from dlmjax.evaluation.levels import NODES
from dlmjax.evaluation.limits import check_numbers
from dlmjax.files import as_json, make_folder, write_atomically

RESULTS = "results.json"


def lm_eval(
    *,
    workdir: str,
    tasks: list[str],
    include_path: str | None = None,
    weights: str = "ema",
    step: int | None = None,
    limit: int | None = None,
    num_fewshot: int | None = None,
    draws: int = 128,
    nodes: int = NODES,
    batch: int = 8,
    overlap: int = 1,
    max_gen_toks: int = 256,
    block: int = 32,
    tokens_per_step: int = 1,
    seed: int = 0,
    offline: bool = False,
    output: str | None = None,
) -> dict[str, Any]:
    """Runs tasks, prints lm-eval's table and a line on the masks' part in it, and writes the files of the module's docstring.

    Raises:
      InputError: lm-eval is not installed; no such run or task; a folder that cannot be written to; a seed or a batch out of range.
    """
    check_numbers(seed=seed, batch=batch)
    if output:
        make_folder(pathlib.Path(output) / RESULTS)
    if importlib.util.find_spec("lm_eval") is None:
        raise InputError("lm-eval is not installed; it comes with: pip install 'dlmjax[harness]'")
    if offline:
        # Read when the libraries are imported, which is below.
        os.environ.update(HF_DATASETS_OFFLINE="1", HF_HUB_OFFLINE="1")
    from lm_eval import simple_evaluate
    from lm_eval.utils import make_table

    from dlmjax.harness.adapter import DlmJax

    names = [name for part in tasks for name in part.split(",") if name]
    manager, found = _tasks(names, include_path)
    options = {"draws": draws, "nodes": nodes, "batch": batch, "overlap": overlap, "block": block}
    adapter = DlmJax(workdir, weights, step, max_gen_toks=max_gen_toks, tokens_per_step=tokens_per_step, seed=seed, **options)
    results = simple_evaluate(
        model=adapter,
        tasks=found,
        task_manager=manager,
        limit=limit,
        num_fewshot=num_fewshot,
        batch_size=batch,
        bootstrap_iters=1000,
        random_seed=seed,
        numpy_random_seed=seed,
        torch_random_seed=seed,
        fewshot_random_seed=seed,
    )
    samples = results.pop("samples")
    results["likelihoods"] = {task: _noise([r for r in adapter.records if r["task"] == task]) for task in _distinct(adapter.records)}
    print(make_table(results))
    if results.get("groups"):
        print(make_table(results, "groups"))
    print(_said(adapter, results["likelihoods"]), flush=True)
    if output:
        _write(pathlib.Path(output), results, samples, adapter.records)
    return results


def _tasks(names: list[str], include_path: str | None) -> tuple[Any, list[str]]:
    """(task manager, names of tasks). lm-eval's own thousands of tasks are only read where the given folder lacks one."""
    from lm_eval.tasks import TaskManager

    if not names:
        raise InputError("no task is named; give --tasks NAME, as in --tasks blimp,lambada_openai")
    if include_path and not pathlib.Path(include_path).is_dir():
        raise InputError(f"there is no folder {include_path}; --include-path takes a folder of task files (.yaml)")
    manager = TaskManager(include_path=include_path, include_defaults=False) if include_path else None
    if manager is None or not all(manager.match_tasks([name]) for name in names):
        manager = TaskManager(include_path=include_path)
    for name in names:
        if not manager.match_tasks([name]):
            raise InputError(f"lm-eval knows no task {name!r}" + (f", nor is one in {include_path}" if include_path else ""))
    return manager, [task for name in names for task in manager.match_tasks([name])]


def _distinct(records: Iterable[dict]) -> list[str]:
    return list(dict.fromkeys(record["task"] for record in records))


def _noise(records: list[dict]) -> dict[str, Any]:
    """What chance has in the likelihoods of one task.

    stderr: root mean square of the requests' standard errors, nats.  undecided: share of the questions of several choices whose best two
    log-likelihoods lie within two standard errors of their difference, as if the masks were not common: with common ones it is less.
    """
    errors = [record["stderr"] for record in records]
    questions: dict[int, list[dict]] = {}
    for record in records:
        questions.setdefault(record["doc_id"], []).append(record)
    several = [sorted(own, key=lambda r: -r["log_likelihood"])[:2] for own in questions.values() if len(own) > 1]
    close = [a["log_likelihood"] - b["log_likelihood"] < 2 * math.hypot(a["stderr"], b["stderr"]) for a, b in several]
    return {
        "requests": len(records),
        "tokens": sum(record["tokens"] for record in records),
        "passes": sum(record["passes"] for record in records),
        "stderr": math.sqrt(sum(error**2 for error in errors) / len(errors)),
        "undecided": sum(close) / len(close) if close else None,
    }


def _said(adapter, noise: dict[str, dict]) -> str:
    """For a person: what is exact, what a bound, and how much of it the masks decide."""
    kind = {"exact": "exact", "counted": "bounds, masks stratified over their number", "integrated": "bounds, integrated over t"}
    spent = adapter.scorer.spent
    lines = [f"log-likelihoods of process {adapter.model.process.name}: {kind[adapter.scorer.form]}; {adapter.model.name}"]
    for task, found in noise.items():
        undecided = "" if found["undecided"] is None else f", {100 * found['undecided']:.1f} % of the questions within 2 of their errors"
        passes = f"{found['passes'] / found['requests']:.1f} passes each"
        lines.append(f"  {task}: {found['requests']:,} requests, {passes}, masks' stderr {found['stderr']:.3f} nats{undecided}")
    if spent.passes:
        lines.append(
            f"  {spent.tokens:,} tokens in {spent.seconds:.1f} s ({spent.tokens / max(spent.seconds, 1e-9):,.0f} tokens/s, "
            f"{len(spent.shapes)} shapes compiled), padding {100 * spent.padding:.1f} %"
        )
    if adapter.scorer.form == "integrated" and noise:
        lines.append("  is_greedy is False throughout: this process decodes nothing without chance; metrics made of it mean nothing")
    return "\n".join(lines)


def _write(folder: pathlib.Path, results: dict, samples: dict[str, list], records: list[dict]) -> None:
    from lm_eval.utils import handle_non_serializable

    def lines(rows: list) -> str:
        return "".join(as_json(row, default=handle_non_serializable) + "\n" for row in rows)

    for task, rows in samples.items():
        write_atomically(folder / f"samples_{re.sub(r'[^A-Za-z0-9_.-]', '_', task)}.jsonl", lines(rows))
    write_atomically(folder / "likelihoods.jsonl", lines(records))
    write_atomically(folder / RESULTS, as_json(results, indent=2, default=handle_non_serializable) + "\n")
