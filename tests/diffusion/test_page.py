"""docs/processes.md: every process is in its table, and the process that it shows how to add passes the battery."""

import pathlib
import re
import sys
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dlmjax.diffusion.oracle import enumeration as oracle
from dlmjax.diffusion.registry import PROCESSES, WEIGHTINGS
from tests import test_families
from tests.diffusion import test_battery as battery
from tests.diffusion import test_capabilities
from tests.diffusion.battery import BOS, COSINE, MASK, TOKENS, VOCAB, Case, as_leave_one_out
from tests.sampling import test_every_process

PAGE = (pathlib.Path(__file__).parents[2] / "docs" / "processes.md").read_text(encoding="utf-8")
PI = np.asarray([0.5, 0.3, 0.2])


@pytest.fixture(scope="module")
def case():
    """The page's process, run from the page, and its forward kernel by hand."""
    source = re.search(r"```python\n(.*?)```", PAGE, re.DOTALL)[1]
    assert len(source.splitlines()) <= 80
    module = types.ModuleType("page_of_processes")
    sys.modules[module.__name__] = module  # dataclasses look their module up
    exec(compile(source, "docs/processes.md", "exec"), module.__dict__)
    process = module.Lexical(VOCAB, MASK, (BOS,), counts_V=(5, 3, 2, 1, 1))
    alpha, alpha_prime = COSINE
    kernel = oracle.Kernel(TOKENS, alpha, alpha_prime, lambda t: (1 - alpha(t)) * PI, lambda t: -alpha_prime(t) * PI)

    def log_likelihood(z_BL, t_BL):
        hit_BLK = jax.nn.one_hot(z_BL, TOKENS, dtype=t_BL.dtype)
        alpha_BL = process.schedule.alpha(t_BL)[..., None]
        return jnp.log(jnp.maximum(alpha_BL * hit_BLK + (1 - alpha_BL) * jnp.asarray(PI, t_BL.dtype)[z_BL][..., None], 1e-30))

    return Case("lexical", process, kernel, log_likelihood, output="leave_one_out", express=as_leave_one_out, times="power")


@pytest.mark.parametrize(
    "test",
    [
        battery.test_case_is_a_process,
        lambda case: battery.test_bound_is_tight(case, battery.LAW2),
        lambda case: battery.test_pointwise_loss_is_the_oracles(case, jnp.float64, 1e-10),
        lambda case: battery.test_pointwise_loss_is_the_oracles(case, jnp.float32, 1e-5),
        lambda case: battery.test_composed_steps_are_the_one_shot_marginal(case, 6),
        battery.test_few_reverse_steps_have_the_enumerated_distribution,
        lambda case: battery.test_loss_and_gradient_are_finite_at_the_ends(case, jnp.bfloat16, 1e4),
        pytest.param(battery.test_padding_is_untouched_and_carries_no_loss, marks=pytest.mark.slow),
        pytest.param(battery.test_a_batch_is_its_rows, marks=pytest.mark.slow),
    ],
    ids=["process", "tight", "pointwise", "pointwise float32", "forward", "reverse", "ends", "padding", "rows"],
)
def test_the_page_shows_a_process_that_passes_the_battery(case, test):
    test(case)


def test_the_process_of_the_page_runs_by_its_name(case, monkeypatch):
    """With the page's line in the registry: made from what a tokenizer and a corpus provide, trained, evaluated and sampled."""
    monkeypatch.setitem(PROCESSES, "lexical", type(case.process))
    test_capabilities.test_declarations_agree_with_what_a_process_does("lexical")
    test_capabilities.test_every_weighting_fits_a_process_or_is_refused_by_name("lexical")
    test_every_process.test_a_prompt_is_kept_and_text_comes_out("lexical")
    experiment = test_families.experiment_of("uniform", jax.devices()[:1], process="lexical")
    assert experiment.process.pi[1] == pytest.approx(2 * experiment.process.pi[0]) and experiment.objective.trains_bound
    params, batch = experiment.init(jax.random.key(0)), test_families.text()
    total, _, gradient = test_families.loss_and_gradient(experiment, params)
    assert np.isfinite(total) and all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradient))
    found = experiment.evaluator(nodes=16).measure(params, [batch])
    # The text is uniform over 27 symbols, and an untrained network knows no more.
    assert found.nats_W.sum() / found.tokens_W.sum() == pytest.approx(np.log(27), rel=0.2)


@pytest.mark.parametrize("name", [*PROCESSES, *WEIGHTINGS])
def test_every_name_of_a_config_is_on_the_page(name):
    assert f"`{name}`" in PAGE or f"`{name}(" in PAGE
