"""Gradients added up in this rank's part of the window, where the sum over the workers reads them."""

from collections.abc import Callable, Sequence
from typing import Any

import tensorflow as tf

from distgrad.collectives.communicator import Communicator
from distgrad.collectives.window import Placed, Table, Window
from distgrad.gradients.accumulate import Carried, Totals, without_repeats
from distgrad.gradients.flat_vector import LANES, Layout
from distgrad.gradients.micro_batch import Gradient


class WindowAccumulator:
    """Gradients are added up in this rank's part of the window, where the sum over the workers will read them.

    Whatever the number of variables, a micro-batch takes one operation, and one more for each sparse gradient. Of the
    candidates among those, the core collects the touched rows; the others are added up densely.
    """

    def __init__(
        self,
        window: Window,
        layout: Layout,
        riders: int,
        describes: bool,
        *,
        candidates: Sequence[int],
        exchange: Callable[[str], list[str]],
    ) -> None:
        self.layout, self._window, self._describes = layout, window, describes
        self._room = LANES + riders + window.room_for_notes(len(layout.shapes)) // layout.dtype.size
        self._candidates, self._exchange = candidates, exchange
        if not candidates:
            self._lay_out(())

    def _lay_out(self, tables: Sequence[int]) -> None:
        self.layout = self.layout.with_tables(tables)
        self._slots = self.layout.slots()
        self._tables = {index: self._window.table(self.layout.shapes[index]) for index in tables}
        self._window.reserve(self.layout.entries + self._room, self.layout.dtype)

    def _choose_tables(self, gradients: Sequence[Gradient]) -> None:
        """What is sparse on any worker becomes a table on all of them, while they make their first trace."""
        own = "".join("1" if isinstance(gradients[i], tf.IndexedSlices) else "0" for i in self._candidates)
        columns = zip(*self._exchange(own), strict=True)
        self._lay_out([i for i, column in zip(self._candidates, columns, strict=True) if "1" in column])
        self._candidates = ()

    def start(self) -> list[tf.Tensor]:
        return []

    def add(
        self, carried: list[tf.Tensor], gradients: Sequence[Gradient], first: tf.Tensor, last: tf.Tensor
    ) -> tuple[list[tf.Tensor], list[tf.Tensor]]:
        if self._candidates:
            self._choose_tables(gradients)
        dense, places, found = [], [], []
        for index, gradient in enumerate(gradients):
            if index in self._tables and gradient is not None:
                found.append(self._collect(gradient, self._tables[index], first, last))
            elif isinstance(gradient, tf.IndexedSlices):
                found.append(self._add_rows(gradient, self._slots[index], first, last))
            elif index in self._slots:
                dense.append(tf.zeros(0, self.layout.dtype) if gradient is None else self._cast(gradient))
                places.append(self._slots[index])
        if dense:
            starts, stops = zip(*places, strict=True)
            found.append(self._run("add", first, last, dense, starts=starts, stops=stops))
        return carried, found

    def _collect(self, gradient: Gradient, table: Table, first: tf.Tensor, last: tf.Tensor) -> tf.Tensor:
        if isinstance(gradient, tf.Tensor):  # sparse on other workers only
            gradient = tf.IndexedSlices(gradient, tf.range(table.shape[0]))
        return self._run("collect_rows", first, last, *self._rows_of(gradient), variable=table.address)

    def _add_rows(
        self, gradient: tf.IndexedSlices, slot: tuple[int, int], first: tf.Tensor, last: tf.Tensor
    ) -> tf.Tensor:
        return self._run("add_rows", first, last, *self._rows_of(gradient), start=slot[0], stop=slot[1])

    def _rows_of(self, gradient: tf.IndexedSlices) -> tuple[tf.Tensor, tf.Tensor]:
        """Values and numbers of the rows."""
        if self._describes:
            gradient = without_repeats(gradient)
        return self._cast(gradient.values), tf.cast(gradient.indices, tf.int64)

    def _run(self, operation: str, *inputs: Any, **attributes: Any) -> tf.Tensor:
        return self._window.run(operation, *inputs, **attributes, describes=int(self._describes))

    def _cast(self, gradient: tf.Tensor) -> tf.Tensor:
        return tf.cast(gradient, self.layout.dtype)

    def vector(self, carried: list[tf.Tensor], filled: tf.Tensor, rest: tf.Tensor) -> Placed:
        return Placed(self.layout.entries, filled, [rest], list(self._tables.values()))


def accumulator_for(
    comm: Communicator, layout: Layout, riders: int, describes: bool = False, candidates: Sequence[int] = ()
) -> Totals:
    """Where a step's gradients are added up, and described, if wanted. Every worker calls it alike.

    Args:
        riders: so many entries follow the lanes.
        candidates: numbers of variables which may become tables, where the engine has a way to sum touched rows
            alone. That is decided when their first gradients are seen, which must be in a graph.
    """
    # Gradients on a GPU are added up there: each would have to come down from it for every micro-batch.
    if comm.window is None or tf.config.list_logical_devices("GPU"):
        return Carried(layout, describes)
    # Where there is no other worker, tensors of the graph cost less than a copy, unless one would be a whole table.
    if comm.alone and not candidates:
        return Carried(layout, describes)
    return WindowAccumulator(comm.window, layout, riders, describes, candidates=candidates, exchange=comm.exchange)
