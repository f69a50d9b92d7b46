"""Who hears of a step: the root's listeners, each told every report while its gradient is still there.

lines.py         a line on stdout, for people or for programs
logfile.py       JSON lines in a file that is rotated
tensorboard.py   scalars and histograms
live.py          a view that stays on the terminal
alarms.py        a line when something looks wrong
"""

import atexit
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from distgrad.reports.report import StepReport


class Listener:
    """Hears every step of a run."""

    def begin(self, steps: int | None) -> None:
        """An epoch begins; of so many steps, as far as that is known."""

    def hear(self, report: "StepReport") -> None:
        """A step has been taken."""

    def close(self) -> None:
        """The run is over; it may be called twice."""


class Call(Listener):
    """Calls a function with every report."""

    def __init__(self, function: Callable[["StepReport"], Any]) -> None:
        self._function = function

    def hear(self, report: "StepReport") -> None:
        """Pass it on."""
        self._function(report)


class Listeners(Listener):
    """Several listeners as one; functions that take a report are listeners, too."""

    def __init__(self, listeners: Iterable[Listener | Callable[["StepReport"], Any]]) -> None:
        self._listeners = [one if isinstance(one, Listener) else Call(one) for one in listeners]
        atexit.register(self.close)

    def begin(self, steps: int | None) -> None:
        """Tell them."""
        for one in self._listeners:
            one.begin(steps)

    def hear(self, report: "StepReport") -> None:
        """Tell them, one after the other."""
        for one in self._listeners:
            one.hear(report)

    def close(self) -> None:
        """Let them finish what they are writing."""
        atexit.unregister(self.close)
        for one in self._listeners:
            one.close()
