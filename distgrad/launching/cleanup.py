"""The cleanup process: it ends what is left of a job after its launcher, even if that was killed.

A job's processes may not end by themselves: workers that are stopped or wait in a sum do not notice that their launcher
has gone, and launchers put workers into sessions of their own. But each inherits the job's mark in its environment.

The job's folder goes with it, and whatever folder in memory has a name that begins with the job's and a dash.

The cleanup process waits at a pipe whose other end only the launching process holds.
"""

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from distgrad.launching import private_folder
from distgrad.launching.isolated import isolated_command
from distgrad.launching.job_folder import JOB_MARK

MEMORY = Path("/dev/shm")
GRACE = 3.0  # seconds for processes to leave after they were asked to
KILL_LIMIT = 5.0  # seconds until a killed process must have gone


@contextlib.contextmanager
def cleanup_process(folder: str) -> Iterator[None]:
    """Run a cleanup process for the duration of the context.

    At the end of the context, or when this process has ended, it ends all processes whose mark begins with the folder's
    path, and removes the job's folders.
    """
    command = isolated_command("distgrad.launching.cleanup", folder)
    # No output: whoever reads this process's output need not wait for the cleanup.
    process = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    )
    try:
        yield
    finally:
        process.communicate()


def end_marked_processes(mark: str, grace: float = GRACE) -> None:
    """End every process whose mark begins with `mark`: asked first, because launchers tidy up behind their workers.

    Args:
        mark: the path of a job's folder; with a zero character at its end only processes with exactly this mark count.
        grace: seconds between asking and killing.
    """
    if not _marked_processes(mark):
        return
    _signal(mark, signal.SIGTERM)
    _signal(mark, signal.SIGCONT)  # a stopped process can only then leave
    _wait_until_gone(mark, grace)
    _signal(mark, signal.SIGKILL)
    _wait_until_gone(mark, KILL_LIMIT)


def signal_marked(pid: int, mark: str, number: signal.Signals) -> None:
    """Send a signal to the process of this number if its mark begins with `mark`; do nothing if it has gone.

    Its number may be another process's by now. So it is looked at when a pidfd, which nothing else gets, is open;
    before Linux 5.3, which has none, just before the signal.
    """
    with contextlib.suppress(OSError), _opened(pid) as pidfd:
        if not _is_marked(pid, mark):
            return
        if pidfd is None:
            os.kill(pid, number)
        else:
            signal.pidfd_send_signal(pidfd, number)


@contextlib.contextmanager
def _opened(pid: int) -> Iterator[int | None]:
    """Open a pidfd; it is None where the system has none.

    Raises:
        ProcessLookupError: the process has gone.
    """
    try:
        pidfd = os.pidfd_open(pid)
    except (OSError, AttributeError) as error:
        if isinstance(error, ProcessLookupError):
            raise
        yield None
        return
    try:
        yield pidfd
    finally:
        os.close(pidfd)


def _marked_processes(mark: str) -> list[int]:
    """Numbers of the running processes whose mark begins with `mark`."""
    numbers = (int(process.name) for process in Path("/proc").glob("[0-9]*"))
    return [pid for pid in numbers if _is_marked(pid, mark)]


def _is_marked(pid: int, mark: str) -> bool:
    entry = f"\0{JOB_MARK}={mark}".encode()  # in /proc a zero character ends each variable
    return entry in b"\0" + _environment(Path("/proc", str(pid)))


def _environment(process: Path) -> bytes:
    try:
        return (process / "environ").read_bytes()
    except OSError:  # it has ended, or belongs to someone else
        return b""


def _signal(mark: str, number: signal.Signals) -> None:
    for pid in _marked_processes(mark):
        signal_marked(pid, mark, number)


def _wait_until_gone(mark: str, seconds: float) -> None:
    end = time.monotonic() + seconds
    while _marked_processes(mark) and time.monotonic() < end:
        time.sleep(0.05)


def main(folder: str) -> None:
    """Wait until the launching process has closed its end of the pipe or has ended, then clean up."""
    sys.stdin.read()
    end_marked_processes(folder)
    for leftover in (*MEMORY.glob(f"{Path(folder).name}-*"), Path(folder)):
        private_folder.remove(leftover)
