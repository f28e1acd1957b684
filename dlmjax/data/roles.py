"""The column of supervised data: one byte a token that says what a loss does with it, and who wrote it.  Imports nothing.

    bits 0-1  use: 0 given (clean, visible, no loss), 1 scored (noised, loss), 2 tail (noised, loss with a weight of the config),
              3 hidden (never shown: what a row cuts off, and padding)
    bits 2-4  role: text, system, user, assistant, tool, thought, tail, other
    bit 5     first token of a message (a turn of a conversation), the header that a chat template writes included
    bit 6     last token of its document; the rows that a run trains on do not have it (`supervised.py`)
    bit 7     filled: no token of the corpus, but of the tail or of a block that `supervised.py` fills

The functions take and return numpy or jax arrays of any shape, or whole numbers.
"""

from typing import Any

USES = ("given", "scored", "tail", "hidden")
CONDITION, SCORED, TAIL, HIDDEN = range(4)
ROLES = ("text", "system", "user", "assistant", "tool", "thought", "tail", "other")
MESSAGE_START = 1 << 5
END = 1 << 6
FILLED = 1 << 7


def pack_role(use: Any, role: Any, starts_message: Any = 0) -> Any:
    """The byte of a token: its use (0..3), its role (0..7), and whether it is the first of a message (0 or 1)."""
    return use | role << 2 | starts_message << 5


def use_of(roles: Any) -> Any:
    """The use of each token, 0..3: an index of `USES`."""
    return roles & 3


def role_of(roles: Any) -> Any:
    """The role of each token, 0..7: an index of `ROLES`."""
    return roles >> 2 & 7


def is_message_start(roles: Any) -> Any:
    """Whether each token is the first of a message (bool)."""
    return (roles & MESSAGE_START) > 0


def is_filled(roles: Any) -> Any:
    """Whether each token is filled in, and none of the corpus (bool)."""
    return (roles & FILLED) > 0


def carries_loss(roles: Any) -> Any:
    """Whether each token is noised and has loss, the tail included."""
    return (use_of(roles) == SCORED) | (use_of(roles) == TAIL)


def with_scored(batch: dict) -> dict:
    """A batch with masks in the place of "roles": "scored" and "tail", as `diffusion.Objective` takes them. One without roles as it is."""
    if "roles" not in batch:
        return batch
    masks = {"scored": carries_loss(batch["roles"]), "tail": use_of(batch["roles"]) == TAIL}
    return {name: array for name, array in batch.items() if name != "roles"} | masks


PADDING = pack_role(HIDDEN, ROLES.index("tail"))  # of positions after the last document of a row
ALL_SCORED = pack_role(SCORED, ROLES.index("text"))  # of every token of a corpus without the column
