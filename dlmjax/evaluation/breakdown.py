"""Nats of a bound by document, by position in the window and by frequency of the token (by time t: `levels` of a result).

Observers of an `Evaluator`: they receive the nats of every token once and keep only sums, so they cost no network call.

Shapes: B windows of a batch, L length, D documents, N rows of a table, V vocabulary. Units: nats.
"""

import dataclasses
import importlib.util
import io
from typing import Any

import numpy as np
from jaxtyping import Int, UInt8

from dlmjax.data.roles import ROLES, role_of
from dlmjax.errors import InputError
from dlmjax.evaluation.likelihood import TokenNats, bytes_of
from dlmjax.evaluation.windows import Windows
from dlmjax.files import write_atomically

POSITION_ROWS = 16


@dataclasses.dataclass
class ByDocument:
    """Log-likelihoods of documents. nats_D: the bound of each, summed over its scored tokens; tokens_D, bytes_D: numbers of these,
    without a tail's."""

    windows: Windows
    byte_lengths_V: Int[np.ndarray, "V"]

    def __post_init__(self):
        documents = len(self.windows.ends_D)
        self.nats_D, self.tokens_D, self.bytes_D = np.zeros(documents), np.zeros(documents, np.int64), np.zeros(documents, np.int64)

    def see(self, batch: TokenNats) -> None:
        """Adds each scored token to its document."""
        at_BL = self.windows.begin_W[batch.window_B][:, None] + np.arange(batch.tokens_BL.shape[1])
        document_N = np.searchsorted(self.windows.ends_D, at_BL[batch.scored_BL], side="right")
        counted_N = batch.counted_BL[batch.scored_BL]
        bytes_N = counted_N * bytes_of(batch.tokens_BL[batch.scored_BL], len(self.byte_lengths_V), self.byte_lengths_V)
        for total_D, value_N in ((self.nats_D, batch.nats_BL[batch.scored_BL]), (self.tokens_D, counted_N), (self.bytes_D, bytes_N)):
            np.add.at(total_D, document_N, value_N)

    def write(self, path: str, ids: list[str]) -> None:
        """Writes an .npz of ids (text), nats (float64), tokens and bytes (int64), one entry for each document, atomically.

        Documents without scored tokens have 0 tokens. -nats is the log-likelihood, or a lower bound of it.
        Raises InputError where the file cannot be written.
        """
        content = io.BytesIO()
        np.savez(content, ids=np.array(ids), nats=self.nats_D, tokens=self.tokens_D, bytes=self.bytes_D)
        write_atomically(path, content.getvalue())


