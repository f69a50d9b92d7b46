"""A log file read back in bounded memory, however many steps it has.

Steps are taken together in buckets of equal length. When there are too many buckets, neighbours are joined and every
bucket is twice as long; so the whole run is always covered, and a spike stays visible as its bucket's extreme.
"""

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import orjson

LIMIT = 1000  # buckets, at most
CHUNK = 1 << 22  # bytes that are read at once
COLUMNS = (
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

NUMBERS = {int, float, type(None)}


class History(NamedTuple):
    """A run.

    Attributes:
        lines, damaged: how many steps were read, and how many lines could not be.
        low, mean, high: (b, columns) of each bucket's steps, of what is finite; NaN where nothing is.
        variables: each variable's gradient norm at one step of every bucket, by path, (b,).
        workers: the same of each worker's own gradient, by rank.
        skipped: steps that were not applied.
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
        """Low, mean and high of one of COLUMNS."""
        index = COLUMNS.index(name)
        return self.low[:, index], self.mean[:, index], self.high[:, index]


def files_of(path: Path) -> list[Path]:
    """A log file with those that it was rotated into, the oldest first."""
    rotated = [(int(one.suffix[1:]), one) for one in path.parent.glob(f"{path.name}.*") if one.suffix[1:].isdigit()]
    return [one for _, one in sorted(rotated, reverse=True)] + [path]


def read(path: Path, limit: int = LIMIT) -> History:
    """Read a log file.

    Raises:
        OSError: it cannot be read.
    """
    reader = _Reader(limit)
    for file in files_of(path):
        with file.open("rb", buffering=CHUNK) as lines:
            reader.take(lines)
    return reader.history()


class _Reader:
    def __init__(self, limit: int) -> None:
        self._limit, self._length = limit, 1  # steps in a bucket
        self._rows: list[tuple[float | None, ...]] = []  # of the bucket that is being filled
        self._buckets: list[np.ndarray] = []  # (4, columns) each: low, sum, high, count
        self._variables: list[dict[str, float]] = []
        self._workers: list[dict[str, float]] = []
        self._count: Counter[str] = Counter()

    def take(self, lines: Iterable[bytes]) -> None:
        """Read the lines of one file."""
        for line in lines:
            try:
                fields = orjson.loads(line)
                self._rows.append(_row(fields))
            except (ValueError, TypeError, KeyError, AttributeError):
                self._count["damaged"] += bool(line.strip())
                continue
            self._count["skipped"] += not fields.get("applied", True)
            if len(self._rows) == 1:  # one step speaks for its bucket in the pictures of many lines
                self._variables.append(_norms(fields.get("variables", {}).items()))
                self._workers.append(_norms(enumerate(fields.get("by_worker", ()))))
            if len(self._rows) == self._length:
                self._close()

    def _close(self) -> None:
        """Finish a bucket, and join neighbours if there are too many."""
        values = np.array(self._rows, float)
        known = np.isfinite(values)
        low, high = np.where(known, values, np.inf).min(0), np.where(known, values, -np.inf).max(0)
        self._buckets.append(np.stack([low, np.where(known, values, 0).sum(0), high, known.sum(0)]))
        self._count["lines"] += len(self._rows)
        self._rows = []
        if len(self._buckets) >= 2 * self._limit:
            self._buckets = [_join(*pair) for pair in zip(self._buckets[::2], self._buckets[1::2], strict=True)]
            self._variables, self._workers = self._variables[::2], self._workers[::2]
            self._length *= 2

    def history(self) -> History:
        """All that was read."""
        if self._rows:
            self._close()
        low, total, high, count = np.stack(self._buckets, 1) if self._buckets else np.zeros((4, 0, len(COLUMNS)))
        some = count > 0
        low, high = np.where(some, low, np.nan), np.where(some, high, np.nan)
        mean = np.divide(total, count, out=np.full_like(total, np.nan), where=some)
        tables = _table(self._variables), _table(self._workers)
        return History(self._count["lines"], self._count["damaged"], low, mean, high, *tables, self._count["skipped"])


def _row(fields: dict[str, Any]) -> tuple[float | None, ...]:
    """One step's columns; None where a field is absent or null, which is NaN to NumPy.

    Raises:
        KeyError, TypeError, AttributeError: this is no step.
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


def _join(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    low, high = np.minimum(one[0], other[0]), np.maximum(one[2], other[2])
    return np.stack([low, one[1] + other[1], high, one[3] + other[3]])


def _table(rows: Sequence[dict[str, float]]) -> dict[str, np.ndarray]:
    """Each name's numbers over the buckets."""
    names = dict.fromkeys(name for row in rows for name in row)
    return {name: np.array([row.get(name, math.nan) for row in rows]) for name in names}
