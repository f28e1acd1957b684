"""Exports as their readers see them: transformers' own classes, an independent LLaDA, our importer; and what happens when it goes wrong."""

import importlib.util
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dlmjax.errors import InputError
from dlmjax.interop import export as export_lib
from dlmjax.interop.export import LeafReader, export, head_rows, parse_bytes
from dlmjax.interop.importer import import_checkpoint
from dlmjax.interop.safetensors import INDEX, SINGLE, Reader
from dlmjax.interop.views import SDAR_MASK, VocabularyRows
from dlmjax.models import BlockCausal
from dlmjax.models.families import family_fields
from dlmjax.quality.hidden import embed_texts
from dlmjax.run import open_run
from dlmjax.training import Checkpoints
from tests.interop.runs import LENGTH, experiment_of, lively, our_logits, random_run, save_run, shipped

torch = pytest.importorskip("torch", reason="the readers need PyTorch (pip install dlmjax[interop])")
transformers = pytest.importorskip(
    "transformers", minversion="5.2", reason="older transformers ignore is_causal (pip install dlmjax[interop])"
)
transformers.utils.logging.disable_progress_bar()

BLOCKS = {"process__name": "blocks(size=4)"}
LLAMA = {"model__family": "llama", "model__head_dim": 8}
LLAMA3 = "llama(rope_scaling_type=llama3, rope_original=16)"
YARN = "llama(rope_scaling_type=yarn, rope_original=16, rope_fast=8.0, rope_attention=1.2, window=5)"
NTK = "llama(rope_scaling_type=ntk, norm_eps=1e-5)"
REAL = [*range(256), 258]  # ids that have logits of their own: all but mask and pad


def tokens_of(experiment, rows=3, seed=0):
    """Random text with masks in it."""
    rng = np.random.default_rng(seed)
    tokens_BL = rng.integers(0, 256, (rows, LENGTH))
    return np.where(rng.random(tokens_BL.shape) < 0.4, experiment.tokenizer.mask_id, tokens_BL).astype(np.int32)


def load(directory):
    """As anyone would: the auto class and nothing of ours."""
    return transformers.AutoModelForCausalLM.from_pretrained(directory, dtype="float32").eval()


@torch.no_grad()
def their_logits(model, tokens_BL, mask=None):
    return model(torch.tensor(tokens_BL).long(), attention_mask=mask, use_cache=False).logits.numpy()


@pytest.mark.parametrize(
    ("model_type", "changes"),
    [
        ("qwen3", {"model__tied": True, "model__completep_width": 16, "model__completep_depth": 1}),
        pytest.param("qwen2", {"model__family": "qwen2", "model__vocab": 264}, marks=pytest.mark.nightly),
        ("llama", {**LLAMA, "model__rope_scaling": 3.0, "model__rope_base": 500.0}),
        pytest.param("llama", {"model__family": LLAMA3, "model__rope_scaling": 4.0}, marks=pytest.mark.nightly),
        ("mistral", {"model__family": YARN, "model__rope_scaling": 4.0, "model__heads": 5, "model__kv_heads": 5}),
        ("olmo2", {"model__family": "olmo2"}),
        pytest.param("qwen2", {"model__family": "qwen2(window=7)"}, marks=pytest.mark.nightly),
        pytest.param("qwen3", {"model__family": "qwen3(window=7)"}, marks=pytest.mark.nightly),
        pytest.param("llama", {"model__family": NTK, "model__rope_scaling": 2.0}, marks=pytest.mark.nightly),
    ],
    ids=["tied-completep", "qwen2-padded", "llama-stretched", "llama3", "mistral-yarn", "olmo2", "qwen2-window", "qwen3-window", "ntk"],
)
def test_transformers_loads_hf_as_it_is_with_our_logits(model_type, changes, tmp_path):
    """CompleteP's factors and tied heads are in the weights; stretched positions in the config."""
    workdir, experiment, params = random_run(tmp_path / "run", **changes)
    export(workdir=str(workdir), view="hf", output=str(tmp_path / "hf"), dtype="float32")
    model = load(tmp_path / "hf")
    assert model.config.model_type == model_type and model.config.is_causal is False
    tokens_BL = tokens_of(experiment)
    real = [*REAL, *range(259, experiment.network.spec.vocab)]
    ours, theirs = our_logits(experiment, params, tokens_BL), their_logits(model, tokens_BL)
    np.testing.assert_allclose(theirs[..., real], ours[..., real], atol=1e-5)
    assert np.abs(ours).max() > 0.5
    again = import_checkpoint(source=str(tmp_path / "hf"), workdir=str(tmp_path / "again"))
    expected = family_fields(experiment.config.model.family) if model_type != "llama" else {}  # ntk comes back as a base
    assert {**family_fields(again["family"]), **expected} == family_fields(again["family"])


