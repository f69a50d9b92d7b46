"""However the process that launched jobs ends, none of theirs outlives it, not even when it is killed outright.

Workers may stand stopped, or wait in a sum, and cannot see that it has gone, and launchers put theirs into sessions of
their own. What all processes of a job share is a mark in their environment, which every launcher hands down.

Run as a program, this waits at a pipe whose other end only that process holds.
"""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

if __name__ == "__main__":  # Python runs isolated: else this folder would be the first that modules are looked for in
    sys.path.append(os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))))

from distgrad.launching.session import MARK, Session

GRACE, LIMIT = 3.0, 5.0  # seconds to leave when asked to, and until a killed process must have gone


@contextlib.contextmanager
def watching(folder: str) -> Iterator[None]:
    """Have a warden: at the end, or when this process is no more, all marked with the folder end, and it is removed."""
    nowhere = subprocess.DEVNULL  # whoever reads this process's output need not wait for the warden
    command = [sys.executable, "-I", "-S", __file__, folder]
    warden = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=nowhere, stderr=nowhere, start_new_session=True)
    try:
        yield
    finally:
        warden.communicate()


def end_all(mark: str, grace: float = GRACE) -> None:
    """End every process whose mark begins so: asked first, because launchers tidy up behind their workers.

    Args:
        mark: a zero at its end lets only the whole mark count.
        grace: seconds between asking and killing.
    """
    if not marked(mark):
        return
    _signal(mark, signal.SIGTERM)
    _signal(mark, signal.SIGCONT)  # who stands stopped can only then leave
    _wait_until_gone(mark, grace)
    _signal(mark, signal.SIGKILL)
    _wait_until_gone(mark, LIMIT)


def marked(mark: str) -> list[int]:
    """Numbers of the running processes whose mark begins so. A zero ends each variable of an environment."""
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
    sys.stdin.read()  # until the other end is closed, or no more
    end_all(folder)
    for left in (Session(folder).memory, folder):
        shutil.rmtree(left, ignore_errors=True)
