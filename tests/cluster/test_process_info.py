"""The rank that each launcher's environment provides, and every incomplete or wrong variable."""

import re

import pytest

from dlmjax.cli.main import train_flags
from dlmjax.cluster import process_info
from dlmjax.cluster.process_info import ProcessInfo, find, first_node
from dlmjax.errors import InputError

SLURM = {
    "SLURM_JOB_ID": "4711",
    "SLURM_STEP_ID": "0",
    "SLURM_STEP_NODELIST": "nid[0012-0013]",
    "SLURM_STEP_NUM_NODES": "2",
    "SLURM_NTASKS": "2",
    "SLURM_PROCID": "1",
    "SLURM_LOCALID": "0",
}
OPEN_MPI = {
    "OMPI_COMM_WORLD_SIZE": "4",
    "OMPI_COMM_WORLD_RANK": "3",
    "OMPI_COMM_WORLD_LOCAL_RANK": "1",
    "OMPI_COMM_WORLD_LOCAL_SIZE": "2",
    "OMPI_MCA_orte_hnp_uri": "1531576320.0;tcp://10.96.0.1,10.148.0.1:34911",
}
OURS = {"DLMJAX_COORDINATOR": "a:1", "DLMJAX_PROCESSES": "2", "DLMJAX_PROCESS": "1"}


@pytest.fixture(autouse=True)
def no_tpu(monkeypatch):
    monkeypatch.setattr(process_info, "_has_tpu", lambda: False)


def test_no_flag_and_no_variable_is_one_process():
    assert find({}) == ProcessInfo() and find({}).alone


def test_flags_win_over_all():
    found = find({**OURS, **SLURM}, coordinator="h:5", num_processes=3, process_id=2)
    assert found == ProcessInfo("flags", 3, 2, "h:5") and not found.alone


def test_our_variables_win_over_slurm():
    assert find({**OURS, **SLURM}) == ProcessInfo("DLMJAX_PROCESSES", 2, 1, "a:1")


def test_slurm_with_one_task_a_node_gives_it_every_device():
    found = find(SLURM)
    assert (found.num_processes, found.process_index, found.local_device) == (2, 1, None)
    host, port = found.coordinator.split(":")
    assert host == "nid0012" and int(port) in process_info.PORTS
    assert found.coordinator == find({**SLURM, "SLURM_PROCID": "0"}).coordinator
    assert "Slurm job 4711" in found.source


def test_slurm_with_several_tasks_a_node_gives_each_its_own():
    four = {**SLURM, "SLURM_PROCID": "3", "SLURM_LOCALID": "1"}
    for counts in ({"SLURM_NTASKS": "4"}, {"SLURM_STEP_NUM_TASKS": "4", "SLURM_NTASKS": "8"}):  # the step's count, not the job's
        found = find({**four, **counts})
        assert (found.num_processes, found.process_index, found.local_device) == (4, 3, 1)


@pytest.mark.parametrize(
    "change",
    [
        {"SLURM_NTASKS": "1"},
        {"SLURM_STEP_NODELIST": None},
        {"SLURM_STEP_ID": None},
        {"SLURM_STEP_NUM_TASKS": "1", "SLURM_NTASKS": "4"},  # srun -n1 in a job of four tasks
        {"SLURM_STEP_ID": "4294967290", "SLURM_NTASKS": "4"},  # the shell that salloc starts as a step
        {"SLURM_STEP_ID": "4294967291", "SLURM_NTASKS": "4"},  # the batch script
    ],
    ids=str,
)
def test_slurm_without_a_step_of_several_tasks_is_one_process(change):
    """A batch script, or a shell of salloc, carries the job's variables: waiting for peers there would be for ever."""
    environ = {name: value for name, value in {**SLURM, **change}.items() if value is not None}
    assert find(environ).alone


@pytest.mark.parametrize(
    "nodes, first",
    [
        ("a1", "a1"),
        ("a1,b2", "a1"),
        ("a[007-9,12],b", "a007"),
        ("a[3,5-7]", "a3"),
        ("a[1-2]-ib", "a1-ib"),
        ("n-1", "n-1"),
        ("r[1,3]n[05-9],b", "r1n05"),
    ],
)
def test_the_first_node_of_a_list(nodes, first):
    assert first_node(nodes) == first


def test_open_mpi():
    found = find(OPEN_MPI)
    assert (found.num_processes, found.process_index, found.local_device) == (4, 3, 1)
    assert found.coordinator.startswith("10.96.0.1:")
    six = {**OPEN_MPI, "OMPI_MCA_orte_hnp_uri": "1314521088.0;tcp6://[fe80::b9b:ac5d,2620:10d::2]:43370"}
    assert find(six).coordinator.startswith("[fe80::b9b:ac5d]:")


def test_open_mpi_5_provides_no_coordinator_and_requires_one():
    environ = {name: value for name, value in OPEN_MPI.items() if "uri" not in name}
    with pytest.raises(InputError, match="DLMJAX_COORDINATOR=HOST:PORT"):
        find(environ)
    assert find({**environ, "DLMJAX_COORDINATOR": "h:7"}).coordinator == "h:7"


def test_a_tpu_slice_of_several_workers_is_left_to_jax():
    found = find({"TPU_WORKER_HOSTNAMES": "w-0,w-1,w-2,w-3", "TPU_WORKER_ID": "1"})
    assert found.num_processes == 0 and not found.alone and "4 workers" in found.source
    assert find({"TPU_WORKER_HOSTNAMES": "w-0"}).alone
    assert not find({"TPU_WORKER_HOSTNAMES": "w-0", "MEGASCALE_NUM_SLICES": "2"}).alone


