"""A sweep's file becomes a manifest: whole steps within their budgets, ids that follow from the content, refusals that say why."""

import dataclasses
import json
import pathlib
import time

import pytest

from dlmjax import config as config_lib
from dlmjax.cli.main import main
from dlmjax.cli.sweep_text import duration, table
from dlmjax.data.prepare import prepare
from dlmjax.errors import InputError
from dlmjax.sweep import manifest, planning
from dlmjax.sweep.definition import BatchRate, IsoFlop, Mixture, Objective, Repeated, Sweep
from dlmjax.sweep.manifest import Policy, SweepPlan, Validation
from dlmjax.sweep.records import append_record
from dlmjax.sweep.rules import BatchLaw, CompleteP, FixedBatch, RateLaw
from dlmjax.sweep.run_log import failed

CONFIGS = pathlib.Path(__file__).parents[2] / "configs"
SOURCE = str(CONFIGS / "sweeps" / "test.py")  # configs are named relative to it
MASKED, CAUSAL = "../masked.py:tiny", "../autoregressive.py:tiny"


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> str:
    """60,000 train tokens and some held-out ones."""
    root = tmp_path_factory.mktemp("data")
    (root / "a.txt").write_text("\n".join(f"line {number:05} of a text that says little" for number in range(2000)))
    prepare([root / "a.txt"], "bytes", root / "corpus", documents="line", valid_fraction=0.2)
    return str(root / "corpus")


def sweep(data, grid=None, **changes) -> Sweep:
    values = dict(name="s", objectives={"masked": MASKED}, grid=grid or IsoFlop((2e10,), (16, 32)), data=data, batch=FixedBatch(4))
    values["validation"] = Validation(windows=8)
    return Sweep(**{**values, **changes})


def plan(*arguments, device=None, **changes) -> SweepPlan:
    return planning.plan_sweep(sweep(*arguments, **changes), SOURCE, device)[0]


def test_a_plan_reads_back_as_it_was_written(data, tmp_path):
    made = plan(data, policy=Policy(retries=1), validation=Validation(windows=8))
    planning.write_plan(made, str(tmp_path))
    assert SweepPlan.read(tmp_path) == made
    for line, run in zip((tmp_path / "manifest.jsonl").read_text().splitlines(), made.runs, strict=True):
        config = config_lib.from_json(json.dumps(json.loads(line)["config"]))
        assert config.data.paths == (data,)
        assert {name: list(value) if isinstance(value, tuple) else value for name, value in config_lib.leaves(config).items()} == run.config


def test_equal_sweeps_have_equal_ids_and_any_leaf_another(data):
    ids = [run.id for run in plan(data).runs]
    assert ids == [run.id for run in plan(data).runs] and len(set(ids)) == 2
    assert ids[0].startswith("masked-2e10-w16-s0-")
    # A name that is not in the config, a leaf that changes nothing that is computed, one that does, and a seed.
    changed = [
        plan(data, objectives={"other": MASKED}),
        plan(data, checkpoints=2),
        plan(data, overrides=("optimizer.beta2=0.97",)),
        plan(data, IsoFlop((2e10,), (16, 32), seeds=(1,))),
        plan(data, overrides=("data.packing=documents",)),
    ]
    every = [run.id for each in changed for run in each.runs]
    assert len(set(every) | set(ids)) == len(every) + 2


