"""A run opened on a mesh: weights read straight into their shards, in float32 or bfloat16, and one line for what does not fit."""

import json

import jax
import numpy as np
import pytest
from orbax.checkpoint import v1 as ocp

import dlmjax
from dlmjax import config as config_lib
from dlmjax.cli.main import main
from dlmjax.data import load_tokenizer
from dlmjax.errors import InputError
from dlmjax.experiment import assemble, claim_workdir
from dlmjax.run import open_run
from dlmjax.training import Checkpoints
from tests.models.tiny import lively

WIDTH, LENGTH = 16, 8


@pytest.fixture(autouse=True)
def room(monkeypatch):
    """What `open_run` sets for the threads of eight devices is not left to the processes that later tests start."""
    monkeypatch.delenv("NPROC", raising=False)


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    """A run as training on the mesh data=1, fsdp=4, tensor=2 leaves it."""
    root = tmp_path_factory.mktemp("meshed") / "run"
    config = config_lib.default()
    config.data.length = LENGTH
    config.model.update(depth=2, width=WIDTH, heads=2, kv_heads=2, head_dim=8, ffn=16)
    config.mesh.update(data=1, fsdp=4, tensor=2)
    config.train.ema = 0.0
    experiment = assemble(config, load_tokenizer("char27"))
    claim_workdir(root, config, experiment.tokenizer)
    params = jax.device_put(lively(experiment.init(jax.random.key(0))), experiment.param_shardings)
    with Checkpoints(root / "checkpoints") as checkpoints:
        checkpoints.save(3, {"params": params}, {"step": 3})
    return root


def bytes_of_device(params, device):
    """Bytes of the weights on one device."""
    return sum(s.data.nbytes for leaf in jax.tree.leaves(params) for s in leaf.addressable_shards if s.device == device)


def test_weights_are_read_into_their_shards(workdir, monkeypatch):
    """No array of a matrix is whole on a device, not while it is read either; both types hold on to the bits of the files."""
    load, requested = ocp.load_checkpointables, []

    def recorded(path, abstract):
        requested.extend(jax.tree.leaves(abstract["state"]))
        return load(path, abstract)

    monkeypatch.setattr(ocp, "load_checkpointables", recorded)
    whole = jax.device_get(open_run(workdir).params)
    requested.clear()
    run, short = open_run(workdir, mesh="data=1,fsdp=4,tensor=2"), open_run(workdir, mesh={"fsdp": 8}, dtype="bfloat16")
    matrices = [leaf for leaf in requested if leaf.size > 2 * WIDTH]
    assert len(matrices) == 18 and {leaf.dtype.name for leaf in requested} == {"float32"}
    for leaf in matrices:
        pieces = leaf.sharding.shard_shape(leaf.shape)
        assert np.prod(pieces) in (leaf.size // 8, leaf.size // 4, leaf.size // 2) and np.prod(pieces) < leaf.size
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(run.params), whole)
    assert short.params["layers"]["up"]["kernel"].dtype == short.params["embedding"]["table"].dtype == "bfloat16"
    assert short.params["norm"]["scale"].dtype == "float32"
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a, b.astype(a.dtype)), jax.device_get(short.params), whole)
    of_first = [bytes_of_device(one.params, jax.devices()[0]) for one in (open_run(workdir), run, short)]
    assert of_first[0] > 3 * of_first[1] > 3 * of_first[2]
    assert short.placement == {"mesh": {"fsdp": 8}, "dtype": "bfloat16"} and open_run(workdir).placement == {}


def test_texts_of_an_opened_run_do_not_depend_on_the_mesh(workdir):
    """Of a run that was trained on another mesh, with rows that no mesh here divides."""
    how = {"length": LENGTH, "count": 3, "seed": 2, "steps": 4}
    plain, run = open_run(workdir), open_run(workdir, mesh={"data": 2, "fsdp": 2, "tensor": 2})
    np.testing.assert_array_equal(plain.sample("a", **how).samples.tokens_BL, run.sample("a", **how).samples.tokens_BL)
    ids_BL = np.arange(3 * LENGTH).reshape(3, LENGTH) % 27
    logits_BLV = plain.logits(ids_BL, 0.5)
    np.testing.assert_allclose(logits_BLV, run.logits(ids_BL, 0.5), atol=1e-4)
    assert plain.logits(ids_BL[0], 0.5).shape == run.logits(ids_BL[0], 0.5).shape == logits_BLV.shape[1:]


def test_sharded_bfloat16_has_the_bits_of_whole_bfloat16(workdir):
    whole, split = (open_run(workdir, mesh=mesh, dtype="bfloat16") for mesh in ("data=8", "data=2,fsdp=4"))
    eight_BL = np.arange(8 * LENGTH).reshape(8, LENGTH) % 27
    logits_BLV = whole.logits(eight_BL, 0.5)
    np.testing.assert_array_equal(logits_BLV, split.logits(eight_BL, 0.5))
    assert 1e-4 < np.abs(logits_BLV - open_run(workdir).logits(eight_BL, 0.5)).max() < 0.1


def test_commands_take_a_mesh(workdir, tmp_path, capsys):
    file = tmp_path / "samples.json"
    flags = ["--workdir", str(workdir), "--mesh", "data=2,fsdp=4", "--dtype", "bfloat16"]
    assert main(["sample", *flags, "--length", "8", "--count", "3", "--steps", "2", "--json", str(file)]) == 0
    report = json.loads(file.read_text())
    assert len(report["samples"]) == len(report["calls_each"]) == 3 and max(report["calls_each"]) == report["evaluations"] <= 2
    assert (report["mesh"], report["dtype"]) == ({"data": 2, "fsdp": 4}, "bfloat16")


@pytest.mark.parametrize(
    ("flags", "line"),
    [
        (("--mesh", "data=2"), "--mesh data=2 does not fit 8 devices; give sizes whose product is 8"),
        (("--mesh", "fsdp=8,fsdp=1"), "--mesh is 'fsdp=8,fsdp=1'; give sizes of data, fsdp, tensor, such as data=2,fsdp=4"),
        (("--mesh", "sequence=8"), "--mesh is 'sequence=8'; give sizes of data, fsdp, tensor"),
        (("--mesh", "tensor=8"), "--mesh tensor=8: heads=2 is not a multiple of the mesh's tensor = 8"),
        (("--dtype", "float16"), "--dtype: invalid choice: 'float16'"),
    ],
)
def test_what_does_not_fit_is_one_line(workdir, flags, line, capsys):
    assert main(["sample", "--workdir", str(workdir), *flags]) == 2
    assert line in " ".join(capsys.readouterr().err.split())


def test_python_names_arguments(workdir):
    for values, line in [
        ({"mesh": {"rows": 8}}, "mesh is 'rows=8'; give sizes of data, fsdp, tensor"),
        ({"dtype": "half"}, "dtype is 'half'; choose one of float32, bfloat16"),
        ({"mesh": "data=4"}, "mesh data=4 does not fit 8 devices"),
    ]:
        with pytest.raises(InputError, match=line) as error:
            dlmjax.open_run(workdir, **values)
        assert "--" not in str(error.value)
