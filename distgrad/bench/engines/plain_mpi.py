"""memcpy, and MPI's own Allreduce on NumPy arrays. No TensorFlow in these processes."""

from collections.abc import Callable

import numpy as np
from mpi4py import MPI

from distgrad.bench.data import check, vector_of_rank
from distgrad.bench.worker import Prepared, Turn


class PlainMpi:
    """The ranks of MPI's world."""

    def __init__(self) -> None:
        self._comm = MPI.COMM_WORLD
        self.rank, self.size = self._comm.rank, self._comm.size
        # By case, a vector to read and one to write, the same for all turns: all contestants are in memory at once.
        self._vectors: dict[str, tuple[np.ndarray, np.ndarray]] = {}

    def barrier(self) -> None:
        self._comm.Barrier()

    def clear(self) -> None:
        self._vectors.clear()

    def prepare(self, table: str, turn: str, case: str) -> Prepared:
        if case not in self._vectors:
            vector = vector_of_rank(case, self.rank)
            self._vectors[case] = vector, np.zeros_like(vector)
        make: Callable[[np.ndarray, np.ndarray], Turn] = {
            "Allreduce": self._allreduce,
            "Allreduce in place": self._allreduce_in_place,
            "memcpy": lambda vector, total: lambda: np.copyto(total, vector),
        }[turn]
        return Prepared(make(*self._vectors[case]))

    def _allreduce(self, vector: np.ndarray, total: np.ndarray) -> Turn:
        def turn() -> None:
            self._comm.Allreduce(vector, total, op=MPI.SUM)

        turn()
        check(total, self.size)
        return turn

    def _allreduce_in_place(self, vector: np.ndarray, total: np.ndarray) -> Turn:
        in_place = vector.copy()

        def turn() -> None:
            self._comm.Allreduce(MPI.IN_PLACE, in_place, op=MPI.SUM)

        turn()
        check(in_place, self.size)
        in_place[:] = 0  # else it grows from turn to turn, to infinity
        return turn


join = PlainMpi
