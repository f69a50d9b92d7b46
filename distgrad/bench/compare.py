"""Comparisons of contestants: ratios of their times, and the intervals of these ratios."""

import math
import statistics
from collections.abc import Sequence
from typing import NamedTuple

from distgrad.bench.cases import DISTGRAD, HOROVODS, TABLES
from distgrad.bench.rounds import Measurements

QUIET_RANGE = (0.97, 1.03)  # where the median ratio of distgrad to itself must lie
CONFIDENCE = 0.95
BEST_HOROVOD = "best-horovod"


class Row(NamedTuple):
    """One comparison.

    Attributes:
        ratio: time of `against` / time of `contestant`, the median over the rounds: above 1 the contestant is faster.
        low, high: the interval of that median.
    """

    table: str
    case: str
    contestant: str
    against: str
    ratio: float
    low: float
    high: float


def compare(table: str, measured: Sequence[Measurements]) -> list[Row]:
    """Compare each subject of the table with everyone else in its case, each in its fastest configuration."""
    only_for_differences = {name for one in TABLES[table].differences for name in (one.longer, one.shorter)}
    rows = []
    for name in TABLES[table].subjects:
        subject = fastest(measured, [name])
        names = dict.fromkeys(one.name for one in measured if one.name not in (name, *only_for_differences))
        for against in (*names, BEST_HOROVOD):
            other = fastest(measured, contestants_of(against))
            if subject is not None and other is not None:
                rows.append(_row(subject, against, other))
    return rows


def contestants_of(against: str) -> Sequence[str]:
    """Return the names of the contestants whose fastest a row's `against` stands for."""
    return HOROVODS if against == BEST_HOROVOD else (against,)


def fastest(measured: Sequence[Measurements], names: Sequence[str]) -> Measurements | None:
    """Return the fastest configuration of these contestants, by median; None if none was measured."""
    return min((one for one in measured if one.name in names), key=lambda one: one.median, default=None)


def is_void(rows: Sequence[Row]) -> bool:
    """True if distgrad against itself shows that the machine was not quiet enough to tell anything."""
    control = [row.ratio for row in rows if (row.contestant, row.against) == (DISTGRAD, f"{DISTGRAD} again")]
    return not all(QUIET_RANGE[0] <= ratio <= QUIET_RANGE[1] for ratio in control)


def median_interval(values: Sequence[float]) -> tuple[float, float, float]:
    """Return the median, and the lower and upper bound of a 95 % interval of it, whatever the distribution.

    Between the k-th smallest and the k-th largest of n values the true median lies with probability
    1 - 2·P(Binomial(n, 1/2) < k); k is the largest that leaves 95 % (Conover, Practical Nonparametric Statistics).

    >>> median_interval([float(value) for value in range(1, 31)])
    (15.5, 10.0, 21.0)
    """
    ordered, n = sorted(values), len(values)
    outside, k = 0.5**n, 0
    while 2 * outside <= 1 - CONFIDENCE:
        k += 1
        outside += math.comb(n, k) * 0.5**n
    k = max(k, 1)  # with 5 values and fewer no interval reaches 95 %; then it is all of them
    return statistics.median(ordered), ordered[k - 1], ordered[-k]


def _row(subject: Measurements, against: str, other: Measurements) -> Row:
    # Rounds in which a difference came out as zero or less say nothing about a ratio.
    pairs = [(a, b) for a, b in zip(other.seconds, subject.seconds, strict=True) if a > 0 and b > 0]
    ratio, low, high = median_interval([a / b for a, b in pairs])
    return Row(subject.table, subject.case, subject.name, against, ratio, low, high)
