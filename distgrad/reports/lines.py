"""A line a step on stdout."""

import sys

from distgrad.errors import print_line, warn
from distgrad.reports.listeners import Listener
from distgrad.reports.report import StepReport, blame


class Lines(Listener):
    """Prints every so many steps' report, and a warning on stderr if one of them was skipped.

    Args:
        every: so many steps; 0 never prints.
        as_json: JSON lines instead of text.
    """

    def __init__(self, every: int = 1, as_json: bool = False) -> None:
        self._every, self._as_json = every, as_json

    def hear(self, report: StepReport) -> None:
        """Print it, if it is its turn."""
        if not self._every or report.step % self._every:
            return
        print_line(report.as_json() if self._as_json else report.as_text(), sys.stdout)
        if not report.applied:
            warn(f"step {report.step} skipped: {blame(report)}")
