"""A log file, read back in bounded memory however many steps it has.

Steps are gathered in buckets of equal length. When there are too many buckets, neighbours are joined, which makes every
bucket twice as long. So the whole run is always covered, and a spike stays visible as the extreme of its bucket.
"""

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import orjson

LIMIT = 1000  # buckets; they are joined when there are twice as many
CHUNK = 1 << 22  # bytes that are read at once
COLUMNS = (  # the numbers of a step, in the order of `_row`
    "step",
    "loss",
    "gradient_sum",
    "gradient_norm",
    "seconds",
    "trace",
    "squared_norm",
    "compute",
    "reduce",
    "apply",
)
NUMBERS = {int, float, type(None)}  # types that JSON's numbers and null are read as


class History(NamedTuple):
    """A run in b buckets.

    Attributes:
        lines: number of lines that were read, one for each step.
        damaged: number of lines that could not be read.
        low, mean, high: (b, columns) of the finite values of each bucket's steps; NaN if none is finite.
        variables: by path, (b,) a variable's gradient norm at the first step of each bucket.
        workers: by rank, (b,) the norm of a worker's own gradient at the first step of each bucket.
        skipped: number of steps that were not applied.
    """

    lines: int
    damaged: int
    low: np.ndarray
    mean: np.ndarray
    high: np.ndarray
    variables: dict[str, np.ndarray]
    workers: dict[str, np.ndarray]
    skipped: int

    def column(self, name: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return low, mean and high of one of COLUMNS, (b,) each."""
        index = COLUMNS.index(name)
        return self.low[:, index], self.mean[:, index], self.high[:, index]


def files_of(path: Path) -> list[Path]:
    """List a log file after those that it was rotated into, the oldest first."""
    rotated = [(int(one.suffix[1:]), one) for one in path.parent.glob(f"{path.name}.*") if one.suffix[1:].isdigit()]
    return [one for _, one in sorted(rotated, reverse=True)] + [path]


def read(path: Path, limit: int = LIMIT) -> History:
    """Read a log file and those that it was rotated into.

    Args:
        limit: number of buckets; they are joined when there are twice as many.

    Raises:
        OSError: it cannot be read.
    """
    reader = _Reader(limit)
    for file in files_of(path):
        with file.open("rb", buffering=CHUNK) as lines:
            reader.read_lines(lines)
    return reader.history()


class _Bucket(NamedTuple):
    """Neighbouring steps, (columns,) each: smallest, sum, largest and number of the finite values."""

    low: np.ndarray
    total: np.ndarray
    high: np.ndarray
    finite: np.ndarray


class _Reader:
    """Reads lines into buckets."""

    def __init__(self, limit: int) -> None:
        self._limit, self._length = limit, 1  # steps in a bucket
        self._rows: list[tuple[float | None, ...]] = []  # of the bucket that is being filled
        self._buckets: list[_Bucket] = []
        self._variables: list[dict[str, float]] = []  # gradient norms by path, of each bucket's first step
        self._workers: list[dict[str, float]] = []  # gradient norms by rank, of each bucket's first step
        self._count: Counter[str] = Counter()

    def read_lines(self, lines: Iterable[bytes]) -> None:
        """Read the lines of one file."""
        for line in lines:
            try:
                fields = orjson.loads(line)
                self._rows.append(_row(fields))
            except (ValueError, TypeError, KeyError, AttributeError):
                self._count["damaged"] += bool(line.strip())
                continue
            self._count["skipped"] += not fields.get("applied", True)
            if len(self._rows) == 1:  # the first of a bucket
                self._variables.append(_norms(fields.get("variables", {}).items()))
                self._workers.append(_norms(enumerate(fields.get("by_worker", ()))))
            if len(self._rows) == self._length:
                self._finish_bucket()

    def _finish_bucket(self) -> None:
        """Make a bucket of the rows, and join neighbours if there are too many."""
        values = np.array(self._rows, float)
        finite = np.isfinite(values)
        low, high = np.where(finite, values, np.inf).min(0), np.where(finite, values, -np.inf).max(0)
        self._buckets.append(_Bucket(low, np.where(finite, values, 0).sum(0), high, finite.sum(0)))
        self._count["lines"] += len(self._rows)
        self._rows = []
        if len(self._buckets) >= 2 * self._limit:
            self._buckets = [_join(*pair) for pair in zip(self._buckets[::2], self._buckets[1::2], strict=True)]
            self._variables, self._workers = self._variables[::2], self._workers[::2]
            self._length *= 2

    def history(self) -> History:
        """Return all that was read."""
        if self._rows:
            self._finish_bucket()
        empty = _Bucket(*np.zeros((4, 0, len(COLUMNS))))
        joined = _Bucket(*map(np.stack, zip(*self._buckets, strict=True))) if self._buckets else empty
        known = joined.finite > 0
        return History(
            lines=self._count["lines"],
            damaged=self._count["damaged"],
            low=np.where(known, joined.low, np.nan),
            mean=np.divide(joined.total, joined.finite, out=np.full_like(joined.total, np.nan), where=known),
            high=np.where(known, joined.high, np.nan),
            variables=_by_name(self._variables),
            workers=_by_name(self._workers),
            skipped=self._count["skipped"],
        )


def _row(fields: dict[str, Any]) -> tuple[float | None, ...]:
    """Return a step's numbers in the order of COLUMNS; None, NumPy's NaN, for a field that is absent or null.

    Raises:
        KeyError, TypeError, AttributeError: the fields are not those of a step.
    """
    noise, times = fields.get("noise"), fields.get("times")
    row = (fields["step"], fields["loss"], fields["gradient_sum"], fields["gradient_norm"], fields["seconds"])
    row += (noise.get("trace"), noise.get("squared_norm")) if noise else (None, None)
    row += (times.get("compute"), times.get("reduce"), times.get("apply")) if times else (None, None, None)
    if not NUMBERS.issuperset(map(type, row)):
        raise TypeError
    return row


def _norms(described: Iterable[tuple[Any, dict[str, Any]]]) -> dict[str, float]:
    return {str(name): math.nan if (norm := found["gradient_norm"]) is None else norm for name, found in described}


def _join(one: _Bucket, other: _Bucket) -> _Bucket:
    low, high = np.minimum(one.low, other.low), np.maximum(one.high, other.high)
    return _Bucket(low, one.total + other.total, high, one.finite + other.finite)


def _by_name(rows: Sequence[dict[str, float]]) -> dict[str, np.ndarray]:
    """Turn one dictionary for each bucket into one array (b,) for each name."""
    names = dict.fromkeys(name for row in rows for name in row)
    return {name: np.array([row.get(name, math.nan) for row in rows]) for name in names}
