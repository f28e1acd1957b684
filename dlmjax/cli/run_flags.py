"""Flags that several commands share: which run is opened, and how its text is sampled. Imports nothing heavy."""

from __future__ import annotations

import argparse
import dataclasses
from typing import TYPE_CHECKING, Any

from dlmjax import flags
from dlmjax.fields import MOST_LOOPS

if TYPE_CHECKING:
    from dlmjax.run import Run
    from dlmjax.sampling import SampleSettings

SPLITS = ("train", "valid", "test")


def add_run(command: argparse.ArgumentParser) -> None:
    """The flags that `open_arguments` reads."""
    add = command.add_argument
    add("--workdir", type=flags.input_folder, required=True, metavar="DIR", help="directory of a run that `dlmjax train` made")
    add("--weights", default="ema", choices=("ema", "raw"), help="weights: ema, their average, or raw, those of the last step (ema)")
    add("--step", type=flags.whole(0), metavar="N", help="step of the checkpoint (the newest)")
    add("--process", metavar="NAME", help="process for the same weights, such as autoregressive (the one trained last)")
    add("--trust-code", action="store_true", help="run the Python file of a workdir whose network is not of a family (off)")


def open_arguments(arguments: argparse.Namespace) -> Run:
    """The run that the flags of `add_run` name. Raises InputError: no such run or checkpoint."""
    from dlmjax.run import open_run

    named = {name: getattr(arguments, name) for name in ("weights", "step", "trust_code", "process")}
    placed = {name: getattr(arguments, name, None) for name in ("mesh", "dtype")}
    return open_run(arguments.workdir, loops=getattr(arguments, "loops", None), **placed, **named)


def add_placement(command: argparse.ArgumentParser) -> None:
    """`--mesh` and `--dtype`, which `open_arguments` reads."""
    add = command.add_argument
    what = "sizes of the mesh of all devices, as in data=2,fsdp=4: data and fsdp split the rows of canvases, fsdp and tensor the weights"
    add("--mesh", metavar="SIZES", help=f"{what} (everything whole on each device)")
    what = "type of weights and layers; bfloat16: weights are rounded as they are read, norms and biases are not"
    add("--dtype", choices=flags.WEIGHT_TYPES, help=f"{what} (weights float32, layers as in training)")


def add_loops(command: argparse.ArgumentParser) -> None:
    """`--loops`, which `open_arguments` reads."""
    kind = flags.whole(1, MOST_LOOPS)
    command.add_argument("--loops", type=kind, metavar="N", help="number of runs of the looped layers of --workdir (as in training)")


def add_data(command: argparse.ArgumentParser) -> None:
    """`--data` and `--split`: the held-out text of a run."""
    command.add_argument("--data", type=flags.input_folder, metavar="DIR", help="prepared corpus (the one that the run was trained on)")
    command.add_argument("--split", default="valid", choices=SPLITS, help="split of the corpus (valid)")


def add_sampling(command: argparse.ArgumentParser, temperature: float = 1.0, rule: str = "ancestral") -> None:
    """Settings of a sampler that `sample`, `quality` and `solve` have in common; see docs/sampling.md."""
    add = command.add_argument
    add_rule(command, rule, "; ancestral: steps in time by --method")
    add(
        "--stop",
        nargs="?",
        const="end",
        metavar="STOP",
        help="stop: exit(bound=0.1), prophet, sched, stable, my_module.MyStop: reveals the rest of a row at once; end, or no value: ends a "
        "text at its end of document, with blocks, --stride or causal processes under `sample`; both: end+exit(bound=0.1) (none)",
    )
    add(
        "--eos",
        type=flags.text,
        metavar="HOLD",
        help="hold-back of the end of document, for ranks and draws: first(tokens=32), rising(low=0.4), suppressed (none)",
    )
    add(
        "--method",
        default="ancestral",
        help="method of a step in time: ancestral, tau_leap, analytic, first_hitting, predetermined, remask(eta=0.1), accept, "
        "accept_once, psi(kappa=0.95), rdm, self_correct, gibbs(rounds=16), acs, ddpm, ddim(eta=0), heun (ancestral)",
    )
    add(
        "--grid",
        default="auto",
        help="times of the steps: uniform, power(exponent=2), cosine, shifted(alpha=3), listed(points=(1,0.4,0)), hold(at=0.1); auto: "
        "power where noise replaces tokens by wrong ones, else uniform (auto)",
    )
    add("--temperature", type=flags.number(0), default=temperature, help=f"temperature; 0: the most likely token ({temperature:g})")
    add("--top-p", type=flags.number(0, 1, open_low=True), default=1.0, help="probability of the nucleus; 1: off (1)")
    add(
        "--cache",
        nargs="?",
        const=True,
        default=False,
        type=flags.text,
        metavar="POLICY",
        help="reuse, of two kinds. With a POLICY: of keys and values, in blocks of --steps steps each, an approximation: prompt, "
        "prefix(block=32), dual(block=32,every=8), window(block=32,left=16,right=16), delayed(every=8), delayed_greedy(every=2,window=4). "
        "--cache alone: of the last output where no token has changed, the same text in fewer calls. Both: for networks not conditioned "
        "on t (off)",
    )
    add_draft(command)
    add(
        "--guidance",
        type=_guidance,
        default=0.0,
        metavar="W",
        help="weight of classifier-free guidance by the prompt; cfg(weight=1,low=0.2,high=0.8): at times t between both; 0: off (0)",
    )
    add(
        "--guide",
        type=flags.text,
        default="",
        metavar="GUIDE",
        help="control by a JAX function of your own: classifier(of=my_module.log_p,weight=1,order=first or exact); "
        "gradient(of=my_module.log_p,steps=3) for Gaussian noise; project(of=my_module.violation,tau=0): the nearest distributions with a "
        "violation of at most tau (none)",
    )
    add(
        "--regex",
        type=flags.text,
        default="",
        metavar="PATTERN",
        help="regular expression that the whole text matches, prompt and suffix included, up to its end of document; with a --rule other "
        "than ancestral (any text)",
    )
    add(
        "--search",
        type=flags.text,
        metavar="SEARCH",
        help="search among candidates: best(n=8,score=confidence), score=own, likelihood(run='DIR') or my_module.score; "
        "votes(n=8,blocks=(8,16)), votes(over=steps); smc(particles=4,reward=my_module.reward); beam(width=4,branch=2), paths(n=4,rounds=2,"
        "share=0.5,redraw=end or any) (none)",
    )
    add("--seed", type=flags.seed, default=0, help="seed of the sampler, 0 to 4294967295; each further batch uses the next one (0)")


