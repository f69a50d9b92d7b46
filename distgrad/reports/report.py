"""`StepReport`: one step's numbers, its text and JSON lines, and the per-variable table.

Values live on the device until one of them is read.
"""

import io
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Generic, NamedTuple, TypeVar

import numpy as np
import rich.console
import rich.table

from distgrad.errors import ReportExpired
from distgrad.gradients.flat_vector import Place
from distgrad.gradients.global_gradient import GradientStatistics
from distgrad.reports.statistics import Contents, StepStatistics
from distgrad.reports.updates import UpdateRatios

Number = TypeVar("Number", float, int, bool)


class GlobalGradientEntries(NamedTuple):
    """The global gradient of a step, for reports that tell it entry by entry.

    Attributes:
        blocks: the flat gradient, (entries,) in all, in one or several tensors.
        sparse: (n,) each, the entries of the touched rows of each sparse variable.
        places: where each variable's entries are.
    """

    blocks: Sequence[Any]
    sparse: Sequence[Any]
    places: Sequence[Place]

    def by_variable(self) -> list[np.ndarray]:
        """Fetch the entries (n,) of each variable."""
        blocks = [np.asarray(block) for block in self.blocks]
        sparse = [np.asarray(entries) for entries in self.sparse]
        found = [np.concatenate(blocks) if len(blocks) > 1 else blocks[0], *sparse]
        return [place.of(found) for place in self.places]


class VariableRow(NamedTuple):
    """One line of `StepReport.table()`: a variable's path, shape and statistics."""

    path: str
    shape: tuple[int, ...]
    gradient_sum: float
    gradient_norm: float
    gradient_max: float
    nonfinite: int


class VariableTable(tuple[VariableRow, ...]):
    """The rows of a per-variable table; its text is what a person reads."""

    def __str__(self) -> str:
        table = rich.table.Table()
        for name in ("variable", "shape", "gradient sum", "gradient norm", "max |entry|", "non-finite"):
            table.add_column(name, justify="left" if name in ("variable", "shape") else "right")
        for row in self:
            numbers = (f"{number:.4e}" for number in row[2:5])
            table.add_row(row.path, str(row.shape), *numbers, str(row.nonfinite))
        text = io.StringIO()
        rich.console.Console(file=text, width=120, color_system=None).print(table)
        return text.getvalue()


class _Fetched(Generic[Number]):
    """A number of the step, fetched with all others when the first of them is read."""

    def __init__(self, kind: Callable[[Any], Number], doc: str) -> None:
        self._kind: Callable[[Any], Number] = kind
        self.__doc__ = doc

    def __set_name__(self, owner: type, name: str) -> None:
        self._name = name

    def __get__(self, report: "StepReport | None", owner: type) -> Number:
        if report is None:
            return self  # type: ignore[return-value]  # of the class, for its documentation
        return self._kind(report._fetched[self._name])


