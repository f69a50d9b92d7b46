"""Mounts of a command's own: they end with it, so that nothing is left behind, and nobody else's files are seen."""

import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

ISOLATED = ["unshare", "--mount"]
SHM = Path("/dev/shm")
BEGUN_AGAIN = "DISTGRAD_TEST_APART"

needs_mounts = pytest.mark.skipif(
    shutil.which("unshare") is None or subprocess.run([*ISOLATED, "true"], check=False, capture_output=True).returncode,
    reason="mounting takes the right to a mount namespace, root's as a rule",
)


def on(mounts: str, command: Sequence[str]) -> list[str]:
    """A Python command line that runs where these mounts are made, which end with it."""
    return [*ISOLATED, "sh", "-c", f'{mounts} && exec "$@"', "sh", sys.executable, *command]


def begin_again(more: str = "true") -> None:
    """Begin this program again where /dev/shm is its own, and the folder for temporary files is in it."""
    if BEGUN_AGAIN in os.environ:
        return
    temporary = SHM / "tmp"
    os.environ |= {BEGUN_AGAIN: "1", "TMPDIR": str(temporary)}
    mounts = f"mount -t tmpfs none {SHM} && mkdir {temporary} && {more}"
    os.execvp(ISOLATED[0], on(mounts, sys.argv))


def left_in_memory(known: Sequence[Path] = ()) -> list[Path]:
    """What lies in /dev/shm and in the folder for temporary files, apart from what is known."""
    found = {path for folder in (SHM, SHM / "tmp") for path in folder.iterdir()}
    return sorted(found - {SHM / "tmp", *known})


def take_what_is_left() -> list[Path]:
    """The same; it is gone then."""
    left = left_in_memory()
    for path in left:
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()
    return left
