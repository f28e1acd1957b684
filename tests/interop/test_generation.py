"""An export, driven by the plain loop that lies beside it, writes the tokens that `dlmjax sample` writes."""

import json
import warnings

import numpy as np
import pytest

from dlmjax.cli.main import main
from dlmjax.interop.export import export
from dlmjax.train import train
from tests.interop.runs import LENGTH, our_logits, random_run, shipped
from tests.test_train import tiny_config

torch = pytest.importorskip("torch", reason="the loop needs PyTorch (pip install dlmjax[interop])")
transformers = pytest.importorskip(
    "transformers", minversion="5.2", reason="older transformers ignore is_causal (pip install dlmjax[interop])"
)
transformers.utils.logging.disable_progress_bar()

PROMPT = "def "


def by_us(workdir, **settings):
    """Tokens of `dlmjax sample`, greedy and most confident first."""
    words = [f"--{name.replace('_', '-')}={value}" for name, value in {"rule": "confidence", "temperature": 0, **settings}.items()]
    file = workdir / "sample.json"
    assert main(["sample", "--workdir", str(workdir), "--prompt", PROMPT, "--json", str(file), *words]) == 0
    return json.loads(file.read_text())["samples"][0]["token_ids"]


def by_them(directory, length, steps):
    """Tokens of the loop beside the weights; text and mask through the exported tokenizer."""
    helper, tokenizer = shipped(directory), transformers.AutoTokenizer.from_pretrained(directory, trust_remote_code=True)
    given = tokenizer(PROMPT).input_ids
    row = torch.tensor(given + [tokenizer.mask_token_id] * (length - len(given)))
    return helper.generate(helper.load(directory), row, steps).tolist()


@pytest.fixture(scope="module")
def trained(small_corpus, tmp_path_factory):
    """A briefly trained run, exported by the command itself."""
    root = tmp_path_factory.mktemp("trained")
    config = tiny_config(small_corpus, train__steps=10, log__evaluate=0, log__sample=0, checkpoint__every=10, optimizer__lr=0.03)
    train(config, str(root / "run"))
    argv = ["export", "--workdir", str(root / "run"), "--view", "hf", "--output", str(root / "run" / "hf"), "--dtype", "float32"]
    assert main(argv) == 0
    return root / "run"


def test_briefly_trained_weights_have_our_logits_and_our_text(trained):
    from dlmjax.run import open_run

    run, helper = open_run(str(trained)), shipped(trained / "hf")
    model = helper.load(trained / "hf")
    assert helper.check(model, trained / "hf") < 1e-5
    tokens_BL = np.where(np.arange(32) % 3, 256, np.arange(32) + 97)[None].astype(np.int32)
    ours = our_logits(run.experiment, run.params, tokens_BL)[0, :, :256]
    theirs = helper.logits_of(model, torch.tensor(tokens_BL[0])).detach().numpy()[:, :256]
    np.testing.assert_allclose(theirs, ours, atol=1e-5)
    assert by_them(trained / "hf", 32, 9) == by_us(trained, length=32, steps=9)
    card = (trained / "hf" / "README.md").read_text()
    assert "topics.jsonl" in card and "10 of 8 x 32 tokens: 2,560 tokens" in card and "Not evaluated" in card


@pytest.mark.slow
def test_full_attention_with_more_steps_than_holes_and_a_padded_vocabulary(tmp_path):
    """The ids that pad it have half of the rows of the head: unsuppressed, they would win at half of the positions."""
    workdir, *_ = random_run(tmp_path / "run", model__vocab=518)
    export(workdir=str(workdir), output=str(tmp_path / "hf"), dtype="float32")
    made = by_them(tmp_path / "hf", LENGTH, 64)
    assert made == by_us(workdir, length=LENGTH, steps=64)
    assert made[:4] == list(PROMPT.encode()) and 256 not in made and max(made) < 259


@pytest.mark.slow
@pytest.mark.parametrize("view", [pytest.param("hf", marks=pytest.mark.nightly), "sdar"])
def test_blocks(tmp_path, view):
    """Also where the last block is not whole, and with the mask at SDAR's id."""
    workdir, *_ = random_run(tmp_path / "run", process__name="blocks(size=8)")
    export(workdir=str(workdir), view=view, output=str(tmp_path / view), dtype="float32")
    assert by_them(tmp_path / view, 22, 3) == by_us(workdir, length=22, steps=3)


def test_autoregressive_by_transformers_own_generate(tmp_path):
    workdir, *_ = random_run(tmp_path / "run", process__name="autoregressive")
    export(workdir=str(workdir), output=str(tmp_path / "hf"), dtype="float32")
    model = shipped(tmp_path / "hf").load(tmp_path / "hf")
    row = torch.tensor([[258, *PROMPT.encode()]])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of transformers' own, about its own settings
        made = model.generate(row, attention_mask=torch.ones_like(row), max_new_tokens=16, eos_token_id=None)[0, 1:].tolist()
    assert made == by_us(workdir, rule="left_to_right", length=20)


def test_the_command_says_what_it_wrote(trained, capsys):
    argv = ["export", "--workdir", str(trained), "--output", str(trained / "hf")]
    assert main(argv) == 2
    assert "--overwrite" in capsys.readouterr().err
    assert main([*argv, "--overwrite", "--weights", "raw"]) == 0
    shown = capsys.readouterr().out
    assert "step 10 (raw weights)" in shown and "bfloat16" in shown and "README.md" in shown
    assert json.loads((trained / "hf" / "config.json").read_text())["dlm"]["weights"] == "raw"
