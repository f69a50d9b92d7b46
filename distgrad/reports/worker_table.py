"""What each worker knows of its own share, and all shall know: a table with a row for each worker.

Every worker brings its row, and zeros in place of the others', so that the step's one sum puts the table together. Each
number is float64 and travels as two entries: itself in the vector's dtype, and what that rounded away. Since all others
add zeros to them, neither rounds again.
"""

import numpy as np
import tensorflow as tf

from distgrad import native
from distgrad.gradients.accumulate import Accumulated
from distgrad.native.layout import WorkerRow


def entries(workers: int) -> int:
    """How many entries the table takes up in the vector."""
    return 2 * workers * len(WorkerRow._fields)


def flat(sums: Accumulated, began: tf.Tensor, worker: tf.Tensor, workers: int, dtype: tf.DType) -> tf.Tensor:
    """(entries,) the table with this worker's row alone, in the vector's dtype, once its share is done.

    Args:
        began: () float64 seconds, when that was begun.
    """
    made = native.operations().distgrad_worker_row(sums.noted, sums.weight, began, worker, workers=workers, T=dtype)
    return tf.ensure_shape(made, [entries(workers)])


def table(summed: np.ndarray) -> np.ndarray:
    """(workers, columns) float64 from the summed entries."""
    high, low = np.split(summed.reshape(-1, 2 * len(WorkerRow._fields)), 2, axis=1)
    return high + low
