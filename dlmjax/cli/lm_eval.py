"""`dlmjax lm-eval`: tasks of lm-eval-harness on a run, its table, and the standard errors of the likelihoods behind it.

DIR of --output:
    results.json            results of lm-eval with the protocol (`config.dlmjax`), written last
    samples_TASK.jsonl      every document with its answers, in lm-eval's format
    likelihoods.jsonl       every scored request with its standard error, tokens and passes
"""

import argparse
import contextlib
import importlib.util
import math
import os
import pathlib
import re
import textwrap
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from dlmjax import checks, flags
from dlmjax.cli.run_flags import add_draft, add_placement, add_rule, add_run, check_rule, check_stop
from dlmjax.errors import InputError
from dlmjax.files import as_json, make_folder, write_atomically
from dlmjax.quadrature import MOST_CALLS, NODES

HELP = "tasks of lm-eval-harness on a run: multiple choice, last words, rolling likelihoods, generated answers"
RESULTS = "results.json"


def add_flags(command: argparse.ArgumentParser) -> None:
    """The flags of the command."""
    add_run(command)
    add_placement(command)
    add = command.add_argument
    add("--tasks", nargs="+", required=True, metavar="TASK", help="names of tasks or groups, such as blimp or lambada_openai,gsm8k")
    add("--include-path", type=flags.input_folder, metavar="DIR", help="folder of further task files (.yaml)")
    add("--limit", type=flags.whole(1), metavar="N", help="number of documents of each task, from the first on (all)")
    add("--num-fewshot", type=flags.whole(0, 10**6), metavar="N", help="number of solved examples before each question (that of the task)")
    add("--draws", type=flags.whole(1, MOST_CALLS - 1), default=128, help="network passes for each likelihood that is a bound (128)")
    add("--nodes", type=flags.whole(1, 4096), default=NODES, help=f"nodes of their quadrature over time t, unless masked ({NODES})")
    add("--batch", type=flags.whole(1, 2**20), default=8, help="rows of the training length at a time; does not change likelihoods (8)")
    add("--overlap", type=flags.tokens, default=1, metavar="N", help="context of each later window of a long text, tokens (1)")
    add("--max-gen-toks", type=flags.tokens, default=256, metavar="N", help="longest generated text, tokens, unless the task sets it (256)")
    add("--block", type=flags.tokens, default=32, metavar="N", help="block of generated text, tokens (masked processes) (32)")
    add("--tokens-per-step", type=flags.tokens, default=1, metavar="N", help="generated tokens that each network call reveals (1)")
    add_rule(command, None, "; masked processes and blocks")
    add("--eos", type=flags.text, metavar="HOLD", help="hold-back of the end: first(tokens=32), rising(low=0.4), suppressed (none)")
    add_draft(command)
    add("--stop", type=flags.text, metavar="STOP", help="stop of a block: exit(bound=0.1), prophet, sched, stable, my_module.MyStop (none)")
    add(
        "--cache",
        type=flags.text,
        metavar="POLICY",
        help="reused keys and values, masked processes, in blocks of the policy in place of --block: prefix(block=32), dual(block=32), "
        "window, delayed(every=8), delayed_greedy(every=2) (none)",
    )
    add("--seed", type=flags.seed, default=0, help="seed of masks, generated text and few-shot examples (0)")
    add("--offline", action="store_true", help="local task files and data downloaded before alone, without a server (off)")
    add(
        "--output",
        type=flags.output_folder,
        metavar="DIR",
        help="folder for results.json, the samples and every likelihood with its standard error (none)",
    )


def run(arguments: argparse.Namespace, _) -> None:
    """Runs tasks, prints lm-eval's table and the noise of the masks, and writes the files of the module's docstring."""
    batch, seed, output = arguments.batch, arguments.seed, arguments.output
    if output:
        make_folder(pathlib.Path(output) / RESULTS)
    if importlib.util.find_spec("lm_eval") is None:
        raise InputError("lm-eval is not installed; install it with: pip install 'dlmjax[harness]'")
    if arguments.offline:
        # The libraries read these when they are imported.
        os.environ.update(HF_DATASETS_OFFLINE="1", HF_HUB_OFFLINE="1")
    from lm_eval import simple_evaluate
    from lm_eval.utils import make_table

    from dlmjax.harness.adapter import DlmJax

    check_rule(arguments.rule)
    check_stop(arguments.stop)
    manager, found = _tasks([name for part in arguments.tasks for name in part.split(",") if name], arguments.include_path)
    options = (
        "draws",
        "nodes",
        "batch",
        "overlap",
        "block",
        "max_gen_toks",
        "tokens_per_step",
        "rule",
        "eos",
        "draft",
        "stop",
        "cache",
        "seed",
    )
    adapter = DlmJax(
        arguments.workdir,
        arguments.weights,
        arguments.step,
        trust_code=arguments.trust_code,
        process=arguments.process,
        mesh=arguments.mesh,
        dtype=arguments.dtype,
        **{name: getattr(arguments, name) for name in options},
    )
    seeds = dict.fromkeys(("random_seed", "numpy_random_seed", "torch_random_seed", "fewshot_random_seed"), seed)
    with _errors_of_data(found, arguments.offline):
        results = simple_evaluate(
            model=adapter,
            tasks=found,
            task_manager=manager,
            limit=arguments.limit,
            num_fewshot=arguments.num_fewshot,
            batch_size=batch,
            bootstrap_iters=1000,
            **seeds,
        )
    samples = results.pop("samples")
    results["likelihoods"] = {task: _noise([r for r in adapter.records if r["task"] == task]) for task in _distinct(adapter.records)}
    print(make_table(results))
    if results.get("groups"):
        print(make_table(results, "groups"))
    print(_summary(adapter, results["likelihoods"]), flush=True)
    if output:
        _write(pathlib.Path(output), results, samples, adapter.records)


