"""The outcome of a job: the worker that made it fail, one line that says so, and one exit status.

Launchers return different things: Open MPI the first status that is not 0, horovodrun always 1, MPICH a mixture. So the
status is taken from what the workers' wrappers recorded, and from the launcher only where they recorded nothing.
"""

import os
import signal
from collections.abc import Collection, Mapping, Sequence
from typing import NamedTuple

from distgrad.errors import DistgradError, NotArrived, WorkerFailed, WorkerLost
from distgrad.launching.job_folder import WorkerEnd

STOPPED_STATUS = 85  # of a worker that was asked to stop, and has saved
SHOWN_LINES = 8  # of a failed worker's last lines
RESTART_FIX = "launch it again to go on from the last checkpoint; --max-restarts does so by itself"


class Outcome(NamedTuple):
    """The outcome of a job.

    Attributes:
        status: its exit status.
        error: the error to print, if any.
        last_lines: the last lines of the worker that failed, to print below it.
        stopped: True if the job was asked to stop.
    """

    status: int
    error: DistgradError | None = None
    last_lines: Sequence[str] = ()
    stopped: bool = False


def outcome_of_job(
    ends: Mapping[int, WorkerEnd],
    *,
    started: Collection[int],
    launcher_statuses: Sequence[int],
    stop_signal: signal.Signals | None,
) -> Outcome:
    """Determine how a job ended.

    Args:
        ends: how workers ended, by rank, for those that recorded it.
        started: the ranks of the workers that have started.
        launcher_statuses: statuses of the processes that were started from here, as `subprocess` has them; below 0
            if somebody else has killed them, whatever their workers did then.
        stop_signal: the signal by which a person or a batch system has asked the job to stop.
    """
    failed = [end.status for end in _in_order(ends).values() if end.status]
    if stop_signal is not None:
        return _stopped(failed, launcher_statuses, stop_signal)
    if not failed and not any(launcher_statuses):
        return Outcome(0)
    killed = [-status for status in launcher_statuses if status < 0]
    if killed:
        return _lost(None, f"the launcher was killed by {_signal_name(killed[0])}")
    rank = _failed_rank(ends)
    if rank is not None:
        return _outcome_of_worker(rank, ends[rank])
    lost = sorted(set(started) - set(ends))
    if lost:
        return _lost(lost[0], f"worker {lost[0]} vanished with its keeper")
    return Outcome(_as_exit_status(next((status for status in launcher_statuses if status), os.EX_SOFTWARE)))


def workers_missing(size: int, missing: Collection[int], seconds: float) -> Outcome:
    """Return the outcome of a job of which some workers did not start in time.

    Args:
        size: how many workers the job has.
        missing: the ranks of those that did not come.
        seconds: how long the others have waited.
    """
    names = ", ".join(map(str, sorted(missing)))
    cause = f"have {size - len(missing)} of {size}, missing {names}, after {seconds:g} s"
    fix = "see what keeps it from distgrad.connect(), or give it longer with --start-timeout"
    error = NotArrived(cause, fix, rank=min(missing))
    return Outcome(error.status, error)


def _stopped(failed: Sequence[int], launcher_statuses: Sequence[int], stop_signal: signal.Signals) -> Outcome:
    """Take the first worker's own status; where all that failed were killed, the signal's."""
    exited = [status for status in failed if status > 0]
    if exited:
        return Outcome(exited[0], stopped=True)
    return Outcome(_as_exit_status(-stop_signal) if failed or any(launcher_statuses) else 0, stopped=True)


def _in_order(ends: Mapping[int, WorkerEnd]) -> dict[int, WorkerEnd]:
    return dict(sorted(ends.items(), key=lambda item: item[1].time))


def _failed_rank(ends: Mapping[int, WorkerEnd]) -> int | None:
    """Return the first worker that failed before it was asked to end; else the first that ended unasked; else None."""
    unasked = {rank: end for rank, end in _in_order(ends).items() if not end.asked_to_end}
    failed = [rank for rank, end in unasked.items() if end.status]
    return next(iter(failed or unasked), None)


def _outcome_of_worker(rank: int, end: WorkerEnd) -> Outcome:
    worker = f"worker {rank} on {end.host}"
    if end.status == 0:
        return _lost(rank, f"{worker} ended with status 0 before the others")
    if end.status < 0:
        return _lost(rank, f"{worker} was killed by {_signal_name(-end.status)}", _lines_to_show(end.last_lines))
    if end.status == STOPPED_STATUS:
        return Outcome(STOPPED_STATUS, stopped=True)
    error = WorkerFailed(f"{worker} ended with status {end.status}", "its own output says why", rank=rank)
    return Outcome(end.status, error, _lines_to_show(end.last_lines))


def _lost(rank: int | None, cause: str, last_lines: Sequence[str] = ()) -> Outcome:
    error = WorkerLost(cause, RESTART_FIX, rank=rank)
    return Outcome(error.status, error, last_lines)


def _lines_to_show(lines: Sequence[str]) -> list[str]:
    """Pick a worker's last lines; of a traceback, which was printed in full, only the exception."""
    starts = [index for index, line in enumerate(lines) if line.startswith("Traceback (most recent call last)")]
    after = lines[starts[-1] + 1 :] if starts else lines
    shown = [line for line in after if line.strip() and not (starts and line.startswith(" "))]
    return shown[-SHOWN_LINES:]


def _signal_name(number: int) -> str:
    memory = ", possibly out of memory" if number == signal.SIGKILL else ""
    return f"signal {number} ({signal.Signals(number).name}{memory})"


def _as_exit_status(status: int) -> int:
    """Convert a status of `subprocess` to a shell's: 128 + n for signal n."""
    return status if status >= 0 else 128 - status
