"""Laws of runs that vary something else come back from runs drawn on them."""

import numpy as np
import pytest

from dlmjax.fit import special
from dlmjax.fit.forms import JOINT, MIXING, OVERFITTING, REPETITION
from dlmjax.fit.huber import fit
from tests.fit.synthetic import NOISE, points, record

PLAIN = {"E": 1.4, "A": 60.0, "a": 0.34, "B": 250.0, "b": 0.36}


def repeated_grid():
    """4 sizes x 3 corpora x 5 numbers of epochs."""
    size_R = np.repeat(10 ** np.linspace(4.7, 6.2, 4), 15)
    unique_R = np.tile(np.repeat([1e5, 3e5, 1e6], 5), 4)
    return size_R, unique_R, np.tile([1.0, 3, 8, 20, 64], 12)


def of_law(form, law, noise=0.0):
    size_R, unique_R, epochs_R = repeated_grid()
    tokens_R = unique_R * epochs_R
    loss_R = form.loss(law, log_N=np.log(size_R), log_D=np.log(tokens_R), log_U=np.log(unique_R))
    loss_R = loss_R * np.exp(noise * np.random.default_rng(0).standard_normal(len(loss_R)))
    return points(size_R, tokens_R, 6 * size_R * tokens_R, loss_R, unique_R=unique_R)


@pytest.mark.parametrize("rate", [15.0, 500.0], ids=["autoregressive", "masked"])
def test_the_value_of_repetition_comes_back(rate):
    """R_D* of about 15 for autoregressive and 500 for masked training are the published ones; 64 epochs tell them apart."""
    runs = of_law(REPETITION, PLAIN | {"R_D": rate, "R_N": 8.0})
    found = fit(REPETITION, runs.columns(), runs.loss_R)
    assert found.values["R_D"] == pytest.approx(rate, rel=0.02)
    assert found.values["R_N"] == pytest.approx(8.0, rel=0.02)


def test_both_laws_of_repetition_have_intervals():
    runs = of_law(OVERFITTING, PLAIN | {"G": 0.02, "h": 1.0, "c": 0.5, "d": 0.6}, noise=NOISE)
    found = special.repeated(runs, resamples=100)
    assert set(found) == {"repetition", "overfitting"}
    law = found["overfitting"].record(special.best_epochs)
    true = special.best_epochs(PLAIN | {"G": 0.02, "h": 1.0, "c": 0.5, "d": 0.6})
    for name in ("epochs_unique_exponent", "epochs_size_exponent"):
        assert law["parameters"][name] == pytest.approx(true[name], abs=0.05)
        low, high = law["intervals"]["runs"][name]["95"]
        assert low < law["parameters"][name] < high
    assert found["overfitting"].fit.objective < found["repetition"].fit.objective


def test_runs_of_one_size_have_both_laws_too():
    """Terms in N are then constants: the law of four parameters gives back R_D*, that of six the best epochs."""
    runs = of_law(REPETITION, PLAIN | {"R_D": 15.0, "R_N": 1e5})
    one = runs.take(runs.sizes["total"] == runs.sizes["total"][0])
    found = special.repeated(one, resamples=0)["repetition"]
    assert found.form.names == ("log_E", "log_B", "b", "log_R_D") and found.fit.values["R_D"] == pytest.approx(15.0, rel=0.02)
    law = PLAIN | {"G": 0.02, "h": 1.0, "c": 0.5, "d": 0.6}
    runs = of_law(OVERFITTING, law, noise=NOISE)
    one = runs.take(runs.sizes["total"] == runs.sizes["total"][-1])
    found = special.repeated(one, resamples=100)["overfitting"].record(special.best_epochs)
    true = special.best_epochs(law)
    assert found["parameters"]["epochs_unique_exponent"] == pytest.approx(true["epochs_unique_exponent"], abs=0.1)
    best = true["epochs_scale"] * 3e5 ** true["epochs_unique_exponent"] / one.sizes["total"][0] ** true["epochs_size_exponent"]
    assert found["parameters"]["epochs_scale"] * 3e5 ** found["parameters"]["epochs_unique_exponent"] == pytest.approx(best, rel=0.1)
    assert "epochs_size_exponent" not in found["parameters"] and "epochs_unique_exponent" in found["intervals"]["runs"]


@pytest.mark.parametrize(
    "epochs, unique, words",
    [(1.0, [1e5, 1e6], "fewer than three runs see their tokens more than once"), (8.0, [1e5, 1e5], "corpora of one size")],
)
def test_without_repetition_there_is_no_law_of_it(epochs, unique, words):
    unique_R = np.repeat(unique, 10)
    size_R = np.tile(np.geomspace(1e5, 1e6, 10), 2)
    runs = points(size_R, unique_R * epochs, 6 * size_R * unique_R * epochs, 3 + 100 / size_R**0.5, unique_R=unique_R)
    assert all(words in each.refused for each in special.repeated(runs).values())


