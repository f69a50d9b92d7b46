"""The table of workers: what each one measured of its own share, known to all of them.

Every worker adds its row to the step's sum, and zeros in place of the others', so that the sum is the whole table. Each
number is float64 and travels as two entries: itself in the vector's dtype, and what that rounded away. Since all others
add zeros to them, neither rounds again.
"""

from collections.abc import Sequence

import numpy as np
import tensorflow as tf

from distgrad import native
from distgrad.native.layout import WorkerRow
from distgrad.objective.extra_sums import ExtraSum, WorkerShare

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
        row = native.operations().distgrad_worker_row(
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
