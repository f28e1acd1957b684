"""Tiny checkpoints as other code bases write them: transformers' classes with random weights, and the names that it has no class for."""

import json

import numpy as np

from dlmjax.interop.safetensors import Reader, Tensor, write_sharded

VOCAB, LENGTH = 259, 20
_SIZE = dict(vocab_size=VOCAB, hidden_size=16, num_hidden_layers=2, num_attention_heads=4, intermediate_size=24)
_GROUPED = dict(_SIZE, num_key_value_heads=2, max_position_embeddings=64)
_LLAMA3 = dict(rope_type="llama3", factor=4.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=16)
# layout -> transformers' class without its ending, and its config.
MODELS = {
    "llama": ("Llama", "ForCausalLM", dict(_GROUPED, rms_norm_eps=1e-5, rope_parameters=dict(_LLAMA3, rope_theta=500.0))),
    "qwen2": ("Qwen2", "ForCausalLM", dict(_GROUPED, tie_word_embeddings=True)),
    "qwen3": ("Qwen3", "ForCausalLM", dict(_GROUPED, head_dim=8, rope_parameters=dict(rope_type="default", rope_theta=1e6))),
    "gpt2": ("GPT2", "LMHeadModel", dict(vocab_size=VOCAB, n_embd=16, n_layer=2, n_head=4, n_positions=64, bos_token_id=1, eos_token_id=1)),
    "bert": ("Bert", "ForMaskedLM", dict(_SIZE, max_position_embeddings=64)),
    "roberta": ("Roberta", "ForMaskedLM", dict(_SIZE, max_position_embeddings=66, type_vocab_size=1)),
    "mistral": ("Mistral", "ForCausalLM", dict(_GROUPED, head_dim=4, sliding_window=5)),
    "olmo2": ("Olmo2", "ForCausalLM", dict(_GROUPED, pad_token_id=None, eos_token_id=1)),
    "xlm-roberta": ("XLMRoberta", "ForMaskedLM", dict(_SIZE, max_position_embeddings=66, type_vocab_size=1, tie_word_embeddings=False)),
    "sdar": ("Qwen3", "ForCausalLM", dict(_GROUPED, head_dim=8)),
    "dream": ("Qwen2", "ForCausalLM", _GROUPED),
    "llada": ("Llama", "ForCausalLM", dict(_GROUPED, num_key_value_heads=4, rms_norm_eps=1e-5)),
}
_LLADA_NAMES = {
    "embed_tokens": "transformer.wte",
    "layers": "transformer.blocks",
    "self_attn.o_proj": "attn_out",
    "self_attn.": "",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ff_norm",
    "mlp.gate_proj": "ff_proj",
    "mlp.up_proj": "up_proj",
    "mlp.down_proj": "ff_out",
    "model.norm": "model.transformer.ln_f",
    "lm_head": "model.transformer.ff_out",
}


def torch_model(layout, dtype=None):
    """The class of transformers with random weights, large enough that each of them matters."""
    import torch
    import transformers

    stem, ending, values = MODELS[layout]
    torch.manual_seed(0)
    model = getattr(transformers, stem + ending)(getattr(transformers, stem + "Config")(**values))
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(0.2 * torch.randn_like(weight))
    return model.to(dtype or torch.float32).eval()


def save(model, layout, directory, shard="5GB"):
    """As published: what transformers has no class for gets its own names and config."""
    model.save_pretrained(directory, max_shard_size=shard)
    config = json.loads((directory / "config.json").read_text())
    if layout == "llada":
        rename(directory, llada_name)
        sizes = dict(d_model=16, n_layers=2, n_heads=4, n_kv_heads=4, mlp_hidden_size=24, rms_norm_eps=1e-5, rope_theta=10_000.0)
        config = {**sizes, "block_type": "llama", "weight_tying": False, "max_sequence_length": 64, "mask_token_id": 256}
    kinds = {"llada": "llada", "dream": "Dream", "sdar": "sdar"}
    (directory / "config.json").write_text(json.dumps({**config, "model_type": kinds.get(layout, layout)}))
    return directory


def llada_name(name):
    for theirs, ours in _LLADA_NAMES.items():
        name = name.replace(theirs, ours)
    return name


def rename(directory, of):
    """Gives the tensors of a checkpoint other names; None leaves one out."""
    arrays = {name: np.array(array) for name, array in tensors(directory).items()}
    write(directory, {of(name): array for name, array in arrays.items() if of(name)})


def tensors(directory):
    reader = Reader(directory)
    return {name: reader.read(name) for name in reader.names}


def write(directory, arrays):
    write_sharded(directory, [Tensor(name, a.shape, a.dtype, lambda a=a: a) for name, a in arrays.items()])
