"""A thread that notices when a job cannot go on: a worker is gone, or does not arrive, or the launcher is gone.

It sleeps until a process ends, or for a quarter of a second, and looks at the status pages of this host's processes.
While this process waits in a sum it counts for how long. After `timeout` seconds in which it has heard nothing of
processes that have begun fewer sums, it names them, lets them dump their stacks, and has the job ended. It goes on
waiting for those that are at work (wait.py). None of this takes time of a step.

A worker that waits for another host waits a little longer, so that the host which knows the culprit speaks first.
"""

import faulthandler
import os
import select
import signal
import sys
import threading
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

from distgrad.errors import DistgradError, LauncherLost, NotArrived, WorkerLost, note
from distgrad.liveness.calls import called, difference
from distgrad.liveness.engine_hooks import EngineHooks
from distgrad.liveness.peers import Peer, Peers
from distgrad.liveness.processes import ancestors_named, how_it_ended, is_stopped
from distgrad.liveness.reaper import end_later
from distgrad.liveness.status_page import (
    AT_WORK,
    BETWEEN_HOSTS,
    DUMPS_STACKS,
    FINISHED,
    HEARTBEAT,
    SUM_COUNT,
    WAITING,
    StatusPage,
)
from distgrad.liveness.stop_signals import StopRequest
from distgrad.liveness.wait import Wait

# Programs that end a job when they end; a batch system looks after itself what becomes of them.
LAUNCHER_PROGRAMS = {"mpirun", "mpiexec", "orterun", "orted", "prterun", "prted", "hydra_pmi_proxy", "horovodrun"}
BATCH_SYSTEMS = {"slurmstepd"}
TICK = 0.25  # seconds between two looks
OTHER_HOSTS = 2.0  # seconds longer where other hosts may know better
MEETING = 1.0  # seconds that workers wait who have called different things
CUT_OFF = 5.0  # seconds for launchers to end by themselves, though they may not hear from other hosts
EXITING = 10.0  # seconds longer where a worker's program is over, and its process about to end and to tell how
DUMP_SIGNAL = signal.SIGRTMAX - 7  # one that nobody else is likely to use
DUMPING = 0.3  # seconds that a dump takes
RESTART = "start the job again, from its last checkpoint"


class Fault(NamedTuple):
    """The reason why a job cannot go on.

    Attributes:
        error: says so.
        stuck: processes of this host that do not arrive.
        ended: the process of this host whose end it was, if any.
    """

    error: DistgradError
    stuck: Sequence[Peer] = ()
    ended: Peer | None = None