@dataclasses.dataclass
class ByPosition:
    """Nats by the token's index in its window, in at most 16 equal ranges."""

    length: int

    def __post_init__(self):
        self._nats_L, self._tokens_L = np.zeros(self.length), np.zeros(self.length, np.int64)

    def see(self, batch: TokenNats) -> None:
        """Adds the columns of a batch."""
        columns = slice(batch.tokens_BL.shape[1])
        self._nats_L[columns] += np.where(batch.scored_BL, batch.nats_BL, 0.0).sum(axis=0)
        self._tokens_L[columns] += batch.scored_BL.sum(axis=0)

    def table(self) -> list[dict[str, Any]]:
        """Rows {"first", "end", "tokens", "nats_per_token"}; ranges without scored tokens are left out."""
        size = -(-self.length // POSITION_ROWS)
        starts = np.arange(0, self.length, size)
        nats_N, tokens_N = (np.add.reduceat(values_L, starts) for values_L in (self._nats_L, self._tokens_L))
        return [
            {"first": int(first), "end": int(min(first + size, self.length)), **_mean(float(nats), int(tokens))}
            for first, nats, tokens in zip(starts, nats_N, tokens_N, strict=True)
            if tokens
        ]


@dataclasses.dataclass
class ByFrequency:
    """Nats by the share of the token in a reference text, in powers of ten; tokens that the reference text lacks have their own row."""

    counts_V: Int[np.ndarray, "V"]

    def __post_init__(self):
        share_V = self.counts_V / max(int(self.counts_V.sum()), 1)
        # Row 0: not in the reference; row n: at least 10^-n, below 10^(1-n).
        self._row_V = np.where(share_V > 0, np.ceil(-np.log10(np.maximum(share_V, 1e-300)) - 1e-12).clip(1), 0).astype(np.int64)
        rows = int(self._row_V.max()) + 1
        self._nats_N, self._tokens_N = np.zeros(rows), np.zeros(rows, np.int64)

    def see(self, batch: TokenNats) -> None:
        """Adds each scored token of the text to the row of its frequency."""
        row_N = self._row_V[batch.tokens_BL[batch.counted_BL]]
        np.add.at(self._nats_N, row_N, batch.nats_BL[batch.counted_BL])
        np.add.at(self._tokens_N, row_N, 1)

    def table(self) -> list[dict[str, Any]]:
        """Rows {"share_from", "share_below", "tokens", "nats_per_token"}, the most frequent first; unseen tokens last, below 0."""
        order = [*range(1, len(self._nats_N)), 0]
        return [
            {
                "share_from": 10.0**-n if n else 0.0,
                "share_below": 10.0 ** (1 - n) if n > 1 else 1.0 if n else 0.0,
                **_mean(float(self._nats_N[n]), int(self._tokens_N[n])),
            }
            for n in order
            if self._tokens_N[n]
        ]


@dataclasses.dataclass
class ByRole:
    """Nats of supervised data by the role of the token (`data/roles.py`). roles_T: of the stream of the windows."""

    windows: Windows
    roles_T: UInt8[np.ndarray, "T"]

    def __post_init__(self):
        self._nats_R, self._tokens_R = np.zeros(len(ROLES)), np.zeros(len(ROLES), np.int64)

    def see(self, batch: TokenNats) -> None:
        """Adds each scored token to its role."""
        at_BL = self.windows.begin_W[batch.window_B][:, None] + np.arange(batch.tokens_BL.shape[1])
        role_N = role_of(self.roles_T[at_BL[batch.scored_BL]])
        np.add.at(self._nats_R, role_N, batch.nats_BL[batch.scored_BL])
        np.add.at(self._tokens_R, role_N, 1)

    def table(self) -> list[dict[str, Any]]:
        """Rows {"role", "tokens", "nats_per_token"} of the roles that have scored tokens."""
        found = zip(ROLES, self._nats_R.tolist(), self._tokens_R.tolist(), strict=True)
        return [{"role": role, **_mean(nats, tokens)} for role, nats, tokens in found if tokens]


def as_text(tables: dict[str, list[dict[str, Any]]]) -> str:
    """The tables of a breakdown as text."""
    lines = []
    for name, rows in tables.items():
        lines.append(f"  nats/token by {name}")
        lines += [f"    {label(name, row):>16}  {row['nats_per_token']:8.4f}" + _count(row) for row in rows]
    return "\n".join(lines)


def label(name: str, row: dict[str, Any]) -> str:
    """Label of a row of the table `name`."""
    if name == "level":
        return f"t = {row['t']:.3f}"
    if name == "position":
        return f"{row['first']}-{row['end'] - 1}"
    return f">= {row['share_from']:.0e}" if row["share_from"] else "unseen"


def require_figures() -> None:
    """Raises InputError where matplotlib is not installed."""
    if importlib.util.find_spec("matplotlib") is None:
        raise InputError('--plot requires matplotlib; install it with: pip install "dlmjax[scaling]"')


def plot(tables: dict[str, list[dict[str, Any]]], path: str, title: str) -> None:
    """Writes a PNG with one panel for each table. Raises InputError where matplotlib is not installed."""
    require_figures()
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.2 * len(tables), 3.4), layout="constrained")
    for panel, (name, rows) in zip(np.atleast_1d(figure.subplots(1, len(tables))), tables.items(), strict=True):
        x = [row["t"] for row in rows] if name == "level" else range(len(rows))
        panel.plot(x, [row["nats_per_token"] for row in rows], marker="o", markersize=3)
        if name != "level":
            panel.set_xticks(x, [label(name, row) for row in rows], rotation=60, fontsize=7)
        panel.set_xlabel(name)
        panel.set_ylabel("nats/token")
    figure.suptitle(title, fontsize=9)
    content = io.BytesIO()
    figure.savefig(content, format="png", dpi=120)
    write_atomically(path, content.getvalue())


def _mean(nats: float, tokens: int) -> dict[str, Any]:
    return {"tokens": tokens, "nats_per_token": nats / tokens}


def _count(row: dict[str, Any]) -> str:
    return f"  {row['tokens']:,} tokens" if "tokens" in row else ""
