"""Files that the safetensors library reads, its files read here, and damage that is told instead of read."""

import json

import ml_dtypes
import numpy as np
import pytest

from dlmjax.errors import InputError
from dlmjax.interop.safetensors import INDEX, SINGLE, Reader, Tensor, write_sharded

RNG = np.random.default_rng(0)
ARRAYS = {
    "a.weight": RNG.normal(size=(3, 5)).astype(np.float32),
    "b.bias": RNG.normal(size=(7,)).astype(np.float32),
    "c.weight": RNG.normal(size=(4, 2)).astype(ml_dtypes.bfloat16),
    "d.empty": np.zeros((0, 3), np.float32),
    "e.weight": np.asfortranarray(RNG.normal(size=(6, 4)).astype(np.float32)),
}


def tensors(fetched=None):
    def fetch(name):
        if fetched is not None:
            fetched.append(name)
        return ARRAYS[name]

    return [Tensor(name, a.shape, a.dtype, lambda name=name: fetch(name)) for name, a in ARRAYS.items()]


def same(reader):
    assert set(reader.names) == set(ARRAYS)
    for name, array in ARRAYS.items():
        assert (reader.shape(name), reader.dtype(name)) == (array.shape, array.dtype)
        np.testing.assert_array_equal(reader.read(name), array)


@pytest.mark.parametrize("shard_bytes", [10**9, 80, 1], ids=["one", "some", "each"])
def test_what_is_written_is_read_and_fetched_once(tmp_path, shard_bytes):
    fetched = []
    names = write_sharded(tmp_path, tensors(fetched), shard_bytes)
    assert fetched == list(ARRAYS) and sorted(names) == sorted(path.name for path in tmp_path.iterdir())
    same(Reader(tmp_path))
    if shard_bytes == 80:
        sizes = [sum(ARRAYS[name].nbytes for name in Reader(tmp_path / file).names) for file in names[:-1]]
        assert len(sizes) > 1 and all(
            size <= 80 or len(Reader(tmp_path / file).names) == 1 for size, file in zip(sizes, names, strict=False)
        )
        index = json.loads((tmp_path / INDEX).read_text())
        assert index["metadata"]["total_size"] == sum(a.nbytes for a in ARRAYS.values())


def test_the_library_reads_ours_and_ours_reads_the_librarys(tmp_path):
    library = pytest.importorskip("safetensors.torch")
    torch = pytest.importorskip("torch")
    write_sharded(tmp_path, tensors())
    theirs = library.load_file(tmp_path / SINGLE)
    for name, array in ARRAYS.items():
        np.testing.assert_array_equal(theirs[name].to(torch.float32).numpy(), array.astype(np.float32))
    library.save_file(theirs, tmp_path / "again.safetensors", metadata={"format": "pt"})
    same(Reader(tmp_path / "again.safetensors"))


def test_a_new_checkpoint_leaves_nothing_of_the_old(tmp_path):
    write_sharded(tmp_path, tensors(), 1)
    write_sharded(tmp_path, tensors()[:1])
    assert [path.name for path in tmp_path.iterdir()] == [SINGLE]


def test_an_interrupted_write_does_not_read_as_whole(tmp_path):
    def fail():
        raise KeyboardInterrupt

    write_sharded(tmp_path, tensors(), 1)
    with pytest.raises(KeyboardInterrupt):
        write_sharded(tmp_path, [*tensors(), Tensor("f", (1,), np.dtype(np.float32), fail)], 1)
    assert not list(tmp_path.glob("*.part"))
    with pytest.raises(InputError, match="holds no model.safetensors"):
        Reader(tmp_path)


def change_type(file, code):
    """Says that the first tensor is of another type; the header stays as long as it is."""
    content = file.read_bytes()
    length = int.from_bytes(content[:8], "little")
    header = content[8 : 8 + length].replace(b'"F32"', b'"' + code + b'"', 1).rstrip()
    file.write_bytes(len(header).to_bytes(8, "little") + header + content[8 + length :])


def header(file, content):
    """A file with this header, and a kilobyte of numbers."""
    text = json.dumps(content).encode()
    file.write_bytes(len(text).to_bytes(8, "little") + text + bytes(1024))


