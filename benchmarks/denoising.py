"""How a trained run denoises: entropy against steps, the order of the tokens, and the step at which a text is final.

    python -m benchmarks.denoising --workdir RUN --steps 4,8,16,32,64 [--rules ancestral confidence] [--temperatures 1] [--count 16]

One table per rule and temperature, `--count` texts of the training length each:

    calls      network calls per text
    entropy    of the tokens of a text, bits, mean over texts: low values are repetition (few steps, greedy rules)
    tau        Kendall's tau-b between position and the step at which the final token appeared: 1 = left to right, 0 = any order; with
               its standard error over texts
    shown      first state from which on the revealed text does not change, as a share of the steps
    guessed    the same with the network's best prediction at every mask (processes with a mask): what early stopping could save
    flips      tokens of a text that were revealed and changed later

Means over texts. All numbers but the entropy are of the recorded trace (`dlmjax.sampling.analysis`). Under noise without a mask (uniform,
Gaussian), a flip is any change. Costs about twice the sampling itself.
"""

import argparse
import itertools
import json
import math

import jax
import jax.numpy as jnp
import numpy as np

from dlmjax.diffusion.process import bind_process
from dlmjax.errors import InputError
from dlmjax.files import write_atomically
from dlmjax.run import Run, open_run
from dlmjax.sampling import SampleSettings, Trace, analysis, blank_canvas, record, sampler_for, suppressed_ids

COLUMNS = ("steps", "calls", "entropy", "tau", "stderr_tau", "shown", "guessed", "flips")


def x0_predictor(run: Run, suppressed: tuple[int, ...]):
    """x0_prediction(revealed_BL, masked_BL, time) of the run's network; None where a state is not tokens and masks under full attention."""
    process = run.experiment.process.bound
    if process.attention.sequential or process.states.dim or not hasattr(process, "mask_id"):
        return None

    @jax.jit
    def best(params, z_BL, t_BL):
        bound = bind_process(process, params)
        segments_BL, positions_BL = jnp.ones_like(z_BL), jnp.broadcast_to(jnp.arange(z_BL.shape[1]), z_BL.shape)
        denoiser = run.experiment.unpartitioned.bind(params, segments_BL, positions_BL, process.attention)
        logits_BLV = denoiser.logits(denoiser.hidden(z_BL, bound.time_embedding_input(t_BL)))
        return jnp.argmax(logits_BLV.at[..., jnp.asarray(suppressed)].set(-jnp.inf), axis=-1)

    def x0_prediction(revealed_BL, masked_BL, time):
        z_BL = np.where(masked_BL, process.mask_id, revealed_BL).astype(np.int32)
        return np.asarray(best(run.params, z_BL, np.full(z_BL.shape, time, np.float32)))

    return x0_prediction


def measure(run: Run, rule: str, steps: int, count: int, seed: int, temperature: float = 1.0) -> dict:
    """One row of the table."""
    experiment = run.experiment
    suppressed = suppressed_ids(experiment.tokenizer, experiment.process.vocab)
    settings = SampleSettings(steps=steps, rule=rule, temperature=temperature, suppressed_ids=suppressed)
    sampler = sampler_for(experiment.process, experiment.unpartitioned, settings)
    samples, trace = record(sampler, run.params, blank_canvas(run.experiment.config.data.length, count), seed=seed)
    x0_prediction = x0_predictor(run, suppressed)
    taus = analysis.order_tau(trace)
    taus = taus[np.isfinite(taus)]
    return {
        "rule": rule,
        "temperature": temperature,
        "steps": samples.steps,
        "calls": samples.evaluations,
        "entropy": samples.entropy / math.log(2),
        "tau": float(taus.mean()) if len(taus) else None,
        "stderr_tau": float(taus.std(ddof=1) / len(taus) ** 0.5) if len(taus) > 1 else None,
        "shown": share_settled(trace, trace.tokens_SBL),
        "guessed": None if x0_prediction is None else share_settled(trace, analysis.completed(trace, x0_prediction)),
        "flips": float(analysis.flips(trace).mean()),
    }


def share_settled(trace: Trace, texts_SBL: np.ndarray) -> float:
    """The first stable state as a share of the steps, mean over rows."""
    return float(analysis.first_stable(texts_SBL, analysis.generated(trace)).mean() / (trace.states - 1))


def table(rows: list[dict]) -> str:
    """Markdown."""
    lines = ["| " + " | ".join(COLUMNS) + " |", "|" + "---|" * len(COLUMNS)]
    for row in rows:
        cells = ("—" if row[name] is None else f"{row[name]:.2f}" if isinstance(row[name], float) else str(row[name]) for name in COLUMNS)
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--workdir", required=True)
    parser.add_argument("--steps", default="4,8,16,32,64")
    parser.add_argument("--rules", nargs="+", default=["ancestral", "confidence"])
    parser.add_argument("--temperatures", default="1")
    parser.add_argument("--count", type=int, default=16)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json")
    arguments = parser.parse_args()
    try:
        run, report = open_run(arguments.workdir), []
        for rule, temperature in itertools.product(arguments.rules, map(float, arguments.temperatures.split(","))):
            rows = [measure(run, rule, int(steps), arguments.count, arguments.seed, temperature) for steps in arguments.steps.split(",")]
            what = f"{run.experiment.process.name}, step {run.step}, {run.weights} weights, rule {rule}, temperature {temperature:g}"
            print(f"\n{what}\n\n{table(rows)}", flush=True)
            report += rows
        if arguments.json:
            write_atomically(arguments.json, json.dumps({"workdir": arguments.workdir, "step": run.step, "rows": report}, indent=1) + "\n")
    except InputError as error:
        raise SystemExit(f"benchmarks.denoising: {error}") from None


if __name__ == "__main__":
    main()
