"""The global gradient: the divided sum of all workers, and its statistics.

Where there is one loss, nothing is left to do: the entries came divided and described. Losses with divisors of their
own, and regularization, which is counted once a step, are added here.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from distgrad.collectives.moments import COLUMNS, MOMENTS, merged, moments, moments_of_each, statistics
from distgrad.collectives.vectors import DividedSum
from distgrad.gradients.checks import Gradient
from distgrad.gradients.flat_vector import FlatLayout


class GradientStatistics(NamedTuple):
    """The gradient of some variables: Σ entries, sqrt(Σ entries²), max |entry|, count of NaN and infinite entries."""

    gradient_sum: float
    gradient_norm: float
    gradient_max: float
    nonfinite: int


class GlobalGradient(NamedTuple):
    """The global gradient G.

    Attributes:
        blocks: the flat gradient, as `FlatLayout.unflatten` takes it.
        sparse: the gradients of the sparse variables.
        statistics: of all of it, () float64 each.
        by_variable: (v, 5) float64, see `moments_of_each`; (0, 5) where nobody asked for it.
    """

    blocks: Sequence[tf.Tensor]
    sparse: Sequence[tf.IndexedSlices]
    statistics: GradientStatistics
    by_variable: tf.Tensor

    @property
    def touched(self) -> list[tf.Tensor]:
        """The entries of the touched rows of each sparse variable, 1-D, as `Place.of` takes them."""
        return _touched(self.sparse)


class GradientReader:
    """Reads the global gradient out of the divided sum.

    Args:
        sent: layout of the sum: the gradients of each group of losses, one after the other.
        layout: of the global gradient.
        by_variable: True to describe each variable.
    """

    def __init__(self, sent: FlatLayout, layout: FlatLayout, by_variable: bool) -> None:
        self._sent, self._layout, self._by_variable = sent, layout, by_variable

    def read(
        self, total: DividedSum, counts: Sequence[tf.Tensor], penalty: Sequence[Gradient], scale: tf.Tensor
    ) -> GlobalGradient:
        """Return the global gradient, regularization included.

        Args:
            counts: for each group of losses, () float64 its N.
            penalty: the gradients of the regularization losses, None for variables that have none.
            scale: () float64, the loss scale that the gradients still have.
        """
        is_penalized = any(gradient is not None for gradient in penalty)
        if len(counts) == 1 and not is_penalized:
            dtype = self._layout.dtype
            described = statistics(total.moments, total.divisor, dtype)
            each = (
                statistics(self._in_order(total.by_range), total.divisor, dtype)
                if self._by_variable
                else moments_of_each([])
            )
            return self._gradient(total.blocks, total, described, each)
        entries = tf.concat(total.blocks if len(counts) == 1 else self._of_groups(total, counts, scale), 0)
        if is_penalized:
            entries += tf.concat(self._layout.flatten(penalty), 0)
        parts = [entries, *_touched(total.sparse)]
        described = moments(entries) if len(parts) == 1 else merged(moments_of_each(parts))[:MOMENTS]
        return self._gradient([entries], total, statistics(described), statistics(self._describe_each(parts)))

    def _gradient(
        self, blocks: Sequence[tf.Tensor], total: DividedSum, described: tf.Tensor, by_variable: tf.Tensor
    ) -> GlobalGradient:
        return GlobalGradient(blocks, total.sparse, GradientStatistics(*tf.unstack(described, MOMENTS)), by_variable)

    def _describe_each(self, parts: Sequence[tf.Tensor]) -> tf.Tensor:
        """Return (v, 5) the rows of the variables; entries of a sparse variable that nobody touched are zeros."""
        if not self._by_variable:
            return moments_of_each([])
        gradients = [place.of(parts) for place in self._layout.places()]
        untouched = [size - tf.size(part) for size, part in zip(self._layout.sizes, gradients, strict=True)]
        zeros = tf.cast(untouched, tf.float64)[:, tf.newaxis]
        return moments_of_each(gradients) + tf.pad(zeros, [[0, 0], [COLUMNS - 1, 0]])

    def _in_order(self, described: tf.Tensor) -> tf.Tensor:
        """Return (v, 5) the rows in the order of the variables, from those of the ranges and then of the sparse."""
        order = [*self._sent.slots(), *self._sent.sparse]
        return tf.gather(described, np.argsort(order)) if self._sent.sparse else described

    def _of_groups(self, total: DividedSum, counts: Sequence[tf.Tensor], scale: tf.Tensor) -> list[tf.Tensor]:
        """Add the groups' gradients, each by its own divisor; they came divided by the first. Returns the pieces."""
        factors = [total.divisor / (count * scale) for count in counts]
        parts, variables = self._sent.unflatten(total.blocks), len(self._layout.sizes)
        scaled = [part * tf.cast(factors[number // variables], part.dtype) for number, part in enumerate(parts)]
        sums = [tf.add_n(scaled[index::variables]) for index in range(variables)]
        return [total.undivided[:0], *self._layout.flatten(sums)]


def _touched(sparse: Sequence[tf.IndexedSlices]) -> list[tf.Tensor]:
    return [tf.reshape(gradient.values, [-1]) for gradient in sparse]