def test_full_padded_and_block_causal_masks_give_our_logits(tmp_path):
    workdir, experiment, params = random_run(tmp_path / "run")
    export(workdir=str(workdir), view="hf", output=str(tmp_path / "hf"), dtype="float32")
    model, tokens_BL = load(tmp_path / "hf"), tokens_of(experiment)
    ours, theirs = our_logits(experiment, params, tokens_BL), their_logits(model, tokens_BL)
    np.testing.assert_allclose(theirs[..., REAL], ours[..., REAL], atol=1e-5)

    kept_BL = np.ones(tokens_BL.shape, np.int32)
    kept_BL[1, -5:] = kept_BL[2, -11:] = 0
    ours, theirs = our_logits(experiment, params, tokens_BL, kept_BL), their_logits(model, tokens_BL, torch.tensor(kept_BL))
    np.testing.assert_allclose(theirs[kept_BL > 0][:, REAL], ours[kept_BL > 0][:, REAL], atol=1e-5)

    blocks_11LL = shipped(tmp_path / "hf").attention_mask(LENGTH, 4)
    ours = our_logits(experiment, params, tokens_BL, attention=BlockCausal(4))
    theirs = their_logits(model, tokens_BL, blocks_11LL.expand(3, 1, -1, -1))
    np.testing.assert_allclose(theirs[..., REAL], ours[..., REAL], atol=1e-5)


@pytest.fixture(scope="module")
def hf(tmp_path_factory):
    """(directory, experiment, weights, what `export` returned) of a plain model in bfloat16, in several files."""
    root = tmp_path_factory.mktemp("hf")
    workdir, experiment, params = random_run(root / "run")
    (workdir / "evaluation.json").write_text(
        json.dumps(
            dict(nats_per_token=1.25, stderr_nats_per_token=0.015, bits_per_byte=1.8, stderr_bits_per_byte=0.02, step=5, weights="ema")
            | dict(split="test", is_bound=True, tokens=4096)
        )
    )
    found = export(workdir=str(workdir), view="hf", output=str(root / "out"), shard_size="20KB")
    return root / "out", experiment, params, found


def test_sharded_bfloat16_is_the_rounded_model(hf):
    directory, experiment, params, found = hf
    index = json.loads((directory / INDEX).read_text())
    assert len(set(index["weight_map"].values())) > 3 and not (directory / SINGLE).exists()
    assert index["metadata"]["total_size"] == sum(2 * np.prod(Reader(directory).shape(name)) for name in index["weight_map"])
    rounded = jax.tree.map(lambda p: p.astype(jnp.bfloat16).astype(jnp.float32), params)
    tokens_BL = tokens_of(experiment)
    model = load(directory)
    np.testing.assert_allclose(their_logits(model, tokens_BL)[..., REAL], our_logits(experiment, rounded, tokens_BL)[..., REAL], atol=1e-5)
    assert found["config"]["dtype"] == "bfloat16" and str(transformers.AutoConfig.from_pretrained(directory).dtype) == "torch.bfloat16"


def test_the_parity_file_is_what_a_loader_gets(hf):
    directory, experiment, *_ = hf
    helper = shipped(directory)
    assert helper.check(helper.load(directory), directory) < 1e-5
    parity = json.loads((directory / "parity.json").read_text())
    assert parity["input_ids"][-8:] == [256] * 8 and len(parity["logits"]) == len(parity["input_ids"])
    logits = helper.logits_of(load(directory), torch.tensor(parity["input_ids"])).detach()
    np.testing.assert_allclose(logits.logsumexp(-1).numpy(), parity["logsumexp"], atol=1e-5)
    # A causal reading of the same weights is far off: what the check is there for.
    causal = transformers.AutoModelForCausalLM.from_pretrained(directory, dtype="float32", is_causal=True)
    assert helper.check(causal, directory) > 1e-2


@pytest.mark.parametrize("version", ["4.57.3", "5.0.0", "5.1.0.dev0"])
def test_the_loader_refuses_versions_that_would_be_causal(hf, version):
    with pytest.raises(RuntimeError, match=rf"transformers {version} ignores is_causal=false.*>= 5.2"):
        shipped(hf[0]).require(version)


def test_the_loader_takes_later_versions(hf):
    for version in ("5.2.0", "5.23.0", "6.0.0rc1", transformers.__version__):
        shipped(hf[0]).require(version)


