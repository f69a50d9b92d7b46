"""The sum through the compiled core's window (native/window.h): memory that the core adds up in.

Here a rank is alone with its memory. shared_window.py lets the ranks of a host sit down at one window.
"""

import ctypes
import functools
import mmap
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, cast

import numpy as np
import tensorflow as tf

from distgrad import native
from distgrad.collectives.communicator import Communicator
from distgrad.collectives.moments import ROW
from distgrad.collectives.vectors import DividedSum, Vector, pieces_of
from distgrad.native.layout import Event

ALONE = (0, 1, 1, False)  # rank, of how many on the host, how many of them own a shard, whether there are other hosts
EVENTS = {  # a rank without others has only two of these methods
    Event.GROW: "_grow",
    Event.SUM_BETWEEN_HOSTS: "_sum_across",
    Event.MISMATCH: "_refuse",
    Event.VOTE: "_vote",
}


class Window:
    """Memory for the vectors of this host's ranks, here a single one; it grows to the largest vector seen.

    Args:
        size: how many ranks there are on all hosts.
        on_error: told of an exception in the midst of a sum, which TensorFlow would hide.
        page: address of the page (peers.py) that tells where this rank is.
    """

    def __init__(self, size: int, on_error: Callable[[Exception], None], page: int) -> None:
        self._size, self._on_error = size, on_error
        self._core = native.functions()
        self._event = native.Callback(self._answer)  # the core keeps its address
        self._address: int = self._core.distgrad_window_new(self._event, size, page)
        self._capacity = 0
        self._grow(mmap.PAGESIZE)

    def close(self) -> None:
        """Free what it made. The memory goes when the last tensor that aliases it does."""
        self._core.distgrad_window_close(self._address)

    def room_for_notes(self, ranges: int) -> int:
        """Bytes behind a vector so many of whose ranges are described one by one."""
        return int(self._core.distgrad_window_range_moments_bytes(ranges, self._size))

    def reserve(self, size: int, dtype: tf.DType) -> None:
        """Make room for vectors of so many entries. Every rank calls it, with the same size."""
        if size * dtype.size > self._capacity:
            self._grow(size * dtype.size)

    def table(self, shape: tf.TensorShape) -> "Table":
        """A place where the core collects the gradients of a variable of this shape, row by row."""
        rows, width = shape[0], shape[1:].num_elements()
        return Table(shape, self._core.distgrad_window_sparse_variable(self._address, rows, width))

    def run(self, operation: str, *inputs: Any, **attributes: Any) -> Any:
        """One of the core's operations on this window, within a graph or not."""
        function = getattr(native.operations(), f"distgrad_{operation}")
        return function(self._order.handle, *inputs, window=self._address, **attributes)

    @functools.cached_property
    def _order(self) -> tf.Variable:
        """A resource that all operations on this window take, so that TensorFlow keeps them in order."""
        with tf.init_scope(), tf.device("CPU"):
            return tf.Variable(0, trainable=False)

    # ---- what the core asks for in the midst of a sum

    def _answer(self, event: int, a: int, b: int) -> int:
        try:
            getattr(self, EVENTS[Event(event)])(a, b)
        except Exception as error:  # it must not cross the compiled code, and is raised again behind it
            self._on_error(error)
            return 1
        return 0

    def _grow(self, needed: int, _: int = 0) -> None:
        """Replace the memory by a larger one. Tensors that alias the old one keep it alive."""
        self._map(needed, -1, ALONE)

    def _map(self, needed: int, fd: int, seat: tuple[int, int, int, bool]) -> None:
        self._capacity = _whole_pages(needed)
        if not self._core.distgrad_window_map(self._address, fd, self._capacity, *seat):
            raise MemoryError(f"no memory for vectors of {self._capacity} bytes")

    def bytes(self, needed: int, ranks: int) -> int:
        """How much memory so many ranks' vectors of so many bytes take."""
        return int(self._core.distgrad_window_bytes(_whole_pages(needed), ranks))

    def _vote(self, own: int, _: int) -> None:
        self._votes(1)[:] = own

    def _votes(self, size: int) -> np.ndarray:
        return view(self._core.distgrad_window_votes(self._address), size, tf.float32)


