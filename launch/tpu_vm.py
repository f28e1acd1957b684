"""One `dlmjax train` on Cloud TPU VMs through gcloud: queues for machines, copies the code, starts the run, follows its log, deletes them.

    python launch/tpu_vm.py run --name mine --zone us-east5-a --tpu v5p:2x2x2 --spot --dry-run --config configs/masked.py \\
        --config.execution.attention=splash --workdir gs://bucket/masked --config.data.paths=gs://bucket/data

    create   requests the machines and waits until they are ready
    copy     copies the repository to every worker and installs it
    start    starts the run on every worker, in the background; the workers find each other
    follow   prints the log of the first worker to its end; ends with the run's exit code
    stop     sends SIGTERM on every worker: the run saves and ends
    delete   deletes the machines; nothing is paid for afterwards
    run      does all of this; after a preemption requests machines again, and the run resumes

`--dry-run` prints every command in the form of a shell and runs none. `gs://bucket/...` in any flag is mounted at /gcs/bucket/... by
gcsfuse, which must be on the machines (--setup can install it); `--shared /DIR` names a directory that your --setup mounts. The workdir
and the corpus must be on one of them: a preempted machine loses its disk. Configs are those in the repository.
"""

import pathlib
import re
import shlex
import subprocess
import sys
import tempfile
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))  # run as a file, it must import from the repository

from dlmjax import flags
from dlmjax.errors import START_AGAIN, InputError
from launch.command import ROOT, Parser, Train, exit_code, in_repository, on_volumes, read_train, shell_name
from launch.machines import TPUS, tpu_slice

ACTIONS = ("create", "copy", "start", "follow", "stop", "delete", "run")
NEEDED = ("dlmjax", "configs", "launch", "setup.py", "pyproject.toml", "requirements.lock", "README.md", "LICENSE")
# The images are Ubuntu 22.04, whose own Python is too old; at first boot another apt may hold the lock.
PYTHON = (
    "sudo apt-get -o DPkg::Lock::Timeout=600 update -q",
    "sudo apt-get -o DPkg::Lock::Timeout=600 install -y -q python3.11-venv",
)
GONE = ("SUSPENDING", "SUSPENDED", "FAILED", "DELETING", "")  # states of a queued resource whose machines will not come (back)
NO_CONNECTION = 255  # ssh's own code
SAME_MACHINES = 3  # new starts on the same machines before others are requested


def parser() -> Parser:
    """The flags of this launcher."""
    launcher = Parser(
        "tpu_vm", __doc__, f"{'|'.join(ACTIONS)} --name NAME --zone ZONE [--tpu v5p:2x2x2] [--dry-run] --config CONFIG --workdir DIR"
    )
    add = launcher.add_argument
    add("action", choices=ACTIONS)
    add("--name", required=True, help="name of the queued resource and its machines")
    add("--zone", required=True)
    add("--project", help="Google Cloud project; default: that of gcloud")
    add("--tpu", metavar="KIND:TOPOLOGY", help="TPU slice for create and run, such as v5p:8x8x8")
    add("--runtime-version", help="runtime version; default: the one for the kind of TPU")
    add("--spot", action="store_true", help="spot machines (default: on-demand machines)")
    add("--setup", action="append", default=[], metavar="LINE", help="shell line on every worker before the installation")
    add("--python", default="python3.11", help="name of Python on the workers (python3.11, which copy installs)")
    add(
        "--shared",
        action="append",
        default=[],
        metavar="/DIR",
        help="directory that all workers share, mounted by --setup",
    )
    add("--max-requeues", type=flags.whole(0), default=100, metavar="N", help="largest number of new requests for machines, for run (100)")
    add("--poll-seconds", type=flags.number(0, 86_400), default=30.0, metavar="S", help="seconds between two queries of the queue (30)")
    add(
        "--back-off-seconds",
        type=flags.number(0, 86_400),
        default=60.0,
        metavar="S",
        help="seconds before the next request for machines, doubled each time (60)",
    )
    add("--dry-run", action="store_true", help="commands printed, none run")
    return launcher


