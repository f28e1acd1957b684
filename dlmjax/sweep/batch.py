"""A manifest for other schedulers: one command a run (print), an array of Slurm jobs, an indexed job of Kubernetes. Imports no jax.

Each element runs `dlmjax sweep run DIR --line I`, which locks the run, applies the policy and skips a finished run: so elements may be
lost, started twice or arrive in any order. DIR, the corpora and the compiled programs are on a file system that all machines share.
"""

import dataclasses
import pathlib
import re
import shlex
import sys
from collections.abc import Sequence

from dlmjax.cluster import requeue
from dlmjax.errors import InputError
from dlmjax.sweep.manifest import PlannedRun, SweepPlan
from dlmjax.sweep.run_log import RunLog

CONTAINER, JOB = "run", "runs"


def unfinished(plan: SweepPlan, directory: str, runs: Sequence[PlannedRun]) -> list[PlannedRun]:
    """The runs that neither finished nor diverged for good, in the order of the manifest."""
    run_log = RunLog(directory)
    return [run for run in runs if run_log.state(run.id, plan.policy) not in ("finished", "diverged")]


@dataclasses.dataclass(frozen=True)
class JobOptions:
    """What a scheduler is to give each run; the fields are the flags of `dlmjax sweep run`.

    jobs: runs at a time; None = no limit. cpus: cores of a run; None = the cluster's default. gpus: 0 or 1. save_seconds: between SIGTERM
    and the end. max_requeues: how often an unfinished run is started again. time, sbatch, setup: Slurm's. image, namespace, claim, node:
    Kubernetes'.
    """

    jobs: int | None = None
    cpus: int | None = None
    gpus: int = 0
    save_seconds: int = 120
    max_requeues: int = 100
    time: str = "24:00:00"
    sbatch: Sequence[str] = ()
    setup: Sequence[str] = ()
    image: str | None = None
    namespace: str = "default"
    claim: Sequence[str] = ()
    node: Sequence[str] = ()


def commands(plan: SweepPlan, directory: str, runs: Sequence[PlannedRun]) -> list[str]:
    """One command for each run that is not finished, the longest first: for GNU parallel, xargs, or any other scheduler.

    Each uses all cores of its process, or the first GPU: without --jobs 1 every one of them would be pinned to the first core.
    """
    left = sorted(unfinished(plan, directory, runs), key=lambda run: -run.flops)
    return [shlex.join(["dlmjax", "sweep", "run", directory, "--jobs", "1", "--only", run.id]) for run in left]


def slurm_script(plan: SweepPlan, directory: str, runs: Sequence[PlannedRun], request: JobOptions) -> str:
    """The text that sbatch reads: element I of the array runs line I of the manifest.

    Raises InputError: no run is left, or an option is out of its range.
    """
    _check_devices(request)
    left = {run.id for run in unfinished(plan, directory, runs)}
    lines = [number for number, run in enumerate(plan.runs) if run.id in left]
    if not lines:
        raise InputError(f"every run of {directory} has ended; see: dlmjax sweep status {directory}")
    root = pathlib.Path(directory).absolute()
    options = {
        "job-name": _name(plan.name),
        "array": _ranges(lines) + (f"%{request.jobs}" if request.jobs else ""),
        "nodes": 1,
        "ntasks": 1,
        "cpus-per-task": request.cpus,
        "gpus-per-node": request.gpus or None,
        "output": root / "slurm" / "%A_%a.log",
        "chdir": pathlib.Path.cwd(),
    }
    command = shlex.join([sys.executable, "-m", "dlmjax", "sweep", "run", str(root), "--jobs", "1"]) + ' --line "$SLURM_ARRAY_TASK_ID"'
    limits = {name: getattr(request, name) for name in ("time", "save_seconds", "max_requeues")}
    return requeue.job_script(options, request.sbatch, request.setup, command, **limits)


