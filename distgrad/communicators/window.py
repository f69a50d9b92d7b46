"""The ranks of one host sum through memory that they share.

    parts     one slot a rank       each rank copies its vector into its own
    results   a few slots a host    each rank sums its shard, over all parts in rank order, into one of them

A sum is: copy in, meet, add one's own shard, meet, read the whole result where it stands. Per host that moves
2nS + (n+1)S bytes for n ranks and S bytes of vector, where messages would copy each part several times. The order of
the additions is fixed, so the same inputs give the same bits on every run and on every rank.

Between hosts, the ranks that own the same shard sum it, each part of it as soon as it is added up. A rank alone on its
host needs no part: its vector goes straight into the result.

The memory is a memfd, which the local root creates and the others open through /proc. Unlike an MPI shared window it
has no name that could be left behind when a process is killed, and no mount whose size limit ends in SIGBUS.
"""

import collections
import functools
import mmap
import operator
import os
import weakref
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
from mpi4py import MPI

from distgrad.communicators import across
from distgrad.communicators.pieces import Pieces, add, chunks, first_of
from distgrad.errors import ModelMismatch
from distgrad.statistics import Moments, merge_moments, moments_of_chunks

ALIGNMENT = 64  # bytes; TensorFlow reads an array in place only from such an address
LENT = 2  # result slots that tensors may alias; the last slot is never lent, only copied from
SLOTS = LENT + 1


class NoSharedMemory(Exception):
    """Some host's ranks cannot share memory; the caller sums by messages instead."""


