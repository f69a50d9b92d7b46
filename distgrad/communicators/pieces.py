"""Vectors in pieces, and in chunks that fit into a core's cache. NumPy only."""

import bisect
import itertools
from collections.abc import Iterable, Iterator, Sequence

import numpy as np

CHUNK = 1 << 15  # entries added at once, so that a partial sum over many ranks stays in the cache


class Pieces:
    """1-D arrays of one dtype that stand for their concatenation."""

    def __init__(self, arrays: Sequence[np.ndarray]) -> None:
        self._arrays, self.dtype = arrays, arrays[0].dtype
        self._ends = list(itertools.accumulate(array.size for array in arrays))
        self.size = self._ends[-1]

    def copy(self, start: int, out: np.ndarray) -> None:
        """Copy the entries from `start` on, as many as `out` has; what stands in its place already is left there."""
        done, number = 0, bisect.bisect_right(self._ends, start)
        while done < out.size:
            array, left = self._arrays[number], self._ends[number] - start - done
            piece = array[array.size - left :][: out.size - done]
            place = out[done : done + piece.size]
            if piece.ctypes.data != place.ctypes.data:
                place[:] = piece
            done, number = done + piece.size, number + 1


def chunks(flat: np.ndarray) -> list[np.ndarray]:
    """The vector cut into pieces of which several fit into a core's cache."""
    return [flat[start : start + CHUNK] for start in range(0, flat.size, CHUNK)]


def first_of(wanted: int, pieces: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
    """The first entries of a vector in pieces; the pieces behind them are gone through all the same."""
    for piece in pieces:
        if wanted > 0:
            yield piece[:wanted]
        wanted -= piece.size


def add(total: np.ndarray, first: np.ndarray, second: np.ndarray, *others: np.ndarray) -> np.ndarray:
    """Add vectors in this order into `total`, and return that."""
    np.add(first, second, out=total)
    for other in others:
        np.add(total, other, out=total)
    return total
