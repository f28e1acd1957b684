"""Rank and number of the processes of a run, from flags or from the environment that a launcher sets. Imports no jax.

The first source that is present is used:

    flags          --coordinator HOST:PORT --num-processes N --process-id I
    DLMJAX_*       DLMJAX_COORDINATOR, DLMJAX_PROCESSES, DLMJAX_PROCESS (launch/local.py, the Kubernetes manifest)
    Slurm          a step that srun starts with more than one task; the shell of sbatch or salloc is one process
    Open MPI       mpirun with more than one process; version 5 provides no coordinator: add DLMJAX_COORDINATOR=HOST:PORT
    TPU            a pod slice: the workers that GKE writes into the environment, or those in the TPU VM's metadata
    one process    otherwise

An empty variable counts as not set. A value that is not a valid count, rank or host is an error that names the variable.
"""

import dataclasses
import pathlib
import re
import urllib.error
import urllib.request
from collections.abc import Mapping

from dlmjax.errors import InputError

VARIABLES = {"coordinator": "DLMJAX_COORDINATOR", "num_processes": "DLMJAX_PROCESSES", "process_id": "DLMJAX_PROCESS"}
# Ports for a job's coordinator: below those that the kernel assigns to outgoing connections (32768 and above on Linux).
PORTS = range(20_000, 32_000)
LARGEST = 2**20  # processes; the flags have the same bound
# Slurm numbers its own steps of one task from here: the batch script, a container, the shell that salloc may start.
SLURM_SPECIAL_STEPS = 0xFFFFFFF0
HOST = r"[A-Za-z0-9_](?:[A-Za-z0-9_.\-]*[A-Za-z0-9_])?"
TPU_WORKERS = ("TPU_PROCESS_ADDRESSES", "TPU_WORKER_HOSTNAMES")
METADATA = "http://metadata.google.internal/computeMetadata/v1/instance/attributes/worker-network-endpoints"


@dataclasses.dataclass(frozen=True)
class ProcessInfo:
    """Rank of this process and number of processes in the run.

    source: origin of these values, for messages. num_processes: 0 when only the TPU runtime knows the number and the rank.
    coordinator: "HOST:PORT" of process 0. local_device: index of the only device of this machine that this process uses; None = all.
    """

    source: str = "one process"
    num_processes: int = 1
    process_index: int = 0
    coordinator: str | None = None
    local_device: int | None = None

    @property
    def alone(self) -> bool:
        """Is this the only process of the run?"""
        return self.num_processes == 1

    def __str__(self) -> str:
        return f"process {self.process_index} of {self.num_processes or 'a TPU slice'}"


def find(
    environ: Mapping[str, str], *, coordinator: str | None = None, num_processes: int | None = None, process_id: int | None = None
) -> ProcessInfo:
    """Rank of this process and number of processes, from the values of the flags, else from `environ`.

    Raises:
      InputError: flags or variables are incomplete or contradict each other.
    """
    flags = {"coordinator": coordinator, "num_processes": num_processes, "process_id": process_id}
    if any(value is not None for value in flags.values()):
        return _from_values("flags", flags, {name: f"--{name.replace('_', '-')}" for name in flags})
    environ = {name: value.strip() for name, value in environ.items() if value.strip()}
    variables = {name: environ.get(variable) for name, variable in VARIABLES.items()}
    if variables["num_processes"] is not None or variables["process_id"] is not None:
        return _from_values("DLMJAX_PROCESSES", variables, VARIABLES)
    return _slurm(environ) or _open_mpi(environ) or _tpu(environ) or ProcessInfo()


def _from_values(source: str, values: dict, names: Mapping[str, str]) -> ProcessInfo:
    missing = [names[name] for name, value in values.items() if value is None]
    if missing:
        present = " and ".join(names[name] for name, value in values.items() if value is not None)
        raise InputError(f"{' and '.join(missing)} must be set together with {present}")
    for name in ("num_processes", "process_id"):
        if not _is_whole(values[name]):
            raise InputError(f"{names[name]}={values[name]!r} is not a whole number")
    return _checked(ProcessInfo(source, int(values["num_processes"]), int(values["process_id"]), values["coordinator"]), names)


