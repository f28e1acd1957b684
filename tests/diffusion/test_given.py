"""Tokens that condition the others, by a mask of the data: clean, read, without loss; the bound is that of the others given them.

A case of the battery on p(answer | given tokens) is the truth: the bound of a row with given tokens must be the mean of these bounds.
"""

import dataclasses
import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dlmjax.diffusion import CrossEntropy, Linear, Masked, MaskedCount, Objective, PerRow, symmetric
from dlmjax.diffusion.objective import NORMALISERS, _Text, with_condition
from dlmjax.diffusion.oracle import enumeration as oracle
from dlmjax.diffusion.oracle.gaussian import ExactDenoiser as ExactVectors
from dlmjax.diffusion.oracle.toy import ToyDenoiser
from dlmjax.diffusion.process import is_tight, row_keys
from dlmjax.errors import InputError
from tests.diffusion.battery import BOS, MASK, TOKENS, VOCAB, Case, _padded, batch_of, expected_nats, sample_joint
from tests.diffusion.cases import CASES
from tests.diffusion.cases_blocks import INNER, in_blocks
from tests.diffusion.enumerated import MaskedToy
from tests.diffusion.gaussian import battery as vectors

# Other schedules of masks are the same process with other times.
SCHEDULES = [f"masked/{name}" for name in ("cosine", "polynomial", "geometric", "log_linear")]
LAW3 = oracle.JointDistribution.random(TOKENS, 3, seed=2)


def with_slow(cases: list) -> list:
    """The cases of the battery that are no light ones; the schedules of `SCHEDULES` are slow."""
    return [pytest.param(case, marks=pytest.mark.slow if str(case) in SCHEDULES else (), id=str(case)) for case in cases if not case.light]


def split(law: oracle.JointDistribution, given: tuple[int, ...]):
    """(p(given tokens), these tokens, the distribution of the others), over all given texts."""
    for text in itertools.product(range(law.tokens), repeat=len(given)):
        table = law.table[tuple(text[given.index(i)] if i in given else slice(None) for i in range(law.length))]
        yield table.sum(), np.asarray(text), oracle.JointDistribution(table / table.sum())


def knowing(case: Case, given: tuple[int, ...]) -> Case:
    """The case with a denoiser that takes given tokens as they are: it was never shown them with noise."""
    if case.log_likelihood is None:
        return case

    def log_likelihood(z_BL, t_BL):
        certain_BLK = jnp.where(z_BL[..., None] == jnp.arange(TOKENS), 0.0, -1e9)
        return jnp.where(jnp.isin(jnp.arange(z_BL.shape[1]), jnp.asarray(given))[:, None], certain_BLK, case.log_likelihood(z_BL, t_BL))

    return dataclasses.replace(case, log_likelihood=log_likelihood)


def given_first(exact: ExactVectors, text: int) -> ExactVectors:
    """The exact denoiser of the rows whose first token is this one."""
    table = np.where(np.arange(exact.joint.tokens)[:, None] == text, exact.joint.table, 1e-300)
    return dataclasses.replace(exact, joint=oracle.JointDistribution(table / table.sum()))


