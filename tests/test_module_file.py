"""A network of one's own named by a config: trained, resumed, evaluated, sampled; refused in one line; never run unasked."""

import re
import shutil

import jax
import numpy as np
import pytest

import dlmjax
import dlmjax.data
from dlmjax import config as config_lib
from dlmjax import module_file
from dlmjax.config import differences, fingerprint, leaves
from dlmjax.data import EvalWindows, eval_batches
from dlmjax.errors import InputError
from dlmjax.experiment import assemble, open_experiment, split_of
from dlmjax.interop.export import export
from dlmjax.sampling import SampleSettings, blank_canvas, sampler_for
from dlmjax.train import train, train_step_of
from dlmjax.training import init_state
from tests.models.test_own import UNET

SMALL = """
import jax
from flax import nnx

SPLIT = nnx.with_partitioning(nnx.initializers.lecun_normal(), ("fsdp", "tensor"))

class Small(nnx.Module):
    output = "hidden"

    def __init__(self, model, vocab, rngs):
        self.embed = nnx.Embed(vocab, model.width, rngs=rngs)
        self.convolve = nnx.Conv(model.width, model.width, kernel_size=3, rngs=rngs)
        self.mix = nnx.Linear(model.width, model.width, kernel_init=SPLIT, rngs=rngs)
        self.dropout = nnx.Dropout(model.dropout, rngs=rngs)

    def __call__(self, tokens, t, segments, positions):
        x = self.embed(tokens) + t[..., None]
        return self.mix(self.dropout(jax.nn.gelu(self.convolve(x))))

def build(model, vocab, rngs):
    return Small(model, vocab, rngs)
"""


def config_of(file, corpus, **changes):
    config = config_lib.default()
    config.data.update(paths=(str(corpus),), length=8, batch=8)
    config.model.update(width=8, heads=2, dropout=0.1, family=f"{file}:build")
    config.process.name = "masked"
    config.optimizer.warmup = 0
    config.train.update(steps=3, ema=0.9)
    config.log.update(evaluate=0, sample=0)
    return config_lib.override(config, [f"{name}={value}" for name, value in changes.items()])


@pytest.fixture(scope="module")
def trained(small_corpus, tmp_path_factory):
    """A run of three steps on eight devices, the file that it was made of, and its config."""
    folder = tmp_path_factory.mktemp("own")
    file = folder / "small.py"
    file.write_text(SMALL, encoding="utf-8")
    config = config_of(file, small_corpus, **{"mesh.fsdp": 2, "mesh.tensor": 2, "checkpoint.every": 1})
    assert train(config, str(folder / "run"))["finished"]
    return folder / "run", file, config


def test_a_run_opens_evaluates_and_samples(trained, tmp_path):
    workdir, file, config = trained
    run = dlmjax.open_run(str(workdir), trust_code=True)
    experiment = run.experiment
    assert (experiment.module.content.decode(), experiment.flops_per_token > 0) == (SMALL, True)
    corpus = split_of(run, None, "valid")
    batches = eval_batches(EvalWindows(corpus, 8, limit=8), batch_size=8, rows=range(8))
    found = experiment.evaluator(nodes=2).measure(run.params, batches, byte_lengths_V=experiment.tokenizer.byte_lengths_V, split="valid")
    assert found
    settings = SampleSettings(steps=2)
    tokens_BL = sampler_for(experiment.process, experiment.unpartitioned, settings).sample(run.params, blank_canvas(7, 2), seed=1).tokens_BL
    assert tokens_BL.shape == (2, 7) and (tokens_BL != experiment.process.absorbing_id).all()


def test_resumed_is_the_same_run(trained, small_corpus, tmp_path):
    workdir, file, config = trained
    half = config_of(file, small_corpus, **{"mesh.fsdp": 2, "mesh.tensor": 2, "checkpoint.every": 1, "checkpoint.keep": 9})

    def stop(done):
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(half, str(tmp_path / "run"), on_step=stop)
    moved = tmp_path / "elsewhere" / "small.py"  # its folder is not part of the run
    moved.parent.mkdir()
    moved.write_text(SMALL, encoding="utf-8")
    again = config_of(moved, small_corpus, **{"mesh.fsdp": 2, "mesh.tensor": 2, "checkpoint.every": 1})
    assert not differences(leaves(half), leaves(again)) and fingerprint(half) == fingerprint(again)
    assert train(again, str(tmp_path / "run"))["finished"]
    want, got = (dlmjax.open_run(str(root), weights="raw", trust_code=True).params for root in (workdir, tmp_path / "run"))
    jax.tree.map(np.testing.assert_array_equal, want, got)
    file_2 = tmp_path / "changed" / "small.py"
    file_2.parent.mkdir()
    file_2.write_text(SMALL + "\n# a comment\n", encoding="utf-8")
    changed = config_of(file_2, small_corpus, **{"train.steps": 3})
    with pytest.raises(InputError, match=r"is not the code that .*run was trained with .* by fork"):
        train(changed, str(tmp_path / "run"))
    changed.train.steps = 4
    assert train(changed, str(tmp_path / "fork"), fork=str(tmp_path / "run"))["finished"]