def test_silent_rows_win_no_argmax(hf):
    """The logits of mask and pad are a mean of others, whatever the state; as trained they would have won."""
    directory, experiment, params, _ = hf
    states = np.random.default_rng(1).normal(size=(2000, 32)).astype(np.float32)
    head_RD = np.asarray(Reader(directory).read("lm_head.weight"), np.float32)
    logits = states @ head_RD.T
    assert not np.isin(logits.argmax(-1), [256, 257]).any()
    anchors = [0xC0, 0xC1, *range(0xF5, 0x100)]
    # Jensen: at most 1/n of what the n anchors have together.
    mass = np.exp(logits - logits.max(-1, keepdims=True))
    assert (mass[:, 256] <= mass[:, anchors].sum(-1) / len(anchors) * 1.02).all()  # 2 % is the rounding of the row to bfloat16
    as_trained = states @ np.asarray(params["head"]["kernel"])
    assert np.isin(as_trained.argmax(-1), [256, 257]).any()


def test_filling_silent_rows_again_changes_nothing():
    rng = np.random.default_rng(0)
    rows = VocabularyRows(20, 17, (3, 17), (3, 4, 17, 18, 19), (5, 6, 7))
    for dtype in export_lib.DTYPES.values():
        once = head_rows(rng.normal(size=(16, 8)).astype(np.float32), np.float32(0.5), rows, dtype)
        again = head_rows(once.astype(np.float32), np.float32(1.0), rows, dtype)
        assert once.dtype == dtype and (once == again).all() and (once[[3, 4, 18, 19]] == once[17]).all()


def test_the_rest_of_the_directory(hf):
    directory, *_, found = hf
    generation = transformers.GenerationConfig.from_pretrained(directory)
    assert (generation.eos_token_id, generation.pad_token_id, generation.suppress_tokens) == (258, 257, [256, 257])
    tokenizer = transformers.AutoTokenizer.from_pretrained(directory)
    assert tokenizer.mask_token_id == transformers.AutoConfig.from_pretrained(directory).mask_token_id == 256
    assert not list(directory.parent.glob(".*"))
    card = (directory / "README.md").read_text()
    for words in ("transformers >= 5.2", "NELBO <= 1.2500 ± 0.0150 nats/token, 1.8000 ± 0.0200 bits/byte", "4,096 tokens", "FLOPs"):
        assert words in card
    assert "5 of 8 x 24 tokens: 960 tokens" in card and "def generate(model, tokens, steps=64):" in card
    assert set(found["files"]) == {path.name for path in directory.iterdir() if path.is_file()}


def test_llada_files_are_those_of_an_independent_llada(tmp_path):
    from safetensors.torch import load_file

    from tests.interop.torch_llada import LLaDA

    workdir, experiment, params = random_run(tmp_path / "run", **LLAMA, model__rope_base=500.0, model__vocab=264)
    config = export(workdir=str(workdir), view="llada", output=str(tmp_path / "llada"), dtype="float32")["config"]
    model = LLaDA(config)
    model.load_state_dict(load_file(tmp_path / "llada" / SINGLE), strict=True)
    tokens_BL = tokens_of(experiment)
    with torch.no_grad():
        theirs = model(torch.tensor(tokens_BL).long()).numpy()
    np.testing.assert_allclose(theirs[..., REAL], our_logits(experiment, params, tokens_BL)[..., REAL], atol=1e-5)
    assert (config["vocab_size"], config["embedding_size"], config["model_type"]) == (259, 264, "llada")


@pytest.fixture(scope="module")
def sdar(tmp_path_factory):
    root = tmp_path_factory.mktemp("sdar")
    workdir, experiment, params = random_run(root / "run", **BLOCKS, model__rope_base=5000.0)
    export(workdir=str(workdir), view="sdar", output=str(root / "out"), dtype="float32")
    return root / "out", experiment, params


def test_sdar_is_qwen3_under_a_block_causal_mask(sdar):
    directory, experiment, params = sdar
    helper = shipped(directory)
    model = helper.load(directory)
    assert type(model) is transformers.Qwen3ForCausalLM
    tokens_BL = tokens_of(experiment)
    moved_BL = np.where(tokens_BL == 256, SDAR_MASK, tokens_BL)
    theirs = their_logits(model, moved_BL, helper.attention_mask(LENGTH, 4).expand(3, 1, -1, -1))
    ours = our_logits(experiment, params, tokens_BL, attention=BlockCausal(4))
    np.testing.assert_allclose(theirs[..., REAL], ours[..., REAL], atol=1e-5)
    assert not np.isin(theirs.argmax(-1), REAL, invert=True).any()
    assert helper.check(model, directory) < 1e-5


