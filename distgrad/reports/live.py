"""A view that stays on the terminal: progress, the last steps' gradient, a table of groups."""

import math
import sys
from collections import deque
from collections.abc import Sequence

import rich.console
import rich.live
import rich.progress
import rich.table
import rich.text

from distgrad.errors import warn
from distgrad.reports.lines import Lines
from distgrad.reports.listeners import Listener
from distgrad.reports.report import StepReport, blame

BARS = "▁▂▃▄▅▆▇█"
WIDTH = 60  # steps in a sparkline


class Live(Listener):
    """Shows the run on a terminal while it goes on. If the output is no terminal, prints plain lines.

    Args:
        every: number of steps from one plain line to the next.
        console: the output; stdout unless given.
    """

    def __init__(self, every: int = 1, console: rich.console.Console | None = None) -> None:
        self._console = console or rich.console.Console(file=sys.stdout)
        self._plain = None if self._console.is_terminal else Lines(every)
        self._sums: deque[float] = deque(maxlen=WIDTH)
        self._norms: deque[float] = deque(maxlen=WIDTH)
        columns = (rich.progress.TextColumn("{task.description}"), rich.progress.BarColumn(None))
        counts = (rich.progress.MofNCompleteColumn(), rich.progress.TimeRemainingColumn())
        self._progress = rich.progress.Progress(*columns, *counts, console=self._console, expand=True)
        self._task = self._progress.add_task("", total=None)
        self._live: rich.live.Live | None = None

    def begin(self, steps: int | None) -> None:
        """Start the progress bar anew."""
        self._progress.reset(self._task, total=steps)

    def hear(self, report: StepReport) -> None:
        """Show the step's numbers in place of the last one's."""
        if self._plain is not None:
            self._plain.hear(report)
            return
        self._sums.append(report.gradient_sum)
        self._norms.append(report.gradient_norm)
        self._progress.update(self._task, advance=1, description=f"step {report.step}  loss {report.loss:.5f}")
        if self._live is None:
            self._live = rich.live.Live(console=self._console, refresh_per_second=8)
            self._live.start()
        self._live.update(self._view(report))
        if not report.applied:
            warn(f"step {report.step} skipped: {blame(report)}")

    def _view(self, report: StepReport) -> rich.console.RenderableType:
        lines = rich.table.Table.grid(padding=(0, 2))
        lines.add_row("gradient sum", f"{report.gradient_sum: .4e}", rich.text.Text(sparkline(self._sums), "cyan"))
        lines.add_row("gradient norm", f"{report.gradient_norm: .4e}", rich.text.Text(sparkline(self._norms), "green"))
        noise = report.told.noise
        if noise is not None:
            lines.add_row("noise scale", f"{noise.scale: .4e}", "")
        size = f"examples {report.examples} | workers {report.workers} | {1000 * report.seconds:.1f} ms"
        return rich.console.Group(self._progress, lines, *_group_tables(report), rich.text.Text(size, "dim"))

    def close(self) -> None:
        """Stop updating, and leave the last view on the terminal."""
        if self._live is not None:
            self._live.stop()
            self._live = None


def sparkline(values: Sequence[float] | deque[float]) -> str:
    """Draw the values as a row of bars, the smallest as the lowest one, and NaN and infinity as crosses.

    >>> sparkline([0.0, 1.0, 2.0, math.nan, 7.0])
    '▁▂▃×█'
    >>> sparkline([3.0, 3.0]), sparkline([])
    ('▁▁', '')
    """
    finite = [value for value in values if math.isfinite(value)] or [0.0]
    low, span = min(finite), (max(finite) - min(finite)) or math.inf
    return "".join(BARS[int((v - low) / span * (len(BARS) - 1))] if math.isfinite(v) else "×" for v in values)


def _group_tables(report: StepReport) -> list[rich.table.Table]:
    """One table of all groups, or none if there are no groups."""
    if not report.groups:
        return []
    table = rich.table.Table("group", *("gradient sum", "gradient norm", "max |entry|"), box=None, padding=(0, 2))
    for label, found in report.groups.items():
        table.add_row(label, *(f"{number: .4e}" for number in found[:3]))
    return [table]
