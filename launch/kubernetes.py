"""Prints the JobSet manifest of one `dlmjax train` on GKE: TPU slices or nodes of GPUs.

    python launch/kubernetes.py --tpu v5p:2x2x2 --image IMAGE --config configs/masked.py --workdir gs://bucket/masked \\
        --config.execution.attention=splash --config.data.paths=gs://bucket/data | kubectl apply -f -

The default prints the manifest; `--apply` passes the same text to kubectl. The manifest is JSON, which is YAML too: kubectl reads both,
and a JSON writer requires no further package and no quoting rules. The cluster requires the JobSet controller, and for gs:// the Cloud
Storage FUSE driver.

`gs://bucket/...` in any flag is mounted at /gcs/bucket/..., `--claim NAME=/DIR` mounts a claim that exists. The workdir and the corpus
must be on one of them, because every pod must see the same files. Configs are those in the image (launch/Dockerfile).

How a run continues after its pods end:
    a pod is evicted     SIGTERM; all processes save and end, the first with 75; the JobSet starts all again
    a pod is lost        the others end with 75; the JobSet starts all again
    bad input (2), a defect (1)   the JobSet fails at once
A JobSet that was started again `--max-requeues` times fails.
"""

import json
import pathlib
import re
import subprocess
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))  # run as a file, it must import from the repository

from dlmjax import flags
from dlmjax.errors import InputError
from launch.command import Parser, Train, default_name, exit_code, in_repository, on_volumes, read_train, shell_name
from launch.machines import GPUS, TPUS, Machines, gpu_nodes, tpu_slice

PORT = 24567  # of the coordinator: each pod has its own address, so that one port serves all runs
HOME = "/opt/dlmjax"  # of the repository in the image, see launch/Dockerfile
CONTAINER, JOB = "train", "hosts"


def parser() -> Parser:
    """The flags of this launcher."""
    launcher = Parser(
        "kubernetes", __doc__, "--tpu v5p:2x2x2|--gpu h100:2x8 --image IMAGE [--apply] --config CONFIG --workdir gs://bucket/dir"
    )
    add = launcher.add_argument
    machines = launcher.add_mutually_exclusive_group(required=True)
    machines.add_argument("--tpu", metavar="KIND:TOPOLOGY", help=f"TPU slice, such as v5p:8x8x8; kinds: {', '.join(TPUS)}")
    machines.add_argument("--gpu", metavar="KIND:NODESxGPUS", help=f"GPU nodes, such as h100:4x8; kinds: {', '.join(GPUS)}")
    add("--image", required=True, help="container image, built from launch/Dockerfile and pushed where the cluster can pull it")
    add("--name", help="name of the JobSet; default: the last part of --workdir")
    add("--namespace", default="default")
    add("--service-account", metavar="NAME", help="Kubernetes service account that may read and write the bucket")
    add(
        "--claim",
        action="append",
        default=[],
        metavar="NAME=/DIR",
        help="persistent volume claim that many pods can write, mounted at /DIR",
    )
    add("--spot", action="store_true", help="spot machines (default: on-demand machines)")
    add(
        "--save-seconds",
        type=flags.whole(1, 10**6),
        default=300,
        metavar="S",
        help="seconds between SIGTERM and the kill (300); spot machines allow less",
    )
    add("--max-requeues", type=flags.whole(0), default=100, metavar="N", help="largest number of restarts (100)")
    doing = launcher.add_mutually_exclusive_group()
    doing.add_argument("--apply", action="store_true", help="manifest passed to kubectl (default: printed)")
    doing.add_argument("--dry-run", action="store_true", help="manifest printed, as by default")
    return launcher


def _volumes(buckets: list[str], claims: dict[str, str], gpus: bool) -> tuple[list, list]:
    """(volumes of a pod, mounts of its container)."""
    volumes, mounts = [], []
    for number, bucket in enumerate(buckets):
        attributes = {"bucketName": bucket, "mountOptions": "implicit-dirs"}
        volumes.append({"name": f"bucket-{number}", "csi": {"driver": "gcsfuse.csi.storage.gke.io", "volumeAttributes": attributes}})
        mounts.append({"name": f"bucket-{number}", "mountPath": f"/gcs/{bucket}"})
    for number, (claim, directory) in enumerate(claims.items()):
        volumes.append({"name": f"claim-{number}", "persistentVolumeClaim": {"claimName": claim}})
        mounts.append({"name": f"claim-{number}", "mountPath": directory})
    if gpus:  # NCCL uses shared memory within a node; a container's own is 64 MiB
        volumes.append({"name": "shared-memory", "emptyDir": {"medium": "Memory"}})
        mounts.append({"name": "shared-memory", "mountPath": "/dev/shm"})
    return volumes, mounts


