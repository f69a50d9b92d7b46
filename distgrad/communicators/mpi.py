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
from typing import cast

import tensorflow as tf

from distgrad.accumulate import Totals
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

from distgrad.communicators.shared_window import SharedWindow
from distgrad.communicators.window import InWindow, Windowed


class Mpi(Windowed):
    """The ranks of MPI's world, on a duplicate of its communicator so that no message meets the user's own."""

    backend = "mpi"

    def __init__(self, world: MPI.Intracomm) -> None:
        host = _host_of(world)
        super().__init__(world.rank, world.size, host.rank, host.size)
        self._before_end = _unname_segment(host)
        atexit.register(self._before_end)
        self._comm, self._host = world.Dup(), host
        self.window = SharedWindow(self._comm, host, self._fail)

    def totals(self, layout: Layout, riders: int, describes: bool = False, candidates: Sequence[int] = ()) -> Totals:
        # Gradients on a GPU are added up there: each would have to come down from it for every micro-batch.
        if tf.config.list_logical_devices("GPU"):
            return super().totals(layout, riders, describes)
        return InWindow(self.window, layout, riders, describes, candidates=candidates, exchange=self.exchange)

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
