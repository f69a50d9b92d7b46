"""A handle on the compiled core's window (native/window.h): memory that the core adds up vectors in.

Here a rank is alone with its memory. In shared_window.py the ranks of a host share it. windowed.py is a communicator
whose sums go through it.
"""

import ctypes
import functools
import mmap
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from distgrad import native
from distgrad.collectives.compression import Compression
from distgrad.native.layout import Event


class Seat(NamedTuple):
    """The place of a rank at the window of its host.

    Attributes:
        rank: its number among the ranks of this host.
        ranks: how many these are.
        owners: how many of them own a shard of the result, which they add up.
        between_hosts: True if there are other hosts.
    """

    rank: int = 0
    ranks: int = 1
    owners: int = 1
    between_hosts: bool = False


class Slices(NamedTuple):
    """The slices of a vector that ranks publish together, one each.

    Attributes:
        own: the number of this rank's slice, None if it has none.
        total: how many slices there are; they stand one after the other.
        on_one_host: whether all of them are.
    """

    own: int | None
    total: int
    on_one_host: bool


class Part(NamedTuple):
    """A part of a rank's own slice: the entry of the vector where it begins, and its values, 1-D."""

    first: int
    values: tf.Tensor


class SparseVariable(NamedTuple):
    """A large variable of which a step touches few rows.

    Attributes:
        shape: of the variable.
        address: of the memory in which the core collects the gradients of the touched rows.
    """

    shape: tf.TensorShape
    address: int


class PlacedVector(NamedTuple):
    """A vector whose first entries are in this rank's slot of the window already.

    Attributes:
        entries: how many of them are.
        filled: () bool; where it is False these entries are zeros, whatever the slot holds, and no row is touched.
        pieces: 1-D tensors with the entries that follow.
        sparse: the variables whose touched rows are summed along.
    """

    entries: int
    filled: Any
    pieces: list[tf.Tensor]
    sparse: Sequence[SparseVariable] = ()

    @property
    def size(self) -> int | None:
        """Number of entries in all, None where that is not known."""
        sizes = [piece.shape[0] for piece in self.pieces]
        return None if None in sizes else self.entries + sum(sizes)


