"""How a job ended: which worker is to blame, one line that says so, and one exit status.

Launchers differ in what they return: Open MPI the first status that is not 0, horovodrun always 1, MPICH a mixture.
So the status comes from what the keepers saw, and from the launcher only where they saw nothing.
"""

import os
import signal
from collections.abc import Collection, Mapping, Sequence
from typing import NamedTuple

from distgrad.errors import DistgradError, NotArrived, WorkerFailed, WorkerLost
from distgrad.launching.session import End

STOPPED = 85  # after saving, because it was told to
SHOWN = 8  # of a failed worker's last lines
AGAIN = "launch it again to go on from the last checkpoint; --max-restarts does so by itself"


class Verdict(NamedTuple):
    """The job's exit status, and what to print about it: an error and the last lines of the worker to blame."""

    status: int
    error: DistgradError | None = None
    last_lines: Sequence[str] = ()
    stopped: bool = False


def judge(
    ends: Mapping[int, End], started: Collection[int], launchers: Sequence[int], stopped: signal.Signals | None
) -> Verdict:
    """Find the verdict.

    Args:
        ends: how those workers ended of which it is known.
        started: which workers started at all.
        launchers: statuses of the processes that were started from here, as `subprocess` has them; below 0 if somebody
            else has killed them, whatever their workers did then.
        stopped: the signal by which a person or a batch system has asked the job to stop.
    """
    failed = [end.status for end in _in_order(ends).values() if end.status]
    if stopped is not None:
        own = [status for status in failed if status > 0]
        return Verdict(own[0] if own else _as_exit_status(-stopped) if failed or any(launchers) else 0, stopped=True)
    if not failed and not any(launchers):
        return Verdict(0)
    killed = [-status for status in launchers if status < 0]
    if killed:
        return _lost(None, f"the launcher was killed by {_signal_name(killed[0])}")
    rank = _to_blame(ends)
    if rank is not None:
        return _about(rank, ends[rank])
    lost = sorted(set(started) - set(ends))
    if lost:
        return _lost(lost[0], f"worker {lost[0]} vanished with its keeper")
    return Verdict(_as_exit_status(next((status for status in launchers if status), os.EX_SOFTWARE)))


def never_started(size: int, missing: Collection[int], seconds: float) -> Verdict:
    """Some workers have not come."""
    names = ", ".join(map(str, sorted(missing)))
    cause = f"have {size - len(missing)} of {size}, missing {names}, after {seconds:g} s"
    fix = "see what keeps it from distgrad.connect(), or give it longer with --start-timeout"
    error = NotArrived(cause, fix, rank=min(missing))
    return Verdict(error.status, error)


def _in_order(ends: Mapping[int, End]) -> dict[int, End]:
    return dict(sorted(ends.items(), key=lambda item: item[1].time))


def _to_blame(ends: Mapping[int, End]) -> int | None:
    """The first worker that failed before its launcher told it to end; else the first that ended at all, if any was."""
    own = {rank: end for rank, end in _in_order(ends).items() if not end.told}
    failed = [rank for rank, end in own.items() if end.status]
    return next(iter(failed or own), None)


def _about(rank: int, end: End) -> Verdict:
    place = f"worker {rank} on {end.host}"
    if end.status == 0:
        return _lost(rank, f"{place} ended with status 0 before the others")
    if end.status < 0:
        return _lost(rank, f"{place} was killed by {_signal_name(-end.status)}", _telling(end.last_lines))
    if end.status == STOPPED:
        return Verdict(STOPPED, stopped=True)
    error = WorkerFailed(f"{place} ended with status {end.status}", "its own output says why", rank=rank)
    return Verdict(end.status, error, _telling(end.last_lines))


def _lost(rank: int | None, cause: str, last_lines: Sequence[str] = ()) -> Verdict:
    error = WorkerLost(cause, AGAIN, rank=rank)
    return Verdict(error.status, error, last_lines)


def _telling(lines: Sequence[str]) -> list[str]:
    """The end of what a worker said. Of a traceback, which stands above in full, the exception."""
    starts = [index for index, line in enumerate(lines) if line.startswith("Traceback (most recent call last)")]
    after = lines[starts[-1] + 1 :] if starts else lines
    telling = [line for line in after if line.strip() and not (starts and line.startswith(" "))]
    return telling[-SHOWN:]


def _signal_name(number: int) -> str:
    memory = ", possibly out of memory" if number == signal.SIGKILL else ""
    return f"signal {number} ({signal.Signals(number).name}{memory})"


def _as_exit_status(status: int) -> int:
    """As a shell has it."""
    return status if status >= 0 else 128 - status