class Table(NamedTuple):
    """A variable of which a step touches few rows: its shape, and where the core collects its gradients."""

    shape: tf.TensorShape
    address: int


class Placed(NamedTuple):
    """A vector of which the first entries are in this rank's part of the window already, and the tables beside it.

    Attributes:
        entries: how many.
        filled: () bool; where it is False they are zeros, whatever stands there, and no row is touched.
        pieces: what follows them, (r,) in all.
        tables: what the core has collected.
    """

    entries: int
    filled: Any
    pieces: list[tf.Tensor]
    tables: Sequence[Table] = ()

    @property
    def size(self) -> int | None:
        """All entries, where that is known."""
        sizes = [piece.shape[0] for piece in self.pieces]
        return None if None in sizes else self.entries + sum(sizes)


def _placed(vector: Placed | Vector) -> Placed:
    """Any vector; none of another one is in the window."""
    return vector if isinstance(vector, Placed) else Placed(0, True, pieces_of(vector))


class Windowed(Communicator):
    """A communicator whose sums go through a window.

    Attributes:
        window: what this host's ranks share.
    """

    window: Window

    def all_sum(self, pieces: Sequence[tf.Tensor], borrow: bool = False) -> tf.Tensor:
        return self._sum(_placed(pieces), borrow).flat

    def sum_over_workers(self, fn: Callable[..., Any], args: Sequence[Any], borrow: bool = False) -> tf.Tensor:
        return self._sum(_placed(fn(*args)), borrow).flat

    def sum_and_divide(
        self,
        fn: Callable[..., Any],
        args: Sequence[Any],
        rest: int,
        divisor: tf.Tensor,
        describe: bool = True,
        *,
        ranges: Callable[[], Sequence[tuple[int, int]]] = tuple,
    ) -> DividedSum:
        vector = _placed(fn(*args))
        divided = cast(int, vector.size) - rest
        described = divided if describe else 0
        total = self._sum(vector, True, divisor, divided=divided, described=described, ranges=ranges())
        blocks, undivided = [total.flat[:divided]], total.flat[divided:]
        tables = [_slices(*table) for table in zip(vector.tables, total.rows, total.values, strict=True)]
        by = total.divided_by[0]
        return DividedSum(blocks, undivided, by, total.moments, total.votes, total.by_range, tables)

    def _sum(
        self,
        vector: Placed,
        borrow: bool,
        divisor: Any = (1.0,),
        *,
        divided: int = 0,
        described: int = 0,
        ranges: Sequence[tuple[int, int]] = (),
    ) -> Any:
        addresses = [table.address for table in vector.tables]
        entries = {"placed": vector.entries, "divided": divided, "described": described, "borrow": int(borrow)}
        places = {"starts": [first for first, _ in ranges], "stops": [last for _, last in ranges]}
        tables = {"sparse": addresses, "K": len(addresses)}
        total = self.window.run("sum", vector.filled, divisor, vector.pieces, **entries, **places, **tables)
        shapes = ([vector.size], [1], [4], [self.size], [len(ranges) + len(addresses), ROW])
        for output, shape in zip(total[: len(shapes)], shapes, strict=True):
            output.set_shape(shape)
        return total

    def _fail(self, error: Exception) -> None:
        self.failure = error


def _slices(table: Table, rows: tf.Tensor, values: tf.Tensor) -> tf.IndexedSlices:
    """A table's sum as TensorFlow has it."""
    rows.set_shape([None])
    shape = table.shape.as_list()
    return tf.IndexedSlices(tf.reshape(values, [-1, *shape[1:]]), rows, tf.constant(shape, tf.int64))


def view(address: int, size: int, dtype: tf.DType) -> np.ndarray:
    """(size,) an array on memory that is the core's."""
    memory = (ctypes.c_char * (size * dtype.size)).from_address(address)
    return np.frombuffer(memory, dtype.as_numpy_dtype, size)


def _whole_pages(size: int) -> int:
    return -(-size // mmap.PAGESIZE) * mmap.PAGESIZE
