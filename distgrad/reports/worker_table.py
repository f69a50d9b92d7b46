"""The table of workers: what each one measured of its own share, known to all of them.

Every worker adds its row to the step's sum, and zeros in place of the others', so that the sum is the whole table. Each
number is float64 and travels as two entries: itself in the vector's dtype, and what that rounded away. Since all others
add zeros to them, neither rounds again.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from distgrad import native
from distgrad.objective.extra_sums import ExtraSum, WorkerShare


class WorkerRow(NamedTuple):
    """One worker's row; each number is float64. The compiled core makes it, in this order.

    Attributes:
        gradient_sum, gradient_norm: of the gradient of its share alone, Σ w·∇loss over its examples, scaled by the loss
            scale and not divided.
        between: sqrt(Σ_micro-batches |gradient|²/N), see noise.py; scaled and not divided, too.
        micro_batches: how many of them had an N.
        weight: N of its share.
        seconds: that it computed, from the beginning of its share to where it was ready to meet the others.
    """

    gradient_sum: float
    gradient_norm: float
    between: float
    micro_batches: float
    weight: float
    seconds: float


COLUMNS = len(WorkerRow._fields)


class WorkerTable(ExtraSum):
    """The table as an extra sum.

    Args:
        workers: how many there are.
        dtype: of the flat vector.
    """

    once_per_worker = True

    def __init__(self, workers: int, dtype: tf.DType) -> None:
        self._workers, self._dtype = workers, dtype

    def shapes(self) -> list[tf.TensorShape]:
        """Return (workers, 2·COLUMNS)."""
        return [tf.TensorShape(shape_of(self._workers))]

    def of_worker(self, share: WorkerShare) -> list[tf.Tensor]:
        """Return the table with this worker's row alone."""
        sums = share.sums
        row = native.operations().distgrad_own(
            sums.notes, sums.weight, share.began, share.worker, workers=self._workers, T=self._dtype
        )
        return [tf.reshape(row, shape_of(self._workers))]


def shape_of(workers: int) -> tuple[int, int]:
    """Return the shape in which the table travels."""
    return workers, 2 * COLUMNS


def rows_of(summed: np.ndarray) -> list[WorkerRow]:
    """Return the rows by worker, from the summed table (workers, 2·COLUMNS)."""
    high, low = np.split(summed, 2, axis=1)
    return [WorkerRow(*map(float, row)) for row in high + low]


def column(rows: Sequence[WorkerRow], name: str) -> np.ndarray:
    """Return (workers,) one column of the table."""
    return np.array([getattr(row, name) for row in rows])
