"""The ranks of one host sum through memory that they share.

Who shares memory with whom, handing the memory round, and the sum between hosts are what only MPI can do. Between
hosts, the ranks that own the same shard sum it, each part of it as soon as it is added up.

The memory is a memfd, which the local root creates and the others open through /proc. Unlike an MPI shared window it
has no name that could be left behind when a process is killed, and no mount whose size limit ends in SIGBUS. Where
there is too little of it, every rank goes on as if it were alone on its host, and all sums go by messages.
"""

import os
from collections.abc import Callable
from pathlib import Path
from typing import cast

import tensorflow as tf
from mpi4py import MPI

from distgrad.collectives import between_hosts
from distgrad.collectives.window import Window, view
from distgrad.errors import ModelMismatch, warn


class NoSharedMemory(Exception):
    """Some host's ranks cannot share memory."""


class SharedWindow(Window):
    """A window for all ranks of a host.

    Args:
        world: all ranks. Hosts may run different numbers of them.
        host: those of them that can share memory with this one.
        on_error, page: see `Window`.
    """

    def __init__(
        self, world: MPI.Intracomm, host: MPI.Intracomm, on_error: Callable[[Exception], None], page: int
    ) -> None:
        self._world = world
        self._made: list[MPI.Intracomm] = []
        self._seat(host)
        super().__init__(world.size, on_error, page)

    def close(self) -> None:
        super().close()
        for comm in self._made:
            comm.Free()

    def _seat(self, host: MPI.Intracomm) -> None:
        """Sit down beside the ranks that share this rank's memory."""
        self._host = host
        # Only as many ranks own a shard as the smallest host has, so that each shard has an owner on every host.
        self._owners = self._world.allreduce(host.size, op=MPI.MIN)
        color = host.rank if host.rank < self._owners else MPI.UNDEFINED
        self._across = self._split(color)
        self._hosts = self._world.allreduce(int(host.rank == 0), op=MPI.SUM)

    def _split(self, color: int) -> MPI.Intracomm:
        part = cast(MPI.Intracomm, self._world.Split(color, self._world.rank))
        if part != MPI.COMM_NULL:
            self._made.append(part)
        return part

    # ---- what the core asks for in the midst of a sum

    def _grow(self, needed: int, _: int = 0) -> None:
        """Every rank asks alike."""
        try:
            fd = self._share(self.bytes(needed, self._host.size))
        except NoSharedMemory as error:
            if self._world.rank == 0:
                warn(f"sums go by MPI messages, more slowly than through shared memory ({error})")
            self._seat(self._split(self._world.rank))
            fd = -1  # memory of its own
        self._map(needed, fd, (self._host.rank, self._host.size, self._owners, self._hosts > 1))
        if fd >= 0:
            os.close(fd)

    def _share(self, size: int) -> int:
        """A file descriptor of zeroed memory that all ranks of the host see.

        Raises:
            NoSharedMemory: on every rank of every host, if any of them could not get at it.
        """
        fd, problem = -1, ""
        if self._host.size > 1:  # a rank alone on its host needs no more than memory of its own
            fd, problem = self._open(size)
        problems = [text for text in self._world.allgather(problem) if text]
        if problems:
            if fd >= 0:
                os.close(fd)
            raise NoSharedMemory(problems[0])
        return fd

    def _open(self, size: int) -> tuple[int, str]:
        """The host's memory as a file descriptor and "", or -1 and what went wrong."""
        own = _attempt(lambda: _memfd(size)) if self._host.rank == 0 else (-1, "")
        pid, root_fd = self._host.bcast((os.getpid(), own[0]))
        if self._host.rank == 0 or root_fd < 0:
            return own
        return _attempt(lambda: os.open(f"/proc/{pid}/fd/{root_fd}", os.O_RDWR))

    def _sum_across(self, first: int, last: int) -> None:
        dtype = tf.dtypes.as_dtype(self._core.distgrad_window_type(self._address))
        shard = view(self._core.distgrad_window_result(self._address), last, dtype)[first:]

        def fill(start: int, stop: int) -> None:
            self._core.distgrad_window_sum_slots(self._address, first + start, first + stop)

        between_hosts.all_sum(self._across, shard, fill)

    def _refuse(self, rank: int, entries: int) -> None:
        raise ModelMismatch(
            f"local rank {rank} brought a vector of {entries} entries, unlike that of local rank 0",
            "sum the same variables, in the same order, on every worker",
            rank=rank,
            everywhere=True,
        )

    def _vote(self, own: int, _: int) -> None:
        self._votes(self._world.size)[:] = self._world.allgather(own)


def _attempt(open_memory: Callable[[], int]) -> tuple[int, str]:
    """A file descriptor and "", or -1 and what went wrong."""
    try:
        return open_memory(), ""
    except OSError as error:
        return -1, str(error)


def _memfd(size: int) -> int:
    """A new piece of memory without a name.

    Raises:
        OSError: the host has not that much memory left; better said now than when its pages are touched.
    """
    table = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
    available = 1024 * int(table["MemAvailable"].split()[0])
    if size > available:
        raise OSError(f"{size} bytes of shared memory are needed and {available} are free")
    fd = os.memfd_create("distgrad")
    os.ftruncate(fd, size)
    return fd
