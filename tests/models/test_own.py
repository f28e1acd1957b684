"""Networks of one's own: what they compute, which processes they serve, how they are laid out; the U-Net of docs/models.md."""

import functools
import pathlib
import re
import sys
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from dlmjax.diffusion import make_process
from dlmjax.diffusion.declarations import Attention
from dlmjax.errors import InputError
from dlmjax.models import BlockDiffusion, Declared, TrainableNetwork, build_network, from_function, from_nnx
from dlmjax.parallel import Partition, make_mesh
from tests.models import tiny

PAGE = pathlib.Path(__file__).parents[2] / "docs" / "models.md"
UNET = next(code for code in re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL) if "class UNet" in code)
PROGRAM = next(code for code in re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL) if "from_nnx(" in code)
VOCAB, LENGTH, KEY = tiny.VOCAB, tiny.LENGTH, jax.random.key(7)
SIZES = types.SimpleNamespace(width=16, heads=2, dropout=0.0)


@functools.cache
def unet_module():
    names: dict = {}
    exec(UNET, names)
    return names


def unet(layout=None, dropout=0.0, output="hidden"):
    sizes = types.SimpleNamespace(**vars(SIZES) | {"dropout": dropout})

    def build(rngs):
        module = unet_module()["build"](sizes, VOCAB, rngs)
        if output == "logits":
            module.output, module.norm = "logits", nnx.Linear(sizes.width, VOCAB, rngs=rngs)
        return module

    return from_nnx(build, vocab=VOCAB, layout=layout)


class Attending(nnx.Module):
    """Attention alone; what each position sees is `rule`."""

    output = "logits"

    def __init__(self, rngs, rule="full", vocab=VOCAB):
        self.attention = self.rule = rule
        self.embed, self.place = nnx.Embed(vocab, 8, rngs=rngs), nnx.Embed(64, 8, rngs=rngs)
        self.attend, self.out = nnx.MultiHeadAttention(2, 8, decode=False, rngs=rngs), nnx.Linear(8, vocab, rngs=rngs)

    def __call__(self, tokens, t, segments, positions, mask=None):
        x = self.embed(tokens) + self.place(positions) + t[..., None]
        if mask is None:
            mask = segments[:, :, None] == segments[:, None, :]
            if self.rule == "causal":
                mask = mask & jnp.tri(tokens.shape[1], dtype=bool)
        return self.out(x + self.attend(x, mask=mask[:, None]))


def value(network, params, attention="full"):
    return jax.jit(jax.value_and_grad(tiny.loss_of(types.SimpleNamespace(bind=network.bind, spec=tiny.spec()), attention), has_aux=True))(
        params, tiny.batch(), KEY
    )


def test_the_page_shows_a_module_of_about_forty_lines():
    assert len([line for line in UNET.splitlines() if line.strip()]) <= 50


@pytest.mark.parametrize("network", [build_network(tiny.spec()), pytest.param(None, id="own")])
def test_the_protocol_of_a_network(network):
    network = network or unet()
    assert isinstance(network, TrainableNetwork)
    shapes = network.abstract()
    for tree in (network.kinds, network.lr_multipliers, network.wd_multipliers, network.eps_multipliers):
        assert jax.tree.structure(tree) == jax.tree.structure(shapes)
    axes = jax.tree.leaves(network.axes, is_leaf=lambda leaf: isinstance(leaf, tuple))
    assert [len(leaf) for leaf in axes] == [leaf.ndim for leaf in jax.tree.leaves(shapes)]
    assert network.training_flops_per_token(LENGTH) > 0


