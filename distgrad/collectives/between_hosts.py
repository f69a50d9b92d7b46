"""Sums between hosts: a vector travels in segments, so that the next ones are made while the last ones are under way.

A segment has one block a rank. Every rank gets its own block from all others, adds them in rank order, and gives the
sum to all. So each sends 2(n-1)/n of a segment, the least that n ranks need; sending and receiving go on at the same
time; and the order of the additions is fixed, whatever arrives first.
"""

import itertools
from collections.abc import Callable, Iterator

import numpy as np
from mpi4py import MPI

# Bytes. MPI sends so little at once (Open MPI over TCP: up to 64 KiB with its header). For more it first asks the
# receiver, whose answer would queue behind the data that is going the other way, and one direction would lie idle.
BLOCK = 60_000
SMALL = 60_000  # bytes of a vector for which latency is all, and one call is better than two rounds
UNDER_WAY = 32  # blocks: 2 MB, more than a fast cable carries until Python has its next turn

Fill = Callable[[int, int], None]


def all_sum(ranks: MPI.Intracomm, vector: np.ndarray, fill: Fill) -> None:
    """Sum a vector over ranks, in place.

    Args:
        vector: (s,) the same s and dtype on every rank.
        fill: writes this rank's own entries start..stop into `vector`; called for all of them, in order, when due.
    """
    if vector.nbytes <= SMALL:
        fill(0, vector.size)
        ranks.Allreduce(MPI.IN_PLACE, vector, op=MPI.SUM)
        return
    step = ranks.size * BLOCK // vector.itemsize
    segments = [_travel(ranks, vector, start, start + step, fill) for start in range(0, vector.size, step)]
    delay = max(2, UNDER_WAY // ranks.size)
    for turn in range(len(segments) + 2 * delay):
        for number in (turn, turn - delay, turn - 2 * delay):
            if 0 <= number < len(segments):
                next(segments[number], None)


def _travel(ranks: MPI.Intracomm, vector: np.ndarray, start: int, stop: int, fill: Fill) -> Iterator[None]:
    """Sum one segment in place; where it has to wait for the others, later segments have their turn."""
    segment = vector[start:stop]
    fill(start, start + segment.size)
    bounds = [segment.size * rank // ranks.size for rank in range(ranks.size + 1)]
    counts = [last - first for first, last in itertools.pairwise(bounds)]
    own = segment[bounds[ranks.rank] : bounds[ranks.rank + 1]]
    parts = np.empty((ranks.size, own.size), segment.dtype)
    exchange = ranks.Ialltoallv([segment, counts], [parts, [own.size] * ranks.size])
    yield
    exchange.Wait()
    np.add.reduce(parts, axis=0, out=own)
    gather = ranks.Iallgatherv(MPI.IN_PLACE, [segment, counts])
    yield
    gather.Wait()
