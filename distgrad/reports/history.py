"""A log file, read back in bounded memory however many steps it has.

Steps are gathered in buckets of equal length. When there are too many buckets, neighbours are joined, which makes every
bucket twice as long. So the whole run is always covered, and a spike stays visible as the extreme of its bucket.
"""

import glob
import math
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
import orjson

LIMIT = 1000  # buckets; they are joined when there are twice as many
CHUNK = 1 << 22  # bytes that are read at once
LONGEST_LINE = 1 << 22  # bytes; a longer one is damaged. The parser takes 14 times as many.
LAST_STEP = 10**15  # floats between its neighbours differ
LARGEST = 1e100  # a larger number counts as infinite, and one below its inverse as 0: pictures would overflow
MOST_NAMES = 10_000  # of variables, or workers; further ones are left out
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
    named = path.parent.glob(f"{glob.escape(path.name)}.*")
    rotated = [(int(one.suffix[1:]), one) for one in named if one.suffix[1:].isdecimal() and one.is_file()]
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


class _Table:
    """Numbers by name, one row for each bucket."""

    def __init__(self) -> None:
        self._columns: dict[str, int] = {}
        self._rows: list[np.ndarray] = []

    def append(self, numbers: Iterable[tuple[str, float]]) -> None:
        """Append a row; names that come beyond MOST_NAMES are left out."""
        known = self._columns
        placed = [
            (known.setdefault(name, len(known)), number)
            for name, number in numbers
            if name in known or len(known) < MOST_NAMES
        ]
        row = np.full(len(known), np.nan)
        for column, number in placed:
            row[column] = number
        self._rows.append(row)

    def halve(self) -> None:
        """Keep every other row."""
        self._rows = self._rows[::2]

    def by_name(self) -> dict[str, np.ndarray]:
        """Return one array (rows,) for each name."""
        rows = np.full((len(self._rows), len(self._columns)), np.nan)
        for whole, row in zip(rows, self._rows, strict=True):
            whole[: len(row)] = _bounded(row)  # later names were not known then
        return {name: rows[:, column] for name, column in self._columns.items()}


class _Reader:
    """Reads lines into buckets."""

    def __init__(self, limit: int) -> None:
        self._limit, self._length = limit, 1  # steps in a bucket
        self._rows: list[tuple[float | None, ...]] = []  # of the bucket that is being filled
        self._buckets: list[_Bucket] = []
        self._variables, self._workers = _Table(), _Table()  # gradient norms of each bucket's first step
        self._count: Counter[str] = Counter()

    def read_lines(self, file: IO[bytes]) -> None:
        """Read the lines of one file."""
        while line := file.readline(LONGEST_LINE):
            if len(line) == LONGEST_LINE and not line.endswith(b"\n"):
                _skip_line(file)
                self._count["damaged"] += 1
                continue
            try:
                self._read_line(line)
            except (ValueError, TypeError, KeyError, AttributeError):
                self._count["damaged"] += bool(line.strip())
            if len(self._rows) == self._length:
                self._finish_bucket()

    def _read_line(self, line: bytes) -> None:
        """Read a step.

        Raises:
            ValueError, TypeError, KeyError, AttributeError: the line is not that of a step.
        """
        fields = orjson.loads(line)
        row, applied = _row(fields), fields.get("applied", True)
        if not isinstance(applied, bool):
            raise TypeError
        if not self._rows:  # the first of a bucket
            variables = [*map(_norm, fields.get("variables", {}).items())]
            workers = [*map(_norm, enumerate(fields.get("by_worker", [])))]
            self._variables.append(variables)
            self._workers.append(workers)
        self._rows.append(row)
        self._count["skipped"] += not applied

    def _finish_bucket(self) -> None:
        """Make a bucket of the rows, and join neighbours if there are too many."""
        values = _bounded(np.array(self._rows, float))
        finite = np.isfinite(values)
        low, high = np.where(finite, values, np.inf).min(0), np.where(finite, values, -np.inf).max(0)
        self._buckets.append(_Bucket(low, np.where(finite, values, 0).sum(0), high, finite.sum(0)))
        self._count["lines"] += len(self._rows)
        self._rows = []
        if len(self._buckets) >= 2 * self._limit:
            self._buckets = [_join(*pair) for pair in zip(self._buckets[::2], self._buckets[1::2], strict=True)]
            self._variables.halve()
            self._workers.halve()
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
            variables=self._variables.by_name(),
            workers=self._workers.by_name(),
            skipped=self._count["skipped"],
        )


def _row(fields: dict[str, Any]) -> tuple[float | None, ...]:
    """Return a step's numbers in the order of COLUMNS; None, NumPy's NaN, for a field that is absent or null.

    Raises:
        KeyError, TypeError, AttributeError, ValueError: the fields are not those of a step.
    """
    noise, times = fields.get("noise"), fields.get("times")
    row = (fields["step"], fields["loss"], fields["gradient_sum"], fields["gradient_norm"], fields["seconds"])
    row += (None, None) if noise is None else (noise.get("trace"), noise.get("squared_norm"))
    row += (None, None, None) if times is None else (times.get("compute"), times.get("reduce"), times.get("apply"))
    if not NUMBERS.issuperset(map(type, row)):
        raise TypeError
    if type(row[0]) is not int or not 0 <= row[0] <= LAST_STEP:
        raise ValueError
    return row


def _norm(described: tuple[Any, dict[str, Any]]) -> tuple[str, float]:
    """Return name and gradient norm of a variable or a worker."""
    name, found = described
    norm = found["gradient_norm"]
    if type(norm) not in NUMBERS:
        raise TypeError
    return str(name), math.nan if norm is None else float(norm)


def _bounded(values: np.ndarray) -> np.ndarray:
    """Return values in which those beyond LARGEST are NaN, and those below its inverse 0."""
    sizes = np.abs(values)
    return np.where(sizes > LARGEST, np.nan, np.where(sizes < 1 / LARGEST, 0, values))


def _skip_line(file: IO[bytes]) -> None:
    """Read to the end of a line, keeping nothing of it."""
    while (part := file.readline(LONGEST_LINE)) and not part.endswith(b"\n"):
        pass


def _join(one: _Bucket, other: _Bucket) -> _Bucket:
    low, high = np.minimum(one.low, other.low), np.maximum(one.high, other.high)
    return _Bucket(low, one.total + other.total, high, one.finite + other.finite)
