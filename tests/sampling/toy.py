"""Small laws of text that can be written out whole, and their exact denoisers.  Shapes: N texts, B rows, L positions, V vocabulary."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np

from dlmjax.diffusion import Denoiser
from dlmjax.diffusion.declarations import Attention
from dlmjax.diffusion.processes.masked import Masked
from dlmjax.diffusion.schedules import Linear

ORDERS = ("random", "left_to_right", "confidence", "margin", "entropy")  # rules of a planned number of positions


class Law:
    """A joint law over `symbols ** length` texts; the id `symbols` is the mask."""

    def __init__(self, symbols: int = 3, length: int = 3, seed: int = 0, sharpness: float = 1.5):
        self.symbols, self.length, self.mask_id, self.vocab = symbols, length, symbols, symbols + 1
        self.texts_NL = np.array(list(itertools.product(range(symbols), repeat=length)), np.int32)
        logits_N = np.random.default_rng(seed).normal(size=len(self.texts_NL)) * sharpness
        self.p_N = np.exp(logits_N - logits_N.max())
        self.p_N /= self.p_N.sum()

    @property
    def entropy(self) -> float:
        """H(text), in nats."""
        return -float(np.sum(self.p_N * np.log(self.p_N)))

    def process(self, schedule=None) -> Masked:
        return Masked(self.vocab, self.mask_id, schedule or Linear())

    def denoise(self, z_BL, t_BL=None):
        """log p(x_i | shown tokens of z), a large negative for the mask.  -> [B, L, V]

        Looked up, not computed, so that the answer to a row cannot depend on the batch it stands in.
        """
        del t_BL
        number_B = jnp.sum(z_BL * (self.vocab ** np.arange(self.length - 1, -1, -1)), axis=1)
        return jnp.asarray(self._answers)[number_B]

    @functools.cached_property
    def _answers(self) -> np.ndarray:
        """The posterior given each of the `vocab ** length` partly masked texts."""
        states_SL = np.array(list(itertools.product(range(self.vocab), repeat=self.length)))
        fits_SN = np.all((states_SL[:, None] == self.mask_id) | (states_SL[:, None] == self.texts_NL[None]), axis=2)
        p_SLV = np.einsum("sn,nlv->slv", fits_SN * self.p_N, np.eye(self.vocab)[self.texts_NL])
        p_SLV /= (fits_SN @ self.p_N)[:, None, None]
        return np.where(p_SLV > 0, np.log(np.maximum(p_SLV, 1e-30)), -1e9).astype(np.float32)

    def index(self, tokens_BL: np.ndarray) -> np.ndarray:
        """Number of each row among `texts_NL`."""
        return tokens_BL @ (self.symbols ** np.arange(self.length - 1, -1, -1))

    def bind(self, params, segments_BL, positions_BL, attention="full"):
        """The denoiser as a network would be bound; `params` is a temperature of its beliefs (1.0 = exact)."""
        assert attention in ("full", Attention())
        return Bound(lambda z_BL, t_BL: self.denoise(z_BL) * params)


class Bound(Denoiser):
    """The seam of a bound network around a function (z_BL, t_BL) -> logits_BLV."""

    def __init__(self, denoise):
        self._denoise = denoise

    def hidden(self, z_BL, t_BL):
        return self._denoise(z_BL, t_BL)

    def logits(self, hidden_BLV):
        return hidden_BLV

    def expect(self, hidden_BLV, table_VI=None):
        p_BLV = jax.nn.softmax(hidden_BLV)
        return p_BLV if table_VI is None else p_BLV @ table_VI

    def row_losses(self, hidden_BLV, loss_mask_BL, loss_fn, args, weight_BL):
        nats_BL = jnp.where(loss_mask_BL, loss_fn(hidden_BLV, *args), 0.0)
        return jnp.sum(weight_BL * nats_BL), jax.lax.stop_gradient(nats_BL)


class Letters:
    """A tokenizer of one id per character, with the special ids a real one has."""

    alphabet = "abcdefghijklmnopqrstuvwxyz _[]*\\:<>&\n\x1b'\"MASKEDIT0123456789/."

    def __init__(self):
        self.characters = list(dict.fromkeys(self.alphabet))
        self.eos_id = self.bos_id = len(self.characters)
        self.pad_id, self.mask_id = self.eos_id + 1, self.eos_id + 2
        self.vocab_size = self.mask_id + 1

    def encode(self, text: str) -> np.ndarray:
        return np.array([self.characters.index(c) for c in text], np.int32)

    def decode(self, ids) -> str:
        return "".join(self.characters[i] if i < len(self.characters) else "" for i in np.asarray(ids).tolist())


def chi_square_tail(counts_N: np.ndarray, p_N: np.ndarray) -> float:
    """z-score of Pearson's chi-square over the cells with 5 or more expected (Wilson-Hilferty); the rest are pooled."""
    expected_N = p_N * counts_N.sum()
    big_N = expected_N >= 5
    observed = np.append(counts_N[big_N], counts_N[~big_N].sum())
    expected = np.append(expected_N[big_N], expected_N[~big_N].sum())
    kept = expected > 0
    statistic, freedom = np.sum((observed[kept] - expected[kept]) ** 2 / expected[kept]), kept.sum() - 1
    shrink = 2 / (9 * freedom)
    return float(((statistic / freedom) ** (1 / 3) - (1 - shrink)) / np.sqrt(shrink))
