"""Provenance of a number: versions of software, commit and devices."""

import pathlib
import platform
import subprocess

import jax

import dlmjax


def provenance() -> dict[str, str | int | None]:
    """Versions, git state and devices: {"dlmjax", "git", "jax", "python", "backend", "device", "devices"}."""
    devices = jax.devices()
    return {
        "dlmjax": dlmjax.__version__,
        "git": git_state(pathlib.Path(dlmjax.__file__).parent),
        "jax": jax.__version__,
        "python": platform.python_version(),
        "backend": jax.default_backend(),
        "device": devices[0].device_kind,
        "devices": len(devices),
    }


def git_state(directory: pathlib.Path) -> str | None:
    """The commit of a checkout, with "+changes" where tracked files differ from it; None where `directory` is in no checkout."""

    def git(*words: str) -> str | None:
        try:
            done = subprocess.run(["git", "-C", str(directory), *words], capture_output=True, text=True, timeout=20)
        except (OSError, subprocess.TimeoutExpired):
            return None
        return done.stdout.strip() if done.returncode == 0 else None

    # A package that is installed inside another project's checkout is not of that commit.
    commit = git("rev-parse", "HEAD") if git("ls-files", "--error-unmatch", "__init__.py") else None
    if commit is None:
        return None
    return commit + ("+changes" if git("status", "--porcelain", "--untracked-files=no") else "")
