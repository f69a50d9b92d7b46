"""The other processes of a job on this host: their ranks, process numbers and status pages."""

import contextlib
import json
import os
from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple

from distgrad.liveness.processes import host_id, pidfd_of
from distgrad.liveness.status_page import NO_FD, StatusPage


class Peer(NamedTuple):
    """Another process of the job on this host.

    Attributes:
        rank: of its first worker.
        pid: its process number.
        pidfd: its pidfd, see processes.py.
        page: its status page.
    """

    rank: int
    pid: int
    pidfd: int
    page: StatusPage


class Peers:
    """All processes of the job on this host, as far as they are known.

    Args:
        rank, page: of this process.
        processes: how many the job has on all hosts.
        exchange: gives every process every process's text, by rank. All call it, if it is given; without it no other
            process is known.

    Attributes:
        rank: of this process's first worker.
        others: the processes of this host but this one.
        complete: True if these and this one are all of the job.
    """

    def __init__(
        self,
        rank: int,
        page: StatusPage,
        processes: int,
        exchange: Callable[[str], Mapping[int, str]] | None = None,
    ) -> None:
        self.rank = rank
        own = [host_id(), os.getpid(), page.fd]
        texts = exchange(json.dumps(own)) if exchange else {}
        self.others: list[Peer] = []
        for other, text in texts.items():
            host, pid, fd = json.loads(text)
            if other != rank and host == own[0]:
                self.others.extend(_open(other, pid, fd))
        self.complete = len(self.others) + 1 == processes
        self._own = page
        self._first = self.pages()[min(self.pages())]

    def pages(self) -> dict[int, StatusPage]:
        """Return the pages of this process and of the others, by rank."""
        return {self.rank: self._own} | {peer.rank: peer.page for peer in self.others}

    def close(self) -> None:
        """Look at no other process any more."""
        for peer in self.others:
            os.close(peer.pidfd)
            peer.page.close()
        self.others.clear()
        self._first = self._own

    def claim_report(self) -> bool:
        """Return True to the first process of this host that asks: it is the one to say why the job ends."""
        return self._first.claim()


def _open(rank: int, pid: int, fd: int) -> Iterator[Peer]:
    """Yield the peer, or nothing where this process may not look at another's memory."""
    for pidfd in pidfd_of(pid) if fd != NO_FD else ():
        with contextlib.suppress(OSError):
            yield Peer(rank, pid, pidfd, StatusPage(os.open(f"/proc/{pid}/fd/{fd}", os.O_RDWR | os.O_CLOEXEC)))
