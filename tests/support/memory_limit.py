"""Too little memory for one process: a control group with a limit, at which the kernel kills, as on a full host.

It takes root, and a system that lets control groups be made: version 1's, or version 2's (not run).
"""

import contextlib
import os
from pathlib import Path
from typing import NoReturn

SPARE = 64 << 20  # bytes that a process may still take
# By the folder of all groups: what the file with a group's limit is called.
LIMITS = {Path("/sys/fs/cgroup/memory"): "memory.limit_in_bytes", Path("/sys/fs/cgroup"): "memory.max"}


def run_out_of_memory() -> NoReturn:
    """Take memory until the kernel ends this process. Another one removes its group."""
    assert enter(os.getpid(), SPARE)
    taken = []
    while True:
        taken.append(b"x" * (1 << 20))


def enter(name: int, size: int) -> bool:
    """Have this process take no more than so many bytes from now on, with all that enter a group of this name.

    Returns whether that is possible here.
    """
    group = _make(name, size)
    if group is not None:
        (group / "cgroup.procs").write_text(str(os.getpid()))
    return group is not None


def can_limit() -> bool:
    """Whether a group can be made here."""
    made = _make(os.getpid(), SPARE)
    remove(os.getpid())
    return made is not None


def remove(name: int) -> None:
    """Remove a group, if there is one and no process in it."""
    for root in LIMITS:
        with contextlib.suppress(OSError):
            _group(root, name).rmdir()


def _make(name: int, size: int) -> Path | None:
    for root, limit in LIMITS.items():
        group = _group(root, name)
        with contextlib.suppress(OSError):
            group.mkdir(exist_ok=True)
            (group / limit).write_text(str(size))
            return group
    return None


def _group(root: Path, name: int) -> Path:
    """A process's own has its number for a name."""
    return root / f"distgrad-{name}"
