"""What a workdir holds: enough to open the run again, wherever the files that its config named have gone."""

import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dlmjax import config as config_lib
from dlmjax.data import load_tokenizer
from dlmjax.data.tokenizers import save_tokenizer
from dlmjax.diffusion import Blockwise
from dlmjax.diffusion.process import Process
from dlmjax.diffusion.registry import PROCESSES, curriculum_of
from dlmjax.errors import InputError
from dlmjax.experiment import assemble, embedding_of, open_experiment
from dlmjax.models.masks import Annealed
from dlmjax.run import open_run
from dlmjax.train import train
from launch.command import read_train
from tests.models import tiny


def neighbours(file, corpus=""):
    """Discrete diffusion to near neighbours of a table in a file: one step of the smallest network."""
    config = config_lib.default()
    config.data.update(paths=(str(corpus),), length=8, batch=8)
    config.model.update(depth=1, width=8, heads=1, kv_heads=1, head_dim=8, ffn=8, time_input="adaln")
    config.process.name = f"d3pm(kernel=neighbours, steps=4, neighbours=16, embedding={str(file)!r})"
    config.optimizer.warmup = 0
    config.train.update(steps=1, ema=0.0)
    config.log.update(evaluate=0, sample=0)
    return config


@pytest.mark.slow
def test_a_run_keeps_its_embedding_table(small_corpus, tmp_path):
    file, workdir = tmp_path / "table.npy", tmp_path / "run"
    vocab = load_tokenizer("bytes").vocab_size
    table_VE = np.random.default_rng(0).normal(size=(vocab, 3)).astype(np.float32)
    np.save(file, table_VE)
    config = neighbours(file, small_corpus)
    assert train(config, str(workdir))["finished"]
    np.save(file, table_VE + np.arange(3))  # from now on the run reads its own copy
    file_gone = neighbours(tmp_path / "gone.npy", small_corpus)
    with pytest.raises(InputError, match=r"process\.name: .*table\.npy.* -> .*gone\.npy"):
        train(file_gone, str(workdir))
    file.unlink()
    assert train(config, str(workdir))["finished"]
    process = open_run(str(workdir)).experiment.process
    np.testing.assert_array_equal(process.embedding.array, table_VE)
    assert process.kernel == "neighbours"


@pytest.mark.parametrize(
    ("write", "said"),
    [
        (lambda file: None, "cannot be read .No such file"),
        (lambda file: file.write_bytes(b"PK"), "not an array that numpy.save wrote"),
        (lambda file: np.save(file, np.full((40, 2), np.nan)), "finite numbers"),
        (lambda file: np.save(file, np.zeros(40)), "one row for each token id"),
        (lambda file: np.save(file, np.random.default_rng(0).normal(size=(5, 2))), "embedding has 5 rows"),
    ],
)
def test_a_table_that_does_not_fit_is_told(tmp_path, write, said):
    write(tmp_path / "table.npy")
    with pytest.raises(InputError, match=said) as refused:
        config = neighbours(tmp_path / "table.npy")
        assemble(config, load_tokenizer("char27"), devices=jax.devices()[:1], embedding_VE=embedding_of(config, tmp_path))
    assert "\n" not in str(refused.value)


def smallest():
    config = config_lib.default()
    config.data.update(length=8, batch=8)
    config.optimizer.warmup = 0
    config.model.update(depth=1, width=8, heads=1, kv_heads=1, head_dim=8, ffn=8)
    return config


@pytest.mark.parametrize(
    ("platform", "kernels"),
    [
        ("cpu", {"dense": "dense", "cudnn": "dense", "splash": "dense"}),
        ("gpu", {"dense": "dense", "cudnn": "cudnn", "splash": "dense"}),
        ("tpu", {"dense": "dense", "cudnn": "dense", "splash": "splash"}),
    ],
)
def test_a_run_opens_on_other_devices_than_it_was_trained_on(tmp_path, monkeypatch, platform, kernels):
    monkeypatch.setattr(jax, "default_backend", lambda: platform)
    save_tokenizer(load_tokenizer("char27"), tmp_path / "tokenizer")
    for trained, opened in kernels.items():
        config = smallest()
        config.data.length = 128
        config.execution.update(dtype="bfloat16", attention=trained)
        (tmp_path / "config.json").write_text(config_lib.to_json(config))
        assert open_experiment(str(tmp_path)).network.execution.attention == opened


