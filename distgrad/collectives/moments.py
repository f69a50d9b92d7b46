"""Sum, norm, largest entry and non-finite count of a flat gradient.

Their moments, (4,) float64: Σ entries, Σ entries², max |entry|, number of NaN or infinite entries; as a row, (5,), the
number of zeros, too. The moments of a whole follow from those of its parts, so that workers which share out a vector
share out its description, too.
"""

from collections.abc import Sequence

import tensorflow as tf

from distgrad import native
from distgrad.native.layout import Moments

ROW = len(Moments)  # numbers that describe a tensor

# Below this sum of squares, float32 may have lost squares to underflow.
_TINY = 1e-30


def moments(flat: tf.Tensor) -> tf.Tensor:
    """(4,) the moments of (s,) entries, inside a graph; s may be 0."""
    # Each of these reads the entries once and writes nothing: no |entries| or entries² are stored on the way.
    largest = tf.maximum(tf.reduce_max(flat), -tf.reduce_min(flat)) if flat.shape[0] else tf.zeros((), flat.dtype)
    squares = 2 * tf.nn.l2_loss(flat)
    usual = tf.math.is_finite(squares) & ((squares > _TINY) | (largest == 0))
    found = tf.cond(usual, lambda: [tf.cast(squares, tf.float64), tf.zeros((), tf.int64)], lambda: _careful(flat))
    return tf.stack([tf.cast(value, tf.float64) for value in (tf.reduce_sum(flat), found[0], largest, found[1])])


def rows(tensors: Sequence[tf.Tensor]) -> tf.Tensor:
    """(n, 5) float64 the rows of n tensors, on the CPU: each is read once, by one operation for all of them."""
    if not tensors:
        return tf.zeros((0, ROW), tf.float64)
    return tf.ensure_shape(native.operations().distgrad_moments(list(tensors)), (len(tensors), ROW))


def whole(rows: tf.Tensor) -> tf.Tensor:
    """(5,) the row of all that (n, 5) rows describe together."""
    sums = tf.reduce_sum(rows, axis=0)
    largest = tf.reduce_max(tf.concat([rows[:, 2], tf.zeros(1, tf.float64)], 0))
    return tf.concat([sums[:2], [largest], sums[3:]], 0)


def statistics(found: tf.Tensor, divisor: tf.Tensor | float = 1.0, dtype: tf.DType = tf.float64) -> tf.Tensor:
    """What a report shows of a gradient.

    Args:
        found: (..., m) the moments of the entries before they were divided; m is 4, or 5 for rows.
        divisor: () float64, above 0.
        dtype: of the divided entries; undivided ones cannot overflow, whatever theirs is.

    Returns:
        (..., m) float64: Σ entries, sqrt(Σ entries²), max |entry|, number of non-finite entries; where only the
        division by a small number makes entries overflow, that is 1, however many they are. Of rows, the zeros, too.
    """
    shown = native.operations().distgrad_statistics(found, tf.cast(divisor, tf.float64), T=dtype)
    return tf.ensure_shape(shown, found.shape)


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


def _careful(flat: tf.Tensor) -> list[tf.Tensor]:
    """Squares that overflowed, vanished or are NaN: again in float64, and a count of what is not finite."""
    nonfinite = tf.size(flat, tf.int64) - tf.math.count_nonzero(tf.math.is_finite(flat))
    return [tf.reduce_sum(tf.square(tf.cast(flat, tf.float64))), nonfinite]
