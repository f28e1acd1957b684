"""The k-form and rolling windows against exact enumeration, with the exact denoiser of a small law."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dlmjax.diffusion.process import row_keys, uniform_rows
from dlmjax.diffusion.processes.autoregressive import Autoregressive
from dlmjax.diffusion.processes.masked import Llada, Masked, MaskedCount
from dlmjax.diffusion.processes.uniform import Uniform
from dlmjax.errors import InputError
from dlmjax.evaluation.breakdown import ByDocument
from dlmjax.evaluation.likelihood import Evaluator, count_form
from dlmjax.evaluation.windows import cut_windows
from tests.evaluation.test_likelihood import batches_of
from tests.sampling.toy import Bound, Law

LAW = Law(symbols=3, length=3, seed=2)
ONE = jnp.float32(1.0)


def log_p(text, given: int = 0) -> float:
    """log p(text[given:] | text[:given]) of the law, by enumeration."""
    fits = (LAW.texts_NL[:, :given] == text[:given]).all(axis=1)
    return float(np.log(LAW.p_N[LAW.index(np.array([text]))[0]] / LAW.p_N[fits].sum()))


@pytest.fixture(scope="module")
def counted():
    return Evaluator(LAW.process(), LAW.bind, nodes=3, draws=40, rule="count", seed=3)


def test_the_k_form_masks_exact_numbers_once_each():
    """Three parts of 1 .. 3: one mask, two and three, in every row; padding and given tokens are never masked."""
    seen = []

    def bind(params, segments_BL, positions_BL, attention):
        def denoise(z_BL, t_BL):
            jax.debug.callback(lambda z: seen.append(np.array(z)), z_BL)
            return LAW.denoise(z_BL)

        return Bound(denoise)

    evaluator = Evaluator(LAW.process(), bind, nodes=3, rule="count")
    evaluator(ONE, batches_of(LAW.texts_NL, 27))
    jax.effects_barrier()
    assert [sorted(set((z == LAW.mask_id).sum(axis=1).tolist())) for z in seen] == [[1], [2], [3]]
    seen.clear()
    (batch,) = batches_of(LAW.texts_NL, 27)
    scored_BL = np.tile([False, True, True], (27, 1))
    evaluator(ONE, [{**batch, "scored": scored_BL}])
    jax.effects_barrier()
    assert all(not (z == LAW.mask_id)[:, 0].any() for z in seen)
    assert [sorted(set((z == LAW.mask_id).sum(axis=1).tolist())) for z in seen][0::2] == [[1], [2]], "k of the two that are scored"


def test_the_k_form_of_every_text_is_its_log_likelihood(counted):
    """Each of the 27 texts by itself, not only their mean: an any-order chain rule is exact for the exact denoiser."""
    measured = counted.measure(ONE, batches_of(LAW.texts_NL, 27))
    exact_W = np.array([-log_p(text) for text in LAW.texts_NL])
    error_W = measured.nats_WD.std(axis=1, ddof=1) / np.sqrt(40)
    assert error_W.max() < 0.4 and (np.abs(measured.nats_W - exact_W) < 4.5 * error_W + 1e-4).all()


def test_the_k_form_is_less_noisy_than_levels_are(counted):
    counts = counted(ONE, batches_of(LAW.texts_NL, 27))
    for rule in ("gauss", "stratified"):
        levels = Evaluator(LAW.process(), LAW.bind, nodes=3, draws=40, rule=rule, seed=3)(ONE, batches_of(LAW.texts_NL, 27))
        assert counts.stderr_noise_nats_per_token < 0.8 * levels.stderr_noise_nats_per_token
    assert counts.rule == "count" and counts.is_bound and [level["t"] for level in counts.levels] == pytest.approx([1 / 6, 0.5, 5 / 6])


def test_the_k_form_is_for_masked_processes_only():
    assert type(count_form(Llada(4, 3))) is MaskedCount and count_form(Masked(9, 3, excluded=(5,))).excluded == (5,)
    with pytest.raises(InputError, match="process.name=uniform has no k-form"):
        Evaluator(Uniform(4, 3), LAW.bind, rule="count")
    assert Evaluator(Autoregressive(4, bos_id=3), LAW.bind, rule="count").rule == "exact"


# --- rolling ------------------------------------------------------------------------------------------------------------------


def rolling(tokens, ends, step):
    return cut_windows(np.array(tokens, np.int32), np.array(ends), window=3, step=step, pad_id=0, packing="alone")


@pytest.mark.parametrize("step, rule, process", [(1, "count", None), (2, "count", None), (2, "gauss", None), (2, "gauss", "llada")])
def test_each_window_bounds_its_new_tokens_given_its_context(step, rule, process):
    """Documents of 7 and 5 tokens under a law of 3: every window against p(new | context) by enumeration."""
    rng = np.random.default_rng(0)
    documents = [rng.integers(0, 3, 7), rng.integers(0, 3, 5)]
    windows = rolling(np.concatenate(documents), [7, 12], step)
    process = LAW.process() if process is None else Llada(LAW.vocab, LAW.mask_id, eps=0.2)
    draws = 1 if rule == "count" and step == 1 else 300
    measured = Evaluator(process, LAW.bind, nodes=4, draws=draws, rule=rule, seed=1).measure(ONE, windows.batches(4))
    exact_W, stream = [], np.concatenate(documents)
    for begin, scored, end in zip(windows.begin_W, windows.scored_W, windows.end_W, strict=True):
        assert end - begin == 3, "no window here is short: what is left over is scored with more context"
        exact_W.append(-log_p(stream[begin:end], scored - begin))
    assert measured.tokens_W.sum() == 12 and measured.tokens_W.tolist() == (windows.end_W - windows.scored_W).tolist()
    alone_W = measured.tokens_W == 1  # one token to score under exact counts: masked for certain, no noise at all
    if rule == "count":
        np.testing.assert_allclose(measured.nats_W[alone_W], np.array(exact_W)[alone_W], rtol=1e-5)
    if draws > 1:
        error_W = measured.nats_WD.std(axis=1, ddof=1) / np.sqrt(draws)
        assert (np.abs(measured.nats_W - exact_W) < 4.5 * error_W + 1e-3).all() and error_W.max() < 0.35


def test_documents_add_up_their_windows():
    """Per-document vectors: the sum over a document's windows, whatever the batch."""
    tokens = np.random.default_rng(1).integers(0, 3, 12)
    windows = rolling(tokens, [7, 12], 1)
    evaluator, found = Evaluator(LAW.process(), LAW.bind, nodes=2, rule="count"), []
    for size in (1, 5):
        observer = ByDocument(windows, np.array([1, 2, 3, 0]))
        measured = evaluator.measure(ONE, windows.batches(size), observers=[observer])
        found.append(observer)
        of_first = windows.end_W <= 7
        np.testing.assert_allclose(observer.nats_D, [measured.nats_W[of_first].sum(), measured.nats_W[~of_first].sum()], rtol=1e-12)
    assert found[0].tokens_D.tolist() == [7, 5] and found[0].bytes_D.tolist() == [sum(tokens[:7] + 1), sum(tokens[7:] + 1)]
    np.testing.assert_allclose(found[0].nats_D, found[1].nats_D, rtol=1e-12)


