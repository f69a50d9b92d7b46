"""Fold micro-batches into one GradientSum: pure addition, in place of one large batch.

    Σ_micro-batches Σ_examples = Σ_examples,   whatever the sizes of the micro-batches

The memory is one set of gradients and one micro-batch's activations, however many micro-batches there are.
"""

from collections.abc import Callable, Sequence
from typing import Any

import tensorflow as tf

from distgrad.batch import row_count
from distgrad.gradient import Gradient, GradientSum
from distgrad.layout import LARGE


def accumulate(
    one: Callable[[Any], GradientSum],
    batch: Any,
    micro_batch_size: int | None,
    shapes: Sequence[tf.TensorShape],
    dtype: tf.DType,
) -> tuple[GradientSum, list[bool]]:
    """Sum `one` over the micro-batches of a batch.

    Args:
        one: micro-batch -> its GradientSum.
        batch: nest of (b, ...) tensors; b may be 0, and b need not be a multiple of the micro-batch size.
        micro_batch_size: rows a micro-batch; None takes the whole batch at once.
        shapes: the variables' shapes.
        dtype: what the gradients are summed in.

    Returns:
        The dense sum in `dtype` (zeros without rows), loss and weight in float64; and for each variable whether
        the loss depends on it at all.
    """
    rows = row_count(batch)
    size = tf.maximum(rows, 1) if micro_batch_size is None else tf.constant(micro_batch_size)
    depends = [True] * len(shapes)

    def add_next(start: tf.Tensor, gradients: list[tf.Tensor], loss: tf.Tensor, weight: tf.Tensor) -> tuple[Any, ...]:
        part = one(tf.nest.map_structure(lambda tensor: tensor[start : start + size], batch))
        depends[:] = [gradient is not None for gradient in part.gradients]
        gradients = _add_all(gradients, part.gradients, first=tf.equal(start, 0))
        loss += tf.cast(part.loss, tf.float64)
        weight += tf.cast(part.weight, tf.float64)
        return start + size, gradients, loss, weight

    nothing = tf.zeros((), tf.float64)
    _, gradients, loss, weight = tf.while_loop(
        lambda start, *_: start < rows,
        add_next,
        (0, [tf.zeros(shape, dtype) for shape in shapes], nothing, nothing),
        parallel_iterations=1,  # more would keep several micro-batches' activations alive
    )
    return GradientSum(gradients, loss, weight), depends


def _add_all(totals: list[tf.Tensor], gradients: Sequence[Gradient], first: tf.Tensor) -> list[tf.Tensor]:
    """Add a micro-batch's gradients; the first one's large ones become the totals as they are, unread and uncopied."""
    large = [i for i, total in enumerate(totals) if _is_large(total, gradients[i])]
    sums = [total if i in large else add(total, gradients[i]) for i, total in enumerate(totals)]
    if large:
        stored = [tf.cast(gradients[i], totals[i].dtype) for i in large]
        added = tf.cond(first, lambda: stored, lambda: [add(totals[i], gradients[i]) for i in large])
        for i, total in zip(large, tf.nest.flatten(added), strict=True):
            sums[i] = tf.ensure_shape(total, totals[i].shape)
    return sums


def _is_large(total: tf.Tensor, gradient: Gradient) -> bool:
    """Whether adding it to zeros costs more than the branch that avoids it."""
    return isinstance(gradient, tf.Tensor) and total.shape.num_elements() >= LARGE


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
