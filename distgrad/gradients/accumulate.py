"""Micro-batches added up: pure addition, in place of one large batch.

    Σ_micro-batches Σ_examples = Σ_examples,   whatever the sizes of the micro-batches

The memory is one set of gradients and one micro-batch's activations, however many micro-batches there are. An
accumulator says where that set lies: in tensors that the loop carries (here), or in memory that the workers share
(window_accumulator.py).
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol, TypeVar

import tensorflow as tf

from distgrad import native
from distgrad.collectives.moments import LARGEST, SQUARES, merged, moments_of_each
from distgrad.data.batch import row_count, rows_between
from distgrad.gradients.checks import Gradient, checked, with_checked_rows
from distgrad.gradients.flat_vector import LARGE, FlatLayout
from distgrad.gradients.micro_batch import LossSum
from distgrad.native.layout import MicroBatchNotes

NOTES = len(MicroBatchNotes)  # numbers that a worker notes of its micro-batches, see `LocalSums.notes`
Sums = TypeVar("Sums")


class Accumulator(Protocol):
    """The place where gradients are added up.

    Attributes:
        layout: of the flat vector.
    """

    layout: FlatLayout

    def start(self) -> list[tf.Tensor]:
        """Return the sums that the loop over the micro-batches carries, before the first one."""
        ...

    def add(
        self, sums: list[tf.Tensor], gradients: Sequence[Gradient], is_first: tf.Tensor, is_last: tf.Tensor
    ) -> tuple[list[tf.Tensor], list[tf.Tensor]]:
        """Add a micro-batch's gradients, as the tape gives them.

        Args:
            gradients: of their variables' shapes; rows of sparse ones are checked here.
            is_first, is_last: () bool, True for the first and for the last micro-batch of the batch.

        Returns:
            The sums that the loop carries on; and, for accumulators that describe, tensors (3,) float64 which add up to
            Σ² of these gradients' entries and, with the last micro-batch, Σ and Σ² of the sums' entries.
        """
        ...

    def vector(self, sums: list[tf.Tensor], is_filled: tf.Tensor, rest: tf.Tensor) -> Any:
        """Return the flat vector that this worker sends: the sums, and `rest` (r,) behind them.

        Args:
            is_filled: () bool, True if there was any micro-batch; else the sums are zeros.
        """
        ...


class MicroBatch(NamedTuple):
    """The sums of one micro-batch.

    Attributes:
        gradients: as the tape gives them; of several groups of losses, one after the other.
        loss: of the first group.
        extra: (e,) extra sums, None if there are none.
    """

    gradients: list[Gradient]
    loss: LossSum
    extra: tf.Tensor | None = None


class LocalSums(NamedTuple):
    """The sums of one worker over its micro-batches.

    Attributes:
        gradients: for `Accumulator.vector`.
        loss, weight: () float64 Σ w·loss and N.
        extra: (e,) the extra sums of the micro-batches.
        notes: (NOTES,) float64 for an accumulator that describes: Σ_micro-batches |gradients|²/N, see reports/noise.py;
            the number of micro-batches that had an N; Σ and Σ² of the sums' entries. Else (0,).
    """

    gradients: list[tf.Tensor]
    loss: tf.Tensor
    weight: tf.Tensor
    extra: tf.Tensor
    notes: tf.Tensor

    @classmethod
    def zeros(cls, accumulator: Accumulator, extra_entries: int = 0, describes: bool = False) -> "LocalSums":
        """Return the sums of no micro-batch."""
        zero = tf.zeros((), tf.float64)
        extra = tf.zeros(extra_entries, accumulator.layout.dtype)
        return cls(accumulator.start(), zero, zero, extra, tf.zeros(NOTES if describes else 0, tf.float64))

    def plus(self, one: "MicroBatch", accumulator: Accumulator, is_first: tf.Tensor, is_last: tf.Tensor) -> "LocalSums":
        """Return the sums with one more micro-batch; for `is_first` and `is_last` see `Accumulator.add`.

        Raises:
            GradientMismatch: a gradient is not like its variable, see checks.py.
        """
        loss, weight = tf.cast(one.loss.total, tf.float64), tf.cast(one.loss.weight, tf.float64)
        layout = accumulator.layout
        fitting = [checked(*each) for each in zip(one.gradients, layout.names, layout.shapes, strict=True)]
        gradients, found = accumulator.add(self.gradients, fitting, is_first, is_last)
        extra = self.extra if one.extra is None else self.extra + one.extra
        notes = self.notes
        if notes.shape[0]:
            notes = tf.ensure_shape(native.operations().distgrad_note_micro_batch(notes, weight, found), [NOTES])
        return LocalSums(gradients, self.loss + loss, self.weight + weight, extra, notes)


def over_micro_batches(
    add: Callable[[Sums, Any, tf.Tensor, tf.Tensor], Sums], sums: Sums, batch: Any, micro_batch_size: int | None
) -> Sums:
    """Loop over the micro-batches of a batch, none if it has no rows.

    Args:
        add: (sums, micro-batch, is_first, is_last) -> sums, with the same structure and shapes.
        sums: before the first micro-batch.
        batch: nest of (b, ...) tensors; b may be 0, and need not be a multiple of the micro-batch size.
        micro_batch_size: rows of a micro-batch; None takes the whole batch at once.
    """
    end = row_count(batch)
    if micro_batch_size is None:
        return tf.cond(end > 0, lambda: add(sums, batch, tf.constant(True), tf.constant(True)), lambda: sums)

    def add_next(start: tf.Tensor, sums: Sums) -> tuple[tf.Tensor, Sums]:
        stop = start + micro_batch_size
        part = tf.nest.map_structure(lambda tensor: rows_between(tensor, start, stop), batch)
        return stop, add(sums, part, tf.equal(start, 0), stop >= end)

    # More than one iteration at a time would keep several micro-batches' activations alive.
    return tf.while_loop(lambda start, _: start < end, add_next, (0, sums), parallel_iterations=1)[1]


class GraphAccumulator:
    """Sums in tensors that the loop carries: on any device, for any engine.

    Args:
        describes: True to find the squares of the gradients and of their sums, see `Accumulator.add`.
    """

    def __init__(self, layout: FlatLayout, describes: bool = False) -> None:
        self.layout, self._describes = layout, describes

    def start(self) -> list[tf.Tensor]:
        return [tf.zeros(shape, self.layout.dtype) for shape in self.layout.shapes]

    def add(
        self, sums: list[tf.Tensor], gradients: Sequence[Gradient], is_first: tf.Tensor, is_last: tf.Tensor
    ) -> tuple[list[tf.Tensor], list[tf.Tensor]]:
        """Add; the first micro-batch's large gradients become the sums as they are, unread and uncopied."""
        gradients = [self._with_checked_rows(number, gradient) for number, gradient in enumerate(gradients)]
        if tf.get_static_value(is_first):  # and the only one
            added = [self._as_sum(zeros, gradient) for zeros, gradient in zip(sums, gradients, strict=True)]
            return added, self._described(gradients, added, is_last)
        # Where adding to zeros costs more than the branch that avoids it.
        dense = [isinstance(gradient, tf.Tensor) for gradient in gradients]
        large = [i for i, total in enumerate(sums) if dense[i] and total.shape.num_elements() >= LARGE]
        added = [total if i in large else add(total, gradients[i]) for i, total in enumerate(sums)]
        if large:
            stored = [tf.cast(gradients[i], sums[i].dtype) for i in large]
            chosen = tf.cond(is_first, lambda: stored, lambda: [add(sums[i], gradients[i]) for i in large])
            for i, total in zip(large, tf.nest.flatten(chosen), strict=True):
                added[i] = total
        added = [tf.ensure_shape(total, shape) for total, shape in zip(added, self.layout.shapes, strict=True)]
        return added, self._described(gradients, added, is_last)

    def _with_checked_rows(self, number: int, gradient: Gradient) -> Gradient:
        if not isinstance(gradient, tf.IndexedSlices):
            return gradient
        return with_checked_rows(gradient, self.layout.names[number], self.layout.shapes[number])

    def _as_sum(self, zeros: tf.Tensor, gradient: Gradient) -> tf.Tensor:
        dense = tf.cast(gradient, zeros.dtype) if isinstance(gradient, tf.Tensor) else add(zeros, gradient)
        return dense if dense.shape == zeros.shape else tf.ensure_shape(dense, zeros.shape)

    def _described(
        self, gradients: Sequence[Gradient], sums: Sequence[tf.Tensor], is_last: tf.Tensor
    ) -> list[tf.Tensor]:
        if not self._describes:
            return []
        given = [tf.cast(values_of(gradient), self.layout.dtype) for gradient in gradients if gradient is not None]
        total = tf.cond(is_last, lambda: merged(moments_of_each(sums))[:LARGEST], lambda: tf.zeros(2, tf.float64))
        return [tf.concat([merged(moments_of_each(given))[SQUARES:LARGEST], total], 0)]

    def vector(self, sums: list[tf.Tensor], is_filled: tf.Tensor, rest: tf.Tensor) -> list[tf.Tensor]:
        return [*self.layout.flatten(sums), rest]


