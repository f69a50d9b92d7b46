"""A batch: a tuple (x, [y, [sample_weight]]) of nests of tensors whose first axis counts the same rows."""

from collections.abc import Callable
from typing import Any

import keras
import tensorflow as tf

from distgrad.errors import BadArgument


def tensors(batch: Any) -> tuple[Any, ...]:
    """A batch as a tuple (x, [y, [sample_weight]]) of nests of tensors.

    Raises:
        BadArgument: its parts have different numbers of rows.
    """
    parts = list(batch) if isinstance(batch, (tuple, list)) else [batch]
    while parts and parts[-1] is None:
        parts.pop()
    converted = tf.nest.map_structure(_tensor, tuple(parts))
    rows = [_rows(tensor) for tensor in tf.nest.flatten(converted)]
    if not rows or None in rows or len(set(rows) - {"?"}) > 1:
        raise BadArgument(
            f"the parts of a batch have {rows} rows", "give arrays whose first axis counts the same examples"
        )
    return converted


def _tensor(value: Any) -> Any:
    return value if tf.is_tensor(value) else tf.convert_to_tensor(value)


def _rows(tensor: Any) -> Any:
    """Number of rows, "?" where a graph does not know it yet, None for a scalar."""
    if tensor.shape.rank == 0:
        return None
    return "?" if tensor.shape[0] is None else tensor.shape[0]


def any_rows(tensor: Any) -> tf.TypeSpec:
    """The tensor's type with its number of rows left open."""
    spec = tf.type_spec_from_value(tensor)
    return tf.TensorSpec([None, *spec.shape[1:]], spec.dtype) if isinstance(spec, tf.TensorSpec) else spec


def one_row_like(x: Any) -> Any:
    """Zeros for a model to be built on: one row, so that no layer meets an empty batch."""
    return tf.nest.map_structure(lambda tensor: tf.zeros([1, *tensor.shape[1:]], tensor.dtype), x)


def filled(like: Any, rows: int, draw: Callable[[list[int]], Any]) -> Any:
    """A made-up batch.

    Args:
        like: nest of `KerasTensor`s, or None. Axes of unknown length get 3 entries.
        draw: shape -> an array of numbers; integers that it gives between -1 and 1 are 0.
    """

    def fill(tensor: keras.KerasTensor | None) -> tf.Tensor | None:
        if tensor is None:
            return None
        shape = [rows, *(size or 3 for size in tensor.shape[1:])]
        return tf.cast(draw(shape), tensor.dtype) if tensor.dtype != "string" else tf.zeros(shape, tf.string)

    return keras.tree.map_structure(fill, like)


def no_rows_like(batch: Any) -> tuple[Any, ...]:
    """What a worker without a batch contributes: the same structure with 0 rows."""
    if batch is None:
        raise BadArgument(
            "this worker's iterable has no batch at all, which leaves its shapes unknown",
            "give a tf.data.Dataset, whose element_spec tells them",
        )

    def empty(like: Any) -> tf.Tensor:
        return tf.zeros([0, *(size or 1 for size in like.shape[1:])], like.dtype)

    return tf.nest.map_structure(empty, batch if isinstance(batch, tuple) else (batch,))


def one_row_at_least(batch: Any) -> Any:
    """The batch, or a row of ones if it has none: zeros are what masks leave out, and a mean of nothing is NaN."""

    def padded(tensor: tf.Tensor) -> tf.Tensor:
        missing = tf.maximum(1 - tf.shape(tensor)[:1], 0)
        return tf.concat([tensor, tf.ones(tf.concat([missing, tf.shape(tensor)[1:]], 0), tensor.dtype)], 0)

    return tf.nest.map_structure(padded, batch)


def zero_unless(present: tf.Tensor | None, values: Any) -> Any:
    """A nest of tensors: as they are, or zeros; () bool or, for what is always there, None."""
    if present is None:
        return values
    return tf.nest.map_structure(lambda value: tf.where(present, value, tf.zeros_like(value)), values)


def row_count(batch: Any) -> tf.Tensor:
    """() int32: rows of the batch, by its first tensor."""
    first = tf.nest.flatten(batch)[0]
    return first.nrows(tf.int32) if isinstance(first, tf.RaggedTensor) else tf.shape(first)[0]


def share(rows: tf.Tensor, first: int | tf.Tensor, last: int | tf.Tensor, size: int) -> tf.Tensor:
    """Cut the rows that belong to the workers first..last-1 of `size`; shares differ by at most one row.

    Args:
        rows: (b, ...) tensor or ragged tensor. A scalar has no rows and is given whole.

    Returns:
        (b', ...) with b' = ⌊last·b/size⌋ - ⌊first·b/size⌋.

    >>> [share(tf.range(7), worker, worker + 1, 3).numpy().tolist() for worker in range(3)]
    [[0, 1], [2, 3], [4, 5, 6]]
    """
    if rows.shape.rank == 0:
        return rows
    count = rows.nrows(tf.int32) if isinstance(rows, tf.RaggedTensor) else tf.shape(rows)[0]
    return rows[first * count // size : last * count // size]