@pytest.mark.parametrize(("kernel", "length", "said"), [("cudnn", 9, "divisible by 2, not 9"), ("splash", 96, "divisible by 128, not 96")])
def test_rows_that_a_kernel_cannot_train_are_refused(kernel, length, said):
    config = smallest()
    config.data.length, config.execution.attention = length, kernel
    with pytest.raises(InputError, match=said):
        assemble(config, load_tokenizer("char27"), devices=jax.devices()[:1])
    config.process.name = "blocks(size=3)"  # two streams side by side
    if kernel == "cudnn":
        assert assemble(config, load_tokenizer("char27"), devices=jax.devices()[:1])


@pytest.mark.parametrize(
    "process", ["blocks(size=3)", "blocks(size=4, curriculum=((2, 3),))", "blocks(size=4, curriculum=((2, 8), (4, 16)))"]
)
def test_rows_that_are_not_whole_blocks_are_refused_for_every_phase(process):
    config = smallest()
    config.process.name = process
    with pytest.raises(InputError, match="data.length=8 is not a multiple of the (3|16) tokens of a block"):
        assemble(config, load_tokenizer("char27"), devices=jax.devices()[:1])


@pytest.mark.parametrize("text", ["", '{\n "seed": 0,\n "data.pa', "[]", "3", '{"data.length": "many"}', b"\xff\xfe"])
def test_a_damaged_config_is_told_in_one_line(tmp_path, text):
    save_tokenizer(load_tokenizer("char27"), tmp_path / "tokenizer")
    (tmp_path / "config.json").write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(InputError, match=r"config\.json is not (valid JSON|readable|the config of a run any more): .*restore it") as error:
        open_experiment(str(tmp_path))
    assert "\n" not in str(error.value)


CURRICULA = {  # of each process that has one, up to a step
    "duo": lambda end: f"duo(until={end})",
    "blocks": lambda end: f"blocks(size=1, curriculum=(({end // 2}, 8), ({end}, 4)))",
}


def test_every_curriculum_says_where_it_ends():
    """The step from which `at_step` changes no more, of every process that has a curriculum."""
    kinds = {name: kind for name, kind in PROCESSES.items() if isinstance(kind, type)} | {"blocks": Blockwise}
    assert {name for name, kind in kinds.items() if kind.phases is not Process.phases} == CURRICULA.keys()
    for text in CURRICULA.values():
        process, phases = curriculum_of(text(40)), []
        for step in range(100):
            if not phases or process.phases.at_step(step) != phases[-1][1]:
                phases.append((step, process.phases.at_step(step)))
        assert process.phases.end == phases[-1][0] == 40
        shorter = dataclasses.replace(process, **process.phases.shortened(20))
        assert shorter.phases.end == 20 and shorter.phases.at_step(20) == process.phases.at_step(40)


