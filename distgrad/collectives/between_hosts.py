"""Sums between hosts: a vector travels in segments, so that the next ones are made while the last ones are under way.

Each of n ranks adds up one block of a segment: it gets that block from all others, adds them in rank order, and gives
the sum to all. So each sends 2(n-1)/n of a segment, the least that n ranks need; sending and receiving go on at the
same time; and the order of the additions is fixed, whatever arrives first.
"""

import itertools
from collections.abc import Callable, Iterator

import numpy as np
from mpi4py import MPI

# Bytes. MPI sends so little at once (Open MPI over TCP: up to 64 KiB with its header). For more it first asks the
# receiver, whose answer would queue behind the data that is going the other way, and one direction would lie idle.
BLOCK = 60_000
SMALL = 60_000  # bytes of a vector that one call sums faster than two rounds, since only latency counts
UNDER_WAY = 32  # blocks: 2 MB, more than a fast cable carries until Python comes to the next one

Fill = Callable[[int, int], None]


def all_sum(ranks: MPI.Intracomm, vector: np.ndarray, fill: Fill) -> None:
    """Sum a vector over ranks, in place.

    Args:
        vector: (s,) the same s and dtype on every rank.
        fill: takes start and stop, and writes this rank's entries start..stop-1 into `vector`; called for all of them,
            in order, just before they are sent.
    """
    if vector.nbytes <= SMALL:
        fill(0, vector.size)
        ranks.Allreduce(MPI.IN_PLACE, vector, op=MPI.SUM)
        return
    step = ranks.size * BLOCK // vector.itemsize
    segments = [_sum_segment(ranks, vector, start, start + step, fill) for start in range(0, vector.size, step)]
    delay = max(2, UNDER_WAY // ranks.size)
    for turn in range(len(segments) + 2 * delay):
        for number in (turn, turn - delay, turn - 2 * delay):
            if 0 <= number < len(segments):
                next(segments[number], None)


def all_gather(ranks: MPI.Intracomm, vector: np.ndarray, first: int, last: int) -> None:
    """Give all ranks the entries that each of them has, in place.

    Args:
        vector: the same dtype on every rank.
        first, last: this rank has entries first..last-1, of which no other rank has any.
    """
    places = np.array(ranks.allgather((first, last - first)))
    ranks.Allgatherv(MPI.IN_PLACE, [vector, (places[:, 1], places[:, 0])])


def _sum_segment(ranks: MPI.Intracomm, vector: np.ndarray, start: int, stop: int, fill: Fill) -> Iterator[None]:
    """Sum one segment in place; yield where it has to wait for other ranks, so that later segments go on."""
    segment = vector[start:stop]
    fill(start, start + segment.size)
    bounds = [segment.size * rank // ranks.size for rank in range(ranks.size + 1)]
    counts = [last - first for first, last in itertools.pairwise(bounds)]
    block = segment[bounds[ranks.rank] : bounds[ranks.rank + 1]]
    received = np.empty((ranks.size, block.size), segment.dtype)
    exchange = ranks.Ialltoallv([segment, counts], [received, [block.size] * ranks.size])
    yield
    exchange.Wait()
    np.add.reduce(received, axis=0, out=block)
    gather = ranks.Iallgatherv(MPI.IN_PLACE, [segment, counts])
    yield
    gather.Wait()