class Watchdog(threading.Thread):
    """The thread; each process has one, which ends with it or when it is closed.

    Args:
        page, stop: of this process.
        peers: the processes of this host.
        timeout: seconds that a worker waits in a sum for others of which it hears nothing.
        hooks: what only the engine can do.
        end_job: ends the job.
    """

    def __init__(
        self,
        page: StatusPage,
        peers: Peers,
        stop: StopRequest,
        timeout: float,
        *,
        hooks: EngineHooks,
        end_job: Callable[[Fault], None],
    ) -> None:
        super().__init__(name="distgrad-watchdog", daemon=True)
        self._page, self._peers, self._stop_request, self._timeout = page, peers, stop, timeout
        self._hooks, self._end_job = hooks, end_job
        self._events = select.epoll()  # ends of processes, and signals that ask this one to stop
        self._launchers = ancestors_named(LAUNCHER_PROGRAMS)
        self._ancestors = [*self._launchers, *ancestors_named(BATCH_SYSTEMS)]
        for pidfd in self._ancestors:
            self._events.register(pidfd, select.EPOLLIN)
        self._events.register(stop.wakeup, select.EPOLLIN)
        self._wait, self._has_said_for_whom, self._has_asked = Wait(), False, False
        self._closing = False
        self._dump_stacks_on_signal()

    def watch(self, peers: Peers) -> None:
        """Watch these processes of this host from now on."""
        self._peers = peers
        for peer in peers.others:
            self._events.register(peer.pidfd, select.EPOLLIN)

    def close(self) -> None:
        """End the thread."""
        self._closing = True
        self._stop_request.wake()
        self.join()
        self._events.close()
        for pidfd in self._ancestors:
            os.close(pidfd)

    def hurry(self) -> None:
        """End the job if there is a worker that has not arrived by now; return if there is none."""
        self._timeout = min(self._timeout, float(int(self._wait.total)))
        time.sleep(OTHER_HOSTS + 4 * TICK)
        if self._closing:
            self.join()  # it has said why the job ends, and is about to end this process

    def run(self) -> None:
        """Look at the processes until the thread is closed."""
        while not self._closing:
            for fd, _ in self._events.poll(TICK):
                if fd == self._stop_request.wakeup.fileno():
                    self._stop_request.read()
                else:
                    self._process_ended(fd)
            self._page[HEARTBEAT] += 1
            self._wait.look(self._page, self._peers.others)
            if self._page[AT_WORK] or self._wait.total:
                self._hooks.answer(not self._page[WAITING])
            if self._wait.total:
                self._look()
            else:
                self._has_said_for_whom = self._has_asked = False

    # ---- a process has ended

    def _process_ended(self, pidfd: int) -> None:
        self._events.unregister(pidfd)
        if pidfd in self._ancestors:
            self._give_up(Fault(LauncherLost("the launcher is gone", RESTART)))
            return
        peer = next(peer for peer in self._peers.others if peer.pidfd == pidfd)
        if not peer.page[FINISHED]:
            how = how_it_ended(peer.pid, pidfd) or "without a word, possibly killed for want of memory"
            cause = f"rank {peer.rank} (process {peer.pid}) ended {how}"
            self._give_up(Fault(WorkerLost(cause, RESTART, rank=peer.rank), ended=peer))

    # ---- a process does not arrive

    def _look(self) -> None:
        sum_count, wait, others = self._page[SUM_COUNT], self._wait, self._peers.others
        behind = [peer for peer in others if peer.page[SUM_COUNT] < sum_count and not peer.page[BETWEEN_HOSTS]]
        fault = self._find_fault(behind)
        if self._page[SUM_COUNT] != sum_count or not self._page[WAITING]:
            return  # it went on while we looked
        # Early enough to hear of work that is about to end, and once more before giving up.
        time_to_ask = self._timeout + OTHER_HOSTS if self._has_asked else self._timeout / 2
        if fault is not None:
            self._give_up(fault)
        elif wait.idle > time_to_ask and not self._peers.complete:
            self._ask_all_hosts(sum_count)
        elif wait.idle > self._timeout + EXITING:
            self._give_up(Fault(self._not_arrived([peer.rank for peer in behind])))
        elif wait.total > self._timeout:
            self._say_for_whom([peer.rank for peer in wait.at_work(behind)])

    def _find_fault(self, behind: Sequence[Peer]) -> Fault | None:
        """Return why processes of this host will not come to this process's sum, if that is certain."""
        for peer in behind:
            how = ""
            if peer.page[FINISHED]:
                how = "with status 0" if peer.page[FINISHED] > 1 else how_it_ended(peer.pid, peer.pidfd)
            if how:
                cause = f"rank {peer.rank} ended {how} while others still sum"
                fix = "take the same steps on every worker"
                return Fault(WorkerLost(cause, fix, rank=peer.rank), ended=peer)
        mismatch = self._different_calls() if self._wait.total > MEETING else None
        if mismatch is not None:
            return Fault(mismatch)
        absent = [peer for peer in behind if not peer.page[FINISHED] and self._wait.silence(peer) > self._timeout]
        if not absent and self._wait.idle > self._timeout:
            absent = [peer for peer in self._peers.others if is_stopped(peer.pid)]  # with what it had to send
        return Fault(self._not_arrived([peer.rank for peer in absent]), stuck=absent) if absent else None

    def _different_calls(self) -> DistgradError | None:
        """Return the error of processes of this host that wait in as many sums as this one, but have called others."""
        meeting = {
            rank: page
            for rank, page in self._peers.pages().items()
            if page[WAITING] and page[SUM_COUNT] == self._page[SUM_COUNT]
        }
        return difference(called(meeting)) if meeting else None

    def _ask_all_hosts(self, sum_count: int) -> None:
        found = self._hooks.ask()
        if self._page[SUM_COUNT] != sum_count or not self._page[WAITING]:
            return
        if found.at_work and not found.silent:
            self._wait.idle, self._has_asked = 0.0, False
            if self._wait.total > self._timeout:
                self._say_for_whom(found.at_work)
        elif not self._has_asked:
            self._has_asked = True
        else:
            end_later(self._launchers, CUT_OFF)
            self._give_up(Fault(self._not_arrived(found.silent)))

    def _say_for_whom(self, ranks: Sequence[int]) -> None:
        """Say once a wait for whom it is; of the processes of this host that wait, the first one does."""
        is_first = all(peer.rank > self._peers.rank for peer in self._peers.others if peer.page[WAITING])
        if ranks and is_first and not self._has_said_for_whom:
            self._has_said_for_whom = True
            note(
                f"waiting for worker {ranks[0]}, which has been busy outside a step for {self._wait.total:.0f} s; "
                "it is alive"
            )

    def _not_arrived(self, ranks: Sequence[int]) -> NotArrived:
        who = f"rank{'s' * (len(ranks) > 1)} {', '.join(map(str, ranks))}" if ranks else "a worker"
        have = "have" if len(ranks) > 1 else "has"
        return NotArrived(
            f"{who} {have} not arrived at the sum within {self._timeout:g} s",
            "see what it does there; connect(timeout=...) waits longer",
            rank=ranks[0] if len(ranks) == 1 else None,
        )

    # ---- the end

    def _give_up(self, fault: Fault) -> None:
        self._closing = True
        self._dump_stacks(fault.stuck)
        self._end_job(fault)

    def _dump_stacks_on_signal(self) -> None:
        if signal.getsignal(DUMP_SIGNAL) is signal.SIG_DFL and sys.__stderr__ is not None:
            faulthandler.register(DUMP_SIGNAL, sys.__stderr__)
            self._page[DUMPS_STACKS] = 1

    def _dump_stacks(self, peers: Sequence[Peer]) -> None:
        """Let peers print on stderr where their Python code is; a stopped one does not."""
        for peer in peers:
            if peer.page[DUMPS_STACKS]:
                signal.pidfd_send_signal(peer.pidfd, DUMP_SIGNAL)
        time.sleep(DUMPING if peers else 0.0)
