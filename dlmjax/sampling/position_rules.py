"""`pc`: a ranked rule by place and by how rare a token is in the corpus (PC-Sampler), and the tables of frequencies that it reads.

A table is named by the SHA-256 of its counts, which is part of the rule's text, so that a record says which corpus a text depends on.
`attach_table` attaches one; `Run.sample_settings` attaches that of the run's corpus and completes the text. A rule whose table is not
attached is refused.

Shapes: B rows, L positions, V vocabulary.
"""

import dataclasses
import hashlib

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int

from dlmjax.choices import text_of
from dlmjax.errors import InputError
from dlmjax.sampling.rules import OnBestOrDrawn, Ranked, check_on, probability_on

_TABLES: dict[str, Float[np.ndarray, "V"]] = {}
_LETTERS = 16  # of the SHA-256 in the text of a rule


def attach_table(counts_V: Int[np.ndarray, "V"]) -> str:
    """Attaches the table of these counts of tokens and returns its name. -log f of a token is that of (count + 1) / (sum + V), nats."""
    counts_V = np.asarray(counts_V, np.int64)
    name = hashlib.sha256(counts_V.tobytes()).hexdigest()[:_LETTERS]
    _TABLES[name] = -np.log((counts_V + 1) / (counts_V.sum() + len(counts_V))).astype(np.float32)
    return name


@dataclasses.dataclass(frozen=True)
class Pc(OnBestOrDrawn, Ranked):
    """The positions with the highest exp(-slope place) min(-p log f, alpha): early and rare likely tokens come first.

    p: probability of a token.  f: its share of the corpus.  place: number of positions left of it that were masked at the start.

    slope: lambda of the paper, per position.  alpha: largest value of the second factor, nats.  on: the token, as of `rules.Confidence`.
    table: name of the corpus's table; "" = that of the run's corpus.
    """

    slope: float = 0.25
    alpha: float = 10.0
    on: str = "best"
    table: str = ""

    name = "pc"
    source = "PC-Sampler, generate.py: lambda=0.25, alpha=10, on the drawn token"

    def __post_init__(self):
        super().__post_init__()
        check_on(self)
        if not (0 <= self.slope <= 1e6 and 0 < self.alpha <= 1e6):
            raise InputError(f"rule pc: slope ({self.slope}) must be 0 to 1e6, alpha ({self.alpha}) above 0 and at most 1e6")

    @property
    def one_by_one(self):
        return text_of(self.name, {"count": 1, **{name: getattr(self, name) for name in ("slope", "alpha", "table")}})

    def begin(self, shape, vocab):
        if self.table not in _TABLES:
            raise InputError(
                f"rule pc requires the counts of the tokens of a corpus, and table {self.table!r} is not attached; use dlmjax sample, "
                "quality or solve on a run whose corpus is attached"
            )
        return super().begin(shape, vocab)

    def plain_score(self, view):
        log_p_BLV = view.log_p()
        token_BL = view.drawn_BL if self.looks_at_draw else jnp.argmax(log_p_BLV, axis=-1)
        nats_V = np.zeros(log_p_BLV.shape[-1], np.float32)  # ids without a token have no count
        table_V = _TABLES[self.table]
        nats_V[: len(table_V)] = table_V[: len(nats_V)]
        rare_BL = jnp.minimum(probability_on(self.on, view) * jnp.asarray(nats_V)[token_BL], self.alpha)
        before_BL = jnp.cumsum(view.start_masked_BL, axis=1) - 1
        return jnp.exp(-self.slope * before_BL) * rare_BL