def conditional_nats(case: Case, law: oracle.JointDistribution, given: tuple[int, ...]) -> float:
    """The diffusion part of the bound of the other tokens, by enumeration, as the objective computes it for a batch with given tokens."""
    known, answer = knowing(case, given), [i for i in range(law.length) if i not in given]
    process = known.process
    blocks = process.attention.block_size
    if blocks:
        known = dataclasses.replace(known, inner=knowing(known.inner, given))
    denoiser, rows = known.denoiser(law), []
    for p, text, rest in split(law, given):
        for t, weight in zip(*case.grid(rest.length), strict=True):
            x_NA, z_NA, p_N = (known.inner if blocks else known).enumerate(rest, t)
            x_NL = np.zeros((len(x_NA), law.length), np.int32)
            x_NL[:, list(given)], x_NL[:, answer] = text, x_NA
            if process.attention.causal:
                keys_N = row_keys(jax.random.key(0), jnp.arange(len(x_NL)))
                z_NL = np.asarray(process.corrupt(keys_N, jnp.asarray(x_NL), jnp.ones(x_NL.shape)))
            else:
                z_NL = np.full_like(x_NL, 1)  # whatever noise the given tokens drew
                z_NL[:, answer] = z_NA
                z_NL = np.stack([z_NL, x_NL], axis=-1) if blocks else z_NL
            rows.append((x_NL, z_NL, np.full(x_NL.shape, t), p * weight * p_N))
    x_NL, z_NL, t_NL, mass_N = (np.concatenate(parts) for parts in zip(*rows, strict=True))

    def nats(x_BL, z_BL, t_BL):
        given_BL = jnp.broadcast_to(jnp.isin(jnp.arange(law.length), jnp.asarray(given)), x_BL.shape)
        text = _Text(process, denoiser, x_BL, ~given_BL, None)
        z_BL, t_BL = with_condition(process, z_BL, x_BL, given_BL), jnp.where(given_BL, 0.0, t_BL)
        return text.nats(text.states(z_BL, t_BL, None), z_BL, t_BL, jnp.ones_like(t_BL))[1]

    return float(mass_N @ _padded(nats, x_NL, z_NL, t_NL).sum(axis=1))


@pytest.mark.parametrize("case", with_slow(CASES))
def test_the_bound_given_tokens_is_that_of_the_conditional_law(case):
    """Of every process, which for a tight one is H(answer | given): one token is given between two others."""
    parts = list(split(LAW3, (1,)))
    found = conditional_nats(case, LAW3, (1,))
    if case.process.attention.causal:  # read from left to right, a token knows the given ones before it alone
        assert found == pytest.approx(left_to_right(LAW3, (1,)), abs=1e-6)
    elif is_tight(case.process):
        assert found == pytest.approx(sum(p * rest.entropy for p, _, rest in parts), abs=1e-6)
    else:
        assert found == pytest.approx(sum(p * expected_nats(case, rest) for p, _, rest in parts), abs=1e-6)


def left_to_right(law: oracle.JointDistribution, given: tuple[int, ...]) -> float:
    """The sum of H(x_i | x_<i) over the tokens that are not given."""
    prefixes = [law.table.sum(axis=tuple(range(i, law.length))) for i in range(1, law.length + 1)]
    entropy = [0.0, *(oracle.JointDistribution(table).entropy for table in prefixes)]
    return sum(entropy[i + 1] - entropy[i] for i in range(law.length) if i not in given)


@pytest.mark.parametrize("case", with_slow(INNER))
def test_in_blocks_the_bound_given_a_prompt_is_that_of_the_conditional_law(case):
    """A prompt of one token, which ends inside the first block of two; the last block has one token."""
    found = conditional_nats(in_blocks(case, size=2), LAW3, (0,))
    rest = LAW3.table
    if is_tight(case.process):
        assert found == pytest.approx(sum(p * law.entropy for p, _, law in split(LAW3, (0,))), abs=1e-6)
    else:
        first = sum(p * expected_nats(case, oracle.JointDistribution(law.table.sum(axis=1))) for p, _, law in split(LAW3, (0,)))
        last = sum(
            rest[pair].sum() * expected_nats(case, oracle.JointDistribution(rest[pair] / rest[pair].sum()))
            for pair in itertools.product(range(TOKENS), repeat=2)
        )
        assert found == pytest.approx(first + last, abs=1e-6)