class Window:
    """Memory for the vectors of this host's ranks, here a single one; it grows to the largest vector seen.

    Args:
        size: how many ranks there are on all hosts.
        on_error: takes an exception that is raised in the midst of a sum, and that TensorFlow would hide.
        page: address of this process's status page.
    """

    def __init__(self, size: int, on_error: Callable[[Exception], None], page: int) -> None:
        self._size, self._on_error = size, on_error
        self._core = native.functions()
        self._callback = native.Callback(self._answer)  # the core keeps its address
        self._address: int = _required(self._core.distgrad_window_new(self._callback, size, page), "a window")
        self._capacity = 0
        self._grow(mmap.PAGESIZE)

    def close(self) -> None:
        """Let the memory go with the last tensor that aliases it."""
        self._core.distgrad_window_close(self._address)

    def room_for_notes(self, ranges: int) -> int:
        """Bytes that the core needs behind a vector to describe so many ranges of it."""
        return int(self._core.distgrad_window_range_moments_bytes(ranges, self._size))

    def reserve(self, size: int, dtype: tf.DType) -> None:
        """Make room for vectors of so many entries. Every rank calls it, with the same size."""
        if size * dtype.size > self._capacity:
            self._grow(size * dtype.size)

    @property
    def slices(self) -> Slices | None:
        """The slices of vectors that ranks can publish; None where a rank is alone with its memory."""
        return None

    def reserve_publication(self, entries: int, dtype: tf.DType) -> bool:
        """Make room for publications of so many entries. Every rank calls it, where there are slices.

        Returns:
            Whether there is room, the same on every rank.
        """
        raise NotImplementedError

    def publish(self, parts: Sequence[Part], bounds: Sequence[int]) -> tf.Tensor:
        """Give all ranks a vector of which each has a slice. A sum must come before each publication.

        Args:
            parts: of this rank's slice, in ascending order; what lies between them may come to be anything.
            bounds: (total + 1,) where each slice begins, and the end of the last one.

        Returns:
            (bounds[-1],) the vector, which may be the window's own memory. It stays as it is as long as any tensor
            aliases it.
        """
        assert self.slices is not None
        own = self.slices.own
        first, last = (0, 0) if own is None else (bounds[own], bounds[own + 1])
        published = self.run(
            "publish",
            [part.values for part in parts],
            entries=bounds[-1],
            first=first,
            last=last,
            starts=[part.first for part in parts],
        )
        return tf.ensure_shape(published, [bounds[-1]])

    def compression(self, measures: bool) -> Compression | None:
        """Make a way in which sums of a vector cross the wire; None where none does. Every rank calls it.

        Args:
            measures: see `Compression`.
        """
        return None

    def sparse_variable(self, name: str, shape: tf.TensorShape) -> SparseVariable:
        """Make a place where the core collects the gradients of a variable of this shape, row by row.

        Raises:
            MemoryError: there is none for anything so large.
        """
        rows, width = shape[0], shape[1:].num_elements()
        address = self._core.distgrad_window_sparse_variable(self._address, name.encode(), rows, width)
        return SparseVariable(shape, _required(address, f"the rows of variable {name}"))

    def run(self, operation: str, *inputs: Any, **attributes: Any) -> Any:
        """Run one of the core's operations on this window, within a graph or not."""
        function = getattr(native.operations(), f"distgrad_{operation}")
        in_graph = int(not tf.executing_eagerly())
        return function(self._order.handle, *inputs, window=self._address, in_graph=in_graph, **attributes)

    @functools.cached_property
    def _order(self) -> tf.Variable:
        """A resource that all operations on this window take, so that TensorFlow keeps them in order."""
        with tf.init_scope(), tf.device("CPU"):
            return tf.Variable(0, trainable=False)

    # ---- what the core asks for in the midst of a sum

    def _answer(self, event: int, a: int, b: int) -> int:
        """Handle an event and return 0, or 1 if that failed."""
        try:
            self._handle(Event(event), a, b)
        except Exception as error:  # it must not cross the compiled code, and is raised again behind it
            self._on_error(error)
            return 1
        return 0

    def _handle(self, event: Event, a: int, b: int) -> None:
        """Handle the events of a rank that is alone."""
        if event is Event.GROW:
            self._grow(a)
        elif event is Event.VOTE:
            self._nonfinite_workers()[:] = a

    def _grow(self, needed: int) -> None:
        """Replace the memory by a larger one. Tensors that alias the old one keep it alive."""
        self._map(needed, -1, Seat())

    def _map(self, needed: int, fd: int, seat: Seat) -> None:
        """Map memory for vectors of so many bytes: that behind the file descriptor, or memory of its own for -1."""
        self._capacity = _whole_pages(needed)
        if not self._core.distgrad_window_map(self._address, fd, self._capacity, *seat):
            raise MemoryError(f"no memory for vectors of {self._capacity} bytes")

    def _bytes_for(self, needed: int, ranks: int) -> int:
        """Bytes of memory that so many ranks need for vectors of so many bytes; 0 ranks for results alone."""
        return int(self._core.distgrad_window_bytes(_whole_pages(needed), ranks))

    def _nonfinite_workers(self) -> np.ndarray:
        """(size,) float32 the core's array, 1 for each rank whose vector held NaN or infinity."""
        return view(self._core.distgrad_window_votes(self._address), self._size, tf.float32)


def _required(address: int | None, what: str) -> int:
    if address is None:
        raise MemoryError(f"no memory for {what}")
    return address


def view(address: int, size: int, dtype: tf.DType) -> np.ndarray:
    """(size,) an array on memory of the core's."""
    memory = (ctypes.c_char * (size * dtype.size)).from_address(address)
    return np.frombuffer(memory, dtype.as_numpy_dtype, size)


def _whole_pages(size: int) -> int:
    return -(-size // mmap.PAGESIZE) * mmap.PAGESIZE