def test_logits_and_hidden_states_give_the_same_loss_and_gradients():
    """A head of ours on hidden states, and the same product inside the module: also where no position, or not every one, has loss."""
    hidden = from_function(
        lambda params, tokens, *_: params["e"][tokens],
        lambda key: {"e": jax.random.normal(key, (VOCAB, 8))},
        Declared("hidden"),
        vocab=VOCAB,
    )
    params = hidden.init(jax.random.key(1))
    logits = from_function(
        lambda params, tokens, *_: params["e"][tokens] @ params["o"], {"e": params["module"]["e"], "o": params["head"]["kernel"]}
    )
    (want, (want_nats, _)), gradients = value(hidden, params)
    flat = logits.init(KEY)
    (got, (nats, _)), own = value(logits, flat)
    np.testing.assert_allclose(got, want, rtol=1e-6)
    np.testing.assert_allclose(nats, want_nats, atol=1e-5)
    assert tiny.worst(own["module"], {"e": gradients["module"]["e"], "o": gradients["head"]["kernel"]}) < 1e-5
    batch = jax.tree.map(jnp.asarray, tiny.batch())
    denoiser = logits.bind(flat, batch["segments"], batch["positions"])
    out = denoiser.hidden(batch["tokens"], jnp.ones(batch["tokens"].shape))

    def loss(out, mask_BL):
        def infinite(logits, x, t):
            return tiny.cross_entropy(logits, x) / t  # at t = 0, where no loss is

        return denoiser.row_losses(out, mask_BL, infinite, (batch["tokens"], jnp.where(mask_BL, 1.0, 0.0)), jnp.ones(mask_BL.shape))[0]

    for mask_BL in (np.zeros(out.shape[:2], bool), np.arange(LENGTH) % 2 * np.ones((tiny.BATCH, 1)) > 0):
        total, gradient = jax.jit(jax.value_and_grad(loss))(out, jnp.asarray(mask_BL))
        assert np.isfinite(total) and np.isfinite(gradient).all()
        assert (np.abs(gradient).sum(-1) > 0).tolist() == mask_BL.tolist()


@pytest.mark.parametrize(
    ("output", "sizes"), [("hidden", (1, 2, 2, 2)), pytest.param("logits", (2, 2, 1, 2), marks=pytest.mark.slow)], ids=str
)
def test_eight_devices_equal_one(output, sizes):
    partition = Partition(make_mesh(*sizes))
    alone, spread = unet(dropout=0.1, output=output), unet(partition, dropout=0.1, output=output)
    params = tiny.lively(alone.init(jax.random.key(0)))
    (want, (want_nats, _)), want_gradients = value(alone, params)
    spread.require_mesh(partition)
    shardings = partition.tree(spread.axes)
    placed = jax.device_put(params, shardings)
    kernel = placed["module"]["waves"]["kernel"]
    assert kernel.sharding.shard_shape(kernel.shape) == (32, 8)
    (got, (nats, _)), gradients = value(spread, placed)
    np.testing.assert_allclose(got, want, rtol=1e-5)
    np.testing.assert_allclose(nats, want_nats, atol=2e-5)
    # Of the largest entry of all: the gradient of a bias on keys is 0 but for rounding.
    largest = max(np.abs(leaf).max() for leaf in jax.tree.leaves(want_gradients))
    for leaf, want_leaf in zip(jax.tree.leaves(gradients), jax.tree.leaves(want_gradients), strict=True):
        np.testing.assert_allclose(leaf, want_leaf, atol=1e-5 * largest)


def test_dropout_is_keyed_by_the_row():
    network = unet(dropout=0.5)
    assert network.dropout and not unet().dropout
    params, batch = network.init(jax.random.key(0)), tiny.batch()

    def hidden(rows, key):
        part = {name: jnp.asarray(array[rows]) for name, array in batch.items()}
        keys_B = None if key is None else jax.vmap(jax.random.fold_in, (None, 0))(key, part["row"])
        denoiser = network.bind(params, part["segments"], part["positions"], dropout_key=keys_B)
        return jax.jit(denoiser.hidden)(part["tokens"], jnp.ones(part["tokens"].shape))

    whole = hidden(slice(0, 4), KEY)
    np.testing.assert_allclose(hidden(slice(1, 3), KEY), whole[1:3], atol=1e-6)
    assert np.abs(whole - hidden(slice(0, 4), None)).max() > 0.1
    assert np.abs(whole - hidden(slice(0, 4), jax.random.key(8))).max() > 0.1