@pytest.mark.parametrize("name", CURRICULA)
def test_a_curriculum_ends_within_the_run(name, tmp_path):
    tokenizer, config = load_tokenizer("char27"), smallest()
    config.model.time_input = "adaln"
    config.train.steps = 60
    for end in (2, 59):
        config.process.name = CURRICULA[name](end)
        assert assemble(config, tokenizer, devices=jax.devices()[:1])
    for end in (60, 200):
        config.process.name = CURRICULA[name](end)
        with pytest.raises(
            InputError, match=rf"process\.name=.*ends at step {end}, but train\.steps is 60.*--config\.process\.name="
        ) as error:
            assemble(config, tokenizer, devices=jax.devices()[:1])
    config_lib.override(config, [re.search(r'--config\.(process\.name=)"(.*)"$', str(error.value)).expand(r"\1\2")])
    assert curriculum_of(config.process.name).phases.end == 30, "what is proposed is taken"
    # By flags, over a config whose own steps would do, and before a launcher asks for machines.
    overrides = [f"process.name={CURRICULA[name](200)}", "train.steps=200", "model.time_input=adaln"]
    with pytest.raises(InputError, match="ends at step 200, but train.steps is 200"):
        config_lib.load("configs/quickstart.py", overrides)
    with pytest.raises(InputError, match="ends at step 200, but train.steps is 200"):
        read_train(["--config", "configs/quickstart.py", "--workdir", "x", *(f"--config.{override}" for override in overrides)])
    # One that is trained already is there to be looked at.
    config.process.name = CURRICULA[name](200)
    save_tokenizer(tokenizer, tmp_path / "tokenizer")
    (tmp_path / "config.json").write_text(config_lib.to_json(config))
    assert open_experiment(str(tmp_path))


BEFORE = {  # phases before a process, and how many streams each has
    "masked": ("autoregressive@0.2", "blocks(size=1)@0.4", "blocks(size=4, noise=masked)@0.6"),
    "blocks(size=4)": ("autoregressive@0.5",),
    "hybrid": ("autoregressive@0.1", "masked@0.3"),
}


@pytest.mark.parametrize("name", BEFORE)
def test_phases_before_a_process_share_its_network_and_its_times(name):
    """Each phase has the objective that a run of its process alone would have; the FLOPs of the run are the mean over its phases."""
    tokenizer, config = load_tokenizer("char27"), smallest()
    config_lib.override(config, ["model.time_input=adaln", f"process.name={name}", "train.steps=50", "process.times=beta"])
    alone = assemble(config, tokenizer, devices=jax.devices()[:1])
    config.process.before = BEFORE[name]
    experiment = assemble(config, tokenizer, devices=jax.devices()[:1])
    assert experiment.abstract_state() == alone.abstract_state() and experiment.process == alone.process
    start, flops = 0, 0.0
    for index, entry in enumerate((*BEFORE[name], f"{name}@1")):
        text, share = entry.split("@")
        end = round(50 * float(share))
        config.process.update(name=text, before=())
        own = assemble(config, tokenizer, devices=jax.devices()[:1])
        for step in (start, end - 1):
            found = experiment.at_step(step)
            assert experiment.phases.index(step) == index and experiment.phases.at_step(step) == own.process
            assert (found.objective, found.network, found.earlier) == (own.objective, own.network, ())
            assert found.flops_per_token == own.flops_per_token
        flops, start = flops + own.flops_per_token * (end - start) / 50, end
    assert experiment.flops_per_token == pytest.approx(flops) and experiment.phases.end < 50 == start


def test_a_causal_phase_of_a_network_that_predicts_the_next_token_is_the_same_network_in_place():
    """Autoregression shifts its rows, and the network its outputs: with both, a token would be predicted from the one two before it."""
    tokenizer, config = load_tokenizer("char27"), smallest()
    config_lib.override(config, ["model.family=qwen3(shift=True)", "process.before=autoregressive@0.5"])
    experiment = assemble(config, tokenizer, devices=jax.devices()[:1])
    config_lib.override(config, ["model.family=qwen3", "process.before=", "process.name=autoregressive"])
    alone = assemble(config, tokenizer, devices=jax.devices()[:1])
    assert experiment.at_step(0).network == alone.network and experiment.at_step(0).process == alone.process
    assert experiment.at_step(config.train.steps).network.spec.shift


