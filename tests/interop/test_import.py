"""Checkpoints of other code bases give the logits here that their own classes give, and become workdirs like any other."""

import io
import json
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dlmjax import config as config_lib
from dlmjax.cli.main import main
from dlmjax.data import load_tokenizer
from dlmjax.errors import InputError
from dlmjax.experiment import assemble
from dlmjax.interop.importer import import_checkpoint, read_weights
from dlmjax.interop.layouts import LAYOUTS
from dlmjax.interop.safetensors import Reader
from dlmjax.models import BlockCausal
from dlmjax.run import open_run
from tests.interop import sources

torch = pytest.importorskip("torch", reason="the classes to compare with need PyTorch (pip install dlmjax[interop])")
transformers = pytest.importorskip(
    "transformers", reason="the classes to compare with are those of transformers (pip install dlmjax[interop])"
)

TOKENS_BL = np.random.default_rng(0).integers(2, 256, (2, sources.LENGTH)).astype(np.int32)
# Who sees whom in the layouts that transformers' causal classes are read with: [q, k].
PLACE_L = np.arange(sources.LENGTH)
SEEN_LL = {"sdar": PLACE_L[:, None] // 4 >= PLACE_L // 4, "dream": np.ones((sources.LENGTH,) * 2, bool)}
SEEN_LL["llada"] = SEEN_LL["dream"]
PROCESSES = dict.fromkeys(("llama", "mistral", "olmo2", "qwen2", "qwen3", "gpt2"), "autoregressive") | {"sdar": "blocks(size=4)"}


def logits(experiment, params, attention, tokens_BL=TOKENS_BL):
    """[B, L, V] of a network whose rows are one document each."""
    ones_BL = jnp.ones(tokens_BL.shape, jnp.int32)
    positions_BL = jnp.broadcast_to(jnp.arange(tokens_BL.shape[1], dtype=jnp.int32), tokens_BL.shape)

    @jax.jit
    def run(params):
        denoiser = experiment.unpartitioned.bind(params, ones_BL, positions_BL, attention)
        return denoiser.logits(denoiser.hidden(jnp.asarray(tokens_BL), jnp.zeros(tokens_BL.shape)))

    return np.asarray(run(jax.device_put(params, jax.devices()[0])))


def theirs(model, layout):
    """[B, L, V] of the class of transformers, with the mask of the layout; Dream's moved by one, as its own sampler does."""
    mask = {} if layout not in SEEN_LL else {"attention_mask": torch.tensor(SEEN_LL[layout])[None, None].expand(2, 1, -1, -1)}
    with torch.no_grad():
        found = model(input_ids=torch.tensor(TOKENS_BL.astype(np.int64)), **mask).logits.numpy()
    return np.concatenate([found[:, :1], found[:, :-1]], axis=1) if layout == "dream" else found


@pytest.mark.parametrize("layout", LAYOUTS)
def test_logits_are_those_of_the_torch_class(layout, tmp_path):
    model = sources.torch_model(layout, torch.bfloat16 if layout == "qwen2" else None)
    source = sources.save(model, layout, tmp_path / "hf", "20KB" if layout in ("llama", "gpt2", "bert") else "5GB")
    said = import_checkpoint(source=str(source), workdir=str(tmp_path / "run"), tokenizer="bytes")
    assert (said["layout"], said["process"], said["new_ids"]) == (layout, PROCESSES.get(layout, "masked"), [])
    if layout == "qwen2":  # stored as bfloat16: what it holds, computed in float32
        model = type(model).from_pretrained(source, dtype=torch.float32)
    run = open_run(str(tmp_path / "run"))
    assert run.weights == "raw" and all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(run.params))
    attention = BlockCausal(4) if layout == "sdar" else run.experiment.process.attention
    found, wanted = logits(run.experiment, run.params, attention), theirs(model, layout)
    np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-5)
    assert np.abs(wanted).max() > 1.0


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """A Llama of one small file, and its config."""
    return sources.save(sources.torch_model("llama"), "llama", tmp_path_factory.mktemp("llama") / "hf")