def values_of(gradient: Gradient) -> tf.Tensor:
    """Return the entries of a gradient that need not be zero; of IndexedSlices, equal rows are summed."""
    return without_repeats(gradient).values if isinstance(gradient, tf.IndexedSlices) else gradient


def without_repeats(slices: tf.IndexedSlices) -> tf.IndexedSlices:
    """Return the same gradient with each row once."""
    indices, places = tf.unique(slices.indices)
    return tf.IndexedSlices(tf.math.unsorted_segment_sum(slices.values, places, tf.size(indices)), indices)


def add(total: tf.Tensor, gradient: Gradient) -> tf.Tensor:
    """Add one micro-batch's gradient, of any form the tape gives, to a dense sum.

    Args:
        total: (...) the sum so far.
        gradient: (...) dense; IndexedSlices, of which only the touched rows are read and written; or None for zeros.

    >>> rows = tf.IndexedSlices(tf.constant([[1.0], [2.0]]), tf.constant([2, 2]))
    >>> add(tf.zeros((3, 1)), rows).numpy().tolist()
    [[0.0], [0.0], [3.0]]
    """
    if gradient is None:
        return total
    if isinstance(gradient, tf.IndexedSlices):
        updates = tf.cast(gradient.values, total.dtype)
        return tf.tensor_scatter_nd_add(total, gradient.indices[:, tf.newaxis], updates)
    return total + tf.cast(gradient, total.dtype)