def jobset(plan: SweepPlan, directory: str, runs: Sequence[PlannedRun], request: JobOptions) -> dict:
    """The JobSet of a sweep, for `kubectl apply`: one indexed job, pod I runs line I of the manifest.

    Bad input (exit code 2) and runs that failed by policy (1) end that index alone.

    Raises InputError: no image, only some of the runs, a directory or corpus on no claim that all pods mount.
    """
    if not request.image:
        raise InputError("--executor kubernetes requires --image, built from launch/Dockerfile and pushed where the cluster can pull it")
    if len(runs) != len(plan.runs):
        raise InputError("--executor kubernetes takes the whole manifest: pods of finished runs end at once; leave out --only and --line")
    _check_devices(request)
    claims = dict(_pair(text, "--claim", r"([a-z0-9][a-z0-9.-]*)=(/[^:]*[^/:])", "NAME=/DIR") for text in request.claim)
    nodes = dict(_pair(text, "--node", r"([A-Za-z0-9./_-]+)=([A-Za-z0-9._-]+)", "LABEL=VALUE") for text in request.node)
    root = pathlib.Path(directory).absolute()
    for path in (str(root), *dict.fromkeys(path for run in plan.runs for path in run.config.get("data.paths", ()))):
        if not any(path.startswith(f"{mounted}/") for mounted in claims.values()):
            raise InputError(f"{path} is on no volume that all pods mount; give --claim NAME=/DIR with a directory above it")
    devices = {"nvidia.com/gpu": str(request.gpus)} if request.gpus else {}
    cores = {"cpu": str(request.cpus)} if request.cpus else {}
    index = {"fieldRef": {"fieldPath": "metadata.annotations['batch.kubernetes.io/job-completion-index']"}}
    container = {
        "name": CONTAINER,
        "image": request.image,
        "command": ["dlmjax", "sweep", "run", str(root), "--jobs", "1", "--line", "$(SWEEP_LINE)"],
        "env": [{"name": "SWEEP_LINE", "valueFrom": index}],
        "resources": {"limits": {**devices, **cores}, "requests": {**devices, **cores}},
        "volumeMounts": [{"name": f"claim-{number}", "mountPath": mounted} for number, mounted in enumerate(claims.values())],
    }
    pod = {
        "restartPolicy": "Never",  # which the policies below need
        "terminationGracePeriodSeconds": request.save_seconds,
        "nodeSelector": nodes,
        "tolerations": [{"key": name, "operator": "Exists", "effect": "NoSchedule"} for name in devices],
        "containers": [container],
        "volumes": [{"name": f"claim-{number}", "persistentVolumeClaim": {"claimName": claim}} for number, claim in enumerate(claims)],
    }
    job = {
        "completionMode": "Indexed",
        "completions": len(plan.runs),
        "parallelism": min(request.jobs or len(plan.runs), len(plan.runs)),
        "backoffLimitPerIndex": request.max_requeues,  # an unfinished run (75) or a lost pod starts again, the others go on
        "podFailurePolicy": {
            "rules": [{"action": "FailIndex", "onExitCodes": {"containerName": CONTAINER, "operator": "In", "values": [1, 2]}}],
        },
        "template": {"spec": pod},
    }
    return {
        "apiVersion": "jobset.x-k8s.io/v1alpha2",
        "kind": "JobSet",
        "metadata": {"name": _name(plan.name), "namespace": request.namespace},
        "spec": {"replicatedJobs": [{"name": JOB, "replicas": 1, "template": {"spec": job}}]},
    }


def _check_devices(request: JobOptions) -> None:
    for flag, value, low, high in (
        ("gpus", request.gpus, 0, 1),
        ("cpus", request.cpus or 1, 1, 4096),
        ("jobs", request.jobs or 1, 1, 10**6),
    ):
        if not low <= value <= high:
            raise InputError(f"--{flag} is {value}, not in {low}..{high}")


def _pair(text: str, flag: str, form: str, example: str) -> tuple[str, str]:
    found = re.fullmatch(form, text)
    if not found:
        raise InputError(f"{flag} {text}: write {example}")
    return found[1], found[2]


def _name(text: str) -> str:
    """A name that clusters accept: at most 40 lower-case letters, digits and hyphens, the first a letter."""
    name = re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")
    return (name if name[:1].isalpha() else f"sweep-{name}")[:40].strip("-")


def _ranges(lines: Sequence[int]) -> str:
    """[0, 1, 2, 5] as "0-2,5"."""
    parts: list[list[int]] = []
    for line in lines:
        if parts and line == parts[-1][1] + 1:
            parts[-1][1] = line
        else:
            parts.append([line, line])
    return ",".join(str(a) if a == b else f"{a}-{b}" for a, b in parts)
