"""The program of one rank of a benchmark job: it prepares turns, takes them when told to, and returns their times.

A turn is a function without arguments; what is timed is nothing but calls of it.
"""

import gc
import importlib
import json
import os
import resource
import socket
import sys
import time
import traceback
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

Turn = Callable[[], Any]


class Prepared(NamedTuple):
    """A turn that is ready to be taken.

    Attributes:
        turn: the function to time.
        evidence: a few numbers that must be the same, to rounding, for all contestants that do the same work; None
            where the engine has compared its result with the exact one.
    """

    turn: Turn
    evidence: list[float] | None = None


class JobRank(Protocol):
    """One rank of a benchmark job, as each module of `engines` implements it."""

    rank: int
    size: int

    def barrier(self) -> None:
        """Wait for the other ranks."""

    def prepare(self, table: str, turn: str, case: str) -> Prepared:
        """Build what a turn needs, run it once and check its result."""

    def clear(self) -> None:
        """Free what was prepared."""


def serve(rank: JobRank, stream: Any) -> None:
    """Carry out the driver's orders, one JSON object a line, until it closes the connection."""
    turns: dict[str, Turn] = {}
    _send(stream, rank=rank.rank, pid=os.getpid())
    while order := json.loads(stream.readline() or "null"):
        try:
            _send(stream, **_carry_out(rank, turns, **order))
        except Exception as error:  # whatever it is, the driver must know of it
            traceback.print_exc()
            _send(stream, error=" ".join(f"{type(error).__name__}: {error}".split()))


def _carry_out(rank: JobRank, turns: dict[str, Turn], do: str, **order: Any) -> dict[str, Any]:
    """Carry out "clear", "prepare" or "time", and return the answer."""
    if do == "clear":
        turns.clear()
        rank.clear()
        gc.collect()  # a compiled function is a cycle, which would keep its vectors until some later collection
        return {}
    key = f"{order['table']} {order['turn']} {order['case']}"
    if do == "prepare":
        prepared = rank.prepare(order["table"], order["turn"], order["case"])
        turns[key] = prepared.turn
        return {"evidence": prepared.evidence}
    return _time(rank, turns[key], order["repetitions"], order["warm"])


def _time(rank: JobRank, turn: Turn, repetitions: int, warm: int) -> dict[str, Any]:
    """Return seconds, CPU seconds and page faults of one call, the mean of several; and the peak memory in bytes."""
    for _ in range(warm):
        turn()  # the other jobs have displaced what this one had in the caches
    rank.barrier()
    before, began = resource.getrusage(resource.RUSAGE_SELF), time.perf_counter()
    for _ in range(repetitions):
        turn()
    seconds, after = time.perf_counter() - began, resource.getrusage(resource.RUSAGE_SELF)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {
        "seconds": seconds / repetitions,
        "cpu": cpu / repetitions,
        "faults": (after.ru_minflt - before.ru_minflt) / repetitions,
        "peak": after.ru_maxrss * 1024,
    }


def _send(stream: Any, **message: Any) -> None:
    stream.write(json.dumps(message) + "\n")
    stream.flush()


if __name__ == "__main__":
    _, name, address = sys.argv
    joined: JobRank = importlib.import_module(f"distgrad.bench.engines.{name}").join()
    with socket.socket(socket.AF_UNIX) as channel:
        channel.connect(address)
        serve(joined, channel.makefile("rw"))
    sys.stdout.flush()
    os._exit(0)  # the numbers are out; engines that wait for each other at their end would wait for stopped ranks
