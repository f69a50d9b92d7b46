"""Which engine, and which launcher starts it: said, or what is missing for it, before anything starts."""

import os
import shutil
import subprocess
from collections.abc import Mapping
from typing import NamedTuple

from distgrad.connect import ENGINES, installed, known, require_installed
from distgrad.errors import BadArgument, EngineMissing
from distgrad.launching.environment import launchable

VERSION = 10.0  # seconds for mpirun to say which it is


class Choice(NamedTuple):
    """A backend's name, and the launcher's in `commands.LAUNCHERS`."""

    backend: str
    launcher: str


def choose(backend: str, size: int, controller: str | None, environment: Mapping[str, str]) -> Choice:
    """Choose the launcher for so many workers.

    Args:
        backend: "solo", "mpi", "horovod", "tf", or "auto": DISTGRAD_BACKEND if that is set, else the first of MPI,
            Horovod and tf.distribute that is installed.
        controller: how Horovod's workers meet: "mpi", "gloo", or None: over MPI if there is an Open MPI.

    Raises:
        UnknownBackend: no such backend (exit status 64).
        EngineMissing: the engine or its launcher is not installed (69).
        BadArgument: several workers that work alone (64).
    """
    asked = environment.get("DISTGRAD_BACKEND", "auto") if backend == "auto" else backend
    chosen = _first_installed(environment) if known(asked) == "auto" else asked
    require_installed(ENGINES[chosen])
    if chosen == "solo" and size > 1:
        raise BadArgument(f"{size} workers cannot each be alone", "leave out --backend, or say -np 1")
    return Choice(chosen, _launcher(chosen, controller, environment))


def found(program: str, environment: Mapping[str, str]) -> str | None:
    """Where a launcher is, if anywhere."""
    return shutil.which(program, path=launchable(environment)["PATH"])


def mpi_kind(mpirun: str) -> str:
    """Which MPI an mpirun belongs to: "Open MPI 4", "Open MPI 5" or "MPICH".

    Raises:
        EngineMissing: it does not run, or is of another kind.
    """
    environment = dict(os.environ) | launchable(os.environ)
    try:
        done = subprocess.run(
            [mpirun, "--version"], env=environment, capture_output=True, text=True, timeout=VERSION, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise EngineMissing(f"{mpirun} does not run ({error})", ENGINES["mpi"].fix) from None
    if done.returncode:
        raise EngineMissing(f"{mpirun} --version ended with status {done.returncode}", ENGINES["mpi"].fix)
    if "Open MPI" in done.stdout:
        return "Open MPI 5" if done.stdout.split("Open MPI)")[1].split(".")[0].strip() >= "5" else "Open MPI 4"
    if "HYDRA" in done.stdout:
        return "MPICH"
    raise EngineMissing(
        f"{mpirun} is neither Open MPI's nor MPICH's ({done.stdout.strip().splitlines()[:1]})", ENGINES["mpi"].fix
    )


def _first_installed(environment: Mapping[str, str]) -> str:
    if installed("mpi4py") and found("mpirun", environment):
        return "mpi"
    if installed("horovod") and found("horovodrun", environment):
        return "horovod"
    return "tf"


def _require(program: str, environment: Mapping[str, str], fix: str) -> str:
    path = found(program, environment)
    if path is None:
        raise EngineMissing(f"{program} is not on PATH", fix)
    return path


def _launcher(backend: str, controller: str | None, environment: Mapping[str, str]) -> str:
    if backend == "mpi":
        return _mpi(environment)
    if backend == "horovod":
        return _horovod(controller, environment)
    return "TF_CONFIG" if backend == "tf" else "alone"


def _mpi(environment: Mapping[str, str]) -> str:
    fix = "pip install 'distgrad[mpi]' brings one; on a cluster, load its MPI module"
    return mpi_kind(_require("mpirun", environment, fix))


def _horovod(controller: str | None, environment: Mapping[str, str]) -> str:
    _require("horovodrun", environment, ENGINES["horovod"].fix)
    mpirun = found("mpirun", environment)
    if controller == "gloo" or (controller is None and mpirun is None):
        return "horovodrun --gloo"
    kind = _mpi(environment)
    if kind == "MPICH":
        return "horovodrun --gloo"
    return "horovodrun --mpi" + (" on Open MPI 5" if kind == "Open MPI 5" else "")
