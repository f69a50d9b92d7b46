"""SIGTERM, SIGUSR1 and SIGINT ask a training to stop: all workers finish the same step, save, and exit with status 85.

A batch system signals to one process, or to all, or to some; so each step's sum tells all workers whether any of them
was asked. The handlers are there from the first step until the communicator is closed, and only for signals for which
the program has no handler of its own. A process that is forked from a worker has the handlers from before.
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
    """A request to stop that this process may have got by a signal.

    Args:
        leave: ends the job with an exit status.

    Attributes:
        by: the signal, None if there was none.
        wakeup: a socket that becomes readable at a signal, whatever the main thread does.
    """

    def __init__(self, leave: Callable[[int], Any]) -> None:
        self.by: signal.Signals | None = None
        self._timeout, self._leave = 0.0, leave
        self._previous: dict[signal.Signals, Any] = {}
        self._interrupts, self._has_wakeup_fd = 0, False
        self.wakeup, self._wakeup_sender = socket.socketpair()
        for end in (self.wakeup, self._wakeup_sender):
            end.setblocking(False)

    def listen(self, timeout: float) -> None:
        """Handle the signals that the program leaves to their defaults.

        Args:
            timeout: seconds after a signal until the job ends, even if no step has.
        """
        self._timeout = timeout
        if self._previous or threading.current_thread() is not threading.main_thread():
            return
        for number in SIGNALS:
            if signal.getsignal(number) in DEFAULTS:
                self._previous[number] = signal.signal(number, self._on_signal)
        theirs = signal.set_wakeup_fd(self._wakeup_sender.fileno(), warn_on_full_buffer=False)
        self._has_wakeup_fd = theirs == -1
        if not self._has_wakeup_fd:
            signal.set_wakeup_fd(theirs)

    def ignore_signals(self) -> None:
        """Restore the previous handlers."""
        if threading.current_thread() is not threading.main_thread():
            return
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        if self._has_wakeup_fd:
            signal.set_wakeup_fd(-1)
        self._previous, self._has_wakeup_fd = {}, False

    def close(self) -> None:
        """Restore the previous handlers, and close `wakeup`."""
        self.ignore_signals()
        if not self._has_wakeup_fd:  # a thread other than the main one cannot restore them
            self.wakeup.close()
            self._wakeup_sender.close()

    def wake(self) -> None:
        """Make `wakeup` readable, as no signal does."""
        self._wakeup_sender.send(b"\0")

    def read(self) -> None:
        """Read what signals wrote to `wakeup`; a second Ctrl-C ends the job, even within a sum.

        For another thread than the main one, which may not come to its handlers.
        """
        self._interrupts += self.wakeup.recv(64).count(signal.SIGINT)
        if self._interrupts > 1:
            self._leave(BY_SIGNAL + signal.SIGINT)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:  # noqa: ARG002 (a handler's form)
        if self.by is not None:
            return
        self.by = signal.Signals(number)
        too_late = threading.Timer(self._timeout, self._leave, [BY_SIGNAL + number])
        too_late.daemon = True
        too_late.start()
