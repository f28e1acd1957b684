"""The files beside published weights, with the keys that stand in them (values of sizes and ids are shrunk): each is read, or refused."""

import json

import numpy as np
import pytest

from dlmjax.cli.main import main
from dlmjax.data import load_tokenizer
from dlmjax.errors import InputError
from dlmjax.interop.importer import _config, _hf_config, _layout_by_type, _process_of
from dlmjax.interop.safetensors import Tensor, write_sharded
from dlmjax.interop.vocabulary import vocabulary
from dlmjax.models import model_spec

tokenizers = pytest.importorskip("tokenizers", reason="tokenizer.json is read by tokenizers (pip install dlmjax[data])")

NO_LIMIT = int(1e30)  # what transformers writes for `model_max_length` where nobody set one
SIZES = dict(
    hidden_size=16, n_embd=16, d_model=16, num_attention_heads=4, n_head=4, n_heads=4, num_hidden_layers=2, n_layer=2, n_layers=2,
    intermediate_size=24, mlp_hidden_size=24, head_dim=4, max_window_layers=2, n_kv_heads=4,
)  # fmt: skip
ROWS_BEYOND = 5  # rows that pad the embedding
TEXT = dict(transformers_version="4.40.0", torch_dtype="bfloat16", initializer_range=0.02, use_cache=True)
_DECODER = dict(TEXT, hidden_size=1, intermediate_size=1, num_attention_heads=1, num_hidden_layers=1, vocab_size=1)
_LLAMA = dict(_DECODER, hidden_act="silu", model_type="llama", num_key_value_heads=2, rms_norm_eps=1e-5, architectures=["LlamaForCausalLM"])
_LLAMA |= dict(max_position_embeddings=4096, pretraining_tp=1, rope_scaling=None, tie_word_embeddings=False)
_MISTRAL = dict(_DECODER, hidden_act="silu", model_type="mistral", num_key_value_heads=2, rms_norm_eps=1e-5, rope_theta=10000.0)
_MISTRAL |= dict(max_position_embeddings=32768, tie_word_embeddings=False, architectures=["MistralForCausalLM"])
_QWEN = dict(_DECODER, hidden_act="silu", num_key_value_heads=2, rms_norm_eps=1e-6, rope_theta=1e6, tie_word_embeddings=True)
_QWEN |= dict(attention_dropout=0.0, use_sliding_window=False, max_window_layers=28, max_position_embeddings=32768)
_GPT2 = dict(
    activation_function="gelu_new", architectures=["GPT2LMHeadModel"], attn_pdrop=0.1, embd_pdrop=0.1, initializer_range=0.02,
    layer_norm_epsilon=1e-05, model_type="gpt2", n_ctx=1024, n_embd=1, n_head=1, n_layer=1, n_positions=1024, resid_pdrop=0.1,
    summary_activation=None, summary_first_dropout=0.1, summary_proj_to_labels=True, summary_type="cls_index", summary_use_proj=True,
    task_specific_params={"text-generation": {"do_sample": True, "max_length": 50}}, vocab_size=1,
    bos_token_id="<|endoftext|>", eos_token_id="<|endoftext|>",
)  # fmt: skip
_ENCODER = dict(
    attention_probs_dropout_prob=0.1, hidden_act="gelu", hidden_dropout_prob=0.1, hidden_size=1, initializer_range=0.02,
    intermediate_size=1, num_attention_heads=1, num_hidden_layers=1, vocab_size=1,
)  # fmt: skip
_ROBERTA = dict(_ENCODER, layer_norm_eps=1e-05, max_position_embeddings=514, type_vocab_size=1)
_ROBERTA |= dict(bos_token_id="<s>", eos_token_id="</s>", pad_token_id="<pad>")
_FACE = {"tokenizer_config.json": dict(model_max_length=1024)}
_PIECE = dict(clean_up_tokenization_spaces=False, legacy=False, model_max_length=NO_LIMIT, padding_side="right", sp_model_kwargs={})
_PIECE |= dict(add_bos_token=True, add_eos_token=False, pad_token=None, tokenizer_class="LlamaTokenizer")
_LLADA = dict(
    activation_type="silu", alibi=False, alibi_bias_max=8.0, architectures=["LLaDAModelLM"], attention_dropout=0.0,
    attention_layer_norm=False, attention_layer_norm_with_affine=True, auto_map={"AutoConfig": "configuration_llada.LLaDAConfig"},
    bias_for_layer_norm=False, block_group_size=1, block_type="llama", d_model=1, embedding_dropout=0.0, embedding_size=1,
    flash_attention=False, include_bias=False, include_qkv_bias=False, init_cutoff_factor=None, init_device="meta", init_fn="mitchell",
    init_std=0.02, input_emb_norm=False, layer_norm_type="rms", layer_norm_with_affine=True, max_sequence_length=4096,
    mlp_hidden_size=1, mlp_ratio=4, model_type="llada", multi_query_attention=None, n_heads=1, n_kv_heads=1, n_layers=1,
    precision="amp_bf16", residual_dropout=0.0, rms_norm_eps=1e-05, rope=True, rope_full_precision=True, rope_theta=500000.0,
    scale_logits=False, transformers_version="4.46.3", use_cache=False, vocab_size=1, weight_tying=False,
    eos_token_id="<|endoftext|>", pad_token_id="<|endoftext|>", mask_token_id="<|mdm_mask|>",
)  # fmt: skip


