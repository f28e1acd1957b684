"""Scores of the candidates of a search, by name; higher is better.

    confidence              mean log-probability, nats, that the tokens had when they were revealed; costs nothing
    own                     log-likelihood, nats, under the run itself: exact for causal processes, else its bound, under the same masks for
                            all candidates of a prompt
    likelihood(run=DIR)     the same under another run, such as an autoregressive one
    my_module.score         a function of one's own, (list of texts) -> a number each

Shapes: P prompts, N candidates, L positions.
"""

import dataclasses
import importlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from dlmjax.errors import InputError
from dlmjax.quality.answers import last_part
from dlmjax.run import Run, open_run
from dlmjax.sampling import Samples
from dlmjax.sampling.by_name import build
from dlmjax.sampling.samples import State
from dlmjax.sampling.search import Judged, Score, Searcher, confidence
from dlmjax.sampling.search_kinds import Votes, make_search
from dlmjax.sampling.text import text_of

TextOf = Callable[[np.ndarray], str]


@dataclasses.dataclass(frozen=True)
class Likelihood:
    """The verifier `likelihood`. run: workdir of a run.  draws: network passes of each candidate where the likelihood is a bound."""

    run: str
    draws: int = 128


@dataclasses.dataclass(frozen=True)
class Own:
    """The verifier `own`. draws: as for `Likelihood`."""

    draws: int = 128


def make_score(text: str, run: Run, extra: dict[str, Score] | None = None) -> Score:
    """The score of a name. extra: scores of a caller's own by name, such as the checker of puzzles.

    Raises InputError: no such score or run, a module that cannot be imported.
    """
    if text in (extra or {}):
        return extra[text]
    if text == "confidence":
        return confidence
    head = text.partition("(")[0].strip()
    if head in ("own", "likelihood"):
        named = build("score", text, {"own": Own, "likelihood": Likelihood})
        if not 1 <= named.draws < 2**20:
            raise InputError(f"score {head}: draws is {named.draws}; it must be 1 or more")
        return _likelihood_of(open_run(named.run) if isinstance(named, Likelihood) else run, run, named.draws)
    function = _function("score", text, ["confidence", "own", "likelihood(run=DIR)", *(extra or {})])

    def of_texts(candidates: Sequence[Samples]) -> np.ndarray:
        columns = [_numbers(text, function([text_of(run.tokenizer, tokens_L) for tokens_L in each.tokens_BL])) for each in candidates]
        return np.stack(columns, axis=1)

    return of_texts


def _likelihood_of(judge: Run, run: Run, draws: int) -> Score:
    def of_answers(candidates: Sequence[Samples]) -> Judged:
        """The log-likelihood of each answer."""
        rows = []
        for p, condition_L in enumerate(candidates[0].condition_mask_BL):
            prompt = int(np.argmin(condition_L)) if not condition_L.all() else 0  # the tokens before the first that was sampled
            pairs = [
                (text_of(run.tokenizer, each.tokens_BL[p, :prompt]), text_of(run.tokenizer, each.tokens_BL[p, prompt:]))
                for each in candidates
            ]
            # An answer without text, as of ends alone, has no likelihood to compare.
            full = [answer for _, answer in pairs if answer]
            found = iter(judge.score(pairs[0][0], full, draws=draws) if full else [])
            rows.append([(made.log_likelihood, made.passes) if answer and (made := next(found)) else (-np.inf, 0) for _, answer in pairs])
        scores_PN2 = np.asarray(rows)
        return Judged(scores_PN2[..., 0], scores_PN2[..., 1].astype(np.int64))

    return of_answers


def _function(what: str, text: str, names: Sequence[str]) -> Callable[..., Any]:
    """The function of a dotted name that a person has typed; its module is imported."""
    module, _, name = text.rpartition(".")
    if not module or not all(part.isidentifier() for part in text.split(".")):
        raise InputError(f"unknown {what} {text!r:.100}; choose one of {', '.join(names)}, or my_module.my_function")
    try:
        function = getattr(importlib.import_module(module), name)
    except Exception as error:
        line = str(error).splitlines()[0][:200] if str(error) else ""
        raise InputError(f"{what} {text!r:.100}: it cannot be imported ({type(error).__name__}: {line})") from error
    if not callable(function):
        raise InputError(f"{what} {text!r:.100} is not a function")
    return function


def _numbers(name: str, values: Any) -> np.ndarray:
    try:
        return np.asarray(values, np.float64).reshape(-1)
    except (TypeError, ValueError) as error:
        raise InputError(f"score {name:.100} does not give a number for each text ({type(error).__name__}: {error})") from error


def searcher(
    text: str, run: Run, sampler: Any, *, text_of_answer: TextOf | None = None, scores: dict[str, Score] | None = None
) -> Searcher:
    """The search of a text with a sampler of a run.

    text_of_answer: the answer in a row of token ids, for votes; None = its text, or what follows the mark of the search.
    scores: as `extra` of `make_score`.
    Raises InputError: no such search or score; a search that the sampler does not support.
    """
    search = make_search(text)
    score = make_score(search.score, run, scores) if search.score and not search.of_states else None
    named = search.of_states and search.score != "confidence"
    function = _function("reward" if search.name == "smc" else "score", search.score, ["confidence"]) if named else None

    def of_state(state: State) -> np.ndarray:
        return _numbers(search.score, function(state.tokens_BL, state.masked_BL))

    def answer(tokens_L: np.ndarray) -> str | None:
        whole = text_of(run.tokenizer, tokens_L)
        return last_part(whole, search.mark) if isinstance(search, Votes) and search.mark else whole

    return Searcher(text, sampler, score=score, answer=text_of_answer or answer, reward=of_state if named else None)