class Window:
    """Shared memory for the vectors of a host's ranks; it grows to the largest vector seen.

    Args:
        world: all ranks. Hosts may run different numbers of them.
        host: those of them that can share memory with this one.

    Raises:
        NoSharedMemory: on every rank.
    """

    def __init__(self, world: MPI.Intracomm, host: MPI.Intracomm) -> None:
        self._world, self._host = world, host
        # Only as many ranks own a shard as the smallest host has, so that each shard has an owner on every host.
        self._owners = world.allreduce(host.size, op=MPI.MIN)
        owner = host.rank < self._owners
        color = host.rank if owner else MPI.UNDEFINED
        self._across = cast(MPI.Intracomm, world.Split(color, world.rank))
        # What each rank brings to a sum: entries, dtype number, and a bit for each result slot it still reads from.
        self._notes = self._share(8 * 3 * host.size).view(np.int64).reshape(host.size, 3)
        # What each rank found in its shard of the result.
        self._moments = self._share(8 * 4 * host.size).view(np.float64).reshape(host.size, 4)
        self._grow(mmap.PAGESIZE)

    def close(self) -> None:
        """Free what it made. The memory goes when the last tensor that aliases it does."""
        if self._across != MPI.COMM_NULL:
            self._across.Free()

    def part(self, size: int, dtype: np.dtype[Any]) -> np.ndarray:
        """(size,) this rank's own slot. A vector that is made here is not copied in by the next `all_sum`.

        Every rank calls it, with the same size. The array is good until a larger vector is summed.

        Raises:
            NoSharedMemory: on every rank.
        """
        if size * dtype.itemsize > self._capacity:
            self._grow(size * dtype.itemsize)
        return self._slot(self._host.rank, size, dtype)

    def all_sum(self, arrays: Sequence[np.ndarray], described: int = 0) -> tuple[np.ndarray, Moments]:
        """Sum a vector, given in pieces, over all ranks.

        Args:
            arrays: the pieces, 1-D and of one dtype; their sizes add up to the same s on every rank.
            described: of how many entries, from the first, the moments are wanted.

        Returns:
            (s,) the sum, in shared memory: to be read only. It is not written again while the array, or a tensor made
            of it, lives. And its moments, see `statistics`; zeros if none of its entries are to be described.

        Raises:
            ModelMismatch: the ranks of this host brought vectors of different size or dtype; nothing was summed.
            NoSharedMemory: on every rank; there is too little for vectors of this size.
        """
        pieces = Pieces(arrays)
        size, dtype = pieces.size, pieces.dtype
        fits = size * dtype.itemsize <= self._capacity
        if fits:
            self._copy_in(pieces)
        notes = self._meet(size, dtype)
        if not fits:
            self._grow(size * dtype.itemsize)
            self._copy_in(pieces)
            self._host.Barrier()
        slot = _first_free(notes)
        result = self._slot(self._host.size + slot, size, dtype)
        with np.errstate(over="ignore", invalid="ignore"):  # the step finds and reports what is not finite
            self._moments[self._host.rank] = self._add_own_shard(pieces, result, described)
        self._host.Barrier()
        found = merge_moments(self._moments.tolist())
        if slot == LENT:
            return result.copy(), found
        self._lent[slot] = weakref.ref(result)
        return result, found

    def _meet(self, size: int, dtype: np.dtype[Any]) -> list[list[int]]:
        """Wait for the other ranks and return everyone's notes."""
        busy = sum(1 << slot for slot, lent in enumerate(self._lent) if lent is not None and lent() is not None)
        self._notes[self._host.rank] = size, dtype.num, busy
        self._host.Barrier()
        notes: list[list[int]] = self._notes.tolist()
        for rank, (their_size, their_dtype, _) in enumerate(notes):
            if (their_size, their_dtype) != (notes[0][0], notes[0][1]):
                raise ModelMismatch(
                    f"local rank {rank} brought a vector of {their_size} entries, local rank 0 one of {notes[0][0]}",
                    "sum the same variables, in the same order, on every worker",
                    rank=rank,
                    everywhere=True,
                )
        return notes

    def _grow(self, needed: int) -> None:
        """Replace the memory by a larger one. Tensors that alias the old one keep it alive."""
        self._capacity = -(-needed // mmap.PAGESIZE) * mmap.PAGESIZE
        self._memory = self._share(self._capacity * (self._host.size + SLOTS))
        self._lent: list[weakref.ref[Any] | None] = [None] * LENT
        # Touched now, and by the rank that will use it, rather than within a step.
        self._slot(self._host.rank, self._capacity, np.dtype(np.uint8)).fill(0)

    def _slot(self, number: int, size: int, dtype: np.dtype[Any]) -> np.ndarray:
        return np.frombuffer(self._memory, dtype, size, number * self._capacity)

    def _copy_in(self, pieces: Pieces) -> None:
        if self._host.size > 1:
            pieces.copy(0, self._slot(self._host.rank, pieces.size, pieces.dtype))

    def _add_own_shard(self, pieces: Pieces, result: np.ndarray, described: int) -> Moments:
        """Add all parts within this rank's shard; where there are several hosts, over them too.

        Returns:
            The moments of those of the shard's entries that are to be described.
        """
        if self._host.rank >= self._owners:
            return merge_moments([])
        first, last = (_boundary(result.size, self._host.rank + end, self._owners) for end in (0, 1))
        sums = self._added(pieces, result, first, last)  # each described while it is in the cache
        if self._across.size > 1:

            def fill(start: int, stop: int) -> None:
                collections.deque(self._added(pieces, result, first + start, first + stop), maxlen=0)

            across.all_sum(self._across, result[first:last], fill)
            sums = iter(chunks(result[first:last]))
        return moments_of_chunks(first_of(described - first, sums))

    def _added(self, pieces: Pieces, result: np.ndarray, first: int, last: int) -> Iterator[np.ndarray]:
        """Put the sum of the host's parts, in rank order, into entries first..last of the result, chunk by chunk."""
        if self._host.size == 1:
            pieces.copy(first, result[first:last])
            return iter(chunks(result[first:last]))
        parts = [self._slot(rank, result.size, result.dtype)[first:last] for rank in range(self._host.size)]
        return map(add, chunks(result[first:last]), *map(chunks, parts))

    def _share(self, size: int) -> np.ndarray:
        """(size,) bytes, zero, that all ranks of the host see.

        Raises:
            NoSharedMemory: on every rank of every host, if any of them could not get at it.
        """
        fd, problem = _attempt(lambda: _memfd(size)) if self._host.rank == 0 else (-1, "")
        pid, root_fd = self._host.bcast((os.getpid(), fd))
        if self._host.rank > 0 and root_fd >= 0:
            fd, problem = _attempt(lambda: os.open(f"/proc/{pid}/fd/{root_fd}", os.O_RDWR))
        problems = [text for text in self._world.allgather(problem) if text]
        try:
            if problems:
                raise NoSharedMemory(problems[0])
            return np.frombuffer(mmap.mmap(fd, size), np.uint8)
        finally:
            if fd >= 0:
                os.close(fd)


def _attempt(open_memory: Callable[[], int]) -> tuple[int, str]:
    """A file descriptor and "", or -1 and what went wrong."""
    try:
        return open_memory(), ""
    except OSError as error:
        return -1, str(error)


def _boundary(size: int, shard: int, shards: int) -> int:
    """Where a shard begins: whole cache lines, so that no two ranks write into one."""
    return size if shard == shards else size * shard // shards // ALIGNMENT * ALIGNMENT


def _first_free(notes: list[list[int]]) -> int:
    """The result slot that no rank still reads from; the same on every rank, since all have read the same notes."""
    busy = functools.reduce(operator.or_, (bits for _, _, bits in notes))
    return next((slot for slot in range(LENT) if not busy >> slot & 1), LENT)


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