def _tasks(names: list[str], include_path: str | None) -> tuple[Any, list[str]]:
    """(task manager, names of tasks). lm-eval's own thousands of tasks are read only where the folder does not provide one."""
    from lm_eval.tasks import TaskManager

    if not names:
        raise InputError("--tasks has no name; give some, as in --tasks blimp,lambada_openai")
    if include_path and not pathlib.Path(include_path).is_dir():
        raise InputError(f"--include-path {include_path} is not a folder; give a folder of task files (.yaml)")
    manager = TaskManager(include_path=include_path, include_defaults=False) if include_path else None
    if manager is None or not all(manager.match_tasks([name]) for name in names):
        manager = TaskManager(include_path=include_path)
    for name in names:
        if not manager.match_tasks([name]):
            raise InputError(
                f"--tasks {name!r} is not a task of lm-eval" + (f" or of --include-path {include_path}" if include_path else "")
            )
    return manager, [task for name in names for task in manager.match_tasks([name])]


@contextlib.contextmanager
def _errors_of_data(tasks: Sequence[str], offline: bool) -> Iterator[None]:
    """Turns the errors of a server that cannot be reached, and of data files that cannot be read, into one line that names the cure."""
    try:
        yield
    except Exception as error:
        causes, cause = [], error
        while cause is not None and cause not in causes:
            causes.append(cause)
            cause = cause.__cause__ or cause.__context__
        names = textwrap.shorten(", ".join(tasks), 80, placeholder=" ...")
        text = textwrap.shorten(checks.one_line(str(error)), 200, placeholder=" ...")
        # The libraries of servers have classes of their own, which are not installed everywhere.
        servers = ("huggingface_hub", "requests", "httpx", "httpcore", "urllib3", "aiohttp")
        if any(isinstance(each, ConnectionError | TimeoutError) or type(each).__module__.startswith(servers) for each in causes):
            cures = (
                "--offline reads only data that an earlier call has downloaded: give the command once with a network, without --offline"
                if offline
                else "without a network give --offline, which reads data that an earlier call has downloaded"
            )
            local = "--include-path DIR with a task file whose data are local files (docs/lm_eval.md)"
            raise InputError(
                f"--tasks {names}: its data is on a server that cannot be reached ({text}); {cures}, or give {local}"
            ) from error
        if isinstance(error, FileNotFoundError) or type(error).__module__.startswith("datasets"):
            more = f": {checks.one_line(str(causes[1]))}" if len(causes) > 1 else ""
            said = textwrap.shorten(f"{text}{more}", 300, placeholder=" ...")
            raise InputError(f"--tasks {names}: its data cannot be read ({said}); check data_files in the task file") from error
        raise


def _distinct(records: Iterable[dict]) -> list[str]:
    return list(dict.fromkeys(record["task"] for record in records))


def _noise(records: list[dict]) -> dict[str, Any]:
    """The noise that random masks add to the likelihoods of one task.

    stderr: root mean square of the requests' standard errors, nats.  undecided: share of the questions with several choices whose two best
    log-likelihoods differ by less than two standard errors, as if their masks were independent; with common masks the share is lower.
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


def _summary(adapter, noise: dict[str, dict]) -> str:
    """Whether likelihoods are exact or bounds, the noise of the masks in each task, and the cost."""
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
        lines.append("  is_greedy is always False: this process has no deterministic decoding; metrics computed from it have no meaning")
    return "\n".join(lines)


def _write(folder: pathlib.Path, results: dict, samples: dict[str, list], records: list[dict]) -> None:
    from lm_eval.utils import handle_non_serializable

    def lines(rows: list) -> str:
        return "".join(as_json(row, default=handle_non_serializable) + "\n" for row in rows)

    for task, rows in samples.items():
        write_atomically(folder / f"samples_{re.sub(r'[^A-Za-z0-9_.-]', '_', task)}.jsonl", lines(rows))
    write_atomically(folder / "likelihoods.jsonl", lines(records))
    write_atomically(folder / RESULTS, as_json(results, indent=2, default=handle_non_serializable) + "\n")