def test_a_phase_has_times_and_a_weighting_of_its_own_and_ends_at_a_share_or_a_step():
    """What it leaves out is that of the run. A switch raises the learning rate again; a fork for more steps moves shares, and no steps."""
    tokenizer, config = load_tokenizer("char27"), smallest()
    phases = "autoregressive@0.2,blocks(size=4); times=stratified(low=0.3, high=0.8); weighting=bound@7,masked; schedule=cosine@0.8"
    config_lib.override(config, ["train.steps=10", "process.times=beta", "process.weighting=cross_entropy", f"process.before={phases}"])
    config.optimizer.warmup = 0
    experiment = assemble(config, tokenizer, devices=jax.devices()[:1])
    config_lib.override(config, ["train.steps=20"])
    longer = assemble(config, tokenizer, devices=jax.devices()[:1])
    assert experiment.phases.ends == (2, 7, 8) and longer.phases.ends == (4, 7, 16)
    found = [experiment.at_step(step) for step in (1, 2, 6, 7, 9)]
    assert [one.objective.weighting.name for one in found] == ["bound", "bound", "bound", "cross_entropy", "cross_entropy"]
    assert [one.process.name for one in found] == ["autoregressive", "blocks", "blocks", "masked", "masked"]
    assert found[1].objective.times.distribution.low == 0.3 and found[3].objective.times == found[4].objective.times
    assert [type(one.process.schedule).__name__ for one in found[3:]] == ["Cosine", "Linear"]
    assert [one.phase_start for one in found] == [0, 2, 2, 7, 8]
    assert [float(one.hyperparameters.again_from) for one in found] == [0, 2, 2, 7, 8]
    assert longer.at_step(19).flops_per_token == experiment.at_step(9).flops_per_token


def test_attention_is_annealed_by_one_program_from_causal_to_full():
    """The mask is data: at no progress the loss is that of the causal network, after the share of the steps that of the full one, and one
    compiled step serves all. The shift of weights that predict the next token goes with it; a phase before moves its start."""
    tokenizer, config = load_tokenizer("char27"), smallest()
    config_lib.override(config, ["train.steps=10", "process.anneal=0.5", "model.family=qwen3(shift=True)"])
    config.optimizer.warmup = 0
    experiment, length = assemble(config, tokenizer, devices=jax.devices()[:1]), config.data.length
    tokens_BL = jax.random.randint(jax.random.key(1), (2, length), 0, 26)
    batch = {"tokens": tokens_BL, "segments": jnp.ones((2, length), jnp.int32)}
    batch["row"] = jnp.arange(2) + config.data.batch - 2  # whose times are the highest
    batch["positions"] = jnp.broadcast_to(jnp.arange(length), (2, length))
    params, key, traced = tiny.lively(experiment.init(jax.random.key(0))), jax.random.key(2), []

    @jax.jit
    def loss(progress):
        traced.append(progress)
        return experiment.loss_fn(params, batch, key, progress)[0]

    def fixed(attention):
        denoiser = experiment.network.bind(params, batch["segments"], batch["positions"], attention)
        return float(experiment.objective(denoiser, batch, jax.random.fold_in(key, 0), config.data.batch)[0])

    found = [float(loss(jnp.float32(progress))) for progress in (0.0, 0.25, 0.5, 0.9)]
    causal = fixed(Annealed(jnp.zeros((length, length), bool)))
    assert found[0] == pytest.approx(causal, rel=1e-6) and found[2] == found[3] == pytest.approx(fixed("full"), rel=1e-6)
    assert found[1] not in (found[0], found[2]) and len(traced) == 1
    index_L = np.arange(64)
    seen_LL = Annealed.draw(key, 64, jnp.float32(0.25)).allowed(index_L[:, None], index_L[None])
    assert seen_LL[np.tril_indices(64)].all() and np.mean(seen_LL[np.triu_indices(64, 1)]) == pytest.approx(0.25, abs=0.03)
    config_lib.override(config, ["process.before=autoregressive@4"])
    later = assemble(config, tokenizer, devices=jax.devices()[:1]).at_step(4)
    assert float(jax.jit(later.loss_fn)(params, batch, key, jnp.float32(0.4))[0]) == pytest.approx(causal, rel=1e-6)


