"""Small runs for experiments on texts that a script writes: data, training for equal FLOPs, and answers under the text before and after.

A text is a document of the corpus, a line of `text.txt`.

Shapes: B rows, L positions.
"""

import argparse
import pathlib
from collections.abc import Sequence

import numpy as np

from dlmjax import config as config_lib
from dlmjax import open_run
from dlmjax.data import load_tokenizer
from dlmjax.data.prepare import prepare
from dlmjax.experiment import assemble
from dlmjax.run import Run
from dlmjax.sampling import Canvas
from dlmjax.train import train

ROOT = pathlib.Path(__file__).resolve().parents[1]


def flags(description: str, runs: str, flops: float, processes: str) -> argparse.ArgumentParser:
    """The flags that these experiments share."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", default=runs, metavar="DIR", help="folder of data and runs; runs in it are not trained again")
    parser.add_argument("--flops", type=float, default=flops, help="training FLOPs of each run")
    parser.add_argument("--processes", default=processes, help="values of process.name, with semicolons")
    parser.add_argument("--seeds", default="0", help="seeds of training, with commas")
    parser.add_argument("--json", help="file for the rows")
    return parser


def prepared(root: pathlib.Path, texts: Sequence[str], tokenizer: str) -> pathlib.Path:
    """The corpus of these texts in `root`/data, all in the train split."""
    root.mkdir(parents=True, exist_ok=True)
    path = root / "text.txt"
    path.write_text("".join(text + "\n" for text in texts), encoding="utf-8")
    prepare([path], tokenizer, root / "data", documents="line", valid_fraction=0.0)
    return root / "data"


def trained(workdir: pathlib.Path, data: pathlib.Path, flops: float, overrides: Sequence[str], base: str = "puzzles.py") -> Run:
    """A run of configs/`base` with these overrides, trained for that many FLOPs, counted from shapes."""
    config = config_lib.load(f"{ROOT}/configs/{base}", [f"data.paths={data}", *overrides])
    experiment = assemble(config, load_tokenizer(f"saved:{data}"))
    steps = max(round(flops / (config.data.batch * config.data.length * experiment.flops_per_token)), 1)
    with config.unlocked():
        config.train.steps = config.checkpoint.every = steps
        config.optimizer.warmup = min(config.optimizer.warmup, steps // 4)
    if not train(config, str(workdir))["finished"]:
        raise SystemExit(f"{workdir}: stopped; the same command goes on")
    return open_run(workdir)


def folder_of(process: str, seed: str) -> str:
    """The name of a run's folder."""
    return "".join(letter if letter.isalnum() else "_" for letter in process).strip("_") + f"_seed{seed}"


def canvas_of(texts_BL: np.ndarray, generated_BL: np.ndarray, mask_id: int) -> Canvas:
    """Texts whose tokens are masked where they are to be generated."""
    tokens_BL = np.where(generated_BL, mask_id, texts_BL).astype(np.int32)
    return Canvas(tokens_BL, ~generated_BL, generated_BL.astype(np.float32))


def answer_nats(run: Run, texts_BL: np.ndarray, answer: slice, masked: slice) -> np.ndarray:
    """-log p of the tokens of each text in `answer`, from left to right, one token a call; the tokens in `masked` that come after them are
    masked. Exact for a network that is not conditioned on t. -> [B]"""
    if run.process.bound.attention.causal:
        return _nats(run.logits(texts_BL), texts_BL)[:, answer].sum(axis=1)
    nats_B = np.zeros(len(texts_BL))
    for i in range(answer.start, answer.stop):
        z_BL = texts_BL.copy()
        z_BL[:, i : max(masked.stop, i)] = run.tokenizer.mask_id
        nats_B += _nats(run.logits(z_BL), texts_BL)[:, i]
    return nats_B


def _nats(logits_BLV: np.ndarray, texts_BL: np.ndarray) -> np.ndarray:
    logits_BLV = logits_BLV - logits_BLV.max(axis=-1, keepdims=True)
    log_p_BLV = logits_BLV - np.log(np.exp(logits_BLV).sum(axis=-1, keepdims=True))
    return -np.take_along_axis(log_p_BLV, texts_BL[..., None], axis=-1)[..., 0]


def share(right_B: Sequence[bool]) -> str:
    """A share in percent with its binomial standard error."""
    p, count = float(np.mean(right_B)), len(right_B)
    return f"{100 * p:.1f} ± {100 * (p * (1 - p) / count) ** 0.5:.1f} %"


def mean(values_B: np.ndarray, digits: int = 2) -> str:
    """A mean with its standard error."""
    return f"{np.mean(values_B):.{digits}f} ± {np.std(values_B, ddof=1) / len(values_B) ** 0.5:.{digits}f}"
