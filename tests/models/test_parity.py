"""Logits, loss and gradients of the eager PyTorch twin with copied weights."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dlmjax.models import Execution, build_network
from tests.models import tiny

torch = pytest.importorskip("torch", reason="the twin needs PyTorch (pip install dlmjax[interop])")


@pytest.mark.parametrize(
    "changes",
    [{}, {"tied": True, "qk_norm": False, "kv_heads": 4}, {"rope_scaling": 2.0, "rope_base": 500.0, "kv_heads": 1}],
    ids=["grouped", "tied", "stretched"],
)
def test_equals_the_torch_twin(changes):
    from tests.models.torch_twin import Twin

    spec, data = tiny.spec(**changes), tiny.batch()
    network = build_network(spec, Execution(head_chunk=7))
    params = tiny.lively(network.init(jax.random.key(0)))
    (value, (nats, rows)), gradients = jax.jit(jax.value_and_grad(tiny.loss_of(network), has_aux=True))(params, data, jax.random.key(1))
    noisy, rows, level = (np.array(x) for x in tiny.corrupt(data, jax.random.key(1)))

    twin = Twin(spec)
    twin.load(params)
    segments = torch.tensor(data["segments"])
    mask = (segments[:, None, :, None] == segments[:, None, None, :]) if spec.heads else None
    arrays = [torch.tensor(x).long() for x in (data["tokens"], noisy)]
    positions = torch.tensor(data["positions"])
    loss = twin.loss(*arrays, torch.tensor(rows), torch.tensor(1.0 / level), positions, mask)
    loss.backward()
    np.testing.assert_allclose(value, loss.item(), rtol=1e-5)
    assert tiny.worst(gradients, twin.gradients()) < 2e-5

    denoiser = network.bind(params, jnp.asarray(data["segments"]), jnp.asarray(data["positions"]))
    ours = denoiser.logits(denoiser.hidden(jnp.asarray(noisy), jnp.asarray(level)))
    theirs = twin.logits(twin.hidden(arrays[1], positions, mask)).detach().numpy()
    np.testing.assert_allclose(ours, theirs, atol=2e-4)
    assert np.abs(nats[~rows]).max() == 0.0
