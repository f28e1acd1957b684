"""Weights of a network over a larger vocabulary than that of the run that they come from (`--init`).

Ids after those of the other run may be new: special tokens that a tokenizer gained for conversations, or `model.vocab` raised for the ids
of a tail. A token keeps its row of the embedding and of the head under its new id; a new one starts at the mean of the rows of all tokens
with text, so that it is as likely as they are on average, and the logits of old tokens are the same to the bit.

Shapes: V classes of a network.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Int

from dlmjax.data.subword import PROBE
from dlmjax.data.table_tokenizer import TableTokenizer
from dlmjax.experiment import Experiment

_OWN = ("mask_id", "pad_id", "eos_id")
NEW = -1


@dataclasses.dataclass(frozen=True)
class Growth:
    """Where the rows of a vocabulary come from.

    from_V: for each class the class of the other run, or NEW.  text: classes there whose tokens have text.  source: classes there.
    """

    from_V: Int[np.ndarray, "V"]
    text: Int[np.ndarray, "T"]
    source: int

    def axis_of(self, there: tuple[int, ...], here: tuple[int, ...]) -> int | None:
        """The axis by which a weight of shape `here` has more classes than that of shape `there`; None where they differ otherwise."""
        differing = [axis for axis, sizes in enumerate(zip(there, here, strict=False)) if sizes[0] != sizes[1]]
        grown = len(there) == len(here) and [(there[axis], here[axis]) for axis in differing] == [(self.source, len(self.from_V))]
        return differing[0] if grown else None

    def grow(self, weight: jax.Array, axis: int) -> jax.Array:
        """A weight of the other run with the rows of this one."""
        rows = jnp.moveaxis(weight, axis, 0)
        mean = jnp.mean(rows[self.text], axis=0, keepdims=True)
        new_V = (self.from_V == NEW).reshape(-1, *(1,) * (rows.ndim - 1))
        return jnp.moveaxis(jnp.where(new_V, mean, rows[np.maximum(self.from_V, 0)]), 0, axis)

    @property
    def share(self) -> float:
        """Of the rows that are new."""
        return float(np.mean(self.from_V == NEW))


def growth_of(origin: Experiment, experiment: Experiment) -> Growth | None:
    """How the vocabulary of a run grows to that of another; None where its tokenizer is not part of the other's."""
    old, new, there, here = origin.tokenizer, experiment.tokenizer, origin.process.vocab, experiment.process.vocab
    from_V = np.full(here, NEW)
    if old.hash == new.hash:
        from_V[: min(here, there)] = np.arange(min(here, there))
    elif not _is_part(old, new):
        return None
    else:
        own = [getattr(old, name) for name in _OWN]
        kept = np.setdiff1d(np.arange(old.vocab_size), own)
        from_V[kept] = kept
        from_V[[getattr(new, name) for name in _OWN]] = own
    return Growth(from_V, np.flatnonzero(old.byte_lengths_V > 0), there)


def _is_part(old: TableTokenizer, new: TableTokenizer) -> bool:
    """Whether each token of a tokenizer has the same id in the other, mask, pad and end of document apart, and text the same tokens."""
    own = {getattr(old, name) for name in _OWN}
    if new.vocab_size <= old.vocab_size or type(new) is not type(old):
        return False
    same = all(number in own or old.token_bytes[number] == new.token_bytes[number] for number in range(old.vocab_size))
    named = all(number in own or new.control_texts.get(text) == number for text, number in old.control_texts.items())
    return same and named and np.array_equal(old.encode(PROBE), new.encode(PROBE))
