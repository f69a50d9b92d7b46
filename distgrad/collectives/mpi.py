"""MPI through mpi4py, under mpirun: one worker a process.

TensorFlow must be loaded before MPI: both contain the hwloc library, and where MPI comes first Open MPI's wheel
finds the other's half of it when it finalises, and crashes.
"""

import os
import sys
from pathlib import Path
from typing import cast

from distgrad.errors import EngineMissing
from distgrad.launching.engines import ENGINES
from distgrad.launching.world import World
from distgrad.liveness.engine_hooks import EngineHooks
from distgrad.liveness.processes import host_id

# A process that no mpirun started needs to be told where a wheel's Open MPI lives; mpirun tells its own.
if Path(sys.prefix, "bin", "orted").exists():
    os.environ.setdefault("OPAL_PREFIX", sys.prefix)
try:
    import mpi4py

    # distgrad finalises MPI itself, when the exit status is known, unless mpi4py was loaded before and would do it.
    FINALIZES_LATE = "mpi4py.MPI" not in sys.modules
    mpi4py.rc.finalize = False
    from mpi4py import MPI
except (ImportError, RuntimeError) as failure:
    reason = " ".join(str(failure).split())
    raise EngineMissing(
        f"mpi4py does not load ({reason})",
        ENGINES["mpi"].fix,
        everywhere=True,
    ) from None

from distgrad.collectives import mpi_shutdown
from distgrad.collectives.mpi_presence import Presence
from distgrad.collectives.shared_window import SharedWindow
from distgrad.collectives.windowed import Windowed


class Mpi(Windowed):
    """The ranks of MPI's world, on a duplicate of its communicator so that no message meets the user's own."""

    backend = "mpi"

    def __init__(self, world: MPI.Intracomm) -> None:
        self._host = _host_of(world)
        self._finalizer = mpi_shutdown.finalizer(self._host)
        self._comm = world.Dup()
        super().__init__(world.rank, world.size, self._host.rank, self._host.size)
        page = self.liveness.page
        self.window = SharedWindow(self._comm, self._host, self.liveness.fail, page.address)
        self._finalizer.finalize_at_exit(page if FINALIZES_LATE else None)

    def _engine_hooks(self) -> EngineHooks:
        hooks = EngineHooks(
            self._gather,
            self._leave_together,
            introduces_at_start=True,
            abort=mpi_shutdown.abort,
            end_stuck=mpi_shutdown.end_stuck,
            remove_leftovers=mpi_shutdown.remove_session_folder,
        )
        if MPI.Query_thread() < MPI.THREAD_MULTIPLE:
            return hooks  # the watchdog, a thread, may send no messages
        presence = Presence(self._comm)
        return hooks._replace(ask=presence.ask, answer=presence.answer)

    def _gather(self, text: str) -> dict[int, str]:
        """Exchange texts without TensorFlow, which the program may still want to configure."""
        with self.liveness.waiting():
            return dict(enumerate(self._comm.allgather(text)))

    def _leave_together(self) -> None:
        with self.liveness.waiting():
            self._comm.Barrier()
        self._finalizer.finalize()

    def _close_engine(self) -> None:
        if self._comm:
            self.window.close()
            self._host.Free()
            self._comm.Free()


def _host_of(world: MPI.Intracomm) -> MPI.Intracomm:
    """Split off the ranks of this rank's host: under one kernel since its boot, seeing the same processes and network.

    MPI's own split goes by the host's name, and so puts containers into one host that cannot share memory.
    """
    hosts = world.allgather((host_id(), os.readlink("/proc/self/ns/net")))
    return cast(MPI.Intracomm, world.Split(hosts.index(hosts[world.rank]), world.rank))


def connect(world: World, timeout: float) -> Mpi:
    """Join MPI's world, which mpirun formed before any of its processes ran."""
    return Mpi(MPI.COMM_WORLD)