def _guidance(text: str) -> float | str:
    """The value of `--guidance`: a number, or the text of `sampling.guidance.make_guidance`."""
    return text if "(" in text else flags.number()(text)


def add_draft(command: argparse.ArgumentParser) -> None:
    """`--draft`: several steps by one network call; see `sampling.drafts`."""
    what = "drafts of the next steps, which one network call checks: own(depth=4), by the network itself; for autoregressive runs "
    what += "run(path='DIR',depth=8,accept=replay), by a run with masks, accept: replay, ratio, delta, mixture(weight=0.3); joint(depth=8)"
    command.add_argument("--draft", type=flags.text, metavar="DRAFT", help=f"{what} (off)")


def add_grow(command: argparse.ArgumentParser) -> None:
    """`--grow`: a canvas that gets longer while it is filled; see `sampling.daedal`."""
    what = "growth of the canvas, up to --length: daedal(initial=64,window=32,longest=2048), from a short canvas, where the end of document"
    command.add_argument("--grow", type=flags.text, metavar="GROWTH", help=f"{what} is not likely enough (off)")


def add_rule(command: argparse.ArgumentParser, default: str | None, more: str) -> None:
    """`--rule`: which positions a step reveals; see `sampling.rules`."""
    rules = (
        "random, left_to_right, confidence, margin, entropy, each with (count=, plan=first, dream or doubling), threshold(value=0.9), "
        "entropy_bound(gamma=0.1), factor, profile, spread, klass, pipeline, saber, credit, pc, wino, t2t, "
        "min_gap(rule=margin,d=2); my_module.MyRule: one of your own"
    )
    command.add_argument("--rule", default=default, help=f"rule of the positions that a step reveals: {rules}{more} ({default})")


def check_rule(text: str | None) -> None:
    """Imports the module of a rule of one's own. Raises InputError: no such rule, a value that it does not take."""
    from dlmjax.sampling.rule_names import IN_TIME, import_rule

    if text not in (None, IN_TIME):
        import_rule(text)


def check_stop(text: str | None) -> None:
    """Imports the module of a stop of one's own, also beside `end`. Raises InputError: no such stop, a value that it does not take."""
    from dlmjax.sampling.stops import import_stop

    for word in (text or "").split("+"):
        if word.strip() not in ("", "end"):
            import_stop(word.strip())


def sample_values(arguments: argparse.Namespace) -> dict[str, Any]:
    """The values of `SampleSettings` that flags of the same names give; the module of a rule of one's own is imported."""
    from dlmjax.sampling import SampleSettings
    from dlmjax.sampling.guidance import import_guide

    names = {field.name for field in dataclasses.fields(SampleSettings)} & set(vars(arguments))
    values = {name: getattr(arguments, name) for name in names}
    check_rule(values["rule"])
    check_stop(values["stop"])
    if values["guide"]:
        import_guide(values["guide"])
    return values


def sample_settings(arguments: argparse.Namespace, run: Run, **changes: Any) -> SampleSettings:
    """The settings of `sample_values`; ids that text never holds are suppressed. Raises InputError: settings that conflict."""
    return run.sample_settings(**(sample_values(arguments) | changes))
