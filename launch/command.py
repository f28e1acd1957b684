"""The flags of `dlmjax train` that every launcher forwards, checked before a machine is requested or paid for."""

import argparse
import dataclasses
import pathlib
import re
import sys
from collections.abc import Callable

from ml_collections import ConfigDict

from dlmjax.cli.main import train_flags
from dlmjax.cluster.mesh_sizes import fill_sizes
from dlmjax.errors import InputError
from dlmjax.flags import Parser as BaseParser
from dlmjax.flags import one_line, print_anything

ROOT = pathlib.Path(__file__).resolve().parents[1]
KERNELS = {"tpu": "splash", "gpu": "cudnn with --config.execution.dtype=bfloat16"}  # attention kernels other than dense


@dataclasses.dataclass(frozen=True)
class Train:
    """The flags of one `dlmjax train`, and the config that they describe."""

    flags: tuple[str, ...]
    config_file: str
    workdir: str
    config: ConfigDict
    fork: str = ""
    init: str = ""
    fresh: bool = False

    @property
    def arguments(self) -> list[str]:
        """`train` and its flags; `--json` is always added, because a launcher reads from its line whether the run is finished."""
        return ["train", *self.flags, *([] if "--json" in self.flags else ["--json"])]

    def check_started_again(self, what: str) -> None:
        """Raises InputError for `--fresh` with `what`, a launcher whose restarts repeat the flags: each restart would
        move aside what the previous one has trained.
        """
        if self.fresh:
            raise InputError(
                f"--fresh conflicts with {what}, which repeats the flags at each restart: each would begin a new run; "
                "choose another --workdir, or move the contents of this one aside by hand"
            )

    def check_devices(self, devices: int, platform: str) -> None:
        """Raises InputError where the config does not run on this number of devices ("gpu" or "tpu"): the mesh does not fit the devices,
        the batch or the model does not fit the mesh, or the attention kernel requires another kind of chip.
        """
        from dlmjax.models.attention import runs_on  # here, as in `read_train`
        from dlmjax.parallel.sharding import on_paper

        data, model, execution = self.config.data, self.config.model, self.config.execution
        if not runs_on(execution.attention, execution.dtype, platform):
            raise InputError(
                f"execution.attention={execution.attention} with execution.dtype={execution.dtype} does not run on a {platform.upper()}; "
                f"pass --config.execution.attention={KERNELS[platform]} (or dense)"
            )
        mesh = fill_sizes(dict(self.config.mesh), devices, f"{devices} devices")
        microbatch = data.batch // self.config.train.accumulation
        on_paper(mesh).check(microbatch, data.length, model.width, model.heads, model.kv_heads, model.ffn)


class Parser(BaseParser):
    """A parser whose help shows the flags of `dlmjax train` after its own."""

    def __init__(self, name: str, doc: str, example: str):
        super().__init__(
            prog=f"python launch/{name}.py",
            usage=f"python launch/{name}.py {example} [any flag of dlmjax train]",
            description=doc,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )


def read_train(flags: list[str]) -> Train:
    """Checks flags of `dlmjax train` and the config they name.

    Raises:
      InputError: an unknown or missing flag, a bad config.
    """
    try:
        arguments, overrides = train_flags(flags)
    except InputError as error:
        raise InputError(f"flags that the launcher does not have belong to dlmjax train: {error}") from error
    from dlmjax import config as config_lib  # here, because it imports jax, which takes a second that --help need not wait

    config = config_lib.load(arguments.config, overrides)
    return Train(tuple(flags), arguments.config, arguments.workdir, config, arguments.fork or "", arguments.init or "", arguments.fresh)


def in_repository(train: Train) -> Train:
    """The same with the path of the config relative to the repository, as other machines have it.

    Raises:
      InputError: the config is not in the repository, so that the other machines do not have it.
    """
    path, colon, size = train.config_file.partition(".py:")
    try:
        inside = pathlib.Path(path).resolve().relative_to(ROOT)
    except ValueError as error:
        raise InputError(f"--config {train.config_file} is not in {ROOT}; put it into configs/, so that every machine has it") from error
    flags = list(train.flags)
    for index, flag in enumerate(flags):
        if flag == "--config":
            flags[index + 1] = f"{inside}{colon}{size}"
        elif flag.startswith("--config="):
            flags[index] = f"--config={inside}{colon}{size}"
    return dataclasses.replace(train, flags=tuple(flags))


def on_volumes(train: Train, volumes: tuple[str, ...]) -> tuple[Train, list[str]]:
    """Every `gs://bucket/...` of the flags as `/gcs/bucket/...`, where the launchers mount it; and the buckets.

    Args:
      volumes: directories that every host has in common.

    Raises:
      InputError: the workdir, a corpus or the run to start from is not on a volume, so that the hosts would not see the same files; an
        invalid bucket name.
    """
    flags = tuple(flag.replace("gs://", "/gcs/") for flag in train.flags)
    buckets = sorted(set(re.findall(r"gs://([^/\s'\",)]*)", " ".join(train.flags))))
    for bucket in buckets:
        if not re.fullmatch(r"[a-z0-9][a-z0-9._-]{1,61}[a-z0-9]", bucket):
            raise InputError(
                f"gs://{bucket} is not a bucket name: it requires 3 to 63 lower-case letters, digits, hyphens, dots and underscores"
            )
    mounted = dataclasses.replace(train, flags=flags, workdir=train.workdir.replace("gs://", "/gcs/"))
    volumes = (*volumes, *(f"/gcs/{bucket}" for bucket in buckets))
    if not train.config.data.paths:
        raise InputError("data.paths is empty; pass --config.data.paths=DIR")
    paths_by_flag = {"--workdir": [train.workdir], "--config.data.paths": train.config.data.paths}
    paths_by_flag |= {flag: [run] for flag, run in (("--fork", train.fork), ("--init", train.init)) if run}
    for flag, paths in paths_by_flag.items():
        for path in paths:
            if not any(path.replace("gs://", "/gcs/").startswith(f"{volume}/") for volume in volumes):
                raise InputError(
                    f"{flag} {path} is not on a volume that all hosts share; give {flag}=gs://bucket/dir, or a mounted directory"
                )
    return mounted, buckets


def shell_name(text: str, flag: str) -> str:
    """The text, if it is a name that clusters accept: lower case, digits and hyphens, at most 40 characters.

    Raises:
      InputError: another text; the message names the flag.
    """
    if not re.fullmatch(r"[a-z]([a-z0-9-]{0,38}[a-z0-9])?", text):
        raise InputError(f"{flag} is {text!r}; use at most 40 lower-case letters, digits and hyphens, the first a letter")
    return text


def default_name(train: Train) -> str:
    """The last part of the workdir, as such a name."""
    name = re.sub(r"[^a-z0-9]+", "-", train.workdir.rstrip("/").rpartition("/")[2].lower()).strip("-")
    return (name if name[:1].isalpha() else f"run-{name}").strip("-")[:40].strip("-")


def exit_code(name: str, main: Callable[[list[str]], int]) -> int:
    """Runs a launcher on the command line's flags: bad input is one line and 2, an interruption 130."""
    print_anything()
    try:
        return main(sys.argv[1:])
    except InputError as error:
        print(f"launch/{name}.py: {one_line(str(error))}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
