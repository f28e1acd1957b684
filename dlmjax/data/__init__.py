"""From text to batches: tokenizers, `prepare`, corpora, windows, the loader. docs/data.md follows one document.

Modules are imported at first use: preparing (and its worker processes) requires neither Grain nor jax.
`prepare` itself is `dlmjax.data.prepare.prepare`.
"""

import importlib

_HOME = {
    "Tokenizer": "tokenizers",
    "load_tokenizer": "tokenizers",
    "train_sentencepiece": "subword",
    "Manifest": "manifest",
    "Corpus": "corpus",
    "TrainWindows": "windows",
    "EvalWindows": "windows",
    "train_batches": "loader",
    "eval_batches": "loader",
}
__all__ = list(_HOME)


def __getattr__(name: str):
    if name not in _HOME:
        raise AttributeError(f"dlmjax.data has no {name}")
    return getattr(importlib.import_module(f"dlmjax.data.{_HOME[name]}"), name)
