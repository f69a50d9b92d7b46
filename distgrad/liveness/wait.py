"""The wait of one process in a sum: for how long it has waited, and for how long each of the others has been silent.

A process that is at work, which it says on its page, and whose heartbeat goes on, is not silent: it will come.
"""

import time
from collections.abc import Sequence

from distgrad.liveness.peers import Peer
from distgrad.liveness.status_page import AT_WORK, HEARTBEAT, SUM_COUNT, WAITING, StatusPage

LONGEST_LOOK = 1.0  # seconds between two looks; if it is more, this process was stopped itself
LATELY = 2.0  # seconds: a heartbeat may be late


class Wait:
    """The wait, as far as it has been looked at.

    Attributes:
        total: seconds.
        idle: seconds of them in which none of the others was at work.
    """

    def __init__(self) -> None:
        self.total = self.idle = 0.0
        self._sum_count, self._looked = -1, time.monotonic()
        self._heartbeats: dict[int, int] = {}
        self._since_work: dict[int, float] = {}  # seconds, by rank, for those that were at work in this wait

    def look(self, page: StatusPage, others: Sequence[Peer]) -> None:
        """Count the time since the last look, if this process waits in the same sum as then.

        Args:
            page: of this process.
            others: of its host.
        """
        now = time.monotonic()
        passed, self._looked = min(now - self._looked, LONGEST_LOOK), now
        sum_count = page[SUM_COUNT]
        waits = page[WAITING] and sum_count == self._sum_count
        self._sum_count = sum_count
        self._count_work(others, passed)
        if not waits:
            self.total = self.idle = 0.0
            self._since_work.clear()
            return
        self.total += passed
        self.idle += 0.0 if self.at_work(others) else passed

    def silence(self, peer: Peer) -> float:
        """Seconds of this wait since it was last known that the peer is at work."""
        return self._since_work.get(peer.rank, self.total)

    def at_work(self, others: Sequence[Peer]) -> list[Peer]:
        """Those of the others that are at work."""
        return [peer for peer in others if self._since_work.get(peer.rank, LATELY) < LATELY]

    def _count_work(self, others: Sequence[Peer], passed: float) -> None:
        for peer in others:
            heartbeat = peer.page[HEARTBEAT]
            beats = heartbeat != self._heartbeats.get(peer.rank, heartbeat)
            self._heartbeats[peer.rank] = heartbeat
            if peer.page[AT_WORK] and not peer.page[WAITING] and beats:
                self._since_work[peer.rank] = 0.0
            elif peer.rank in self._since_work:
                self._since_work[peer.rank] += passed