def copy(source, directory, arrays=None, **config):
    """The checkpoint with other tensors or another config."""
    directory.mkdir()
    sources.write(directory, sources.tensors(source) if arrays is None else arrays)
    old = json.loads((source / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps({**old, **config}))
    return directory


def test_every_device_reads_its_own_shard(source):
    """Of eight devices that split the width, each holds an eighth of a matrix, bit for bit that of the file."""
    config = config_lib.default()
    config.model.update(LAYOUTS["llama"].spec_of(json.loads((source / "config.json").read_text())), vocab=sources.VOCAB)
    config.mesh.update(data=-1, fsdp=8)
    experiment, reader = assemble(config, load_tokenizer("bytes")), Reader(source)
    params = read_weights(experiment, LAYOUTS["llama"], reader)
    placed = jax.tree.map(lambda leaf: leaf.sharding, params)
    assert jax.tree.all(jax.tree.map(lambda ours, wanted: ours == wanted, placed, experiment.param_shardings))
    up = params["layers"]["up"]["kernel"]
    assert {shard.data.shape for shard in up.addressable_shards} == {(2, 2, 24)}
    for layer in range(2):
        np.testing.assert_array_equal(up[layer], reader.read(f"model.layers.{layer}.mlp.up_proj.weight").T)


def with_rows(source, rows):
    """Its tensors with a vocabulary of so many ids."""
    return {n: a[:rows] if n in ("model.embed_tokens.weight", "lm_head.weight") else a for n, a in sources.tensors(source).items()}


def faults(source, tmp_path):
    """Three ways at once in which the tensors are not those of the config."""
    arrays = dict(sources.tensors(source))
    del arrays["model.layers.1.mlp.up_proj.weight"], arrays["model.norm.weight"]
    arrays["model.layers.2.mlp.up_proj.weight"] = arrays["model.layers.0.mlp.up_proj.weight"]
    arrays["lm_head.weight"] = arrays["lm_head.weight"][:-1]
    return copy(source, tmp_path / "other", arrays)


def test_missing_surplus_and_misshapen_tensors_are_named_at_once(source, tmp_path):
    with pytest.raises(InputError) as refused:
        import_checkpoint(source=str(faults(source, tmp_path)), workdir=str(tmp_path / "run"), tokenizer="bytes")
    line = str(refused.value)
    assert "2 missing: model.layers.1.mlp.up_proj.weight, model.norm.weight" in line
    assert "1 surplus: model.layers.2.mlp.up_proj.weight" in line
    assert "1 of another shape: lm_head.weight is [258, 16] and not [259, 16]" in line
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (dict(model_type="mamba"), "model_type='mamba'"),
        (dict(hidden_act="relu"), "hidden_act='relu'"),
        (dict(attention_bias=True), "attention_bias=True"),
        (dict(layer_types=["sliding_attention"]), "sliding_attention"),
        (dict(rope_parameters=dict(rope_type="dynamic", factor=4.0)), "only linear"),
        (dict(rope_parameters=dict(rope_type="default", partial_rotary_factor=0.5)), "partial_rotary_factor"),
        (dict(quantization_config=dict(bits=4)), "quantised"),
        (dict(mask_token_id=7), "mask_token_id=7, but the tokenizer's mask is 256"),
        (dict(hidden_size=None), "no hidden_size"),
        (dict(vocab_size=sources.VOCAB, num_hidden_layers=1), "9 surplus"),
        (dict(num_hidden_layers=10**6), "1,000,000 layers, the files 21 tensors"),
        (dict(vocab_size=sources.VOCAB + 1), "260 rows, but the embedding in the files has 259"),
        (dict(no_rope_layers=[1, 0]), r"no_rope_layers=[1, 0]"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_what_cannot_be_computed_here_is_refused_by_name(source, tmp_path, changes, said):
    other = copy(source, tmp_path / "other", **changes)
    with pytest.raises(InputError, match=said.replace("[", r"\[")):
        import_checkpoint(source=str(other), workdir=str(tmp_path / "run"), tokenizer="bytes")


def test_bad_calls_are_told_in_a_line(source, tmp_path, capsys):
    def refused(*flags):
        assert main(["import", "--workdir", str(tmp_path / "run"), *flags]) == 2
        return capsys.readouterr().err

    assert "no tokenizer.json" in refused("--source", str(source))
    short = copy(source, tmp_path / "short", with_rows(source, 200), vocab_size=200)
    assert "has rows for 200 ids, tokenizer bytes has 259" in refused("--source", str(short), "--tokenizer", "bytes")
    assert "config.json cannot be read" in refused("--source", str(tmp_path))
    assert "layout 'gpt3' is unknown" in refused("--source", str(source), "--family", "gpt3")
    assert "has no n_embd" in refused("--source", str(source), "--family", "gpt2", "--tokenizer", "bytes")
    headless = copy(source, tmp_path / "headless", {n: a for n, a in sources.tensors(source).items() if "embed" not in n})
    assert "has no tensor model.embed_tokens.weight" in refused("--source", str(headless), "--tokenizer", "bytes")


def byte_tokenizer(directory):
    """A tokenizer.json of 256 bytes and an end of document: no mask and no padding."""
    tokenizers = pytest.importorskip("tokenizers")
    alphabet = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    made = tokenizers.Tokenizer(tokenizers.models.BPE(vocab={piece: i for i, piece in enumerate(alphabet)}, merges=[]))
    made.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = tokenizers.decoders.ByteLevel()
    made.add_special_tokens(["<|endoftext|>"])
    made.save(str(directory / "tokenizer.json"))


@pytest.mark.parametrize("rows", [257, 258, 300], ids=["none", "one", "padded"])
def test_ids_that_the_source_lacks_get_the_mean_of_its_rows(source, tmp_path, rows):
    """Mask 257 and padding 258 are ours: new rows, or rows that the source padded its vocabulary with. All others stay as they are."""
    arrays = with_rows(source, min(rows, 259))
    if rows == 300:
        arrays = {n: np.concatenate([a, a[:41]]) if a.shape[0] == 259 else a for n, a in arrays.items()}
    other = copy(source, tmp_path / "hf", arrays, vocab_size=rows)
    byte_tokenizer(other)
    said = import_checkpoint(source=str(other), workdir=str(tmp_path / "run"))
    run = open_run(str(tmp_path / "run"))
    assert said["new_ids"] == [257, 258] and run.experiment.tokenizer.mask_id == 257
    ours = (run.params["embedding"]["table"], run.params["head"]["kernel"].T)
    for mine, name in zip(ours, ("model.embed_tokens.weight", "lm_head.weight"), strict=True):
        assert mine.shape[0] == max(rows, 259)
        np.testing.assert_array_equal(mine[:257], arrays[name][:257])
        np.testing.assert_array_equal(mine[259:], arrays[name][259:])
        np.testing.assert_allclose(mine[257:259], np.tile(arrays[name][:257].mean(axis=0), (2, 1)), atol=1e-6)


@pytest.fixture(scope="module")
def pieces(tmp_path_factory):
    """(content of a tokenizer.model, its number of pieces): <unk>, <s>, </s>, all bytes, and words."""
    spm = pytest.importorskip("sentencepiece")
    lines = ["".join(chr(97 + i % 26) + chr(97 + i * j % 26) + " " for i in range(40)) for j in range(2, 40)]
    model = io.BytesIO()
    flags = dict(model_type="bpe", byte_fallback=True, normalization_rule_name="identity", hard_vocab_limit=False, minloglevel=2)
    flags |= dict(add_dummy_prefix=False, remove_extra_whitespaces=False, allow_whitespace_only_pieces=True)
    spm.SentencePieceTrainer.train(sentence_iterator=iter(lines), model_writer=model, vocab_size=300, **flags)
    return model.getvalue(), spm.SentencePieceProcessor(model_proto=model.getvalue()).get_piece_size()


# Of n pieces: the files beside them, keys of config.json, and what becomes of them: mask, padding, and the ids that the source names.
USED = {
    "nothing": lambda n: ({}, {}, n, n + 1, []),
    "a padding": lambda n: ({"added_tokens.json": {"<pad>": n}}, {}, n + 1, n, [n]),
    "others": lambda n: ({"added_tokens.json": {"<image>": n, "[MASK]": n + 1}}, {}, n + 1, n + 2, [n, n + 1]),
    "a name of its own": lambda n: (
        {"tokenizer_config.json": {"mask_token": "<hole>", "added_tokens_decoder": {str(n): {"content": "<hole>"}}}},
        {},
        n,
        n + 1,
        [n],
    ),
    "config's padding": lambda n: ({}, {"pad_token_id": n}, n + 1, n, [n]),
    "config's mask": lambda n: ({}, {"mask_token_id": n + 2}, n + 2, n, [n + 2]),
    "config's mask and padding": lambda n: ({}, {"mask_token_id": n + 1, "pad_token_id": n}, n + 1, n, [n, n + 1]),
    "a padding that ends documents": lambda n: ({}, {"pad_token_id": 2}, n, n + 1, []),
    "a padding that is text": lambda n: ({}, {"pad_token_id": 40}, n, n + 1, []),
    "no padding": lambda n: ({}, {"pad_token_id": -1}, n, n + 1, []),
}


@pytest.mark.parametrize("case", USED)
def test_ids_that_the_source_uses_keep_their_meaning(source, pieces, tmp_path, case):
    """A vocabulary that is padded to more rows than the tokenizer has pieces; new ids are the mean of the rows that a file names."""
    files, keys, mask, pad, named = USED[case](pieces[1])
    own, rows, other = pieces[1], pieces[1] + 12, tmp_path / "hf"
    arrays = sources.tensors(source)
    large = {n: np.resize(a, (rows, 16)) * (1 + np.arange(rows, dtype=np.float32)[:, None]) for n, a in arrays.items() if len(a) == 259}
    copy(source, other, {**arrays, **large}, vocab_size=rows, bos_token_id=0, eos_token_id=0, **keys)
    (other / "tokenizer.model").write_bytes(pieces[0])
    for name, content in files.items():
        (other / name).write_text(json.dumps(content))
    said = import_checkpoint(source=str(other), workdir=str(tmp_path / "run"))
    run = open_run(str(tmp_path / "run"))
    tokenizer, new = run.experiment.tokenizer, sorted({mask, pad} - set(named))
    # The config's default for the end of documents (0) is <unk>; </s> has the name.
    assert (tokenizer.mask_id, tokenizer.pad_id, tokenizer.eos_id, said["new_ids"]) == (mask, pad, 2, new)
    ours = {"model.embed_tokens.weight": run.params["embedding"]["table"], "lm_head.weight": run.params["head"]["kernel"].T}
    for name, table in ours.items():
        mean = large[name][[*range(own), *named]].mean(axis=0, dtype=np.float64)
        kept = [i for i in range(rows) if i not in new]
        np.testing.assert_allclose(table[np.array(new, int)], np.tile(mean, (len(new), 1)), rtol=1e-4)
        np.testing.assert_array_equal(table[np.array(kept)], large[name][kept])
    again = load_tokenizer(f"saved:{tmp_path / 'run' / 'tokenizer'}")
    assert again.hash == tokenizer.hash and again.decode(again.encode("ab é\n")) == "ab é\n"


def of_another_kind(directory, kind, **changes):
    """A tiny checkpoint of a class that has Llama's names, saved as its own model_type."""
    base = dict(sources.MODELS["qwen3"][2]) | {"head_dim": 4} | changes
    torch.manual_seed(0)
    model = getattr(transformers, f"{kind}ForCausalLM")(getattr(transformers, f"{kind}Config")(**base))
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(0.2 * torch.randn_like(weight))
    model.save_pretrained(directory)
    return model.eval()


NOT_LLAMA = [
    ("SmolLM3", dict(pad_token_id=0, num_hidden_layers=4, tie_word_embeddings=False)),
    ("Granite", {}),
    ("Granite", {"logits_scaling": 3.0}),
    ("Phi3", {"pad_token_id": 0}),
    ("Gemma", {}),
]


@pytest.mark.parametrize("installed", [True, False], ids=["compared", "by keys"])
@pytest.mark.parametrize(("kind", "changes"), NOT_LLAMA, ids=lambda value: value if isinstance(value, str) else "")
def test_a_kind_that_computes_something_else_is_not_read_as_llama(kind, changes, installed, tmp_path, monkeypatch):
    """Also where its config.json holds no key that Llama's has not: SmolLM3 leaves the positions of layers to a default."""
    of_another_kind(tmp_path / "hf", kind, **changes)
    config = json.loads((tmp_path / "hf" / "config.json").read_text())
    usual = {key: value for key, value in config.items() if key in json.loads(transformers.LlamaConfig().to_json_string(use_diff=False))}
    (tmp_path / "hf" / "config.json").write_text(json.dumps(usual))
    if not installed:
        monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(InputError) as refused:
        import_checkpoint(source=str(tmp_path / "hf"), workdir=str(tmp_path / "run"), tokenizer="bytes", family="llama")
    assert "\n" not in str(refused.value) and not (tmp_path / "run").exists(), refused.value
    if kind in ("SmolLM3", "Granite"):
        assert ("logits differ by" if installed else "differs from that of layout llama") in str(refused.value)


def test_a_kind_that_computes_the_same_is_read_by_its_names(tmp_path):
    """Mistral without a window is Llama, and says so; a kind that only other code knows is taken by its keys, and that is said, too."""
    of_another_kind(tmp_path / "hf", "Mistral", sliding_window=None)
    flags = dict(source=str(tmp_path / "hf"), tokenizer="bytes", family="llama")
    assert "its logits are those of transformers" in import_checkpoint(workdir=str(tmp_path / "run"), **flags)["compared"]
    config = json.loads((tmp_path / "hf" / "config.json").read_text())
    (tmp_path / "hf" / "config.json").write_text(json.dumps({**config, "model_type": "house"}))
    assert "but no logits were compared" in import_checkpoint(workdir=str(tmp_path / "other"), **flags)["compared"]


@pytest.mark.parametrize("place", ["rope_scaling", "rope_parameters", "both", "top"])
def test_the_base_of_the_rotary_positions_is_found_where_it_stands(source, tmp_path, place):
    inside = {"rope_theta": 777.0, "rope_type": "default"}
    config = {"rope_scaling": None, "rope_parameters": None, "rope_theta": 5.0}
    config |= {"rope_scaling": inside, "rope_parameters": {"rope_theta": 9.0}} if place == "both" else {}
    config |= {place: inside} if place.startswith("rope") else {}
    config |= {"rope_theta": 777.0} if place == "top" else {}
    other = copy(source, tmp_path / "other", **config)
    import_checkpoint(source=str(other), workdir=str(tmp_path / "run"), tokenizer="bytes")
    run = open_run(str(tmp_path / "run"))
    assert run.experiment.network.spec.rope_base == 777.0
    model = transformers.AutoModelForCausalLM.from_pretrained(other)
    np.testing.assert_allclose(logits(run.experiment, run.params, "causal"), theirs(model, "llama"), rtol=0, atol=1e-5)


def test_an_untied_head_has_its_own_bias(tmp_path):
    """BERT's files hold two biases; transformers reads the decoder's where nothing is tied, and the other where all is."""
    model = transformers.BertForMaskedLM(transformers.BertConfig(**{**sources.MODELS["bert"][2], "tie_word_embeddings": False}))
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(0.3 * torch.randn_like(weight))
    hf = sources.save(model.eval(), "bert", tmp_path / "hf")
    found = read_weights(assemble_bert(json.loads((hf / "config.json").read_text())), LAYOUTS["bert"], Reader(hf))
    np.testing.assert_array_equal(found["head"]["bias"], model.cls.predictions.decoder.bias.detach())
    assert np.abs(np.asarray(found["head"]["bias"]) - model.cls.predictions.bias.detach().numpy()).max() > 0.1
    import_checkpoint(source=str(hf), workdir=str(tmp_path / "run"), tokenizer="bytes")
    run = open_run(str(tmp_path / "run"))
    np.testing.assert_allclose(logits(run.experiment, run.params, "full"), theirs(model, "bert"), rtol=0, atol=1e-5)


def test_old_names_and_known_extras_are_understood(tmp_path):
    """gamma and beta, no prefix, a copy of the tied head, a pooler; but not a head that only the config calls tied."""
    hf = sources.save(sources.torch_model("bert"), "bert", tmp_path / "hf")
    arrays = {name: np.array(array) for name, array in sources.tensors(hf).items()}
    old = {old_name(name): array for name, array in arrays.items()}
    old |= {"pooler.dense.bias": np.zeros(16, np.float32), "cls.predictions.decoder.weight": old["embeddings.word_embeddings.weight"]}
    config = json.loads((hf / "config.json").read_text())
    spec = assemble_bert(config)
    same = read_weights(spec, LAYOUTS["bert"], Reader(hf))
    found = read_weights(spec, LAYOUTS["bert"], Reader(copy(hf, tmp_path / "old", old)))
    jax.tree.map(np.testing.assert_array_equal, found, same)
    old["cls.predictions.decoder.weight"] = old["cls.predictions.decoder.weight"] + 1
    with pytest.raises(InputError, match="differs from the embedding"):
        read_weights(spec, LAYOUTS["bert"], Reader(copy(hf, tmp_path / "untied", old)))


def old_name(name):
    return name.removeprefix("bert.").replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta")


def assemble_bert(hf):
    config = config_lib.default()
    config.model.update(LAYOUTS["bert"].spec_of(hf), vocab=sources.VOCAB)
    config.data.length = 32
    return assemble(config, load_tokenizer("bytes"))


def test_bert_comes_with_its_own_ids(tmp_path):
    """WordPiece is read although it cleans text: mask, padding and end of document are BERT's, no id is added."""
    tokenizers = pytest.importorskip("tokenizers")
    hf = sources.save(sources.torch_model("bert"), "bert", tmp_path / "hf")
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *(f"word{i}" for i in range(5, sources.VOCAB))]
    made = tokenizers.Tokenizer(tokenizers.models.WordPiece({piece: i for i, piece in enumerate(pieces)}, unk_token="[UNK]"))
    made.pre_tokenizer = tokenizers.pre_tokenizers.BertPreTokenizer()
    made.add_special_tokens(pieces[:5])
    made.save(str(hf / "tokenizer.json"))
    said = import_checkpoint(source=str(hf), workdir=str(tmp_path / "run"))
    tokenizer = load_tokenizer(f"saved:{tmp_path / 'run' / 'tokenizer'}")
    assert (said["new_ids"], tokenizer.mask_id, tokenizer.pad_id, tokenizer.eos_id) == ([], 4, 0, 3)
    assert tokenizer.encode("word7 word258").tolist() == [7, 258]
