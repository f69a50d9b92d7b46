"""The ranks of one host sum through memory that they share.

The sum itself is compiled (native/window.h). Here is what only MPI can do: who shares memory with whom, handing the
memory round, and the sum between hosts, where the ranks that own the same shard sum it, each part of it as soon as it
is added up.

The memory is a memfd, which the local root creates and the others open through /proc. Unlike an MPI shared window it
has no name that could be left behind when a process is killed, and no mount whose size limit ends in SIGBUS. Where
there is too little of it, every rank goes on as if it were alone on its host, and all sums go by messages.
"""

import ctypes
import functools
import mmap
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
import tensorflow as tf
from mpi4py import MPI

from distgrad import native
from distgrad.communicators import across
from distgrad.errors import ModelMismatch, warn
from distgrad.gradient import Gradient
from distgrad.layout import LANES, Layout


class NoSharedMemory(Exception):
    """Some host's ranks cannot share memory."""


class Window:
    """Memory for the vectors of a host's ranks; it grows to the largest vector seen.

    Args:
        world: all ranks. Hosts may run different numbers of them.
        host: those of them that can share memory with this one.
        on_error: told of an exception in the midst of a sum, which TensorFlow would hide.
    """

    def __init__(self, world: MPI.Intracomm, host: MPI.Intracomm, on_error: Callable[[Exception], None]) -> None:
        self._world, self._on_error = world, on_error
        self._core = native.functions()
        self._event = native.Event(self._answer)  # the core keeps its address
        self._address: int = self._core.distgrad_window_new(self._event, world.size)
        self._capacity = 0
        self._seat(host)
        self._grow(mmap.PAGESIZE)

    def close(self) -> None:
        """Free what it made. The memory goes when the last tensor that aliases it does."""
        self._core.distgrad_window_close(self._address)
        if self._across != MPI.COMM_NULL:
            self._across.Free()

    def reserve(self, size: int, dtype: tf.DType) -> None:
        """Make room for vectors of so many entries. Every rank calls it, with the same size."""
        if size * dtype.size > self._capacity:
            self._grow(size * dtype.size)

    def part(self, size: int, dtype: tf.DType) -> np.ndarray:
        """(size,) this rank's own slot, good until a larger vector is summed. Every rank calls it."""
        self.reserve(size, dtype)
        return _view(self._core.distgrad_window_part(self._address), size, dtype)

    def sum_parts(self, size: int, dtype: tf.DType) -> np.ndarray:
        """Sum what stands in the ranks' parts; the array is good until the next sum."""
        self._core.distgrad_window_sum(self._address, dtype.as_datatype_enum, size)
        return _view(self._core.distgrad_window_result(self._address), size, dtype)

    def run(self, operation: str, *inputs: Any, **attributes: Any) -> Any:
        """One of the core's operations on this window, within a graph or not."""
        function = getattr(native.operations(), f"distgrad_{operation}")
        return function(self._order.handle, *inputs, window=self._address, **attributes)

    @functools.cached_property
    def _order(self) -> tf.Variable:
        """A resource that all operations on this window take, so that TensorFlow keeps them in order."""
        with tf.init_scope(), tf.device("CPU"):
            return tf.Variable(0, trainable=False)

    def _seat(self, host: MPI.Intracomm) -> None:
        """Sit down beside the ranks that share this rank's memory."""
        self._host = host
        # Only as many ranks own a shard as the smallest host has, so that each shard has an owner on every host.
        self._owners = self._world.allreduce(host.size, op=MPI.MIN)
        color = host.rank if host.rank < self._owners else MPI.UNDEFINED
        self._across = cast(MPI.Intracomm, self._world.Split(color, self._world.rank))
        self._hosts = self._world.allreduce(int(host.rank == 0), op=MPI.SUM)

    # ---- what the core asks for in the midst of a sum

    def _answer(self, event: int, a: int, b: int) -> int:
        try:
            (self._grow, self._sum_across, self._refuse, self._vote)[event](a, b)
        except Exception as error:  # it must not cross the compiled code, and is raised again behind it
            self._on_error(error)
            return 1
        return 0

    def _grow(self, needed: int, _: int = 0) -> None:
        """Replace the memory by a larger one. Tensors that alias the old one keep it alive."""
        self._capacity = -(-needed // mmap.PAGESIZE) * mmap.PAGESIZE
        try:
            fd = self._share(self._core.distgrad_window_bytes(self._capacity, self._host.size))
        except NoSharedMemory as error:
            if self._world.rank == 0:
                warn(f"sums go by MPI messages, more slowly than through shared memory ({error})")
            self._seat(cast(MPI.Intracomm, self._world.Split(self._world.rank)))
            fd = -1  # memory of its own
        seat = (self._host.rank, self._host.size, self._owners, self._hosts > 1)
        mapped = self._core.distgrad_window_map(self._address, fd, self._capacity, *seat)
        if fd >= 0:
            os.close(fd)
        if not mapped:
            raise MemoryError(f"no memory for vectors of {self._capacity} bytes")

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
        shard = _view(self._core.distgrad_window_result(self._address), last, dtype)[first:]

        def fill(start: int, stop: int) -> None:
            self._core.distgrad_window_fill(self._address, first + start, first + stop)

        across.all_sum(self._across, shard, fill)

    def _refuse(self, rank: int, entries: int) -> None:
        raise ModelMismatch(
            f"local rank {rank} brought a vector of {entries} entries, unlike that of local rank 0",
            "sum the same variables, in the same order, on every worker",
            rank=rank,
            everywhere=True,
        )

    def _vote(self, own: int, _: int) -> None:
        votes = self._world.allgather(own)
        _view(self._core.distgrad_window_votes(self._address), self._world.size, tf.float32)[:] = votes


class Placed(NamedTuple):
    """A vector of which the first entries are in this rank's part of the window already.

    Attributes:
        entries: how many.
        filled: () bool; where it is False they are zeros, whatever stands there.
        rest: (r,) what follows them.
    """

    entries: int
    filled: tf.Tensor
    rest: tf.Tensor


class InWindow:
    """Gradients are added up in this rank's part of the window, where the sum over the workers will read them.

    Whatever the number of variables, a micro-batch takes one operation, and one more for each sparse gradient.
    """

    def __init__(self, window: Window, layout: Layout, riders: int) -> None:
        window.reserve(layout.entries + LANES + riders, layout.dtype)
        self._layout, self._slots = layout, layout.slots()
        self._window = window

    def start(self) -> list[tf.Tensor]:
        return []

    def add(self, carried: list[tf.Tensor], gradients: Sequence[Gradient], first: tf.Tensor) -> list[tf.Tensor]:
        dense, places = [], []
        for gradient, slot in zip(gradients, self._slots, strict=True):
            if isinstance(gradient, tf.IndexedSlices):
                self._add_rows(gradient, slot, first)
            else:
                dense.append(tf.zeros(0, self._layout.dtype) if gradient is None else self._cast(gradient))
                places.append(slot)
        if dense:
            starts, stops = zip(*places, strict=True)
            self._window.run("add", first, dense, starts=starts, stops=stops)
        return carried

    def _add_rows(self, gradient: tf.IndexedSlices, slot: tuple[int, int], first: tf.Tensor) -> None:
        values, rows = self._cast(gradient.values), tf.cast(gradient.indices, tf.int64)
        self._window.run("add_rows", first, values, rows, start=slot[0], stop=slot[1])

    def _cast(self, gradient: tf.Tensor) -> tf.Tensor:
        return tf.cast(gradient, self._layout.dtype)

    def vector(self, carried: list[tf.Tensor], filled: tf.Tensor, rest: tf.Tensor) -> Placed:
        return Placed(self._layout.entries, filled, rest)


def _view(address: int, size: int, dtype: tf.DType) -> np.ndarray:
    """(size,) an array on memory that is the core's."""
    memory = (ctypes.c_char * (size * dtype.size)).from_address(address)
    return np.frombuffer(memory, dtype.as_numpy_dtype, size)


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
