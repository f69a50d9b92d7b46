"""A line when something looks wrong: gradients that explode or vanish, a dead layer, an odd worker, a slow step."""

import math
import statistics
import sys
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple, TypeVar

from distgrad.errors import print_line
from distgrad.reports.listeners import Listener
from distgrad.reports.report import StepReport

ENOUGH_STEPS = 10  # before anything is compared with a median
LEAST_DELAY = 1.0  # seconds beyond the median, from which on a step counts as slow
Subject = TypeVar("Subject", str, int)


class Alarm(NamedTuple):
    """One thing that looks wrong.

    Attributes:
        kind: the kind of alarm.
        text: the numbers that show it.
        subject: the variable or worker that it is about; empty for the whole step.
    """

    kind: str
    text: str
    subject: str = ""


class Alarms(Listener):
    """Prints `distgrad: alarm: ...` on the root's stderr. Every threshold can be set; None turns its alarm off.

    Args:
        exploding: the gradient's norm is so many times its median over the last `window` steps.
        vanishing: it is no more than this part of that median.
        dead: a variable's gradient is all zeros for so many steps in a row (needs statistics="variables").
        odd: the norm of a worker's own gradient is so many times the median of the others', or that part of it, `dead`
            steps in a row (needs statistics="workers").
        slow: a step takes so many times the median, and a second more than it: shorter delays are ignored.
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
        self._streaks: dict[str, dict[Any, int]] = {}  # by kind of alarm and subject, the steps in a row that it shows
        self._quiet = quiet
        self._printed: dict[tuple[str, str], int] = {}  # by kind and subject, the step of the last line

    def hear(self, report: StepReport) -> None:
        """Print a line for everything that looks wrong in a step."""
        for check in (self._check_norm, self._check_variables, self._check_workers, self._check_time):
            for alarm in check(report):
                self._print(report.step, alarm)

    def _print(self, step: int, alarm: Alarm) -> None:
        key = (alarm.kind, alarm.subject)
        if step - self._printed.get(key, -self._quiet) >= self._quiet:
            self._printed[key] = step
            subject = f" {alarm.subject}" if alarm.subject else ""
            print_line(f"distgrad: alarm: step {step}: {alarm.kind}{subject}: {alarm.text}", sys.stderr)

    def _check_norm(self, report: StepReport) -> Iterator[Alarm]:
        norm, median = report.gradient_norm, _median(self._norms)
        if not math.isfinite(norm):
            return  # such a step has its own warning
        self._norms.append(norm)
        if norm > self._exploding * median:
            yield Alarm("exploding gradient", f"norm {norm:.4e}, {norm / median:.0f} times the median {median:.4e}")
        if norm <= self._vanishing * median:
            yield Alarm("vanishing gradient", f"norm {norm:.4e}, and the median is {median:.4e}")

    def _check_variables(self, report: StepReport) -> Iterator[Alarm]:
        for path in self._long_streaks("dead layer", report.told.dead()):
            yield Alarm("dead layer", f"its gradient has been all zeros for {self._dead} steps", path)

    def _check_workers(self, report: StepReport) -> Iterator[Alarm]:
        norms = [worker.gradient_norm if worker.weight else math.nan for worker in report.told.workers]
        others = [_median([*norms[:rank], *norms[rank + 1 :]], enough=1) for rank in range(len(norms))]
        pairs = enumerate(zip(norms, others, strict=True))
        odd = [rank for rank, (norm, median) in pairs if norm > self._odd * median or norm * self._odd < median]
        for rank in self._long_streaks("odd worker", odd):
            text = f"its own gradient has norm {norms[rank]:.4e}, the others' {others[rank]:.4e}"
            yield Alarm("odd worker", text, f"rank {rank}")

    def _check_time(self, report: StepReport) -> Iterator[Alarm]:
        seconds, median = report.seconds, _median(self._seconds)
        self._seconds.append(seconds)
        if seconds > max(self._slow * median, median + LEAST_DELAY):
            times = report.told.times
            slowest = f", rank {times.slowest} computed longest" if times else ""
            yield Alarm("slow step", f"{seconds:.2f} s, and the median is {median:.2f} s{slowest}")

    def _long_streaks(self, kind: str, subjects: Iterable[Subject]) -> list[Subject]:
        """Count this step's subjects of a kind, and return those that were among them `dead` steps in a row."""
        before = self._streaks.get(kind, {})
        self._streaks[kind] = now = {subject: before.get(subject, 0) + 1 for subject in subjects}
        return [subject for subject, steps in now.items() if steps >= self._dead]


def _median(values: Sequence[float] | deque[float], enough: int = ENOUGH_STEPS) -> float:
    """Median of the finite values. NaN if they are too few: every comparison with it is false."""
    finite = [value for value in values if math.isfinite(value)]
    return statistics.median(finite) if len(finite) >= enough else math.nan
