"""Processes of this host, as the kernel describes them in /proc and by pidfd: ancestors, how one ended, ending them.

A pidfd is a file descriptor of a process. No other process gets it by chance, as it could a process number, and it
becomes readable when the process ends.
"""

import contextlib
import fcntl
import os
import signal
import struct
import time
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path

# The kernel's PIDFD_GET_INFO (Linux 6.13; the exit status since 6.15): the request, its struct's size, what is asked.
GET_INFO, INFO_SIZE, INFO_EXIT, EXIT_STATUS_AT = 0xC040FF0B, 64, 1 << 3, 60


def host_id() -> str:
    """Text that is the same for all processes that see each other's numbers: of one kernel, boot and namespace."""
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return f"{boot} {os.readlink('/proc/self/ns/pid')}"


def ancestors_named(programs: Collection[str]) -> list[int]:
    """Return pidfds of this process's ancestors that run one of the programs."""
    return [pidfd for pid in _ancestors() if set(programs) & set(_names(pid)) for pidfd in pidfd_of(pid)]


def pidfd_of(pid: int) -> Iterator[int]:
    """Yield a pidfd of the process, or nothing once it is gone."""
    with contextlib.suppress(OSError):
        yield os.pidfd_open(pid)


def kill(pidfds: Sequence[int]) -> None:
    """Kill processes, whatever they do."""
    for pidfd in pidfds:
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(pidfd, signal.SIGKILL)


def how_it_ended(pid: int, pidfd: int) -> str:
    """Say how a process has ended: "by signal 9, ..." or "with status 3"; "" where the kernel does not tell."""
    status = _status_of_zombie(pid)
    if status is None:
        status = _status_of_reaped(pidfd)
    if status is None:
        return ""
    code = os.waitstatus_to_exitcode(status)
    if code >= 0:
        return f"with status {code}"
    return f"by signal {-code}" + (", possibly out of memory" if code == -signal.SIGKILL else "")


def is_stopped(pid: int) -> bool:
    """Return whether a signal, or a debugger, has brought the process to a halt."""
    return _stat(pid)[:1] in (["T"], ["t"])


def await_reaping(pid: int, seconds: float) -> None:
    """Wait until the parent of a process that has ended has asked how, for at most so many seconds."""
    end = time.monotonic() + seconds
    while _status_of_zombie(pid) is not None and time.monotonic() < end:
        time.sleep(0.01)


def _status_of_zombie(pid: int) -> int | None:
    fields = _stat(pid)
    return int(fields[-1]) if fields and fields[0] == "Z" else None


def _status_of_reaped(pidfd: int) -> int | None:
    answer = bytearray(INFO_SIZE)
    struct.pack_into("Q", answer, 0, INFO_EXIT)
    with contextlib.suppress(OSError):
        fcntl.ioctl(pidfd, GET_INFO, answer)
        if struct.unpack_from("Q", answer)[0] & INFO_EXIT:
            return int(struct.unpack_from("i", answer, EXIT_STATUS_AT)[0])
    return None


def _ancestors() -> Iterator[int]:
    pid = os.getppid()
    while pid:  # in a container a launcher may be process 1
        yield pid
        fields = _stat(pid)
        pid = int(fields[1]) if fields else 0


def _stat(pid: int) -> list[str]:
    """Fields of /proc/PID/stat behind the name: state, parent, ..., exit status; none once the process is gone."""
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return []


def _names(pid: int) -> list[str]:
    """Name of a program by the kernel, and as it was called: Open MPI's wheel wraps mpirun in another program."""
    with contextlib.suppress(OSError):
        called = Path(f"/proc/{pid}/cmdline").read_text().partition("\0")[0]
        return [Path(f"/proc/{pid}/comm").read_text().strip(), Path(called).name]
    return []
