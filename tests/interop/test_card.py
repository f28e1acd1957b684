"""What the run card says, and what it does not claim."""

import json

import pytest

from dlmjax.errors import InputError
from dlmjax.interop import card
from dlmjax.interop.views import VIEWS, Exported
from tests.interop.runs import LENGTH, experiment_of

RESULT = dict(nats_per_token=2.0, stderr_nats_per_token=0.1, bits_per_byte=None, stderr_bits_per_byte=None) | dict(
    step=9, weights="raw", split="valid", is_bound=True, tokens=1000
)


def written(view="hf", tokenizer="bytes", evaluation=None, reason="", dtype="bfloat16", imported=None, **changes):
    """A card without an export."""
    experiment = experiment_of(tokenizer, **changes)
    model = Exported(experiment.network.spec, experiment.process, experiment.tokenizer, LENGTH)
    facts = card.Facts(experiment, VIEWS[view], model, VIEWS[view].rows(model), dtype, 9, "raw", evaluation, reason, imported)
    return card.write(facts, ["config.json"])


def test_the_number_comes_with_what_it_is_of(tmp_path):
    (tmp_path / "evaluation.json").write_text(json.dumps(RESULT))
    known = card.evaluation_of(str(tmp_path), None)
    text = written(evaluation=known)
    assert "NELBO <= 2.0000 ± 0.1000 nats/token (valid split, 1,000 tokens; dlmjax evaluate)" in text
    assert "not those of this export" not in text and "these files hold bfloat16" in text and "bits/byte" not in text
    assert "Of step 8, ema weights: not those of this export" in written(evaluation={**known, "step": 8, "weights": "ema"})
    assert "Loss (not a bound) <= 2.0" in written(evaluation={**known, "is_bound": False})
    assert "Negative log-likelihood = 2.0" in written(evaluation=known, process__name="autoregressive")
    assert "these files hold" not in written(evaluation=known, dtype="float32")


def test_the_protocol_stands_beside_the_number(tmp_path):
    changed = {"window": 1024, "stride": 512}
    protocol = dict(suite="wikitext2", corpus=None, window=128, stride=64, complete=False, changed=changed, text_hash="00")
    (tmp_path / "r.json").write_text(json.dumps({**RESULT, "protocol": protocol, "rule": "gauss", "nodes": 8, "draws": 2}))
    text = written(evaluation=card.evaluation_of(str(tmp_path), str(tmp_path / "r.json")))
    how = "Measured: suite wikitext2, windows of 128, 64 new tokens each, 8 levels (rule gauss) x 2 draws, "
    assert how + "not the suite's own window (1024) and stride (512), not all of the text." in text
    whole = {**protocol, "suite": None, "corpus": "/data/books", "complete": True, "changed": None}
    (tmp_path / "r.json").write_text(json.dumps({**RESULT, "protocol": whole, "rule": "exact", "nodes": 1, "draws": 1}))
    text = written(evaluation=card.evaluation_of(str(tmp_path), str(tmp_path / "r.json")))
    assert "Measured: corpus `books`, windows of 128, 64 new tokens each, exactly." in text


def test_imported_weights_name_their_source_and_no_training():
    text = written(imported={"source": "models/base", "layout": "llama", "family": "llama(norm_eps=1e-05)"})
    assert "imported from `models/base` (layout llama, model.family=llama(norm_eps=1e-05)) by dlmjax" in text
    assert "trained with dlmjax" not in text and "## Training" not in text and "## Data" not in text
    assert "trained with dlmjax" in written() and "## Training" in written()


def test_the_phases_of_a_run_are_listed_with_their_share():
    text = written(process__before="autoregressive@4", train__steps=12, optimizer__warmup=0)
    assert "| autoregressive | 0 to 4 | 768 |" in text and "| masked | 4 to 9 | 960 |" in text
    assert "| phase |" not in written()


def test_without_an_evaluation_the_last_held_out_line_is_named_as_that(tmp_path):
    assert card.evaluation_of(str(tmp_path), None) is None and "Not evaluated" in written()
    lines = [{"kind": "held_out", "step": step, **{name: step / 10 for name in card.NUMBERS}} for step in (5, 9)]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    known = card.evaluation_of(str(tmp_path), None)
    assert "0.9000 ± 0.9000 nats/token, 0.9000 ± 0.9000 bits/byte (valid split; during training" in written(evaluation=known)
    (tmp_path / "other.json").write_text("[]")
    with pytest.raises(InputError, match="other.json is not the result of an evaluation"):
        card.evaluation_of(str(tmp_path), str(tmp_path / "other.json"))


def test_each_view_says_how_it_is_loaded():
    blocks = written("sdar", process__name="blocks(size=4)")
    assert "sglang.yaml holds the block size (4)" in blocks and "151,421 rows of the head belong to no token" in blocks
    assert "Every call needs a block-causal mask** (blocks of 4)" in written(process__name="blocks(size=4)")
    assert "converter" in written("llada", model__family="llama")
    causal = written(process__name="autoregressive")
    assert "A text begins with BOS (id 258)" in causal and "generate(model, tokens" not in causal


def test_tokens_and_what_was_folded():
    assert "mean of 13 rows (of ids that no text holds)" in written()
    assert "mean of 28 rows (of all real ids)" in written("hf", "char27")
    assert "No tokenizer.json: it reads backwards." in written(reason="it reads backwards")
    folded = written(model__tied=True, model__completep_width=16, model__completep_depth=1)
    assert "1/2 on branches, 1/2 on logits" in folded and "tied head" in folded