class Commands:
    """The gcloud command lines, as argument lists; each command on the workers is one shell text."""

    def __init__(self, arguments):
        self._arguments = arguments
        self.archive = str(pathlib.Path(tempfile.gettempdir()) / f"dlmjax-{arguments.name}.tar.gz")

    def _gcloud(self, *words: str) -> list[str]:
        where = [f"--zone={self._arguments.zone}", *([f"--project={self._arguments.project}"] if self._arguments.project else [])]
        return ["gcloud", "compute", "tpus", *words, *where]

    def _ssh(self, worker: str, text: str) -> list[str]:
        return self._gcloud("tpu-vm", "ssh", self._arguments.name, f"--worker={worker}", f"--command={text}")

    def create(self) -> list[str]:
        """Requests the machines."""
        if not self._arguments.tpu:
            raise InputError("create requires --tpu KIND:TOPOLOGY, as in v5p:2x2x2")
        machines = tpu_slice(self._arguments.tpu)
        tpu, name = TPUS[machines.kind], self._arguments.name
        if not tpu.type:
            raise InputError(f"--tpu {self._arguments.tpu}: {machines.kind} is available on Kubernetes only; see launch/kubernetes.py")
        request = [f"--node-id={name}", f"--type={tpu.type}", f"--topology={machines.topology}"]
        runtime = [f"--runtime-version={self._arguments.runtime_version or tpu.runtime}"]
        return self._gcloud("queued-resources", "create", name, *request, *runtime, *(["--spot"] if self._arguments.spot else []))

    def state(self) -> list[str]:
        """Prints the state of the request."""
        return self._gcloud("queued-resources", "describe", self._arguments.name, "--format=value(state.state)")

    def delete(self) -> list[str]:
        """Deletes request and machines."""
        return self._gcloud("queued-resources", "delete", self._arguments.name, "--force", "--quiet")

    def copy(self) -> list[list[str]]:
        """Packs the repository, copies it to every worker and installs it there."""
        python, name = shlex.quote(self._arguments.python), self._arguments.name
        install = [
            "rm -rf dlmjax",
            "mkdir dlmjax",
            "tar -xzf dlmjax.tar.gz -C dlmjax",
            *(PYTHON if self._arguments.python == "python3.11" else ()),
            *self._arguments.setup,
            "cd dlmjax",
            f"{python} -m venv .venv",
            ".venv/bin/python -m pip install -q -c requirements.lock -e '.[tpu]'",
        ]
        return [
            ["tar", "-czf", self.archive, "--exclude=__pycache__", "-C", str(ROOT), *NEEDED],
            self._gcloud("tpu-vm", "scp", self.archive, f"{name}:dlmjax.tar.gz", "--worker=all"),
            self._ssh("all", " && ".join(install)),
        ]

    def start(self, train: Train, buckets: list[str]) -> list[str]:
        """Starts the run on every worker; refuses where one is running already."""
        run = shlex.join([".venv/bin/python", "launch/unfinished.py", ".venv/bin/dlmjax", *train.arguments])
        # The shell outlives the SIGTERM of `stop`, to write the exit code; the trap `:` is not inherited, as an ignored signal would be.
        body = shlex.quote(f"trap : TERM; {run}; echo $? > run.code")
        mounts = [
            f"{{ mountpoint -q {at} || {{ sudo mkdir -p {at} && sudo chown $USER {at} && gcsfuse --implicit-dirs {bucket} {at}; }}; }}"
            for bucket, at in ((bucket, f"/gcs/{bucket}") for bucket in buckets)
        ]
        steps = [
            "cd dlmjax",
            "{ ! kill -0 $(cat run.pid 2>/dev/null) 2>/dev/null || { echo 'a run is in progress here; stop it first' >&2; exit 2; }; }",
            *mounts,
            "rm -f run.code",
            f"{{ setsid nohup sh -c {body} > run.log 2>&1 < /dev/null & echo $! > run.pid; }}",
        ]
        return self._ssh("all", " && ".join(steps))

    def follow(self) -> list[str]:
        """Prints the log of the first worker; ends with its run's code, 75 where it has none."""
        tail = "tail --pid=$(cat run.pid) -s 0.2 -n +1 -F run.log 2>/dev/null"
        return self._ssh("0", f"cd dlmjax && {tail}; exit $(cat run.code 2>/dev/null || echo {START_AGAIN})")

    def stop(self) -> list[str]:
        """SIGTERM to the run on every worker; returns when it has ended."""
        return self._ssh(
            "all", "cd dlmjax && kill -TERM -- -$(cat run.pid) && while kill -0 -- -$(cat run.pid) 2>/dev/null; do sleep 1; done"
        )


def _do(command: list[str]) -> int:
    print(f"+ {shlex.join(command)}", file=sys.stderr, flush=True)
    try:
        return subprocess.run(command).returncode
    except FileNotFoundError as error:
        raise InputError(f"{command[0]} is not installed; install the Google Cloud CLI, or print the commands with --dry-run") from error


