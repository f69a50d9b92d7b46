"""MPI through mpi4py, under mpirun: one worker a process.

TensorFlow must be loaded before MPI: both contain the hwloc library, and where MPI comes first Open MPI's wheel
finds the other's half of it when it finalises, and crashes.
"""

import os
import sys
from pathlib import Path

import numpy as np
import tensorflow as tf

from distgrad.communicators import Communicator
from distgrad.errors import EngineMissing
from distgrad.world import World

# A process that no mpirun started needs to be told where a wheel's Open MPI lives; mpirun tells its own.
if Path(sys.prefix, "bin", "orted").exists():
    os.environ.setdefault("OPAL_PREFIX", sys.prefix)
try:
    from mpi4py import MPI
except (ImportError, RuntimeError) as failure:
    reason = " ".join(str(failure).split())
    raise EngineMissing(
        f"mpi4py does not load ({reason})",
        "pip install 'distgrad[mpi]' installs mpi4py and an MPI for it",
        everywhere=True,
    ) from None


class Mpi(Communicator):
    """The ranks of MPI's world, on a duplicate of its communicator so that no message meets the user's own."""

    backend = "mpi"

    def __init__(self, world: MPI.Intracomm) -> None:
        host = world.Split_type(MPI.COMM_TYPE_SHARED)
        super().__init__(world.rank, world.size, host.rank, host.size)
        host.Free()
        self._comm = world.Dup()

    def all_sum(self, flat: tf.Tensor) -> tf.Tensor:
        total = tf.numpy_function(self._all_reduce, [flat], flat.dtype, name="distgrad_mpi_all_sum")
        return tf.ensure_shape(total, flat.shape)

    def _all_reduce(self, flat: np.ndarray) -> np.ndarray:
        total = np.empty_like(flat)
        self._comm.Allreduce(flat, total, op=MPI.SUM)
        return total

    def close(self) -> None:
        if self._comm:
            self._comm.Free()

    def leave(self, status: int, together: bool) -> None:
        if not together:
            # The others may be waiting in a sum that this rank will never reach.
            MPI.COMM_WORLD.Abort(status)
        MPI.Finalize()  # waits for the others, who are on their way here
        os._exit(status)


def connect(world: World, timeout: float) -> Mpi:
    """Join MPI's world, which mpirun formed before any of its processes ran."""
    return Mpi(MPI.COMM_WORLD)
