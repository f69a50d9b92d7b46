"""The divided sum of all workers -> G, and what it is like.

Where there is one loss, nothing is left to do: the entries came divided and described. Losses with divisors of their
own, and what is counted once a step, are put together here.
"""

import functools
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from distgrad.collectives.moments import COLUMNS, MOMENTS, merged, moments, moments_of_each, statistics
from distgrad.collectives.vectors import DividedSum
from distgrad.gradients.flat_vector import Layout
from distgrad.gradients.micro_batch import GradientSum


class G(NamedTuple):
    """The global gradient.

    Attributes:
        blocks: of it, but for its tables, as `Layout.unflatten` takes them.
        described: (4,) the statistics of it all.
        by_variable: (v, 5) those of each variable; (0, 5) where nobody asked for them.
    """

    blocks: Sequence[tf.Tensor]
    described: tf.Tensor
    by_variable: tf.Tensor


class Divided:
    """How to read a divided sum.

    Args:
        sent: the layout of the sum, each group's gradients one after the other.
        layout: that of G.
        by_variable: whether each variable is described.
    """

    def __init__(self, sent: Layout, layout: Layout, by_variable: bool) -> None:
        self._sent, self._layout, self._describes = sent, layout, by_variable

    def gradient(self, total: DividedSum, counts: Sequence[tf.Tensor], penalty: GradientSum, scale: tf.Tensor) -> G:
        """G, what is counted once included.

        Args:
            counts: of each group of losses, () float64 its N.
            penalty: what is counted once.
            scale: () float64, by which the gradients were larger on their way.
        """
        penalised = any(part is not None for part in penalty.gradients)
        if len(counts) == 1 and not penalised:
            shown = functools.partial(statistics, divisor=total.divisor, dtype=self._layout.dtype)
            by_variable = shown(self._in_order(total.by_range)) if self._describes else moments_of_each([])
            return G(total.blocks, shown(total.moments), by_variable)
        entries = tf.concat(total.blocks if len(counts) == 1 else self._of_groups(total, counts, scale), 0)
        if penalised:
            entries += tf.concat(self._layout.flatten(penalty.gradients), 0)
        parts = [entries, *touched(total)]
        described = moments(entries) if len(parts) == 1 else merged(moments_of_each(parts))[:MOMENTS]
        return G([entries], statistics(described), statistics(self._by_variable(parts)))

    def _by_variable(self, parts: Sequence[tf.Tensor]) -> tf.Tensor:
        """(v, 5) the rows of the variables of G; what nobody touched of a table are zeros."""
        if not self._describes:
            return moments_of_each([])
        gradients = [place.of(parts) for place in self._layout.places()]
        untouched = [size - tf.size(part) for size, part in zip(self._layout.sizes, gradients, strict=True)]
        zeros = tf.cast(untouched, tf.float64)[:, tf.newaxis]
        return moments_of_each(gradients) + tf.pad(zeros, [[0, 0], [COLUMNS - 1, 0]])

    def _in_order(self, described: tf.Tensor) -> tf.Tensor:
        """(v, 5) the rows as the variables come, from those of the ranges and then of the tables."""
        order = [*self._sent.slots(), *self._sent.tables]
        return tf.gather(described, np.argsort(order)) if self._sent.tables else described

    def _of_groups(self, total: DividedSum, counts: Sequence[tf.Tensor], scale: tf.Tensor) -> list[tf.Tensor]:
        """The pieces of the groups' gradients, each by its own divisor, as one; all came divided by the first one's."""
        shares = [total.divisor / (count * scale) for count in counts]
        parts, variables = self._sent.unflatten(total.blocks), len(self._layout.sizes)
        scaled = [part * tf.cast(shares[number // variables], part.dtype) for number, part in enumerate(parts)]
        sums = [tf.add_n(scaled[index::variables]) for index in range(variables)]
        return [total.undivided[:0], *self._layout.flatten(sums)]


def touched(total: DividedSum) -> list[tf.Tensor]:
    """The entries of each table's touched rows, 1-D, as `Place.of` takes them."""
    return [tf.reshape(table.values, [-1]) for table in total.sparse]
