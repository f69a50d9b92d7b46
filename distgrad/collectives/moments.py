"""Moments of vectors: sum, sum of squares, largest entry, and how many entries are not finite.

The moments of a whole follow from those of its parts, so that workers which share out a vector share out its
description, too. They are packed into one float64 tensor, whose entries have the names below.
"""

from collections.abc import Sequence

import tensorflow as tf

from distgrad import native
from distgrad.native.layout import Moments

# Σ entries; Σ entries² (its root, the norm, in what `statistics` returns); max |entry|; number of entries that are NaN
# or infinite; number of entries that are 0, which not every vector has.
TOTAL, SQUARES, LARGEST, NONFINITE, ZEROS = Moments
MOMENTS, COLUMNS = int(ZEROS), len(Moments)  # how many of these numbers there are without the zeros, and with them

# Below this sum of squares, float32 may have lost squares to underflow.
_TINY = 1e-30


def moments(flat: tf.Tensor) -> tf.Tensor:
    """(MOMENTS,) the moments of (s,) entries, on any device; s may be 0."""
    # Each of these reads the entries once and writes nothing: no |entries| or entries² are stored on the way.
    largest = tf.maximum(tf.reduce_max(flat), -tf.reduce_min(flat)) if flat.shape[0] else tf.zeros((), flat.dtype)
    squares = 2 * tf.nn.l2_loss(flat)
    usual = tf.math.is_finite(squares) & ((squares > _TINY) | (largest == 0))
    found = tf.cond(usual, lambda: [tf.cast(squares, tf.float64), tf.zeros((), tf.int64)], lambda: _careful(flat))
    squares, nonfinite = found
    return tf.stack([tf.cast(value, tf.float64) for value in (tf.reduce_sum(flat), squares, largest, nonfinite)])


def moments_of_each(tensors: Sequence[tf.Tensor]) -> tf.Tensor:
    """(n, COLUMNS) the moments of each of n tensors and its zeros, on the CPU; one operation reads each once."""
    if not tensors:
        return tf.zeros((0, COLUMNS), tf.float64)
    return tf.ensure_shape(native.operations().distgrad_moments(list(tensors)), (len(tensors), COLUMNS))


def merged(parts: tf.Tensor) -> tf.Tensor:
    """(COLUMNS,) the moments of a whole from those of its parts, (n, COLUMNS); n may be 0."""
    sums = tf.reduce_sum(parts, axis=0)
    largest = tf.reduce_max(tf.concat([parts[:, LARGEST], tf.zeros(1, tf.float64)], 0))
    return tf.concat([sums[:LARGEST], [largest], sums[NONFINITE:]], 0)


def statistics(found: tf.Tensor, divisor: tf.Tensor | float = 1.0, dtype: tf.DType = tf.float64) -> tf.Tensor:
    """Turn moments into what a report shows of a gradient.

    Args:
        found: (..., MOMENTS) or (..., COLUMNS), of the entries before they were divided.
        divisor: () float64, above 0.
        dtype: of the divided entries; undivided ones cannot overflow, whatever theirs is.

    Returns:
        The same shape: Σ entries, sqrt(Σ entries²), max |entry|, number of non-finite entries, number of zeros. Where
        only the division by a small number makes entries overflow, the number of non-finite entries is 1, however
        many they are.
    """
    shown = native.operations().distgrad_statistics(found, tf.cast(divisor, tf.float64), T=dtype)
    return tf.ensure_shape(shown, found.shape)


def all_finite(pieces: Sequence[tf.Tensor]) -> tf.Tensor:
    """() bool, True if no entry of the pieces is NaN or infinite."""
    if not pieces:
        return tf.constant(True)
    # Only where the sum of all entries is not finite are they looked at one by one.
    return tf.cond(
        tf.math.is_finite(tf.add_n([tf.reduce_sum(piece) for piece in pieces])),
        lambda: tf.constant(True),
        lambda: tf.reduce_all([tf.reduce_all(tf.math.is_finite(piece)) for piece in pieces]),
    )


def _careful(flat: tf.Tensor) -> list[tf.Tensor]:
    """Return Σ entries² in float64, where squares overflow, vanish or are NaN, and the number that is not finite."""
    nonfinite = tf.size(flat, tf.int64) - tf.math.count_nonzero(tf.math.is_finite(flat))
    return [tf.reduce_sum(tf.square(tf.cast(flat, tf.float64))), nonfinite]
