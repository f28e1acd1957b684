"""What is given and what is to be made."""

import json
import time

import numpy as np
import pytest

from dlmjax.data import load_tokenizer
from dlmjax.errors import InputError
from dlmjax.sampling.canvas import Canvas, blank_canvas, build_canvas, parse_template, suppressed_ids
from tests.sampling.toy import Letters

TOKENIZER = Letters()
MASK = TOKENIZER.mask_id


def shown(canvas, row=0) -> str:
    """Conditioning text as it is, masks as ?, edited text in capitals."""
    out = ""
    for token, frozen, start in zip(canvas.tokens_BL[row], canvas.condition_mask_BL[row], canvas.start_BL[row], strict=True):
        assert frozen == (start == 0)
        assert frozen or start < 1 or token == MASK
        out += "?" if start == 1 else TOKENIZER.decode([token]) if frozen else TOKENIZER.decode([token]).upper()
    return out


def test_prompt_suffix_and_both():
    assert shown(build_canvas(TOKENIZER, length=6)) == "??????"
    assert shown(build_canvas(TOKENIZER, length=6, prompt="abc")) == "abc???"
    assert shown(build_canvas(TOKENIZER, length=6, suffix="xy")) == "????xy"
    both = build_canvas(TOKENIZER, length=6, prompt="ab", suffix="y", batch=3)
    assert [shown(both, row) for row in range(3)] == ["ab???y"] * 3
    assert both.masked_B.tolist() == [3, 3, 3]
    assert both.segments_BL.tolist() == [[1] * 6] * 3 and both.positions_BL.tolist() == [list(range(6))] * 3
    assert (both.tokens_BL.dtype, both.start_BL.dtype) == (np.int32, np.float32)


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        ("the [MASK] of", "the ? of"),
        ("[MASK*4] end", "???? end"),
        ("the ___ of ____.", "the ??? of ????."),
        ("a__b [MASK]", "a__b ?"),
        (r"a \[MASK] and \___ [MASK]", "a [MASK] and ___ ?"),
        (r"\[EDIT:x] [EDIT:old words]___", "[EDIT:x] OLD WORDS???"),
        ("keep [EDIT:this]", "keep THIS"),
        (r"back\slash [MASK]", "back\\slash ?"),
    ],
)
def test_template(template, expected):
    assert shown(build_canvas(TOKENIZER, template=template)) == expected


def test_template_with_a_length_and_levels():
    canvas = build_canvas(TOKENIZER, template="ab [EDIT:cd]", length=8, start_t=0.25)
    assert shown(canvas) == "ab CD???"
    assert canvas.start_BL[0].tolist() == [0, 0, 0, 0.25, 0.25, 1, 1, 1]
    assert build_canvas(TOKENIZER, template="[EDIT:cd]").start_BL[0].tolist() == [0.5, 0.5]
    edit = build_canvas(TOKENIZER, edit="a ___ b", start_t=0.9)
    assert shown(edit) == "A ___ B", "markers mean nothing in text given to be edited"


