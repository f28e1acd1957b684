"""Networks of boards: what they are told of the rules, and that they are told no more."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dlmjax import config as config_lib
from dlmjax.errors import InputError
from dlmjax.models import Execution, build_network
from dlmjax.models.cache import bind_cached, empty_cache
from dlmjax.models.families import model_spec
from dlmjax.models.masks import BOARD_PERIOD, Full, Mask, Peers, within
from tests.models import tiny

CELLS = 81


def peers_of(cell: int) -> set[int]:
    """The 20 other cells that the rules compare with a cell, and the cell."""
    row, column = divmod(cell, 9)
    return {r * 9 + c for r in range(9) for c in range(9) if r == row or c == column or (r // 3, c // 3) == (row // 3, column // 3)}


def test_a_cell_sees_its_peers_and_what_is_no_cell():
    mask, index = within(Full(), 0, True), np.arange(2 * BOARD_PERIOD)
    assert isinstance(mask, Peers) and isinstance(mask, Mask) and hash(mask) == hash(Peers(Full()))
    table = mask.allowed(index[:, None], index[None])
    for q in index:
        seen = {k % BOARD_PERIOD for k in np.flatnonzero(table[q])}
        assert seen == (peers_of(q % BOARD_PERIOD) | {CELLS} if q % BOARD_PERIOD < CELLS else set(range(BOARD_PERIOD)))
    assert all(len(peers_of(cell)) == 21 for cell in range(CELLS))


def states(spec, tokens_BL):
    network = build_network(spec, Execution(scan=False))
    positions_BL = jnp.broadcast_to(jnp.arange(tokens_BL.shape[1]), tokens_BL.shape)
    denoiser = network.bind(network.init(jax.random.key(0)), jnp.ones_like(tokens_BL), positions_BL)
    return np.asarray(denoiser.hidden(tokens_BL, jnp.zeros(tokens_BL.shape)))


def test_one_layer_tells_a_cell_of_its_peers_alone():
    """Another digit in one cell changes the states of its peers, of itself and of the token that is no cell."""
    tokens = np.random.default_rng(0).integers(0, 9, (1, BOARD_PERIOD))
    for family, seen in (("peers", peers_of(40) | {CELLS}), ("all", set(range(BOARD_PERIOD)))):
        spec = tiny.spec(depth=1, width=16, board=True, peers=family == "peers")
        other = tokens.copy()
        other[0, 40] = 9
        changed = np.abs(states(spec, jnp.asarray(tokens)) - states(spec, jnp.asarray(other))).max((0, 2)) > 1e-6
        assert set(np.flatnonzero(changed).tolist()) == seen


def test_an_empty_board_has_cells_that_differ_by_row_column_and_box_alone():
    """Rotary positions tell nothing where all tokens are equal, so what differs comes from the vectors of the units."""
    empty = jnp.zeros((1, BOARD_PERIOD), int)
    plain, board = (states(tiny.spec(depth=1, width=16, board=with_board), empty)[0] for with_board in (False, True))
    assert np.abs(plain - plain[0]).max() < 1e-5
    assert (np.abs(board[:, None] - board[None]).max(-1) + np.eye(BOARD_PERIOD)).min() > 1e-4


def test_rows_that_are_no_boards_are_refused():
    for changes in ({"board": True}, {"peers": True}):
        with pytest.raises(InputError, match="requires rows of 82 tokens, a board and one more"):
            states(tiny.spec(depth=1, **changes), jnp.zeros((1, 81), int))
    network = build_network(tiny.spec(depth=1, peers=True))
    with pytest.raises(InputError, match="peers=True cannot be read block by block"):
        bind_cached(network, {}, empty_cache(network, 1, 82), 0, 1, Full())


def test_a_family_names_them():
    config = config_lib.override(config_lib.default(), ["model.family=qwen3(board=True, peers=True)"])
    spec = model_spec(config.model, vocab=10)
    assert spec.board and spec.peers and spec.differing(model_spec(config_lib.default().model, vocab=10)) == ["board", "peers"]
