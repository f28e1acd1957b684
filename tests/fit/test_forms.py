"""Published laws to the digits that are printed, and the laws' own mathematics."""

import numpy as np
import pytest

from dlmjax.fit import forms
from dlmjax.fit.forms import ADDITIVE, JOINT, MIXING, OVERFITTING, OVERFITTING_OF_ONE_SIZE, REPETITION, REPETITION_OF_ONE_SIZE

ALL = [ADDITIVE, REPETITION, OVERFITTING, REPETITION_OF_ONE_SIZE, OVERFITTING_OF_ONE_SIZE, JOINT, MIXING]


def rounded(value, digits):
    return float(f"{float(value):.{digits}g}")


def test_quokka_predicts_what_its_paper_prints():
    """2510.03280: N* = 1.24B and D* = 134B at 1e21 FLOPs; 29.7B at 5.76e23; exponent .49934."""
    size, tokens, _ = forms.optimum(forms.QUOKKA_MASKED, 1e21)
    assert (rounded(size, 3), rounded(tokens, 3)) == (1.24e9, 134e9)
    assert rounded(forms.optimum(forms.QUOKKA_MASKED, 5.76e23)[0], 3) == 29.7e9
    law = forms.QUOKKA_MASKED
    assert round(law["b"] / (law["a"] + law["b"]), 5) == 0.49934


def test_rounded_digits_move_an_extrapolation():
    """Pitfall of published tables: the exponents of Chinchilla's refit put N* at 73B for 5.76e23 FLOPs, its own paper at 40B."""
    assert rounded(forms.optimum(forms.CHINCHILLA_REFIT, 5.76e23)[0], 2) == 73e9


@pytest.mark.parametrize("law", [forms.VON_RUETTE_MASKED, forms.VON_RUETTE_UNIFORM], ids=["masked", "uniform"])
def test_von_ruettes_form_is_the_additive_law_in_flops_per_token(law):
    """2512.10858: with C = M D the optimum beats every other split of the compute, and its exponents sum to one."""
    flops = 1e21
    compute = forms.Compute(1.0, 1.0)
    best, tokens, loss = forms.optimum(law, flops, compute)
    assert best * tokens == pytest.approx(flops)
    other_K = best * np.exp(np.linspace(-1, 1, 41))
    assert (law["E"] + law["A"] / other_K ** law["a"] + law["B"] / (flops / other_K) ** law["b"] >= loss - 1e-12).all()
    a, b = law["a"], law["b"]
    measured = np.log(forms.optimum(law, 1e22, compute)[0] / best) / np.log(10)
    assert measured == pytest.approx(b / (a + b), abs=1e-12)
    # Coefficients rounded to three digits, of a law over 1e18-1e21 FLOPs: the loss at 1e21 lies where the paper's curves end.
    assert 2.3 < loss < 2.7


def test_the_optimum_knows_that_flops_per_token_bend():
    """Under C = k N^rho D the gradient along the budget vanishes at the optimum."""
    compute = forms.Compute(21.0, 0.92)
    size, tokens, loss = forms.optimum(forms.QUOKKA_MASKED, 1e15, compute)
    assert compute.k * size**compute.rho * tokens == pytest.approx(1e15)
    for factor in (0.99, 1.01):
        moved = size * factor
        law = forms.QUOKKA_MASKED
        assert law["E"] + law["A"] / moved ** law["a"] + law["B"] / compute.tokens(1e15, moved) ** law["b"] > loss


def some_columns(rows=7):
    rng = np.random.default_rng(0)
    size_R, unique_R = 10 ** rng.uniform(5, 7, rows), 10 ** rng.uniform(5, 6, rows)
    tokens_R = unique_R * rng.integers(1, 64, rows)
    found = {"log_N": size_R, "log_D": tokens_R, "log_U": unique_R, "log_total": size_R, "log_active": size_R * rng.uniform(0.1, 1, rows)}
    return {name: np.log(value) for name, value in found.items()} | {"log_r": np.log(rng.uniform(0.1, 0.9, rows))}


