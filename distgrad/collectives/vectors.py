"""Vectors that communicators sum, whole or in pieces; the division of their sum, and its description."""

from collections.abc import Sequence
from typing import Any, NamedTuple, TypeAlias

import tensorflow as tf

from distgrad.errors import UnsupportedDtype

SUMMABLE = (tf.float32, tf.float64, tf.int32, tf.int64)  # what every engine sums without a cast

Vector: TypeAlias = Any  # a 1-D tensor, or a list of them that stands for their concatenation


class Division(NamedTuple):
    """The one division of a sum over workers, by a number that comes along in the sum, and its description.

    Attributes:
        undivided: how many entries, at the end of the vector, are not divided.
        terms: (1 + r,) float64. The divisor is the first of them plus Σ the others times the last r entries of the
            sum, or 1 if that is 0.
        describe: True to have moments and non-finite workers found; else they are zeros.
        ranges: [first, last) of divided entries in ascending order, each to be described by itself. All entries
            between them are zero.
        compression: number of the way in which the divided entries cross the wire between hosts (compression.py); 0 if
            they go as they are, which all others do.
    """

    undivided: int
    terms: tf.Tensor
    describe: bool = True
    ranges: Sequence[tuple[int, int]] = ()
    compression: int = 0

    def divisor(self, undivided: tf.Tensor) -> tf.Tensor:
        """() float64 the divisor, from the entries of the sum that are not divided."""
        lanes = tf.cast(undivided, tf.float64)[tf.size(undivided) - tf.size(self.terms) + 1 :]
        # Where a term is 0, its entry may be NaN.
        divisor = self.terms[0] + tf.reduce_sum(tf.math.multiply_no_nan(lanes, self.terms[1:]))
        return tf.where(tf.equal(divisor, 0), tf.ones_like(divisor), divisor)


class DividedSum(NamedTuple):
    """A sum over workers whose first entries are divided, and what these are like.

    Attributes:
        blocks: the divided entries, as one tensor or in the pieces that the worker gave.
        undivided: (u,) the entries that are not divided.
        divisor: () float64.
        moments: (MOMENTS,) float64 of the first entries before they were divided, see moments.py.
        nonfinite_workers: (size,) 1 for each worker whose own vector held NaN or infinity.
        by_range: (v, COLUMNS) float64 likewise of each range, then of each sparse variable.
        sparse: the gradients of the sparse variables (window.py), summed, divided and described with the entries;
            each row that any worker touched is in them once.
    """

    blocks: Sequence[tf.Tensor]
    undivided: tf.Tensor
    divisor: tf.Tensor
    moments: tf.Tensor
    nonfinite_workers: tf.Tensor
    by_range: tf.Tensor
    sparse: Sequence[tf.IndexedSlices] = ()


def pieces_of(vector: Vector) -> list[tf.Tensor]:
    """Return a vector's pieces, if every engine can sum them.

    Raises:
        UnsupportedDtype: one is neither float32, float64, int32 nor int64.
    """
    pieces = list(vector) if isinstance(vector, (list, tuple)) else [vector]
    for piece in pieces:
        if piece.dtype not in SUMMABLE:
            raise UnsupportedDtype(
                f"a vector of dtype {piece.dtype.name} cannot be summed over workers",
                f"cast it to one of {', '.join(dtype.name for dtype in SUMMABLE)}",
            )
    return pieces


def joined(pieces: Sequence[tf.Tensor]) -> tf.Tensor:
    """(s,) the pieces as one vector; a single piece is not copied."""
    return pieces[0] if len(pieces) == 1 else tf.concat(pieces, 0)
