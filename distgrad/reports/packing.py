"""Named numbers as one float64 vector, so that a compiled step hands out a single small tensor, fetched at once."""

import itertools
import math
from collections.abc import Mapping

import numpy as np
import tensorflow as tf

Shape = tuple[int, ...]


class Packing:
    """The order of named arrays in a vector.

    Args:
        shapes: the shape of each by its name; () is a single number.
    """

    def __init__(self, shapes: Mapping[str, Shape]) -> None:
        self._shapes = dict(shapes)
        sizes = [math.prod(shape) for shape in self._shapes.values()]
        self.entries = sum(sizes)
        ends = itertools.pairwise(itertools.accumulate(sizes, initial=0))
        self._slices = {name: slice(*end) for name, end in zip(self._shapes, ends, strict=True)}

    def pack(self, values: Mapping[str, tf.Tensor]) -> tf.Tensor:
        """Return (entries,) float64; `values` has a tensor of any numeric type for each name."""
        parts: list[tf.Tensor] = []
        for is_scalar, names in itertools.groupby(self._shapes, lambda name: self._shapes[name] == ()):
            wide = [tf.cast(values[name], tf.float64) for name in names]
            parts += [tf.stack(wide)] if is_scalar else [tf.reshape(one, [-1]) for one in wide]
        return tf.concat(parts, 0)

    def unpack(self, packed: np.ndarray) -> dict[str, np.ndarray]:
        """Return the arrays by name."""
        return {name: packed[self._slices[name]].reshape(shape) for name, shape in self._shapes.items()}