@dataclass
class StepReport:
    """One step, as every worker sees it.

    Attributes:
        step: its number, from 1.
        workers: how many workers' gradients were summed.
        seconds: wall time of this worker's call. On a device that computes asynchronously, until it returned.
        logs: under `fit`, the values of the metrics so far.
        updates: with statistics="updates", how far the step moved the weights; on the root, in steps that are logged.
    """

    step: int
    workers: int
    seconds: float
    _values: Any = field(repr=False)
    _contents: Contents = field(repr=False)
    _gradient: GlobalGradientEntries | None = field(repr=False)
    logs: Mapping[str, Any] = field(default_factory=dict, repr=False)
    updates: UpdateRatios | None = field(default=None, repr=False)

    @cached_property
    def _fetched(self) -> dict[str, np.ndarray]:
        return self._contents.packing.unpack(np.asarray(self._values))

    loss = _Fetched(float, 'Σ w·loss / N of the global batch (undivided if reduction="sum"), regularization included.')
    examples = _Fetched(int, "Rows of the global batch.")
    weight = _Fetched(float, "N: what the loss's reduction divides by, over the global batch.")
    gradient_sum = _Fetched(float, "Σ over all entries of the global gradient, before any clipping.")
    gradient_norm = _Fetched(float, "sqrt(Σ entries²) of the global gradient, before any clipping.")
    gradient_max = _Fetched(float, "Largest |entry| of the global gradient.")
    nonfinite = _Fetched(int, "The number of entries of the global gradient that are NaN or infinite.")
    applied = _Fetched(bool, "True if the optimizer changed the weights.")
    more = _Fetched(bool, "True if any worker said that it has another batch.")
    stop = _Fetched(bool, "True if any worker was asked to stop.")
    drifted = _Fetched(bool, "True if workers were found to have different weights, where that was checked.")

    @property
    def groups(self) -> dict[str, GradientStatistics]:
        """The statistics of each group of variables, by label."""
        return {label: found.as_gradient() for label, found in self.told.groups.items()}

    @property
    def nonfinite_ranks(self) -> list[int]:
        """The workers whose own sums held NaN or infinity; empty when only the total overflowed."""
        return [int(rank) for rank in np.flatnonzero(self._fetched["nonfinite_workers"])]

    @cached_property
    def told(self) -> StepStatistics:
        """The numbers that `statistics=` asked for: `variables`, `zeros`, `workers`, `noise`, `times`."""
        return StepStatistics(self._fetched, self._contents, self.seconds)

    def keras_logs(self) -> dict[str, Any]:
        """Return what callbacks see under `fit`: the logs, and what was asked for that is one number."""
        logs = dict(self.logs)
        if "variables" in self._contents.asked:
            logs["gradient_zeros"] = self.told.zeros
        if "noise" in self._contents.asked and self.told.noise is not None:
            logs["noise_scale"] = self.told.noise.scale
        return logs

    def table(self) -> VariableTable:
        """Compute the gradient's statistics variable by variable.

        Raises:
            ReportExpired: a later step has begun; gradients are kept for the newest step only, to save memory.
        """
        pairs = zip(self._contents.variables, self._entries(), strict=True)
        return VariableTable(VariableRow(path, shape, *_statistics(entries)) for (path, shape), entries in pairs)

    def entries(self) -> dict[str, np.ndarray]:
        """Return the gradient's entries, 1-D by group, or by variable where there are no groups.

        Of a sparse variable, these are the rows that any worker touched.

        Raises:
            ReportExpired: as for `table`.
        """
        parts, groups = self._entries(), self._contents.groups.items()
        together = {label: [parts[number] for number in members] for label, members in groups}
        by_variable = dict(zip((path for path, _ in self._contents.variables), parts, strict=True))
        joined = {label: np.concatenate(chosen) if chosen else np.zeros(0) for label, chosen in together.items()}
        return joined or by_variable

    def _entries(self) -> list[np.ndarray]:
        if self._gradient is None:
            raise ReportExpired(
                f"the gradient of step {self.step} is gone", "read table() before the next step", step=self.step
            )
        return self._gradient.by_variable()

    def expire(self) -> None:
        """Let go of the gradient."""
        self._gradient = None

    def as_dict(self) -> dict[str, Any]:
        """Return the fields by name, as Python numbers."""
        names = ("step", "loss", "examples", "weight", *GradientStatistics._fields, "applied", "workers", "seconds")
        fields = {name: getattr(self, name) for name in names}
        groups = {name: group._asdict() for name, group in self.groups.items()}
        updates = {} if self.updates is None else {"updates": self.updates._asdict()}
        return {**fields, "groups": groups, **self.told.as_dict(), **updates}

    def as_json(self) -> str:
        """Return one JSON object on one line; NaN and infinity, which JSON lacks, are null."""
        return json.dumps(_null_nonfinite(self.as_dict()))

    def as_text(self) -> str:
        """Return the line of a step, and one more line a group."""
        lines = [
            f"step {self.step} | loss {self.loss:.5f} | gradient sum {self.gradient_sum:.4e}"
            f" | gradient norm {self.gradient_norm:.4e} | examples {self.examples}"
            f" | workers {self.workers} | {1000 * self.seconds:.1f} ms"
        ]
        lines += [
            f"  {name} | gradient sum {group.gradient_sum:.4e} | gradient norm {group.gradient_norm:.4e}"
            for name, group in self.groups.items()
        ]
        return "\n".join(lines)

    def __str__(self) -> str:
        return self.as_text()


def blame(report: StepReport) -> str:
    """Say from which workers a non-finite gradient comes."""
    ranks = ", ".join(map(str, report.nonfinite_ranks))
    source = f"from rank {ranks}" if ranks else "by overflow in the sum"
    return f"{report.nonfinite} non-finite gradient entries {source}"


def _statistics(entries: np.ndarray) -> GradientStatistics:
    wide = entries.astype(np.float64)
    largest = float(np.abs(wide).max(initial=0.0))
    norm, nonfinite = float(np.sqrt(np.square(wide).sum())), int((~np.isfinite(wide)).sum())
    return GradientStatistics(float(wide.sum()), norm, largest, nonfinite)


def _null_nonfinite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _null_nonfinite(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_null_nonfinite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
