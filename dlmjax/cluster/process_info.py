"""Which process of how many this is, told from flags or from what a launcher left in the environment. Imports no jax.

The first of these that speaks is believed:

    flags          --coordinator HOST:PORT --processes N --process I
    DLMJAX_*       DLMJAX_COORDINATOR, DLMJAX_PROCESSES, DLMJAX_PROCESS (launch/local.py, the Kubernetes manifest)
    Slurm          a step started by srun with more than one task; the shell of sbatch or salloc is one process
    Open MPI       mpirun with more than one process; version 5 names no coordinator: add DLMJAX_COORDINATOR=HOST:PORT
    TPU            a pod slice: the workers that GKE writes into the environment, or those of the TPU VM's metadata
    one process    otherwise

A variable that is set to nothing is not set. What is no count, no rank, no host is refused with the variable's name.
"""

import dataclasses
import pathlib
import re
import urllib.error
import urllib.request
from collections.abc import Mapping

from dlmjax.errors import InputError

VARIABLES = {"coordinator": "DLMJAX_COORDINATOR", "processes": "DLMJAX_PROCESSES", "process": "DLMJAX_PROCESS"}
# Ports for a job's coordinator: away from those that the kernel lends to outgoing connections (32768 and above on Linux).
PORTS = range(20_000, 32_000)
LARGEST = 2**20  # processes, as the flags have it
# Slurm's own steps, of one task each, are numbered from here: the batch script, a container, the shell that salloc may start.
SLURM_SPECIAL_STEPS = 0xFFFFFFF0
HOST = r"[A-Za-z0-9_](?:[A-Za-z0-9_.\-]*[A-Za-z0-9_])?"
TPU_WORKERS = ("TPU_PROCESS_ADDRESSES", "TPU_WORKER_HOSTNAMES")
METADATA = "http://metadata.google.internal/computeMetadata/v1/instance/attributes/worker-network-endpoints"


@dataclasses.dataclass(frozen=True)
class Place:
    """One process's place in a run.

    found: where that was read, for people. processes: 0 where only the TPU runtime knows how many there are, and which one this is.
    coordinator: "HOST:PORT" of process 0. local_device: the one device of this machine that this process uses; None = all.
    """

    found: str = "one process"
    processes: int = 1
    process: int = 0
    coordinator: str | None = None
    local_device: int | None = None

    @property
    def alone(self) -> bool:
        """Is there nobody to meet?"""
        return self.processes == 1

    def __str__(self) -> str:
        return f"process {self.process} of {self.processes or 'a TPU slice'}"


def find(environ: Mapping[str, str], *, coordinator: str | None = None, processes: int | None = None, process: int | None = None) -> Place:
    """The place of this process.

    Raises:
      InputError: flags or variables that are incomplete or contradict each other.
    """
    flags = {"coordinator": coordinator, "processes": processes, "process": process}
    if any(value is not None for value in flags.values()):
        return _given("flags", flags, {name: f"--{name}" for name in flags})
    environ = {name: value.strip() for name, value in environ.items() if value.strip()}
    variables = {name: environ.get(variable) for name, variable in VARIABLES.items()}
    if variables["processes"] is not None or variables["process"] is not None:
        return _given("DLMJAX_PROCESSES", variables, VARIABLES)
    return _slurm(environ) or _open_mpi(environ) or _tpu(environ) or Place()


def _given(found: str, values: dict, names: Mapping[str, str]) -> Place:
    missing = [names[name] for name, value in values.items() if value is None]
    if missing:
        raise InputError(f"{' and '.join(names[n] for n in values if values[n] is not None)} given without {' and '.join(missing)}")
    if not (_is_whole(values["processes"]) and _is_whole(values["process"])):
        raise InputError(
            f"{names['processes']} and {names['process']} are whole numbers, not {values['processes']!r}, {values['process']!r}"
        )
    return _checked(Place(found, int(values["processes"]), int(values["process"]), values["coordinator"]), names)


def _checked(place: Place, names: Mapping[str, str] = VARIABLES) -> Place:
    if not 0 <= place.process < place.processes <= LARGEST:
        raise InputError(
            f"process {place.process} of {place.processes} does not exist; {names['process']} counts from 0 to below {names['processes']}, "
            f"which is at most {LARGEST:,}"
        )
    host = re.fullmatch(r"(?:\[[^\]\s]+\]|[^:\s]+):(\d{1,5})", place.coordinator or "", re.ASCII)
    if not host or not 1 <= int(host[1]) <= 65_535:
        raise InputError(f"coordinator {place.coordinator!r} is not HOST:PORT; set {names['coordinator']} to where process 0 listens")
    return place


