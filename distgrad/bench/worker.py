"""What a rank of a benchmark job does: prepare turns, take them when told to, and say how long they took.

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
    """A turn that is ready to be taken, and what proves that it does the right thing.

    `evidence` is a few numbers that must be the same, to rounding, for all contestants that do the same work; an
    engine that knows the answer has compared with it already.
    """

    turn: Turn
    evidence: list[float] | None = None


class Engine(Protocol):
    """What each module of `engines` has."""

    rank: int
    size: int

    def barrier(self) -> None:
        """Wait for the other ranks."""

    def prepare(self, table: str, turn: str, case: str) -> Prepared:
        """Build what a turn needs, run it once and check its result."""

    def clear(self) -> None:
        """Forget what was prepared."""


def serve(engine: Engine, stream: Any) -> None:
    """Do what the driver says until it hangs up."""
    turns: dict[str, Turn] = {}
    _say(stream, rank=engine.rank, pid=os.getpid())
    while order := json.loads(stream.readline() or "null"):
        try:
            _say(stream, **_obey(engine, turns, **order))
        except Exception as error:  # whatever it is, the driver must hear of it
            traceback.print_exc()
            _say(stream, error=" ".join(f"{type(error).__name__}: {error}".split()))


def _obey(engine: Engine, turns: dict[str, Turn], do: str, **order: Any) -> dict[str, Any]:
    if do == "clear":
        turns.clear()
        engine.clear()
        gc.collect()  # a compiled function is a cycle, which would keep its vectors until some later collection
        return {}
    key = f"{order['table']} {order['turn']} {order['case']}"
    if do == "prepare":
        prepared = engine.prepare(order["table"], order["turn"], order["case"])
        turns[key] = prepared.turn
        return {"evidence": prepared.evidence}
    return _time(engine, turns[key], order["repetitions"], order["warm"])


def _time(engine: Engine, turn: Turn, repetitions: int, warm: int) -> dict[str, Any]:
    """Seconds, CPU seconds and page faults of one call, over so many; and the peak memory so far in bytes."""
    for _ in range(warm):
        turn()  # the other jobs have displaced what this one had in the caches
    engine.barrier()
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


def _say(stream: Any, **words: Any) -> None:
    stream.write(json.dumps(words) + "\n")
    stream.flush()


if __name__ == "__main__":
    _, name, address = sys.argv
    joined: Engine = importlib.import_module(f"distgrad.bench.engines.{name}").join()
    with socket.socket(socket.AF_UNIX) as channel:
        channel.connect(address)
        serve(joined, channel.makefile("rw"))
    sys.stdout.flush()
    os._exit(0)  # the numbers are out; engines that wait for each other at their end would wait for stopped ranks
