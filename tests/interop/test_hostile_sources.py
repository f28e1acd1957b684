"""Sources that are damaged or made to harm: one line, exit code 2, no workdir; nothing is allocated before it is checked."""

import json
import random

import numpy as np
import pytest

from dlmjax.cli.main import main
from dlmjax.interop.safetensors import SINGLE, Tensor, write_sharded
from tests.interop.test_layouts import LAYOUTS, spec_for
from tests.models.tiny import VOCAB

DEEP = "[" * 5000 + "]" * 5000
# As they stand in the file: many are no JSON.
VALUES = (
    "null", "true", "-1", "0", "1e9", "1000000000", "1" + "0" * 400, "1e400", "NaN", '"x"', '""', '"../x"', '"\\ud800"', "[]", "{}", "[1]",
    '{"x": 1}', DEEP, "0.5", "3", "[[[[[[1]]]]]]", '"' + "a" * 10_000 + '"', "-9223372036854775809",
    "1000000000000000019884624838656",
)  # fmt: skip
SIZES = dict(hidden_size=32, num_attention_heads=4, num_key_value_heads=2, head_dim=8, num_hidden_layers=2, intermediate_size=48)
CONFIG = {"model_type": "mistral", **SIZES, "vocab_size": VOCAB, "rms_norm_eps": 1e-6, "hidden_act": "silu", "sliding_window": 5}
CONFIG |= {"rope_parameters": {"rope_type": "yarn", "factor": 2.0, "original_max_position_embeddings": 16}, "max_position_embeddings": 32}
KEYS = (
    *CONFIG,
    "rope_scaling",
    "layer_types",
    "tie_word_embeddings",
    "is_causal",
    "dlm",
    "block_size",
    "quantization_config",
    "rope_theta",
)
KEYS += ("mask_token_id", "pad_token_id", "eos_token_id", "bos_token_id", "attention_bias", "use_cache", "architectures", "another")


@pytest.fixture(scope="module")
def tensors():
    """The weights that CONFIG describes, of char27's ids."""
    spec = spec_for(LAYOUTS["mistral"], window=5)
    rng = np.random.default_rng(0)
    return {entry.name: rng.normal(size=entry.shape).astype(np.float32) for entry in LAYOUTS["mistral"].entries(spec)}


@pytest.fixture
def tried(tensors, tmp_path, capsys):
    """run(config text, files) -> exit code of an import, after which nothing is left where it was refused in one line."""
    source = tmp_path / "hf"
    write_sharded(source, [Tensor(name, a.shape, a.dtype, lambda a=a: a) for name, a in tensors.items()])
    (tmp_path / "outside.txt").write_text("untouched")
    counts = {"refused": 0, "imported": 0}

    def run(config, files=None):
        (source / "config.json").write_bytes(config.encode("utf-8", "surrogatepass"))
        for name, content in (files or {}).items():
            (source / name).write_bytes(content)
        workdir = tmp_path / f"run{sum(counts.values())}"
        code = main(["import", "--source", str(source), "--workdir", str(workdir), "--tokenizer", "char27"])
        said = capsys.readouterr().err
        assert code in (0, 2) and "Traceback" not in said, said
        if code == 2:
            assert len(said.strip().splitlines()) == 1 and len(said) < 2000 and not workdir.exists(), said[:3000]
        assert (tmp_path / "outside.txt").read_text() == "untouched"
        counts["refused" if code else "imported"] += 1
        return code

    run.counts = counts
    return run


def with_value(key, value):
    """The text of CONFIG with one value as it is written there."""
    plain = {name: old for name, old in CONFIG.items() if name != key}
    return json.dumps(plain)[:-1] + f', "{key}": {value}}}'


CASES = [(key, value) for key in KEYS for value in VALUES]
SAMPLE = random.Random(0).sample(CASES, 45)


