"""Slips in public decoding code, each as a case that fails where it is made; the rules and stops by definition are in other files.

Of the end of document that is suppressed after the draw: tests/sampling/test_ends.py.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dlmjax.sampling.rule_names import make_rule
from tests.sampling.test_rules import chosen, text_of, view_of
from tests.sampling.test_stops import ends, gap


def rows_of(*tops) -> np.ndarray:
    """p of rows of positions, each with this largest probability among three tokens."""
    return np.array([[[c, (1 - c) * 0.6, (1 - c) * 0.4] for c in row] for row in tops])


@pytest.mark.parametrize("text", ["factor", "profile", "entropy_bound(gamma=0.3)"])
def test_the_first_candidate_that_fails_is_not_taken(text):
    """dInfer and PC-Sampler break at the first failure and then take it too."""
    p_BLK = rows_of([0.99, 0.95, 0.4, 0.98])
    assert chosen(text, p_BLK)[0].tolist() == [True, True, False, True]


@pytest.mark.parametrize(
    "name", ["klass", "confidence(count=1)", "margin(count=1)", "entropy(count=1)", "entropy_bound(gamma=0)", "threshold"]
)
def test_the_surest_position_comes_first_and_chance_has_no_say(name):
    """KLASS's `entropy` ranks the least sure first, and above temperature 0 by exp(logit) with noise."""
    p_BLK, found = rows_of([0.5, 0.7, 0.4, 0.6]), []
    for seed in range(4):
        view, rule = view_of(p_BLK, steps=4), make_rule(name)
        view = view.__class__(**{**vars(view), "keys_B": jax.random.split(jax.random.key(seed), 1)})
        found.append(np.flatnonzero(np.asarray(rule.choose(view, rule.begin((1, 4), 3)).reveal_BL)[0]).tolist())
    assert found == [[1]] * 4


@pytest.mark.parametrize("text", ["exit(bound=0.5)", "prophet", "sched", "stable"])
def test_a_stop_decides_for_each_row(text):
    """SchED's and Prophet's code average over the batch, so that a sure row ends an unsure one, or waits for it."""
    sure, unsure = [gap(9.0)] * 3, [gap(0.5)] * 3
    for p_BLK in (np.array([sure, unsure]), np.array([unsure, sure, unsure])):
        first, memory = ends(text, p_BLK)
        again, _ = ends(text, p_BLK, memory=memory)
        alone = [ends(text, row[None], memory=ends(text, row[None])[1])[0][0] for row in p_BLK]
        assert again == alone == [bool(row[0, 0] > 0.9) for row in p_BLK]


@pytest.mark.parametrize("name", ["spread", "klass", "saber", "min_gap", "dream"])
def test_a_rule_decides_for_each_row(name):
    """The DUS copy appends the positions that one row has skipped to all rows."""
    text = {"dream": "confidence(plan=dream)"}.get(name, text_of(name))
    draw = np.random.default_rng(0)
    p_BLK = draw.dirichlet(np.full(3, 0.4), (6, 8))
    start_BL = draw.random((6, 8)) < np.linspace(0.3, 1, 6)[:, None]
    start_BL[:, 0] = True
    masked_BL = start_BL & (draw.random((6, 8)) < 0.8)
    masked_BL[:, 0] = True
    p_drawn_BL = jnp.asarray(p_BLK.max(axis=-1))

    def of(rows) -> np.ndarray:
        view = view_of(p_BLK[rows], masked_BL[rows], 2, 4, start_BL[rows], p_drawn_BL[rows])
        rule = make_rule(text)
        return np.asarray(rule.choose(view, rule.begin(view.masked_BL.shape, 3)).reveal_BL & view.masked_BL)

    together_BL = of(np.arange(6))
    np.testing.assert_array_equal(together_BL, np.concatenate([of(np.array([b])) for b in range(6)]))
    assert len({tuple(row) for row in together_BL}) > 1