def test_one_law_for_dense_and_sparse():
    sparsity_R = np.tile([0.0, 0.5, 0.75, 0.9], 20)
    total_R, tokens_R = np.repeat(10 ** np.linspace(7, 9, 5), 16), np.tile(np.repeat([1e9, 3e9, 1e10, 3e10], 4), 5)
    law = {"E": 1.5, "A": 300.0, "a": 0.33, "B": 400.0, "b": 0.33, "C": 80.0, "g": 0.05}
    active_R = total_R * (1 - sparsity_R)
    loss_R = JOINT.loss(law, log_total=np.log(total_R), log_active=np.log(active_R), log_D=np.log(tokens_R))
    runs = points(total_R, tokens_R, 6 * active_R * tokens_R, loss_R, active=active_R)
    found = special.joint(runs, resamples=0)
    for name, value in law.items():
        assert found.fit.values[name] == pytest.approx(value, rel=1e-4), name
    alike = points(total_R, tokens_R, 6 * total_R * tokens_R, loss_R, active=total_R / 2)
    assert "same share" in special.joint(alike).refused
    dense = points(total_R, tokens_R, 6 * total_R * tokens_R, loss_R, active=total_R * (1 - sparsity_R / 10))  # its embedding
    assert "all runs are dense" in special.joint(dense).refused


def batch_grid(edge=False):
    """Losses of a grid of batch and learning rate whose optimum follows B* = 2 D^0.82 and lr* = 1e-4 B^0.34."""
    runs = []
    for tokens in (1e7, 1e8, 1e9):
        best = 2 * tokens**0.82
        for batch in best / 128 * np.array([0.25, 0.5, 1.0, 2.0, 4.0]):
            batch = max(round(batch), 1)
            right = 1e-4 * (batch * 128) ** 0.34
            for k, lr in enumerate(right * np.array([2.0, 4.0, 8.0] if edge else [0.25, 0.5, 1.0, 2.0, 4.0])):
                loss = 3 + 0.02 * np.log(batch * 128 / best) ** 2 + 0.03 * np.log(lr / right) ** 2
                cell = {"batch": batch, "lr": lr}
                runs.append(record(f"b{batch}-{k}-{tokens:g}", tokens=tokens, loss=loss, batch=batch, lr=lr, cell=cell))
    return runs


def test_batch_and_learning_rate_laws():
    """The published exponents, 0.82 of tokens and 0.34 of the batch (2512.10858), put in and found again."""
    found = special.tuning(batch_grid())
    assert found.batch.exponent == pytest.approx(0.82, abs=2e-3)
    assert found.batch.coefficient == pytest.approx(2.0, rel=0.05)
    assert found.lr.exponent == pytest.approx(0.34, abs=1e-3)
    assert found.lr.coefficient == pytest.approx(1e-4, rel=0.02)
    assert found.lr_stderr < 1e-3
    assert found.record()["batch"]["pivot"] == pytest.approx(1e8)


def test_learning_rates_beyond_the_grid_do_not_count():
    found = special.tuning(batch_grid(edge=True))
    assert found.lr is None and found.batch is None
    assert all(row["rejected"] for row in found.minima)
    assert special.tuning([record()]) is None


def test_the_mixing_law_and_its_best_mixture():
    """BiMix: each domain's own law from mixtures; the best mixture is where no small move helps."""
    laws = {"books": {"a": 0.05, "B": 40.0, "b": 0.3, "C": 1.3}, "code": {"a": 0.12, "B": 80.0, "b": 0.35, "C": 0.8}}
    runs = []
    for share in (0.1, 0.25, 0.5, 0.75, 0.9):
        for tokens in np.geomspace(1e6, 1e8, 5):
            mixture = {"books": share, "code": 1 - share}
            domains = {n: float(MIXING.loss(laws[n], log_r=np.log(mixture[n]), log_D=np.log(int(tokens)))[0]) for n in laws}
            name = f"m{share}-{tokens:.0f}"
            runs.append(record(name, tokens=int(tokens), mixture=mixture, domains=domains, cell={"weights": [share, 1 - share]}))
    found = special.mixing(runs, resamples=0)
    for name, law in laws.items():
        for key, value in law.items():
            assert found[name].fit.values[key] == pytest.approx(value, rel=1e-4), (name, key)
    best = special.best_mixture({name: each.fit.values for name, each in found.items()}, 1e7)
    share_K = np.linspace(0.01, 0.99, 9801)
    total_K = sum(
        MIXING.loss(laws[n], log_r=np.log(s), log_D=np.full(len(s), np.log(1e7))) for n, s in (("books", share_K), ("code", 1 - share_K))
    )
    assert best["books"] == pytest.approx(share_K[total_K.argmin()], abs=2e-4)
    assert sum(best.values()) == pytest.approx(1.0)
