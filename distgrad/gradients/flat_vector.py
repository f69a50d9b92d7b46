"""Gradients and lanes <-> the one flat vector that travels.

    [ piece 0 | piece 1 | ... | lanes ]      (s,) float32, or float64 if a variable is

A piece is one large variable's gradient as it stands, or those of several small ones in a row. Each begins at an
address that TensorFlow can slice without copying; the entries that fill it up to the next are zero.

A table is a large variable of which a step touches few rows, an embedding's. Where the engine can sum those alone, it
has no place in the vector, and its gradient is IndexedSlices beside it.

Lanes are everything else that must be summed over the workers: loss, weight, rows, a flag, and whatever riders.py
takes along. Because they ride in the same vector, a step needs one reduction and no second one.

A lane must not round. Counts travel as two entries, high·4096 + low: each stays an integer below 2^24, the last one
that float32 holds exactly, for up to 4,096 workers and counts up to 2^36 divided by the number of workers.
"""

import itertools
from collections.abc import Collection, Sequence
from typing import Any, NamedTuple, cast

import numpy as np
import tensorflow as tf

from distgrad.collectives.agreement import describe
from distgrad.errors import UnsupportedDtype
from distgrad.native.layout import ALIGNMENT

BASE = 4096.0
LANES = 8  # entries, before the riders'
WEIGHT = (0.0, 0.0, BASE, 0.0, 1.0, 0.0, 0.0, 0.0)  # Σ of these times the lanes is N
LARGE = 1 << 14  # entries; joining fewer costs less than handing them over one by one
ALIGNED = ALIGNMENT // tf.float32.size  # entries
FLOATS = (tf.float16, tf.bfloat16, tf.float32, tf.float64)


class Lanes(NamedTuple):
    """What rides along with the gradients; each is summed over the workers.

    Attributes:
        loss: () float64, Σ w·loss.
        weight: () float64, N; exact where the weights are integers.
        examples: () int64, rows.
        more: () float64, how many workers have another batch after this one.
        stop: () float64, how many were asked to stop.
        riders: (r,) in the layout's dtype, see riders.py; r may be 0.
    """

    loss: tf.Tensor
    weight: tf.Tensor
    examples: tf.Tensor
    more: tf.Tensor
    stop: tf.Tensor
    riders: Any = ()


class Piece(NamedTuple):
    """Neighbouring variables that travel as one tensor: their numbers, and the entries they take up together."""

    members: list[int]
    start: int
    size: int


class Place(NamedTuple):
    """Where a gradient stands: entries first..last of the vector, or those of a table's touched rows.

    Attributes:
        table: 0 for the vector, else 1 + the table's number.
    """

    table: int
    first: int
    last: int | None

    def of(self, found: Sequence[Any]) -> Any:
        """The entries (n,) out of the vector and the touched rows of each table, all 1-D."""
        return found[self.table][self.first : self.last]


class Layout:
    """Where each gradient and each lane stands in the vector."""

    def __init__(self, variables: Sequence[Any], tables: Collection[int] = ()) -> None:
        """Lay out the gradients of these variables.

        Args:
            tables: the numbers of those variables that are tables.

        Raises:
            UnsupportedDtype: a variable is integer, complex or anything else that is no float.
        """
        self._variables = variables
        self.shapes = [tf.TensorShape(variable.shape) for variable in variables]
        dtypes = [_float_dtype(variable) for variable in variables]
        self.dtype = tf.float64 if tf.float64 in dtypes else tf.float32
        self.sizes = [int(np.prod(shape.as_list())) for shape in self.shapes]
        self.tables = sorted(tables)
        self._pieces = _pieces(self.sizes, self.tables)
        self.entries = sum(piece.size for piece in self._pieces)

    def with_tables(self, tables: Collection[int]) -> "Layout":
        """The same variables, of which these are tables."""
        return Layout(self._variables, tables)

    def flatten(self, gradients: Sequence[tf.Tensor | None]) -> list[tf.Tensor]:
        """Lay the gradients, one per variable in its shape, one after the other; None stands for zeros, or a table.

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

    def unflatten(self, blocks: Sequence[tf.Tensor], tables: Sequence[tf.IndexedSlices] = ()) -> list[Any]:
        """Cut flat gradients into one tensor per variable, in its shape and the layout's dtype.

        Args:
            blocks: (entries,) as one tensor, or as the pieces that `flatten` gives.
            tables: the tables' gradients, which take their places among the others.
        """
        parts: dict[int, Any] = dict(zip(self.tables, tables, strict=True))
        if len(blocks) != len(self._pieces):
            blocks = [blocks[0][piece.start : piece.start + piece.size] for piece in self._pieces]
        for piece, block in zip(self._pieces, blocks, strict=True):
            sizes = [self.sizes[index] for index in piece.members]
            cut = [block] if sizes == [piece.size] else tf.split(block, [*sizes, piece.size - sum(sizes)])[:-1]
            shaped = [tf.reshape(part, self.shapes[index]) for part, index in zip(cut, piece.members, strict=True)]
            parts.update(zip(piece.members, shaped, strict=True))
        return [parts[index] for index in range(len(self.sizes))]

    def places(self) -> list[Place]:
        """Where each variable's gradient stands."""
        places = {index: Place(number, 0, None) for number, index in enumerate(self.tables, start=1)}
        for piece in self._pieces:
            ends = piece.start + np.cumsum([0, *(self.sizes[index] for index in piece.members)])
            ranges = itertools.pairwise(map(int, ends))
            places |= {index: Place(0, *range_) for index, range_ in zip(piece.members, ranges, strict=True)}
        return [places[index] for index in range(len(self.sizes))]

    def ranges(self) -> list[tuple[int, int]]:
        """Where those stand that are no tables: [first, last)."""
        return [(place.first, cast(int, place.last)) for place in self.places() if place.table == 0]

    def slots(self) -> dict[int, tuple[int, int]]:
        """For each variable that is no table: from where it stands to where the next one begins.

        Together they are all of the flat gradients.
        """
        places = {index: place.first for index, place in enumerate(self.places()) if place.table == 0}
        return dict(zip(places, itertools.pairwise([*places.values(), self.entries]), strict=True))

    def flat_lanes(self, lanes: Lanes) -> tf.Tensor:
        """(LANES + r,) the lanes, in the layout's dtype, to stand behind the gradients."""
        loss_high = tf.cast(tf.cast(lanes.loss, self.dtype), tf.float64)
        loss_low = tf.where(tf.math.is_finite(loss_high), lanes.loss - loss_high, tf.zeros((), tf.float64))
        counts = tf.stack([tf.cast(count, tf.float64) for count in (lanes.weight, lanes.examples)])
        high = tf.floor(counts / BASE)
        own = tf.concat([[loss_high, loss_low], high, counts - high * BASE, [lanes.more, lanes.stop]], 0)
        return tf.concat([tf.cast(own, self.dtype), tf.cast(lanes.riders, self.dtype)], 0)

    def lanes(self, flat: tf.Tensor) -> Lanes:
        """The lanes from the entries (LANES + r,) behind the gradients."""
        own = tf.unstack(tf.cast(flat[:LANES], tf.float64), LANES)
        weight, examples = (own[place] * BASE + own[place + 2] for place in (2, 3))
        return Lanes(own[0] + own[1], weight, tf.cast(examples, tf.int64), own[6], own[7], flat[LANES:])


def _pieces(sizes: Sequence[int], tables: Collection[int]) -> list[Piece]:
    """Each large variable alone, and the small ones between two large ones together; no tables."""
    runs: list[list[int]] = []
    for index, size in enumerate(sizes):
        if index in tables:
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
