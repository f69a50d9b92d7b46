"""Fold micro-batches into sums: pure addition, in place of one large batch.

    Σ_micro-batches Σ_examples = Σ_examples,   whatever the sizes of the micro-batches

The memory is one set of gradients and one micro-batch's activations, however many micro-batches there are. Where that
set lies is for the communicator to say: in tensors that the loop carries, or in memory that the workers share.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

import tensorflow as tf

from distgrad import native
from distgrad.collectives.moments import rows, whole
from distgrad.data.batch import row_count, rows_between
from distgrad.gradients.flat_vector import LARGE, Layout
from distgrad.gradients.micro_batch import Gradient, GradientSum
from distgrad.native.layout import MicroBatchNotes

NOTED = len(MicroBatchNotes)  # numbers that a worker notes of its micro-batches


class Totals(Protocol):
    """Where gradients are added up.

    Attributes:
        layout: of the vector; known for good once a micro-batch was traced.
    """

    layout: Layout

    def start(self) -> list[tf.Tensor]:
        """What the loop over the micro-batches carries, before the first one."""

    def add(
        self, carried: list[tf.Tensor], gradients: Sequence[Gradient], first: tf.Tensor, last: tf.Tensor
    ) -> tuple[list[tf.Tensor], list[tf.Tensor]]:
        """Add a micro-batch's gradients, as the tape gives them; () bool `first`, `last`: they are those.

        Returns:
            What the loop carries on; and, for totals that describe, tensors (3,) float64 which add up to Σ² of these
            gradients' entries and, with the last ones, Σ and Σ² of the sums' entries.
        """

    def vector(self, carried: list[tf.Tensor], filled: tf.Tensor, rest: tf.Tensor) -> Any:
        """The flat vector that this worker sends: the sums, and `rest` (r,) behind them.

        Args:
            filled: () bool, whether there was any micro-batch; else the sums are zeros.
        """


class Accumulated(NamedTuple):
    """What came of a batch.

    Attributes:
        carried: the gradients' totals, for `Totals.vector`.
        loss, weight: () float64 Σ w·loss and N.
        riders: (r,) the sum of what else a micro-batch gives.
        noted: (NOTED,) float64, if totals describe: Σ_micro-batches |gradients|²/N, see seeing/noise.py; how many
            micro-batches had an N; Σ and Σ² of the sums' entries. Else (0,).
        depends: for each variable, whether the loss depends on it at all.
    """

    carried: list[tf.Tensor]
    loss: tf.Tensor
    weight: tf.Tensor
    riders: tf.Tensor
    noted: tf.Tensor
    depends: list[bool]


def accumulate(
    one: Callable[[Any], tuple[GradientSum, tf.Tensor]],
    batch: Any,
    micro_batch_size: int | None,
    totals: Totals,
    variables: int,
    *,
    riders: tf.Tensor,
    describes: bool = False,
    single: bool = False,
) -> Accumulated:
    """Sum `one` over the micro-batches of a batch.

    Args:
        one: micro-batch -> its GradientSum, and (r,) what else is to be summed.
        batch: nest of (b, ...) tensors; b may be 0, and b need not be a multiple of the micro-batch size.
        micro_batch_size: rows a micro-batch; None takes the whole batch at once.
        totals: where the gradients are added up.
        variables: how many there are.
        riders: (r,) zeros, to which what else there is is added.
        describes: whether the totals do.
        single: whether the batch has rows and is one micro-batch, whatever its size.
    """
    depends = [True] * variables

    def nothing() -> Accumulated:
        zero = tf.zeros((), tf.float64)
        return Accumulated(totals.start(), zero, zero, riders, tf.zeros(NOTED if describes else 0, tf.float64), [])

    def add_part(sums: Accumulated, part: Any, first: tf.Tensor, last: tf.Tensor) -> Accumulated:
        given, more = one(part)
        depends[:] = [gradient is not None for gradient in given.gradients]
        weight = tf.cast(given.weight, tf.float64)
        carried, found = totals.add(sums.carried, given.gradients, first, last)
        noted = _note(sums.noted, weight, found) if describes else sums.noted
        loss = sums.loss + tf.cast(given.loss, tf.float64)
        return Accumulated(carried, loss, sums.weight + weight, sums.riders + more, noted, [])

    def add_all() -> Accumulated:
        return add_part(nothing(), batch, tf.constant(True), tf.constant(True))

    if single:
        sums = add_all()
    elif micro_batch_size is None:
        sums = tf.cond(row_count(batch) > 0, add_all, nothing)
    else:
        sums = _loop(nothing(), add_part, batch, micro_batch_size)
    return sums._replace(depends=depends)


def _loop(sums: Accumulated, add_part: Callable[..., Accumulated], batch: Any, size: int) -> Accumulated:
    end = row_count(batch)

    def add_next(start: tf.Tensor, sums: Accumulated) -> tuple[tf.Tensor, Accumulated]:
        part = tf.nest.map_structure(lambda tensor: rows_between(tensor, start, start + size), batch)
        return start + size, add_part(sums, part, tf.equal(start, 0), start + size >= end)

    # More than one iteration at a time would keep several micro-batches' activations alive.
    return tf.while_loop(lambda start, _: start < end, add_next, (0, sums), parallel_iterations=1)[1]


def _note(noted: tf.Tensor, weight: tf.Tensor, found: list[tf.Tensor]) -> tf.Tensor:
    """Take in what totals found of a micro-batch of this N."""
    return tf.ensure_shape(native.operations().distgrad_note_micro_batch(noted, weight, found), [NOTED])


class Carried:
    """Totals in tensors of the loop: on any device, for any engine."""

    def __init__(self, layout: Layout, describes: bool = False) -> None:
        self.layout, self._describes = layout, describes

    def start(self) -> list[tf.Tensor]:
        return [tf.zeros(shape, self.layout.dtype) for shape in self.layout.shapes]

    def add(
        self, carried: list[tf.Tensor], gradients: Sequence[Gradient], first: tf.Tensor, last: tf.Tensor
    ) -> tuple[list[tf.Tensor], list[tf.Tensor]]:
        """The first micro-batch's large gradients become the totals as they are, unread and uncopied."""
        if tf.get_static_value(first):  # and the only one
            sums = [self._as_sum(zeros, gradient) for zeros, gradient in zip(carried, gradients, strict=True)]
            return sums, self._found(gradients, sums, last)
        large = [i for i, total in enumerate(carried) if _is_large(total, gradients[i])]
        sums = [total if i in large else add(total, gradients[i]) for i, total in enumerate(carried)]
        if large:
            stored = [tf.cast(gradients[i], carried[i].dtype) for i in large]
            added = tf.cond(first, lambda: stored, lambda: [add(carried[i], gradients[i]) for i in large])
            for i, total in zip(large, tf.nest.flatten(added), strict=True):
                sums[i] = total
        sums = [tf.ensure_shape(total, shape) for total, shape in zip(sums, self.layout.shapes, strict=True)]
        return sums, self._found(gradients, sums, last)

    def _as_sum(self, zeros: tf.Tensor, gradient: Gradient) -> tf.Tensor:
        dense = tf.cast(gradient, zeros.dtype) if isinstance(gradient, tf.Tensor) else add(zeros, gradient)
        return dense if dense.shape == zeros.shape else tf.ensure_shape(dense, zeros.shape)

    def _found(self, gradients: Sequence[Gradient], sums: Sequence[tf.Tensor], last: tf.Tensor) -> list[tf.Tensor]:
        if not self._describes:
            return []
        given = [tf.cast(values_of(gradient), self.layout.dtype) for gradient in gradients if gradient is not None]
        total = tf.cond(last, lambda: whole(rows(sums))[:2], lambda: tf.zeros(2, tf.float64))
        return [tf.concat([whole(rows(given))[1:2], total], 0)]

    def vector(self, carried: list[tf.Tensor], filled: tf.Tensor, rest: tf.Tensor) -> list[tf.Tensor]:
        return [*self.layout.flatten(carried), rest]


def _is_large(total: tf.Tensor, gradient: Gradient) -> bool:
    """Whether adding it to zeros costs more than the branch that avoids it."""
    return isinstance(gradient, tf.Tensor) and total.shape.num_elements() >= LARGE


def values_of(gradient: Gradient) -> tf.Tensor:
    """The entries of a gradient that are not zeros for certain, each once: of IndexedSlices, equal rows are summed."""
    if not isinstance(gradient, tf.IndexedSlices):
        return gradient
    return without_repeats(gradient).values


def without_repeats(slices: tf.IndexedSlices) -> tf.IndexedSlices:
    """The same gradient with each row once."""
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