def test_pieces_of_a_template():
    assert parse_template("a [MASK*2][EDIT:b c]") == [("a ", "condition"), (2, "mask"), ("b c", "edit")]
    assert parse_template("") == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "length of the canvas is missing"),
        ({"length": 3, "prompt": "abcd"}, "prompt has 4 tokens, which leaves nothing .* canvas of 3; give a length above 4"),
        ({"length": 4, "prompt": "ab", "suffix": "cd"}, "prompt has 2 tokens and the suffix 2"),
        ({"length": 4, "start_t": 0.5}, "start_t requires edited text"),
        ({"length": 0}, "length of the canvas is 0"),
        ({"length": 4, "batch": 0}, "batch of the canvas is 0"),
        ({"template": "no masks"}, r"leaves nothing to fill in; write \[MASK\]"),
        ({"template": "[MASK*0]"}, "masks no token"),
        ({"template": ""}, "leaves nothing"),
        ({"template": "a [MASK*] b"}, r"has '\[MASK\*\] b', which is not a marker"),
        ({"template": "a [MASK b"}, "which is not a marker"),
        ({"template": "a [MASK] [EDIT:old"}, r"has '\[EDIT:old', which is not a marker"),
        ({"template": "a [EDIT:] [MASK]"}, "without words"),
        ({"template": "[MASK*" + "9" * 5000 + "]"}, "at most 16777216 tokens"),
        ({"template": "[MASK*999999999]"}, "at most 16777216 tokens"),
        ({"template": "[MASK*9999999][MASK*9999999]"}, "at most 16777216 tokens"),
        ({"length": 10**9}, "1 rows of 1000000000 tokens; it must have at most 16777216"),
        ({"length": 8, "batch": 10**25}, "at most 16777216"),
        ({"length": 8, "prompt": "a\ud800b"}, "the prompt is not Unicode text: character 2 is half of a surrogate pair"),
        ({"length": 8, "suffix": "\udfff"}, "the suffix is not Unicode"),
        ({"template": "[MASK]\ud800"}, "the template is not Unicode"),
        ({"edit": "\ud800"}, "the edit is not Unicode"),
        ({"template": "abc [MASK]", "length": 4}, "text has 5 tokens, masks included, but the canvas 4"),
        ({"template": "a [MASK]", "prompt": "b"}, "either a template or a prompt"),
        ({"template": "a [MASK]", "start_t": 0.5}, "has no .EDIT"),
        ({"edit": "abc", "prompt": "b"}, "either an edit or a prompt"),
        ({"edit": "abc", "start_t": 0.0}, r"must lie in \(0, 1\]"),
        ({"edit": "abc", "start_t": 1.5}, r"must lie in \(0, 1\]"),
        ({"edit": ""}, "leaves nothing"),
    ],
)
def test_contradictions_are_refused(arguments, message):
    with pytest.raises(InputError, match=message):
        build_canvas(TOKENIZER, **arguments)


def test_a_canvas_checks_itself():
    tokens, frozen = np.zeros((1, 2), np.int32), np.array([[True, False]])
    Canvas(tokens, frozen, np.array([[0, 0.5]], np.float32))
    for start in ([[0.5, 0.5]], [[0, 0]], [[0, 1.5]]):
        with pytest.raises(InputError, match="start time"):
            Canvas(tokens, frozen, np.array(start, np.float32))
    with pytest.raises(InputError, match="empty"):
        Canvas(np.zeros((0, 2), np.int32), np.zeros((0, 2), bool), np.zeros((0, 2), np.float32))
    with pytest.raises(InputError, match="length"):
        blank_canvas(0)


def test_the_end_of_document_is_not_suppressed():
    """BOS is suppressed only where the same id does not also end a document."""
    assert suppressed_ids(TOKENIZER, TOKENIZER.vocab_size) == (TOKENIZER.pad_id, TOKENIZER.mask_id)
    other = Letters()
    other.bos_id = 3
    assert suppressed_ids(other, TOKENIZER.vocab_size) == (3, TOKENIZER.pad_id, TOKENIZER.mask_id)


def test_ids_without_a_token_are_not_sampled(tmp_path):
    """Wherever they lie: in a gap of the tokenizer's file, below a mask that stands behind it, behind the whole vocabulary. Tokens that
    stand for no text, as a chat's markers, are tokens."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Tokenizer(models.BPE(vocab={letter: i for i, letter in enumerate(letters)}, merges=[]))
    backend.pre_tokenizer, backend.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    description = json.loads(backend.to_str())
    names = {256: "<|endoftext|>", 257: "<|turn|>"}
    description["added_tokens"] = [
        {"id": i, "content": name, "special": True, "single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
        for i, name in names.items()
    ]
    description["model"]["vocab"] = {letter: i for i, letter in enumerate(letters[:-1])} | {letters[-1]: 259} | {"<|endoftext|>": 256}
    (tmp_path / "tokenizer.json").write_text(json.dumps(description))
    own = load_tokenizer(f"hf:{tmp_path}")
    gaps = set(range(own.vocab_size)) - {*range(255), 256, 257, 259, own.mask_id, own.pad_id}
    assert gaps and set(suppressed_ids(own, own.vocab_size)) == gaps | {own.mask_id, own.pad_id}
    moved = own.with_ids(mask_id=270, pad_id=265, eos_id=own.eos_id, vocab_size=271)
    tokens = {*range(255), 256, 257, 259}
    for vocab in (271, 288):
        assert set(range(vocab)) - set(suppressed_ids(moved, vocab)) == tokens
    begun = time.process_time()
    big = moved.with_ids(mask_id=150_000, pad_id=265, eos_id=own.eos_id, vocab_size=150_001)
    assert len(big.absent_ids) == 150_001 - len(tokens) - 2 and time.process_time() - begun < 5