def test_more_context_costs_less():
    """The chain rule with more of the past: over many texts of a Markov law, step 1 is at most step 3, by what enumeration says."""
    texts_WL = np.repeat(LAW.texts_NL, np.round(LAW.p_N * 60).astype(int) + 1, axis=0)[:40]
    tokens = texts_WL.reshape(-1)
    ends = np.arange(6, len(tokens) + 1, 6)
    exact = {}
    for step in (1, 3):
        windows = rolling(tokens, ends, step)
        exact[step] = -sum(
            log_p(tokens[b:e], s - b) for b, s, e in zip(windows.begin_W, windows.scored_W, windows.end_W, strict=True)
        ) / len(tokens)
        result = Evaluator(LAW.process(), LAW.bind, nodes=3, draws=30, rule="count")(ONE, windows.batches(64))
        assert abs(result.nats_per_token - exact[step]) < 4 * result.stderr_noise_nats_per_token + 1e-5
    assert exact[1] != pytest.approx(exact[3], rel=1e-3)


@pytest.mark.parametrize("step", [2, 1])
def test_an_autoregressive_model_reads_its_context(step):
    """Causal windows: the given tokens, one or two, are read; the first scored one is predicted from them."""

    def bind(params, segments_BL, positions_BL, attention):
        def denoise(z_BL, t_BL):
            logits = []
            for i in range(3):
                known_BL = jnp.full_like(z_BL, LAW.mask_id).at[:, :i].set(z_BL[:, 1 : i + 1])
                logits.append(LAW.denoise(known_BL)[:, i])
            return jnp.stack(logits, axis=1)

        return Bound(denoise)

    tokens = np.random.default_rng(3).integers(0, 3, 9)
    windows = rolling(tokens, [9], step)
    measured = Evaluator(Autoregressive(LAW.vocab, bos_id=LAW.mask_id), bind).measure((), windows.batches(3))
    exact = [-log_p(tokens[b:e], s - b) for b, s, e in zip(windows.begin_W, windows.scored_W, windows.end_W, strict=True)]
    np.testing.assert_allclose(measured.nats_W, exact, rtol=1e-5)


def test_noise_does_not_depend_on_the_length_of_a_row():
    """What lets a window, or the two sentences of a pair, have rows of different lengths under the same masks."""
    keys_B = row_keys(jax.random.key(0), jnp.arange(5))
    np.testing.assert_array_equal(uniform_rows(keys_B, 8), uniform_rows(keys_B, 24)[:, :8])
