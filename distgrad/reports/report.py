"""What a step tells: StepReport, its text and JSON forms, and the per-variable table.

Pure formatting apart from `print_report`. Values live on the device until one of them is read.
"""

import io
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import rich.console
import rich.table

from distgrad.errors import ReportExpired
from distgrad.reports.statistics import Contents, GradientStatistics, Told
from distgrad.reports.updates import UpdateRatios

if TYPE_CHECKING:
    from distgrad.gradients.flat_vector import Place

# What the compiled step puts into one float64 vector, in this order, before one number a worker and what `Told` reads.
HEAD = ("loss", "examples", "weight", "more", "applied", "stop", "drifted")
STATISTICS = ("gradient_sum", "gradient_norm", "gradient_max", "nonfinite")


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
    _gradient: Any = field(repr=False)
    _places: Sequence["Place"] = field(repr=False)
    logs: Mapping[str, Any] = field(default_factory=dict, repr=False)
    updates: UpdateRatios | None = field(default=None, repr=False)

    @cached_property
    def _fetched(self) -> np.ndarray:
        return np.asarray(self._values)

    def _value(self, name: str) -> float:
        return float(self._fetched[(*HEAD, *STATISTICS).index(name)])

    @property
    def loss(self) -> float:
        """Σ w·loss / N of the global batch (not divided under reduction="sum"), regularisation included."""
        return self._value("loss")

    @property
    def examples(self) -> int:
        """Rows of the global batch."""
        return int(self._value("examples"))

    @property
    def weight(self) -> float:
        """N: what the loss's reduction divides by, over the global batch."""
        return self._value("weight")

    @property
    def gradient_sum(self) -> float:
        """Σ over all entries of the global gradient, before any clipping."""
        return self._value("gradient_sum")

    @property
    def gradient_norm(self) -> float:
        """sqrt(Σ entries²) of the global gradient, before any clipping."""
        return self._value("gradient_norm")

    @property
    def gradient_max(self) -> float:
        """Largest |entry| of the global gradient."""
        return self._value("gradient_max")

    @property
    def nonfinite(self) -> int:
        """How many entries of the global gradient are NaN or infinite."""
        return int(self._value("nonfinite"))

    @property
    def applied(self) -> bool:
        """Whether the optimizer changed the weights."""
        return bool(self._value("applied"))

    @property
    def more(self) -> bool:
        """Whether any worker said that it has another batch."""
        return bool(self._value("more"))

    @property
    def stop(self) -> bool:
        """Whether any worker was asked to stop."""
        return bool(self._value("stop"))

    @property
    def drifted(self) -> bool:
        """Whether workers were found to have different weights, if that was checked."""
        return bool(self._value("drifted"))

    @property
    def groups(self) -> dict[str, GradientStatistics]:
        """The statistics of each group of variables, by label."""
        return {label: GradientStatistics(*found[:4]) for label, found in self.told.groups.items()}

    @property
    def nonfinite_ranks(self) -> list[int]:
        """The workers whose own sums held NaN or infinity; empty when only the total overflowed."""
        start = len(HEAD) + len(STATISTICS)
        return [int(rank) for rank in np.flatnonzero(self._fetched[start : start + self.workers])]

    @cached_property
    def told(self) -> Told:
        """What `statistics=` asked for: `variables`, `zeros`, `workers`, `noise`, `times`."""
        start = len(HEAD) + len(STATISTICS) + self.workers
        return Told(self._fetched[start:], self._contents, self.weight, self.seconds)

    def keras_logs(self) -> dict[str, Any]:
        """Under `fit`, what callbacks see: the logs, and what was asked for that is one number."""
        logs = dict(self.logs)
        if "variables" in self._contents.asked:
            logs["gradient_zeros"] = self.told.zeros
        if "noise" in self._contents.asked and self.told.noise is not None:
            logs["noise_scale"] = self.told.noise.scale
        return logs

    def table(self) -> VariableTable:
        """The gradient's statistics variable by variable, computed now.

        Raises:
            ReportExpired: a later step has begun; gradients are kept for the newest step only, to save memory.
        """
        pairs = zip(self._contents.variables, self._entries(), strict=True)
        return VariableTable(VariableRow(path, shape, *_statistics(entries)) for (path, shape), entries in pairs)

    def entries(self) -> dict[str, np.ndarray]:
        """The gradient's entries, 1-D by group, or by variable where there are no groups.

        Of a table whose rows are summed alone, these are the rows that any worker touched.

        Raises:
            ReportExpired: as for `table`.
        """
        parts, groups = self._entries(), self._contents.groups.items()
        together = {label: [parts[number] for number in members] for label, members in groups}
        by_variable = dict(zip((path for path, _ in self._contents.variables), parts, strict=True))
        joined = {label: np.concatenate(chosen) if chosen else np.zeros(0) for label, chosen in together.items()}
        return joined or by_variable

    def _entries(self) -> list[np.ndarray]:
        """By variable."""
        if not self._gradient:
            raise ReportExpired(
                f"the gradient of step {self.step} is gone", "read table() before the next step", step=self.step
            )
        blocks, tables = ([np.asarray(entries) for entries in part] for part in self._gradient)
        found = [np.concatenate(blocks) if len(blocks) > 1 else blocks[0], *tables]
        return [place.of(found) for place in self._places]

    def expire(self) -> None:
        """Let go of the gradient."""
        self._gradient = None

    def as_dict(self) -> dict[str, Any]:
        """The fields by name, as Python numbers."""
        names = ("step", "loss", "examples", "weight", *STATISTICS, "applied", "workers", "seconds")
        fields = {name: getattr(self, name) for name in names}
        groups = {name: group._asdict() for name, group in self.groups.items()}
        updates = {} if self.updates is None else {"updates": self.updates._asdict()}
        return {**fields, "groups": groups, **self.told.as_dict(), **updates}

    def as_json(self) -> str:
        """One JSON object on one line; NaN and infinity, which JSON lacks, are null."""
        return json.dumps(_null_nonfinite(self.as_dict()))

    def as_text(self) -> str:
        """The line, and one more line a group."""
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
    """Say where a non-finite gradient comes from."""
    ranks = ", ".join(map(str, report.nonfinite_ranks))
    source = f"from rank {ranks}" if ranks else "by overflow in the sum"
    return f"{report.nonfinite} non-finite gradient entries {source}"


def _statistics(entries: np.ndarray) -> tuple[float, float, float, int]:
    wide = entries.astype(np.float64)
    largest = float(np.abs(wide).max(initial=0.0))
    return float(wide.sum()), float(np.sqrt(np.square(wide).sum())), largest, int((~np.isfinite(wide)).sum())


def _null_nonfinite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _null_nonfinite(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_null_nonfinite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
