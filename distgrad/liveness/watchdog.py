"""A thread that ends the job when it cannot go on: a worker is gone, or does not arrive, or the launcher is gone.

It sleeps until a process ends, or a quarter of a second, and looks at the pages of this host's workers (peers.py).
Whoever waits in a sum counts how long; after `timeout` seconds it names those who have come less far, lets them dump
their stacks, and leaves. Nothing of this takes time of a step.

A worker that waits for another host waits a little longer, so that the host which knows the culprit speaks first.
"""

import contextlib
import faulthandler
import os
import select
import signal
import sys
import threading
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from distgrad.errors import DistgradError, LauncherLost, NotArrived, WorkerLost, print_line
from distgrad.liveness.peers import (
    AWAY,
    BATCH_SYSTEMS,
    DUMPS,
    INSIDE,
    LAUNCHERS,
    LEFT,
    TURN,
    Peer,
    Peers,
    above,
    await_reaping,
    how_it_ended,
    is_stopped,
    kill,
)
from distgrad.liveness.reaper import end_later

if TYPE_CHECKING:
    from distgrad.collectives.communicator import Communicator

TICK = 0.25  # seconds
ELSEWHERE = 2.0  # seconds longer where other hosts may know better
CUT_OFF = 5.0  # seconds for launchers to end by themselves, though they may not hear from other hosts
LEAVING = 10.0  # seconds longer where a worker's program is over, and its process about to end and to tell how
DUMP = signal.SIGRTMAX - 7  # a signal that nobody else is likely to use
DUMPING = 0.3  # seconds that it takes
REAPING = 1.0  # seconds for a launcher to look at a process that has ended
AGAIN = "start the job again, from its last checkpoint"


