"""What a value is of a batch, and so what becomes of it when the batch is cut.

A function f of a batch is computed of the first batch of real data, B, and of its two parts, B1 and B2, with r1 and r2
rows:

    f(B) = (r1·f(B1) + r2·f(B2)) / r    MEAN     summed with weights, and divided
    f(B) = f(B1) + f(B2)                SUM      summed
    f(B) = f(B1) = f(B2)                ONCE     the same for every part
    none of these                       WHOLE    known only where all rows are

Every worker tries its own share, and a kind is possible where it is so on all of them. Values that are all zero, and a
share of one row, leave all kinds possible; then the next batch is asked.
"""

import enum
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np

from distgrad.collectives.communicator import Communicator

PRECISION = {"float64": 1e-9, "float32": 5e-5}  # relative, of values of that dtype; others are coarser
COARSE = 2e-2
CLEARLY = 4  # times nearer, for values that draw random numbers


class Kind(enum.Enum):
    """How the value of a batch follows from the values of its parts."""

    MEAN = "m"
    SUM = "s"
    ONCE = "o"
    WHOLE = "w"


ALL = frozenset({Kind.MEAN, Kind.SUM, Kind.ONCE})


class Parts(NamedTuple):
    """A value of a batch and of its two parts, of the same shape.

    Attributes:
        again: (2, ...) two values that are the same if nothing depends on what was there before; None for what does
            not.
    """

    whole: Any
    first: Any
    second: Any
    again: Any = None


def possible_kinds(values: Parts, rows: tuple[int, int], is_random: bool = False) -> frozenset[Kind]:
    """Return the kinds for which the values of one batch stand; none if it is WHOLE.

    Args:
        values: arrays of numbers.
        rows: of the first and of the second part.
        is_random: True if the values come of a pass that draws random numbers, and so agree only roughly.

    >>> sorted(kind.name for kind in possible_kinds(Parts(3.0, 1.0, 4.0), (1, 2)))
    ['MEAN']
    >>> sorted(kind.name for kind in possible_kinds(Parts(5.0, 1.0, 4.0), (1, 2)))
    ['SUM']
    >>> sorted(kind.name for kind in possible_kinds(Parts(4.0, 1.0, 4.0), (1, 2)))
    []
    """
    dtype = str(np.asarray(values.whole).dtype)
    whole, first, second = (np.asarray(value, np.float64) for value in values[:3])
    if not all(rows) or not np.isfinite([value.sum() for value in (whole, first, second)]).all():
        return ALL
    largest = max((np.abs(value).max(initial=0) for value in (whole, first, second)), default=0.0)
    guesses = {
        Kind.MEAN: [(rows[0] * first + rows[1] * second) / sum(rows)],
        Kind.SUM: [first + second],
        Kind.ONCE: [first, second],
    }
    errors = {
        kind: max(np.abs(whole - guess).max(initial=0) for guess in expected) for kind, expected in guesses.items()
    }
    if is_random and largest > 0 and errors[Kind.ONCE] > PRECISION["float32"] * largest:
        likely = min((Kind.MEAN, Kind.SUM), key=lambda kind: errors[kind])
        other = Kind.SUM if likely is Kind.MEAN else Kind.MEAN
        return frozenset({likely}) if CLEARLY * errors[likely] < errors[other] else ALL
    precision = PRECISION.get(dtype, COARSE if dtype.startswith(("float", "bfloat")) else 1e-9)
    if values.again is not None and np.abs(np.diff(values.again, axis=0)).max(initial=0) > precision * largest:
        return frozenset()
    return frozenset(kind for kind, error in errors.items() if error <= precision * largest)


class Evidence:
    """The kinds that are still possible for each named value, on all workers."""

    def __init__(self) -> None:
        self._possible: dict[str, frozenset[Kind]] = {}

    def add(self, comm: Communicator, found: Mapping[str, frozenset[Kind]]) -> None:
        """Leave the kinds that were possible so far, and on every worker now. Every worker calls it.

        Args:
            found: for each name, the kinds that this worker's share leaves possible; the same names on all workers.
        """
        own = ",".join("".join(kind.value for kind in kinds) for kinds in found.values())
        everywhere = [text.split(",") for text in comm.exchange(own).values()] if found else []
        for number, name in enumerate(found):
            of_workers = [_kinds(texts[number]) for texts in everywhere if number < len(texts)]
            self._possible[name] = self._possible.get(name, ALL).intersection(*of_workers)

    def kind(self, name: str, prefers: Kind = Kind.MEAN) -> Kind:
        """Return the kind of a value: `prefers` while that is possible, else the one that is left."""
        possible = self._possible.get(name, ALL)
        if prefers in possible:
            return prefers
        return min(possible, key=lambda kind: kind.name, default=Kind.WHOLE)

    def undecided(self, names: Iterable[str]) -> list[str]:
        """Return the names of the values of which nothing is known yet."""
        return [name for name in names if self._possible.get(name, ALL) == ALL]


def _kinds(letters: str) -> frozenset[Kind]:
    return frozenset(map(Kind, letters))
