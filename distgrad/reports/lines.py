"""A line on stdout for each step."""

import sys

from distgrad.errors import print_line, warn
from distgrad.reports.listeners import Listener
from distgrad.reports.report import StepReport, blame


class Lines(Listener):
    """Prints the report of every `every`-th step, and a warning on stderr if it was skipped.

    Args:
        every: number of steps from one line to the next; 0 never prints.
        as_json: JSON lines instead of text.
    """

    def __init__(self, every: int = 1, as_json: bool = False) -> None:
        self._every, self._as_json = every, as_json

    def hear(self, report: StepReport) -> None:
        """Print the report, if its step is one of those to be printed."""
        if not self._every or report.step % self._every:
            return
        print_line(report.as_json() if self._as_json else report.as_text(), sys.stdout)
        if not report.applied:
            warn(f"step {report.step} skipped: {blame(report)}")