class Watchdog(threading.Thread):
    """One a process; it ends with it, or when the communicator is closed.

    Args:
        timeout: seconds that a worker waits for the others in a sum.
    """

    def __init__(self, comm: "Communicator", timeout: float) -> None:
        super().__init__(name="distgrad-watchdog", daemon=True)
        self._comm, self._timeout = comm, timeout
        self.peers, self.has_met = Peers(comm), False
        self._ends = select.epoll()  # of processes, and what the process itself is told
        self._launchers = above(LAUNCHERS)
        self._ancestors = [*self._launchers, *above(BATCH_SYSTEMS)]
        for pidfd in self._ancestors:
            self._ends.register(pidfd, select.EPOLLIN)
        self._ends.register(comm.stop.heard, select.EPOLLIN)
        self._turn, self._waited, self._looked = -1, 0.0, time.monotonic()
        self._closing = False
        self._let_dump_stacks()

    def meet(self, tell: Callable[[str], Sequence[str]]) -> None:
        """Watch the other processes of this host, too; `tell` gives every process every process's text."""
        self.peers, self.has_met = Peers(self._comm, tell), True
        for peer in self.peers.others:
            self._ends.register(peer.pidfd, select.EPOLLIN)

    def close(self) -> None:
        """Watch no longer."""
        self._closing = True

    def hurry(self) -> None:
        """End the job if there is a worker that has not arrived by now; return if there is none."""
        self._timeout = min(self._timeout, float(int(self._waited)))
        time.sleep(ELSEWHERE + 4 * TICK)
        if self._closing:
            self.join()  # it has said why the job ends, and is about to end this process

    def run(self) -> None:
        """Look, until the process ends."""
        while not self._closing:
            for fd, _ in self._ends.poll(TICK):
                self._comm.stop.read() if fd == self._comm.stop.heard.fileno() else self._ended(fd)
            self._look()

    # ---- a process has ended

    def _ended(self, fd: int) -> None:
        self._ends.unregister(fd)
        if fd in self._ancestors:
            self._give_up(LauncherLost("the launcher is gone", AGAIN))
            return
        peer = next(peer for peer in self.peers.others if peer.pidfd == fd)
        if not peer.page[LEFT]:
            how = how_it_ended(peer) or "without a word, possibly killed for want of memory"
            error = WorkerLost(f"rank {peer.rank} (process {peer.pid}) ended {how}", AGAIN, rank=peer.rank)
            self._give_up(error, ended=peer)

    # ---- a process does not arrive

    def _look(self) -> None:
        turn, waited = self._comm.page[TURN], self._count()
        if not waited:
            return
        behind = [peer for peer in self.peers.others if peer.page[TURN] < turn and not peer.page[AWAY]]
        absent = [peer for peer in behind if not peer.page[LEFT]]
        if not absent and waited > self._timeout:
            absent = [peer for peer in self.peers.others if is_stopped(peer)]  # with what it had to send
        gone = [(peer, how) for peer in behind if peer.page[LEFT] for how in [_how_it_left(peer)] if how]
        if self._comm.page[TURN] != turn or not self._comm.page[INSIDE]:
            return  # it went on while we looked
        if gone:
            peer, how = gone[0]
            cause = f"rank {peer.rank} ended {how} while others still sum"
            self._give_up(WorkerLost(cause, "take the same steps on every worker", rank=peer.rank), ended=peer)
        elif absent and waited > self._timeout:
            self._dump_stacks(absent)
            self._give_up(_not_arrived([peer.rank for peer in absent], self._timeout), absent)
        elif waited > self._timeout + ELSEWHERE and not self.peers.complete:
            end_later(self._launchers, CUT_OFF)
            self._give_up(_not_arrived(self._comm.roll_call(), self._timeout))
        elif waited > self._timeout + LEAVING:
            self._give_up(_not_arrived([peer.rank for peer in behind], self._timeout))

    def _count(self) -> float:
        """Seconds that this process has waited where it is. Those in which it was stopped itself do not count."""
        now = time.monotonic()
        passed, self._looked = min(now - self._looked, 4 * TICK), now
        turn = self._comm.page[TURN]
        waits = self._comm.page[INSIDE] and turn == self._turn
        self._turn, self._waited = turn, self._waited + passed if waits else 0.0
        return self._waited

    # ---- the end

    def _give_up(self, error: DistgradError, stuck: Sequence[Peer] = (), ended: Peer | None = None) -> None:
        self._closing = True
        if self.peers.may_speak():
            error.step = self._comm.step
            with contextlib.suppress(OSError):  # who would read it may be gone, too
                print_line(str(error), sys.stderr)
        if isinstance(error, LauncherLost):
            self._comm.tidy()
            kill(self.peers.others)
            os._exit(error.status)
        if ended is not None:
            await_reaping(ended, REAPING)  # so that its status is the first that the launcher hears of
        self._comm.end_stuck(stuck)
        self._comm.leave(error.status, together=False)

    def _let_dump_stacks(self) -> None:
        if signal.getsignal(DUMP) is signal.SIG_DFL and sys.__stderr__ is not None:
            faulthandler.register(DUMP, sys.__stderr__)
            self._comm.page[DUMPS] = 1

    def _dump_stacks(self, peers: Sequence[Peer]) -> None:
        """Let others say on stderr where their Python code is. A stopped one does not."""
        for peer in peers:
            if peer.page[DUMPS]:
                signal.pidfd_send_signal(peer.pidfd, DUMP)
        time.sleep(DUMPING)


def _how_it_left(peer: Peer) -> str:
    """With which status, "" while it has not yet."""
    return "with status 0" if peer.page[LEFT] > 1 else how_it_ended(peer)


def _not_arrived(ranks: Sequence[int], timeout: float) -> NotArrived:
    who = f"rank{'s' * (len(ranks) > 1)} {', '.join(map(str, ranks))}" if ranks else "a worker"
    have = "have" if len(ranks) > 1 else "has"
    return NotArrived(
        f"{who} {have} not arrived at the sum within {timeout:g} s",
        "see what it does there; connect(timeout=...) waits longer",
        rank=ranks[0] if len(ranks) == 1 else None,
    )
