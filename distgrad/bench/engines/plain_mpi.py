"""The limit, memcpy, and MPI's own Allreduce on NumPy arrays. No TensorFlow in these processes."""

from collections.abc import Callable

import numpy as np
from mpi4py import MPI

from distgrad.bench.data import check, own_part
from distgrad.bench.worker import Prepared, Turn


class PlainMpi:
    """The ranks of MPI's world."""

    def __init__(self) -> None:
        self._comm = MPI.COMM_WORLD
        self.rank, self.size = self._comm.rank, self._comm.size

    def barrier(self) -> None:
        self._comm.Barrier()

    def clear(self) -> None:
        """Nothing outlives its turn."""

    def prepare(self, table: str, turn: str, case: str) -> Prepared:
        make: Callable[[np.ndarray], Turn] = {
            "Allreduce": self._allreduce,
            "Allreduce in place": self._allreduce_in_place,
            "memcpy": self._memcpy,
            "limit": self._limit,
        }[turn]
        return Prepared(make(own_part(case, self.rank)))

    def _allreduce(self, part: np.ndarray) -> Turn:
        total = np.zeros_like(part)

        def turn() -> None:
            self._comm.Allreduce(part, total, op=MPI.SUM)

        turn()
        check(total, self.size)
        return turn

    def _allreduce_in_place(self, part: np.ndarray) -> Turn:
        def turn() -> None:
            self._comm.Allreduce(MPI.IN_PLACE, part, op=MPI.SUM)

        turn()
        check(part, self.size)
        part[:] = 0  # else it grows from turn to turn, to infinity
        return turn

    def _memcpy(self, part: np.ndarray) -> Turn:
        target = np.zeros_like(part)
        return lambda: np.copyto(target, part)

    def _limit(self, part: np.ndarray) -> Turn:
        """Read n vectors and write one, each rank its shard: all that a sum over shared memory cannot do without."""
        shards = [part[: part.size // self.size] + rank for rank in range(self.size)]
        total = np.zeros_like(shards[0])

        def turn() -> None:
            np.add(shards[0], shards[-1], out=total)
            for shard in shards[2:]:
                np.add(total, shard, out=total)

        return turn


join = PlainMpi
