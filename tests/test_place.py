"""What a launcher's environment says about a process: every launcher, and every way to say half of it."""

import pytest

from dlmjax import place
from dlmjax.errors import InputError
from dlmjax.place import Place, find, first_node

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
    monkeypatch.setattr(place, "_has_tpu", lambda: False)


def test_nobody_speaks():
    assert find({}) == Place() and find({}).alone


def test_flags_win_over_all():
    found = find({**OURS, **SLURM}, coordinator="h:5", processes=3, process=2)
    assert found == Place("flags", 3, 2, "h:5") and not found.alone


def test_our_variables_win_over_slurm():
    assert find({**OURS, **SLURM}) == Place("DLMJAX_PROCESSES", 2, 1, "a:1")


def test_slurm_with_one_task_a_node_gives_it_every_device():
    found = find(SLURM)
    assert (found.processes, found.process, found.local_device) == (2, 1, None)
    host, port = found.coordinator.split(":")
    assert host == "nid0012" and int(port) in place.PORTS
    assert found.coordinator == find({**SLURM, "SLURM_PROCID": "0"}).coordinator
    assert "Slurm job 4711" in found.found


def test_slurm_with_several_tasks_a_node_gives_each_its_own():
    found = find({**SLURM, "SLURM_NTASKS": "4", "SLURM_PROCID": "3", "SLURM_LOCALID": "1"})
    assert (found.processes, found.process, found.local_device) == (4, 3, 1)


@pytest.mark.parametrize("change", [{"SLURM_NTASKS": "1"}, {"SLURM_STEP_NODELIST": None}])
def test_slurm_without_a_step_of_several_tasks_is_one_process(change):
    """A batch script, or a shell of salloc, carries the job's variables: waiting for peers there would be for ever."""
    environ = {name: value for name, value in {**SLURM, **change}.items() if value is not None}
    assert find(environ).alone


@pytest.mark.parametrize(
    "nodes, first",
    [("a1", "a1"), ("a1,b2", "a1"), ("a[007-9,12],b", "a007"), ("a[3,5-7]", "a3"), ("a[1-2]-ib", "a1-ib"), ("n-1", "n-1")],
)
def test_the_first_node_of_a_list(nodes, first):
    assert first_node(nodes) == first


def test_open_mpi():
    found = find(OPEN_MPI)
    assert (found.processes, found.process, found.local_device) == (4, 3, 1)
    assert found.coordinator.startswith("10.96.0.1:")
    six = {**OPEN_MPI, "OMPI_MCA_orte_hnp_uri": "1314521088.0;tcp6://[fe80::b9b:ac5d,2620:10d::2]:43370"}
    assert find(six).coordinator.startswith("[fe80::b9b:ac5d]:")


def test_open_mpi_5_names_no_coordinator_and_is_told_one():
    environ = {name: value for name, value in OPEN_MPI.items() if "uri" not in name}
    with pytest.raises(InputError, match="DLMJAX_COORDINATOR=HOST:PORT"):
        find(environ)
    assert find({**environ, "DLMJAX_COORDINATOR": "h:7"}).coordinator == "h:7"


def test_a_tpu_slice_of_several_workers_is_left_to_jax():
    found = find({"TPU_WORKER_HOSTNAMES": "w-0,w-1,w-2,w-3", "TPU_WORKER_ID": "1"})
    assert found.processes == 0 and not found.alone and "4 workers" in found.found
    assert find({"TPU_WORKER_HOSTNAMES": "w-0"}).alone
    assert not find({"TPU_WORKER_HOSTNAMES": "w-0", "MEGASCALE_NUM_SLICES": "2"}).alone


def test_a_tpu_vm_asks_its_metadata(monkeypatch):
    monkeypatch.setattr(place, "_has_tpu", lambda: True)
    monkeypatch.setattr(place, "_metadata", lambda: "unknown:unknown:10.0.0.1,unknown:unknown:10.0.0.2")
    assert not find({}).alone
    monkeypatch.setattr(place, "_metadata", lambda: "")
    assert find({}).alone


@pytest.mark.parametrize(
    "flags, said",
    [
        (dict(processes=2), "--processes given without --coordinator and --process"),
        (dict(processes=2, process=2, coordinator="h:1"), "process 2 of 2 does not exist"),
        (dict(processes=2, process=0, coordinator="h"), "not HOST:PORT"),
    ],
)
def test_half_a_place_is_refused(flags, said):
    with pytest.raises(InputError, match=said):
        find({}, **flags)


def test_variables_that_are_no_numbers_are_refused():
    with pytest.raises(InputError, match="DLMJAX_PROCESSES and DLMJAX_PROCESS are whole numbers"):
        find({**OURS, "DLMJAX_PROCESS": "one"})
    with pytest.raises(InputError, match="given without DLMJAX_COORDINATOR"):
        find({"DLMJAX_PROCESSES": "2", "DLMJAX_PROCESS": "0"})
