"""Which engine? `connect()` joins the job that this process was launched in.

Kept apart from the communicators and light on purpose: a wrong name, a broken environment or a missing engine is
said within a second, before TensorFlow is imported and before any process waits for another.
"""

import difflib
import importlib
import importlib.util
import os
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, NoReturn, cast

from distgrad.errors import BadEnvironment, EngineMissing, UnknownBackend, WorldMismatch, end_process_on_uncaught
from distgrad.launching.session import say_from_worker
from distgrad.launching.world import ALONE, World

if TYPE_CHECKING:
    from distgrad.collectives.communicator import Communicator


class Engine(NamedTuple):
    """A backend's module in distgrad.collectives, the package it needs (none: None) and how to get that."""

    module: str
    package: str | None
    fix: str


ENGINES = {
    "solo": Engine("solo", None, ""),
    "mpi": Engine("mpi", "mpi4py", "pip install 'distgrad[mpi]' installs mpi4py and an MPI for it"),
    "horovod": Engine("horovod", "horovod", "build it for this TensorFlow with launch/install-horovod"),
    "tf": Engine("tf_distribute", None, ""),
}


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
        WorldMismatch: fewer or more workers connected than the launcher started, or than `DISTGRAD_EXPECT_SIZE` says
            (76).
    """
    asked = os.environ.get("DISTGRAD_BACKEND", "auto") if backend == "auto" else backend
    end_process_on_uncaught(True, _leave_alone)
    world = ALONE if asked == "solo" else World.from_environment(os.environ)
    end_process_on_uncaught(world.speaks, _leave_alone)
    engine = ENGINES[_choose(known(asked), world)]
    require_installed(engine)
    timeout = _number("DISTGRAD_TIMEOUT", timeout)
    _say(world, "joining")
    importlib.import_module("distgrad.collectives.communicator")  # takes seconds
    _say(world, "loaded")
    module = importlib.import_module(f"distgrad.collectives.{engine.module}")
    comm = cast("Communicator", module.connect(world, timeout))
    _say(world, "joined")
    _require_whole_world(comm, world)
    comm.liveness.start(timeout)
    end_process_on_uncaught(comm.is_root, comm.liveness.leave)
    return comm


def _say(world: World, word: str) -> None:
    """Leave word for `distgrad run`, which does not wait for those who work alone."""
    if world.launcher is not None:
        say_from_worker(world.rank, word)


def _leave_alone(status: int, together: bool) -> NoReturn:  # noqa: ARG001 (alone either way)
    os._exit(status)


def _number(name: str, default: float) -> float:
    text = os.environ.get(name, str(default))
    try:
        return float(text)
    except ValueError:
        raise BadEnvironment(f"{name}={text!r} is no number", f"set {name} to one, or unset it") from None


def known(name: str) -> str:
    """The backend's name, if there is one of that name.

    Raises:
        UnknownBackend: there is none; it names the nearest.
    """
    if name in ENGINES or name == "auto":
        return name
    names = ["auto", *ENGINES]
    close = difflib.get_close_matches(name.lower(), names, n=1, cutoff=0.4)
    hint = f"did you mean {close[0]!r}?" if close else "choose one of them"
    raise UnknownBackend(f"there is no backend {name!r} among {', '.join(names)}", hint, everywhere=True)


def _choose(name: str, world: World) -> str:
    """Under mpirun both MPI and Horovod fit; the one that is installed is taken, mpi4py first."""
    if name != "auto":
        return name
    if world.backend == "mpi" and not installed("mpi4py") and installed("horovod"):
        return "horovod"
    return world.backend


def installed(package: str) -> bool:
    """Whether Python finds a package, which is not imported."""
    return importlib.util.find_spec(package) is not None


def require_installed(engine: Engine) -> None:
    """Say so, and how to get it, where an engine's package is not there.

    Raises:
        EngineMissing: it is not.
    """
    if engine.package is not None and not installed(engine.package):
        raise EngineMissing(f"{engine.package} is not installed", engine.fix, everywhere=True)
    if engine.package == "horovod":
        _find_horovod_library(engine)


def _find_horovod_library(engine: Engine) -> None:
    """Horovod builds for whatever frameworks it finds, and without TensorFlow too, silently."""
    package = importlib.util.find_spec("horovod")
    places = list(package.submodule_search_locations or []) if package else []
    if not any(list(Path(place, "tensorflow").glob("mpi_lib*.so")) for place in places):
        raise EngineMissing("this Horovod was built without TensorFlow", engine.fix, everywhere=True)


def _require_whole_world(comm: "Communicator", world: World) -> None:
    if world.launcher is not None and comm.size != world.size * comm.span:
        raise WorldMismatch(
            f"{world.launcher} started {world.size} workers but {comm.backend} connected {comm.size}",
            "launch with the mpirun of the MPI that mpi4py or Horovod uses, or with horovodrun",
            rank=world.rank,
            everywhere=True,
        )
    if comm.size != _number("DISTGRAD_EXPECT_SIZE", comm.size):
        raise WorldMismatch(
            f"{os.environ['DISTGRAD_EXPECT_SIZE']} workers are expected but {comm.backend} connected {comm.size}",
            "see that every host starts its workers, or set DISTGRAD_EXPECT_SIZE to the number that there should be",
            rank=world.rank,
            everywhere=True,
        )
