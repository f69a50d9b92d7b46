"""A communicator whose sums go through the compiled core's window."""

from collections.abc import Callable, Sequence
from typing import Any, cast

import tensorflow as tf

from distgrad.collectives.communicator import Communicator
from distgrad.collectives.moments import COLUMNS, MOMENTS
from distgrad.collectives.vectors import DividedSum, Division, Vector, pieces_of
from distgrad.collectives.window import PlacedVector, SparseVariable, Window

NOT_DIVIDED = Division(undivided=0, terms=(1.0,), describe=False)


class Windowed(Communicator):
    """A communicator whose sums go through a window.

    Attributes:
        window: memory that this host's ranks share.
    """

    window: Window

    def all_sum(self, pieces: Sequence[tf.Tensor], borrow: bool = False) -> tf.Tensor:
        return self._sum(_placed(pieces), borrow).flat

    def sum_over_workers(
        self, fn: Callable[..., Vector | PlacedVector], args: Sequence[Any], borrow: bool = False
    ) -> tf.Tensor:
        return self._sum(_placed(fn(*args)), borrow).flat

    def sum_and_divide(
        self, fn: Callable[..., Vector | PlacedVector], args: Sequence[Any], division: Division
    ) -> DividedSum:
        vector = _placed(fn(*args))
        divided = cast(int, vector.size) - division.undivided
        total = self._sum(vector, True, division, divided)
        sparse = zip(vector.sparse, total.rows, total.values, strict=True)
        return DividedSum(
            blocks=[total.flat[:divided]],
            undivided=total.flat[divided:],
            divisor=total.divided_by[0],
            moments=total.moments,
            nonfinite_workers=total.votes,
            by_range=total.by_range,
            sparse=[_indexed_slices(variable, rows, values) for variable, rows, values in sparse],
        )

    def _sum(self, vector: PlacedVector, borrow: bool, division: Division = NOT_DIVIDED, divided: int = 0) -> Any:
        """Run the core's operation, and tell TensorFlow the shapes of its outputs; `divided` entries are divided."""
        ranges, addresses = division.ranges, [variable.address for variable in vector.sparse]
        total = self.window.run(
            "sum",
            vector.filled,
            division.terms,
            vector.pieces,
            placed=vector.entries,
            divided=divided,
            described=divided if division.describe else 0,
            compression=division.compression,
            borrow=int(borrow),
            starts=[first for first, _ in ranges],
            stops=[last for _, last in ranges],
            sparse=addresses,
            K=len(addresses),
        )
        total.flat.set_shape([vector.size])
        total.divided_by.set_shape([1])
        total.moments.set_shape([MOMENTS])
        total.votes.set_shape([self.size])
        total.by_range.set_shape([len(ranges) + len(addresses), COLUMNS])
        return total


def _placed(vector: PlacedVector | Vector) -> PlacedVector:
    """The vector; any but a `PlacedVector` has no entries in the window yet."""
    return vector if isinstance(vector, PlacedVector) else PlacedVector(0, True, pieces_of(vector))


def _indexed_slices(variable: SparseVariable, rows: tf.Tensor, values: tf.Tensor) -> tf.IndexedSlices:
    """The sum of a sparse variable's gradients, in TensorFlow's form.

    Args:
        rows: (n,) numbers of the touched rows.
        values: (n · width,) their sums.
    """
    rows.set_shape([None])
    shape = variable.shape.as_list()
    return tf.IndexedSlices(tf.reshape(values, [-1, *shape[1:]]), rows, tf.constant(shape, tf.int64))
