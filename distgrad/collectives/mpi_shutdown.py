"""The end of an MPI job: MPI is finalised, a failed job is aborted, and nothing of Open MPI's is left behind.

mpi.py is to be imported first: it sets up mpi4py.
"""

import atexit
import ctypes
import functools
import os
import re
import threading
from pathlib import Path
from typing import Any

from mpi4py import MPI

from distgrad import native
from distgrad.launching import private_folder
from distgrad.liveness.reaper import end_later
from distgrad.liveness.status_page import StatusPage

ABORTING = 2.0  # seconds for mpirun to end this process
STUCK = 1.5  # seconds for mpirun to end whoever does not listen
SESSION_FOLDER = "OMPI_MCA_orte_jobfam_session_dir"  # in which Open MPI 4 names its own folder

# Stuck workers are left to mpirun, which would take the status of a killed rank for the job's, but not for long.
end_stuck = functools.partial(end_later, grace=STUCK)


class Finalizer:
    """Finalises MPI in this process, by the compiled core; see `finalizer`."""

    def __init__(self, host: MPI.Intracomm) -> None:
        library = ctypes.CDLL(MPI.__file__)
        names = "\n".join(map(str, _unlink_segments(host))).encode()
        self._arguments: tuple[Any, Any, bytes] = (library.MPI_Finalize, library.MPI_Finalized, names)
        self._process, self._is_registered = os.getpid(), False

    def finalize(self) -> None:
        """Finalise MPI now; every rank calls it, or is about to end. It does nothing in a child that was forked."""
        if os.getpid() == self._process:
            native.functions().distgrad_end_mpi(*self._arguments)

    def finalize_at_exit(self, page: StatusPage | None) -> None:
        """Finalise MPI when this process ends; only the first call counts.

        Args:
            page: of this process, to finalise when its exit status is known, since only if that is 0 may this rank
                wait for the others; None to finalise when Python ends.
        """
        if self._is_registered:
            return
        self._is_registered = True
        if page is None:
            atexit.register(self.finalize)
        else:
            native.functions().distgrad_at_exit(page.address, *self._arguments)


_finalizers: list[Finalizer] = []


def finalizer(host: MPI.Intracomm) -> Finalizer:
    """Return what finalises MPI in this process, the same for all communicators.

    Args:
        host: the ranks of this host, which all call this.
    """
    if not _finalizers:
        _finalizers.append(Finalizer(host))
    return _finalizers[0]


def _unlink_segments(host: MPI.Intracomm) -> list[Path]:
    """Remove the names of Open MPI's own shared memory, which would stay behind if mpirun were killed.

    That is safe once every rank of the host has opened what the others made, which each does at the first message.

    Returns:
        The files that must be there when MPI is finalised: it removes them itself then, and complains if it cannot.
    """
    host.alltoall([None] * host.size)
    local_rank = os.environ.get("OMPI_COMM_WORLD_LOCAL_RANK")
    segment = re.compile(rf"/\S*/vader_segment\.\S+\.{local_rank}$", re.MULTILINE)
    names = [Path(name) for name in segment.findall(Path("/proc/self/maps").read_text())]
    for name in names:
        name.unlink()
    return names


def abort(status: int) -> None:
    """End all ranks of the job with this exit status."""
    threading.Timer(ABORTING, os._exit, (status,)).start()  # should mpirun not be there to be told
    MPI.COMM_WORLD.Abort(status)


def remove_session_folder() -> None:
    """Remove Open MPI's folder on this host, now that mpirun is gone."""
    if SESSION_FOLDER in os.environ:
        private_folder.remove(Path(os.environ[SESSION_FOLDER]))
