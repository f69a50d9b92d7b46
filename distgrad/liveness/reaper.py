"""A program that a worker leaves behind, to end processes that should have ended with the job but may not.

It is mpirun that ends a job's workers, and only it may do so at first, because it takes the status of a worker that
somebody else has killed for the job's. But a busy host can keep it from that. And where the network has cut hosts off
from each other mpirun itself waits: for its daemons on the other hosts, until the kernel gives up what it tried to
send to them, a quarter of an hour later.

The worker that has found the fault cannot wait for that, as it is ended, too. So this is a program of its own.
"""

import contextlib
import select
import signal
import subprocess
import sys
import time
from collections.abc import Sequence


def end_later(processes: Sequence[int], grace: float) -> None:
    """Have processes that still run after a while asked to end, and killed if they do not; returns at once.

    Args:
        processes: their pidfds.
        grace: seconds until they are asked, and from then until they are killed.
    """
    if not processes:
        return
    nowhere = subprocess.DEVNULL  # who reads this process's output need not wait for the program's end
    command = [sys.executable, "-I", "-S", __file__, f"{grace}", *map(str, processes)]
    with contextlib.suppress(OSError):  # where no process can be started, at least this one ends
        subprocess.Popen(
            command, pass_fds=processes, stdin=nowhere, stdout=nowhere, stderr=nowhere, start_new_session=True
        )


def _end(processes: Sequence[int], grace: float) -> None:
    for number in (signal.SIGTERM, signal.SIGKILL):
        processes = _still_running(processes, grace)
        for pidfd in processes:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(pidfd, number)


def _still_running(processes: Sequence[int], seconds: float) -> list[int]:
    """Wait for processes to end, so many seconds for all of them together, and return the pidfds of the others."""
    until = time.monotonic() + seconds
    return [pidfd for pidfd in processes if not _ends_within(pidfd, until - time.monotonic())]


def _ends_within(pidfd: int, seconds: float) -> bool:
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    return bool(poll.poll(max(0.0, seconds) * 1000))


if __name__ == "__main__":
    _end([int(word) for word in sys.argv[2:]], float(sys.argv[1]))
