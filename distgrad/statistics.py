"""Sum, norm, largest entry and non-finite count of a flat gradient.

Their moments, (4,) float64: Σ entries, Σ entries², max |entry|, number of NaN or infinite entries. The moments of a
whole follow from those of its parts, so that workers which share out a vector share out its description, too.
"""

import math
from collections.abc import Iterable, Sequence
from typing import TypeAlias

import numpy as np
import tensorflow as tf

# Below this sum of squares, float32 may have lost squares to underflow.
_TINY = 1e-30

Moments: TypeAlias = tuple[float, float, float, float]  # as above


def moments(flat: tf.Tensor) -> tf.Tensor:
    """(4,) the moments of (s,) entries, inside a graph; s may be 0."""
    # Each of these reads the entries once and writes nothing: no |entries| or entries² are stored on the way.
    largest = tf.maximum(tf.reduce_max(flat), -tf.reduce_min(flat)) if flat.shape[0] else tf.zeros((), flat.dtype)
    squares = 2 * tf.nn.l2_loss(flat)
    usual = tf.math.is_finite(squares) & ((squares > _TINY) | (largest == 0))
    found = tf.cond(usual, lambda: [tf.cast(squares, tf.float64), tf.zeros((), tf.int64)], lambda: _careful(flat))
    return tf.stack([tf.cast(value, tf.float64) for value in (tf.reduce_sum(flat), found[0], largest, found[1])])


def statistics(found: tf.Tensor, divisor: tf.Tensor | float = 1.0, dtype: tf.DType = tf.float64) -> tf.Tensor:
    """What a report shows of a gradient.

    Args:
        found: (4,) the moments of the entries before they were divided.
        divisor: () float64, above 0.
        dtype: of the divided entries; undivided ones cannot overflow, whatever theirs is.

    Returns:
        (4,) float64: Σ entries, sqrt(Σ entries²), max |entry|, number of non-finite entries; where only the division
        by a small number makes entries overflow, that is 1, however many they are.
    """
    total, squares, largest, nonfinite = tf.unstack(found)
    overflow = tf.cast(largest / divisor > dtype.max, tf.float64)
    return tf.stack([total / divisor, tf.sqrt(squares) / divisor, largest / divisor, tf.maximum(nonfinite, overflow)])


def statistics_of_ranges(flat: tf.Tensor, ranges: Sequence[tuple[int, int]]) -> tf.Tensor:
    """(4,) the statistics of the entries in these [first, last) ranges taken together."""
    chosen = [flat[first:last] for first, last in ranges]
    return statistics(moments(tf.concat([*chosen, tf.zeros(0, flat.dtype)], 0)))


def all_finite(pieces: Sequence[tf.Tensor]) -> tf.Tensor:
    """() bool: no entry is NaN or infinite. Only where their sum is not finite are they looked at one by one."""
    if not pieces:
        return tf.constant(True)
    usual = tf.math.is_finite(tf.add_n([tf.reduce_sum(piece) for piece in pieces]))
    return tf.cond(
        usual,
        lambda: tf.constant(True),
        lambda: tf.reduce_all([tf.reduce_all(tf.math.is_finite(piece)) for piece in pieces]),
    )


def moments_of_chunks(chunks: Iterable[np.ndarray]) -> Moments:
    """The moments of arrays that are small enough to stay in a core's cache; outside any graph."""
    room = np.empty(0)
    found = []
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):  # what is not finite is counted instead
        for chunk in chunks:
            room = room if room.size >= chunk.size else np.empty_like(chunk)
            found.append(_chunk_moments(chunk, room))
    return merge_moments(found)


def merge_moments(parts: Iterable[Sequence[float]]) -> Moments:
    """The moments of a whole from those of its parts, always added in the same order.

    >>> merge_moments([(1.0, 5.0, 2.0, 0.0), (-3.0, 9.0, 3.0, 0.0)])
    (-2.0, 14.0, 3.0, 0.0)
    """
    total = squares = largest = nonfinite = 0.0
    for part in parts:  # plain numbers: arrays this small cost more than they save
        total, squares, nonfinite = total + part[0], squares + part[1], nonfinite + part[3]
        largest = part[2] if math.isnan(part[2]) else max(largest, part[2])  # NaN, once first, stays so
    return total, squares, largest, nonfinite


def _chunk_moments(chunk: np.ndarray, room: np.ndarray) -> Moments:
    """The moments of one chunk; `room` takes its squares."""
    # No dot product: BLAS would wake threads, which take the cores from the other ranks.
    squares = np.multiply(chunk, chunk, out=room[: chunk.size])
    total, largest = np.add.reduce(squares), np.maximum.reduce(squares, initial=0)
    if _TINY < total < np.inf or not chunk.any():
        # The root of a rounded square is the number itself.
        return float(np.add.reduce(chunk)), float(total), float(np.sqrt(largest)), 0.0
    wide = chunk.astype(np.float64)
    largest = np.abs(wide).max(initial=0)
    return float(wide.sum()), float(np.square(wide).sum()), float(largest), float((~np.isfinite(wide)).sum())


def _careful(flat: tf.Tensor) -> list[tf.Tensor]:
    """Squares that overflowed, vanished or are NaN: again in float64, and a count of what is not finite."""
    nonfinite = tf.size(flat, tf.int64) - tf.math.count_nonzero(tf.math.is_finite(flat))
    return [tf.reduce_sum(tf.square(tf.cast(flat, tf.float64))), nonfinite]
