"""What communicators sum: vectors, whole or in pieces, and what is known of their sum."""

from collections.abc import Sequence
from typing import Any, NamedTuple, TypeAlias

import tensorflow as tf

from distgrad.errors import UnsupportedDtype

SUMMABLE = (tf.float32, tf.float64, tf.int32, tf.int64)  # what every engine sums without a cast

Vector: TypeAlias = Any  # a 1-D tensor, or a list of them that stands for their concatenation


class DividedSum(NamedTuple):
    """A sum over workers whose first entries are divided by what came along in it, and what those are like.

    Attributes:
        blocks: the sum, divided, (s - rest,) in all; as a whole, or in the pieces that the worker gave.
        rest: (rest,) the sum, not divided.
        divisor: () float64, by which.
        moments: (4,) float64 of the entries before they were divided, see `statistics`.
        nonfinite: (size,) 1 for each worker whose own vector held NaN or infinity.
        rows: (v, 5) float64, the same of each range that was to be described, see `statistics`; then of each table.
        tables: the layout's tables, summed and divided with the entries, and described with them: each row that any
            worker touched stands in them once.
    """

    blocks: Sequence[tf.Tensor]
    rest: tf.Tensor
    divisor: tf.Tensor
    moments: tf.Tensor
    nonfinite: tf.Tensor
    rows: tf.Tensor
    tables: Sequence[tf.IndexedSlices] = ()


def pieces_of(vector: Vector) -> list[tf.Tensor]:
    """A vector's pieces, if every engine can sum them.

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
    """The pieces as one vector (s,); a single piece is not copied."""
    return pieces[0] if len(pieces) == 1 else tf.concat(pieces, 0)


def divisor_of(terms: tf.Tensor, rest: tf.Tensor) -> tf.Tensor:
    """() float64, see `sum_and_divide`."""
    lanes = tf.cast(rest, tf.float64)[tf.size(rest) - tf.size(terms) + 1 :]
    by = terms[0] + tf.reduce_sum(tf.math.multiply_no_nan(lanes, terms[1:]))  # where one is 0, its entry may be NaN
    return tf.where(tf.equal(by, 0), tf.ones_like(by), by)