@pytest.mark.parametrize("cases", [SAMPLE, pytest.param(CASES, marks=pytest.mark.nightly)], ids=["sample", "all"])
def test_no_value_in_a_config_ends_in_more_than_a_line(tried, cases):
    assert tried(json.dumps(CONFIG)) == 0
    for key, value in cases:
        tried(with_value(key, value))
    print(f"config values: {len(cases)} tried; {tried.counts}")
    assert tried.counts["refused"] > 0.5 * len(cases)


def test_no_header_of_a_tensor_file_ends_in_more_than_a_line(tried, tmp_path):
    """Every field of one entry in turn; the first bytes; a cut anywhere."""
    whole = (tmp_path / "hf" / SINGLE).read_bytes()
    length = int.from_bytes(whole[:8], "little")
    header = json.loads(whole[8 : 8 + length])
    rng, name = random.Random(1), "model.norm.weight"
    broken = [whole[: rng.randrange(len(whole))] for _ in range(6)] + [(2**63).to_bytes(8, "little") + whole[8:], b"", b"{}", whole[8:]]
    for field in ("dtype", "shape", "data_offsets"):
        for value in ("null", "[]", "[-4]", "[1e9]", "[1000000000000, 1000000000000]", "[[32]]", '"F64"', '"F4"', DEEP, "[0, 99999999999]"):
            plain = {**header, name: {k: v for k, v in header[name].items() if k != field}}
            text = json.dumps(plain).encode()
            at = text.index(json.dumps(plain[name]).encode()) + len(json.dumps(plain[name])) - 1
            text = text[:at] + f', "{field}": {value}'.encode() + text[at:]
            broken.append(len(text).to_bytes(8, "little") + text + whole[8 + length :])
    for content in broken:
        assert tried(json.dumps(CONFIG), {SINGLE: content}) == 2
    print(f"tensor files: {len(broken)} tried; {tried.counts}")


@pytest.mark.parametrize("name", ["added_tokens.json", "tokenizer_config.json", "special_tokens_map.json", "generation_config.json"])
def test_no_file_beside_a_tokenizer_ends_in_more_than_a_line(name, tmp_path, source_with_pieces):
    run = source_with_pieces
    contents = ["[]", "5", "", "{", DEEP, "NaN", '{"<x>": -1}', '{"<x>": 1e9}', '{"<x>": 999999999999}', '{"<x>": "3"}', '{"<x>": null}']
    contents += [
        '{"added_tokens_decoder": []}',
        '{"added_tokens_decoder": {"99999999999999999999": {"content": "x"}}}',
        '{"mask_token": 5}',
    ]
    contents += [
        '{"<x>": 1%s}' % ("0" * 250),
        '{"model_max_length": 1%s}' % ("0" * 250),
        '{"pad_token_id": Infinity}',
        '{"eos_token_id": [[1], "x", 1e9]}',
    ]
    contents += ['{"added_tokens_decoder": {"x": 1, "-1": {"content": "y"}, "700": {"content": 4}}}', '{"mask_token": {"content": []}}']
    for content in contents:
        run(name, content)


@pytest.fixture
def source_with_pieces(tmp_path, capsys):
    """run(name, content) reads the ids of a source with such a file beside its tokenizer: they are read, or refused in a line."""
    from dlmjax.data.subword import train_sentencepiece
    from dlmjax.errors import InputError
    from dlmjax.interop.vocabulary import vocabulary

    text = ["".join(chr(97 + i * j % 26) + " " for i in range(60)) for j in range(1, 40)]
    train_sentencepiece(text, 300, tmp_path / "tokenizer.model")

    def run(name, content):
        (tmp_path / name).write_text(content)
        try:
            found = vocabulary(tmp_path, LAYOUTS["llama"], None, CONFIG, 320)
            assert found.tokenizer.vocab_size <= 320
        except InputError as error:
            assert "\n" not in str(error) and len(str(error)) < 1000

    return run
