"""SIGTERM, SIGUSR1 and SIGINT ask a training to stop: all workers finish the same step, save, and exit with status 85.

A batch system signals to one process, or to all, or to some; so that somebody was asked travels with the step's sum.
The handlers stand from the first step until the communicator is closed, and only where the program has none of its own.
"""

import signal
import socket
import threading
from collections.abc import Callable
from types import FrameType
from typing import Any

SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)
DEFAULTS = (signal.SIG_DFL, signal.default_int_handler)
BY_SIGNAL = 128  # plus its number is the status of a process that a signal has ended


class StopRequest:
    """Whether this process was asked to stop.

    Args:
        leave: ends the job with a status.

    Attributes:
        by: the signal that asked, None if none did.
        heard: becomes readable at a signal, whatever the main thread does.
    """

    def __init__(self, leave: Callable[[int], Any]) -> None:
        self.by: signal.Signals | None = None
        self._timeout, self._leave = 0.0, leave
        self._before: dict[signal.Signals, Any] = {}
        self._interrupts, self._wakes = 0, False
        self.heard, self._tell = socket.socketpair()
        for end in (self.heard, self._tell):
            end.setblocking(False)

    def listen(self, timeout: float) -> None:
        """Take the signals that nobody else takes. So many seconds after one, the job ends even if no step does."""
        self._timeout = timeout
        if self._before or threading.current_thread() is not threading.main_thread():
            return
        for number in SIGNALS:
            if signal.getsignal(number) in DEFAULTS:
                self._before[number] = signal.signal(number, self._hear)
        theirs = signal.set_wakeup_fd(self._tell.fileno(), warn_on_full_buffer=False)
        self._wakes = theirs == -1
        if not self._wakes:
            signal.set_wakeup_fd(theirs)

    def close(self) -> None:
        """Give them back."""
        if threading.current_thread() is not threading.main_thread():
            return
        for number, handler in self._before.items():
            signal.signal(number, handler)
        if self._wakes:
            signal.set_wakeup_fd(-1)
        self._before, self._wakes = {}, False

    def read(self) -> None:
        """For another thread, when `heard` is readable: the second Ctrl-C ends the job, even within a sum."""
        self._interrupts += self.heard.recv(64).count(signal.SIGINT)
        if self._interrupts > 1:
            self._leave(BY_SIGNAL + signal.SIGINT)

    def _hear(self, number: int, frame: FrameType | None) -> None:  # noqa: ARG002 (a handler's form)
        if self.by is not None:
            return
        self.by = signal.Signals(number)
        too_late = threading.Timer(self._timeout, self._leave, [BY_SIGNAL + number])
        too_late.daemon = True
        too_late.start()
