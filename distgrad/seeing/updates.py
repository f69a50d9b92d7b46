"""How far a step moved the weights, against how large they are."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from distgrad.layout import Layout
from distgrad.statistics import rows


class UpdateRatios(NamedTuple):
    """|change| / |weights before|: of all variables together, and of each by its path. NaN where all weights are 0."""

    whole: float
    by_variable: dict[str, float]


class Updates:
    """Compares weights before and after a step, in this process. Both are read once, so it takes their memory twice."""

    def __init__(self, layout: Layout, variables: Sequence[Any]) -> None:
        self._paths = [variable.path for variable in variables]
        self._read = tf.function(lambda: _flat(layout, variables), autograph=False)
        self._compare = tf.function(lambda before, after: _squares(layout, before, after), autograph=False)

    def before(self) -> tf.Tensor:
        """(entries,) a copy of the weights."""
        return self._read()

    def after(self, before: tf.Tensor) -> UpdateRatios:
        """What has become of them."""
        change, weights = np.sqrt(self._compare(before, self._read()))
        pairs = zip(self._paths, change, weights, strict=True)
        ratios = {path: _ratio(moved, size) for path, moved, size in pairs}
        return UpdateRatios(_ratio(np.linalg.norm(change), np.linalg.norm(weights)), ratios)


def _ratio(change: Any, weights: Any) -> float:
    return float(change / weights) if weights > 0 else math.nan


def _flat(layout: Layout, variables: Sequence[Any]) -> tf.Tensor:
    return tf.concat(layout.flatten([tf.convert_to_tensor(variable) for variable in variables]), 0)


def _squares(layout: Layout, before: tf.Tensor, after: tf.Tensor) -> tf.Tensor:
    """(2, v) Σ entries² of the changes and of the weights before, by variable."""
    change = after - before
    parts = [flat[first:last] for flat in (change, before) for first, last in layout.ranges()]
    return tf.reshape(rows(parts)[:, 1], (2, -1))