def test_vectors_given_tokens_are_embeddings_without_noise():
    """By quadrature over the vectors of the answer, with much noise at t = 0: the bound is that of the conditional law, part by part."""
    with jax.enable_x64(True):
        process = vectors.make(vectors.GaussianEmbedding, path="cosine", gamma_0=0.0)
        exact, table = ExactVectors.of(vectors.TWO, process), np.asarray(process.table)
        for text, t in ((2, 0.3),):
            a, s, _ = (float(value) for value in process.curve.at(t))
            rest = oracle.JointDistribution(vectors.TWO.table[text] / vectors.TWO.table[text].sum())

            def nats(x_NL, z_NLE, text=text, t=t):
                x_NL = jnp.concatenate([jnp.full_like(x_NL, text), x_NL], axis=1)
                z_NLE = jnp.concatenate([jnp.full_like(z_NLE, 9.0), z_NLE], axis=1)
                given_NL = jnp.broadcast_to(jnp.arange(2) == 0, x_NL.shape)
                z_NLE = with_condition(process, z_NLE, x_NL, given_NL)
                np.testing.assert_allclose(z_NLE[:, 0], float(process.curve.at(0.0).a) * np.broadcast_to(table[text], z_NLE[:, 0].shape))
                of_text, t_NL = _Text(process, given_first(exact, text), x_NL, ~given_NL, None), jnp.where(given_NL, 0.0, t)
                return of_text.nats(of_text.states(z_NLE, t_NL, None), z_NLE, t_NL, jnp.ones(x_NL.shape))[1]

            def alone(x_NL, z_NLE, rest=rest, t=t):
                t_NL = jnp.full(x_NL.shape, t)
                hidden = ExactVectors.of(rest, process).hidden(z_NLE, process.time_embedding_input(t_NL))
                return process.loss(hidden, x_NL, z_NLE, t_NL)

            assert vectors.expected(nats, rest, a, s, table) == pytest.approx(vectors.expected(alone, rest, a, s, table), rel=1e-9)


# --- short answers -----------------------------------------------------------------------------------------------------------------

SHORT, T_MIN = 6, 1e-3


def variances(law: oracle.JointDistribution) -> dict[str, float]:
    """Variance over masks (and times) of a row's estimate under the exact denoiser, in nats^2, mean over the texts of `law`."""
    toy = MaskedToy(law)
    cost_XS, masked_S, n = toy.cost_XS(), toy.masks_SL.sum(axis=1), law.length
    u, w = np.polynomial.legendre.leggauss(200)
    t_J = T_MIN ** ((1 - u) / 2)  # even in log t, where the integrand of 1/t is
    first_XJ, second_XJ = toy.moments(t_J, 1 / t_J)
    measure_J = w / 2 * -math.log(T_MIN) * t_J / (1 - T_MIN)
    p_S = np.asarray([0.0 if k == 0 else 1 / n / math.comb(n, k) for k in masked_S])
    k_cost_XS = cost_XS * n / np.maximum(masked_S, 1)
    moments = {"t": (first_XJ @ measure_J, second_XJ @ measure_J), "k": (k_cost_XS @ p_S, k_cost_XS**2 @ p_S)}
    return {form: float(law.probability_X @ (second - first**2)) for form, (first, second) in moments.items()}


def test_the_k_form_is_the_estimate_for_short_answers():
    """Of an answer of six tokens: by enumeration, and as drawn by the objective for rows with a prompt before it."""
    answers = oracle.JointDistribution.random(2, SHORT, seed=3)
    found = variances(answers)
    assert found["t"] > 5 * found["k"], found
    # Two prompts, after which the answer has the same distribution: its bound and the variance are those of the answer alone.
    law, rows = oracle.JointDistribution(np.stack([answers.table, answers.table]) / 2), 4096
    toy = MaskedToy(law).denoiser
    x_BL = sample_joint(law, rows, seed=1)
    batch = batch_of(x_BL) | {"scored": jnp.broadcast_to(jnp.arange(1 + SHORT) > 0, x_BL.shape)}
    process = MaskedCount(VOCAB, MASK, excluded=(BOS,))

    def row_nats(key):
        """Of each row, through the whole objective: the sum of one row at a time."""

        def one(row):
            part = {name: value[row][None] for name, value in batch.items()}
            return Objective(process, PerRow(stratified=False))(toy, part, key, rows)[1]["nats"]

        return jax.vmap(one)(jnp.arange(rows))

    first_B, second_B = (np.asarray(jax.jit(row_nats)(jax.random.key(seed)), np.float64) for seed in (1, 2))
    assert np.mean(first_B + second_B) / 2 == pytest.approx(answers.entropy, abs=4 * np.std(first_B) / math.sqrt(2 * rows))
    # Half the mean square of the difference of two draws: the variance by masks alone.
    squares_B = (first_B - second_B) ** 2 / 2
    assert np.mean(squares_B) == pytest.approx(found["k"], abs=4 * np.std(squares_B) / math.sqrt(rows))


