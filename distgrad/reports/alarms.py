"""A line when something looks wrong: gradients that explode or vanish, a dead layer, an odd worker, a slow step."""

import math
import statistics
import sys
from collections import deque
from collections.abc import Iterator
from typing import Any, NamedTuple, TypeVar

from distgrad.errors import print_line
from distgrad.reports.listeners import Listener
from distgrad.reports.report import StepReport

ENOUGH = 10  # steps before anything is compared with a median
HICCUP = 1.0  # seconds
Thing = TypeVar("Thing", str, int)


class Alarm(NamedTuple):
    """What is wrong, how that shows, and with what."""

    kind: str
    text: str
    about: str = ""


class Alarms(Listener):
    """Prints `distgrad: alarm: ...` on the root's stderr. Every threshold can be set; None turns its alarm off.

    Args:
        exploding: the gradient's norm is so many times its median over the last `window` steps.
        vanishing: it is no more than this part of that median.
        dead: a variable's gradient is all zeros for so many steps in a row (needs statistics="variables").
        odd: the norm of a worker's own gradient is so many times the median of the others', or that part of it, `dead`
            steps in a row (needs statistics="workers").
        slow: a step takes so many times the median, and a second more than it: shorter hiccups are no news.
        window: steps that medians are taken over.
        quiet: an alarm of one kind about one thing is not repeated for so many steps.
    """

    def __init__(
        self,
        *,
        exploding: float | None = 50.0,
        vanishing: float | None = 1e-4,
        dead: int | None = 20,
        odd: float | None = 10.0,
        slow: float | None = 2.0,
        window: int = 50,
        quiet: int = 100,
    ) -> None:
        self._exploding, self._vanishing = exploding or math.inf, vanishing or 0.0
        self._dead, self._odd, self._slow = dead or sys.maxsize, odd or math.inf, slow or math.inf
        self._norms: deque[float] = deque(maxlen=window)
        self._seconds: deque[float] = deque(maxlen=window)
        self._in_a_row: dict[str, dict[Any, int]] = {}
        self._quiet, self._last = quiet, dict[tuple[str, str], int]()

    def hear(self, report: StepReport) -> None:
        """Look at it, and say what is wrong."""
        for look in (self._norm, self._variables, self._workers, self._time):
            for alarm in look(report):
                self._print(report.step, alarm)

    def _print(self, step: int, alarm: Alarm) -> None:
        what = (alarm.kind, alarm.about)
        if step - self._last.get(what, -self._quiet) >= self._quiet:
            self._last[what] = step
            about = f" {alarm.about}" if alarm.about else ""
            print_line(f"distgrad: alarm: step {step}: {alarm.kind}{about}: {alarm.text}", sys.stderr)

    def _norm(self, report: StepReport) -> Iterator[Alarm]:
        norm, usual = report.gradient_norm, _median(self._norms)
        if not math.isfinite(norm):
            return  # such a step has its own warning
        self._norms.append(norm)
        if norm > self._exploding * usual:
            yield Alarm("exploding gradient", f"norm {norm:.4e}, {norm / usual:.0f} times the median {usual:.4e}")
        if norm <= self._vanishing * usual:
            yield Alarm("vanishing gradient", f"norm {norm:.4e}, and the median is {usual:.4e}")

    def _variables(self, report: StepReport) -> Iterator[Alarm]:
        for path in self._lasting("layer", report.told.dead()):
            yield Alarm("dead layer", f"its gradient has been all zeros for {self._dead} steps", path)

    def _workers(self, report: StepReport) -> Iterator[Alarm]:
        norms = [worker.gradient_norm if worker.weight else math.nan for worker in report.told.workers]
        others = [_median([*norms[:rank], *norms[rank + 1 :]], enough=1) for rank in range(len(norms))]
        pairs = enumerate(zip(norms, others, strict=True))
        odd = [rank for rank, (own, usual) in pairs if own > self._odd * usual or own * self._odd < usual]
        for rank in self._lasting("worker", odd):
            text = f"its own gradient has norm {norms[rank]:.4e}, the others' {others[rank]:.4e}"
            yield Alarm("odd worker", text, f"rank {rank}")

    def _time(self, report: StepReport) -> Iterator[Alarm]:
        seconds, usual = report.seconds, _median(self._seconds)
        self._seconds.append(seconds)
        if seconds > max(self._slow * usual, usual + HICCUP):
            late = report.told.times
            who = f", rank {late.slowest} computed longest" if late else ""
            yield Alarm("slow step", f"{seconds:.2f} s, and the median is {usual:.2f} s{who}")

    def _lasting(self, kind: str, those: list[Thing]) -> list[Thing]:
        """Those of a kind that have been so for `dead` steps in a row."""
        before = self._in_a_row.get(kind, {})
        self._in_a_row[kind] = now = {thing: before.get(thing, 0) + 1 for thing in those}
        return [thing for thing in those if now[thing] >= self._dead]


def _median(values: deque[float] | list[float], enough: int = ENOUGH) -> float:
    """NaN, which no comparison holds with, where there are too few."""
    known = [value for value in values if math.isfinite(value)]
    return statistics.median(known) if len(known) >= enough else math.nan