def _is_whole(value: str | int) -> bool:
    """Digits alone: neither a sign nor what else int() takes ("1_0", "٣")."""
    return bool(re.fullmatch(r"\d{1,19}", str(value), re.ASCII))


def _whole(environ: Mapping[str, str], name: str, low: int = 0, high: int = LARGEST, default: int | None = None, why: str = "") -> int:
    """A whole number in low..high.

    Raises:
      InputError: another value; none, and there is no default.
    """
    value = environ.get(name)
    if value is None and default is not None:
        return default
    if value is None:
        raise InputError(f"{name} is not set, though the launcher's other variables are; start the processes with the launcher itself")
    if not _is_whole(value) or not low <= int(value) <= high:
        raise InputError(
            f"{name}={value!r} is not a whole number in {low}..{high}{why}; correct it, or unset it to start one process alone"
        )
    return int(value)


def _rank(environ: Mapping[str, str], name: str, count: int, counted: str, default: int | None = None) -> int:
    """One of 0..count-1, where `counted` names the variable that counts."""
    return _whole(environ, name, high=count - 1, default=default, why=f" ({counted} counts {count})")


def _slurm(environ: Mapping[str, str]) -> Place | None:
    """A job step. A batch script or a shell of salloc has the job's variables, SLURM_NTASKS among them, but no step of its own: it is one
    process, as is one that Slurm counts as a step of one task."""
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
        Place(
            f"Slurm job {job} on {nodes}",
            tasks,
            _rank(environ, "SLURM_PROCID", tasks, counted),
            environ.get(VARIABLES["coordinator"]) or f"{first_node(nodes)}:{port}",
            # With one task on each node the task uses every device; with several each has its own.
            None if _whole(environ, "SLURM_STEP_NUM_NODES", default=0) == tasks else local,
        )
    )


def first_node(nodes: str) -> str:
    """The first host of a Slurm node list: "a[007-9,12],b" -> "a007".

    Raises:
      InputError: the list names no host.
    """
    first = re.match(r"(?:[^\[\],]|\[[^\[\]]*\])*", nodes)[0]
    host = re.sub(r"\[(\w+)[^\]]*\]", r"\1", first)
    if not re.fullmatch(HOST, host, re.ASCII):
        raise InputError(f"SLURM_STEP_NODELIST={nodes!r} is not a list of hosts as Slurm writes it; its first host is the coordinator")
    return host


def _open_mpi(environ: Mapping[str, str]) -> Place | None:
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
        raise InputError("Open MPI names no coordinator here; add -x DLMJAX_COORDINATOR=HOST:PORT with the host of rank 0 to mpirun")
    local = _rank(environ, "OMPI_COMM_WORLD_LOCAL_RANK", processes, size)
    ranks = _whole(environ, "OMPI_COMM_WORLD_LOCAL_SIZE", 1, default=1)
    rank = _rank(environ, "OMPI_COMM_WORLD_RANK", processes, size)
    return _checked(Place("Open MPI", processes, rank, coordinator, None if ranks == 1 else local))


def _tpu(environ: Mapping[str, str]) -> Place | None:
    """A slice of several workers; jax finds the coordinator, the count and the rank by itself, in the variables that are checked here."""
    name = next((name for name in TPU_WORKERS if name in environ), None)
    workers, found = environ.get(name), "GKE,"
    slices = _whole(environ, "MEGASCALE_NUM_SLICES", 1, default=1)
    if workers is None and "TPU_SKIP_MDS_QUERY" not in environ and _has_tpu():
        workers, found, name = _metadata(), "TPU VM metadata,", "worker-network-endpoints"
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
    if found == "GKE,":
        _rank(environ, "TPU_WORKER_ID", len(hosts), name, default=0)
    return Place(f"{found} {f'{slices} TPU slices' if slices > 1 else 'a TPU slice'} of {len(hosts)} workers", 0)


def _has_tpu() -> bool:
    return any(pathlib.Path("/dev").glob("accel*")) or (
        pathlib.Path("/dev/vfio").is_dir() and any(pathlib.Path("/dev/vfio").glob("[0-9]*"))
    )


def _metadata() -> str:
    """The workers that a TPU VM's metadata lists; "" where there is no metadata server."""
    request = urllib.request.Request(METADATA, headers={"Metadata-Flavor": "Google"})
    try:
        with urllib.request.urlopen(request, timeout=3) as answer:
            return answer.read().decode().strip()
    except (urllib.error.URLError, OSError):
        return ""
