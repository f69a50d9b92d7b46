"""distgrad over MPI, and the same steps without communication."""

from typing import Any

import numpy as np
import tensorflow as tf

import distgrad
from distgrad.bench.cases import LOGGED
from distgrad.bench.data import check, own_part
from distgrad.bench.engines import by_hand, keras_fit, own
from distgrad.bench.worker import Prepared
from distgrad.collectives.mpi import Mpi
from distgrad.collectives.vectors import DividedSum
from distgrad.step.distributed_step import DistributedStep
from distgrad.step.graph import StepGraph
from distgrad.step.plan import Plan

# Everything is told; of each turn's steps one in so many is printed, and compared with the weights.
TELLING_ALL: dict[str, Any] = {"statistics": "all", "log_every": LOGGED}
# Weights are compared never, or in every step instead of every hundredth. The watchdog's thread runs in all of them.
UNGUARDED: dict[str, Any] = {"check_every": 0, "max_skipped": None}
CACHED = 1 << 17  # entries of float32 that stay in a core's own cache while other vectors are added to them
OPTIONS = {
    "step with all statistics": TELLING_ALL,
    "step without guards": UNGUARDED,
    "step compared": {"check_every": 1},
}


class _Undescribed(StepGraph):
    def _sum_over_workers(self, *batch: Any) -> DividedSum:
        return self.comm.sum_and_divide(self._local_sums, batch, self._undivided(), self._divisor(), describe=False)


class WithoutStatistics(DistributedStep):
    """A step that describes nothing, to tell what describing costs. It takes every gradient for finite."""

    _kind = _Undescribed


class Densified(DistributedStep):
    """A step that sums whole tables, whatever of them was touched."""

    def _may_be_tables(self, plan: Plan) -> list[int]:
        return []


KINDS = {"step without statistics": WithoutStatistics, "step densified": Densified}


class KerasMpi(own.Worker):
    """The workers of one MPI job."""

    def __init__(self) -> None:
        super().__init__(distgrad.connect("mpi"))
        self._alone = distgrad.connect("solo")

    def prepare(self, table: str, turn: str, case: str) -> Prepared:
        turn = turn.removesuffix(" again")
        if table == "sum":
            alone = {"core": self._core_sum, "limit": self._limit}
            return alone[turn](case) if turn in alone else self._sum(case, turn)
        return {"step": self._step, "stats": self._step, "accumulate": self._accumulate}[table](turn, case)

    def _sum(self, case: str, turn: str) -> Prepared:
        return own.graph_sum(self._comm, case.split(" in ", maxsplit=1)[0] if turn == "one tensor" else case)

    def _core_sum(self, case: str) -> Prepared:
        """Buffer in, buffer out, by one operation outside any graph: the vector is in this rank's slot already."""
        assert isinstance(self._comm, Mpi)
        vector = own_part(case, self.rank)
        window, size = self._comm.window, vector.size
        window.reserve(size, tf.float32)
        window.run("add", True, True, [vector], starts=[0], stops=[size], describes=0)
        # Made before, as what they cost is not the sum's: all is in the slot, nothing is divided or described.
        inputs = tf.constant(True), tf.ones(1, tf.float64), [tf.zeros(0)]
        options: dict[str, Any] = {"placed": size, "divided": 0, "described": 0, "borrow": 1}
        without: dict[str, Any] = {"starts": [], "stops": [], "sparse": [], "K": 0}

        def turn() -> tf.Tensor:
            return window.run("sum", *inputs, **options, **without).flat

        check(turn().numpy(), self.size)
        return Prepared(turn)

    def _limit(self, case: str) -> Prepared:
        """Read n vectors and write one, each rank its shard: all that a sum over shared memory cannot do without.

        Each rank does so in memory of its own, and waits for nobody. It writes where it has read, which spares memory
        the reading of what is about to be overwritten. So its sum grows from turn to turn.
        """
        vector = own_part(case, self.rank)
        total, *others = np.resize(vector, (self.size, vector.size // self.size))
        expected = total + sum(others)

        def turn() -> None:
            for start in range(0, total.size, CACHED):
                block = total[start : start + CACHED]
                for other in others:
                    block += other[start : start + CACHED]

        turn()
        np.testing.assert_array_equal(total, expected)
        return Prepared(turn)

    def _step(self, turn: str, case: str) -> Prepared:
        if turn == "step alone":
            return own.step(self._alone, case, self.rank)
        if turn == "by hand":
            return by_hand.prepare(case, self.rank, 1, lambda sums: sums)
        if turn == "oracle":
            return by_hand.oracle(case, self.size)
        if " fits of " in turn:
            return self._fit(turn, case)
        kind = KINDS.get(turn, DistributedStep)
        return own.step(self._comm, case, self.rank, kind=kind, **OPTIONS.get(turn, {}))

    def _fit(self, turn: str, case: str) -> Prepared:
        who, steps = turn.split(" fits of ")
        return {
            "workers": lambda: keras_fit.over_workers(self._comm, case, int(steps)),
            "one": lambda: keras_fit.alone(self._alone, case, self.rank, int(steps)),
            "Keras": lambda: keras_fit.plain(case, self.rank, int(steps)),
        }[who]()

    def _accumulate(self, turn: str, case: str) -> Prepared:
        count, what = turn.split(" ", 1)
        if what == "micro-batches":
            return own.step(self._comm, case, self.rank, int(count))
        return by_hand.bare(case, self.rank, int(count))


join = KerasMpi
