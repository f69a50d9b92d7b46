"""However the driver ends, none of its jobs' processes outlives it, not even when it is killed outright.

Ranks whose turn it is not stand stopped and cannot see that the driver has gone, and launchers put theirs into sessions
of their own. What all processes of a job share is a mark in their environment, which every launcher hands down.

Run as a program, this waits at a pipe whose other end only the driver holds. It imports nothing large, so that a run
is measured beside next to nothing.
"""

import contextlib
import os
import shutil
import signal
import sys
import time
from pathlib import Path

MARK = "DISTGRAD_BENCH_JOB"
GRACE, LIMIT = 3.0, 5.0  # seconds to leave when asked to, and until a killed process must have gone


def end_all(mark: str) -> None:
    """End every process whose mark begins so: asked first, because launchers tidy up behind their ranks."""
    _signal(mark, signal.SIGTERM)
    _signal(mark, signal.SIGCONT)  # who stands stopped can only then leave
    _wait_until_gone(mark, GRACE)
    _signal(mark, signal.SIGKILL)
    _wait_until_gone(mark, LIMIT)


def marked(mark: str) -> list[int]:
    """Numbers of the running processes whose mark begins so."""
    entry = f"\0{MARK}={mark}".encode()
    return [int(process.name) for process in Path("/proc").glob("[0-9]*") if entry in b"\0" + _environment(process)]


def _environment(process: Path) -> bytes:
    try:
        return (process / "environ").read_bytes()
    except OSError:  # it has ended, or belongs to someone else
        return b""


def _signal(mark: str, number: signal.Signals) -> None:
    for pid in marked(mark):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)


def _wait_until_gone(mark: str, seconds: float) -> None:
    end = time.monotonic() + seconds
    while marked(mark) and time.monotonic() < end:
        time.sleep(0.05)


if __name__ == "__main__":
    folder = sys.argv[1]
    sys.stdin.read()  # until the driver closes its end, or is no more
    end_all(f"{folder}/")
    shutil.rmtree(folder, ignore_errors=True)