def test_a_tpu_vm_reads_its_metadata(monkeypatch):
    monkeypatch.setattr(process_info, "_has_tpu", lambda: True)
    monkeypatch.setattr(process_info, "_metadata", lambda: "unknown:unknown:10.0.0.1,unknown:unknown:10.0.0.2")
    assert not find({}).alone
    monkeypatch.setattr(process_info, "_metadata", lambda: "")
    assert find({}).alone


@pytest.mark.parametrize(
    "flags, said",
    [
        (dict(num_processes=2), "--coordinator and --process-id must be set together with --num-processes"),
        (dict(num_processes=2, process_id=2, coordinator="h:1"), "process 2 of 2 does not exist"),
        (dict(num_processes=2, process_id=0, coordinator="h"), "not HOST:PORT"),
    ],
)
def test_incomplete_flags_are_refused(flags, said):
    with pytest.raises(InputError, match=said):
        find({}, **flags)


GKE = {
    "TPU_WORKER_HOSTNAMES": "w-0.tpu,w-1.tpu",
    "TPU_WORKER_ID": "1",
    "MEGASCALE_NUM_SLICES": "2",
    "MEGASCALE_SLICE_ID": "1",
}
LAUNCHERS = {
    "ours": OURS,
    "slurm": {**SLURM, "SLURM_STEP_NUM_TASKS": "2"},
    "open_mpi": OPEN_MPI,
    "gke": GKE,
    "tpu": {**GKE, "TPU_PROCESS_ADDRESSES": "10.0.0.1:8476,10.0.0.2:8476"},
}
ODD = ["abc", "-1", "2(x3),1", "1.5", "1e3", "0x2", "1_0", "\u0663", "9" * 30, "a b", ",", "a,,b", "[", "a["]
COUNTED = {
    "DLMJAX_PROCESS": "DLMJAX_PROCESSES",
    "SLURM_PROCID": "SLURM_STEP_NUM_TASKS",
    "SLURM_LOCALID": "SLURM_STEP_NUM_TASKS",
    "OMPI_COMM_WORLD_RANK": "OMPI_COMM_WORLD_SIZE",
    "OMPI_COMM_WORLD_LOCAL_RANK": "OMPI_COMM_WORLD_SIZE",
    "MEGASCALE_SLICE_ID": "MEGASCALE_NUM_SLICES",
}
EACH = [pytest.param(launcher, name, id=f"{launcher}-{name}") for launcher, environ in LAUNCHERS.items() for name in environ]


@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_every_launcher_provides_a_rank(launcher):
    assert not find(LAUNCHERS[launcher]).alone


@pytest.mark.parametrize("launcher, name", EACH)
def test_an_odd_variable_is_refused_by_name_or_decides_nothing(launcher, name):
    """A host's name may be odd, and of some variables only the number of hosts is used; all else is a line that says which."""
    environ = LAUNCHERS[launcher]
    for value in ODD:
        try:
            found = find({**environ, name: value})
        except InputError as error:
            assert (name in str(error) or "coordinator" in str(error)) and "\n" not in str(error)
        else:
            assert re.search("NODELIST|COORDINATOR|HOSTNAMES|ADDRESSES|uri|NUM_NODES", name) or found == find(environ), (value, found)
            assert found.num_processes == 0 or 0 <= found.process_index < found.num_processes


@pytest.mark.parametrize("launcher, name", EACH)
def test_a_variable_set_to_nothing_is_not_set(launcher, name):
    environ = LAUNCHERS[launcher]
    without = {other: value for other, value in environ.items() if other != name}
    assert _outcome({**environ, name: ""}) == _outcome({**environ, name: "  "}) == _outcome(without)


def _outcome(environ):
    try:
        return find(environ)
    except InputError as error:
        return str(error)


@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_variables_set_to_nothing_are_one_process(launcher):
    assert find(dict.fromkeys(LAUNCHERS[launcher], "")) == ProcessInfo()


@pytest.mark.parametrize("name", [name for environ in LAUNCHERS.values() for name in environ if name in COUNTED])
def test_a_rank_is_below_its_count(name):
    environ = next(environ for environ in LAUNCHERS.values() if name in environ)
    with pytest.raises(InputError, match=name):
        find({**environ, name: environ[COUNTED[name]]})


def test_more_workers_than_the_list_names_are_refused():
    with pytest.raises(InputError, match="TPU_WORKER_ID='2'"):
        find({**GKE, "TPU_WORKER_ID": "2"})


@pytest.mark.parametrize("coordinator", ["h:0", "h:65536", "h:99999", ":1", "h", "a b:1"])
def test_a_coordinator_has_a_host_and_a_port(coordinator):
    with pytest.raises(InputError, match="not HOST:PORT"):
        find({**OURS, "DLMJAX_COORDINATOR": coordinator})


def test_variables_that_are_not_numbers_are_refused():
    with pytest.raises(InputError, match="DLMJAX_PROCESS='one' is not a whole number"):
        find({**OURS, "DLMJAX_PROCESS": "one"})
    with pytest.raises(InputError, match="DLMJAX_COORDINATOR must be set together"):
        find({"DLMJAX_PROCESSES": "2", "DLMJAX_PROCESS": "0"})


def test_the_flags_of_a_rank_keep_their_earlier_names():
    common = ["--config", "c.py", "--workdir", "w", "--coordinator", "h:1"]
    new, _ = train_flags([*common, "--num-processes", "2", "--process-id", "1"])
    old, _ = train_flags([*common, "--processes", "2", "--process", "1"])
    assert (old.num_processes, old.process_id) == (new.num_processes, new.process_id) == (2, 1)