def added(name):
    return dict(content=name, lstrip=False, normalized=False, rstrip=False, single_word=False)


def ids(bos=None, eos=None, pad=None, mask=None):
    """Ids by the names of their tokens, which take their place when the files are written."""
    return {f"{key}_token_id": name for key, name in dict(bos=bos, eos=eos, pad=pad, mask=mask).items() if name}


_LLAMA2 = {
    "tokenizer_config.json": dict(
        _PIECE, **{f"{k}_token": {"__type": "AddedToken", **added(v)} for k, v in (("bos", "<s>"), ("eos", "</s>"))}
    ),
    "special_tokens_map.json": dict(bos_token=added("<s>"), eos_token=added("</s>"), unk_token=added("<unk>")),
    "generation_config.json": dict(
        ids("<s>", "</s>", "<pad>"), _from_model_config=True, do_sample=True, max_length=4096, temperature=0.6, top_p=0.9
    ),
}
_QWEN_TOKENS = {
    "tokenizer_config.json": dict(
        add_bos_token=False, add_prefix_space=False, added_tokens_decoder={"<|endoftext|>": dict(added("<|endoftext|>"), special=True)},
        additional_special_tokens=["<|im_start|>"], bos_token=None, chat_template="{{ x }}", clean_up_tokenization_spaces=False,
        eos_token="<|endoftext|>", errors="replace", model_max_length=131072, pad_token="<|endoftext|>", split_special_tokens=False,
        tokenizer_class="Qwen2Tokenizer", unk_token=None,
    ),
    "generation_config.json": dict(ids(eos="<|endoftext|>", bos="<|endoftext|>"), do_sample=False, max_new_tokens=2048),
}  # fmt: skip
_DREAM = {
    "tokenizer_config.json": dict(_QWEN_TOKENS["tokenizer_config.json"], mask_token="<|mask|>", model_max_length=131072),
    "special_tokens_map.json": dict(mask_token=added("<|mask|>"), eos_token=added("<|endoftext|>"), pad_token=added("<|endoftext|>")),
    "generation_config.json": dict(ids(pad="<|endoftext|>"), _from_model_config=True),
}
_WORDS = {"tokenizer_config.json": dict(do_lower_case=True, model_max_length=512)}
_S, _Q = ("<unk>", "<s>", "</s>", "<pad>"), ("<|endoftext|>", "<|im_start|>")
_R = ("<s>", "<pad>", "</s>", "<unk>", "<mask>")
# name -> (config.json, the files beside it, names of the special tokens, the names of end, padding and mask; None: a new id)
PUBLISHED = {
    "Llama-2-7b": (dict(_LLAMA, **ids("<s>", "</s>"), _name_or_path="meta-llama/Llama-2-7b-hf"), _LLAMA2, _S, ("</s>", "<pad>", None)),
    "TinyLlama derivative": (dict(_LLAMA, **ids("<s>", "</s>"), seq_length=2048), _LLAMA2, _S, ("</s>", "<pad>", None)),
    "Llama-3.1-8B": (
        dict(
            _LLAMA, **ids("<|begin_of_text|>", "<|end_of_text|>"), attention_bias=False, attention_dropout=0.0, mlp_bias=False,
            rope_theta=500000.0, max_position_embeddings=131072, rope_scaling=dict(
                factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=8192, rope_type="llama3"
            ),
        ),
        {
            "tokenizer_config.json": dict(
                bos_token="<|begin_of_text|>", eos_token="<|end_of_text|>", clean_up_tokenization_spaces=True,
                model_input_names=["input_ids", "attention_mask"], model_max_length=131072, tokenizer_class="PreTrainedTokenizerFast",
            ),
            "generation_config.json": dict(ids("<|begin_of_text|>", "<|end_of_text|>"), do_sample=True, temperature=0.6, top_p=0.9),
        },
        ("<|begin_of_text|>", "<|end_of_text|>"), ("<|end_of_text|>", None, None),
    ),
    "Mistral-7B-v0.1": (dict(_MISTRAL, **ids("<s>", "</s>"), sliding_window=4096), _LLAMA2, _S, ("</s>", "<pad>", None)),
    "Mistral-7B-v0.3": (
        dict(_MISTRAL, **ids("<s>", "</s>"), sliding_window=None, attention_dropout=0.0),
        {"tokenizer_config.json": dict(_PIECE, add_prefix_space=None), "generation_config.json": ids("<s>", "</s>")},
        _S[:3], ("</s>", None, None),
    ),
    "Qwen2.5-0.5B": (
        dict(_QWEN, **ids("<|endoftext|>", "<|endoftext|>"), model_type="qwen2", sliding_window=32768, use_mrope=False),
        _QWEN_TOKENS, _Q, ("<|endoftext|>", None, None),
    ),
    "Qwen3-0.6B": (
        dict(
            _QWEN, **ids("<|endoftext|>", "<|endoftext|>"), model_type="qwen3", head_dim=128, attention_bias=False, rope_scaling=None,
            sliding_window=None,
        ),
        _QWEN_TOKENS, _Q, ("<|endoftext|>", None, None),
    ),
    "OLMo-2-7B": (
        dict(
            _DECODER, **ids(eos="<|endoftext|>", pad="<|pad|>"), model_type="olmo2", num_key_value_heads=4, rms_norm_eps=1e-6,
            rope_theta=500000, rope_scaling=None, tie_word_embeddings=False, hidden_act="silu", attention_bias=False,
            attention_dropout=0.0, max_position_embeddings=4096,
        ),
        {"tokenizer_config.json": dict(add_prefix_space=False, eos_token="<|endoftext|>", model_max_length=NO_LIMIT, pad_token="<|pad|>")},
        ("<|endoftext|>", "<|pad|>"), ("<|endoftext|>", "<|pad|>", None),
    ),
    "gpt2": (_GPT2, {**_FACE, "generation_config.json": ids("<|endoftext|>", "<|endoftext|>")}, _Q[:1], ("<|endoftext|>", None, None)),
    "gpt2-medium": (dict(_GPT2, n_special=0, predict_special_tokens=True), _FACE, _Q[:1], ("<|endoftext|>", None, None)),
    "gpt2-xl": (
        dict(_GPT2, n_special=0, predict_special_tokens=True, output_past=True), _FACE, _Q[:1], ("<|endoftext|>", None, None)
    ),
    "distilgpt2": (
        dict(_GPT2, _num_labels=1, id2label={"0": "LABEL_0"}, label2id={"LABEL_0": 0}), _FACE, _Q[:1], ("<|endoftext|>", None, None)
    ),
    "bert-base-uncased": (
        dict(
            _ENCODER, architectures=["BertForMaskedLM"], gradient_checkpointing=False, layer_norm_eps=1e-12, max_position_embeddings=512,
            model_type="bert", pad_token_id="[PAD]", position_embedding_type="absolute", type_vocab_size=2, use_cache=True,
        ),
        _WORDS, ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"), ("[SEP]", "[PAD]", "[MASK]"),
    ),
    "roberta-base": (dict(_ROBERTA, model_type="roberta"), _FACE, _R, ("</s>", "<pad>", "<mask>")),
    "xlm-roberta-base": (
        dict(
            _ROBERTA, model_type="xlm-roberta", output_past=True, position_embedding_type="absolute", use_cache=True,
            transformers_version="4.17.0.dev0",
        ),
        _FACE, _R, ("</s>", "<pad>", "<mask>"),
    ),
    "an encoder that names its mask": (
        dict(_ROBERTA, model_type="roberta", mask_token="<hole>"), _FACE, (*_R[:4], "<hole>"), ("</s>", "<pad>", "<hole>"),
    ),
    "padding that generation_config.json alone says": (
        dict(_LLAMA, **ids("<s>", "</s>"), pad_token_id=None), {"generation_config.json": ids(pad="<fill>")}, (*_S[:3], "<fill>"),
        ("</s>", "<fill>", None),
    ),
    "padding that both say": (
        dict(_LLAMA, **ids("<s>", "</s>", "<fill>")), {"generation_config.json": ids(pad="<other>")}, (*_S[:3], "<fill>", "<other>"),
        ("</s>", "<fill>", None),
    ),
    "LLaDA-8B": (
        _LLADA,
        {
            "tokenizer_config.json": dict(
                add_bos_token=False, add_eos_token=False, bos_token="<|startoftext|>", clean_up_tokenization_spaces=False,
                cls_token="[CLS]", eos_token="<|endoftext|>", fast_tokenizer=True, gmask_token="[gMASK]", merges_file=None,
                model_input_names=["input_ids", "attention_mask"], model_max_length=NO_LIMIT, pad_token="<|endoftext|>",
                tokenizer_class="PreTrainedTokenizerFast", trust_remote_code=True,
            )
        },
        ("<|startoftext|>", "<|endoftext|>", "<|mdm_mask|>"), ("<|endoftext|>", None, "<|mdm_mask|>"),
    ),
    "Dream-7B": (
        dict(
            _QWEN, **ids("<|endoftext|>", "<|endoftext|>", "<|endoftext|>", "<|mask|>"), model_type="Dream", use_mrope=False,
            auto_map={"AutoModel": "modeling_dream.DreamModel"}, architectures=["DreamModel"], rope_scaling=None, sliding_window=None,
        ),
        _DREAM, (*_Q, "<|mask|>"), ("<|endoftext|>", None, "<|mask|>"),
    ),
    "SDAR-1.7B": (
        dict(
            _QWEN, **ids("<|endoftext|>", "<|endoftext|>", mask="<|MASK|>"), model_type="sdar", head_dim=128, attention_bias=False,
            debug=False, ep_size=1, fuse_cross_entropy=True, micro_forward=False, skip_checkpoint=False, use_deepep=False,
            rope_scaling=None, sliding_window=None, block_size=4, auto_map={"AutoConfig": "configuration_sdar.SDARConfig"},
        ),
        {**_QWEN_TOKENS, "special_tokens_map.json": dict(mask_token=added("<|MASK|>"))}, (*_Q, "<|MASK|>"),
        ("<|endoftext|>", None, "<|MASK|>"),
    ),
}  # fmt: skip


