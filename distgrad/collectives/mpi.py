"""MPI through mpi4py, under mpirun: one worker a process.

TensorFlow must be loaded before MPI: both contain the hwloc library, and where MPI comes first Open MPI's wheel
finds the other's half of it when it finalises, and crashes.
"""

import atexit
import ctypes
import os
import platform
import re
import shutil
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

from distgrad import native
from distgrad.errors import EngineMissing
from distgrad.launching.engines import ENGINES
from distgrad.launching.world import World
from distgrad.liveness.peers import Peer
from distgrad.liveness.reaper import end_later

# A process that no mpirun started needs to be told where a wheel's Open MPI lives; mpirun tells its own.
if Path(sys.prefix, "bin", "orted").exists():
    os.environ.setdefault("OPAL_PREFIX", sys.prefix)
try:
    import mpi4py

    # MPI ends when the process's exit status is known, since only if it is 0 may this rank wait for the others; unless
    # mpi4py, loaded before, ends it before that.
    ENDS_HERE = "mpi4py.MPI" not in sys.modules
    mpi4py.rc.finalize = False
    from mpi4py import MPI
except (ImportError, RuntimeError) as failure:
    reason = " ".join(str(failure).split())
    raise EngineMissing(
        f"mpi4py does not load ({reason})",
        ENGINES["mpi"].fix,
        everywhere=True,
    ) from None

from distgrad.collectives.shared_window import SharedWindow
from distgrad.collectives.window import Windowed

ROLL_CALL = 1  # the tag of its messages
ABORTING = 2.0  # seconds
STUCK = 1.5  # seconds for mpirun to end whoever does not listen
SESSION_FOLDER = "OMPI_MCA_orte_jobfam_session_dir"  # in which Open MPI 4 names its own folder


class Mpi(Windowed):
    """The ranks of MPI's world, on a duplicate of its communicator so that no message meets the user's own."""

    backend = "mpi"

    def __init__(self, world: MPI.Intracomm) -> None:
        host = _host_of(world)
        super().__init__(world.rank, world.size, host.rank, host.size)
        self._ending = _ending(_unname_segment(host))
        self._comm, self._host = world.Dup(), host
        self.window = SharedWindow(self._comm, host, self._fail, self.page.address)
        if ENDS_HERE:
            native.functions().distgrad_at_exit(self.page.address, *self._ending)
        else:
            atexit.register(native.functions().distgrad_end_mpi, *self._ending)

    def end_stuck(self, peers: Sequence[Peer]) -> None:
        """Leave that to the launcher, which would take the status of a killed rank for the job's, but not for long."""
        end_later([peer.pidfd for peer in peers], STUCK)

    def roll_call(self) -> list[int]:
        """Each rank that waits tells all others so; who is not heard of within a second does not wait."""
        others = set(range(self.size)) - {self.rank}
        sent = [self._comm.isend(None, rank, ROLL_CALL) for rank in sorted(others)]
        end = time.monotonic() + 1
        while others and time.monotonic() < end:
            answer = MPI.Status()
            if self._comm.iprobe(tag=ROLL_CALL, status=answer):
                self._comm.recv(source=answer.source, tag=ROLL_CALL)
                others.discard(answer.source)
        return sorted(others) if sent else []

    def close(self) -> None:
        super().close()
        if self._comm:
            self.window.close()
            self._host.Free()
            self._comm.Free()

    def watch(self, timeout: float) -> None:
        super().watch(timeout)
        if self._watchdog:
            with self.waiting():
                self._watchdog.meet(self._comm.allgather)  # no use of TensorFlow, which may still want to be configured

    def part(self) -> None:
        with self.waiting():
            self._comm.Barrier()
        native.functions().distgrad_end_mpi(*self._ending)

    def tidy(self) -> None:
        shutil.rmtree(os.environ.get(SESSION_FOLDER, ""), ignore_errors=True)

    def abort(self, status: int) -> None:
        threading.Timer(ABORTING, os._exit, (status,)).start()  # should mpirun not be there to be told
        MPI.COMM_WORLD.Abort(status)


def _host_of(world: MPI.Intracomm) -> MPI.Intracomm:
    """The ranks that run on this rank's host: under one kernel since its boot, seeing the same processes and network.

    MPI's own split goes by the host's name, and so puts containers into one host that cannot share memory.
    """
    boot = Path("/proc/sys/kernel/random/boot_id")
    kernel = boot.read_text() if boot.exists() else platform.node()
    hosts = world.allgather((kernel, os.readlink("/proc/self/ns/pid"), os.readlink("/proc/self/ns/net")))
    return cast(MPI.Intracomm, world.Split(hosts.index(hosts[world.rank]), world.rank))


def _unname_segment(host: MPI.Intracomm) -> list[Path]:
    """Take away the name of Open MPI's own shared memory, which would stay behind if mpirun were killed.

    That is safe once every rank of the host has opened what the others made, which each does at the first message.

    Returns:
        The files that must be there when MPI ends: it removes them itself then, and complains if it cannot.
    """
    host.alltoall([None] * host.size)
    own = re.compile(rf"/\S*/vader_segment\.\S+\.{os.environ.get('OMPI_COMM_WORLD_LOCAL_RANK')}$", re.MULTILINE)
    names = [Path(name) for name in own.findall(Path("/proc/self/maps").read_text())]
    for name in names:
        name.unlink()
    return names


def _ending(names: Sequence[Path]) -> tuple[Any, Any, bytes]:
    """What the core needs to end MPI."""
    library = ctypes.CDLL(MPI.__file__)
    return library.MPI_Finalize, library.MPI_Finalized, "\n".join(map(str, names)).encode()


def connect(world: World, timeout: float) -> Mpi:
    """Join MPI's world, which mpirun formed before any of its processes ran."""
    return Mpi(MPI.COMM_WORLD)
