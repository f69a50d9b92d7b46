"""A step's statistics beyond its line, as far as they were asked for: by variable, group and worker, noise, times."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np

from distgrad.collectives.moments import COLUMNS
from distgrad.errors import BadArgument
from distgrad.gradients.global_gradient import GradientStatistics
from distgrad.native.layout import WorkerRow
from distgrad.reports.noise import GradientNoise, estimate
from distgrad.reports.packing import Packing
from distgrad.reports.worker_table import column, rows_of, shape_of

NAMES = ("variables", "workers", "noise", "times", "updates")  # what can be asked for
OF_ONE_DIVISOR = ("workers", "noise")  # which need a loss with a single divisor
# Single numbers of every step.
SCALARS = ("loss", "examples", "weight", "more", "applied", "stop", "drifted", *GradientStatistics._fields)


def chosen(names: str | Iterable[str]) -> frozenset[str]:
    """Return the statistics that `statistics=` asks for.

    Raises:
        BadArgument: a name is none of NAMES.
    """
    listed = [names] if isinstance(names, str) else list(names)
    unknown = [name for name in listed if name not in (*NAMES, "all")]
    if unknown:
        raise BadArgument(
            f"statistics={names!r}", f"give some of {', '.join(map(repr, NAMES))}, or 'all'", everywhere=True
        )
    return frozenset(NAMES if "all" in listed else listed)


@dataclass(frozen=True)
class Contents:
    """The contents of a step's report.

    Attributes:
        variables: path and shape of each.
        groups: the numbers of each group's variables.
        workers: how many there are.
        rank: this one.
        asked: some of NAMES.
        divides: True if gradients are divided by N.
    """

    variables: Sequence[tuple[str, tuple[int, ...]]]
    groups: Mapping[str, Sequence[int]]
    workers: int
    rank: int
    asked: frozenset[str]
    divides: bool

    @property
    def by_variable(self) -> bool:
        """True if each variable is described."""
        return bool(self.groups) or "variables" in self.asked

    @property
    def by_worker(self) -> bool:
        """True if each worker describes its share."""
        return bool(self.asked & {"workers", "noise", "times"})

    @cached_property
    def packing(self) -> Packing:
        """The form in which the compiled step gives its numbers; see `StepStatistics`."""
        shapes: dict[str, tuple[int, ...]] = dict.fromkeys(SCALARS, ())
        shapes["nonfinite_workers"] = (self.workers,)
        if self.by_variable:
            shapes["by_variable"] = (len(self.variables), COLUMNS)
        if self.by_worker:
            shapes |= {"scale": (), "summed_squares": (), "summed_after": (), "worker_table": shape_of(self.workers)}
        return Packing(shapes)


class VariableStatistics(NamedTuple):
    """The statistics of one variable or group, with the fraction of its entries that are zero (`zeros`)."""

    gradient_sum: float
    gradient_norm: float
    gradient_max: float
    nonfinite: int
    zeros: float

    def as_gradient(self) -> GradientStatistics:
        """Return the statistics that a whole gradient has, too."""
        return GradientStatistics(self.gradient_sum, self.gradient_norm, self.gradient_max, self.nonfinite)


class WorkerStatistics(NamedTuple):
    """One worker's share: sum and norm of its gradient alone, its N, and the seconds that it computed.

    Under reduction="mean" its gradient is divided by its own N, so that those of all workers estimate the same thing.
    """

    gradient_sum: float
    gradient_norm: float
    weight: float
    seconds: float


class StepTimes(NamedTuple):
    """The seconds of this process's step by what they were spent on, and the worker that came last.

    Attributes:
        compute: forward and backward passes, until this worker was ready to meet the others.
        reduce: waiting for them, and the sum.
        apply: the optimizer, and everything else.
        slowest: the worker that computed longest.
    """

    compute: float
    reduce: float
    apply: float
    slowest: int


class StepStatistics:
    """One step's further numbers; what was not asked for is None or empty.

    Args:
        values: the step's numbers by name, see `Contents.packing`: by_variable (v, 5), sum, norm, largest entry,
            non-finite entries and zeros of each variable's gradient; scale (), the loss scale; summed_squares (),
            Σ entries² of the undivided sum; summed_after (), seconds until the sum was there; worker_table.
        seconds: of the whole call.
    """

    def __init__(self, values: Mapping[str, np.ndarray], contents: Contents, seconds: float) -> None:
        self._values, self._contents, self._seconds = values, contents, seconds

    @cached_property
    def _columns(self) -> Any:
        """`VariableStatistics` of (v,) arrays; zeros are counted."""
        return VariableStatistics(*self._values["by_variable"].T)

    @cached_property
    def _rows(self) -> list[WorkerRow]:
        return rows_of(self._values["worker_table"])

    def _together(self, members: Sequence[int]) -> VariableStatistics:
        """Return the statistics of several variables taken together."""
        rows = VariableStatistics(*(column[list(members)] for column in self._columns))
        entries = sum(self._entries_of(number) for number in members)
        norm = float(np.sqrt(np.square(rows.gradient_norm).sum()))
        largest = float(np.max(rows.gradient_max, initial=0.0))
        zeros = float(np.sum(rows.zeros)) / entries if entries else math.nan
        return VariableStatistics(float(np.sum(rows.gradient_sum)), norm, largest, int(np.sum(rows.nonfinite)), zeros)

    def _entries_of(self, number: int) -> int:
        _, shape = self._contents.variables[number]
        return math.prod(shape)

    @cached_property
    def groups(self) -> dict[str, VariableStatistics]:
        """The groups by label."""
        return {label: self._together(members) for label, members in self._contents.groups.items()}

    @cached_property
    def variables(self) -> dict[str, VariableStatistics]:
        """The variables by path ("variables")."""
        if "variables" not in self._contents.asked:
            return {}
        found = {}
        for number, row in enumerate(map(VariableStatistics._make, self._values["by_variable"].tolist())):
            path, zeros = self._contents.variables[number][0], row.zeros / max(1, self._entries_of(number))
            found[path] = row._replace(nonfinite=int(row.nonfinite), zeros=zeros)
        return found

    def dead(self) -> list[str]:
        """Return the paths of the variables whose entries are all zero ("variables")."""
        if "variables" not in self._contents.asked:
            return []
        some = np.flatnonzero(self._columns.zeros).tolist()
        return [self._contents.variables[n][0] for n in some if self._columns.zeros[n] == self._entries_of(n)]

    @cached_property
    def zeros(self) -> float | None:
        """The fraction of the gradient's entries that are zero ("variables")."""
        if "variables" not in self._contents.asked:
            return None
        return self._together(range(len(self._contents.variables))).zeros

    @cached_property
    def workers(self) -> list[WorkerStatistics]:
        """The workers by rank ("workers")."""
        return [self._worker(row) for row in self._rows] if "workers" in self._contents.asked else []

    def _worker(self, row: WorkerRow) -> WorkerStatistics:
        divisor = float(self._values["scale"]) * (row.weight if self._contents.divides and row.weight else 1.0)
        return WorkerStatistics(row.gradient_sum / divisor, row.gradient_norm / divisor, row.weight, row.seconds)

    @cached_property
    def noise(self) -> GradientNoise | None:
        """The gradient noise scale ("noise")."""
        if "noise" not in self._contents.asked:
            return None
        scale = float(self._values["scale"])
        between = float(np.square(column(self._rows, "between")).sum()) / scale**2
        squares = float(self._values["summed_squares"]) / scale**2
        micro_batches = int(column(self._rows, "micro_batches").sum())
        return estimate(between, squares, float(self._values["weight"]), micro_batches)

    @cached_property
    def times(self) -> StepTimes | None:
        """The time by what it was spent on ("times")."""
        if "times" not in self._contents.asked:
            return None
        computed = column(self._rows, "seconds")
        compute, until = float(computed[self._contents.rank]), float(self._values["summed_after"])
        return StepTimes(compute, max(0.0, until - compute), max(0.0, self._seconds - until), int(computed.argmax()))

    def as_dict(self) -> dict[str, Any]:
        """Return all of it that was asked for, as Python numbers."""
        fields: dict[str, Any] = {}
        if self.variables:
            fields["zeros"] = self.zeros
            fields["variables"] = {path: row._asdict() for path, row in self.variables.items()}
        if self.workers:
            fields["by_worker"] = [worker._asdict() for worker in self.workers]
        if self.noise:
            fields["noise"] = self.noise._asdict()
        if self.times:
            fields["times"] = self.times._asdict()
        return fields
