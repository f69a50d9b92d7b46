"""The flat vector: gradients and scalars, laid out as the one vector that is summed over the workers.

    [ piece 0 | piece 1 | ... | scalars | extra sums ]      (s,) float32, or float64 if a variable is

A piece is one large variable's gradient as it stands, or those of several small ones in a row. Each begins at an
address that TensorFlow can slice without copying; the entries that fill it up to the next are zero.

A sparse variable is a large one of which a step touches few rows, an embedding's. Where the engine can sum those rows
alone, it has no place in the vector, and its gradient is IndexedSlices beside it.

Scalars are the loss, N and the counts. Because they travel in the same vector, a step needs one reduction and no
second one. Counts must not round: each travels as two entries, high·4096 + low, both integers below 2^24, the last one
that float32 holds exactly, for up to 4,096 workers and counts up to 2^36 divided by the number of workers.
"""

import itertools
from collections.abc import Collection, Sequence
from typing import Any, NamedTuple, cast

import numpy as np
import tensorflow as tf

from distgrad.collectives.agreement import describe, name_of
from distgrad.errors import UnsupportedDtype
from distgrad.native.layout import ALIGNMENT

BASE = 4096.0
SCALARS = 8  # entries of the vector, before the extra sums
# N is Σ of these times the scalars' entries: their order is that of `FlatLayout.pack`.
WEIGHT_TERMS = (0.0, 0.0, BASE, 0.0, 1.0, 0.0, 0.0, 0.0)
LARGE = 1 << 14  # entries; joining fewer costs less than handing them over one by one
ALIGNED = ALIGNMENT // tf.float32.size  # entries
FLOATS = (tf.float16, tf.bfloat16, tf.float32, tf.float64)


class Scalars(NamedTuple):
    """Scalars summed over the workers.

    Attributes:
        loss: () float64, Σ w·loss.
        weight: () float64, N; exact where the weights are integers.
        examples: () int64, rows.
        more: () float64, the number of workers that have another batch after this one.
        stop: () float64, the number of workers that were asked to stop.
    """

    loss: tf.Tensor
    weight: tf.Tensor
    examples: tf.Tensor
    more: tf.Tensor
    stop: tf.Tensor


class Piece(NamedTuple):
    """Neighbouring variables that travel as one tensor: their numbers, and the entries they take up together."""

    members: list[int]
    start: int
    size: int


class Place(NamedTuple):
    """The place of one variable's gradient.

    Attributes:
        sparse: 0 for the vector, else 1 + the number of the sparse variable among its kind.
        first, last: entries first..last of the vector, or of the touched rows; None is the end.
    """

    sparse: int
    first: int
    last: int | None

    def of(self, found: Sequence[Any]) -> Any:
        """Return the entries (n,) out of [the vector, the touched rows of each sparse variable], all 1-D."""
        return found[self.sparse][self.first : self.last]


