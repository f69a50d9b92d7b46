"""Sums between hosts that cross the wire as bfloat16, and are added up in float32: half the bytes.

A sum goes in blocks (between_hosts.py), and is rounded twice: each rank's contribution before the exchange of the
blocks, and each block's sum by the rank that made it before it is given to all. So all ranks get the same bits. Either
rank keeps what its rounding took away, and adds it to its next vector: over many steps nothing is lost.
"""

import itertools
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from mpi4py import MPI

from distgrad import native
from distgrad.collectives.between_hosts import BLOCK, Fill, cut, overlap
from distgrad.collectives.compression import Sums

ENTRY = np.dtype(np.uint16)  # the bits of a bfloat16


class Kept(NamedTuple):
    """What two kinds of roundings took away.

    Attributes:
        contribution: (s,) float32, of this rank's own vector.
        total: (about s/n,) float32, of the blocks that this rank adds up, one after the other.
    """

    contribution: np.ndarray
    total: np.ndarray

    @classmethod
    def zeros(cls, size: int, added: int) -> "Kept":
        """Return nothing, for vectors of so many entries, of which this rank adds up so many."""
        return cls(np.zeros(size, np.float32), np.zeros(added, np.float32))

    def part(self, segment: "Segment") -> "Kept":
        """Return what belongs to a segment."""
        return Kept(self.contribution[segment.start : segment.stop], self.total[segment.kept : segment.kept_stop])


class Segment(NamedTuple):
    """Entries start..stop-1 of a vector, and kept..kept_stop-1 of those of its blocks that this rank adds up.

    Attributes:
        counts: how many entries of it each rank adds up.
    """

    start: int
    stop: int
    kept: int
    kept_stop: int
    counts: list[int]


class RoundedSums(Sums):
    """Sums of one vector, step by step, and what their roundings took away."""

    def __init__(self) -> None:
        self._core = native.functions()
        self._before = self._after = Kept.zeros(0, 0)  # what the last sum has added, and what its rounding took away
        self._counts = False  # whether the last sum does

    def forget(self) -> None:
        self._before = self._after = Kept.zeros(0, 0)
        self._counts = False

    def undo(self) -> None:
        self._counts = False

    def all_sum(self, ranks: MPI.Intracomm, vector: np.ndarray, fill: Fill, divisor: float) -> None:
        """Sum a vector over ranks, in place.

        Args:
            vector: (s,) float32.
            fill: see `between_hosts.all_sum`.
            divisor: what this rank's contribution would be divided by, 0 for nothing.
        """
        segments = _segments(vector.size, ranks)
        self._make_room(vector.size, segments[-1].kept_stop)
        overlap([self._sum_segment(ranks, vector, each, fill, divisor) for each in segments], ranks.size)

    def _make_room(self, size: int, added: int) -> None:
        if self._counts:
            self._before, self._after = self._after, self._before
        if (self._before.contribution.size, self._before.total.size) != (size, added):
            self._before, self._after = Kept.zeros(size, added), Kept.zeros(size, added)
        self._counts = True

    def _sum_segment(
        self, ranks: MPI.Intracomm, vector: np.ndarray, segment: Segment, fill: Fill, divisor: float
    ) -> Iterator[None]:
        """Sum one segment in place; yield where it has to wait for other ranks."""
        fill(segment.start, segment.stop)
        own, old, new = vector[segment.start : segment.stop], self._before.part(segment), self._after.part(segment)
        rounded = np.empty(own.size, ENTRY)
        self._core.distgrad_round(
            _at(rounded), _at(own), own.size, _at(old.contribution), _at(new.contribution), divisor
        )
        added = new.total.size
        received = np.empty((ranks.size, added), ENTRY)
        exchange = ranks.Ialltoallv([rounded, segment.counts], [received, [added] * ranks.size])
        yield
        exchange.Wait()
        first = sum(segment.counts[: ranks.rank])
        block = rounded[first : first + added]
        self._core.distgrad_round_sum(
            _at(block), _at(received), ranks.size, added, _at(old.total), _at(new.total), divisor
        )
        gather = ranks.Iallgatherv(MPI.IN_PLACE, [rounded, segment.counts])
        yield
        gather.Wait()
        self._core.distgrad_widen(_at(own), _at(rounded), own.size)


def _segments(size: int, ranks: MPI.Intracomm) -> list[Segment]:
    """Cut a vector of so many entries, at least 1."""
    step, kept, found = ranks.size * BLOCK // ENTRY.itemsize, 0, []
    for start in range(0, size, step):
        stop = min(start + step, size)
        counts = [last - first for first, last in itertools.pairwise(cut(stop - start, ranks.size))]
        found.append(Segment(start, stop, kept, kept + counts[ranks.rank], counts))
        kept += counts[ranks.rank]
    return found


def _at(array: np.ndarray) -> int:
    return array.ctypes.data
