"""A batch: a tuple (x, [y, [sample_weight]]) of nests of tensors whose first axis counts the same rows.

A tensor may be dense, ragged or sparse.
"""

import functools
from collections.abc import Callable
from typing import Any

import tensorflow as tf

from distgrad.errors import BadArgument


def as_tensors(batch: Any) -> tuple[Any, ...]:
    """Convert a batch to a tuple (x, [y, [sample_weight]]) of nests of tensors.

    Args:
        batch: x alone, or a tuple or list whose None parts at the end are left out; arrays, tensors or nests of them.

    Raises:
        BadArgument: its parts have different numbers of rows, or one is a scalar.
    """
    parts = list(batch) if isinstance(batch, (tuple, list)) else [batch]
    while parts and parts[-1] is None:
        parts.pop()
    if all(isinstance(part, tf.Tensor) for part in parts):  # as in most steps, where looking into nests takes long
        converted, flat = tuple(parts), parts
    else:
        converted = tf.nest.map_structure(lambda v: v if tf.is_tensor(v) else tf.convert_to_tensor(v), tuple(parts))
        flat = tf.nest.flatten(converted)
    rows = [_static_rows(tensor) for tensor in flat]
    if not rows or None in rows or len(set(rows) - {"?"}) > 1:
        raise BadArgument(
            f"the parts of a batch have {rows} rows", "give arrays whose first axis counts the same examples"
        )
    return converted


def _static_rows(tensor: Any) -> int | str | None:
    """Number of rows by the tensor's shape, "?" if a graph leaves it open, None for a scalar."""
    if tensor.shape.rank == 0:
        return None
    return "?" if tensor.shape[0] is None else int(tensor.shape[0])


def spec_with_any_rows(tensor: Any) -> tf.TypeSpec:
    """Type of a tensor with its number of rows left open."""
    spec = tf.type_spec_from_value(tensor)
    shape = [None, *spec.shape[1:]]
    if isinstance(spec, tf.RaggedTensorSpec):
        return tf.RaggedTensorSpec(shape, spec.dtype, spec.ragged_rank, spec.row_splits_dtype)
    return type(spec)(shape, spec.dtype)


def spec_with_some_rows(tensor: Any) -> tf.TypeSpec:
    """Type of a tensor with its own number of rows, which is left open if it has none."""
    return tf.type_spec_from_value(tensor) if tensor.shape[0] else spec_with_any_rows(tensor)


def rows_of_zeros(rows: int, like: Any) -> Any:
    """Rows of zeros, dense, ragged or sparse as `like`, a tensor or its spec; axes of unknown length get 1 entry."""
    return None if like is None else _new_rows(tf.zeros, rows, like)


def _new_rows(make: Callable[..., tf.Tensor], rows: int, like: Any) -> Any:
    """Make rows, dense, ragged or sparse as `like`; `make` gives their entries, as `tf.zeros` and `tf.ones` do."""
    dense = make([rows, *(size or 1 for size in like.shape[1:])], like.dtype)
    spec = like if isinstance(like, tf.TypeSpec) else tf.type_spec_from_value(like)
    if isinstance(spec, tf.RaggedTensorSpec):
        return tf.RaggedTensor.from_tensor(dense, ragged_rank=spec.ragged_rank, row_splits_dtype=spec.row_splits_dtype)
    return tf.sparse.from_dense(dense) if isinstance(spec, tf.SparseTensorSpec) else dense


def no_rows_like(batch: Any) -> tuple[Any, ...]:
    """Batch of 0 rows with the structure of `batch`: the contribution of a worker that has run out of data.

    Args:
        batch: a batch, or a dataset's `element_spec`.

    Raises:
        BadArgument: `batch` is None.
    """
    if batch is None:
        raise BadArgument(
            "this worker's iterable has no batch at all, which leaves its shapes unknown",
            "give a tf.data.Dataset, whose element_spec tells them",
        )
    return tf.nest.map_structure(functools.partial(rows_of_zeros, 0), batch if isinstance(batch, tuple) else (batch,))


def one_row_at_least(batch: Any) -> Any:
    """Return the batch, or one row of ones if it has no rows.

    A mean over no rows would be NaN, and a mask would leave out a row of zeros.
    """

    def padded(tensor: Any) -> Any:
        missing = tf.maximum(1 - _count(tensor), 0)
        if isinstance(tensor, tf.Tensor):
            ones = _ones(tf.concat([[missing], tf.shape(tensor)[1:]], 0), tensor.dtype)
            return tf.concat([tensor, ones], 0)
        ones = rows_between(_new_rows(_ones, 1, tensor), 0, missing)
        if isinstance(tensor, tf.RaggedTensor):
            return tf.concat([tensor, ones], 0)
        joined = tf.sparse.concat(0, [tensor, ones], expand_nonconcat_dims=True)
        joined.set_shape([None, *tensor.shape[1:]])
        return joined

    return tf.nest.map_structure(padded, batch)


def _ones(shape: Any, dtype: tf.DType) -> tf.Tensor:
    return tf.fill(shape, "1") if dtype == tf.string else tf.ones(shape, dtype)


def zero_unless(present: tf.Tensor | None, values: Any) -> Any:
    """Zero all tensors of a nest unless `present`, () bool; None means always present."""
    if present is None:
        return values
    return tf.nest.map_structure(lambda value: tf.where(present, value, tf.zeros_like(value)), values)


def row_count(batch: Any) -> tf.Tensor:
    """Number of rows of a batch, () int32, by its first tensor."""
    return _count(tf.nest.flatten(batch)[0])


def _count(tensor: Any) -> tf.Tensor:
    if isinstance(tensor, tf.RaggedTensor):
        return tensor.nrows(tf.int32)
    return tf.cast(tensor.dense_shape[0], tf.int32) if isinstance(tensor, tf.SparseTensor) else tf.shape(tensor)[0]


def rows_between(tensor: Any, first: tf.Tensor, last: tf.Tensor) -> Any:
    """Rows first..last-1 of a dense, ragged or sparse tensor, or as many of them as there are."""
    if not isinstance(tensor, tf.SparseTensor):
        return tensor[first:last]
    first, last = tf.cast(first, tf.int64), tf.cast(last, tf.int64)
    rest = tensor.dense_shape[1:]
    cut = tf.sparse.slice(tensor, tf.concat([[first], tf.zeros_like(rest)], 0), tf.concat([[last - first], rest], 0))
    cut.set_shape([None, *tensor.shape[1:]])
    return cut