def test_a_module_starts_from_its_values_and_holds_other_arrays():
    class Plain(nnx.Module):
        def __init__(self, rngs):
            self.weights, self.shift = nnx.List([nnx.Param(jax.random.normal(rngs(), (VOCAB, 5)))]), jnp.arange(5.0)

        def __call__(self, tokens, t, segments, positions):
            return self.weights[0][...][tokens] + self.shift

    module = Plain(nnx.Rngs(3))
    tokens = jnp.arange(4)[None]
    for network in (from_nnx(module), from_nnx(Plain)):
        assert network.vocab == 5
        params = jax.jit(network.init)(jax.random.key(3))
        denoiser = network.bind(params, tokens, tokens)
        table = params["module"]["weights"]["0"]
        np.testing.assert_array_equal(jax.jit(denoiser.hidden)(tokens, tokens * 0.0), (table + module.shift)[tokens])
    np.testing.assert_array_equal(from_nnx(module).init(KEY)["module"]["weights"]["0"], module.weights[0][...])


MASKED, UNIFORM = (make_process(name, vocab=6, mask_id=5, bos_id=4, excluded=()) for name in ("masked", "uniform"))
CASES = {
    "masked": MASKED,
    "uniform": UNIFORM,
    "autoregressive": make_process("autoregressive", vocab=6, mask_id=5, bos_id=4, excluded=()),
    "blocks": make_process("blocks", vocab=6, mask_id=5, bos_id=4, excluded=(), size=2),
    "duo": make_process("duo", vocab=6, mask_id=5, bos_id=4, excluded=(), k=2),
    "gaussian": make_process("gaussian", vocab=6, mask_id=5, bos_id=4, excluded=()),
}
REFUSED = {
    "full": {"autoregressive": 'declares "full"', "blocks": 'declares "full"'},
    "causal": {"blocks": 'declares "causal"'},
    "mask": {},
    "timeless": {"uniform": "reads_time = False", "autoregressive": 'declares "full"', "blocks": 'declares "full"'},
}


@pytest.mark.parametrize("kind", REFUSED)
@pytest.mark.parametrize("process", CASES)
def test_which_process_a_module_serves(kind, process):
    declared = Declared(reads_time=False) if kind == "timeless" else Declared(attention=kind)
    network = from_function(lambda params, tokens, *_: params["e"][tokens], {"e": jnp.zeros((6, 6))}, declared, name="mine")
    said = REFUSED[kind].get(process) or {"duo": "soft tokens", "gaussian": "vectors"}.get(process)
    if said is None:
        return network.require_process(CASES[process])
    with pytest.raises(InputError, match=f"process.name={process} requires of mine .*{re.escape(said)}"):
        network.require_process(CASES[process])


def test_a_mask_is_obeyed():
    """Block diffusion: each half of the row reads what the mask of the process allows, and a causal module nothing later."""
    x = jnp.asarray(tiny.batch()["tokens"][:1])
    pairs, t = jnp.stack([x, x], -1), jnp.full(x.shape, 0.5)
    ones, positions = jnp.ones_like(x), jnp.arange(LENGTH)[None]

    def reads(network, z, attention):
        params = network.init(jax.random.key(0))
        run = jax.jit(lambda z: network.bind(params, ones, positions, attention).hidden(z, t))
        changed = jnp.stack([z.at[0, k].set((z[0, k] + 1) % VOCAB) for k in range(LENGTH)])
        return np.stack([np.abs(run(c) - run(z)).max(-1)[0] > 1e-6 for c in changed], axis=1)  # [query, key]

    block = from_nnx(lambda rngs: Attending(rngs, "mask"))
    q, k = np.arange(LENGTH)[:, None], np.arange(LENGTH)[None]
    mask = BlockDiffusion(4, LENGTH)
    want = mask.allowed(q, k) | mask.allowed(q, k + LENGTH)
    np.testing.assert_array_equal(reads(block, pairs, Attention(block_size=4)), want)
    np.testing.assert_array_equal(reads(block, x, "causal"), q >= k)
    causal = from_nnx(lambda rngs: Attending(rngs, "causal"))
    np.testing.assert_array_equal(reads(causal, x, "causal"), q >= k)
    with pytest.raises(InputError, match="declares attention = 'causal'"):
        causal.bind({}, ones, positions, Attention(block_size=4))


