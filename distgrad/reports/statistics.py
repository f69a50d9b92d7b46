"""What a step tells beyond its line, as far as it was asked: by variable, by group, by worker, noise, times."""

import math
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np

from distgrad.collectives.moments import ROW
from distgrad.native.layout import WorkerRow
from distgrad.reports.noise import GradientNoise, estimate
from distgrad.reports.worker_table import table

NAMES = ("variables", "workers", "noise", "times", "updates")  # what can be asked for


class Contents(NamedTuple):
    """What stands in the numbers of a step.

    Attributes:
        variables: path and shape of each.
        groups: the members of each group, by number.
        workers: how many there are.
        rank: this one.
        asked: some of NAMES.
        divides: whether gradients are divided by N.
    """

    variables: Sequence[tuple[str, tuple[int, ...]]]
    groups: Mapping[str, Sequence[int]]
    workers: int
    rank: int
    asked: frozenset[str]
    divides: bool

    @property
    def by_variable(self) -> bool:
        """Whether there is a row for each variable."""
        return bool(self.groups) or "variables" in self.asked

    @property
    def by_worker(self) -> bool:
        """Whether there is a row for each worker."""
        return bool(self.asked & {"workers", "noise", "times"})


class GradientStatistics(NamedTuple):
    """The gradient of some variables: Σ entries, sqrt(Σ entries²), max |entry|, count of NaN and infinite entries."""

    gradient_sum: float
    gradient_norm: float
    gradient_max: float
    nonfinite: int


class VariableStatistics(NamedTuple):
    """The same of one variable or group, with the share of its entries that are zero."""

    gradient_sum: float
    gradient_norm: float
    gradient_max: float
    nonfinite: int
    zeros: float


class WorkerStatistics(NamedTuple):
    """What one worker brought: sum and norm of the gradient of its share alone, its N, and how long it computed.

    Under reduction="mean" its gradient is divided by its own N, so that those of all workers estimate the same thing.
    """

    gradient_sum: float
    gradient_norm: float
    weight: float
    seconds: float


class StepTimes(NamedTuple):
    """Where the seconds of this process's step went, and who came last.

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


class Told:
    """One step's further numbers; what was not asked for is None or empty.

    Args:
        values: [loss scale, Σ entries² of the undivided sum, seconds until it was there], then a row for each variable,
            then the entries of the table of workers, see own.py.
        weight: N of the global batch.
        seconds: of the whole call.
    """

    def __init__(self, values: np.ndarray, contents: Contents, weight: float, seconds: float) -> None:
        self._contents, self._weight, self._seconds = contents, weight, seconds
        head = 3 if contents.by_worker else 0
        self._scale, self._squares, self._summed_after = map(float, values[:head] if head else (1.0, 0.0, 0.0))
        values = values[head:]
        variables = len(contents.variables) if contents.by_variable else 0
        self._rows = values[: ROW * variables].reshape(variables, ROW)
        self._own = table(values[ROW * variables :])

    def _together(self, members: Sequence[int]) -> VariableStatistics:
        rows = self._rows[list(members)]
        entries = sum(math.prod(self._contents.variables[index][1]) for index in members)
        norm, largest = float(np.sqrt(np.square(rows[:, 1]).sum())), float(rows[:, 2].max(initial=0.0))
        zeros = float(rows[:, 4].sum()) / entries if entries else math.nan
        return VariableStatistics(float(rows[:, 0].sum()), norm, largest, int(rows[:, 3].sum()), zeros)

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
        for (path, shape), row in zip(self._contents.variables, self._rows.tolist(), strict=True):
            total, norm, largest, nonfinite, zeros = row
            found[path] = VariableStatistics(total, norm, largest, int(nonfinite), zeros / max(1, math.prod(shape)))
        return found

    def dead(self) -> list[str]:
        """The paths of the variables whose entries are all zero ("variables")."""
        if "variables" not in self._contents.asked:
            return []
        zeros = self._rows[:, 4]
        some = [(*self._contents.variables[index], zeros[index]) for index in np.flatnonzero(zeros).tolist()]
        return [path for path, shape, count in some if count == math.prod(shape)]

    @cached_property
    def zeros(self) -> float | None:
        """The share of the gradient's entries that are zero ("variables")."""
        if "variables" not in self._contents.asked:
            return None
        return self._together(range(len(self._contents.variables))).zeros

    @cached_property
    def workers(self) -> list[WorkerStatistics]:
        """The workers by rank ("workers")."""
        if "workers" not in self._contents.asked:
            return []
        return [self._worker(WorkerRow(*map(float, row))) for row in self._own]

    def _worker(self, own: WorkerRow) -> WorkerStatistics:
        divisor = self._scale * (own.weight if self._contents.divides and own.weight else 1.0)
        return WorkerStatistics(own.gradient_sum / divisor, own.gradient_norm / divisor, own.weight, own.seconds)

    @cached_property
    def noise(self) -> GradientNoise | None:
        """The gradient noise scale ("noise")."""
        if "noise" not in self._contents.asked:
            return None
        between = float(np.square(self._column("between")).sum()) / self._scale**2
        squares = self._squares / self._scale**2
        return estimate(between, squares, self._weight, int(self._column("micro_batches").sum()))

    @cached_property
    def times(self) -> StepTimes | None:
        """Where the time went ("times")."""
        if "times" not in self._contents.asked:
            return None
        computed = self._column("seconds")
        compute, until = float(computed[self._contents.rank]), self._summed_after
        return StepTimes(compute, max(0.0, until - compute), max(0.0, self._seconds - until), int(computed.argmax()))

    def _column(self, name: str) -> np.ndarray:
        return self._own[:, WorkerRow._fields.index(name)]

    def as_dict(self) -> dict[str, Any]:
        """All of it that was asked for, as Python numbers."""
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
