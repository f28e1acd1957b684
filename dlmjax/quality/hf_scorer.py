"""A Hugging Face causal language model as scorer, from a local directory, with torch on the CPU; nothing is downloaded.

Shapes: B rows, L positions. Units: nats.
"""

import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from dlmjax.errors import InputError
from dlmjax.files import read_json
from dlmjax.quality.scorers import RunScorer, Sample, Scorer, Scores, windows_of
from dlmjax.run import open_run

ROWS = 4
LONGEST = 2048  # most tokens of a window, also for models with a longer context


class HfScorer:
    """A `scorers.Scorer` of a model directory, in float32.

    Raises InputError: transformers or torch missing, not a model directory, a model that is not causal, no tokenizer in it.
    """

    def __init__(self, directory: str):
        self.directory = pathlib.Path(directory)
        config = self._config()
        if config.get("is_causal", True) is False:
            raise InputError(f"{directory} has is_causal=false, but a scorer must be a causal language model; give another --scorer")
        try:
            import torch
            from transformers import AutoModelForCausalLM, AutoTokenizer
        except ImportError as error:
            raise InputError(f"--scorer requires torch and transformers ({error}); pip install 'dlmjax[interop]'") from error
        self._torch = torch
        try:
            self.tokenizer = AutoTokenizer.from_pretrained(directory, local_files_only=True)
            self.model = AutoModelForCausalLM.from_pretrained(directory, local_files_only=True, dtype=torch.float32).eval()
        except (OSError, ValueError, KeyError, ImportError) as error:
            said = str(error).strip().splitlines()[0]
            raise InputError(f"transformers cannot load {directory} as a causal language model with its tokenizer: {said}") from error
        self.bos, self.eos = self.tokenizer.bos_token_id, self.tokenizer.eos_token_id
        room = getattr(self.model.config, "max_position_embeddings", None) or LONGEST
        self.context = min(room, LONGEST)
        self.record = {
            "scorer": str(directory),
            "kind": f"transformers {config.get('model_type')}",
            "tokenizer": type(self.tokenizer).__name__,
            "tokens": "the text encoded anew",
            "context": self.context,
            "first_token": "not scored" if self.bos is None else "given the beginning of text",
            "precision": "float32",
        }

    def _config(self) -> dict:
        advice = "--scorer requires the local directory of a Hugging Face model (nothing is downloaded)"
        return read_json(self.directory / "config.json", advice=advice, any_number=True)

    def score(self, samples: Sequence[Sample], features: bool = False) -> Scores:
        """See `Scorer`."""
        sequences = [self._ids(sample) for sample in samples]
        # The first token of a sequence is a beginning of text or a token without context; neither is scored.
        pieces = [(n, window) for n, (ids, _) in enumerate(sequences) for window in windows_of(len(ids), self.context, 1)]
        nats_N, last = np.zeros(len(samples)), {}
        for start in range(0, len(pieces), ROWS):
            some = pieces[start : start + ROWS]
            nats_BL, hidden_BD = self._forward([sequences[n][0][w.begin : w.end] for n, w in some], features)
            for row, (n, window) in enumerate(some):
                # Column i holds the nats of token begin + i + 1.
                nats_L = nats_BL[row, window.scored - window.begin - 1 : window.end - window.begin - 1]
                nats_N[n] += nats_L[sequences[n][1][window.scored : window.end]].sum()
                last[n] = None if hidden_BD is None else hidden_BD[row]
        tokens_N = np.array([int(scored_L[1:].sum()) for _, scored_L in sequences])
        bytes_N = np.array([self._scored_bytes(sample, ids) for sample, (ids, _) in zip(samples, sequences, strict=True)])
        if not features:
            return Scores(nats_N, tokens_N, bytes_N, None)
        nothing = np.zeros(self.model.config.hidden_size, np.float32)
        return Scores(nats_N, tokens_N, bytes_N, np.stack([last.get(n, nothing) for n in range(len(samples))]))

    def _ids(self, sample: Sample) -> tuple[list[int], np.ndarray]:
        """(tokens of a sequence, mask of the scored ones). A beginning of text, not scored, precedes each document; an end of text, scored,
        separates two documents. One token may be both."""
        ids: list[int] = []
        scored: list[bool] = []
        for number, document in enumerate(sample.documents):
            tokens = self.tokenizer(document, add_special_tokens=False)["input_ids"]
            end = [self.eos] if number and self.eos is not None else []
            begin = [self.bos] if self.bos is not None and [self.bos] != end else []
            ids += [*end, *begin, *tokens]
            scored += [True] * len(end) + [False] * len(begin) + [True] * len(tokens)
        return ids, np.array(scored, bool)

    def _scored_bytes(self, sample: Sample, ids: list[int]) -> int:
        """Bytes of a sample, without those of a first token that is not scored; a partial character counts as one byte."""
        if self.bos is not None:
            return sample.bytes
        first = self.tokenizer.decode(ids[:1]).replace("\N{REPLACEMENT CHARACTER}", "?")
        return max(sample.bytes - len(first.encode("utf-8")), 0)

    def _forward(self, rows: list[list[int]], features: bool) -> tuple[np.ndarray, np.ndarray | None]:
        """(nats of each next token [B, L - 1], last hidden state at the last token of each row [B, D] or None)."""
        torch = self._torch
        longest = max(len(row) for row in rows)
        ids_BL = torch.tensor([row + [0] * (longest - len(row)) for row in rows])
        seen_BL = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in rows])
        with torch.no_grad():
            out = self.model(input_ids=ids_BL, attention_mask=seen_BL, output_hidden_states=features, use_cache=False)
            logits_BVL = out.logits[:, :-1].float().transpose(1, 2)
            nats_BL = torch.nn.functional.cross_entropy(logits_BVL, ids_BL[:, 1:], reduction="none").double()
        hidden_BD = None
        if features:
            hidden_BD = torch.stack([out.hidden_states[-1][row, len(ids) - 1] for row, ids in enumerate(rows)]).float().numpy()
        return nats_BL.numpy(), hidden_BD


def open_scorer(tokenizer: Any, scorer: str | None, scorer_workdir: str | None, trust_code: bool = False) -> Scorer | None:
    """The scorer of `--scorer`, a Hugging Face directory, or `--scorer-workdir`, that of an autoregressive run; None without either.
    trust_code: whether that run's own Python code may be run.

    Raises InputError: both, not such a directory, not an autoregressive run.
    """
    if scorer and scorer_workdir:
        raise InputError("give either --scorer or --scorer-workdir, not both")
    if scorer:
        return HfScorer(scorer)
    return RunScorer(open_run(scorer_workdir, trust_code=trust_code), tokenizer, str(scorer_workdir)) if scorer_workdir else None
