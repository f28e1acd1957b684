"""What the training tests share: the optimizer of the toy model and steps compiled once."""

import functools

import jax
import pytest

from dlmjax.training import OptimizerSpec, build_optimizer, hyperparameters_of, init_state, learning_rate, make_train_step
from tests.training import toy

STEPS = 40
SPEC = OptimizerSpec(lr=1e-2, warmup=4, weight_decay=0.1)
HYPERPARAMETERS = hyperparameters_of(SPEC, STEPS)
RATE = functools.partial(learning_rate, SPEC.schedule)


@pytest.fixture(scope="package")
def tx():
    return build_optimizer(SPEC, toy.KINDS)


@pytest.fixture(scope="package")
def new_state(tx):
    """A function, because a step eats the state it is given."""
    host = jax.device_get(init_state(toy.init_params, tx, jax.random.key(0)))
    return lambda: jax.device_put(host)


@pytest.fixture(scope="package")
def step(tx):
    return make_train_step(toy.loss_fn, tx, ema_decay=0.9, hyperparameters=HYPERPARAMETERS, learning_rate=RATE)


@pytest.fixture(scope="package")
def step4(tx):
    return make_train_step(toy.loss_fn, tx, ema_decay=0.9, accumulation=4, hyperparameters=HYPERPARAMETERS, learning_rate=RATE)