class FlatLayout:
    """The place of each gradient and each scalar in the flat vector.

    Args:
        variables: Keras or TensorFlow variables, in the order of their gradients.
        sparse: the numbers of the sparse ones.

    Raises:
        UnsupportedDtype: a variable is integer, complex or anything else that is no float.
    """

    def __init__(self, variables: Sequence[Any], sparse: Collection[int] = ()) -> None:
        self.names = [name_of(variable) for variable in variables]
        self.shapes = [tf.TensorShape(variable.shape) for variable in variables]
        dtypes = [_float_dtype(variable) for variable in variables]
        self.dtype = tf.float64 if tf.float64 in dtypes else tf.float32
        self.sizes = [int(np.prod(shape.as_list())) for shape in self.shapes]
        self.sparse = sorted(sparse)
        self._pieces = _pieces(self.sizes, self.sparse)
        self.entries = sum(piece.size for piece in self._pieces)

    def flatten(self, gradients: Sequence[tf.Tensor | None]) -> list[tf.Tensor]:
        """Lay the gradients one after the other.

        Args:
            gradients: one per variable, in its shape; None stands for zeros, and for a sparse variable.

        Returns:
            The pieces, 1-D in the layout's dtype, (entries,) in all. Nothing large is copied.
        """
        return [self._piece(piece, [gradients[index] for index in piece.members]) for piece in self._pieces]

    def _piece(self, piece: Piece, gradients: Sequence[tf.Tensor | None]) -> tf.Tensor:
        sizes = [self.sizes[index] for index in piece.members]
        parts = [
            tf.zeros(size, self.dtype) if gradient is None else tf.reshape(tf.cast(gradient, self.dtype), [size])
            for gradient, size in zip(gradients, sizes, strict=True)
        ]
        if sum(sizes) < piece.size:
            parts.append(tf.zeros(piece.size - sum(sizes), self.dtype))
        return parts[0] if len(parts) == 1 else tf.concat(parts, 0)

    def unflatten(self, blocks: Sequence[tf.Tensor], sparse: Sequence[tf.IndexedSlices] = ()) -> list[Any]:
        """Cut flat gradients into one tensor per variable, in its shape and the layout's dtype.

        Args:
            blocks: (entries,) as one tensor, or as the pieces that `flatten` gives.
            sparse: the gradients of the sparse variables, which take their places among the others.
        """
        gradients: dict[int, Any] = dict(zip(self.sparse, sparse, strict=True))
        if len(blocks) != len(self._pieces):
            blocks = [blocks[0][piece.start : piece.start + piece.size] for piece in self._pieces]
        for piece, block in zip(self._pieces, blocks, strict=True):
            sizes = [self.sizes[index] for index in piece.members]
            cut = [block] if sizes == [piece.size] else tf.split(block, [*sizes, piece.size - sum(sizes)])[:-1]
            shaped = [tf.reshape(part, self.shapes[index]) for part, index in zip(cut, piece.members, strict=True)]
            gradients.update(zip(piece.members, shaped, strict=True))
        return [gradients[index] for index in range(len(self.sizes))]

    def places(self) -> list[Place]:
        """Return each variable's place."""
        places = {index: Place(number, 0, None) for number, index in enumerate(self.sparse, start=1)}
        for piece in self._pieces:
            ends = piece.start + np.cumsum([0, *(self.sizes[index] for index in piece.members)])
            ranges = itertools.pairwise(map(int, ends))
            places |= {index: Place(0, *range_) for index, range_ in zip(piece.members, ranges, strict=True)}
        return [places[index] for index in range(len(self.sizes))]

    def ranges(self) -> list[tuple[int, int]]:
        """Return [first, last) of each variable that is not sparse."""
        return [(place.first, cast(int, place.last)) for place in self.places() if place.sparse == 0]

    def slots(self) -> dict[int, tuple[int, int]]:
        """Return, for each variable that is not sparse, its first entry and that of the next one.

        Together they are all of the flat gradients.
        """
        places = {index: place.first for index, place in enumerate(self.places()) if place.sparse == 0}
        return dict(zip(places, itertools.pairwise([*places.values(), self.entries]), strict=True))

    def pack(self, scalars: Scalars) -> tf.Tensor:
        """Return (SCALARS,) the scalars in the layout's dtype, to stand behind the gradients."""
        loss_high = tf.cast(tf.cast(scalars.loss, self.dtype), tf.float64)
        loss_low = tf.where(tf.math.is_finite(loss_high), scalars.loss - loss_high, tf.zeros((), tf.float64))
        counts = tf.stack([tf.cast(count, tf.float64) for count in (scalars.weight, scalars.examples)])
        high = tf.floor(counts / BASE)
        packed = tf.concat([[loss_high, loss_low], high, counts - high * BASE, [scalars.more, scalars.stop]], 0)
        return tf.cast(packed, self.dtype)

    def unpack(self, packed: tf.Tensor) -> Scalars:
        """Return the scalars from their (SCALARS,) entries, summed over the workers."""
        loss, loss_low, weight, examples, weight_low, examples_low, more, stop = tf.unstack(
            tf.cast(packed, tf.float64), SCALARS
        )
        count = tf.cast(examples * BASE + examples_low, tf.int64)
        return Scalars(loss + loss_low, weight * BASE + weight_low, count, more, stop)


def _pieces(sizes: Sequence[int], sparse: Collection[int]) -> list[Piece]:
    """Return each large variable alone, and the small ones between two large ones together; no sparse ones."""
    runs: list[list[int]] = []
    for index, size in enumerate(sizes):
        if index in sparse:
            continue
        if runs and size < LARGE and sizes[runs[-1][-1]] < LARGE:
            runs[-1].append(index)
        else:
            runs.append([index])
    filled = [-(-sum(sizes[index] for index in run) // ALIGNED) * ALIGNED for run in runs]
    starts = itertools.accumulate(filled, initial=0)
    return [Piece(*piece) for piece in zip(runs, starts, filled, strict=False)]


def _float_dtype(variable: Any) -> tf.DType:
    dtype = tf.as_dtype(variable.dtype)
    if dtype not in FLOATS:
        raise UnsupportedDtype(
            f"variable {describe(variable)} is no float and has no gradient",
            "make it non-trainable or leave it out",
            everywhere=True,
        )
    return dtype