def _checked(info: ProcessInfo, names: Mapping[str, str] = VARIABLES) -> ProcessInfo:
    if not 0 <= info.process_index < info.num_processes <= LARGEST:
        raise InputError(
            f"process {info.process_index} of {info.num_processes} does not exist; {names['process_id']} counts from 0 to below "
            f"{names['num_processes']}, which is at most {LARGEST:,}"
        )
    host = re.fullmatch(r"(?:\[[^\]\s]+\]|[^:\s]+):(\d{1,5})", info.coordinator or "", re.ASCII)
    if not host or not 1 <= int(host[1]) <= 65_535:
        raise InputError(f"coordinator {info.coordinator!r} is not HOST:PORT; set {names['coordinator']} to the address of process 0")
    return info


def _is_whole(value: str | int) -> bool:
    """Does the text hold ASCII digits alone? int() also takes signs, "1_0" and "٣"."""
    return bool(re.fullmatch(r"\d{1,19}", str(value), re.ASCII))


def _whole(environ: Mapping[str, str], name: str, low: int = 0, high: int = LARGEST, default: int | None = None, why: str = "") -> int:
    """The variable as a whole number in low..high.

    Raises:
      InputError: the value is not one; or the variable is not set and there is no default.
    """
    value = environ.get(name)
    if value is None and default is not None:
        return default
    if value is None:
        raise InputError(f"{name} is not set, but other variables of the launcher are; start the processes with the launcher itself")
    if not _is_whole(value) or not low <= int(value) <= high:
        raise InputError(
            f"{name}={value!r} is not a whole number in {low}..{high}{why}; correct it, or unset it to start one process alone"
        )
    return int(value)


def _rank(environ: Mapping[str, str], name: str, count: int, counted: str, default: int | None = None) -> int:
    """The variable as a rank in 0..count-1. counted: name of the variable that holds the count, for the error."""
    return _whole(environ, name, high=count - 1, default=default, why=f" ({counted} is {count})")


def _slurm(environ: Mapping[str, str]) -> ProcessInfo | None:
    """The rank in a job step of several tasks, else None.

    A batch script or a shell of salloc has the job's variables, including SLURM_NTASKS, but is not a step: it is one process.
    """
    if "SLURM_STEP_ID" not in environ or "SLURM_STEP_NODELIST" not in environ:
        return None
    step = _whole(environ, "SLURM_STEP_ID", high=2**32 - 1)
    counted = "SLURM_STEP_NUM_TASKS" if "SLURM_STEP_NUM_TASKS" in environ else "SLURM_NTASKS"
    if step >= SLURM_SPECIAL_STEPS or counted not in environ or (tasks := _whole(environ, counted, 1)) == 1:
        return None
    job, nodes = _whole(environ, "SLURM_JOB_ID", high=2**32 - 1), environ["SLURM_STEP_NODELIST"]
    port = PORTS[(job * 16 + step % 16) % len(PORTS)]
    local = _rank(environ, "SLURM_LOCALID", tasks, counted)
    return _checked(
        ProcessInfo(
            f"Slurm job {job} on {nodes}",
            tasks,
            _rank(environ, "SLURM_PROCID", tasks, counted),
            environ.get(VARIABLES["coordinator"]) or f"{first_node(nodes)}:{port}",
            # With one task per node the task uses every device; with several each uses one.
            None if _whole(environ, "SLURM_STEP_NUM_NODES", default=0) == tasks else local,
        )
    )