def written(directory, name):
    """The files of a source, sizes and ids shrunk; the ids of its special tokens by name."""
    hf, files, names, _ = PUBLISHED[name]
    if hf["model_type"] == "bert":
        vocab = {piece: i for i, piece in enumerate((*names, *map(chr, range(97, 123)), *(f"##{chr(c)}" for c in range(97, 123))))}
        made = tokenizers.Tokenizer(tokenizers.models.WordPiece(vocab=vocab, unk_token="[UNK]"))
    else:
        alphabet = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
        made = tokenizers.Tokenizer(tokenizers.models.BPE(vocab={piece: i for i, piece in enumerate(alphabet)}, merges=[]))
        made.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
        made.decoder = tokenizers.decoders.ByteLevel()
    made.add_special_tokens(list(names))
    made.save(str(directory / "tokenizer.json"))
    of_name = {name: made.token_to_id(name) for name in names}
    rows = made.get_vocab_size() + ROWS_BEYOND
    sizes = {**SIZES, **dict.fromkeys(("vocab_size", "embedding_size"), rows)}

    def shrunk(key, value):
        if key == "added_tokens_decoder":
            return {str(of_name[name]): token for name, token in value.items()}
        return of_name.get(value) if key.endswith("_token_id") else value

    for file, values in {"config.json": {key: sizes.get(key, value) for key, value in hf.items()}, **files}.items():
        (directory / file).write_text(json.dumps({key: shrunk(key, value) for key, value in values.items()}))
    return of_name, rows


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_files_of_a_published_model_are_read(name, tmp_path):
    of_name, rows = written(tmp_path, name)
    hf = _hf_config(tmp_path)
    layout = _layout_by_type(hf)
    config = _config(layout, hf, _process_of(layout, hf), "float32")
    assert model_spec(config.model, vocab=rows).depth == 2
    tokenizer = vocabulary(tmp_path, layout, None, hf, rows).tokenizer
    new = range(len(set(of_name.values())), rows)  # behind the ids that a file names
    for key, wanted in zip(("eos", "pad", "mask"), PUBLISHED[name][3], strict=True):
        found = getattr(tokenizer, f"{key}_id")
        assert found == of_name[wanted] if wanted else found in new and found not in of_name.values(), (key, found, of_name)


