"""The memory that this process may still take: what the host has left, and what its control groups allow.

The kernel kills a process that takes more, and the job with it.
"""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple


class GroupFiles(NamedTuple):
    """The files of a control group, of one of the kernel's two versions of them.

    Attributes:
        place: the folder of all groups.
        prefix: of the line in /proc/self/cgroup that has the group's path.
        limit, usage: names of files with a number of bytes.
        caches: names in `memory.stat` of what the kernel gives up before it kills.
    """

    place: str
    prefix: str
    limit: str
    usage: str
    caches: tuple[str, ...]


VERSIONS = (
    GroupFiles(
        "sys/fs/cgroup",
        "0::",
        "memory.max",
        "memory.current",
        ("inactive_file", "active_file", "slab_reclaimable"),
    ),
    GroupFiles(
        "sys/fs/cgroup/memory",
        ":memory:",
        "memory.limit_in_bytes",
        "memory.usage_in_bytes",
        ("total_inactive_file", "total_active_file"),
    ),
)


class FreeMemory(NamedTuple):
    """Memory that is free.

    Attributes:
        size: bytes; below 0 where more is in use than a limit that was lowered.
        limited_by: what has no more, for messages.
        swap: bytes that can be swapped out besides.
    """

    size: int
    limited_by: str
    swap: int


def free_memory(root: Path = Path("/")) -> FreeMemory:
    """Find the least that is free: of the host, of this process's control groups, and of those that they are in.

    Args:
        root: the folder in which `proc` and `sys` are.
    """
    host = _numbers(root / "proc/meminfo")
    found = [(1024 * host["MemAvailable:"], "this host"), *_free_in_groups(root)]
    return FreeMemory(*min(found), swap=1024 * host.get("SwapFree:", 0))


def _free_in_groups(root: Path) -> Iterator[tuple[int, str]]:
    for version in VERSIONS:
        for group in _groups(root, version):
            with contextlib.suppress(OSError, ValueError):  # no such file, or "max": no limit
                limit, usage = (int((group / name).read_text()) for name in (version.limit, version.usage))
                statistics = _numbers(group / "memory.stat")
                caches = sum(statistics.get(name, 0) for name in version.caches)
                yield limit - usage + caches, f"the limit of {limit} bytes in {group / version.limit}"


def _groups(root: Path, version: GroupFiles) -> Iterator[Path]:
    """Yield the folders of this process's group and of all around it.

    In a container the path may be the host's, while only the container's own group is seen, in the place of all groups.
    """
    place = root / version.place
    with contextlib.suppress(OSError):
        for line in (root / "proc/self/cgroup").read_text().splitlines():
            head, found, path = line.partition(version.prefix)
            if found and (head == "" or head.isdecimal()):
                group = place / path.lstrip("/")
                yield from (group, *(around for around in group.parents if around.is_relative_to(place)))


def _numbers(file: Path) -> dict[str, int]:
    """Read lines of a name and a number."""
    words = (line.split() for line in file.read_text().splitlines())
    return {name: int(number) for name, number, *_ in words}
