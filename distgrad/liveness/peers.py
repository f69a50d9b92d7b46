"""The other processes of a job on this host: where each one is in the sums, and whether it lives.

Each has a page of shared memory (native/status_page.h) and opens those of the others through /proc, as the window does.
It has no name, so that nothing can be left behind. A process's end is noticed through its pidfd, which no other process
can get by chance, as it could a process number.
"""

import contextlib
import ctypes
import fcntl
import json
import mmap
import os
import signal
import struct
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from distgrad.native.layout import StatusPage

if TYPE_CHECKING:
    from distgrad.collectives.communicator import Communicator

TURN, INSIDE, AWAY, LEFT, DUMPS = StatusPage  # what stands in a page, each an int64
# Programs that end a job when they end; a batch system looks after itself what becomes of them.
LAUNCHERS = {"mpirun", "mpiexec", "orterun", "orted", "prterun", "prted", "hydra_pmi_proxy", "horovodrun"}
BATCH_SYSTEMS = {"slurmstepd"}
# The kernel's PIDFD_GET_INFO (Linux 6.13; the exit status since 6.15): the request, its struct's size, what is asked.
GET_INFO, INFO_SIZE, INFO_EXIT, EXIT_STATUS_AT = 0xC040FF0B, 64, 1 << 3, 60


class Page:
    """One process's page, as it is seen by all processes of its host."""

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self.memory = np.frombuffer(mmap.mmap(fd, mmap.PAGESIZE), np.int64)

    @classmethod
    def new(cls) -> "Page":
        """A page of this process's own."""
        fd = os.memfd_create("distgrad-page", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        os.ftruncate(fd, mmap.PAGESIZE)
        page = cls(fd)
        # Compiled code writes to it until the process has ended, and so longer than Python lives.
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(page.memory))
        return page

    @property
    def address(self) -> int:
        """For the compiled core."""
        return self.memory.ctypes.data

    def __getitem__(self, field: int) -> int:
        return int(self.memory[field])

    def __setitem__(self, field: int, value: int) -> None:
        self.memory[field] = value

    def seal(self) -> bool:
        """Whether this is the first call on any process: the kernel takes this seal once."""
        try:
            fcntl.fcntl(self.fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SEAL)
        except PermissionError:
            return False
        return True


class Peer(NamedTuple):
    """Another process of the job on this host: its rank, its page, and what becomes readable at its end."""

    rank: int
    pid: int
    pidfd: int
    page: Page


class Peers:
    """All processes of the job on this host, as far as they are known.

    Args:
        tell: gives every process every process's text, by rank.

    Attributes:
        others: all but this one.
        complete: whether these and this one are all of the job.
    """

    def __init__(self, comm: "Communicator", tell: Callable[[str], Sequence[str]] = lambda _: ()) -> None:
        own = [_system(), os.getpid(), comm.page.fd]
        known = {rank: json.loads(text) for rank, text in enumerate(tell(json.dumps(own))) if text}
        here = {rank: card for rank, card in known.items() if card[0] == own[0] and rank != comm.rank}
        self.others = [peer for rank, card in here.items() for peer in _open(rank, *card[1:])]
        self.complete = (len(self.others) + 1) * comm.span == comm.size
        pages = {peer.rank: peer.page for peer in self.others} | {comm.rank: comm.page}
        self._first = pages[min(pages)]

    def may_speak(self) -> bool:
        """Whether nobody on this host has yet said why the job ends. Whoever asks first is the one to say it."""
        return self._first.seal()


def above(names: Collection[str]) -> list[int]:
    """The pidfds of those programs above this process that are called so."""
    return [pidfd for pid in _ancestors() if set(names) & set(_names(pid)) for pidfd in _pidfd(pid)]


def kill(peers: Sequence[Peer]) -> None:
    """End them whatever they do."""
    for peer in peers:
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(peer.pidfd, signal.SIGKILL)


def how_it_ended(peer: Peer) -> str:
    """What the kernel tells about a process that has ended: "by signal 9, ..." or "with status 3"; "" if nothing."""
    status = _status_of_zombie(peer.pid)
    if status is None:
        status = _status_of_reaped(peer.pidfd)
    if status is None:
        return ""
    code = os.waitstatus_to_exitcode(status)
    if code >= 0:
        return f"with status {code}"
    return f"by signal {-code}" + (", possibly out of memory" if code == -signal.SIGKILL else "")


def is_stopped(peer: Peer) -> bool:
    """Whether a signal, or a debugger, has brought it to a halt."""
    return _stat(peer.pid)[:1] in (["T"], ["t"])


def await_reaping(peer: Peer, seconds: float) -> None:
    """Wait until the parent of a process that has ended knows how, but no longer than that."""
    end = time.monotonic() + seconds
    while _status_of_zombie(peer.pid) is not None and time.monotonic() < end:
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


def _open(rank: int, pid: int, fd: int) -> Iterator[Peer]:
    """The peer; none where this process may not look at another's memory."""
    for pidfd in _pidfd(pid):
        with contextlib.suppress(OSError):
            yield Peer(rank, pid, pidfd, Page(os.open(f"/proc/{pid}/fd/{fd}", os.O_RDWR | os.O_CLOEXEC)))


def _pidfd(pid: int) -> Iterator[int]:
    with contextlib.suppress(OSError):
        yield os.pidfd_open(pid)


def _system() -> str:
    """Processes that have this in common see one another."""
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return f"{boot} {os.readlink('/proc/self/ns/pid')}"


def _ancestors() -> Iterator[int]:
    pid = os.getppid()
    while pid:  # in a container a launcher may be process 1
        yield pid
        fields = _stat(pid)
        pid = int(fields[1]) if fields else 0


def _stat(pid: int) -> list[str]:
    """What the kernel tells of a process behind its name: state, parent, ..., exit status; nothing once it is gone."""
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return []


def _names(pid: int) -> list[str]:
    """What the kernel calls a program, and what it was called as: Open MPI's wheel wraps mpirun in another."""
    with contextlib.suppress(OSError):
        called = Path(f"/proc/{pid}/cmdline").read_text().partition("\0")[0]
        return [Path(f"/proc/{pid}/comm").read_text().strip(), Path(called).name]
    return []