@pytest.mark.parametrize("name", ["Llama-2-7b", *(pytest.param(n, marks=pytest.mark.slow) for n in PUBLISHED if n != "Llama-2-7b")])
def test_it_is_imported_with_its_own_tokenizer(name, tmp_path, capsys):
    _, rows = written(tmp_path, name)
    hf = _hf_config(tmp_path)
    layout, rng = _layout_by_type(hf), np.random.default_rng(0)
    spec = model_spec(_config(layout, hf, _process_of(layout, hf), "float32").model, vocab=rows)
    arrays = {entry.name: rng.normal(0, 0.1, entry.shape).astype(np.float32) for entry in layout.entries(spec)}
    write_sharded(tmp_path, [Tensor(name, a.shape, a.dtype, lambda a=a: a) for name, a in arrays.items()])
    code = main(["import", "--source", str(tmp_path), "--workdir", str(tmp_path / "run")])
    assert code == 0, capsys.readouterr().err
    assert load_tokenizer(f"saved:{tmp_path / 'run' / 'tokenizer'}").decode(np.array([], int)) == ""


def test_a_published_kind_without_a_layout_is_refused_by_name(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "modernbert", "mask_token_id": 50284, "sep_token_id": 50282}))
    with pytest.raises(InputError, match="model_type='modernbert'"):
        _layout_by_type(_hf_config(tmp_path))
