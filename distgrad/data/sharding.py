"""Sharing out rows: the global batch cut into contiguous parts, one a worker."""

from typing import Any

import tensorflow as tf

from distgrad.data.batch import row_count, rows_between
from distgrad.data.pipeline import unconverted, without_autotune
from distgrad.errors import BadArgument


def rows_of_workers(tensor: Any, first: int | tf.Tensor, last: int | tf.Tensor, size: int) -> Any:
    """Cut out the rows that belong to the workers first..last-1 of `size`; workers' rows differ by at most one.

    Args:
        tensor: (b, ...) dense, ragged or sparse. A scalar has no rows and is given whole.

    Returns:
        (b', ...) with b' = ⌊last·b/size⌋ - ⌊first·b/size⌋.

    >>> [rows_of_workers(tf.range(7), worker, worker + 1, 3).numpy().tolist() for worker in range(3)]
    [[0, 1], [2, 3], [4, 5, 6]]
    """
    if tensor.shape.rank == 0:
        return tensor
    return rows_between(tensor, *range_of_workers(row_count(tensor), first, last, size))


def range_of_workers(count: Any, first: Any, last: Any, size: int) -> tuple[Any, Any]:
    """Return the first of `count` rows that belongs to the workers first..last-1 of `size`, and the end of theirs.

    All are ints or integer tensors.
    """
    return first * count // size, last * count // size


def shard_dataset(dataset: tf.data.Dataset, first: int, last: int, size: int) -> tf.data.Dataset:
    """Cut every batch of a dataset of global batches into the rows of the workers first..last-1 of `size`.

    Args:
        dataset: batches of any structure.

    Returns:
        A dataset of as many batches, each with rows [⌊first·b/size⌋, ⌊last·b/size⌋) of the global batch's b rows.

    Raises:
        BadArgument: it is no `tf.data.Dataset`.
    """
    if not isinstance(dataset, tf.data.Dataset):
        raise BadArgument(
            f"shard() takes a tf.data.Dataset of global batches, not {type(dataset).__name__}",
            "wrap arrays with tf.data.Dataset.from_tensor_slices(...).batch(...)",
        )

    def cut_batch(*batch: Any) -> Any:
        whole = batch if isinstance(dataset.element_spec, tuple) else batch[0]
        return tf.nest.map_structure(lambda tensor: rows_of_workers(tensor, first, last, size), whole)

    cut = without_autotune(dataset.map(unconverted(cut_batch)))
    cut.is_shard = True  # for whoever would otherwise look whether it is the same on every worker
    return cut
