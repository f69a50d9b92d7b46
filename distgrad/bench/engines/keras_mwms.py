"""MultiWorkerMirroredStrategy, and distgrad over it. The ring, with as much packed together as helps."""

import tensorflow as tf

import distgrad
from distgrad.bench import models
from distgrad.bench.data import MICRO_BATCH, MICRO_BATCHES, check
from distgrad.bench.engines import by_hand, distgrad_turns
from distgrad.bench.worker import Prepared

OPTIONS = tf.distribute.experimental.CommunicationOptions(
    bytes_per_pack=32 * 1024 * 1024, implementation=tf.distribute.experimental.CommunicationImplementation.RING
)


class KerasMwms(distgrad_turns.CommunicatorRank):
    """The workers that TF_CONFIG names."""

    def __init__(self) -> None:
        super().__init__(distgrad.connect("tf"))
        with self._comm.scope():
            self._strategy = tf.distribute.get_strategy()

    def clear(self) -> None:
        distgrad_turns.tensors_of_rank.cache_clear()  # to clear Keras's session would drop the strategy's variables

    def prepare(self, table: str, turn: str, case: str) -> Prepared:
        if turn == "step":
            return distgrad_turns.step(self._comm, case, self.rank)
        return self._sum(turn, case) if table == "sum" else self._step(turn, case)

    def _sum(self, turn: str, case: str) -> Prepared:
        tensors = distgrad_turns.tensors_of_rank(case, self.rank)

        def reduce_all() -> list[tf.Tensor]:
            return self._strategy.run(lambda: _reduce(turn, tensors))

        compiled = tf.function(reduce_all, autograph=False)
        check(tf.concat(compiled(), 0).numpy(), self.size)
        return Prepared(compiled)

    def _step(self, turn: str, case: str) -> Prepared:
        with self._strategy.scope():
            model = models.build(case)
            optimizer = by_hand.optimizer_of(case, model)
        x, y = by_hand.batch(case, self.rank)
        global_batch = float(self.size * MICRO_BATCH * MICRO_BATCHES)

        def step() -> None:
            sums = self._strategy.run(lambda: _reduce(turn, by_hand.local_sums(model, x, y)))
            optimizer.apply([total / global_batch for total in sums], model.trainable_variables)

        compiled = tf.function(step, autograph=False)
        return Prepared(compiled, by_hand.evidence(model, compiled))


def _reduce(turn: str, tensors: list[tf.Tensor]) -> list[tf.Tensor]:
    """Reduce the tensors joined as one vector, or as a list, which TensorFlow packs itself."""
    context = tf.distribute.get_replica_context()

    def reduce(value: tf.Tensor | list[tf.Tensor]) -> tf.Tensor | list[tf.Tensor]:
        return context.all_reduce(tf.distribute.ReduceOp.SUM, value, options=OPTIONS)

    return by_hand.flattened(reduce)(tensors) if turn == "flat" else reduce(tensors)


join = KerasMwms