def test_sdar_says_its_base_and_its_blocks(sdar):
    """Through the configuration class beside the weights, as engines read it."""
    directory, *_ = sdar
    config = transformers.AutoConfig.from_pretrained(directory, trust_remote_code=True)
    assert (type(config).__name__, config.model_type) == ("SDARConfig", "sdar")
    assert (config.rope_theta, config.rope_parameters["rope_theta"]) == (5000.0, 5000.0)
    assert (config.block_size, config.mask_token_id) == (4, SDAR_MASK)
    assert config.head_dim == 8 and config.architectures == ["SDARForCausalLM"]
    tokenizer = transformers.AutoTokenizer.from_pretrained(directory, trust_remote_code=True)
    assert tokenizer.mask_token_id == SDAR_MASK and tokenizer("na\u00efve").input_ids == list("na\u00efve".encode())
    assert "block_size: 4" in (directory / "sglang.yaml").read_text()


@pytest.mark.parametrize(
    ("view", "dtype", "changes"),
    [
        ("hf", "bfloat16", {"model__tied": True}),
        pytest.param("hf", "float32", {}, marks=pytest.mark.nightly),
        pytest.param("llada", "bfloat16", LLAMA, marks=pytest.mark.nightly),
        ("sdar", "bfloat16", BLOCKS),
    ],
)
def test_export_import_export_is_bit_equal(view, dtype, changes, tmp_path):
    workdir, *_ = random_run(tmp_path / "run", **changes)
    one = export(workdir=str(workdir), view=view, output=str(tmp_path / "one"), dtype=dtype)
    import_checkpoint(source=str(tmp_path / "one"), workdir=str(tmp_path / "again"))
    two = export(workdir=str(tmp_path / "again"), view=view, output=str(tmp_path / "two"), dtype=dtype)
    assert (tmp_path / "one" / SINGLE).read_bytes() == (tmp_path / "two" / SINGLE).read_bytes()
    assert one["parity"] == two["parity"]
    written = (tmp_path / "two" / "README.md").read_text()
    assert f"imported from `{tmp_path / 'one'}` (layout " in written and "## Training" not in written
    changed = {key for key in one["config"] if one["config"][key] != two["config"][key]}
    assert changed <= {"dlm", "initializer_range"}


@pytest.mark.nightly
def test_an_autoregressive_model_is_an_ordinary_causal_one(tmp_path):
    """BOS in front, and output i is the law of the next token: `generate` of transformers as it is."""
    workdir, experiment, params = random_run(tmp_path / "run", process__name="autoregressive")
    export(workdir=str(workdir), view="hf", output=str(tmp_path / "hf"), dtype="float32")
    model = load(tmp_path / "hf")
    assert model.config.is_causal is True
    tokens_BL = np.random.default_rng(0).integers(0, 256, (2, LENGTH)).astype(np.int32)
    read_BL = np.concatenate([np.full((2, 1), 258), tokens_BL[:, :-1]], axis=1)
    ours = our_logits(experiment, params, read_BL, attention="causal")
    np.testing.assert_allclose(their_logits(model, read_BL)[..., REAL], ours[..., REAL], atol=1e-5)
    helper = shipped(tmp_path / "hf")
    assert helper.check(helper.load(tmp_path / "hf"), tmp_path / "hf") < 1e-5


# ---- memory, disks and damage -----------------------------------------------------------------------------------------------------


def test_each_leaf_is_read_once_and_alone(tmp_path):
    """Two stacked leaves are never held together, and none is asked for twice."""
    workdir, experiment, params = random_run(tmp_path / "run")
    with Checkpoints(workdir / "checkpoints") as checkpoints:
        read = LeafReader(checkpoints, 5, experiment.abstract_state(), "ema")
        asked = []

        def counted(path):
            if not asked or asked[-1] != path:
                asked.append(path)
            return read(path)

        layout, rows = export_lib.LAYOUTS["qwen3"], VocabularyRows(259, 256, None, (256, 257), (255,))
        spec = export_lib.exported_spec(experiment.network.spec, rows)
        found = {t.name: t.load() for t in export_lib.tensors(layout, spec, experiment.network.spec, rows, np.dtype(np.float32), counted)}
        with pytest.raises(InputError, match="has no ema/nothing"):
            LeafReader(checkpoints, 5, {"ema": {"nothing": jax.ShapeDtypeStruct((1,), "float32")}}, "ema")(("nothing",))
    assert len(asked) == len(set(asked)) == len(jax.tree.leaves(params))
    assert sum(array.size for array in found.values()) == sum(leaf.size for leaf in jax.tree.leaves(params))
    np.testing.assert_array_equal(found["model.layers.1.mlp.down_proj.weight"], params["layers"]["down"]["kernel"][1].T)