# --- what the trained loss is a mean of ----------------------------------------------------------------------------------------------

MASKED = Masked(VOCAB, MASK, excluded=(BOS,))
# Two rows: texts of 2 and 1 scored tokens and padding; one text of 3 scored tokens, the last of them tail. Segment 2 of row 1 has none.
SEGMENTS_BL = np.asarray([[1, 1, 1, 2, 2, 0], [1, 1, 1, 1, 2, 2]])
SCORED_BL = np.asarray([[0, 1, 1, 0, 1, 1], [0, 1, 1, 1, 0, 0]], bool)
TAIL_BL = np.asarray([[0, 0, 0, 0, 0, 0], [0, 0, 0, 1, 0, 0]], bool)


@dataclasses.dataclass(frozen=True, eq=False)
class Flat(ToyDenoiser):
    """A denoiser whose logits depend on nothing."""

    def hidden(self, z_BL, t_BL, hint_BLI=None):
        return jnp.broadcast_to(jnp.arange(VOCAB) / 3.0, (*t_BL.shape, VOCAB))


FLAT = Flat(None, VOCAB)


def supervised_batch() -> dict:
    x_BL = np.random.default_rng(0).integers(0, TOKENS, SEGMENTS_BL.shape).astype(np.int32)
    return batch_of(x_BL, SEGMENTS_BL) | {"scored": jnp.asarray(SCORED_BL), "tail": jnp.asarray(TAIL_BL)}


@pytest.mark.parametrize("weighting", [None, CrossEntropy()], ids=["bound", "cross_entropy"])
@pytest.mark.parametrize("process", [MASKED, Masked(VOCAB, MASK, symmetric(Linear(), 0.1), (BOS,))], ids=["tight", "with ends"])
def test_each_normaliser_is_the_mean_that_it_names(process, weighting):
    batch, key = supervised_batch(), jax.random.key(1)

    def run(**values):
        return Objective(process, weighting=weighting, **values)(FLAT, batch, key, 2)

    # The loss of single tokens: the gradient of the sum by each token's weight, through rows in which that token alone is tail.
    plain, terms = run()
    of_token_BL = np.zeros(SEGMENTS_BL.shape)
    for b, i in np.argwhere(SCORED_BL & (SEGMENTS_BL > 0)):
        one = {**batch, "tail": jnp.zeros_like(batch["tail"]).at[b, i].set(True)}
        of_token_BL[b, i] = float(plain - Objective(process, weighting=weighting, tail_weight=0.0)(FLAT, one, key, 2)[0])
    assert float(plain) == pytest.approx(of_token_BL.sum(), rel=1e-5) and (int(terms["tokens"]), int(terms["texts"])) == (6, 3)
    lengths_BL = np.asarray([[1, 2, 2, 1, 1, 1], [1, 3, 3, 3, 1, 1]])
    assert float(run(normaliser="answer")[0]) == pytest.approx((of_token_BL / lengths_BL).sum(), rel=1e-5)
    assert float(run(normaliser="text")[0]) == pytest.approx(float(plain), rel=1e-6)
    weighted, again = run(tail_weight=0.25)
    assert float(weighted) == pytest.approx((of_token_BL * np.where(TAIL_BL, 0.25, 1)).sum(), rel=1e-5)
    # What is reported as the bound does not depend on how the loss is divided or weighted.
    for name in ("nats", "prior", "reconstruction", "tail_nats"):
        assert float(again[name]) == pytest.approx(float(terms[name]), rel=1e-5)
    assert int(terms["tail_tokens"]) == 1


