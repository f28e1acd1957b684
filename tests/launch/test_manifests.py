"""What the launchers would start, without a cluster: the JobSet beside its published models, gcloud's commands, Slurm's script, costs."""

import json
import os
import pathlib
import re
import shlex
import subprocess
import sys
import time

import pytest

from dlmjax.errors import InputError
from launch import cost, kubernetes, slurm, tpu_vm
from launch.command import read_train

ROOT = pathlib.Path(__file__).parents[2]
CONFIG = ["--config", str(ROOT / "configs/masked.py:tiny"), "--config.data.batch=64"]
LLADA = ["--config", str(ROOT / "configs/llada_8b.py"), "--workdir", "gs://bkt/8b", "--config.data.paths=gs://bkt/data"]
ON_BUCKET = [*CONFIG, "--workdir", "gs://my-bucket/masked", "--config.data.paths=gs://my-bucket/data"]
TPU = ["--tpu", "v5p:4x4x4", "--image", "an/image:1"]
VM = ["--name", "mine", "--zone", "us-east5-a"]


def printed(capsys, module, *flags):
    assert module.main([*flags, "--dry-run"]) == 0
    return capsys.readouterr().out


def jobset(capsys, *flags):
    return json.loads(printed(capsys, kubernetes, *flags))


def pod_of(made):
    return made["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]


# --- Kubernetes ---------------------------------------------------------------------------------------------------------------------

VARIANTS = {
    "tpu": [*TPU, *ON_BUCKET],
    "one host": ["--tpu", "v6e:2x4", "--image", "i", *ON_BUCKET],
    "gpu": ["--gpu", "h100:2x8", "--image", "i", "--spot", "--service-account", "writer", *ON_BUCKET],
    "claim": [
        "--gpu",
        "h200:4x8",
        "--image",
        "i",
        "--claim",
        "nfs=/mnt/nfs",
        *CONFIG,
        "--workdir",
        "/mnt/nfs/run",
        "--config.data.paths=/mnt/nfs/data",
    ],
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_manifest_is_what_the_published_models_accept(capsys, variant):
    """Every field is known to the JobSet, Job and Pod models, of their types, and none is missing: they give back all that they read."""
    models = pytest.importorskip("kubeflow_trainer_api.models", reason="pip install kubeflow-trainer-api for the published JobSet models")
    made = jobset(capsys, *VARIANTS[variant])
    assert models.JobsetV1alpha2JobSet.from_dict(made).to_dict() == made
    made["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]["spec"]["containers"][0]["volumeMount"] = []
    assert models.JobsetV1alpha2JobSet.from_dict(made).to_dict() != made  # a misspelt field would be seen


def test_a_tpu_slice_is_one_job_with_a_pod_for_each_host(capsys):
    made = jobset(capsys, *VARIANTS["tpu"])
    (replicated,) = made["spec"]["replicatedJobs"]
    job, spec = replicated["template"]["spec"], pod_of(made)["spec"]
    assert replicated["replicas"] == 1 and job["completionMode"] == "Indexed" and job["completions"] == job["parallelism"] == 16
    assert spec["nodeSelector"] == {
        "cloud.google.com/gke-tpu-accelerator": "tpu-v5p-slice",
        "cloud.google.com/gke-tpu-topology": "4x4x4",
    }
    (container,) = spec["containers"]
    assert container["resources"]["limits"] == container["resources"]["requests"] == {"google.com/tpu": "4"}
    environment = {entry["name"]: entry for entry in container["env"]}
    assert environment["DLMJAX_COORDINATOR"]["value"].partition(":")[0] == "masked-hosts-0-0.masked"
    assert made["metadata"]["name"] == made["spec"]["network"]["subdomain"] == "masked"
    assert environment["DLMJAX_PROCESSES"]["value"] == "16"
    assert environment["DLMJAX_PROCESS"]["valueFrom"]["fieldRef"]["fieldPath"].endswith("['batch.kubernetes.io/job-completion-index']")


def test_bad_input_and_defects_end_the_jobset_and_all_else_starts_it_again(capsys):
    made = jobset(capsys, *VARIANTS["tpu"], "--max-requeues", "7", "--save-seconds", "120")
    job = made["spec"]["replicatedJobs"][0]["template"]["spec"]
    (rule,) = job["podFailurePolicy"]["rules"]
    assert (rule["action"], rule["onExitCodes"]["operator"], rule["onExitCodes"]["values"]) == ("FailJob", "In", [1, 2])
    assert rule["onExitCodes"]["containerName"] == pod_of(made)["spec"]["containers"][0]["name"]
    assert job["backoffLimit"] == 0 and pod_of(made)["spec"]["restartPolicy"] == "Never"  # which the policy needs
    (of_set,) = made["spec"]["failurePolicy"]["rules"]
    assert of_set["action"] == "FailJobSet" and of_set["onJobFailureReasons"] == ["PodFailurePolicy"]
    assert made["spec"]["failurePolicy"]["maxRestarts"] == 7 and pod_of(made)["spec"]["terminationGracePeriodSeconds"] == 120


def test_buckets_are_mounted_where_the_command_looks(capsys):
    pod = pod_of(jobset(capsys, *VARIANTS["gpu"]))
    (container,) = pod["spec"]["containers"]
    command = container["command"]
    assert command[:4] == ["python", "launch/unfinished.py", "dlmjax", "train"] and command[-1] == "--json"
    assert read_train([flag.replace("configs/", f"{ROOT}/configs/") for flag in command[4:]]).workdir == "/gcs/my-bucket/masked"
    assert "--config.data.paths=/gcs/my-bucket/data" in command and "configs/masked.py:tiny" in command
    volumes = {volume["name"]: volume for volume in pod["spec"]["volumes"]}
    mounts = {mount["mountPath"]: mount["name"] for mount in container["volumeMounts"]}
    assert volumes[mounts["/gcs/my-bucket"]]["csi"]["volumeAttributes"]["bucketName"] == "my-bucket"
    assert volumes[mounts["/dev/shm"]]["emptyDir"] == {"medium": "Memory"}
    assert pod["metadata"]["annotations"] == {"gke-gcsfuse/volumes": "true"}
    assert pod["spec"]["nodeSelector"]["cloud.google.com/gke-spot"] == "true" and pod["spec"]["serviceAccountName"] == "writer"


def test_a_run_to_start_from_is_mounted_too(capsys):
    pod = pod_of(jobset(capsys, *TPU, *ON_BUCKET, "--init", "gs://others/run"))
    (container,) = pod["spec"]["containers"]
    assert container["command"][container["command"].index("--init") + 1] == "/gcs/others/run"
    assert {mount["mountPath"] for mount in container["volumeMounts"]} == {"/gcs/my-bucket", "/gcs/others"}


def test_the_image_holds_what_the_manifest_starts():
    lines = (ROOT / "launch/Dockerfile").read_text().splitlines()
    copied = {word for line in lines if line.startswith("COPY") for word in line.split()[1:-1]}
    assert {"dlmjax", "configs", "launch", "setup.py", "requirements.lock"} <= copied
    assert all((ROOT / name).exists() for name in copied) and f"WORKDIR {kubernetes.HOME}" in lines


@pytest.mark.parametrize(
    "module, flags, said",
    [
        (kubernetes, ["--tpu", "v5p:4x4", "--image", "i", *ON_BUCKET], "3 sizes"),
        (kubernetes, ["--tpu", "v9:4x4", "--image", "i", *ON_BUCKET], "generation 'v9' is unknown"),
        (kubernetes, ["--tpu", "v5p:1x1x1", "--image", "i", *ON_BUCKET], "not a whole number of hosts"),
        (kubernetes, ["--gpu", "h100:8", "--image", "i", *ON_BUCKET], "NODESxGPUS"),
        (kubernetes, [*TPU, *ON_BUCKET, "--config.mesh.tensor=3"], "does not divide 64"),
        (kubernetes, [*TPU, *ON_BUCKET, "--config.data.batch=96"], "batch=96 is not a multiple of the mesh's data x fsdp = 64"),
        (kubernetes, [*TPU, *ON_BUCKET, "--config.train.accumulation=2"], "batch=32 is not a multiple"),
        (kubernetes, [*TPU, *ON_BUCKET, "--config.mesh.tensor=8"], "heads=4 is not a multiple"),
        (kubernetes, ["--tpu", "v5p:8x8x8", "--image", "i", *LLADA], "batch=1280 is not a multiple of the mesh's data x fsdp = 512"),
        (kubernetes, ["--gpu", "h100:8x8", "--image", "i", *LLADA], "attention=splash with execution.dtype=bfloat16 does not run on a GPU"),
        (
            kubernetes,
            [*TPU, *LLADA, "--config.execution.attention=cudnn"],
            "dtype=bfloat16 does not run on a TPU",
        ),
        (slurm, ["--gpus-per-node", "64", *LLADA], "does not run on a GPU; pass --config.execution.attention=cudnn"),
        (slurm, ["--nodes", "4", "--gpus-per-node", "8", *LLADA, "--config.execution.attention=cudnn"], "fsdp=64"),
        (
            slurm,
            ["--gpus-per-node", "8", *CONFIG, "--workdir", "w", "--config.execution.attention=cudnn"],
            "cudnn with execution.dtype=float32",
        ),
        (tpu_vm, ["run", *VM, "--tpu", "v5p:2x2x2", *ON_BUCKET, "--config.data.batch=12"], "batch=12 is not a multiple"),
        (kubernetes, [*TPU, *ON_BUCKET, "--init", "runs/other"], "--init runs/other is not on a volume"),
        (tpu_vm, ["start", *VM, *ON_BUCKET, "--fork=/tmp/other"], "--fork /tmp/other is not on a volume"),
        (kubernetes, [*TPU, *ON_BUCKET, "--fresh"], "--fresh conflicts with a JobSet"),
        (kubernetes, ["--gpu", "h100:2x8", "--image", "i", *ON_BUCKET, "--fresh"], "--fresh conflicts with a JobSet"),
        (tpu_vm, ["run", *VM, "--tpu", "v5p:2x2x2", *ON_BUCKET, "--fresh"], "--fresh conflicts with run"),
        (kubernetes, [*TPU, *ON_BUCKET, "--config.model.widht=3"], "width"),
        (kubernetes, [*TPU, *ON_BUCKET, "--max-requeue", "3"], "--max-requeue"),
        (kubernetes, [*TPU, *CONFIG, "--workdir", "runs/a", "--config.data.paths=gs://bkt/data"], "runs/a is not on a volume"),
        (kubernetes, [*TPU, *CONFIG, "--workdir", "gs://bkt/a", "--config.data.paths=data"], "data is not on a volume"),
        (kubernetes, [*TPU, *CONFIG, "--workdir", "gs://B/a", "--config.data.paths=gs://bkt/data"], "gs://B is not a bucket name"),
        (kubernetes, [*TPU, *ON_BUCKET, "--name", "My_Run"], "--name"),
        (kubernetes, [*TPU, *ON_BUCKET, "--claim", "nfs"], "--claim"),
        (slurm, ["--nodes", "0", *CONFIG, "--workdir", "w"], "--nodes is 0"),
        (slurm, ["--time", "soon", *CONFIG, "--workdir", "w"], "--time"),
        (slurm, ["--time", "5", "--save-seconds", "300", *CONFIG, "--workdir", "w"], "is not below --time"),
        (slurm, ["--gpus-per-node", "8", "--tasks-per-node", "3", *CONFIG, "--workdir", "w"], "one"),
        (slurm, ["--setup", "a\nb", *CONFIG, "--workdir", "w"], "one line"),
        (slurm, [*CONFIG], "--workdir"),
        (tpu_vm, ["create", *VM], "--tpu"),
        (tpu_vm, ["create", *VM, "--tpu", "tpu7x:2x2x1"], "Kubernetes only"),
        (tpu_vm, ["start", *VM], "--config"),
        (
            tpu_vm,
            ["run", *VM, "--tpu", "v5p:2x2x2", *CONFIG, "--workdir", "runs/a", "--config.data.paths=gs://bkt/data"],
            "not on a volume",
        ),
        (tpu_vm, ["delete", "--name", "mine", "--zone", "east"], "--zone"),
    ],
    ids=lambda value: "",
)
def test_bad_input_is_refused_before_anything_is_asked_for(module, flags, said):
    with pytest.raises(InputError) as refused:
        module.main([*flags, "--dry-run"])
    assert said in str(refused.value) and "\n" not in str(refused.value)


@pytest.mark.parametrize("name", ["slurm", "kubernetes", "tpu_vm", "cost"])
def test_a_launcher_is_a_program_that_says_what_is_wrong_in_one_line(name, tmp_path):
    """From any folder; the name of a launcher hides no package of the same name."""
    done = subprocess.run(
        [sys.executable, str(ROOT / f"launch/{name}.py"), "--nonsense"], capture_output=True, text=True, cwd=tmp_path, timeout=60
    )
    assert done.returncode == 2 and done.stderr.startswith(f"launch/{name}.py: ") and len(done.stderr.splitlines()) == 1
    helped = subprocess.run(
        [sys.executable, str(ROOT / f"launch/{name}.py"), "--help"], capture_output=True, text=True, cwd=tmp_path, timeout=60
    )
    assert helped.returncode == 0 and "--config" in helped.stdout


def test_a_start_anew_by_hand_is_a_single_start(capsys):
    """`start` is not repeated by anybody, and Slurm says by its variables that a job was started before."""
    assert "train --config" in printed(capsys, tpu_vm, "start", *VM, *ON_BUCKET, "--fresh")
    assert "--fresh" in printed(capsys, slurm, *CONFIG, "--workdir", "w", "--fresh")


# --- TPU VMs ------------------------------------------------------------------------------------------------------------------------


def test_the_plan_of_a_whole_run(capsys):
    lines = printed(capsys, tpu_vm, "run", *VM, "--tpu", "v5p:2x2x2", "--spot", "--project", "p", *ON_BUCKET).splitlines()
    commands = [shlex.split(line) for line in lines]
    assert [command[3:5] for command in commands if command[0] == "gcloud"] == [
        ["queued-resources", "create"],
        ["queued-resources", "describe"],
        ["tpu-vm", "scp"],
        ["tpu-vm", "ssh"],
        ["tpu-vm", "ssh"],
        ["tpu-vm", "ssh"],
        ["queued-resources", "delete"],
    ]
    assert all({"--zone=us-east5-a", "--project=p"} <= set(command) for command in commands if command[0] == "gcloud")
    create, delete, start = commands[0], commands[-1], " ".join(commands[5])
    assert {"--node-id=mine", "--type=v5p", "--topology=2x2x2", "--runtime-version=v2-alpha-tpuv5", "--spot"} <= set(create)
    assert {"--force", "--quiet"} <= set(delete)
    assert "--worker=all" in commands[3] and "--worker=all" in commands[5] and "--worker=0" in commands[6]
    assert "--workdir /gcs/my-bucket/masked" in start and "gcsfuse --implicit-dirs my-bucket /gcs/my-bucket" in start


# Stands where gcloud would: `ssh` runs the worker's shell text on this machine, in a folder that is the worker's home; the queue has
# machines at once, and loses them once, while the first run is going on. What it does is written down.
GCLOUD = r"""
echo "$3 $4" >> "$WORKER/asked"
case "$3 $4" in
    "queued-resources describe") if [ -e "$WORKER/lost" ]; then echo SUSPENDED; else echo ACTIVE; fi ;;
    "queued-resources delete") rm -f "$WORKER/lost" ;;
    "tpu-vm ssh")
        for word; do
            case $word in
                --command=*pip\ install*) ;;
                --command=*) cd "$WORKER" && exec bash -c "${word#--command=}" ;;
            esac
        done ;;
esac
"""
# Ends as the next word of the file `plan` says.
DLMJAX = r"""
cd "$WORKER"
read -r now rest < plan
echo "$rest" > plan
echo "a line of the log"
case $now in
    lost) touch lost; exit 75 ;;
    preempted) echo '{"step": 3, "finished": false}' ;;
    finished) echo '{"step": 9, "finished": true}' ;;
    wait) trap "echo '{\"finished\": false}'; exit 0" TERM; touch ready; while :; do sleep 0.05; done ;;
    *) exit "$now" ;;
esac
"""


@pytest.fixture
def worker(tmp_path):
    """A folder that is the worker's home, whose `dlmjax` is a stand-in that ends as the file `plan` says, line by line."""
    home, bin_ = tmp_path / "home", tmp_path / "bin"
    (home / "dlmjax/.venv/bin").mkdir(parents=True)
    (home / "dlmjax/launch").symlink_to(ROOT / "launch")
    (home / "dlmjax/.venv/bin/python").symlink_to(sys.executable)
    bin_.mkdir()
    for path, text in ((bin_ / "gcloud", GCLOUD), (home / "dlmjax/.venv/bin/dlmjax", DLMJAX)):
        path.write_text(f"#!/bin/bash{text}")
        path.chmod(0o755)
    for name in ("mountpoint", "tar"):
        (bin_ / name).symlink_to("/bin/true")
    return home, {**os.environ, "PATH": f"{bin_}:{os.environ['PATH']}", "WORKER": str(home)}


def vm(environment, action, *flags):
    command = [sys.executable, str(ROOT / "launch/tpu_vm.py"), action, *VM, "--poll-seconds", "0", "--back-off-seconds", "0", *flags]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)


@pytest.mark.parametrize(
    "plan, code, created",
    [("lost preempted finished", 0, 2), ("2", 2, 1), ("lost lost", 75, 2)],
)
def test_machines_that_are_taken_away_are_asked_for_again(worker, plan, code, created):
    home, environment = worker
    (home / "plan").write_text(plan)
    done = vm(environment, "run", "--tpu", "v5p:2x2x2", "--max-requeues", "1", *ON_BUCKET)
    assert done.returncode == code, done.stderr
    asked = (home / "asked").read_text().splitlines()
    assert asked.count("queued-resources create") == asked.count("queued-resources delete") == created
    assert asked[-1] == "queued-resources delete"  # nothing is left that is paid for
    assert "a line of the log" in done.stdout


def test_a_run_is_stopped_and_not_started_twice(worker):
    home, environment = worker
    (home / "plan").write_text("wait")
    assert vm(environment, "start", *ON_BUCKET).returncode == 0
    deadline = time.monotonic() + 30
    while not (home / "ready").exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    again = vm(environment, "start", *ON_BUCKET)
    assert again.returncode == 2 and "stop it first" in again.stderr
    assert vm(environment, "stop").returncode == 0
    followed = vm(environment, "follow")
    assert followed.returncode == 75 and '"finished": false' in followed.stdout


# --- Slurm's script, the cost -------------------------------------------------------------------------------------------------------


def test_the_slurm_script(capsys):
    flags = [
        "--nodes",
        "4",
        "--gpus-per-node",
        "8",
        "--time",
        "1-02:00:00",
        "--save-seconds",
        "120",
        "--sbatch=--qos=high",
        "--max-requeues",
        "5",
    ]
    text = printed(capsys, slurm, *flags, "--setup", "module load cuda", *CONFIG, "--workdir", "runs/it's mine")
    options = [line.removeprefix("#SBATCH ") for line in text.splitlines() if line.startswith("#SBATCH ")]
    assert {"--nodes=4", "--ntasks-per-node=1", "--gpus-per-node=8", "--time=1-02:00:00", "--signal=TERM@120", "--requeue"} <= set(options)
    assert {"--open-mode=append", "--qos=high", "--job-name=it-s-mine"} <= set(options)
    assert text.index("module load cuda\n") < text.index("srun ")
    command = shlex.split(next(line for line in text.splitlines() if line.startswith("srun ")).removesuffix("&"))
    assert command[-3:] == ["--workdir", "runs/it's mine", "--json"] and "--kill-on-bad-exit=0" in command
    assert subprocess.run(["bash", "-n"], input=text, text=True).returncode == 0


def test_the_cost_is_chips_times_hours_times_price(capsys):
    flags = ["--config.train.steps=1000", "--config.data.batch=36", "--config.data.length=100"]
    assert cost.main(["--chips", "10", "--price", "2", "--speed", "100", "--devices", "20", *CONFIG, *flags]) == 0
    assert "0.50 hours" in (out := capsys.readouterr().out) and "= 10.00" in out  # 3.6 M tokens at 2,000 a second


def test_the_commands_of_the_pages_are_accepted(capsys):
    """Each line that starts a launcher; those that would start something, as a dry run."""
    launchers = {"slurm": slurm, "kubernetes": kubernetes, "tpu_vm": tpu_vm}
    pages = "".join((ROOT / page).read_text() for page in ("docs/launch.md", "README.md"))
    found = re.findall(r"^python launch/(\w+)\.py (.*)$", pages, re.MULTILINE)
    for name, flags in found:
        words = [f"{ROOT}/{word}" if word.startswith("configs/") else word for word in shlex.split(flags)]
        if name in launchers:
            assert launchers[name].main([*words, *([] if "--dry-run" in words else ["--dry-run"])]) == 0
        elif name == "cost":
            assert cost.main(words) == 0
    assert {name for name, _ in found} == {*launchers, "cost", "local"}


# --- The exit code that schedulers see ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "program, code",
    [
        ("print('{\"finished\": true}')", 0),
        ("print('{\"finished\": false}')", 75),
        ('print(\'{"finished": false}\'); print("more")', 75),
        ("print('{\"step\": 3}')", 0),
        ("print('{\"finished\": false}', flush=True); sys.exit(2)", 2),
        ("sys.exit(75)", 75),
        ("os.kill(os.getpid(), 9)", 137),
        ("print('{')", 0),
    ],
)
def test_an_unfinished_run_ends_with_75(program, code):
    command = [sys.executable, str(ROOT / "launch/unfinished.py"), sys.executable, "-c", f"import os, sys; {program}"]
    assert subprocess.run(command, stdout=subprocess.DEVNULL, timeout=60).returncode == code


def test_sigterm_goes_on_to_the_command():
    program = (
        "import signal, sys; signal.signal(15, lambda *_: (print('{\"finished\": false}'), sys.exit(0))); print('ready'); signal.pause()"
    )
    command = [sys.executable, str(ROOT / "launch/unfinished.py"), sys.executable, "-c", program]
    child = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert child.stdout.readline() == "ready\n"
    child.terminate()
    assert child.communicate(timeout=60)[0] == '{"finished": false}\n' and child.returncode == 75


# --- what is refused before a machine is asked for ------------------------------------------------------------------------------------

LAUNCHERS = {
    "slurm": (slurm, [*CONFIG, "--workdir", "runs/x"]),
    "kubernetes": (kubernetes, VARIANTS["tpu"]),
    "tpu_vm": (tpu_vm, ["start", *VM, *ON_BUCKET]),
}
MISTYPED = (
    "process.name=maskd",
    "process.name=blocks(sice=4)",
    "process.times=stratfied",
    "process.schedule=linar",
    "process.weighting=bund",
)
MISTYPED += (  # names of values, and types of values
    "process.name=hybrid(p_uniform=x)",
    "process.schedule=polynomial(powr=2)",
    "process.times=power(exponent=x)",
    "process.weighting=capped(cp=3)",
    "model.family=llama(norm_ep=1e-5)",
    "model.time_input=adaln(features=3)",
    "process.name.p_uniform=0.3",
    "data.paths=x(token=3)",
)
MISTYPED += ("model.family=quen3", "model.time_input=adalin", "optimizer.name=adamv", "process.name=masked(foo=", "data.length=1e25")


@pytest.mark.parametrize("leaf", MISTYPED)
@pytest.mark.parametrize("name", LAUNCHERS)
def test_a_mistyped_choice_is_refused_before_a_machine_is_asked_for(name, leaf, capsys):
    launcher, flags = LAUNCHERS[name]
    with pytest.raises(InputError, match=".".join(leaf.partition("=")[0].split(".")[:2])):
        launcher.main([*flags, "--dry-run", f"--config.{leaf}"])
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("flag", ["--workdir=", "--workdir=a\udcff", f"--workdir={'a' * 300}", "--name=", "--max-requeues=1e25"])
@pytest.mark.parametrize("name", LAUNCHERS)
def test_a_flag_that_cannot_be_is_refused_before_a_machine_is_asked_for(name, flag, capsys):
    launcher, flags = LAUNCHERS[name]
    with pytest.raises(InputError, match=flag.partition("=")[0]):
        launcher.main([*flags, "--dry-run", flag])
    assert capsys.readouterr().out == ""
