"""Sum, norm, largest entry and non-finite count of a flat gradient, inside the compiled step."""

from collections.abc import Sequence

import tensorflow as tf


def describe_gradient(flat: tf.Tensor) -> tf.Tensor:
    """Reduce a gradient to the numbers that a report shows.

    Args:
        flat: (s,) gradient entries; s may be 0.

    Returns:
        (4,) float64: Σ entries, sqrt(Σ entries²), max |entry| (0 for s = 0), number of NaN or infinite entries.
    """
    # Each of these reads the gradient once and writes nothing: no |entries| or entries² are stored on the way.
    largest = tf.maximum(tf.reduce_max(flat), -tf.reduce_min(flat)) if flat.shape[0] else tf.zeros((), flat.dtype)
    squares = 2 * tf.nn.l2_loss(flat)
    usual = tf.math.is_finite(squares) & ((squares > _TINY) | (largest == 0))
    norm, nonfinite = tf.cond(usual, lambda: (_norm(squares), tf.zeros((), tf.int64)), lambda: _careful(flat))
    return tf.stack([*(tf.cast(x, tf.float64) for x in (tf.reduce_sum(flat), norm, largest, nonfinite))])


def describe_ranges(flat: tf.Tensor, ranges: Sequence[tuple[int, int]]) -> tf.Tensor:
    """(4,) the same for the entries in these [first, last) ranges taken together."""
    chosen = [flat[first:last] for first, last in ranges]
    return describe_gradient(tf.concat([*chosen, tf.zeros(0, flat.dtype)], 0))


def all_finite(flat: tf.Tensor) -> tf.Tensor:
    """() bool: no entry is NaN or infinite. Only where their sum is not finite are they looked at one by one."""
    usual = tf.math.is_finite(tf.reduce_sum(flat))
    return tf.cond(usual, lambda: True, lambda: tf.reduce_all(tf.math.is_finite(flat)))


# Below this sum of squares, float32 may have lost squares to underflow.
_TINY = 1e-30


def _norm(squares: tf.Tensor) -> tf.Tensor:
    return tf.sqrt(tf.cast(squares, tf.float64))


def _careful(flat: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Squares that overflowed, vanished or are NaN: again in float64, and a count of what is not finite."""
    nonfinite = tf.size(flat, tf.int64) - tf.math.count_nonzero(tf.math.is_finite(flat))
    return _norm(tf.reduce_sum(tf.square(tf.cast(flat, tf.float64)))), nonfinite
