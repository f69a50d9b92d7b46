"""What ends a launcher that would wait for ever for hosts which do not answer.

When a job ends early, mpirun has its daemons on all hosts end their workers, and waits to hear that they did. One that
the network has cut off from it hears nothing and says nothing, and each waits for the other until the kernel gives up
what it tried to send: a quarter of an hour.

The worker that found out leaves this program behind, because launchers end their workers first.
"""

import contextlib
import select
import signal
import subprocess
import sys
from collections.abc import Sequence

GRACE = 5.0  # seconds for a launcher to end by itself, and then again when it was asked to


def end_later(launchers: Sequence[int]) -> None:
    """End these programs if they still run in a while.

    Args:
        launchers: their pidfds.
    """
    nowhere = subprocess.DEVNULL  # whoever reads this process's output need not wait for that one
    command = [sys.executable, "-I", "-S", __file__, *map(str, launchers)]
    with contextlib.suppress(OSError):  # where no process can be started, at least this one ends
        subprocess.Popen(
            command, pass_fds=launchers, stdin=nowhere, stdout=nowhere, stderr=nowhere, start_new_session=True
        )


def _end(launchers: Sequence[int]) -> None:
    for number in (signal.SIGTERM, signal.SIGKILL):
        for pidfd in launchers:
            if not select.select([pidfd], [], [], GRACE)[0]:
                with contextlib.suppress(ProcessLookupError):
                    signal.pidfd_send_signal(pidfd, number)


if __name__ == "__main__":
    _end([int(word) for word in sys.argv[1:]])
