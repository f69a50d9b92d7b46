"""MPI through mpi4py, under mpirun: one worker a process.

TensorFlow must be loaded before MPI: both contain the hwloc library, and where MPI comes first Open MPI's wheel
finds the other's half of it when it finalises, and crashes.
"""

import atexit
import os
import platform
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import tensorflow as tf

from distgrad.communicators import Communicator, DescribedSum, Vector, pieces_of
from distgrad.errors import DistgradError, EngineMissing, warn
from distgrad.statistics import Moments, moments_of_chunks
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

from distgrad.communicators.pieces import chunks
from distgrad.communicators.window import NoSharedMemory, Window


class Mpi(Communicator):
    """The ranks of MPI's world, on a duplicate of its communicator so that no message meets the user's own.

    Attributes:
        window: what this host's ranks share; None where they cannot.
    """

    backend = "mpi"

    def __init__(self, world: MPI.Intracomm) -> None:
        host = _host_of(world)
        super().__init__(world.rank, world.size, host.rank, host.size)
        self._before_end = _unname_segment(host)
        atexit.register(self._before_end)
        self._comm, self._host = world.Dup(), host
        self.window: Window | None = None
        try:
            self.window = Window(self._comm, host)
        except NoSharedMemory as error:
            self._warn(error)

    def all_sum(self, pieces: Sequence[tf.Tensor], borrow: bool = False) -> tf.Tensor:
        def add(*arrays: np.ndarray) -> np.ndarray:
            total, _ = self._sum(arrays, 0)
            return total if borrow else total.copy()

        total = tf.numpy_function(add, pieces, pieces[0].dtype, name="distgrad_mpi_all_sum")
        return tf.ensure_shape(total, [_size(pieces)])

    def sum_and_describe(
        self, fn: Callable[..., Vector], args: Sequence[Any], described: int, borrow: bool = False
    ) -> DescribedSum:
        def add(*pieces: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
            total, found = self._sum(pieces, described)
            return total if borrow else total.copy(), np.array(found), self._who_is_not_finite(pieces, found[3] > 0)

        pieces = pieces_of(fn(*args))
        types = [pieces[0].dtype, tf.float64, tf.float32]
        flat, found, votes = tf.numpy_function(add, pieces, types, name="distgrad_mpi_all_sum")
        shapes = (_size(pieces), 4, self.size)
        return DescribedSum(*(tf.ensure_shape(x, [size]) for x, size in zip((flat, found, votes), shapes, strict=True)))

    def _who_is_not_finite(self, pieces: Sequence[np.ndarray], bad: bool) -> np.ndarray:
        """(size,) 1 for whoever brought NaN or infinity. Asked only after a sum that all ranks know to be bad."""
        if not bad:
            return np.zeros(self.size, np.float32)
        own = any(not np.isfinite(piece).all() for piece in pieces)
        return np.array(self._comm.allgather(own), np.float32)

    def _sum(self, pieces: Sequence[np.ndarray], described: int) -> tuple[np.ndarray, Moments]:
        """The sum, borrowed where there is shared memory, and the moments of its first `described` entries."""
        try:
            if self.window is not None:
                return self.window.all_sum(pieces, described)
        except DistgradError as error:
            self.failure = error
            raise
        except NoSharedMemory as error:
            self._warn(error)
            self.window = None
        total = self._sum_by_messages(np.concatenate(pieces))
        return total, moments_of_chunks(chunks(total[:described]))

    def _sum_by_messages(self, flat: np.ndarray) -> np.ndarray:
        total = np.empty_like(flat)
        self._comm.Allreduce(flat, total, op=MPI.SUM)
        return total

    def _warn(self, error: NoSharedMemory) -> None:
        if self.is_root:
            warn(f"sums go by MPI messages, more slowly than through shared memory ({error})")

    def close(self) -> None:
        if self._comm:
            if self.window is not None:
                self.window.close()
            self._host.Free()
            self._comm.Free()

    def leave(self, status: int, together: bool) -> None:
        if not together:
            # The others may be waiting in a sum that this rank will never reach.
            MPI.COMM_WORLD.Abort(status)
        self._comm.Barrier()  # mpirun kills the others when the first one ends, perhaps before it has spoken
        self._before_end()
        MPI.Finalize()
        os._exit(status)


def _size(pieces: Sequence[tf.Tensor]) -> int | None:
    sizes = [piece.shape[0] for piece in pieces]
    return None if None in sizes else sum(sizes)


def _host_of(world: MPI.Intracomm) -> MPI.Intracomm:
    """The ranks that run on this rank's host: under one kernel since its boot, seeing the same processes and network.

    MPI's own split goes by the host's name, and so puts containers into one host that cannot share memory.
    """
    boot = Path("/proc/sys/kernel/random/boot_id")
    kernel = boot.read_text() if boot.exists() else platform.node()
    hosts = world.allgather((kernel, os.readlink("/proc/self/ns/pid"), os.readlink("/proc/self/ns/net")))
    return cast(MPI.Intracomm, world.Split(hosts.index(hosts[world.rank]), world.rank))


def _unname_segment(host: MPI.Intracomm) -> Callable[[], None]:
    """Take away the name of Open MPI's own shared memory, which would stay behind if mpirun were killed.

    That is safe once every rank of the host has opened what the others made, which each does at the first message.

    Returns:
        What to call before MPI ends: it removes the name itself then, and complains if there is none.
    """
    host.alltoall([None] * host.size)
    own = re.compile(rf"/dev/shm/vader_segment\.\S+\.{os.environ.get('OMPI_COMM_WORLD_LOCAL_RANK')}$", re.MULTILINE)
    names = [Path(name) for name in own.findall(Path("/proc/self/maps").read_text())]

    def name_again() -> None:
        for name in names:
            name.touch()

    for name in names:
        name.unlink()
    return name_again


def connect(world: World, timeout: float) -> Mpi:
    """Join MPI's world, which mpirun formed before any of its processes ran."""
    return Mpi(MPI.COMM_WORLD)
