"""tf.distribute: MultiWorkerMirroredStrategy when TF_CONFIG is set, else MirroredStrategy over the local devices.

A strategy's replicas are the workers. The optimizer is applied outside `strategy.run`, in cross-replica context,
to the gradient that the one reduction gave: there Keras neither reduces a second time nor clips too early.
"""

import contextlib
from collections.abc import Callable, Sequence
from typing import Any

import tensorflow as tf

from distgrad.collectives.communicator import Communicator
from distgrad.collectives.vectors import Vector, joined, pieces_of
from distgrad.data.sharding import rows_of_workers
from distgrad.errors import DistgradError, EngineMissing
from distgrad.launching.world import SINGLE_PROCESS, World
from distgrad.liveness.engine_hooks import EngineHooks


class Strategy(Communicator):
    """The replicas of one strategy; a process with several local devices runs several workers."""

    backend = "tf"

    def __init__(self, strategy: tf.distribute.Strategy, world: World) -> None:
        size = strategy.num_replicas_in_sync
        self.span = max(1, size // world.size)
        super().__init__(world.rank * self.span, size, world.local_rank * self.span, world.local_size * self.span)
        self._strategy = strategy

    def scope(self) -> contextlib.AbstractContextManager[Any]:
        return self._strategy.scope()

    def _engine_hooks(self) -> EngineHooks:
        return EngineHooks(self.exchange, self._leave_together, introduces_at_start=True)

    def _leave_together(self) -> None:
        with contextlib.suppress(tf.errors.OpError, DistgradError):  # another worker has ended already
            self.barrier()

    def sum_over_workers(self, fn: Callable[..., Vector], args: Sequence[Any], borrow: bool = False) -> tf.Tensor:
        def on_replica(*args: Any) -> tf.Tensor:
            replica = self.worker() - self.rank
            share = tf.nest.map_structure(lambda tensor: rows_of_workers(tensor, replica, replica + 1, self.span), args)
            vector = joined(pieces_of(fn(*share)))
            with tf.control_dependencies([vector]), self.liveness.mark_sum(begins=True):
                return tf.identity(vector)

        vectors = self._strategy.run(on_replica, args=tuple(args))
        total = self._strategy.reduce(tf.distribute.ReduceOp.SUM, vectors, axis=None)
        with tf.control_dependencies([total]), self.liveness.mark_sum(begins=False):
            return tf.identity(total)

    def sum_within(self, vector: tf.Tensor) -> tf.Tensor:
        return tf.distribute.get_replica_context().all_reduce(tf.distribute.ReduceOp.SUM, vector)

    def worker(self) -> tf.Tensor:
        context = tf.distribute.get_replica_context()
        return tf.convert_to_tensor(context.replica_id_in_sync_group, tf.int32)


def connect(world: World, timeout: float) -> Strategy:
    """Start the strategy; with TF_CONFIG this must come before any other TensorFlow operation.

    Raises:
        EngineMissing: TensorFlow was used before, so that its collectives can no longer be set up.
    """
    if world.launcher != "TF_CONFIG":
        devices = tf.config.list_logical_devices("GPU") or tf.config.list_logical_devices("CPU")
        return Strategy(tf.distribute.MirroredStrategy([device.name for device in devices]), SINGLE_PROCESS)
    try:
        return Strategy(tf.distribute.MultiWorkerMirroredStrategy(), world)
    except RuntimeError as error:
        raise EngineMissing(
            f"MultiWorkerMirroredStrategy does not start ({' '.join(str(error).split())})",
            "call distgrad.connect() before any other TensorFlow operation",
            rank=world.rank,
            everywhere=True,
        ) from None
