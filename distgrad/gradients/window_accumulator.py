"""Gradients added up in this rank's slot of the window, where the sum over the workers reads them."""

from collections.abc import Iterable, Sequence
from typing import Any

import tensorflow as tf

from distgrad.collectives.communicator import Communicator
from distgrad.collectives.window import PlacedVector, Window
from distgrad.gradients.accumulate import Accumulator, GraphAccumulator, without_repeats
from distgrad.gradients.checks import Gradient, with_checked_rows
from distgrad.gradients.flat_vector import SCALARS, FlatLayout


def accumulator_for(
    comm: Communicator, layout: FlatLayout, extra_entries: int = 0, describes: bool = False
) -> Accumulator:
    """Return the accumulator that costs least on this engine and device. Every worker calls it alike.

    Args:
        layout: of the flat vector. Sparse variables need a `window_on_cpu`.
        extra_entries: entries that follow the scalars.
        describes: True to find the squares of the gradients and of their sums, see `Accumulator.add`.
    """
    window = window_on_cpu(comm)
    # Where there is no other worker, tensors of the graph cost less than a copy, unless one would be a whole table.
    if window is None or (comm.alone and not layout.sparse):
        return GraphAccumulator(layout, describes)
    return WindowAccumulator(window, layout, extra_entries, describes)


def window_on_cpu(comm: Communicator) -> Window | None:
    """Return the window where gradients may be added up, and touched rows alone summed; None if there is none.

    Gradients on a GPU are added up there: each would have to come down from it for every micro-batch.
    """
    return None if tf.config.list_logical_devices("GPU") else comm.window


class WindowAccumulator:
    """Sums in this rank's slot of the window.

    Whatever the number of variables, a micro-batch takes one operation, and one more for each sparse gradient. Of the
    sparse variables the core collects the touched rows; other sparse gradients are added up densely.
    """

    def __init__(self, window: Window, layout: FlatLayout, extra_entries: int, describes: bool) -> None:
        self.layout, self._window, self._describes = layout, window, describes
        self._slots = layout.slots()
        self._sparse = {
            index: window.sparse_variable(layout.names[index], layout.shapes[index]) for index in layout.sparse
        }
        notes = window.room_for_notes(len(layout.shapes)) // layout.dtype.size
        window.reserve(layout.entries + SCALARS + extra_entries + notes, layout.dtype)

    def start(self) -> list[tf.Tensor]:
        return []

    def add(
        self, sums: list[tf.Tensor], gradients: Sequence[Gradient], is_first: tf.Tensor, is_last: tf.Tensor
    ) -> tuple[list[tf.Tensor], list[tf.Tensor]]:
        dense, found = {}, []
        for index, gradient in enumerate(gradients):
            if index in self._sparse:
                found.append(self._collect(gradient, index, is_first, is_last))
            elif isinstance(gradient, tf.IndexedSlices):
                place, height = self._places([index]), self.layout.shapes[index][0]
                rows = self._rows_of(gradient, index)
                found.append(self._run("add_rows", is_first, is_last, *rows, **place, height=height))
            else:
                dense[index] = tf.zeros(0, self.layout.dtype) if gradient is None else self._cast(gradient)
        if dense:
            found.append(self._run("add", is_first, is_last, list(dense.values()), **self._places(dense)))
        return sums, found

    def _places(self, indices: Iterable[int]) -> dict[str, list[Any]]:
        """Return the attributes that tell the core where some variables' gradients stand in the slot."""
        starts, stops = zip(*(self._slots[index] for index in indices), strict=True)
        return {
            "variables": [self.layout.names[index] for index in indices],
            "starts": list(starts),
            "stops": list(stops),
            "sizes": [self.layout.sizes[index] for index in indices],
        }

    def _collect(self, gradient: Gradient, index: int, is_first: tf.Tensor, is_last: tf.Tensor) -> tf.Tensor:
        variable = self._sparse[index]
        if gradient is None:
            gradient = tf.IndexedSlices(tf.zeros([0, *variable.shape[1:]], self.layout.dtype), tf.range(0))
        elif isinstance(gradient, tf.Tensor):  # sparse on other workers only
            gradient = tf.IndexedSlices(gradient, tf.range(variable.shape[0]))
        return self._run("collect_rows", is_first, is_last, *self._rows_of(gradient, index), variable=variable.address)

    def _rows_of(self, gradient: tf.IndexedSlices, index: int) -> tuple[tf.Tensor, tf.Tensor]:
        """Return the values and the numbers of the rows."""
        if self._describes:  # equal rows are summed before the core sees them
            gradient = with_checked_rows(gradient, self.layout.names[index], self.layout.shapes[index])
            gradient = without_repeats(gradient)
        return self._cast(gradient.values), tf.cast(gradient.indices, tf.int64)

    def _run(self, operation: str, *inputs: Any, **attributes: Any) -> tf.Tensor:
        return self._window.run(operation, *inputs, **attributes, describes=int(self._describes))

    def _cast(self, gradient: tf.Tensor) -> tf.Tensor:
        return tf.cast(gradient, self.layout.dtype)

    def vector(self, sums: list[tf.Tensor], is_filled: tf.Tensor, rest: tf.Tensor) -> PlacedVector:
        return PlacedVector(self.layout.entries, is_filled, [rest], list(self._sparse.values()))
