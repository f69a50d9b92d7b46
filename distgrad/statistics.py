"""Sum, norm, largest entry and non-finite count of a flat gradient.

Their moments, (4,) float64: Σ entries, Σ entries², max |entry|, number of NaN or infinite entries. The moments of a
whole follow from those of its parts, so that workers which share out a vector share out its description, too.
"""

from collections.abc import Sequence

import tensorflow as tf

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


def _careful(flat: tf.Tensor) -> list[tf.Tensor]:
    """Squares that overflowed, vanished or are NaN: again in float64, and a count of what is not finite."""
    nonfinite = tf.size(flat, tf.int64) - tf.math.count_nonzero(tf.math.is_finite(flat))
    return [tf.reduce_sum(tf.square(tf.cast(flat, tf.float64))), nonfinite]
