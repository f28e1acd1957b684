"""Which view holds which model, and what the refusals say."""

import json

import numpy as np
import pytest

from dlmjax.errors import InputError
from dlmjax.interop.views import SDAR_MASK, SDAR_ROWS, VIEWS, view_of
from dlmjax.sampling import suppressed_ids
from tests.interop.runs import exported

BLOCKS = {"process__name": "blocks(size=4)"}
LLAMA = {"model__family": "llama"}


@pytest.mark.parametrize(
    ("view", "changes", "says"),
    [
        ("hf", {"process__name": "hybrid", "model__time_input": "adaln"}, ["adaln", "no other view"]),
        ("hf", {"model__time_input": "prefix"}, ["prefix", "no other view"]),
        ("sdar", {"model__time_input": "add", **BLOCKS}, ["model.time_input=add", "no other view"]),
        ("hf", {"process__name": "plaid", "model__time_input": "adaln"}, ["Gaussian", "no other view"]),
        ("hf", {"process__self_condition": 0.5}, ["self_condition", "no other view"]),
        ("hf", {"process__name": "score", "model__time_input": "adaln"}, ["conditioned on the time"]),
        ("hf", {"model__family": "qwen2(shift=True)"}, ["shift", "no other view"]),
        ("hf", {"model__family": "qwen3(loops=2)"}, ["run 2 times", "no other view"]),
        ("hf", {"model__family": "qwen3(peers=True)"}, ["boards of 9 x 9 cells", "no other view"]),
        ("hf", {"model__family": "gpt2(max_positions=32)"}, ["positions=learned", "no other view"]),
        ("hf", {**LLAMA, "model__heads": 5, "model__kv_heads": 5, "model__width": 32}, ["width (32)", "heads (5)"]),
        ("hf", {"model__family": "qwen2", "model__head_dim": 16}, ["4 x 16", "32"]),
        ("sdar", {}, ["SGLang", "full attention", "--view hf can hold it", "blocks(size=...)"]),
        ("sdar", LLAMA, ["full attention", "--view hf or --view llada can hold it"]),
        ("sdar", {**LLAMA, **BLOCKS}, ["model.family=qwen3", "--view hf can hold it"]),
        ("sdar", {"process__name": "autoregressive"}, ["causal attention", "--view hf can hold it"]),
        ("llada", {}, ["no norm on queries", "--view hf can hold it"]),
        ("llada", {**LLAMA, **BLOCKS}, ["whole row", "block-causal", "--view hf can hold it"]),
        ("llada", {**LLAMA, "model__head_dim": 16}, ["4 x 16", "--view hf can hold it"]),
        ("llada", {**LLAMA, "model__rope_scaling": 2.0}, ["rope_scaling=2.0", "--view hf can hold it"]),
        ("llada", {**LLAMA, "model__family": "llama(window=8)"}, ["a window of 8", "--view hf can hold it"]),
        ("llada", {**LLAMA, "model__family": "llama(rope_scaling_type=yarn, rope_attention=1.5)"}, ["stretched", "--view hf can hold it"]),
        ("sdar", {"model__family": "qwen3(window=8)", **BLOCKS}, ["a window of 8", "no other view"]),
        ("sdar", {"model__family": "olmo2", **BLOCKS}, ["model.family=qwen3", "--view hf can hold it"]),
        ("hf", {"model__family": "llama(window=8)", **BLOCKS}, ["a window of 8", "no other view"]),
        ("hf", {"model__family": "olmo2(window=8)"}, ["a window of 8", "no other view"]),
        ("hf", {"model__family": "llama(window=1)"}, ["only to themselves", "no other view"]),
        ("gguf", {}, ["unknown", "hf, encoder, sdar, llada"]),
    ],
)
def test_a_model_that_a_view_cannot_hold_is_refused_with_the_view_that_can(view, changes, says):
    with pytest.raises(InputError) as refusal:
        view_of(view, exported(**changes))
    message = str(refusal.value)
    assert all(words in message for words in says), message
    assert "\n" not in message


def test_the_table_covers_every_process_that_others_can_run():
    """Masked processes without time input stand in `hf`, each with its attention."""
    for name in ("masked", "masked_count", "masked_lambda", "llada"):
        assert view_of("hf", exported(process__name=name)).name == "hf"
    assert exported(process__name="autoregressive").attention == "causal"
    assert exported(**BLOCKS).attention == "block-causal"


def test_a_mask_whose_id_is_taken_is_refused():
    class Wide:
        """A tokenizer in which a token stands where SGLang looks for the mask."""

        mask_id, pad_id, eos_id, bos_id, vocab_size = 0, 1, 2, 2, SDAR_MASK + 2
        token_bytes = [b"", b"", b"", *[b"x"] * (SDAR_MASK - 1)]

    class Special(Wide):
        """The end of document stands there, which has no text either."""

        pad_id, eos_id, bos_id = 1, SDAR_MASK, SDAR_MASK
        token_bytes = [b"", b"", *[b"x"] * (SDAR_MASK - 2), b"", b"x"]

    model = exported(**BLOCKS)
    for tokenizer in (Wide(), Special()):
        object.__setattr__(model, "tokenizer", tokenizer)
        assert "151669, which is another token" in VIEWS["sdar"].refuse(model)


def test_sdar_has_its_mask_where_sglang_looks():
    model = exported(**BLOCKS)
    rows = VIEWS["sdar"].rows(model)
    config = VIEWS["sdar"].config(model, rows, "float32")
    assert rows.count == SDAR_ROWS == config["vocab_size"] and rows.moved == (256, SDAR_MASK)
    assert config["mask_token_id"] == SDAR_MASK and config["block_size"] == 4 and config["rope_theta"] == 10_000.0
    assert config["dlm"]["suppress_ids"] == [256, 257, SDAR_MASK] and config["dlm"]["trained_size"] == 259
    # Every row that no token of a text has: not 0..255 and not the end of document, 258.
    assert set(range(SDAR_ROWS)) - set(rows.filled) == {*range(256), 258}


def test_padding_of_the_vocabulary_is_recorded():
    model = exported(model__vocab=288, **LLAMA)
    for name in ("hf", "llada"):
        view = VIEWS[name]
        config = view.config(model, view.rows(model), "bfloat16")
        assert (config["dlm"]["vocab_size"], config["dlm"]["embedding_size"]) == (259, 288)
        # As `dlmjax sample` bars them. Rows that were in the softmax stay as they are.
        assert tuple(config["dlm"]["suppress_ids"]) == suppressed_ids(model.tokenizer, 288) == (256, 257, *range(259, 288))
        assert view.rows(model).filled == (256, 257)
    assert (config["vocab_size"], config["embedding_size"]) == (259, 288)  # LLaDA's own fields
    json.dumps(config)


def test_anchors_are_ids_that_no_text_holds():
    model = exported()
    texts = "".join(map(chr, [*range(0xD800), *range(0xE000, 0x110000, 97)]))
    used = set(np.unique(model.tokenizer.encode(texts)).tolist())
    assert model.anchor_ids and not used & set(model.anchor_ids)
    assert exported("char27").anchor_ids == (*range(27), 29)  # text8's alphabet has none: all real ids