def test_the_log_names_the_mean_and_says_where_it_is_no_bound():
    terms = jax.device_get(Objective(MASKED)(FLAT, supervised_batch(), jax.random.key(1), 2)[1])
    for normaliser, name in NORMALISERS.items():
        objective = Objective(MASKED, normaliser=normaliser)
        trained = "_".join(filter(None, ["loss", name]))
        report = objective.report(terms)
        assert objective.trains_bound and report[trained] == pytest.approx(float(terms["loss"]) / (6 if normaliser == "token" else 3))
        assert report["nelbo"] == pytest.approx(float(terms["nats"]) / 6) and report["tokens_per_text"] == 2
        shown = objective.summary(report)
        assert name in shown.get("trained", "") and ("trained" in shown) == (normaliser != "token")
    assert report["tail_share"] == pytest.approx(1 / 6) and report["tail_nats_share"] == pytest.approx(terms["tail_nats"] / terms["nats"])
    batch = supervised_batch()
    assert report["unscored_rows"] == 0
    given = {**batch, "scored": batch["scored"].at[0].set(False)}
    rows = Objective(MASKED).report(jax.device_get(Objective(MASKED)(FLAT, given, jax.random.key(1), 2)[1]))
    assert rows["unscored_rows"] == 0.5
    weighted = Objective(MASKED, tail_weight=0.5)
    assert not weighted.trains_bound and "loss_bound_tail_weight_not_a_bound" in weighted.report(terms)
    with pytest.raises(InputError, match="normaliser is 'row'.*token, answer, text"):
        Objective(MASKED, normaliser="row")
    with pytest.raises(InputError, match="tail_weight is -1"):
        Objective(MASKED, tail_weight=-1.0)


# --- several answers -------------------------------------------------------------------------------------------------------------------

# A conversation of four tokens: question, answer, question, answer. The second question depends on the first answer.
TALK = oracle.JointDistribution.random(TOKENS, 4, seed=6, sharpness=1.5)


def test_answers_scored_at_once_are_below_the_truth_and_one_a_row_is_not():
    """Under full attention an answer that sees the next question is too cheap by their mutual information given what came before."""
    # Four nodes: with 1/t taken off, the integrand is a polynomial in t.
    node_J, weight_J = np.polynomial.legendre.leggauss(4)
    case, (q1, a1, q2, a2) = next(case for case in CASES if str(case) == "masked/linear"), range(4)
    case = dataclasses.replace(case, grid=lambda length: ((node_J + 1) / 2, weight_J / 2))

    def entropy(*kept):
        table = TALK.table.sum(axis=tuple(i for i in range(4) if i not in kept))
        return oracle.JointDistribution(table).entropy

    truth = entropy(q1, a1) - entropy(q1) + entropy(q1, a1, q2, a2) - entropy(q1, a1, q2)
    at_once = conditional_nats(case, TALK, (q1, q2))
    leak = entropy(q1, a1) + entropy(q1, q2) - entropy(q1) - entropy(q1, a1, q2)
    assert leak > 0.01 and at_once == pytest.approx(truth - leak, abs=1e-6)
    # Each answer in a row of its own, which ends with it; what is cut off is not there.
    first = oracle.JointDistribution(TALK.table.sum(axis=(q2, a2)))
    alone = conditional_nats(case, first, (q1,)) + conditional_nats(case, TALK, (q1, a1, q2))
    assert alone == pytest.approx(truth, abs=1e-6)
    # In blocks that begin with the second question both answers are trained in one pass; in one that holds it and the answer before, not.
    assert conditional_nats(in_blocks(case, size=2), TALK, (q1, q2)) == pytest.approx(truth, abs=1e-6)
    assert conditional_nats(in_blocks(case, size=4), TALK, (q1, q2)) == pytest.approx(truth - leak, abs=1e-6)
