"""Share of padding in the rows of the lm-eval adapter, on a data set of last words: the batches alone, without a network.

python benchmarks/lm_eval_padding.py --data lambada_test.jsonl.xz --tokenizer gpt2:DIR [--draws 128] [--batch 8] [--length 1024]

`--data`: one {"text": ...} a line, plain or .xz. Prints passes, tokens, padding and the compiled shapes, for masked and causal processes.
"""

import argparse
import json
import lzma
import types

import jax.numpy as jnp

from dlmjax.data import load_tokenizer
from dlmjax.diffusion import make_process
from dlmjax.harness.adapter import Adapter, Model


class ZeroNetwork:
    """A bound network whose states and losses are zero."""

    def hidden(self, z, t_BL):
        return t_BL[..., None]

    def row_losses(self, hidden_BLD, loss_mask_BL, loss_fn, args, weight_BL):
        return jnp.float32(0), jnp.zeros_like(weight_BL)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True)
    parser.add_argument("--tokenizer", required=True)
    parser.add_argument("--draws", type=int, default=128)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--length", type=int, default=1024)
    values = parser.parse_args()
    tokenizer = load_tokenizer(values.tokenizer)
    with (lzma.open if values.data.endswith(".xz") else open)(values.data, "rt", encoding="utf-8") as lines:
        texts = [json.loads(line)["text"] for line in lines]
    pairs = [(text.rsplit(" ", 1)[0], " " + text.rsplit(" ", 1)[1]) for text in texts]
    requests = [
        types.SimpleNamespace(args=pair, task_name="words", doc_id=i, idx=0, request_type="loglikelihood") for i, pair in enumerate(pairs)
    ]
    network = types.SimpleNamespace(spec=types.SimpleNamespace(self_condition=False))
    for name in ("masked", "autoregressive"):
        ids = {"mask_id": tokenizer.mask_id, "bos_id": tokenizer.bos_id, "excluded": (tokenizer.pad_id,)}
        process = make_process(name, vocab=tokenizer.vocab_size, **ids)
        model = Model(process, network, lambda *_, **__: ZeroNetwork(), (), tokenizer, values.length, name)
        adapter = Adapter(model, draws=values.draws, batch=values.batch)
        adapter.loglikelihood(requests, disable_tqdm=True)
        spent = adapter.scorer.spent
        widths = sorted({shape[2] for shape in spent.shapes})
        print(
            f"{name}: {len(requests):,} requests, {spent.passes / len(requests):.1f} passes each (is_greedy's among them), "
            f"{spent.tokens:,} tokens, padding {100 * spent.padding:.1f} %, {len(spent.shapes)} shapes of widths {widths}",
            flush=True,
        )


if __name__ == "__main__":
    main()
