"""Sums between hosts, exact and in a fixed order of additions, whatever arrives first.

There are three ways, by the size of a vector:

    small     MPI's own Allreduce, where only latency counts
    halves    recursive halving and doubling: 2·log2 n messages a rank, for vectors that many ranks would cut too fine
    blocks    2(n-1) messages a rank, and the vector in segments, so that the next ones are made while the last ones are
              under way

In blocks, each of n ranks adds up one block of a segment: it gets that block from all others, adds them in rank order,
and gives the sum to all. So each sends 2(n-1)/n of a segment, the least that n ranks need, and sending and receiving go
on at the same time. tests/measure/many_hosts.py says which way is the fastest where.
"""

import itertools
from collections.abc import Callable, Iterator, Sequence

import numpy as np
from mpi4py import MPI

# Bytes. MPI sends so little at once (Open MPI over TCP: up to 64 KiB with its header). For more it first asks the
# receiver, whose answer would queue behind the data that is going the other way, and one direction would lie idle.
BLOCK = 60_000
SMALL = 60_000  # bytes of a vector that one call sums faster than two rounds, since only latency counts
FINE = 10_000  # bytes of a block that take about as long on a fast wire as its message costs the processors
UNDER_WAY = 32  # blocks: 2 MB, more than a fast cable carries until Python comes to the next one

Fill = Callable[[int, int], None]


def all_sum(ranks: MPI.Intracomm, vector: np.ndarray, fill: Fill) -> None:
    """Sum a vector over ranks, in place.

    Args:
        vector: (s,) the same s and dtype on every rank.
        fill: takes start and stop, and writes this rank's entries start..stop-1 into `vector`; called for all of them,
            in order, just before they are sent.
    """
    if goes_in_blocks(ranks.size, vector.nbytes):
        step = ranks.size * BLOCK // vector.itemsize
        starts = range(0, vector.size, step)
        overlap([_sum_segment(ranks, vector, start, start + step, fill) for start in starts], ranks.size)
        return
    fill(0, vector.size)
    if vector.nbytes <= SMALL:
        ranks.Allreduce(MPI.IN_PLACE, vector, op=MPI.SUM)
    else:
        _sum_by_halves(ranks, vector)


def goes_in_blocks(ranks: int, size: int) -> bool:
    """Return whether vectors of so many bytes are summed block by block."""
    return size > max(SMALL, ranks * FINE)


def overlap(segments: Sequence[Iterator[None]], ranks: int) -> None:
    """Sum segments, each of which yields twice where it has to wait for other ranks; meanwhile later ones go on."""
    delay = max(2, UNDER_WAY // ranks)
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


def cut(size: int, parts: int) -> list[int]:
    """Return the bounds of parts of almost the same size: (parts + 1,) numbers from 0 to size."""
    return [size * part // parts for part in range(parts + 1)]


def _sum_segment(ranks: MPI.Intracomm, vector: np.ndarray, start: int, stop: int, fill: Fill) -> Iterator[None]:
    """Sum one segment in place; yield where it has to wait for other ranks."""
    segment = vector[start:stop]
    fill(start, start + segment.size)
    bounds = cut(segment.size, ranks.size)
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


def _sum_by_halves(ranks: MPI.Intracomm, vector: np.ndarray) -> None:
    """Sum a vector in place: each pair shares out the work by halves, and then the next pair of ranks further apart.

    Where their number is no power of 2, so many of the first ranks as are too many leave their vectors to the next.
    """
    power = 1 << (ranks.size.bit_length() - 1)
    too_many = ranks.size - power
    has_partner = ranks.rank < 2 * too_many
    if has_partner and ranks.rank % 2 == 0:
        ranks.Send(vector, ranks.rank + 1)
        ranks.Recv(vector, ranks.rank + 1)
        return
    if has_partner:
        received = np.empty_like(vector)
        ranks.Recv(received, ranks.rank - 1)
        vector += received
    _halve_and_double(ranks, vector, power, too_many)
    if has_partner:
        ranks.Send(vector, ranks.rank - 1)


def _halve_and_double(ranks: MPI.Intracomm, vector: np.ndarray, power: int, too_many: int) -> None:
    """Sum the vectors of `power` ranks: all but every other one of the first 2·too_many."""
    number = ranks.rank // 2 if ranks.rank < 2 * too_many else ranks.rank - too_many
    kept, halves = vector, []
    for distance in (power >> level for level in range(1, power.bit_length())):
        other = number ^ distance
        partner = 2 * other + 1 if other < too_many else other + too_many
        low, high = np.split(kept, [kept.size // 2])
        kept, given = (low, high) if number < other else (high, low)
        halves.append((partner, kept, given))
        received = np.empty_like(kept)
        _swap(ranks, given, received, partner)
        kept += received
    for partner, kept, given in reversed(halves):
        _swap(ranks, kept, given, partner)


def _swap(ranks: MPI.Intracomm, given: np.ndarray, received: np.ndarray, partner: int) -> None:
    """Send a vector to another rank and receive one from it, in messages of a block each."""
    step = BLOCK // given.itemsize
    receives = [ranks.Irecv(received[start : start + step], partner) for start in range(0, received.size, step)]
    sends = [ranks.Isend(given[start : start + step], partner) for start in range(0, given.size, step)]
    MPI.Request.Waitall(receives + sends)