@pytest.mark.parametrize(
    "overrides, says",
    [
        (["process.anneal=0.5", "process.name=blocks(size=4)"], "process.anneal=0.5 requires .* full attention of the last process"),
        (["process.anneal=0.5", "process.before=masked@0.2"], "process.anneal=0.5 requires"),
        (["process.anneal=0.5", "process.name=autoregressive"], "process.anneal=0.5 requires"),
        (
            ["process.before=autoregressive@10"],
            "'autoregressive@10' ends at step 10, and the run has 10 steps",
        ),
        (["process.before=autoregressive@0"], "cannot read the phase"),
        (["process.before=autoregressive@5,masked@4"], "ends no later than the one before it"),
        (["process.before=autoregressive@5,masked@0.4"], "none is left for a phase"),
        (["process.before=masked; times=betta@4"], r"process\.before: unknown times 'betta'.*did you mean 'beta'"),
        (["process.before=masked; steps=4@4"], r"process\.before: unknown setting of a phase 'steps'"),
        (["process.before=masked; times@4"], "cannot read 'times' of the phase"),
        (["process.before=masked; times=beta; times=beta@4"], "cannot read 'times=beta' of the phase .* once"),
        (["process.before=masked; schedule=cosine(x=1)@4"], r"process\.before: .*cosine has no value 'x'"),
        (["process.before=autoregressive; weighting=denoising@4"], "denoising conflicts with process autoregressive"),
        (["process.before=autoregressive"], r"process\.before: cannot read the phase 'autoregressive'; write PROCESS@SHARE"),
        (["process.before=autoregressive@1.0"], "cannot read the phase"),
        (["process.before=autoregressive@x"], "cannot read the phase"),
        (["process.before=(3,)"], "cannot read the phase 3"),
        (["process.before=autoregressive@0.4,masked@0.4"], "ends no later than the one before it"),
        (["process.before=autoregresive@0.4"], r"process\.before: .*did you mean 'autoregressive'"),
        (["process.before=blocks(size=four)@0.4"], r"process\.before: .*size requires a whole number"),
        (["process.before=autoregressive@0.001"], "of the 10 steps of the run, none is left for a phase"),
        (["process.before=autoregressive@0.99"], "of the 10 steps of the run, none is left for a phase"),
        (["process.before=uniform@0.4"], r"process\.before=uniform requires model\.time_input"),
        (["process.before=blocks(size=3)@0.4"], "not a multiple of the 3 tokens of a block"),
        (
            ["process.before=score@0.4", "model.time_input=adaln"],
            "score conflicts with .*masked: its network predicts scores, not logits",
        ),
        (["process.before=genmd4@0.4", "model.time_input=adaln"], "genmd4 conflicts with process.name=masked: its network learns"),
        (
            ["process.before=gaussian@0.4", "model.time_input=adaln"],
            "gaussian conflicts with .*masked: its network reads vectors",
        ),
        (["process.before=blocks@0.4", "model.family=qwen3(shift=True)"], "conflicts with the blocks of process.before"),
        (["process.before=autoregressive@0.5", "process.name=blocks(size=2, curriculum=((5, 4),))"], "first phase ends at step 5, but"),
    ],
)
def test_phases_that_cannot_be_trained_together_are_refused(overrides, says):
    tokenizer, config = load_tokenizer("char27"), smallest()
    config.train.steps, config.optimizer.warmup = 10, 2
    with pytest.raises(InputError, match=says) as error:
        config_lib.override(config, overrides)
        assemble(config, tokenizer, devices=jax.devices()[:1])
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "process",
    [
        "masked",
        pytest.param("autoregressive", marks=pytest.mark.slow),
        pytest.param("autoregressive(input_mask=0.5)", marks=pytest.mark.nightly),
    ],
)
def test_noise_against_repetition_is_in_the_loss_and_not_in_the_likelihood(process):
    """Dropout and hidden inputs change what is trained; the same weights have the same likelihood without them, to the bit."""
    tokenizer, length = load_tokenizer("char27"), 8
    rng = np.random.default_rng(0)
    rows = {"tokens": rng.integers(0, 26, (8, length)), "segments": np.ones((8, length)), "positions": np.tile(np.arange(length), (8, 1))}
    batch = {name: value.astype(np.int32) for name, value in {**rows, "row": np.arange(8)}.items()}
    found = []
    for name, rate in ((process, 0.5), (process.partition("(")[0], 0.0)):
        config = config_lib.default()
        config.data.update(length=length, batch=8)
        config.model.update(depth=1, width=8, heads=1, kv_heads=1, head_dim=8, ffn=8, dropout=rate)
        config.process.name = name
        experiment = assemble(config, tokenizer, devices=jax.devices()[:1])
        params = tiny.lively(jax.jit(experiment.init)(jax.random.key(0)))
        loss = jax.jit(experiment.loss_fn)
        totals = [float(loss(params, batch, jax.random.key(seed))[0]) for seed in (0, 1)]
        found.append((totals, experiment.evaluator(nodes=1).measure(params, [batch]).nats_WD))
    (noisy, nats_WD), (plain, same_WD) = found
    assert noisy[0] != plain[0] and noisy[0] != noisy[1]
    assert (plain[0] == plain[1]) == process.startswith("autoregressive")
    np.testing.assert_array_equal(nats_WD, same_WD)


