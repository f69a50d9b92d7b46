"""`connect()` joins the job that this process was launched in, through the engine that suits it.

It imports the engine, and TensorFlow with it, only once it is called: a wrong name, a broken environment or a missing
engine is reported within a second, before TensorFlow is loaded and before any process waits for another.
"""

import importlib
import math
import os
from typing import TYPE_CHECKING, NoReturn, cast

from distgrad.errors import BadEnvironment, WorldMismatch, end_process_on_uncaught, shown
from distgrad.launching.engines import ENGINES, is_installed, require_installed, require_known
from distgrad.launching.job_folder import Event, record_from_worker
from distgrad.launching.world import SINGLE_PROCESS, World

if TYPE_CHECKING:
    from distgrad.collectives.communicator import Communicator


def connect(backend: str = "auto", *, timeout: float = 60.0) -> "Communicator":
    """Join the job that this process was launched in, or run alone.

    Args:
        backend: "solo", "mpi", "horovod", "tf", or "auto": `DISTGRAD_BACKEND` if that is set, else what the
            launcher's environment variables say, else "solo".
        timeout: seconds that a worker waits for the others in a sum. After that it names who is missing, and the job
            ends with status 75. `distgrad run --timeout`, which sets `DISTGRAD_TIMEOUT`, overrides it.

    Raises:
        UnknownBackend: no such backend (exit status 64).
        EngineMissing: the engine is not installed or does not load (69).
        BadEnvironment: the launcher's variables are broken (78).
        WorldMismatch: fewer or more workers connected than the launcher started, or than `DISTGRAD_EXPECT_SIZE` says,
            or two launchers contradict each other (76).
    """
    name = os.environ.get("DISTGRAD_BACKEND", "auto") if backend == "auto" else backend
    end_process_on_uncaught(True, _exit)
    world = SINGLE_PROCESS if name == "solo" else World.from_environment(os.environ)
    end_process_on_uncaught(world.prints_for_host, _exit)
    require_known(name)
    engine = ENGINES[_suitable_backend(world) if name == "auto" else name]
    require_installed(engine)
    timeout = _number_from_environment("DISTGRAD_TIMEOUT", timeout)
    _record(world, "joining")
    importlib.import_module("distgrad.collectives.communicator")  # takes seconds
    _record(world, "loaded")
    module = importlib.import_module(f"distgrad.collectives.{engine.module}")
    comm = cast("Communicator", module.connect(world, timeout))
    _record(world, "joined")
    _require_whole_world(comm, world)
    comm.liveness.start(timeout)
    end_process_on_uncaught(comm.is_root, comm.liveness.leave)
    return comm


def _record(world: World, event: Event) -> None:
    """Record an event for `distgrad run`, unless no launcher waits for this process."""
    if world.launcher is not None:
        record_from_worker(world.rank, event)


def _exit(status: int, together: bool) -> NoReturn:  # noqa: ARG001 (before the workers are connected each ends alone)
    os._exit(status)


def _number_from_environment(name: str, default: float) -> float:
    text = os.environ.get(name)
    if text is None:
        return default
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not number > 0:
        raise BadEnvironment(
            f"{name}={shown(text)} is no number above 0", f"set {name} to a number above 0, or unset it"
        )
    return number


def _suitable_backend(world: World) -> str:
    """Return the backend that suits the launcher; of MPI and Horovod under mpirun the one whose package is installed.

    Where both are, MPI is taken.
    """
    if world.backend == "mpi" and not is_installed("mpi4py") and is_installed("horovod"):
        return "horovod"
    return world.backend


def _require_whole_world(comm: "Communicator", world: World) -> None:
    """Check that as many workers are connected as were started and are expected."""
    if world.launcher is not None and comm.size != world.size * comm.span:
        raise WorldMismatch(
            f"{world.launcher} started {world.size} workers but {comm.backend} connected {comm.size}",
            "launch with the mpirun of the MPI that mpi4py or Horovod uses, or with horovodrun",
            rank=world.rank,
            everywhere=True,
        )
    if comm.size != _number_from_environment("DISTGRAD_EXPECT_SIZE", comm.size):
        raise WorldMismatch(
            f"{os.environ['DISTGRAD_EXPECT_SIZE']} workers are expected but {comm.backend} connected {comm.size}",
            "see that every host starts its workers, or set DISTGRAD_EXPECT_SIZE to the number that there should be",
            rank=world.rank,
            everywhere=True,
        )
