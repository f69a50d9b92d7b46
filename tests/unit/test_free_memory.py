"""The memory that a process may still take, as the files of the kernel tell it."""

from collections.abc import Mapping
from pathlib import Path

import pytest

from distgrad.collectives.free_memory import free_memory

HOST = "MemTotal: 9000 kB\nMemAvailable: 8000 kB\nSwapFree: 3 kB\nHugePages_Total: 0\n"
STATISTICS = (
    "anon 5\ninactive_file 30\nactive_file 3\nslab_reclaimable 1\ntotal_inactive_file 300\ntotal_active_file 40\n"
)
GROUPS: dict[str, tuple[str, dict[str, tuple[str, str]], int, str]] = {
    # what stands in /proc/self/cgroup; limit and usage by group; bytes that are free, and what leaves no more
    "no groups": ("", {}, 8_192_000, "this host"),
    "version 2": ("0::/a/b", {"/a/b": ("1000", "700")}, 334, "/a/b/memory.max"),
    "an outer one": ("0::/a/b", {"/a/b": ("max", "700"), "/a": ("900", "880")}, 54, "/a/memory.max"),
    "the tightest": ("0::/a/b", {"/a/b": ("1000", "700"), "/a": ("9000", "880")}, 334, "/a/b/memory.max"),
    "no limit": ("0::/a", {"/a": ("max", "700")}, 8_192_000, "this host"),
    "a container": ("0::/", {"": ("1000", "700")}, 334, "cgroup/memory.max"),
    "the host's path": ("0::/docker/1", {"": ("1000", "700")}, 334, "cgroup/memory.max"),
    "version 1": ("4:memory:/a\n0::/", {"/memory/a": ("1000", "700")}, 640, "memory/a/memory.limit_in_bytes"),
    "its container": ("4:memory:/docker/1", {"/memory": ("1000", "700")}, 640, "memory/memory.limit_in_bytes"),
    "already above": ("0::/a", {"/a": ("100", "700")}, -566, "/a/memory.max"),
}


def written(root: Path, cgroup: str, groups: Mapping[str, tuple[str, str]]) -> Path:
    texts = {"proc/meminfo": HOST, "proc/self/cgroup": cgroup}
    for name, (limit, usage) in groups.items():
        folder = f"sys/fs/cgroup{name}"
        is_first = name.startswith("/memory")
        names = ("memory.limit_in_bytes", "memory.usage_in_bytes") if is_first else ("memory.max", "memory.current")
        texts |= {f"{folder}/{file}": text for file, text in zip(names, (limit, usage), strict=True)}
        texts[f"{folder}/memory.stat"] = STATISTICS
    for name, text in texts.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


@pytest.mark.fault(41)
@pytest.mark.parametrize("case", GROUPS)
def test_the_tightest_limit_counts(case: str, tmp_path: Path) -> None:
    cgroup, groups, size, limited_by = GROUPS[case]
    found = free_memory(written(tmp_path, cgroup, groups))
    assert found.size == size
    assert found.limited_by.endswith(limited_by)
    assert found.swap == 3072


def test_of_this_host() -> None:
    assert free_memory().size > 0
