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
    group = _make(os.getpid())
    assert group is not None
    (group / "cgroup.procs").write_text(str(os.getpid()))
    taken = []
    while True:
        taken.append(b"x" * (1 << 20))


def can_limit() -> bool:
    """Whether a group can be made here."""
    made = _make(os.getpid())
    remove(os.getpid())
    return made is not None


def remove(pid: int) -> None:
    """Remove a process's group, if it had one."""
    for root in LIMITS:
        with contextlib.suppress(OSError):
            _group(root, pid).rmdir()


def _make(pid: int) -> Path | None:
    for root, limit in LIMITS.items():
        group = _group(root, pid)
        with contextlib.suppress(OSError):
            group.mkdir()
            (group / limit).write_text(str(SPARE))
            return group
    return None


def _group(root: Path, pid: int) -> Path:
    return root / f"distgrad-{pid}"