def test_whole_steps_meet_the_budget_and_schedules_keep_their_shares(data):
    base = config_lib.leaves(config_lib.load(f"{CONFIGS}/masked.py:tiny"))
    for run in plan(data, IsoFlop((1e10, 4e10), (16, 24, 48))).runs:
        config, budget = run.config, run.cell["budget"]
        steps = config["train.steps"]
        assert run.tokens == steps * config["data.batch"] * config["data.length"]
        assert run.flops == pytest.approx(run.flops_per_token * run.tokens) == pytest.approx(budget, rel=0.03)
        assert config["optimizer.warmup"] == pytest.approx(steps * base["optimizer.warmup"] / base["train.steps"], abs=1)
        assert steps * (1 - config["train.ema"]) == pytest.approx(min(base["train.steps"] * (1 - base["train.ema"]), steps))
        assert config["log.evaluate"] == config["log.sample"] == 0 and -(-steps // config["checkpoint.every"]) == 4
        unchanged = ("optimizer.lr", "optimizer.schedule", "process.name", "data.length", "execution.scan")
        assert all(config[name] == base[name] for name in unchanged)


def test_rules_and_transfer_reach_the_config(data):
    batch, rate = BatchLaw(512, 1e5), RateLaw(1e-2, 512)
    runs = plan(
        data,
        batch=batch,
        rate=rate,
        transfer=CompleteP(32, 2),
        objectives={"masked": MASKED, "ar": Objective(CAUSAL, rate=RateLaw(1e-3, 512))},
    )
    for run in runs.runs:
        windows = run.config["data.batch"]
        assert windows == batch.windows(run.cell["budget"] / run.flops_per_token, 128)
        assert run.config["optimizer.lr"] == pytest.approx({"masked": 1e-2, "ar": 1e-3}[run.series] * (windows * 128 / 512) ** 0.34)
        assert (run.config["model.completep_width"], run.config["model.completep_depth"]) == (32, 2)
    assert len({run.config["data.batch"] for run in runs.runs}) > 1


def test_large_batches_come_in_microbatches_of_the_config(data):
    found = plan(data, BatchRate((16,), (2e5,), (32, 64, 96), (1e-3, 1e-2)), batch=None, overrides=("data.batch=32",))
    assert [(run.config["data.batch"], run.config["train.accumulation"], run.config["optimizer.lr"]) for run in found.runs] == [
        (batch, batch // 32, lr) for batch in (32, 64, 96) for lr in (1e-3, 1e-2)
    ]


def test_repeated_data_is_a_token_budget_seen_so_often(data):
    found = plan(data, Repeated((16,), (5_000, 20_000), (1, 4, 16)))
    for run in found.runs:
        unique = run.cell["unique_tokens"]
        assert run.config["data.paths"] == [f"{data}(tokens={unique})"]
        assert run.unique_tokens == unique // 128 * 128
        assert run.epochs == pytest.approx(run.cell["epochs"], rel=0.03)
    with pytest.raises(InputError, match="unique_tokens=10,000,000 is not from one window"):
        plan(data, Repeated((16,), (10_000_000,), (1,)))


def test_mixtures_weigh_their_corpora(data, tmp_path):
    (tmp_path / "b.txt").write_text("\n".join(f"another text {number}" for number in range(400)))
    prepare([tmp_path / "b.txt"], "bytes", tmp_path / "b", documents="line", valid_fraction=0.2)
    found = plan((data, str(tmp_path / "b")), Mixture((16,), (20_000,), ((0.5, 0.5), (0.9, 0.1))))
    assert [run.config["data.weights"] for run in found.runs] == [[0.5, 0.5], [0.9, 0.1]]
    assert "m0.5_0.5" in found.runs[0].id
    # Half of 20,000 tokens are more than the small corpus has, a tenth are not.
    assert found.runs[0].unique_tokens < found.runs[0].tokens and found.runs[1].unique_tokens == found.runs[1].tokens


def test_a_cell_that_cannot_be_met_is_refused_and_listed(data):
    found, refused = planning.plan_sweep(sweep(data, IsoFlop((2e9,), (16, 24, 64)), batch=FixedBatch(8)), SOURCE)
    assert [run.cell["width"] for run in found.runs] == [16, 24]
    (refusal,) = refused
    assert refusal.point["width"] == 64 and "steps of 1,024, fewer than 10" in refusal.reason
    text = table(found, refused, planning.Device())
    assert "refused: 1 sweep points" in text and "w64: " in text
    # Twelve steps and a half are four per cent off either way.
    tokens = 12.5 * 4 * 128
    words = r"no size of the objective masked meets any sweep point within 3 %: width 16: 12 whole steps .* -4.0 % off"
    with pytest.raises(InputError, match=words):
        plan(data, BatchRate((16,), (tokens,), (4,), (1e-3,)))


def test_a_cell_that_ends_before_its_curriculum_is_refused_and_listed(data):
    objectives = {"masked": Objective("../blocks.py:tiny", overrides=("process.name=blocks(curriculum=((200, 8),))",))}
    found, refused = planning.plan_sweep(sweep(data, IsoFlop((2e10,), (16, 32)), objectives=objectives), SOURCE)
    steps = [run.config["train.steps"] for run in found.runs]
    assert [run.cell["width"] for run in found.runs] == [16] and min(steps) > 200
    assert [refusal.point["width"] for refusal in refused] == [32] and "ends at step 200, but train.steps is" in refused[0].reason


def test_a_budget_that_no_size_meets_is_an_error(data):
    with pytest.raises(InputError, match=r"no size of the objective masked meets the budget 1e\+08 within 3 %: width 16: .*; width 32: "):
        plan(data, IsoFlop((2e10, 1e8), (16, 32)))


def test_the_table_says_what_a_run_costs(data):
    device = planning.device_of("h100", 0.5, None)
    made, refused = planning.plan_sweep(
        sweep(data, IsoFlop((2e10,), (16, 32)), objectives={"masked": MASKED, "ar": CAUSAL}), SOURCE, device
    )
    text = table(made, refused, device)
    head = next(line for line in text.splitlines() if line.startswith("objective"))
    first = next(line for line in text.splitlines() if line.startswith("masked") and "1 x 16" in line)
    assert [word in head for word in ("params", "tokens", "steps", "batch", "lr", "FLOPs", "unique", "epochs", "time")] == [True] * 9
    run = made.runs[0]
    steps, lr = (run.config[name] for name in ("train.steps", "optimizer.lr"))
    assert f"{steps:,}" in first and f"{lr:g}" in first and "*" in first, "more than one epoch is marked"
    assert run.expected_seconds == pytest.approx(run.flops / (989e12 * 0.5))
    assert "4 runs, " in text and "50 % of it assumed" in text and "see their corpus more than once" in text
    assert "GiB/chip" not in head
    assert [duration(s) for s in (0.5, 42, 300, 9000, 1e6, None)] == ["0.5 s", "42 s", "5.0 min", "2.5 h", "11.6 d", "-"]


def test_memory_on_a_topology(data):
    device = planning.device_of("h100:8", 0.4, None)
    grid = IsoFlop((2e10,), (16, 32))
    made, refused = planning.plan_sweep(sweep(data, grid, batch=FixedBatch(8)), SOURCE, device)
    assert all(1e5 < run.peak_bytes < 1e9 for run in made.runs) and made.runs[0].peak_bytes < made.runs[1].peak_bytes
    assert "every run fits" in table(made, refused, device)
    small = dataclasses.replace(
        device, topology=dataclasses.replace(device.topology, chip=dataclasses.replace(device.topology.chip, memory=1e5))
    )
    assert "does not fit" in table(made, refused, small)
    with pytest.raises(InputError, match=r"width 16: .*4.*8"):  # windows over chips
        planning.plan_sweep(sweep(data, grid, batch=FixedBatch(4)), SOURCE, device)


def test_a_plan_without_a_corpus():
    found, refused = planning.plan_sweep(sweep("", overrides=("model.vocab=50304",)), SOURCE)
    assert found.runs[0].unique_tokens == found.runs[0].tokens and found.runs[0].epochs == 1
    assert "no corpus is named" in table(found, refused, planning.Device())
    with pytest.raises(InputError, match="has no vocabulary"):
        plan("")
    with pytest.raises(InputError, match="names no corpus"):
        plan("", Repeated((16,), (5_000,), (1,)), overrides=("model.vocab=50304",))


def test_a_directory_with_runs_takes_only_plans_that_keep_them(data, tmp_path):
    first = plan(data)
    planning.write_plan(first, str(tmp_path))
    (tmp_path / "runs" / first.runs[0].id).mkdir(parents=True)
    more = plan(data, IsoFlop((2e10,), (16, 32, 48)))
    planning.write_plan(more, str(tmp_path))
    assert len(SweepPlan.read(tmp_path).runs) == 3
    with pytest.raises(InputError, match=r"holds 1 runs that this plan lacks, such as masked-2e10-w16"):
        planning.write_plan(plan(data, IsoFlop((2e10,), (32,))), str(tmp_path))
    with pytest.raises(InputError, match="are measured by"):
        planning.write_plan(plan(data, validation=Validation(windows=9)), str(tmp_path))
    assert SweepPlan.read(tmp_path) == more


def records_of(runs, validation, root):
    for run in runs:
        append_record(root / "records.jsonl", failed(run, validation, 0, 0, Policy(), "no luck"))


def test_records_keep_a_directory_as_its_folders_do(data, tmp_path):
    first = plan(data)
    first.write(tmp_path)
    records_of(first.runs[:1], first.validation, tmp_path)  # its folder was deleted
    for other, said in (
        (plan(data, IsoFlop((2e10,), (32,))), "holds 1 runs that this"),
        (plan(data, validation=Validation(windows=9)), "are measured by 8 windows"),
    ):
        with pytest.raises(InputError, match=said):
            planning.write_plan(other, str(tmp_path))
    (tmp_path / "sweep.json").unlink()
    with pytest.raises(InputError, match="are measured by 8 windows"):
        planning.write_plan(plan(data, validation=Validation(windows=9)), str(tmp_path))


def test_lines_keep_their_places_when_a_plan_grows(data, tmp_path):
    small, grown = plan(data, IsoFlop((2e10,), (24, 48))), plan(data, IsoFlop((2e10,), (16, 24, 32, 48)))
    planning.write_plan(small, str(tmp_path))
    planning.write_plan(grown, str(tmp_path))
    assert [run.cell["width"] for run in SweepPlan.read(tmp_path).runs] == [24, 48, 16, 32]
    assert {run.id for run in SweepPlan.read(tmp_path).runs} == {run.id for run in grown.runs}
    planning.write_plan(plan(data, IsoFlop((2e10,), (16, 32, 48))), str(tmp_path))  # nobody began that of 24
    assert [run.cell["width"] for run in SweepPlan.read(tmp_path).runs] == [48, 16, 32]


@pytest.mark.parametrize("damaged", ["sweep.json", "manifest.jsonl"])
def test_a_damaged_plan_is_mended_by_planning_again(data, tmp_path, damaged):
    small, grown = plan(data, IsoFlop((2e10,), (24, 48))), plan(data, IsoFlop((2e10,), (16, 24, 48)))
    planning.write_plan(small, str(tmp_path))
    planning.write_plan(grown, str(tmp_path))
    written = SweepPlan.read(tmp_path)
    records_of(small.runs[:1], small.validation, tmp_path)
    (tmp_path / "runs" / f"{small.runs[1].id}.retry-1").mkdir(parents=True)
    (tmp_path / "runs" / "notes").mkdir()
    text = (tmp_path / damaged).read_text().replace("train.steps", "train.step").replace("runs", "run")
    (tmp_path / damaged).write_text(text)
    with pytest.raises(InputError, match="plan the sweep again"):
        SweepPlan.read(tmp_path)
    for widths, gone in (((16, 48), small.runs[0]), ((16, 24), small.runs[1])):
        with pytest.raises(InputError, match=f"1 runs that this plan lacks, such as {gone.id}"):
            planning.write_plan(plan(data, IsoFlop((2e10,), widths)), str(tmp_path))
    planning.write_plan(grown, str(tmp_path))
    assert SweepPlan.read(tmp_path) == written


def test_a_plan_that_was_killed_while_it_grew_is_read_and_grown_again(data, tmp_path, monkeypatch):
    small, grown = plan(data), plan(data, IsoFlop((2e10,), (16, 24, 32)))
    small.write(tmp_path)
    head = json.loads((tmp_path / "sweep.json").read_text())
    del head["ids"]  # of before there were any
    (tmp_path / "sweep.json").write_text(json.dumps(head))
    (tmp_path / "runs" / small.runs[0].id).mkdir(parents=True)
    write = manifest.write_atomically

    def killed(path, content):
        write(path, content)
        if path.name == "manifest.jsonl":
            raise KeyboardInterrupt

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(manifest, "write_atomically", killed)
        planning.write_plan(grown, str(tmp_path))
    assert len((tmp_path / "manifest.jsonl").read_text().splitlines()) == 3
    assert SweepPlan.read(tmp_path) == small
    planning.write_plan(grown, str(tmp_path))
    assert [run.cell["width"] for run in SweepPlan.read(tmp_path).runs] == [16, 32, 24]


def test_runs_of_a_shape_that_was_seen_cost_milliseconds(data):
    """500 runs are to be planned in 10 s (docs/scaling_plan.md has the measured time); here 60, in the processor's own time."""
    seconds = []
    for seeds in ((0,), (0,), range(31)):
        start = time.process_time()
        assert len(plan(data, IsoFlop((2e10,), (16, 32), seeds=seeds)).runs) == 2 * len(seeds)
        seconds.append(time.process_time() - start)
    assert seconds[2] - seconds[1] < 60 * 0.015


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(overrides=("optimizer.schedule=constant",)), "schedule=constant never decays"),
        (dict(overrides=("optimizer.schedule=wsd", "optimizer.decay=0.0")), "decay=0 never decays"),
        (dict(overrides=("optimizer.final=1.0",)), "final=1.0 never decays"),
        (dict(validation=Validation(windows=122)), r"has 121 windows of 128 in its split valid, .*; give Validation\(windows=121\)"),
        (dict(validation=Validation(windows=8, rule="count"), objectives={"u": "../uniform.py:tiny"}), "rule=count"),
        (dict(batch=BatchLaw(1e300, 1)), "check its numbers"),
        (dict(validation=Validation(split="test")), "has no split 'test'"),
        (dict(objectives={"masked": "../nothing.py"}), "nothing.py does not exist"),
        (dict(overrides=("optimizer.rate=1",)), "no field 'optimizer.rate'"),
        (dict(data="nowhere"), "holds no prepared corpus"),
    ],
)
def test_what_a_sweep_may_not_be(data, changes, message):
    with pytest.raises(InputError, match=message):
        plan(**{"data": data, **changes})