def test_no_code_of_a_workdir_is_run_unasked(trained, tmp_path):
    workdir, _, _ = trained
    ran = tmp_path / "ran"
    evil = tmp_path / "copy"
    shutil.copytree(workdir, evil)
    trap = f"open({str(ran)!r}, 'w').close()\n" + SMALL
    # In the copy, and at the path that its config names: neither is run.
    (evil / module_file.FILE).write_text(trap, encoding="utf-8")
    with pytest.raises(InputError, match=r"Python code .*module.py.* --trust-code"):
        open_experiment(str(evil))
    with pytest.raises(InputError, match="sha256 differs"):
        open_experiment(str(evil), trust_code=True)
    with pytest.raises(InputError, match="an export requires one of a family"):
        export(workdir=str(workdir), view="hf", output=str(tmp_path / "out"))
    assert not ran.exists()
    texts, content = evil / "texts.json", (evil / "texts.json").read_text(encoding="utf-8")
    shutil.move(evil / "checkpoints", evil / "moved")
    texts.unlink()  # the sha256 is then nowhere
    with pytest.raises(InputError, match="does not record the sha256"):
        open_experiment(str(evil), trust_code=True)
    assert not ran.exists()
    texts.write_text(content, encoding="utf-8")
    (evil / module_file.FILE).unlink()
    with pytest.raises(InputError, match="module.py is missing"):
        open_experiment(str(evil), trust_code=True)


@pytest.mark.slow
@pytest.mark.parametrize("process", ["masked", "uniform"])
def test_the_page_s_module_trains_on_one_device_and_on_eight(process, small_corpus, tmp_path):
    file = tmp_path / "unet.py"
    file.write_text(UNET, encoding="utf-8")
    losses = []
    for mesh in ({"mesh.fsdp": 2, "mesh.tensor": 2, "mesh.sequence": 2}, {}):
        config = config_of(file, small_corpus, **mesh, **{"process.name": process, "log.every": 1})
        experiment = assemble(config, dlmjax.data.load_tokenizer("bytes"), devices=None if mesh else jax.devices()[:1])
        state = init_state(experiment.init, experiment.optimizer, jax.random.key(0), experiment.param_shardings)
        step, rng = train_step_of(experiment), np.random.default_rng(0)
        for _ in range(3):
            tokens_BL = rng.integers(0, 200, (8, 8)).astype(np.int32)
            ones_BL, positions_BL = np.ones_like(tokens_BL), np.tile(np.arange(8, dtype=np.int32), (8, 1))
            batch = {"tokens": tokens_BL, "segments": ones_BL, "positions": positions_BL, "row": np.arange(8, dtype=np.int32)}
            state, metrics = step(state, experiment.partition.put_batch(batch), jax.random.key(1))
            losses.append(float(metrics["loss"]))
    np.testing.assert_allclose(losses[:3], losses[3:], rtol=1e-5)


def test_the_command_line(trained):
    workdir, _, _ = trained
    from dlmjax.cli.main import main

    assert main(["sample", "--workdir", str(workdir), "--length", "8", "--steps", "2"]) == 2
    assert main(["sample", "--workdir", str(workdir), "--length", "8", "--steps", "2", "--trust-code"]) in (0, None)


@pytest.mark.parametrize(
    ("text", "function", "said"),
    [
        (None, "build", "does not exist|cannot be read"),
        (UNET, "make", r"has no function make\(model, vocab, rngs\)"),
        (UNET, "", "no function in it; write .*:FUNCTION"),
        ("def build(model, vocab): pass", "build", "TypeError"),
        ("def build(model, vocab, rngs): return 3", "build", "returns int, not a flax.nnx.Module"),
        ("def build(model, vocab, rngs):\n    return model.wdth", "build", "line 2: AttributeError"),
        ("import no_such_package", "build", "line 1: ModuleNotFoundError"),
        ("def build(:", "build", "line 1: SyntaxError"),
        ("raise SystemExit(0)", "build", "SystemExit"),
        (UNET.replace('output = "hidden"', 'output = "logits"'), "build", "gives 8 columns, and the vocabulary has 11"),
        (UNET.replace("return self.norm(self.blocks[2](x, segments))", "return tokens"), "build", "requires .2, 8, columns."),
        (UNET.replace("return self.norm(self.blocks[2](x, segments))", "return x.astype(int)"), "build", "gives int32"),
        (UNET.replace("heads, model.width", "heads + 1, model.width"), "build", "unet.py, line .*ValueError"),
    ],
)
def test_a_file_is_refused_before_the_corpus_is_opened(text, function, said, tmp_path, capsys):
    from dlmjax.cli.main import main

    if text is not None:
        (tmp_path / "unet.py").write_text(text, encoding="utf-8")
    start = "from dlmjax import config\n\ndef get_config():\n    found = config.default()\n    found.model.update(width=8, heads=2)\n"
    start += "    found.data.update(length=8, paths=('no corpus here',))\n    return found\n"
    (tmp_path / "small.py").write_text(start, encoding="utf-8")
    family = f"--config.model.family=unet.py:{function}" if function else "--config.model.family=unet.py"
    assert main(["train", "--config", str(tmp_path / "small.py"), "--workdir", str(tmp_path / "run"), family]) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert re.search(said, lines[-1]), lines
    assert len([line for line in lines if line.startswith("dlmjax:")]) == 1 and "no corpus here" not in lines[-1]
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("process", ["autoregressive", "blocks(size=4)", "gaussian", "duo", "self-conditioned"])
def test_a_process_is_refused_by_name(process, small_corpus, trained, tmp_path):
    _, file, _ = trained
    hints = {"process.self_condition": 0.5} if process == "self-conditioned" else {"process.name": process}
    config = config_of(file, small_corpus, **hints)
    with pytest.raises(InputError, match=r"model.family=small.py:build") as caught:
        train(config, str(tmp_path / "run"))
    assert hints.get("process.name", "self_condition").partition("(")[0] in str(caught.value) and not (tmp_path / "run").exists()
