"""The training package with the real network and a real objective, which it does not know, on eight devices."""

import jax
import numpy as np
import pytest

from dlmjax.diffusion import Objective, make_process
from dlmjax.models import Execution, ModelSpec, build_network
from dlmjax.parallel import Partition, make_mesh
from dlmjax.training import OptimizerSpec, Window, abstract_state, build_optimizer, hyperparameters_of, init_state, make_train_step

SPEC = ModelSpec(vocab=12, depth=2, width=16, heads=2, kv_heads=2, head_dim=8, ffn=32)
B, L = 8, 8


def test_network_objective_and_muon_fit_together_on_a_mesh(capfd, monkeypatch):
    partition = Partition(make_mesh(data=2, fsdp=2, tensor=2))
    network = build_network(SPEC, Execution(), partition)
    objective = Objective(make_process("masked", vocab=12, mask_id=11, bos_id=8, eos_id=9, pad_id=10))

    def loss_fn(params, batch, key):
        return objective(network.bind(params, batch["segments"], batch["positions"], "full"), batch, key, B)

    spec = OptimizerSpec(name="muon", lr=2e-2, warmup=2, schedule="constant")
    tx = build_optimizer(spec, network.kinds, network.lr_multipliers, network.wd_multipliers, network.eps_multipliers)
    shardings = partition.tree(network.axes)
    monkeypatch.delenv("XLA_FLAGS", raising=False)  # compiled as users do
    state = init_state(network.init, tx, jax.random.key(0), shardings)
    # The program of the start, which is compiled in less time, draws the same bits as with LLVM's full optimisation.
    drawn = jax.jit(network.init, compiler_options={"xla_backend_optimization_level": 3})(jax.random.key(0))
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(state["params"]), jax.device_get(drawn))
    step = make_train_step(loss_fn, tx, accumulation=2, hyperparameters=hyperparameters_of(spec, 30), shardings=shardings)
    rows = {
        "tokens": np.tile(np.arange(L, dtype=np.int32) % 4, (B, 1)),
        "segments": np.ones((B, L), np.int32),
        "positions": np.tile(np.arange(L, dtype=np.int32), (B, 1)),
        "row": np.arange(B, dtype=np.int32),
    }
    batch, key = partition.put_batch(rows), jax.device_put(jax.random.key(1), partition.sharding(()))
    window, lines = Window(report=objective.report), []
    with jax.transfer_guard("disallow"):
        for number in range(30):
            state, metrics = step(state, batch, key)
            window.add(number, metrics)
            if number % 10 == 9:
                lines.append(window.reduce().values)
    assert lines[0]["skipped"] == 0 and 1.0 < lines[0]["nelbo"] < 20.0 and 0.2 < lines[0]["noise_rate"] < 0.8
    assert lines[2]["nelbo"] < 0.7 * lines[0]["nelbo"]

    abstract = abstract_state(network.init, tx, shardings)
    jax.tree.map(lambda leaf, asked: leaf.sharding.is_equivalent_to(asked.sharding, leaf.ndim) or pytest.fail(), state, abstract)
    moments = state["opt"]["transform"][1].inner_states["muon"].inner_state[0].mu
    query = moments["layers"]["query"]["kernel"]
    assert query.shape == (2, 16, 16) and query.addressable_shards[0].data.size * 4 == query.size  # over fsdp x tensor
    assert "full rematerialization" not in capfd.readouterr().err