def test_a_corpus_shorter_than_a_window_is_refused(data):
    with pytest.raises(InputError, match=r"\(tokens=30\) has 30 train tokens, fewer than one window of 128"):
        plan(f"{data}(tokens=30)")


def test_microbatches_are_the_fewest_that_fit_however_large_the_batch():
    assert [planning.microbatches(batch, 32, 1) for batch in (16, 32, 48, 64, 97)] == [1, 1, 2, 2, 97]
    assert [planning.microbatches(batch, 32, 24) for batch in (24, 48, 240)] == [1, 2, 10]
    assert planning.microbatches(48, 32, 48) == 1
    assert planning.microbatches(2**1000, 32, 1) == 2**995


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("h200x", 0.4, None), "chip 'h200x' is unknown; did you mean h200"),
        (("h100", 1.5, None), "--utilisation is 1.5"),
        ((None, 0.4, -1.0), "--flops-per-second is -1.0"),
    ],
)
def test_devices_that_are_none(flags, message):
    with pytest.raises(InputError, match=message):
        planning.device_of(*flags)


def test_the_command_prints_and_writes(data, tmp_path, capsys):
    quick = str(CONFIGS / "sweeps" / "quick.py")
    command = ["sweep", "plan", quick, "--set", f"data={data}", "--flops-per-second", "1e10"]
    assert main([*command, "--set", "budget=1e10"]) == 0
    assert "sweep quick: 4 runs of 2 objectives" in capsys.readouterr().out
    assert main([*command, "--output", str(tmp_path / "out")]) == 0
    out = capsys.readouterr().out
    assert "1e+10 model FLOP/s, as given" in out and f"dlmjax sweep run {tmp_path / 'out'}" in out
    assert {run.cell["budget"] for run in SweepPlan.read(tmp_path / "out").runs} == {2e10}
    (tmp_path / "file").touch()
    for output, said in (("", "--output is empty"), (tmp_path / "file", "name a folder"), (tmp_path / "file" / "in", "not a folder")):
        assert main([*command, "--output", str(output)]) == 2
        printed = capsys.readouterr()
        assert said in printed.err and printed.err.count("\n") == 1 and not printed.out, "before anything is planned"
    assert main([*command, "--set", "budgets=1"]) == 2
    assert "takes no 'budgets'; did you mean 'budget'?" in capsys.readouterr().err


def test_more_tokens_than_are_counted_are_refused():
    """A manifest of such a run could not be read again: its integers have more than 64 bits."""
    assert "more than the 9.01e+15" in planning._refused(2**60, 2**70, 2.0**70, 1024)
    assert planning._refused(100, 102_400, 102_400, 1024) == ""
