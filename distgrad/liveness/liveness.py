"""Liveness of a job: no process waits for ever for another one, and every end of the job is explained once."""

import atexit
import contextlib
import functools
import os
import sys
import time
from collections.abc import Iterator
from typing import Any, NoReturn

import tensorflow as tf

from distgrad import native
from distgrad.errors import GradientMismatch, LauncherLost, error_within, print_line
from distgrad.liveness import forks
from distgrad.liveness.calls import CALLS, called, difference
from distgrad.liveness.engine_hooks import EngineHooks
from distgrad.liveness.peers import Peers
from distgrad.liveness.processes import await_reaping, kill
from distgrad.liveness.status_page import AT_WORK, CALL, FINISHED, SUM_COUNT, WAITING, OwnPage
from distgrad.liveness.stop_signals import StopRequest
from distgrad.liveness.watchdog import Fault, Watchdog

EXPLAINING = 5.0  # seconds in which the watchdog may find out why a sum failed
REAPING = 1.0  # seconds for a launcher to look at a process that has ended


class Liveness:
    """One process's part in keeping its job from waiting for ever.

    Args:
        rank: of this process's first worker.
        processes: how many the job has.
        hooks: what only the engine can do.

    Attributes:
        step: number of the step under way, for error messages; None before the first.
        stop: the request to stop, which signals make.
        timeout: seconds that a worker waits in a sum for others of which it hears nothing.
        page: tells the watchdogs of this host how far this process is.
        in_child: True in a process that was forked from this one, which has no part in the job.
    """

    def __init__(self, rank: int, processes: int, hooks: EngineHooks) -> None:
        self.step: int | None = None
        self.stop = StopRequest(functools.partial(self.leave, together=False))
        self.timeout = 60.0
        self.page = OwnPage.get()
        self.in_child = False
        self._rank, self._processes, self._hooks = rank, processes, hooks
        self._peers, self._introduced = Peers(rank, self.page, processes), False
        self._watchdog: Watchdog | None = None
        self._failure: Exception | None = None  # of the last sum that was begun
        self._failed_sum = 0
        self._closed = False
        forks.give_up_in_children(self)

    def start(self, timeout: float) -> None:
        """Watch the job from now on; it ends when a worker is gone, or later than the others by so many seconds."""
        self.timeout = timeout
        self._watchdog = Watchdog(
            self.page,
            self._peers,
            self.stop,
            timeout,
            hooks=self._hooks,
            end_job=self._end_job,
        )
        self._watchdog.start()
        native.functions().distgrad_end_children_at_once()
        atexit.register(self._mark_finished)
        if self._hooks.introduces_at_start:
            self.introduce()

    def introduce(self) -> None:
        """Let the processes of a host know one another; every worker calls it, and only the first call counts."""
        if self._watchdog and not self._introduced:
            self._peers = Peers(self._rank, self.page, self._processes, self._hooks.exchange)
            self._introduced = True
            self._watchdog.watch(self._peers)

    def close(self) -> None:
        """Stop watching; the other workers will not miss this process."""
        if self._closed:
            return
        self._closed = True
        self._mark_finished()
        atexit.unregister(self._mark_finished)
        if self._watchdog:
            self._watchdog.close()
        self.stop.close()
        self._peers.close()
        self.page.close()

    def become_child(self) -> None:
        """Leave the job to the process that this one was forked from; its signals are its own."""
        self.in_child = True
        self.stop.ignore_signals()

    def mark_sum(self, *, begins: bool) -> contextlib.AbstractContextManager[Any]:
        """Note that a sum begins or has ended, before anything runs that is computed in this context.

        For engines whose sums the compiled core does not see; in a graph or not.
        """
        return tf.control_dependencies(
            [native.operations().distgrad_mark_sum(page=self.page.address, begins=int(begins))]
        )

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        """Count the time in this context as a wait for the other processes, all of which enter one like it."""
        self.page[SUM_COUNT] += 1
        self.page[WAITING] = 1
        yield
        self.page[WAITING] = 0

    @contextlib.contextmanager
    def at_work(self, works: bool = True) -> Iterator[None]:
        """Have the others wait for this process in this context for as long as it lives; with False, not any more."""
        before, self.page[AT_WORK] = self.page[AT_WORK], int(works)
        try:
            yield
        finally:
            self.page[AT_WORK] = before

    @contextlib.contextmanager
    def calling(self, call: str) -> Iterator[None]:
        """Say in this context what this process has called, one of CALLS, and what every other one must have called."""
        self.page[CALL] = CALLS.index(call)
        yield
        self.page[CALL] = 0  # not after an error: the others may not have looked yet

    # ---- errors

    def fail(self, error: Exception) -> None:
        """Remember an exception that is raised within a graph, since TensorFlow hides its class."""
        self._failure, self._failed_sum = error, self.page[SUM_COUNT]

    def explain(self, error: Exception) -> Exception:
        """Return the exception to raise for an error that a graph has raised.

        An error of the core's own, such as of two threads, says what it is. Otherwise, if a sum has failed, workers may
        have called different things. Or another worker may be at fault. Then the watchdog knows, and ends this process.
        An engine that gave up a sum before the watchdog did does not wait any longer for a worker that has not arrived.
        """
        told = error_within(str(error), self._rank, self.step)
        is_waiting = told is None and self.page[WAITING]
        failure = self._failure if self._failed_sum == self.page[SUM_COUNT] else None  # else that of an earlier sum
        self._failure = None
        mismatch = difference(called(self._peers.pages())) if failure is not None or is_waiting else None
        if mismatch is not None:
            return mismatch
        if is_waiting and failure is None and self._watchdog and not self.page[FINISHED]:
            time.sleep(EXPLAINING)
            self._watchdog.hurry()
        return told or failure or error

    @contextlib.contextmanager
    def explaining(self) -> Iterator[None]:
        """Explain what goes wrong in this context, in a graph or not; a gradient that is not like its variable, too."""
        try:
            yield
        except tf.errors.OpError as error:
            raise self.explain(error) from None
        except GradientMismatch as error:
            if error.rank is None:
                error.rank = self._rank
            raise

    # ---- the end

    def leave(self, status: int, together: bool) -> NoReturn:
        """End this process after an error that has been printed.

        Args:
            status: its exit status.
            together: True if every worker does the same; else the others are ended, too.
        """
        if self.in_child:
            os._exit(status)
        if together:
            self._mark_finished()
            self._hooks.leave_together()
        elif self._watchdog:
            self._peers.claim_report()  # the others have nothing to add
            self._hooks.abort(status)
        os._exit(status)

    def _mark_finished(self) -> None:
        self.page[FINISHED] = 1

    def _end_job(self, fault: Fault) -> NoReturn:
        """Say why the job ends, unless another process of this host has, and end it; called by the watchdog."""
        error = fault.error
        if self._peers.claim_report():
            error.step = self.step
            with contextlib.suppress(OSError):  # nobody may be left to read it
                print_line(str(error), sys.stderr)
        if isinstance(error, LauncherLost):
            self._hooks.remove_leftovers()
            kill([peer.pidfd for peer in self._peers.others])
            os._exit(error.status)
        if fault.ended is not None:
            await_reaping(fault.ended.pid, REAPING)  # so that its status is the first that the launcher hears of
        self._hooks.end_stuck([peer.pidfd for peer in fault.stuck])
        self.leave(error.status, together=False)
