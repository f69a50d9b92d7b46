"""Horovod's operations, and distgrad over Horovod."""

import horovod.tensorflow as hvd
import tensorflow as tf

import distgrad
from distgrad.bench.data import check
from distgrad.bench.engines import by_hand, distgrad_turns
from distgrad.bench.engines.by_hand import Reduce
from distgrad.bench.worker import Prepared


class KerasHorovod(distgrad_turns.CommunicatorRank):
    """The workers of one Horovod job, over MPI or over Gloo."""

    def __init__(self) -> None:
        super().__init__(distgrad.connect("horovod"))

    def prepare(self, table: str, turn: str, case: str) -> Prepared:
        if turn in ("graph", "step"):
            return (
                distgrad_turns.graph_sum(self._comm, case)
                if turn == "graph"
                else distgrad_turns.step(self._comm, case, self.rank)
            )
        prefix = f"{table}_{case}_{turn}".replace(" ", "_")
        reduce: Reduce = {
            "flat": by_hand.flattened(lambda flat: _allreduce(flat, prefix)),
            "per tensor": lambda tensors: [_allreduce(t, f"{prefix}_{i}") for i, t in enumerate(tensors)],
            "grouped": lambda tensors: hvd.grouped_allreduce(tensors, op=hvd.Sum, name=prefix),
        }[turn]
        return self._sum(case, reduce) if table == "sum" else by_hand.prepare(case, self.rank, self.size, reduce)

    def _sum(self, case: str, reduce: Reduce) -> Prepared:
        tensors = distgrad_turns.tensors_of_rank(case, self.rank)

        def turn() -> list[tf.Tensor]:
            return reduce(tensors) if len(tensors) > 1 else [_allreduce(tensors[0], f"sum_{case}".replace(" ", "_"))]

        compiled = tf.function(turn, autograph=False)
        check(tf.concat(compiled(), 0).numpy(), self.size)
        return Prepared(compiled)


def _allreduce(tensor: tf.Tensor, name: str) -> tf.Tensor:
    return hvd.allreduce(tensor, op=hvd.Sum, name=name)


join = KerasHorovod
