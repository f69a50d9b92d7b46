"""Listeners: the root's receivers of reports. Each gets every step's report while its gradient is still in memory.

lines.py         a line on stdout, for people or for programs
log_file.py      JSON lines in a file that is rotated
tensorboard.py   scalars and histograms
live.py          a view that stays on the terminal
alarms.py        a line when something looks wrong
"""

import atexit
from collections.abc import Callable, Iterable
from typing import Any

from distgrad.reports.report import StepReport


class Listener:
    """Base of all listeners; does nothing."""

    def begin(self, steps: int | None) -> None:
        """Take notice that an epoch begins, of so many steps; None if that is not known."""

    def hear(self, report: StepReport) -> None:
        """Take the report of a step that has been taken."""

    def close(self) -> None:
        """Finish when the run is over; may be called twice."""


class FunctionListener(Listener):
    """Calls a function with every report."""

    def __init__(self, function: Callable[[StepReport], Any]) -> None:
        self._function = function

    def hear(self, report: StepReport) -> None:
        """Call the function."""
        self._function(report)


class Listeners(Listener):
    """Several listeners as one, which are closed at the latest when the process ends.

    Args:
        listeners: listeners, or functions that take a report.
    """

    def __init__(self, listeners: Iterable[Listener | Callable[[StepReport], Any]]) -> None:
        self._listeners = [one if isinstance(one, Listener) else FunctionListener(one) for one in listeners]
        atexit.register(self.close)

    def begin(self, steps: int | None) -> None:
        """Tell every listener that an epoch begins."""
        for one in self._listeners:
            one.begin(steps)

    def hear(self, report: StepReport) -> None:
        """Give every listener the report, one after the other."""
        for one in self._listeners:
            one.hear(report)

    def close(self) -> None:
        """Close every listener."""
        atexit.unregister(self.close)
        for one in self._listeners:
            one.close()
