"""The bound of laws that can be written out whole, and its invariance to batches, meshes and repetition."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dlmjax.diffusion.processes.autoregressive import Autoregressive
from dlmjax.diffusion.processes.masked import Llada, Masked, MaskedCount
from dlmjax.diffusion.schedules import Cosine
from dlmjax.errors import InputError
from dlmjax.evaluation.likelihood import Evaluator, LikelihoodResult, evaluate_nelbo, ratio_with_error, window_sums
from tests.sampling.toy import Bound, Law

LAW = Law()
WINDOWS = 500


def exact_windows(law, copies: int) -> tuple[np.ndarray, np.ndarray]:
    """Texts in proportion to a rounded law, and that law: the mean over these windows is then an expectation, not an estimate."""
    counts_N = np.maximum(np.round(law.p_N * copies), 1).astype(int)
    return np.repeat(law.texts_NL, counts_N, axis=0), counts_N / counts_N.sum()


def batches_of(tokens_WL, size, segments_WL=None, order=None):
    """Batches of numbered windows, the last one short."""
    tokens_WL = np.asarray(tokens_WL, np.int32)
    segments_WL = np.ones_like(tokens_WL) if segments_WL is None else np.asarray(segments_WL, np.int32)
    numbers = np.arange(len(tokens_WL), dtype=np.int32) if order is None else np.asarray(order, np.int32)
    for start in range(0, len(numbers), size):
        row = numbers[start : start + size]
        positions = np.broadcast_to(np.arange(tokens_WL.shape[1], dtype=np.int32), tokens_WL[row].shape)
        yield {"tokens": tokens_WL[row], "segments": segments_WL[row], "positions": positions, "row": row}


@pytest.fixture(scope="module")
def law_and_windows():
    """A law whose probabilities are multiples of 1/W, and W windows that hold each text exactly so often."""
    law = Law()
    texts_WL, p_N = exact_windows(law, WINDOWS)
    law.p_N = p_N
    return law, texts_WL


@pytest.fixture(scope="module")
def masked(law_and_windows):
    law, _ = law_and_windows
    return Evaluator(law.process(), law.bind, nodes=3, draws=4, seed=1)


@pytest.mark.parametrize("rule", ["gauss", "stratified"])
@pytest.mark.parametrize("schedule", [None, Cosine()], ids=["linear", "cosine"])
def test_the_exact_denoiser_scores_the_entropy(law_and_windows, rule, schedule):
    """Tightness: within 4 standard errors of the noise alone, and that error is small."""
    law, texts_WL = law_and_windows
    result = evaluate_nelbo(law.process(schedule), law.bind, 1.0, batches_of(texts_WL, 512), nodes=4, draws=64, rule=rule)
    error = result.stderr_noise_nats_per_token
    assert error < 0.006
    assert abs(result.nats_per_token - law.entropy / law.length) < 4 * error + 1e-4
    assert result.perplexity == pytest.approx(np.exp(result.nats_per_token))
    assert result.tokens == texts_WL.size and result.windows == len(texts_WL) and result.prior_nats_per_token == 0


def test_a_worse_denoiser_scores_above_the_entropy_by_its_divergence(law_and_windows, masked):
    """Beliefs at temperature 10: a bound that is not tight, and larger by far more than its error."""
    law, texts_WL = law_and_windows
    exact = masked(jnp.float32(1.0), batches_of(texts_WL, 512))
    worse = masked(jnp.float32(0.1), batches_of(texts_WL, 512))
    assert worse.nats_per_token > exact.nats_per_token + 9 * worse.stderr_noise_nats_per_token


def test_boundary_terms_are_part_of_the_bound(law_and_windows):
    """With eps = 0.2 masked at t = 0, the reconstruction is not a small change; without it the number would be too low."""
    law, texts_WL = law_and_windows
    process = Llada(law.vocab, law.mask_id, eps=0.2)
    result = evaluate_nelbo(process, law.bind, 1.0, batches_of(texts_WL, 512), nodes=4, draws=64)
    assert result.reconstruction_nats_per_token > 0.1
    parts = result.diffusion_nats_per_token + result.prior_nats_per_token + result.reconstruction_nats_per_token
    assert result.nats_per_token == pytest.approx(parts, rel=1e-12)
    assert abs(result.nats_per_token - law.entropy / law.length) < 4 * result.stderr_noise_nats_per_token + 1e-4


def test_an_autoregressive_model_is_evaluated_exactly_in_one_pass(law_and_windows):
    law, texts_WL = law_and_windows
    calls = []

    def bind(params, segments_BL, positions_BL, attention):
        assert attention.causal

        def denoise(z_BL, t_BL):
            calls.append(1)
            logits = []
            for i in range(law.length):
                known_BL = jnp.full_like(z_BL, law.mask_id).at[:, :i].set(z_BL[:, 1 : i + 1])
                logits.append(law.denoise(known_BL)[:, i])
            return jnp.stack(logits, axis=1)

        return Bound(denoise)

    process = Autoregressive(law.vocab, bos_id=law.mask_id)
    result = evaluate_nelbo(process, bind, (), batches_of(texts_WL, 512), nodes=16, draws=5, seed=9)
    assert result.nats_per_token == pytest.approx(law.entropy / law.length, abs=1e-6)
    assert (result.nodes, result.draws, result.rule) == (1, 1, "exact") and len(calls) == 1
    assert result.stderr_noise_nats_per_token is None and result.summary().startswith("NELBO = ")


def test_the_count_form_is_evaluated_by_the_masked_bound(law_and_windows, masked):
    law, texts_WL = law_and_windows
    result = evaluate_nelbo(MaskedCount(law.vocab, law.mask_id), law.bind, 1.0, batches_of(texts_WL, 512), nodes=3, draws=4, seed=1)
    plain = masked(jnp.float32(1.0), batches_of(texts_WL, 512))
    assert result.process == "masked_count" and dataclasses.replace(result, process="masked") == plain


def test_stratified_levels_are_unbiased_where_one_node_is_not():
    """Integrand 3 t^2: one Gauss node is off by a tenth, one stratified node is right on average."""

    class Cubic(Masked):
        def loss_mask(self, z_BL, t_BL):
            return jnp.ones(z_BL.shape, bool)

        def loss(self, logits, x, z, t):
            return 3 * t**2

    process, tokens_WL = Cubic(LAW.vocab, LAW.mask_id), np.zeros((4000, 3), np.int32)
    gauss = evaluate_nelbo(process, LAW.bind, 1.0, batches_of(tokens_WL, 4000), nodes=1)
    (level,) = gauss.levels
    assert gauss.nats_per_token == pytest.approx(3 * level["t"] ** 2 * level["weight"]) and 0.05 < abs(gauss.nats_per_token - 1) < 0.3
    one = evaluate_nelbo(process, LAW.bind, 1.0, batches_of(tokens_WL, 4000), nodes=1, rule="stratified")
    assert abs(one.nats_per_token - 1) < 4 * one.stderr_nats_per_token and 0.01 < one.stderr_nats_per_token < 0.02
    four = evaluate_nelbo(process, LAW.bind, 1.0, batches_of(tokens_WL, 4000), nodes=4, rule="stratified")
    assert four.stderr_nats_per_token < one.stderr_nats_per_token / 4, "a stratum must only see its own part of [0, 1]"
    exact = evaluate_nelbo(process, LAW.bind, 1.0, batches_of(tokens_WL, 4000))
    assert exact.nats_per_token == pytest.approx(1, abs=1e-6) and exact.nodes == 16
    assert [level["weight"] for level in four.levels] == [0.25] * 4 and [level["t"] for level in four.levels] == [
        0.125,
        0.375,
        0.625,
        0.875,
    ]


def test_unbiased_over_many_masks(law_and_windows):
    """The mean over many masks agrees with the entropy; each single number scatters as its own error says."""
    law, texts_WL = law_and_windows
    some = texts_WL[::5]
    evaluator = Evaluator(law.process(), law.bind, nodes=2, draws=2, rule="stratified")
    numbers = []
    for run in range(8):  # windows of other numbers have other noise
        (batch,) = batches_of(some, len(some))
        numbers.append(evaluator(1.0, [{**batch, "row": batch["row"] + 1000 * run}]))
    values = np.array([r.nats_per_token for r in numbers])
    error = np.mean([r.stderr_noise_nats_per_token for r in numbers])
    p_N = np.bincount(law.index(some), minlength=len(law.texts_NL)) / len(some)
    cross_entropy = -np.sum(p_N * np.log(law.p_N)) / law.length
    assert abs(values.mean() - cross_entropy) < 4 * error / np.sqrt(8)
    assert error / 2.5 < values.std(ddof=1) < error * 2.5


# --- the same number ----------------------------------------------------------------------------------------------------------


def test_batch_size_and_order_do_not_change_a_bit(law_and_windows, masked):
    law, texts_WL = law_and_windows
    one, lengths = jnp.float32(1.0), np.array([1, 2, 3, 0])
    texts_WL = texts_WL[::2]
    reference = masked(one, batches_of(texts_WL, 512), byte_lengths_V=lengths)
    assert masked(one, batches_of(texts_WL, 40), byte_lengths_V=lengths) == reference
    shuffled = np.random.default_rng(0).permutation(len(texts_WL))
    assert masked(one, batches_of(texts_WL, 40, order=shuffled), byte_lengths_V=lengths) == reference
    assert masked(one, batches_of(texts_WL[:20], 1)) == masked(one, batches_of(texts_WL[:20], 40))
    other = Evaluator(law.process(), law.bind, nodes=3, draws=4, seed=2)(one, batches_of(texts_WL, 512))
    assert other.nats_per_token != reference.nats_per_token


def test_windows_are_added_up_in_double_precision():
    assert window_sums(np.array([[2**24, 1, 1]], np.float32)).tolist() == [2**24 + 2]


def test_one_and_eight_devices_give_the_same_bits(law_and_windows, masked):
    _, texts_WL = law_and_windows
    texts_WL = texts_WL[:90]
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    law = law_and_windows[0]

    def put(batch):
        sharding = {n: jax.NamedSharding(mesh, jax.P("data", *[None] * (a.ndim - 1))) for n, a in batch.items()}
        return jax.device_put(batch, sharding)

    sharded = Evaluator(law.process(), law.bind, nodes=3, draws=4, seed=1, put_batch=put)
    params = jax.device_put(jnp.float32(1.0), jax.NamedSharding(mesh, jax.P()))
    assert sharded(params, batches_of(texts_WL, 16)) == masked(jnp.float32(1.0), batches_of(texts_WL, 16))


def test_one_compilation_and_no_implicit_transfers(law_and_windows):
    law, texts_WL = law_and_windows
    traced = []

    def bind(params, *args, **kwargs):
        traced.append(1)
        return law.bind(params, *args, **kwargs)

    evaluator = Evaluator(law.process(), bind, nodes=3, draws=2)
    params = [jnp.float32(p) for p in (1.0, 0.5)]
    with jax.transfer_guard("disallow"):
        for value in params:
            evaluator(value, batches_of(texts_WL[:50], 16))
    assert len(traced) == 1


# --- padding, bytes, errors of ratios -----------------------------------------------------------------------------------------


def test_padding_carries_nothing_and_bytes_are_those_of_the_evaluated_tokens(law_and_windows, masked):
    """Windows cut by padding: only their real tokens count, and the network sees padding unmasked."""
    law, texts_WL = law_and_windows
    texts_WL = texts_WL[:40].copy()
    segments_WL = np.ones_like(texts_WL)
    segments_WL[::2, 1:] = 0
    texts_WL[segments_WL == 0] = 2
    lengths = np.array([1, 2, 4, 0])
    result = masked(jnp.float32(1.0), batches_of(texts_WL, 16, segments_WL), byte_lengths_V=lengths)
    assert result.tokens == segments_WL.sum() == 80
    assert result.bytes == lengths[texts_WL[segments_WL > 0]].sum()
    nats = result.nats_per_token * result.tokens
    assert result.bits_per_byte == pytest.approx(nats / np.log(2) / result.bytes, rel=1e-12)
    assert result.stderr_bits_per_byte > 0

    seen = []

    def bind(params, segments_BL, positions_BL, attention):
        def denoise(z_BL, t_BL):
            jax.debug.callback(lambda z, s: seen.append((z, s)), z_BL, segments_BL)
            return law.denoise(z_BL)

        return Bound(denoise)

    evaluate_nelbo(law.process(), bind, (), batches_of(texts_WL, 16, segments_WL), nodes=2)
    jax.effects_barrier()
    masked_somewhere = False
    for z_BL, s_BL in seen:
        assert (z_BL[s_BL == 0] != law.mask_id).all()
        masked_somewhere |= bool((z_BL == law.mask_id).any())
    assert masked_somewhere


def test_ratio_error_is_that_of_repeated_sampling():
    """The linearised error of sum/sum against the scatter over 4,000 fresh draws of 200 windows."""
    random = np.random.default_rng(0)

    def draw():
        tokens = random.integers(20, 200, 200)
        return tokens * 1.5 + random.normal(size=200) * np.sqrt(tokens) * 2, tokens.astype(float)

    runs = [ratio_with_error(*draw()) for _ in range(4000)]
    scatter, error = np.std([r for r, _ in runs]), np.mean([e for _, e in runs])
    assert error == pytest.approx(scatter, rel=0.05)
    assert np.isnan(ratio_with_error(np.array([2.0]), np.array([4.0]))[1])


def test_result_as_json(law_and_windows, masked, tmp_path):
    _, texts_WL = law_and_windows
    result = masked(
        jnp.float32(1.0), batches_of(texts_WL[:1], 4), step=70, weights="ema", split="test", byte_lengths_V=np.ones(4), progress=True
    )
    result.write_json(tmp_path / "result.json")
    record = json.loads((tmp_path / "result.json").read_text())
    wanted = {"nats_per_token", "bits_per_byte", "perplexity", "stderr_nats_per_token", "tokens", "step", "process", "is_bound"}
    assert wanted | {"bytes", "stderr_bits_per_byte", "nodes", "draws", "seed", "weights", "split", "length"} <= set(record)
    assert set(record) == {field.name for field in dataclasses.fields(LikelihoodResult)}
    assert (record["step"], record["weights"], record["split"], record["is_bound"], record["length"]) == (70, "ema", "test", True, 3)
    assert record["stderr_nats_per_token"] is None, "one window has no standard error, and JSON no NaN"
    assert len(record["levels"]) == 3 and sum(level["weight"] for level in record["levels"]) == pytest.approx(1)
    weighted = sum(level["weight"] * level["nats_per_token"] for level in record["levels"])
    assert weighted == pytest.approx(record["diffusion_nats_per_token"])
    assert "NELBO <= " in result.summary() and "bits/byte" in result.summary()
    assert "not a bound" in dataclasses.replace(result, is_bound=False).summary()


def test_bad_calls(law_and_windows, masked):
    law, texts_WL = law_and_windows
    one = jnp.float32(1.0)
    with pytest.raises(InputError, match="holds no tokens"):
        masked(one, [], split="test")
    with pytest.raises(InputError, match="holds no tokens"):
        masked(one, batches_of(texts_WL[:4], 4, np.zeros((4, 3))))
    with pytest.raises(InputError, match="window 2 comes twice"):
        masked(one, batches_of(texts_WL, 4, order=[0, 2, 1, 2]))
    with pytest.raises(InputError, match="tokenizer of the run"):
        masked(one, batches_of(np.full((4, 3), 9), 4))
