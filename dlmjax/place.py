"""Which process of how many this is, told from flags or from what a launcher left in the environment. Imports no jax.

The first of these that speaks is believed:

    flags          --coordinator HOST:PORT --processes N --process I
    DLMJAX_*       DLMJAX_COORDINATOR, DLMJAX_PROCESSES, DLMJAX_PROCESS (launch/local.py, the Kubernetes manifest)
    Slurm          a step started by srun with more than one task
    Open MPI       mpirun with more than one process; version 5 names no coordinator: add DLMJAX_COORDINATOR=HOST:PORT
    TPU            a pod slice: the workers that GKE writes into the environment, or those of the TPU VM's metadata
    one process    otherwise
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
    variables = {name: environ.get(variable) for name, variable in VARIABLES.items()}
    if variables["processes"] is not None or variables["process"] is not None:
        return _given("DLMJAX_PROCESSES", variables, VARIABLES)
    return _slurm(environ) or _open_mpi(environ) or _tpu(environ) or Place()


def _given(found: str, values: dict, names: Mapping[str, str]) -> Place:
    missing = [names[name] for name, value in values.items() if value is None]
    if missing:
        raise InputError(f"{' and '.join(names[n] for n in values if values[n] is not None)} given without {' and '.join(missing)}")
    try:
        processes, process = int(values["processes"]), int(values["process"])
    except ValueError:
        raise InputError(
            f"{names['processes']} and {names['process']} are whole numbers, not {values['processes']!r}, {values['process']!r}"
        ) from None
    return _checked(Place(found, processes, process, values["coordinator"]), names)


def _checked(place: Place, names: Mapping[str, str] = VARIABLES) -> Place:
    if not 0 <= place.process < place.processes:
        raise InputError(f"process {place.process} of {place.processes} does not exist; {names['process']} counts from 0")
    if not re.fullmatch(r"(\[[^\]]+\]|[^:\s]+):\d{1,5}", place.coordinator or ""):
        raise InputError(f"coordinator {place.coordinator!r} is not HOST:PORT; set {names['coordinator']} to where process 0 listens")
    return place


def _slurm(environ: Mapping[str, str]) -> Place | None:
    """A job step. A batch script outside srun has the job's variables but no step: it is one process."""
    needed = ("SLURM_JOB_ID", "SLURM_STEP_NODELIST", "SLURM_NTASKS", "SLURM_PROCID", "SLURM_LOCALID")
    if any(name not in environ for name in needed) or int(environ["SLURM_NTASKS"]) == 1:
        return None
    job, nodes, tasks = environ["SLURM_JOB_ID"], environ["SLURM_STEP_NODELIST"], int(environ["SLURM_NTASKS"])
    port = PORTS[(int(job) * 16 + int(environ.get("SLURM_STEP_ID", 0)) % 16) % len(PORTS)]
    return _checked(
        Place(
            f"Slurm job {job} on {nodes}",
            tasks,
            int(environ["SLURM_PROCID"]),
            environ.get(VARIABLES["coordinator"]) or f"{first_node(nodes)}:{port}",
            # With one task on a node the task uses every device; with several each has its own.
            None if int(environ.get("SLURM_STEP_NUM_NODES", 0)) == tasks else int(environ["SLURM_LOCALID"]),
        )
    )


def first_node(nodes: str) -> str:
    """The first host of a Slurm node list: "a[007-9,12],b" -> "a007"."""
    match = re.match(r"([^\[,]+)(?:\[([^\],-]+)[^\]]*\]([^,]*))?", nodes)
    if not match:
        raise InputError(f"Slurm's node list {nodes!r} names no host")
    return "".join(part or "" for part in match.groups())


def _open_mpi(environ: Mapping[str, str]) -> Place | None:
    if int(environ.get("OMPI_COMM_WORLD_SIZE", 1)) == 1:
        return None
    uri, coordinator = environ.get("OMPI_MCA_orte_hnp_uri", ""), environ.get(VARIABLES["coordinator"])
    host = re.search(r"tcp://([^,:]+)|tcp6://\[([^,\]]+)", uri)
    if coordinator is None and host:
        # A job's number is a multiple of 4096.
        coordinator = f"{host[1] or f'[{host[2]}]'}:{PORTS[int(uri.split('.', 1)[0]) // 4096 % len(PORTS)]}"
    if coordinator is None:
        raise InputError("Open MPI names no coordinator here; add -x DLMJAX_COORDINATOR=HOST:PORT with the host of rank 0 to mpirun")
    processes = int(environ["OMPI_COMM_WORLD_SIZE"])
    local, ranks = int(environ["OMPI_COMM_WORLD_LOCAL_RANK"]), int(environ.get("OMPI_COMM_WORLD_LOCAL_SIZE", 1))
    return _checked(Place("Open MPI", processes, int(environ["OMPI_COMM_WORLD_RANK"]), coordinator, None if ranks == 1 else local))


def _tpu(environ: Mapping[str, str]) -> Place | None:
    """A slice of several workers; jax finds the coordinator, the count and the rank by itself."""
    workers = environ.get("TPU_PROCESS_ADDRESSES") or environ.get("TPU_WORKER_HOSTNAMES")
    slices = int(environ.get("MEGASCALE_NUM_SLICES", 1))
    found = f"GKE, {slices} TPU slices of" if slices > 1 else "GKE, a TPU slice of"
    if workers is None and "TPU_SKIP_MDS_QUERY" not in environ and _has_tpu():
        workers, found = _metadata(), "TPU VM metadata, a slice of"
    count = len([worker for worker in (workers or "").split(",") if worker])
    return Place(f"{found} {count} workers", 0) if count > 1 or (count and slices > 1) else None


def _has_tpu() -> bool:
    return any(pathlib.Path("/dev").glob("accel*")) or (
        pathlib.Path("/dev/vfio").is_dir() and any(pathlib.Path("/dev/vfio").glob("[0-9]*"))
    )


def _metadata() -> str:
    """The workers that a TPU VM's metadata lists; "" where there is no metadata server."""
    request = urllib.request.Request(METADATA, headers={"Metadata-Flavor": "Google"})
    try:
        with urllib.request.urlopen(request, timeout=3) as answer:
            return answer.read().decode()
    except (urllib.error.URLError, OSError):
        return ""
