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
        # Horovod takes one operation of a name at a time, and workers must share the name: so one after the other,
        # which TensorFlow sees to by a variable that each sum reads before and writes afterwards.
        # TensorFlow takes it for arithmetic, too, and would sum a constant once and for all.
        vector = joined(pieces)
        vector = tf.raw_ops.PlaceholderWithDefault(input=vector, shape=vector.shape)
        with tf.control_dependencies([self._sums.read_value(), vector]), self.liveness.mark_sum(begins=True):
            # Its default would average.
            total = hvd.allreduce(vector, op=hvd.Sum, name="distgrad_all_sum")
        with tf.control_dependencies([total]), self.liveness.mark_sum(begins=False):
            self._sums.assign_add(1)
        return total

    @functools.cached_property
    def _sums(self) -> tf.Variable:
        """How many sums there were."""
        with tf.init_scope(), tf.device("CPU"):
            return tf.Variable(0, dtype=tf.int64, trainable=False)

    def close(self) -> None:
        super().close()
        hvd.shutdown()


def connect(world: World, timeout: float) -> Horovod:
    """Initialise Horovod, which finds its peers by its own environment variables."""
    hvd.init()
    return Horovod(hvd.rank(), hvd.size(), hvd.local_rank(), hvd.local_size())
