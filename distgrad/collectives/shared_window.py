"""The window of all ranks of a host: they sum through memory that they share.

Finding out which ranks share memory, handing it round, and the sum between hosts are what only MPI can do. Between
hosts, the ranks that own the same shard sum it, each part of it as soon as it is added up.

The memory is a memfd, which the local root creates and the others open through /proc. Unlike an MPI shared window it
has no name that could be left behind when a process is killed, and no mount whose size limit ends in SIGBUS. Where
there is too little of it, or none, every rank goes on as if it were alone on its host, and all sums go by messages.
Where there is too little for that, too, the job ends before it is killed.
"""

import itertools
import os
import time
import weakref
from collections.abc import Callable
from typing import NamedTuple, cast

import numpy as np
import tensorflow as tf
from mpi4py import MPI

from distgrad.collectives import between_hosts
from distgrad.collectives.compression import Compression
from distgrad.collectives.free_memory import free_memory
from distgrad.collectives.rounded_sums import RoundedSums
from distgrad.collectives.window import Seat, Slices, Window, view
from distgrad.errors import ModelMismatch, TooLittleMemory, warn
from distgrad.native.layout import Event


class NoSharedMemory(Exception):
    """Some host's ranks cannot share memory."""


class OpenedMemory(NamedTuple):
    """A file descriptor of memory, -1 for none, and what went wrong, "" for nothing."""

    fd: int
    problem: str = ""


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
        self._world, self._neighbours = world, host
        self._splits: list[MPI.Intracomm] = []
        self._published_capacity = 0  # bytes
        self._compressions = weakref.WeakValueDictionary[int, Compression]()
        self._numbers = itertools.count(1)
        self._join(host)
        super().__init__(world.size, on_error, page)

    def close(self) -> None:
        super().close()
        for comm in self._splits:
            comm.Free()

    def _join(self, host: MPI.Intracomm) -> None:
        """Take a seat beside the ranks that share this rank's memory; every rank calls it."""
        self._host = host
        # Only as many ranks own a shard as the smallest host has, so that each shard has an owner on every host.
        owners = self._world.allreduce(host.size, op=MPI.MIN)
        self._owners_of_shard = self._split(host.rank if host.rank < owners else MPI.UNDEFINED)
        hosts = self._world.allreduce(int(host.rank == 0), op=MPI.SUM)
        self._seat = Seat(host.rank, host.size, owners, between_hosts=hosts > 1)
        self._hosts = hosts

    @property
    def slices(self) -> Slices:
        """The slices of publications: those of the owners of one shard stand side by side."""
        owners = self._owners_of_shard
        own = None if owners == MPI.COMM_NULL else self._seat.rank * self._hosts + owners.rank
        return Slices(own, self._seat.owners * self._hosts, on_one_host=self._hosts == 1)

    def reserve_publication(self, entries: int, dtype: tf.DType) -> bool:
        needed = entries * dtype.size
        if needed <= self._published_capacity:
            return True
        try:
            fd = self._open_shared_memory(self._bytes_for(needed, 0))
        except NoSharedMemory:
            return False
        self._published_capacity = needed
        is_mapped = self._core.distgrad_window_map_published(self._address, fd, needed)
        if fd >= 0:
            os.close(fd)
        if not is_mapped:
            raise MemoryError(f"no memory for vectors of {needed} bytes")
        return True

    def _split(self, color: int) -> MPI.Intracomm:
        """The ranks of the same color, as an MPI communicator."""
        split = cast(MPI.Intracomm, self._world.Split(color, self._world.rank))
        if split != MPI.COMM_NULL:
            self._splits.append(split)
        return split

    def compression(self, measures: bool) -> Compression | None:
        if self._world.size == self._neighbours.size:
            return None
        number = next(self._numbers)
        found = self._compressions[number] = Compression(number, RoundedSums(), measures)
        return found

    # ---- what the core asks for in the midst of a sum; but for a mismatch, of every rank alike

    def _handle(self, event: Event, a: int, b: int) -> None:
        if event is Event.SUM_BETWEEN_HOSTS:
            self._sum_between_hosts(a, b)
        elif event is Event.MISMATCH:
            raise ModelMismatch(
                f"local rank {a} brought a vector of {b} entries, unlike that of local rank 0",
                "sum the same variables, in the same order, on every worker",
                rank=a,
                everywhere=True,
            )
        elif event is Event.OTHER_PARTS:
            raise ModelMismatch(
                f"local rank {a} divides or describes other parts of its vector than local rank 0, {b} by themselves",
                "sum the same variables, in the same order and with the same statistics, on every worker",
                rank=a,
                everywhere=True,
            )
        elif event is Event.VOTE:
            self._nonfinite_workers()[:] = self._world.allgather(a)
        elif event is Event.PUBLISH_BETWEEN_HOSTS:
            self._publish_between_hosts(a, b)
        else:
            super()._handle(event, a, b)

    def _grow(self, needed: int) -> None:
        try:
            fd = self._open_shared_memory(self._bytes_for(needed, self._host.size))
        except NoSharedMemory as error:
            if self._world.rank == 0:
                warn(f"sums go by MPI messages, more slowly than through shared memory ({error})")
            self._join(self._split(self._world.rank))
            fd = -1  # memory of its own
        self._require_own_memory(2 * needed if fd < 0 else 0)  # its vector, and the sum
        self._map(needed, fd, self._seat)
        if fd >= 0:
            os.close(fd)

    def _open_shared_memory(self, size: int) -> int:
        """Return a file descriptor of zeroed memory that all ranks of the host see, -1 where there is only one.

        Raises:
            NoSharedMemory: on every rank of every host, if any of them could not get at it.
        """
        opened = OpenedMemory(-1)
        if self._host.size > 1:  # a rank alone on its host needs no more than memory of its own
            opened = self._open_on_host(size)
        problems = [text for text in self._world.allgather(opened.problem) if text]
        if problems:
            if opened.fd >= 0:
                os.close(opened.fd)
            raise NoSharedMemory(problems[0])
        return opened.fd

    def _require_own_memory(self, size: int) -> None:
        """Check that every rank can have memory of its own, beside those that are under the same limit. All call it.

        Args:
            size: bytes of this rank's own; 0 if it shares the memory of its host.

        Raises:
            TooLittleMemory: on every rank, if one of them cannot.
        """
        free = free_memory()
        sharing = self._neighbours.allgather(free.limited_by).count(free.limited_by)
        short = f"{sharing * size} bytes of memory are needed for sums, and {free.limited_by} leaves {free.size}"
        ranks = self._world.allgather(short if sharing * size > free.size + free.swap else "")
        if any(ranks):
            rank = next(rank for rank, text in enumerate(ranks) if text)
            raise TooLittleMemory(
                ranks[rank], "raise that limit, or start fewer workers there", rank=rank, everywhere=True
            )

    def _open_on_host(self, size: int) -> OpenedMemory:
        """Have the local root create the memory, and open it."""
        is_local_root = self._host.rank == 0
        created = _attempt(lambda: _create_memory(size)) if is_local_root else OpenedMemory(-1)
        pid, root_fd = self._host.bcast((os.getpid(), created.fd))
        if is_local_root or root_fd < 0:
            return created
        return _attempt(lambda: os.open(f"/proc/{pid}/fd/{root_fd}", os.O_RDWR))

    def _sum_between_hosts(self, first: int, last: int) -> None:
        """Sum this rank's shard, entries first..last-1 of the result, over the hosts."""
        dtype = tf.dtypes.as_dtype(self._core.distgrad_window_type(self._address))
        shard = view(self._core.distgrad_window_result(self._address), last, dtype)[first:]

        def fill(start: int, stop: int) -> None:
            if not self._core.distgrad_window_sum_slots(self._address, first + start, first + stop):
                raise IndexError(f"entries {first + start} to {first + stop} are not of the sum")

        compression = self._compressions.get(self._core.distgrad_window_compression(self._address))
        if compression is None:
            between_hosts.all_sum(self._owners_of_shard, shard, fill)
            return
        began = time.perf_counter()
        divided = shard[: max(0, self._core.distgrad_window_divided(self._address) - first)]
        self._sum_compressed(compression, shard, divided, fill)
        compression.took(time.perf_counter() - began)

    def _sum_compressed(
        self, compression: Compression, shard: np.ndarray, divided: np.ndarray, fill: between_hosts.Fill
    ) -> None:
        """Sum a shard, of which the `divided` entries, its first, may be compressed, and all others are exact."""
        ranks, count = self._owners_of_shard, divided.size
        if not compression.rounds or not between_hosts.goes_in_blocks(ranks.size, divided.nbytes):
            between_hosts.all_sum(ranks, shard, fill)
            return
        divisor = self._core.distgrad_window_host_divisor(self._address)
        compression.sums.all_sum(ranks, divided, fill, divisor)
        if count < shard.size:
            between_hosts.all_sum(ranks, shard[count:], lambda start, stop: fill(count + start, count + stop))

    def _publish_between_hosts(self, first: int, last: int) -> None:
        """Give the owners of the same shard entries first..last-1 of a publication, and get theirs."""
        dtype = tf.dtypes.as_dtype(self._core.distgrad_window_published_type(self._address))
        capacity = self._published_capacity // dtype.size
        vector = view(self._core.distgrad_window_published(self._address), capacity, dtype)
        between_hosts.all_gather(self._owners_of_shard, vector, first, last)


def _attempt(open_memory: Callable[[], int]) -> OpenedMemory:
    try:
        return OpenedMemory(open_memory())
    except OSError as error:
        return OpenedMemory(-1, str(error))


def _create_memory(size: int) -> int:
    """Create memory without a name and return its file descriptor.

    Raises:
        OSError: there is not that much memory left, which is better said now than when its pages are touched; or the
            system makes none of this kind.
    """
    free = free_memory()
    if size > free.size:
        raise OSError(f"{size} bytes of shared memory are needed and {free.limited_by} leaves {free.size}")
    if not hasattr(os, "memfd_create"):
        raise OSError("this system has no memfd_create")
    fd = os.memfd_create("distgrad")
    os.ftruncate(fd, size)
    return fd
