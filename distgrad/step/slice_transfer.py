"""Bytes of the slices of a vector, brought together on the root, or sent out from there.

They travel as words, in sums to which only the owner of a word contributes, so that every bit arrives as it was.
"""

import itertools
import json
from collections.abc import Iterator, Sequence

import numpy as np

from distgrad.collectives.communicator import BUNDLE, Communicator, words_of


def bring_together(comm: Communicator, own: bytes, number: int | None, count: int, keeps: bool) -> list[bytes]:
    """Give workers the bytes of all slices. Every worker calls it.

    Args:
        own: the bytes of this worker's slice.
        number: of this worker's slice, None if it has none.
        count: how many slices there are.
        keeps: False on workers that do not need them, and get nothing.

    Returns:
        The bytes of each slice, followed by up to 3 more.
    """
    lengths = np.zeros(count, np.int64)
    words = words_of(own if number is not None else b"")
    if number is not None:
        lengths[number] = words.size
    lengths = comm.process_sum(lengths)
    start = 0 if number is None else int(lengths[:number].sum())
    kept = [np.zeros(0, np.int32)]
    for first, last in _parts(int(lengths.sum())):
        part = np.zeros(last - first, np.int32)
        _overlap(part, first, words, start)
        part = comm.process_sum(part)
        if keeps:
            kept.append(part)
    ends = itertools.pairwise(itertools.accumulate(map(int, lengths), initial=0))
    whole = np.concatenate(kept)
    return [whole[first:last].tobytes() for first, last in ends] if keeps else []


def send_out(comm: Communicator, slices: Sequence[bytes], number: int | None) -> bytes:
    """Give each worker the bytes of its own slice from the root. Every worker calls it.

    Args:
        slices: the bytes of each slice, on the root.
        number: of this worker's slice, None if it has none.

    Returns:
        The bytes of this worker's slice, followed by up to 3 more; none if it has none.
    """
    words = [words_of(data) for data in slices]
    lengths = json.loads(comm.from_root(json.dumps([one.size for one in words])))
    whole = np.concatenate(words) if words else np.zeros(0, np.int32)
    own = np.zeros(0 if number is None else lengths[number], np.int32)
    start = sum(lengths[:number])
    for first, last in _parts(sum(lengths)):
        part = comm.process_sum(whole[first:last] if comm.is_root else np.zeros(last - first, np.int32))
        _overlap(own, start, part, first)
    return own.tobytes()


def _parts(total: int) -> Iterator[tuple[int, int]]:
    for first in range(0, total, BUNDLE):
        yield first, min(first + BUNDLE, total)


def _overlap(place: np.ndarray, start: int, words: np.ndarray, first: int) -> None:
    """Copy words first.. of a vector to where they stand in a part of it that begins at word `start`."""
    low, high = max(start, first), min(start + place.size, first + words.size)
    if low < high:
        place[low - start : high - start] = words[low - first : high - first]