def linear(out=VOCAB):
    return lambda params, tokens, *_: jnp.zeros((*tokens.shape, out)) + params["w"]


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: from_function(lambda params, x, *_: jnp.zeros((*x.shape, 3), jnp.int32), {}), "gives int32"),
        (lambda: from_function(lambda p, x, *_: jnp.zeros(x.shape), {}), r"output of shape \[2, 64\] for tokens \[2, 64\]"),
        (lambda: from_function(lambda p, x, *_: None, {}), "output NoneType"),
        (lambda: from_function(linear(5), {"w": jnp.zeros(())}, vocab=6), "gives 5 columns, and the vocabulary has 6"),
        (lambda: from_function(linear(), {"w": jnp.zeros(())}, Declared("hidden")), "pass vocab"),
        (lambda: from_function(linear(), {"w": jnp.zeros((), jnp.bfloat16)}), "parameter w is bfloat16"),
        (lambda: from_function(linear(), {"w": jnp.zeros(())}, kinds={"w": "matrx"}), "kind matrx; choose one of"),
        (lambda: from_function(lambda p, x: x, {}), "fails for tokens .*TypeError"),
        (lambda: Declared("probabilities"), "output = 'probabilities'; choose one of logits, hidden"),
        (lambda: Declared(attention="blocks"), "attention = 'blocks'; choose one of full, causal, mask"),
        (lambda: from_nnx(lambda rngs: 3), "returns int, not a flax.nnx.Module"),
        (lambda: from_nnx(lambda rngs: Attending(rngs, "both")), "attention = 'both'"),
        (lambda: from_nnx(lambda rngs: nnx.BatchNorm(3, rngs=rngs)), "holds BatchStat at mean"),
        (lambda: from_nnx(lambda rngs: 1 / 0), "ZeroDivisionError"),
        (lambda: unet().spec, "is a network of your own"),
        (lambda: unet().require_process(MASKED, 0.5), "takes no hint"),
    ],
)
def test_refusals_are_one_line(make, said):
    with pytest.raises(InputError, match=said) as caught:
        make()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("axes", "said"),
    [
        (("tenser", None), "tenser"),
        ((None, "tensor"), "size of 3 into 2 pieces"),
        (("tensor", "tensor"), "none of them twice"),
        (("tensor",), "one for each of its axes"),
        ((("data", "fsdp"), None), None),
    ],
)
def test_axes_that_do_not_fit(axes, said):
    partition = Partition(make_mesh(2, 2, 1, 2))
    network = from_function(lambda params, tokens, *_: params["w"][tokens], {"w": jnp.zeros((8, 3))}, axes={"w": axes})
    if said is None:
        return network.require_mesh(partition)
    with pytest.raises(InputError, match=f"parameter w: .*{said}"):
        network.require_mesh(partition)


def test_the_program_of_the_page_runs_as_it_stands(tmp_path, monkeypatch, capsys):
    (tmp_path / "unet.py").write_text(UNET)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "unet", raising=False)
    exec(compile(PROGRAM, str(PAGE), "exec"), {"__name__": "__main__"})
    assert capsys.readouterr().out == "(2, 16, 264) float32\n"
    sys.modules.pop("unet")
