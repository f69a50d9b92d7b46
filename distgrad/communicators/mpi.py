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

import tensorflow as tf

from distgrad.accumulate import Totals
from distgrad.communicators import Communicator, DividedSum, Vector, pieces_of
from distgrad.errors import EngineMissing
from distgrad.layout import Layout
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

from distgrad.communicators.window import InWindow, Placed, Window


class Mpi(Communicator):
    """The ranks of MPI's world, on a duplicate of its communicator so that no message meets the user's own.

    Attributes:
        window: what this host's ranks share.
    """

    backend = "mpi"

    def __init__(self, world: MPI.Intracomm) -> None:
        host = _host_of(world)
        super().__init__(world.rank, world.size, host.rank, host.size)
        self._before_end = _unname_segment(host)
        atexit.register(self._before_end)
        self._comm, self._host = world.Dup(), host
        self.window = Window(self._comm, host, self._fail)

    def totals(self, layout: Layout, riders: int) -> Totals:
        # Gradients on a GPU are added up there: each would have to come down from it for every micro-batch.
        if tf.config.list_logical_devices("GPU"):
            return super().totals(layout, riders)
        return InWindow(self.window, layout, riders)

    def all_sum(self, pieces: Sequence[tf.Tensor], borrow: bool = False) -> tf.Tensor:
        return self._sum(list(pieces), borrow)[0]

    def sum_over_workers(self, fn: Callable[..., Any], args: Sequence[Any], borrow: bool = False) -> tf.Tensor:
        return self._sum(fn(*args), borrow)[0]

    def sum_and_divide(
        self, fn: Callable[..., Any], args: Sequence[Any], divided: int, divisor: tf.Tensor, describe: bool = True
    ) -> DividedSum:
        described = divided if describe else 0
        flat, divisor, moments, nonfinite = self._sum(fn(*args), True, divisor, divided=divided, described=described)
        return DividedSum(flat[:divided], flat[divided:], divisor[0], moments, nonfinite)

    def _sum(
        self, vector: Placed | Vector, borrow: bool, divisor: Any = (1.0,), divided: int = 0, described: int = 0
    ) -> Sequence[tf.Tensor]:
        placed, filled, rest = vector if isinstance(vector, Placed) else (0, True, vector)
        pieces = pieces_of(rest)
        entries = {"placed": placed, "divided": divided, "described": described}
        outputs = self.window.run("sum", filled, divisor, pieces, **entries, borrow=int(borrow))
        for output, size in zip(outputs, (_size(placed, pieces), 1, 4, self.size), strict=True):
            output.set_shape([size])
        return cast(Sequence[tf.Tensor], outputs)

    def _fail(self, error: Exception) -> None:
        self.failure = error

    def close(self) -> None:
        if self._comm:
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


def _size(placed: int, pieces: Sequence[tf.Tensor]) -> int | None:
    sizes = [piece.shape[0] for piece in pieces]
    return None if None in sizes else placed + sum(sizes)


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