def _pod(arguments, name: str, train: Train, machines: Machines, buckets: list[str], claims: dict[str, str]) -> dict:
    """The pod template: one process on each host, which holds all chips of the host."""
    tpu = bool(machines.topology)
    chips = {"google.com/tpu" if tpu else "nvidia.com/gpu": str(machines.host_chips)}
    if tpu:
        nodes = {"cloud.google.com/gke-tpu-accelerator": TPUS[machines.kind].label, "cloud.google.com/gke-tpu-topology": machines.topology}
    else:
        nodes = {"cloud.google.com/gke-accelerator": GPUS[machines.kind]}
    tolerations = [{"key": next(iter(chips)), "operator": "Exists", "effect": "NoSchedule"}]
    if arguments.spot:
        nodes["cloud.google.com/gke-spot"] = "true"
        tolerations.append({"key": "cloud.google.com/gke-spot", "operator": "Equal", "value": "true", "effect": "NoSchedule"})
    index = {"fieldRef": {"fieldPath": "metadata.annotations['batch.kubernetes.io/job-completion-index']"}}
    environment = [
        {"name": "DLMJAX_COORDINATOR", "value": f"{name}-{JOB}-0-0.{name}:{PORT}"},
        {"name": "DLMJAX_PROCESSES", "value": str(machines.hosts)},
        {"name": "DLMJAX_PROCESS", "valueFrom": index},
    ]
    volumes, mounts = _volumes(buckets, claims, gpus=not tpu)
    container = {
        "name": CONTAINER,
        "image": arguments.image,
        "workingDir": HOME,
        "command": ["python", "launch/unfinished.py", "dlmjax", *train.arguments],
        "env": environment if machines.hosts > 1 else [],
        "ports": [{"containerPort": PORT, "protocol": "TCP"}],
        "resources": {"limits": chips, "requests": chips},
        "volumeMounts": mounts,
    }
    spec = {
        "restartPolicy": "Never",  # the failure policy below decides for all hosts together
        "terminationGracePeriodSeconds": arguments.save_seconds,
        "nodeSelector": nodes,
        "tolerations": tolerations,
        "containers": [container],
        "volumes": volumes,
    }
    if arguments.service_account:
        spec["serviceAccountName"] = arguments.service_account
    return {"metadata": {"annotations": {"gke-gcsfuse/volumes": "true"}} if buckets else {}, "spec": spec}


def manifest(arguments, train: Train) -> dict:
    """The JobSet: one job, one pod for each host. When one pod ends, all end, and they start again together.

    Raises:
      InputError: unknown machines, or a config that does not run on them; a workdir or corpus that pods would not share.
    """
    machines = tpu_slice(arguments.tpu) if arguments.tpu else gpu_nodes(arguments.gpu)
    train.check_started_again("a JobSet")
    train.check_devices(machines.devices, "tpu" if machines.topology else "gpu")
    for flag, value, low in (("save-seconds", arguments.save_seconds, 1), ("max-requeues", arguments.max_requeues, 0)):
        if value < low:
            raise InputError(f"--{flag} is {value}; it must be at least {low}")
    claims = {}
    for text in arguments.claim:
        found = re.fullmatch(r"([a-z0-9][a-z0-9.-]*)=(/[^:]*[^/:])", text)
        if not found:
            raise InputError(f"--claim {text}: write NAME=/DIR")
        claims[found[1]] = found[2]
    train, buckets = on_volumes(in_repository(train), tuple(claims.values()))
    name = shell_name(arguments.name or default_name(train), "--name")
    job = {
        "completionMode": "Indexed",
        "completions": machines.hosts,
        "parallelism": machines.hosts,
        "backoffLimit": 0,  # one pod that fails fails the job; the JobSet decides what follows
        "podFailurePolicy": {
            "rules": [{"action": "FailJob", "onExitCodes": {"containerName": CONTAINER, "operator": "In", "values": [1, 2]}}],
        },
        "template": _pod(arguments, name, train, machines, buckets, claims),
    }
    # One job has one node pool for itself: the hosts of a TPU slice are one piece of hardware.
    exclusive = {"alpha.jobset.sigs.k8s.io/exclusive-topology": "cloud.google.com/gke-nodepool"} if machines.topology else {}
    return {
        "apiVersion": "jobset.x-k8s.io/v1alpha2",
        "kind": "JobSet",
        "metadata": {"name": name, "namespace": arguments.namespace, "annotations": exclusive},
        "spec": {
            "network": {"enableDNSHostnames": True, "publishNotReadyAddresses": True, "subdomain": name},
            "failurePolicy": {
                "maxRestarts": arguments.max_requeues,
                # The policy lists bad input and defects alone: another start would end the same way.
                "rules": [{"name": "hopeless", "action": "FailJobSet", "onJobFailureReasons": ["PodFailurePolicy"]}],
            },
            "replicatedJobs": [{"name": JOB, "replicas": 1, "template": {"spec": job}}],
        },
    }


def main(argv: list[str]) -> int:
    """Prints the manifest, or passes it to kubectl."""
    arguments, rest = parser().parse_known_args(argv)
    text = json.dumps(manifest(arguments, read_train(rest)), indent=2)
    if not arguments.apply:
        print(text)
        return 0
    try:
        return subprocess.run(["kubectl", "apply", "-f", "-"], input=text, text=True).returncode
    except FileNotFoundError as error:
        raise InputError("--apply requires kubectl, which is not installed; leave --apply out to print the manifest") from error


if __name__ == "__main__":
    sys.exit(exit_code("kubernetes", main))
