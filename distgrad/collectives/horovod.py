"""Horovod, under horovodrun (Gloo or MPI) or mpirun: one worker a process.

A step sends one flat vector, which measured as well as groups or single tensors. Horovod's own cycle time of 1 ms is
left alone: HOROVOD_CYCLE_TIME=0.1 makes small models faster and large ones slower (tests/benchmarks.md).
"""

import functools
from collections.abc import Sequence

import tensorflow as tf

from distgrad.collectives.communicator import Communicator
from distgrad.collectives.vectors import joined
from distgrad.errors import EngineMissing
from distgrad.launching.engines import ENGINES
from distgrad.launching.world import World

try:
    import horovod.tensorflow as hvd
except (ImportError, OSError, AttributeError, tf.errors.OpError) as failure:
    reason = " ".join(str(failure).split())
    raise EngineMissing(
        f"Horovod does not load into TensorFlow {tf.__version__} ({reason})",
        ENGINES["horovod"].fix,
        everywhere=True,
    ) from None


class Horovod(Communicator):
    """Horovod's global process set."""

    backend = "horovod"

    def all_sum(self, pieces: Sequence[tf.Tensor], borrow: bool = False) -> tf.Tensor:
        # Horovod takes one operation of a name at a time, and workers must share the name. So sums come one after the
        # other: each reads a variable before, and writes it afterwards.
        vector = joined(pieces)
        # A constant would be summed once and for all, since TensorFlow takes Horovod's sum for arithmetic.
        vector = tf.raw_ops.PlaceholderWithDefault(input=vector, shape=vector.shape)
        with tf.control_dependencies([self._sum_count.read_value(), vector]), self.liveness.mark_sum(begins=True):
            total = hvd.allreduce(vector, op=hvd.Sum, name="distgrad_all_sum")  # the default averages
        with tf.control_dependencies([total]), self.liveness.mark_sum(begins=False):
            self._sum_count.assign_add(1)
        return total

    @functools.cached_property
    def _sum_count(self) -> tf.Variable:
        """Number of sums, as a variable that keeps them in order."""
        with tf.init_scope(), tf.device("CPU"):
            return tf.Variable(0, dtype=tf.int64, trainable=False)

    def _close_engine(self) -> None:
        hvd.shutdown()


def connect(world: World, timeout: float) -> Horovod:
    """Initialise Horovod, which finds its peers by its own environment variables."""
    hvd.init()
    return Horovod(hvd.rank(), hvd.size(), hvd.local_rank(), hvd.local_size())