def optioned(*overrides, devices=1):
    """A small experiment with two heads, whose rows are 8 tokens."""
    config = config_lib.default()
    config.data.update(length=8, batch=8)
    config.model.update(depth=2, width=16, heads=2, kv_heads=2, head_dim=8, ffn=16)
    config_lib.override(config, list(overrides))
    return assemble(config, load_tokenizer("char27"), devices=jax.devices()[:devices])


LOOPHOLING = ("process.self_condition=0.5", "process.hint=hidden")
PROGRESSIVE = ("process.masks=progressive(phases=2)",)


def test_each_further_pass_without_a_gradient_is_a_third_of_a_step():
    plain, looped = (optioned(*overrides).flops_per_token for overrides in ((), ("model.family=qwen3(loops=2, looped=(1, 2))",)))
    assert plain < looped < 1.5 * plain
    for overrides in (LOOPHOLING, PROGRESSIVE, (*LOOPHOLING, *PROGRESSIVE)):
        passes = 1 + sum(leaf.startswith(("process.masks", "process.hint")) for leaf in overrides) / 3
        assert optioned(*overrides).flops_per_token == pytest.approx(passes * plain)


@pytest.mark.slow
def test_a_step_with_every_option_is_the_same_on_any_mesh():
    """Loops, masks by confidence and hidden states as a hint: without ties, eight devices compute the loss and gradient of one."""
    overrides = (*LOOPHOLING, *PROGRESSIVE, "model.family=qwen3(loops=2, looped=(1, 2))")
    rng = np.random.default_rng(0)
    rows = {"tokens": rng.integers(0, 26, (8, 8)), "segments": np.ones((8, 8)), "positions": np.tile(np.arange(8), (8, 1))}
    batch = {name: value.astype(np.int32) for name, value in {**rows, "row": np.arange(8)}.items()}
    found = []
    for devices, mesh in ((1, ()), (8, ("mesh.data=2", "mesh.fsdp=2", "mesh.tensor=2"))):
        experiment = optioned(*overrides, *mesh, devices=devices)
        params = jax.device_put(tiny.lively(jax.jit(experiment.init)(jax.random.key(0))), experiment.param_shardings)
        loss = jax.jit(jax.value_and_grad(experiment.loss_fn, has_aux=True), compiler_options=tiny.AS_USED)
        (total, terms), gradient = loss(params, experiment.partition.put_batch(batch), jax.random.key(1))
        found.append(jax.device_get((total, terms, gradient)))
    (total, terms, gradient), (same, same_terms, same_gradient) = found
    np.testing.assert_allclose(total, same, rtol=1e-5)
    assert terms["corrupted"] == same_terms["corrupted"] > 0 and tiny.worst(gradient, same_gradient) < 1e-4


def test_a_hint_that_no_row_reads_is_refused():
    with pytest.raises(InputError, match="process.hint=hidden requires process.self_condition above 0"):
        optioned("process.hint=hidden")