def _state(commands: Commands) -> str:
    """The state of the request; "" where there is none."""
    return subprocess.run(commands.state(), stdout=subprocess.PIPE, text=True).stdout.strip()


def _wait(commands: Commands, poll_seconds: float) -> bool:
    """Waits in the queue. Returns whether the machines became ready."""
    reported = None
    while (state := _state(commands)) not in GONE:
        if state == "ACTIVE":
            return True
        if state != reported:
            print(f"launch/tpu_vm.py: {state}", file=sys.stderr, flush=True)
        reported = state
        time.sleep(poll_seconds)
    return False


def _planned(action: str, commands: Commands, train: Train | None, buckets: list[str]) -> list[list[str]]:
    """The commands of an action, for --dry-run."""
    steps = {
        "create": lambda: [commands.create(), commands.state()],
        "copy": commands.copy,
        "start": lambda: [commands.start(train, buckets)],
        "follow": lambda: [commands.follow()],
        "stop": lambda: [commands.stop()],
        "delete": lambda: [commands.delete()],
    }
    names = ("create", "copy", "start", "follow", "delete") if action == "run" else (action,)
    return [command for step in names for command in steps[step]()]


def _run(arguments, commands: Commands, train: Train, buckets: list[str]) -> int:
    """Does all steps, and again after the loss of a machine or a process, until the run ends or `--max-requeues` is reached."""
    for attempt in range(arguments.max_requeues + 1):
        if attempt:
            time.sleep(min(arguments.back_off_seconds * 2 ** (attempt - 1), 3600.0))
        if _do(commands.create()):
            raise InputError("the request for the machines failed; the message of gcloud is above")
        code = START_AGAIN
        if _wait(commands, arguments.poll_seconds) and not any(_do(command) for command in commands.copy()):
            code = _train(arguments, commands, train, buckets)
        _do(commands.delete())
        if not _again(code):
            return code
        print(f"launch/tpu_vm.py: the run is not finished (code {code}); its machines are deleted", file=sys.stderr, flush=True)
    return START_AGAIN


def _again(code: int) -> bool:
    """A lost peer, a process that was ended by a signal, a run that was stopped on request."""
    return code == START_AGAIN or code > 128


def _train(arguments, commands: Commands, train: Train, buckets: list[str]) -> int:
    """Starts the run and follows it; starts it a few times again on the same machines, as long as they exist."""
    code, left = _do(commands.start(train, buckets)) or _do(commands.follow()), SAME_MACHINES
    while code and _state(commands) == "ACTIVE":
        if code != NO_CONNECTION and (left == 0 or not _again(code)):
            return code
        time.sleep(arguments.poll_seconds)
        if code == NO_CONNECTION:
            code = _do(commands.follow())
        else:
            left -= 1
            _do(commands.stop())  # on workers that still run; it fails where nothing runs
            code = _do(commands.start(train, buckets)) or _do(commands.follow())
    return START_AGAIN if code else 0


def main(argv: list[str]) -> int:
    """Does one action, or prints its commands."""
    arguments, rest = parser().parse_known_args(argv)
    shell_name(arguments.name, "--name")
    if not re.fullmatch(r"[a-z]+-[a-z]+\d+-[a-z]", arguments.zone):
        raise InputError(f"--zone is {arguments.zone!r}; it looks like us-east5-a")
    commands, train, buckets = Commands(arguments), None, []
    if rest or arguments.action in ("start", "run"):
        train, buckets = on_volumes(in_repository(read_train(rest)), tuple(arguments.shared))
        if arguments.action == "run":
            train.check_started_again("run")
        if arguments.tpu:
            train.check_devices(tpu_slice(arguments.tpu).devices, "tpu")
    if arguments.dry_run:
        for command in _planned(arguments.action, commands, train, buckets):
            print(shlex.join(command))
        return 0
    if arguments.action == "run":
        try:
            return _run(arguments, commands, train, buckets)
        except KeyboardInterrupt:
            print("launch/tpu_vm.py: interrupted; the machines still exist: follow, stop or delete them", file=sys.stderr)
            raise
    if arguments.action == "create":
        return _do(commands.create()) or (0 if _wait(commands, arguments.poll_seconds) else START_AGAIN)
    for command in _planned(arguments.action, commands, train, buckets):
        if code := _do(command):
            return code
    return 0


if __name__ == "__main__":
    sys.exit(exit_code("tpu_vm", main))