def test_a_damaged_checkpoint_leaves_nothing_behind(tmp_path):
    workdir, *_ = random_run(tmp_path / "run")
    files = [path for path in (workdir / "checkpoints").rglob("*") if path.is_file() and path.stat().st_size > 20_000]
    for file in files:
        content = bytearray(file.read_bytes())
        content[len(content) // 2] ^= 1
        file.write_bytes(content)
    with pytest.raises(InputError, match="checkpoint .*00000005"):
        export(workdir=str(workdir), output=str(tmp_path / "hf"))
    assert not (tmp_path / "hf").exists()


def test_an_output_that_stands_is_not_harmed(hf, tmp_path):
    directory, *_ = hf
    workdir = str(directory.parent / "run")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("x")
    with pytest.raises(InputError, match="is not an earlier export"):
        export(workdir=workdir, output=str(tmp_path / "mine"), overwrite=True)
    shutil.copytree(directory, tmp_path / "old")
    with pytest.raises(InputError, match="give overwrite to replace it, or another output"):
        export(workdir=workdir, output=str(tmp_path / "old"))
    assert (tmp_path / "old" / INDEX).exists()
    (tmp_path / ".old.partial").mkdir()  # what a killed export left
    (tmp_path / ".old.partial" / "model-00009-of-00009.safetensors").write_text("x")
    export(workdir=workdir, output=str(tmp_path / "old"), overwrite=True)
    assert (tmp_path / "old" / SINGLE).exists() and not (tmp_path / "old" / INDEX).exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mine", "old"]


def test_bad_requests_end_in_one_line(hf, tmp_path):
    workdir = str(hf[0].parent / "run")
    for values, says in (
        ({"dtype": "int8"}, "int8"),
        ({"shard_size": "lots"}, "2GB"),
        ({"view": "sdar"}, "view hf can hold it"),
        ({"step": 7}, "no whole checkpoint of step 7"),
        ({"workdir": str(tmp_path)}, "config.json"),
        ({"evaluation": str(tmp_path / "none.json")}, "dlmjax evaluate"),
    ):
        with pytest.raises(InputError, match=says):
            export(**{"workdir": workdir, "output": str(tmp_path / "out"), **values})
        assert not (tmp_path / "out").exists() and not list(tmp_path.glob(".*"))
    assert (parse_bytes("1.5MB"), parse_bytes("2GiB"), parse_bytes("5000")) == (1_500_000, 2 << 30, 5000)


@pytest.mark.nightly
def test_raw_and_averaged_weights_are_two_exports(tmp_path):
    experiment = experiment_of(train__ema=0.0)
    params = lively(experiment)
    save_run(tmp_path / "run", experiment, params)
    # A run without an average exports its weights; the workdir here holds zeros under that name.
    found = export(workdir=str(tmp_path / "run"), output=str(tmp_path / "raw"), weights="ema")
    assert found["config"]["dlm"]["weights"] == "raw"
    assert not Reader(tmp_path / "raw").read("lm_head.weight").any()


def test_an_encoder_gives_the_vectors_of_embed(tmp_path):
    """Opened by sentence-transformers where it is installed, else pooled by hand over what transformers gives."""
    workdir, *_ = random_run(tmp_path / "run")
    export(workdir=str(workdir), view="encoder", output=str(tmp_path / "out"), dtype="float32")
    texts = ["a text", "another one"]
    ours, _ = embed_texts(open_run(str(workdir)), texts)
    if importlib.util.find_spec("sentence_transformers"):
        from sentence_transformers import SentenceTransformer

        theirs = SentenceTransformer(str(tmp_path / "out"), device="cpu").encode(texts)
    else:
        model = transformers.AutoModel.from_pretrained(tmp_path / "out", dtype=torch.float32)
        tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
        with torch.no_grad():
            states = [model(**tokenizer(text, return_tensors="pt")).last_hidden_state for text in texts]
        theirs = np.stack([state[0].mean(0).numpy() for state in states])
    np.testing.assert_allclose(theirs, ours, atol=1e-5)
    modules = json.loads((tmp_path / "out" / "modules.json").read_text())
    assert json.loads((tmp_path / "out" / modules[1]["path"] / "config.json").read_text())["pooling_mode_mean_tokens"]
    workdir, *_ = random_run(tmp_path / "blocks", process__name="blocks(size=4)")
    with pytest.raises(InputError, match="block-causal.*hf"):
        export(workdir=str(workdir), view="encoder", output=str(tmp_path / "refused"))
