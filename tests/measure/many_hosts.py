"""The fastest way of summing between hosts, for 2 to 4,096 of them: PYTHONPATH=tests python -m measure.many_hosts

A simulation of the LogGP kind. A message of k bytes costs either processor o; it leaves the sender when the wire is
free, and keeps it busy for k·G; it arrives L later. An entry that is added costs A a byte. These are fitted to what 2
and 4 network namespaces give, one worker on each, joined by cables of 1 Gbit/s (support/hosts.py), and the first table
shows the sums that were measured beside the simulated ones. The second one has for each way, of n hosts and vectors of
1 KB to 1 GB, the time against that of the fastest way; the third one the same for wires ten and a hundred times faster.

    blocks     each rank adds up a block of each segment, and gives it to all (collectives/between_hosts.py)
    halves     recursive halving and doubling (the same file)
    ring       n - 1 times a part goes to the next rank and is added there, n - 1 times a sum goes on
    tree       each rank sends its vector to its parent, and the sum comes back: whole vectors
    doubling   each rank exchanges its vector with ranks that are 1, 2, 4 ... away, whole vectors (MPI's, small vectors)
"""

import itertools
import json
import math
import statistics
import sys
import time
from collections.abc import Callable, Iterable
from typing import NamedTuple

import mpi4py
import numpy as np

mpi4py.rc.initialize = False  # which only the workers need
from mpi4py import MPI  # noqa: E402

from distgrad.collectives import between_hosts  # noqa: E402
from support.hosts import joined_hosts  # noqa: E402

MEGABITS = 1000
MEASURED_HOSTS = (2, 4)
MEASURED_SIZES = (10_000, 100_000, 1_000_000, 10_000_000)
HOSTS = (2, 4, 8, 16, 64, 256, 1024, 4096)
SIZES = (10**3, 10**4, 10**5, 10**6, 10**7, 10**8, 10**9)
PINGS = 200
FLOOD = 2000  # messages
LARGE = 8_000_000  # bytes, which make the burst that the cable lets through at once count for little


class Wire(NamedTuple):
    """Parameters of LogGP, in seconds and seconds a byte."""

    latency: float
    overhead: float
    gap: float
    addition: float


class Clock:
    """One rank of many that all do the same, as far as it is busy: its processor, and its wire."""

    def __init__(self, wire: Wire) -> None:
        self._wire, self.processor, self._free = wire, 0.0, 0.0

    def send(self, count: int, size: float) -> float:
        """Send messages; return when those that the others send alike have arrived."""
        began = self.processor
        self.processor += count * self._wire.overhead
        busy = max(began + self._wire.overhead, self._free) + count * size * self._wire.gap
        self._free = max(busy, self.processor + size * self._wire.gap)
        return self._free + self._wire.latency

    def receive(self, arrival: float, count: int) -> None:
        """Wait for messages, and take them."""
        self.processor = max(self.processor, arrival) + count * self._wire.overhead

    def add(self, size: float) -> None:
        self.processor += size * self._wire.addition

    def pass_on(self, size: float) -> None:
        """Send a message and receive another one."""
        self.receive(self.send(1, size), 1)