@pytest.mark.parametrize("form", ALL, ids=lambda form: form.name)
def test_derivatives_are_those_of_the_law(form):
    """Against central differences, at several parameter vectors at once."""
    columns = some_columns()
    theta_SP = np.array([[values[k % len(values)] for values in form.starts] for k in range(2)], float)
    value_SR, jacobian_SRP = form.value_and_jacobian(theta_SP, columns)
    np.testing.assert_allclose(value_SR, form.log_loss(theta_SP, columns), rtol=1e-13)
    for place in range(len(form.names)):
        step = np.eye(len(form.names))[place] * 1e-5
        slope = (form.log_loss(theta_SP + step, columns) - form.log_loss(theta_SP - step, columns)) / 2e-5
        np.testing.assert_allclose(jacobian_SRP[..., place], slope, rtol=1e-5, atol=1e-9)


def test_one_epoch_and_full_use_are_the_additive_law():
    """Without repetition, excess size or sparsity the special laws are the plain one."""
    law = {"E": 1.4, "A": 60.0, "a": 0.34, "B": 250.0, "b": 0.36}
    size_R, tokens_R = np.array([1e4, 1e5]), np.array([1e6, 1e7])
    plain_R = ADDITIVE.loss(law, log_N=np.log(size_R), log_D=np.log(tokens_R))
    np.testing.assert_allclose(plain_R, law["E"] + law["A"] / size_R ** law["a"] + law["B"] / tokens_R ** law["b"], rtol=1e-12)
    fed_R = (law["a"] * law["A"] / law["b"] / law["B"]) ** (1 / law["a"]) * tokens_R ** (law["b"] / law["a"])
    assert (size_R < fed_R).all()
    once_R = REPETITION.loss(law | {"R_D": 15.0, "R_N": 5.0}, log_N=np.log(size_R), log_D=np.log(tokens_R), log_U=np.log(tokens_R))
    np.testing.assert_allclose(once_R, plain_R, rtol=1e-12)
    dense_R = JOINT.loss(law | {"C": 80.0, "g": 0.1}, log_active=np.log(size_R), log_total=np.log(size_R), log_D=np.log(tokens_R))
    np.testing.assert_allclose(dense_R, plain_R, rtol=1e-12)


def test_repeated_tokens_are_worth_ever_less():
    """2305.16264: D' = U (1 + R* (1 - exp(-R / R*))) never exceeds U (1 + R*)."""
    law = {"E": 1.4, "A": 60.0, "a": 0.34, "B": 250.0, "b": 0.36, "R_D": 15.0, "R_N": 5.0}
    epochs_K = np.array([1.0, 2.0, 4.0, 100.0, 1e6])
    loss_K = REPETITION.loss(law, log_N=np.full(5, np.log(1e3)), log_D=np.log(1e6 * epochs_K), log_U=np.full(5, np.log(1e6)))
    worth_K = ((loss_K - law["E"] - law["A"] / 1e3 ** law["a"]) / law["B"]) ** (-1 / law["b"]) / 1e6
    np.testing.assert_allclose(worth_K, 1 + 15 * (1 - np.exp(-(epochs_K - 1) / 15)), rtol=1e-6)


def test_the_overfitting_law_is_lowest_at_its_best_epochs():
    from dlmjax.fit.special import best_epochs

    law = {"E": 1.4, "A": 60.0, "a": 0.34, "B": 250.0, "b": 0.36, "G": 0.02, "h": 1.0, "c": 0.5, "d": 0.6}
    found = best_epochs(law)
    size, unique = 1e6, 3e6
    expected = found["epochs_scale"] * unique ** found["epochs_unique_exponent"] / size ** found["epochs_size_exponent"]
    epochs_K = np.geomspace(expected / 10, expected * 10, 20001)
    loss_K = OVERFITTING.loss(law, log_N=np.log(size) + 0 * epochs_K, log_D=np.log(unique * epochs_K), log_U=np.log(unique) + 0 * epochs_K)
    assert epochs_K[loss_K.argmin()] == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize("form", ALL, ids=lambda form: form.name)
def test_values_and_theta_undo_each_other(form):
    theta_P = np.array([values[0] for values in form.starts])
    np.testing.assert_allclose(form.theta(form.values(theta_P)), theta_P, rtol=1e-12, atol=1e-12)
