"""Is a network worse on the masks of its rule than on those it was trained on? Cross-entropy along a rule's path against random masks.

    python -m benchmarks.own_masks --workdir RUN [--data DIR] [--rules margin "min_gap(rule=margin(count=16), d=8)"] [--windows 64]

Held-out texts go along the path of each rule (tokens of the text, positions of the rule). At the first state of a text in which a share of
the positions is revealed, `masked` is the mean nats of its masked tokens, and `random` that of as many masked tokens at random positions,
the masks of training. `next` is the mean of the tokens that the rule reveals there. ±: paired, over texts. A rule that reveals sure tokens
first leaves the others, so `masked` rises by selection too: it says what the rest of the path costs, not that the network errs.
"""

import argparse

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial

from dlmjax import open_run
from dlmjax.data import EvalWindows
from dlmjax.diffusion.process import bind_process, exclude
from dlmjax.experiment import split_of
from dlmjax.files import write_json
from dlmjax.sampling import make_rule
from dlmjax.sampling.reveal import position_scores
from dlmjax.sampling.rules import MOST_STEPS, View

SHARES = (0.125, 0.25, 0.5, 0.75, 0.875)


def stepper(run, rule):
    """jitted (texts, masked, random, step, memory) -> (revealed next, nats, nats under the random masks, memory)."""
    process, network = run.experiment.process.bound, run.experiment.unpartitioned

    def log_p(texts_BL, masked_BL):
        of = bind_process(process, run.params)
        z_BL = jnp.where(masked_BL, process.mask_id, texts_BL)
        index_BL = jnp.broadcast_to(jnp.arange(z_BL.shape[1]), z_BL.shape)
        denoiser = network.bind(run.params, jnp.ones_like(z_BL), index_BL, process.attention)
        t_BL = masked_BL.astype(jnp.float32) * jnp.mean(masked_BL, axis=1, keepdims=True)
        logits_BLV = denoiser.logits(denoiser.hidden(z_BL, of.time_embedding_input(t_BL)))
        return jax.nn.log_softmax(exclude(of.output.log_posterior(logits_BLV, z_BL, t_BL), of.suppressed_ids))

    @jax.jit
    def one(texts_BL, masked_BL, random_BL, step, memory):
        log_p_BLV, other_BLV = log_p(texts_BL, masked_BL), log_p(texts_BL, random_BL)
        view = View(
            masked_BL=masked_BL,
            start_masked_BL=jnp.ones_like(masked_BL),
            step=step,
            steps=MOST_STEPS,
            scores_of=Partial(lambda log_p_BLV, name: position_scores(name, log_p_BLV), log_p_BLV),
            log_p=lambda: log_p_BLV,
        )
        choice = rule.choose(view, memory)
        nats = [-jnp.take_along_axis(p_BLV, texts_BL[..., None], axis=-1)[..., 0] for p_BLV in (log_p_BLV, other_BLV)]
        return choice.reveal_BL & masked_BL, *nats, choice.memory

    return one


def along(run, rule_text: str, texts_BL: np.ndarray, seed: int = 0) -> dict[float, dict]:
    """share -> the numbers of the states in which it is first reached."""
    rule = make_rule(rule_text)
    one, rank_BL = stepper(run, rule), np.random.default_rng(seed).random(texts_BL.shape).argsort(axis=1).argsort(axis=1)
    masked_BL, memory = np.ones(texts_BL.shape, bool), rule.begin(texts_BL.shape, run.experiment.process.output.columns)
    values_BS3, step = np.full((len(texts_BL), len(SHARES), 3), np.nan), 0
    while masked_BL.any():
        step += 1
        count_B = masked_BL.sum(axis=1)
        random_BL = rank_BL < count_B[:, None]
        new_BL, nats_BL, other_BL, memory = one(texts_BL, masked_BL, random_BL, np.int32(step), memory)
        new_BL, nats_BL, other_BL = (np.asarray(array) for array in (new_BL, nats_BL, other_BL))
        for b in np.flatnonzero(count_B):
            for s, share in enumerate(SHARES):
                if 1 - count_B[b] / texts_BL.shape[1] >= share and np.isnan(values_BS3[b, s, 0]):
                    values_BS3[b, s] = nats_BL[b][masked_BL[b]].mean(), other_BL[b][random_BL[b]].mean(), nats_BL[b][new_BL[b]].mean()
        masked_BL = masked_BL & ~new_BL
    found = {}
    for s, share in enumerate(SHARES):
        rows_N3 = values_BS3[np.isfinite(values_BS3[:, s, 0]), s]
        gap_N = rows_N3[:, 0] - rows_N3[:, 1]
        means = dict(zip(("masked", "random", "next"), rows_N3.mean(axis=0).tolist(), strict=True))
        found[share] = means | {"gap": float(gap_N.mean()), "stderr": float(gap_N.std(ddof=1) / len(gap_N) ** 0.5), "texts": len(gap_N)}
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workdir", required=True, help="masked run")
    parser.add_argument("--data", help="prepared corpus (that of the run)")
    parser.add_argument("--split", default="valid", help="its split")
    parser.add_argument(
        "--rules", nargs="+", default=["left_to_right(count=1)", "margin(count=1)", "entropy(count=1)"], help="rules with a path"
    )
    parser.add_argument("--windows", type=int, default=64, help="texts, from the first")
    parser.add_argument("--json", help="file for the numbers")
    args = parser.parse_args()
    run = open_run(args.workdir)
    windows = EvalWindows(split_of(run, args.data, args.split), run.experiment.config.data.length)
    texts_BL = np.asarray(windows.rows(range(args.windows))["tokens"], np.int32)
    found = {rule: along(run, rule, texts_BL) for rule in args.rules}
    print("| rule | revealed | masked | random | difference | next |\n|---|---:|---:|---:|---:|---:|")
    for rule, by_share in found.items():
        for share, row in by_share.items():
            print(
                f"| `{rule}` | {share:.3f} | {row['masked']:.3f} | {row['random']:.3f} | {row['gap']:+.3f} ± {row['stderr']:.3f} | "
                f"{row['next']:.3f} |"
            )
    if args.json:
        write_json(args.json, {rule: {str(share): row for share, row in by_share.items()} for rule, by_share in found.items()})


if __name__ == "__main__":
    main()
