"""A batch: a tuple (x, [y, [sample_weight]]) of nests of tensors whose first axis counts the same rows.

A tensor may be dense, ragged or sparse.
"""

import functools
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
    shape = [None, *spec.shape[1:]]
    if isinstance(spec, tf.RaggedTensorSpec):
        return tf.RaggedTensorSpec(shape, spec.dtype, spec.ragged_rank, spec.row_splits_dtype)
    return type(spec)(shape, spec.dtype)


def symbolic(tensor: Any) -> keras.KerasTensor:
    """The batch's tensor without its values, for any number of rows."""
    spec = any_rows(tensor)
    ragged = {"ragged": True, "ragged_rank": spec.ragged_rank} if isinstance(spec, tf.RaggedTensorSpec) else {}
    return keras.KerasTensor(spec.shape, spec.dtype.name, sparse=isinstance(spec, tf.SparseTensorSpec), **ragged)


def as_ragged(tensors: Any, like: Any) -> Any:
    """Dense tensors, of which those become ragged that are so in a nest of `KerasTensor`s of the same structure."""

    def convert(tensor: Any, like: keras.KerasTensor) -> Any:
        return tf.RaggedTensor.from_tensor(tensor, ragged_rank=like.ragged_rank) if like.ragged else tensor

    return keras.tree.map_structure(convert, tensors, like)


def _zeros(rows: int, like: Any) -> Any:
    """So many rows of zeros in the form of a tensor or of its spec; axes of unknown length get 1 entry."""
    dense = tf.zeros([rows, *(size or 1 for size in like.shape[1:])], like.dtype)
    spec = like if isinstance(like, tf.TypeSpec) else tf.type_spec_from_value(like)
    if isinstance(spec, tf.RaggedTensorSpec):
        return tf.RaggedTensor.from_tensor(dense, ragged_rank=spec.ragged_rank, row_splits_dtype=spec.row_splits_dtype)
    return tf.sparse.from_dense(dense) if isinstance(spec, tf.SparseTensorSpec) else dense


def one_row_like(x: Any) -> Any:
    """Zeros for a model to be built on: one row, so that no layer meets an empty batch."""
    return tf.nest.map_structure(functools.partial(_zeros, 1), x)


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
    return tf.nest.map_structure(functools.partial(_zeros, 0), batch if isinstance(batch, tuple) else (batch,))


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
    return _count(tf.nest.flatten(batch)[0])


def _count(tensor: Any) -> tf.Tensor:
    if isinstance(tensor, tf.RaggedTensor):
        return tensor.nrows(tf.int32)
    return tf.cast(tensor.dense_shape[0], tf.int32) if isinstance(tensor, tf.SparseTensor) else tf.shape(tensor)[0]


def rows_between(tensor: Any, first: tf.Tensor, last: tf.Tensor) -> Any:
    """The rows first..last-1, or as many of them as there are."""
    if not isinstance(tensor, tf.SparseTensor):
        return tensor[first:last]
    first, last = tf.cast(first, tf.int64), tf.cast(last, tf.int64)
    rest = tensor.dense_shape[1:]
    cut = tf.sparse.slice(tensor, tf.concat([[first], tf.zeros_like(rest)], 0), tf.concat([[last - first], rest], 0))
    cut.set_shape([None, *tensor.shape[1:]])
    return cut
