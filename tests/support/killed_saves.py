"""Kill a save at every boundary of a system call, and see what is left: `python -m support.killed_saves FOLDER`.

A child is traced from system call to system call, and killed at the first stop, at the second, and so on until a save
gets through. Each time the folder must give a whole checkpoint, and the next save must work.
"""

import ctypes
import os
import shutil
import signal
import sys
from pathlib import Path

import numpy as np

from distgrad.checkpoint.directory import CheckpointDirectory
from distgrad.checkpoint.file import CheckpointContent
from support import checkpoints

TRACE_ME, NEXT_CALL = 0, 24  # requests of ptrace(2)
LIBC = ctypes.CDLL(None, use_errno=True)


def content(step: int) -> CheckpointContent:
    return checkpoints.content(step, {"weights": np.full((300, 50), step, "float32")})


def save_traced(folder: Path, stops: int) -> bool:
    """Save step 2 in a child that is killed at a stop, before or after a call; whether it got through before that."""
    child = os.fork()
    if child == 0:
        if LIBC.ptrace(TRACE_ME, 0, 0, 0) != 0:
            os._exit(os.EX_NOPERM)
        os.kill(os.getpid(), signal.SIGSTOP)
        CheckpointDirectory(folder, keep=1).write(2, content(2))
        os._exit(0)
    _, status = os.waitpid(child, 0)
    for _ in range(stops):
        LIBC.ptrace(NEXT_CALL, child, 0, 0)
        _, status = os.waitpid(child, 0)
        if os.WIFEXITED(status):
            break
    if os.WIFEXITED(status):
        if os.WEXITSTATUS(status):
            sys.exit(os.WEXITSTATUS(status))
        return True
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return False


def newest(folder: Path) -> int:
    """The step that a resume would take; its weights are whole."""
    found = CheckpointDirectory(folder, keep=1).read_newest()
    assert found is not None
    assert (found.arrays["variables/00000/weights"] == found.meta["step"]).all()
    return int(found.meta["step"])


def main(folder: Path) -> None:
    found: list[int] = []
    through = False
    while not through:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        CheckpointDirectory(folder, keep=1).write(1, content(1))
        through = save_traced(folder, len(found))
        found.append(newest(folder))
        directory = CheckpointDirectory(folder, keep=1)
        directory.prepare()
        directory.write(3, content(3))
        assert [path.name for path in folder.iterdir()] == ["step-0000000003.npz"]
    print(f"killed at {len(found) - 1} places, at {found.count(2) - 1} of them when the file was complete")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