def first_node(nodes: str) -> str:
    """The first host of a Slurm node list: "a[007-9,12],b" -> "a007".

    Raises:
      InputError: the list does not begin with a host.
    """
    first = re.match(r"(?:[^\[\],]|\[[^\[\]]*\])*", nodes)[0]
    host = re.sub(r"\[(\w+)[^\]]*\]", r"\1", first)
    if not re.fullmatch(HOST, host, re.ASCII):
        raise InputError(f"SLURM_STEP_NODELIST={nodes!r} is not a list of hosts in Slurm's form; its first host is the coordinator")
    return host


def _open_mpi(environ: Mapping[str, str]) -> ProcessInfo | None:
    size = "OMPI_COMM_WORLD_SIZE"
    processes = _whole(environ, size, 1, default=1)
    if processes == 1:
        return None
    uri, coordinator = environ.get("OMPI_MCA_orte_hnp_uri", ""), environ.get(VARIABLES["coordinator"])
    host = re.match(r"(\d{1,19})\.\d+;(?:tcp://([^,:]+)|tcp6://\[([^,\]]+))", uri, re.ASCII)
    if coordinator is None and host:
        # A job's number is a multiple of 4096.
        coordinator = f"{host[2] or f'[{host[3]}]'}:{PORTS[int(host[1]) // 4096 % len(PORTS)]}"
    if coordinator is None:
        raise InputError("this Open MPI provides no coordinator; add -x DLMJAX_COORDINATOR=HOST:PORT with the host of rank 0 to mpirun")
    local = _rank(environ, "OMPI_COMM_WORLD_LOCAL_RANK", processes, size)
    ranks = _whole(environ, "OMPI_COMM_WORLD_LOCAL_SIZE", 1, default=1)
    rank = _rank(environ, "OMPI_COMM_WORLD_RANK", processes, size)
    return _checked(ProcessInfo("Open MPI", processes, rank, coordinator, None if ranks == 1 else local))


def _tpu(environ: Mapping[str, str]) -> ProcessInfo | None:
    """A slice of several workers, else None; jax reads coordinator, count and rank from the variables that are checked here."""
    name = next((name for name in TPU_WORKERS if name in environ), None)
    workers, source = environ.get(name), "GKE,"
    slices = _whole(environ, "MEGASCALE_NUM_SLICES", 1, default=1)
    if workers is None and "TPU_SKIP_MDS_QUERY" not in environ and _has_tpu():
        workers, source, name = _metadata(), "TPU VM metadata,", "worker-network-endpoints"
    if not workers:
        return None
    hosts = workers.split(",")
    if not all(
        re.fullmatch(rf"{HOST}(:\d{{1,5}})?|[^\s:]*:[^\s:]*:{HOST}|\[[\da-fA-F:.]+\](:\d{{1,5}})?", host.strip(), re.ASCII)
        for host in hosts
    ):
        raise InputError(
            f"{name}={workers!r} is not a list of hosts, separated by commas; correct it, or unset it to start one process alone"
        )
    _rank(environ, "MEGASCALE_SLICE_ID", slices, "MEGASCALE_NUM_SLICES", default=0)
    if len(hosts) == slices == 1:
        return None
    if source == "GKE,":
        _rank(environ, "TPU_WORKER_ID", len(hosts), name, default=0)
    return ProcessInfo(f"{source} {f'{slices} TPU slices' if slices > 1 else 'a TPU slice'} of {len(hosts)} workers", 0)


def _has_tpu() -> bool:
    return any(pathlib.Path("/dev").glob("accel*")) or (
        pathlib.Path("/dev/vfio").is_dir() and any(pathlib.Path("/dev/vfio").glob("[0-9]*"))
    )


def _metadata() -> str:
    """The list of workers in a TPU VM's metadata; "" without a metadata server."""
    request = urllib.request.Request(METADATA, headers={"Metadata-Flavor": "Google"})
    try:
        with urllib.request.urlopen(request, timeout=3) as answer:
            return answer.read().decode().strip()
    except (urllib.error.URLError, OSError):
        return ""
