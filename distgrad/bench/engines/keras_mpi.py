"""distgrad over MPI, and the same steps without communication."""

import contextlib
from collections.abc import Callable
from typing import Any
from unittest import mock

import numpy as np
import tensorflow as tf

import distgrad
from distgrad.bench.cases import LOGGED_EVERY
from distgrad.bench.data import check, vector_of_rank
from distgrad.bench.engines import by_hand, distgrad_turns, keras_fit
from distgrad.bench.worker import Prepared
from distgrad.collectives.mpi import Mpi
from distgrad.collectives.vectors import Division
from distgrad.step import plan
from distgrad.step.training_graph import TrainingGraph

CACHED = 1 << 17  # entries of float32 that stay in a core's own cache while other vectors are added to them
# Options of the step, by turn. The watchdog's thread runs in all of them.
OPTIONS: dict[str, dict[str, Any]] = {
    "step with all statistics": {"statistics": "all", "log_every": LOGGED_EVERY},
    "step without guards": {"check_every": 0, "max_skipped": None},
    "step sharded": {"shard_update": True},
    "step compared": {"check_every": 1},  # weights are compared in every step instead of every hundredth
}


_division = TrainingGraph._division


def _without_statistics(graph: TrainingGraph) -> Division:
    return _division(graph)._replace(describe=False, ranges=())


# Steps that the package does not offer, to tell what a part of a step costs: one describes nothing, and takes every
# gradient for finite; one sums whole tables, whatever of them was touched.
ALTERED: dict[str, Callable[[], contextlib.AbstractContextManager[Any]]] = {
    "step without statistics": lambda: mock.patch.object(TrainingGraph, "_division", _without_statistics),
    "step densified": lambda: mock.patch.object(plan, "window_on_cpu", return_value=None),
}


class KerasMpi(distgrad_turns.CommunicatorRank):
    """The workers of one MPI job."""

    def __init__(self) -> None:
        super().__init__(distgrad.connect("mpi"))
        self._alone = distgrad.connect("solo")

    def prepare(self, table: str, turn: str, case: str) -> Prepared:
        turn = turn.removesuffix(" again")
        if table == "sum":
            without_graph = {"core": self._core_sum, "limit": self._limit}
            return without_graph[turn](case) if turn in without_graph else self._sum(case, turn)
        if table == "cores":
            return keras_fit.on_arrays(case, turn, lambda model: distgrad.distribute(model, self._comm))
        return {"step": self._step, "stats": self._step, "accumulate": self._accumulate}[table](turn, case)

    def _sum(self, case: str, turn: str) -> Prepared:
        return distgrad_turns.graph_sum(self._comm, case.split(" in ", maxsplit=1)[0] if turn == "one tensor" else case)

    def _core_sum(self, case: str) -> Prepared:
        """Buffer in, buffer out, by one operation outside any graph: the vector is in this rank's slot already."""
        assert isinstance(self._comm, Mpi)
        vector = vector_of_rank(case, self.rank)
        window, size = self._comm.window, vector.size
        window.reserve(size, tf.float32)
        place = {"variables": ["vector"], "starts": [0], "stops": [size], "sizes": [size]}
        window.run("add", True, True, [vector], **place, describes=0)
        # Made before, as what they cost is not the sum's: all is in the slot, nothing is divided or described.
        inputs = tf.constant(True), tf.ones(1, tf.float64), [tf.zeros(0)]
        options: dict[str, Any] = {"placed": size, "divided": 0, "described": 0, "borrow": 1}
        without: dict[str, Any] = {"compression": 0, "starts": [], "stops": [], "sparse": [], "K": 0}

        def turn() -> tf.Tensor:
            return window.run("sum", *inputs, **options, **without).flat

        check(turn().numpy(), self.size)
        return Prepared(turn)

    def _limit(self, case: str) -> Prepared:
        """Read n vectors and write one, each rank its shard: all that a sum over shared memory cannot do without.

        Each rank does so in memory of its own, and waits for nobody. It writes where it has read, which spares memory
        the reading of what is about to be overwritten. So its sum grows from turn to turn.
        """
        vector = vector_of_rank(case, self.rank)
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
            return distgrad_turns.step(self._alone, case, self.rank)
        if turn == "by hand":
            return by_hand.prepare(case, self.rank, 1, lambda sums: sums)
        if turn == "oracle":
            return by_hand.oracle(case, self.size)
        if " fits of " in turn:
            return self._fit(turn, case)
        with ALTERED.get(turn, contextlib.nullcontext)():  # while its first step is traced
            return distgrad_turns.step(self._comm, case, self.rank, **OPTIONS.get(turn, {}))

    def _fit(self, turn: str, case: str) -> Prepared:
        fit, steps = turn.split(" fits of ")
        return {
            "workers": lambda: keras_fit.over_workers(self._comm, case, int(steps)),
            "one": lambda: keras_fit.alone(self._alone, case, self.rank, int(steps)),
            "Keras": lambda: keras_fit.plain(case, self.rank, int(steps)),
        }[fit]()

    def _accumulate(self, turn: str, case: str) -> Prepared:
        count, what = turn.split(" ", 1)
        if what == "micro-batches":
            return distgrad_turns.step(self._comm, case, self.rank, int(count))
        return by_hand.bare(case, self.rank, int(count))


join = KerasMpi