def write_sharded_twice(root):
    """Two shards with the same tensors, and an index that names both."""
    content = (root / SINGLE).read_bytes()
    for name in ("a.safetensors", "b.safetensors"):
        (root / name).write_bytes(content)
    (root / INDEX).write_text('{"weight_map": {"a.weight": "a.safetensors", "b.bias": "b.safetensors"}}')


@pytest.mark.parametrize(
    ("harm", "said"),
    [
        (lambda root: (root / SINGLE).write_bytes((root / SINGLE).read_bytes()[:-3]), "ends within e.weight"),
        (lambda root: (root / SINGLE).write_bytes(b"\xff" * 64), "header would be"),
        (lambda root: (root / SINGLE).write_bytes((2).to_bytes(8, "little") + b"[]"), "not a whole safetensors file"),
        (lambda root: change_type(root / SINGLE, b"F8_E4M3"), "a.weight is of type F8_E4M3, which cannot be read here"),
        (lambda root: (root / SINGLE).unlink(), "holds no model.safetensors"),
        (lambda root: (root / INDEX).write_text("[]"), "must be the index of safetensors files"),
        (lambda root: (root / INDEX).write_text('{"weight_map": ["model.safetensors"]}'), "must be the index of safetensors files"),
        (lambda root: (root / INDEX).write_text('{"weight_map": {"x": 1}}'), "must be the index of safetensors files"),
        (lambda root: (root / INDEX).write_text("[" * 10**5), "nested deeper"),
        (lambda root: (root / INDEX).write_text('{"weight_map": {"x": "../other/model.safetensors"}}'), "not a name within its folder"),
        (lambda root: (root / INDEX).write_text('{"weight_map": {"x": "/etc/passwd"}}'), "not a name within its folder"),
        (lambda root: (root / SINGLE).write_bytes((10**9).to_bytes(8, "little") + b"{}"), "header would be"),
        (lambda root: header(root / SINGLE, {"x": {"dtype": "F32", "shape": [2.0], "data_offsets": [0, 8]}}), "that no tensor has"),
        (lambda root: header(root / SINGLE, {"x": {"dtype": "F32", "shape": [True], "data_offsets": [0, 4]}}), "that no tensor has"),
        (lambda root: header(root / SINGLE, {"x": {"dtype": "F32", "shape": [0, 2**62], "data_offsets": [0, 0]}}), "that no tensor has"),
        (lambda root: header(root / SINGLE, {"x": {"dtype": "F32", "shape": [1] * 99, "data_offsets": [0, 4]}}), "that no tensor has"),
        (lambda root: header(root / SINGLE, {"x": {"dtype": "F32", "shape": [-1, -2], "data_offsets": [0, 8]}}), "that no tensor has"),
        (lambda root: header(root / SINGLE, {"x": {"dtype": "F32", "shape": "12", "data_offsets": [0, 8]}}), "that no tensor has"),
        (lambda root: header(root / SINGLE, {"x": {"dtype": ["F32"], "shape": [2], "data_offsets": [0, 8]}}), "not a whole safetensors"),
        (lambda root: header(root / SINGLE, {"x": {"dtype": "F32", "shape": [2], "data_offsets": [-8, 0]}}), "that no tensor has"),
        (lambda root: header(root / SINGLE, {"x": [1]}), "not a whole safetensors file"),
        (lambda root: header(root / SINGLE, [{}] * 50), "not a whole safetensors file"),
        (lambda root: write_sharded_twice(root), "is in a.safetensors and in b.safetensors"),
        (lambda root: (root / INDEX).write_text('{"weight_map": {"x": "model-2.safetensors"}}'), "lacks model-2.safetensors"),
        (lambda root: (root / INDEX).write_text('{"weight_map": {"x": "model.safetensors"}}'), "lacks x"),
    ],
)
def test_damage_is_told(tmp_path, harm, said):
    write_sharded(tmp_path, tensors())
    harm(tmp_path)
    with pytest.raises(InputError, match=said):
        Reader(tmp_path)
