"""What is asked for, inside the graph. What nobody asked for adds nothing to it."""

from collections.abc import Iterable
from typing import Any

import tensorflow as tf

from distgrad.collectives.communicator import Communicator
from distgrad.collectives.moments import SQUARES
from distgrad.collectives.vectors import DividedSum
from distgrad.errors import BadArgument
from distgrad.gradients.accumulate import Accumulated
from distgrad.reports import worker_table
from distgrad.reports.statistics import NAMES, Contents


def chosen(names: str | Iterable[str]) -> frozenset[str]:
    """What `statistics=` asks for.

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


class Watch:
    """A step's statistics beyond those of the whole gradient; see `told` for what becomes of them."""

    def __init__(self, comm: Communicator, contents: Contents) -> None:
        self._comm = comm
        self._contents = contents
        self.describes = contents.by_worker  # whether micro-batches and this worker's sums are
        self.by_variable = contents.by_variable  # whether the sum is described piece by piece
        self.entries = worker_table.entries(comm.size) if contents.by_worker else 0  # of the vector, behind the riders'

    def begin(self, batch: Any) -> tuple[tf.Tensor, Any]:
        """When a part of the step begins, () float64 seconds; and its input, which is not there before."""
        if not self.describes:
            return tf.zeros((), tf.float64), batch
        began = tf.timestamp()
        with tf.control_dependencies([began]):
            return began, tf.nest.map_structure(tf.identity, batch, expand_composites=True)

    def brought(self, sums: Accumulated, began: tf.Tensor, dtype: tf.DType) -> Accumulated:
        """This worker's sums, with its row of the table behind what rides along."""
        if not self.describes:
            return sums
        row = worker_table.flat(sums, began, self._comm.worker(), self._comm.size, dtype)
        return sums._replace(riders=tf.concat([sums.riders, row], 0))

    def told(self, total: DividedSum, by_variable: tf.Tensor, began: tf.Tensor, scale: tf.Tensor) -> tf.Tensor:
        """All that `Told` reads: (v, 5) the statistics of each variable, and the entries of the table."""
        found = tf.reshape(by_variable, [-1])
        if not self.describes:
            return found
        with tf.control_dependencies(total.blocks):
            seconds = tf.timestamp() - began
        head = [scale, total.moments[SQUARES], seconds]
        return tf.concat([head, found, tf.cast(total.undivided[-self.entries :], tf.float64)], 0)
