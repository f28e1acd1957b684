"""Drafts of one run that another verifies, by the command line: the text, the counts, and what is refused."""

import json

import pytest

from dlmjax.cli.main import main
from dlmjax.experiment import claim_workdir
from dlmjax.training import Checkpoints
from tests.cli.test_main import refused
from tests.quality.conftest import random_run
from tests.test_train import config_file, tiny_config


def test_runs_that_cannot_draft_end_in_one_line(masked_workdir, causal_workdir, tmp_path, capsys):
    """Each before anything is compiled; the verifier is the run that is sampled."""
    run = random_run(tokenizer="char27", train__ema=0.0, model__depth=1)
    claim_workdir(tmp_path / "char", run.experiment.config, run.experiment.tokenizer)
    with Checkpoints(tmp_path / "char" / "checkpoints") as checkpoints:
        checkpoints.save(2, {"params": run.params}, {"step": 2})
    for workdir, draft, words in (
        (causal_workdir, f"run(path='{tmp_path / 'char'}')", "has another tokenizer than"),
        (causal_workdir, f"run(path='{causal_workdir}')", "requires a run of a masked process or of blocks"),
        (causal_workdir, f"run(path='{tmp_path / 'none'}')", "none"),
        (causal_workdir, f"run(path='{masked_workdir}', accept=ratio, steps=2)", "requires drafts of one call"),
        (causal_workdir, "joint", "requires a run of seeded blocks"),
        (masked_workdir, f"run(path='{masked_workdir}')", "requires an autoregressive run"),
    ):
        assert words in refused(capsys, "sample", "--workdir", workdir, "--draft", draft)


@pytest.mark.slow
def test_two_trained_runs(small_corpus, tmp_path, capsys):
    """A masked run drafts for an autoregressive one, a joint run for itself: the texts without drafts, in fewer calls of the verifier."""
    masked = {"process__name": "masked"}
    joint = {"process__name": "blocks(size=8, seeded=True)", "process__weighting": "joint(diffusion=0.3, inner=cross_entropy)"}
    for name, values in {"verifier": {"process__name": "autoregressive"}, "drafter": masked, "joint": joint}.items():
        config = tiny_config(small_corpus, train__steps=60, log__evaluate=0, log__sample=0, **values)
        file = config_file(tmp_path / f"{name}.py", config)
        assert main(["train", "--config", str(file), "--workdir", str(tmp_path / name)]) == 0

    def sampled(name, *flags):
        capsys.readouterr()
        file = tmp_path / "sample.json"
        common = ["--prompt", "The ", "--count", "3", "--seed", "4", "--temperature", "0.7", "--json", file, *flags]
        assert main([str(word) for word in ("sample", "--workdir", tmp_path / name, *common)]) == 0
        return json.loads(file.read_text()), capsys.readouterr().out

    for name, plain, draft in (
        ("verifier", (), f"run(path='{tmp_path / 'drafter'}', depth=4)"),
        ("joint", ("--process", "autoregressive"), "joint(depth=4)"),
    ):
        wanted, _ = sampled(name, *plain)
        found, shown = sampled(name, "--draft", draft)
        assert [row["token_ids"] for row in found["samples"]] == [row["token_ids"] for row in wanted["samples"]]
        calls, tokens = (found[key] for key in ("verifier_calls", "drafts_accepted"))
        assert max(calls) < max(wanted["calls_each"]) and "of the drafter" in shown
        made = [call - 1 + accepted for call, accepted in zip(calls, tokens, strict=True)]  # the first call reads the prompt
        assert made == [len(row["token_ids"]) - 4 for row in found["samples"]]
        assert found["settings"]["draft"] == draft