def blocks(clock: Clock, hosts: int, size: int) -> None:
    count = math.ceil(size / (hosts * between_hosts.BLOCK))
    block, delay = size / count / hosts, max(2, between_hosts.UNDER_WAY // hosts)
    under_way: list[float] = []
    gathers: list[float] = []
    for turn in range(count + 2 * delay):
        if turn < count:
            clock.add(block * hosts)  # this host's own vectors
            under_way.append(clock.send(hosts - 1, block))
        if 0 <= turn - delay < count:
            clock.receive(under_way[turn - delay], hosts - 1)
            clock.add(block * hosts)
            gathers.append(clock.send(hosts - 1, block))
        if 0 <= turn - 2 * delay < count:
            clock.receive(gathers[turn - 2 * delay], hosts - 1)


def halves(clock: Clock, hosts: int, size: int) -> None:
    clock.add(size)
    for level in range(1, hosts.bit_length()):
        clock.pass_on(size / 2**level)
        clock.add(size / 2**level)
    for level in reversed(range(1, hosts.bit_length())):
        clock.pass_on(size / 2**level)


def ring(clock: Clock, hosts: int, size: int) -> None:
    clock.add(size)
    for _ in range(hosts - 1):
        clock.pass_on(size / hosts)
        clock.add(size / hosts)
    for _ in range(hosts - 1):
        clock.pass_on(size / hosts)


def tree(clock: Clock, hosts: int, size: int) -> None:
    clock.add(size)
    for _ in range(1, hosts.bit_length()):
        clock.pass_on(size)
        clock.add(size)
    for _ in range(1, hosts.bit_length()):
        clock.pass_on(size)


def doubling(clock: Clock, hosts: int, size: int) -> None:
    clock.add(size)
    for _ in range(1, hosts.bit_length()):
        clock.pass_on(size)
        clock.add(size)


WAYS: dict[str, Callable[[Clock, int, int], None]] = {
    each.__name__: each for each in (blocks, halves, ring, tree, doubling)
}


def simulated(way: str, wire: Wire, hosts: int, size: int) -> float:
    """Seconds that a sum takes."""
    clock = Clock(wire)
    WAYS[way](clock, hosts, size)
    return clock.processor


def taken(hosts: int, size: int) -> str:
    """The way that the code takes; MPI's own Allreduce counts as what it does with small vectors."""
    if between_hosts.goes_in_blocks(hosts, size):
        return "blocks"
    return "doubling" if size <= between_hosts.SMALL else "halves"


# ---- what is measured, within the workers


def worker() -> None:
    """Print, as JSON, what the wire between the first two hosts does, and how long sums take."""
    MPI.Init()
    world = MPI.COMM_WORLD
    pair = world.Split(int(world.rank < 2), world.rank)
    found = {} if world.rank > 1 else {"ping": _ping(pair, 1), "large": _ping(pair, LARGE), "flood": _flood(pair)}
    found |= {"addition": _addition(), "sums": {}}
    for size in MEASURED_SIZES:
        found["sums"][size] = {way: _sum(world, way, size) for way in ("blocks", "halves")}
    if world.rank == 0:
        print("found", json.dumps(found), flush=True)
    MPI.Finalize()


def _seconds(run: Callable[[], object], times: int) -> float:
    taken_by = []
    for _ in range(times):
        began = time.perf_counter()
        run()
        taken_by.append(time.perf_counter() - began)
    return statistics.median(taken_by)


def _ping(pair: MPI.Intracomm, size: int) -> float:
    """Seconds that a message takes one way."""
    data = np.zeros(size, np.uint8)

    def there_and_back() -> None:
        for receiver in (1, 0):
            if pair.rank == receiver:
                pair.Recv(data, 1 - receiver)
            else:
                pair.Send(data, receiver)

    return _seconds(there_and_back, PINGS if size == 1 else 5) / 2


def _flood(pair: MPI.Intracomm) -> float:
    """Seconds that each of many small messages takes, which go both ways at once."""
    data, room = np.zeros(1, np.uint8), np.zeros(FLOOD, np.uint8)

    receives = [pair.Recv_init(room[number : number + 1], 1 - pair.rank) for number in range(FLOOD)]
    messages = receives + [pair.Send_init(data, 1 - pair.rank) for _ in range(FLOOD)]

    def flood() -> None:
        MPI.Prequest.Startall(messages)
        MPI.Prequest.Waitall(messages)

    return _seconds(flood, 5) / FLOOD


def _addition() -> float:
    one, other = np.ones(1 << 18, np.float32), np.ones(1 << 18, np.float32)
    return _seconds(lambda: np.add(one, other, out=one), 20) / one.nbytes


def _sum(world: MPI.Intracomm, way: str, size: int) -> float:
    between_hosts.SMALL, between_hosts.FINE = (0, 0) if way == "blocks" else (0, 1 << 40)
    own, vector = np.ones(size // 4, np.float32), np.ones(size // 4, np.float32)

    def fill(start: int, stop: int) -> None:
        vector[start:stop] = own[start:stop]

    def run() -> None:
        world.Barrier()
        between_hosts.all_sum(world, vector, fill)

    barrier = _seconds(world.Barrier, 20)
    return max(world.allgather(_seconds(run, 7) - barrier))


# ---- what is shown


def measured(hosts: int) -> dict[str, object]:
    """What the workers found, on so many hosts."""
    with joined_hosts(MEGABITS, hosts) as joined:
        job = joined.run(1, [__file__, "worker"], timeout=300)
        assert job.status == 0, job.err[-3000:]
        return json.loads(job.lines("found")[0].removeprefix("found"))


def fitted(found: dict[str, object]) -> Wire:
    """Parameters of a wire that does what was measured."""
    # A message that goes both ways costs either processor a sending and a receiving.
    overhead = found["flood"] / 2
    return Wire(
        max(found["ping"] - 2 * overhead, 0), overhead, (found["large"] - found["ping"]) / LARGE, found["addition"]
    )


def show(wire: Wire, hosts: Iterable[int] = HOSTS) -> None:
    """Print, for each way, its time against the fastest one's, and whether it is the one that the code takes."""
    print(f"\n| hosts | bytes | fastest | {' | '.join(WAYS)} | taken | taken / fastest |")
    print("|---" * (5 + len(WAYS)) + "|")
    for count, size in itertools.product(hosts, SIZES):
        seconds = {way: simulated(way, wire, count, size) for way in WAYS}
        least, chosen = min(seconds.values()), taken(count, size)
        cells = " | ".join(f"{each / least:.2f}" for each in seconds.values())
        best = f"{min(seconds, key=seconds.__getitem__)}, {1000 * least:.3g} ms"
        print(f"| {count} | {size:.0e} | {best} | {cells} | {chosen} | {seconds[chosen] / least:.2f} |")


def main() -> None:
    by_hosts = {hosts: measured(hosts) for hosts in MEASURED_HOSTS}
    wire = fitted(by_hosts[2])
    micro = f"L {1e6 * wire.latency:.1f} µs, o {1e6 * wire.overhead:.1f} µs"
    print(f"{micro}, G {1e9 * wire.gap:.2f} ns a byte, A {1e9 * wire.addition:.2f} ns a byte\n")
    print("| hosts | bytes | way | measured | simulated | simulated / measured |\n|---|---|---|---|---|---|")
    for hosts, found in by_hosts.items():
        for size, ways in found["sums"].items():
            for way, seconds in ways.items():
                guess = simulated(way, wire, hosts, int(size))
                times = f"{1000 * seconds:.3g} ms | {1000 * guess:.3g} ms | {guess / seconds:.2f}"
                print(f"| {hosts} | {size} | {way} | {times} |")
    for faster in (1, 10, 100):
        print(f"\nWires of {faster * MEGABITS / 1000:.0f} Gbit/s")
        show(wire._replace(gap=wire.gap / faster))


if __name__ == "__main__":
    worker() if sys.argv[1:] == ["worker"] else main()
