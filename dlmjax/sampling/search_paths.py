"""Which states of a beam go on, and the neighbours of a sample: what `search` does between and before the runs of `beam` and `paths`.

Shapes: P prompts, N candidates, B rows = N x P, S steps of a run and its start, L positions.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Int

from dlmjax.sampling.samples import State
from dlmjax.sampling.search_kinds import Beam, Paths

PATHS_KEY = 7  # beside the numbers of other draws of a search


def kept_rows(search: Beam, state: State, scores_PN: Float[np.ndarray, "P N"]) -> Int[np.ndarray, "B"]:
    """The rows that continue in place of each one: the `width` best states of each prompt, `branch` times.

    A state that equals a better one goes behind all others: two copies would search the same texts. Ties: the first row.
    """
    prompts, count = scores_PN.shape
    kept = []
    for p in range(prompts):
        order_N = np.argsort(-scores_PN[p], kind="stable")
        texts = [(state.tokens_BL[j * prompts + p].tobytes(), state.masked_BL[j * prompts + p].tobytes()) for j in order_N]
        again_N = np.array([text in texts[:i] for i, text in enumerate(texts)])
        best_N = order_N[np.argsort(again_N, kind="stable")][: search.width]
        kept.append(np.repeat(best_N, search.branch) * prompts + p)
    return np.stack(kept, axis=1).ravel()


def pivots_of(seeds: Sequence[Int[np.ndarray, "P S"]], scores_PN: Float[np.ndarray, "P N"]) -> Int[np.ndarray, "P S"]:
    """The seeds of the best candidate of each prompt; ties: the first one."""
    return np.stack(seeds)[np.argmax(scores_PN, axis=1), np.arange(len(scores_PN))]


def neighbour_of(search: Paths, pivot_PS: Int[np.ndarray, "P S"], seed: int, number: int, new_seed: int) -> Int[np.ndarray, "P S"]:
    """The seeds of candidate `number`: those of the pivots, and in a share of the steps `new_seed`.

    The start, step 0, is redrawn by redraw=any alone; at least one step is redrawn. A prompt's choice does not depend on the others.
    """
    prompts, starts = pivot_PS.shape
    if search.redraw == "end":
        first = starts - max(1, round(search.share * (starts - 1)))
        redrawn_PS = np.tile(np.arange(starts) >= first, (prompts, 1))
    else:
        draws = [np.random.default_rng((seed, PATHS_KEY, number, p)) for p in range(prompts)]
        redrawn_PS = np.stack([draw.random(starts) < search.share for draw in draws])
        redrawn_PS[np.arange(prompts), [int(draw.integers(starts)) for draw in draws]] = True
    return np.where(redrawn_PS, new_seed, pivot_PS)
