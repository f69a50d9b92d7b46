"""The engine and the launcher of a job, and the error where something is missing for them."""

import os
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from distgrad.errors import BadArgument, EngineMissing
from distgrad.launching.engines import ENGINES, is_installed, require_installed, require_known
from distgrad.launching.environment import launcher_settings

VERSION_TIMEOUT = 10.0  # seconds for mpirun to print its version


class Selection(NamedTuple):
    """The engine and the launcher of a job.

    Attributes:
        backend: the engine's name in `engines.ENGINES`.
        launcher: the launcher's name in `commands.COMMANDS`.
    """

    backend: str
    launcher: str


def select(backend: str, size: int, controller: str | None, environment: Mapping[str, str]) -> Selection:
    """Select the engine and the launcher for `size` workers.

    Args:
        backend: "solo", "mpi", "horovod", "tf", or "auto": DISTGRAD_BACKEND if that is set, else the first of MPI,
            Horovod and tf.distribute that is installed.
        size: how many workers there are.
        controller: "mpi" or "gloo", over which Horovod's workers find each other; None: MPI if there is an Open MPI.
        environment: the caller's environment variables.

    Raises:
        UnknownBackend: no such backend (exit status 64).
        EngineMissing: the engine or its launcher is not installed (69).
        BadArgument: several workers for the backend "solo" (64).
    """
    name = environment.get("DISTGRAD_BACKEND", "auto") if backend == "auto" else backend
    require_known(name)
    if name == "auto":
        name = _first_installed(environment)
    require_installed(ENGINES[name])
    if name == "solo" and size > 1:
        raise BadArgument(f"{size} workers cannot each be alone", "leave out --backend, or say -np 1")
    return Selection(name, _launcher(name, controller, environment))


def find_program(program: str, environment: Mapping[str, str]) -> str | None:
    """Return the path of a launcher's program, None if there is none."""
    return shutil.which(program, path=launcher_settings(environment)["PATH"])


def missing_part(package: str | None, programs: Sequence[str], environment: Mapping[str, str]) -> str | None:
    """Return what is missing, as a sentence, out of a Python package and some launcher's programs; None if nothing."""
    if package is not None and not is_installed(package):
        return f"{package} is not installed"
    missing = [program for program in programs if find_program(program, environment) is None]
    return f"{missing[0]} is not on PATH" if missing else None


def mpi_kind(mpirun: str) -> str:
    """Return the MPI that an mpirun belongs to: "Open MPI 4", "Open MPI 5" or "MPICH".

    Raises:
        EngineMissing: it does not run, or is of another kind.
    """
    environment = dict(os.environ) | launcher_settings(os.environ)
    try:
        done = subprocess.run(
            [mpirun, "--version"], env=environment, capture_output=True, text=True, timeout=VERSION_TIMEOUT, check=False
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
    if missing_part("mpi4py", ["mpirun"], environment) is None:
        return "mpi"
    if missing_part("horovod", ["horovodrun"], environment) is None:
        return "horovod"
    return "tf"


def _launcher(backend: str, controller: str | None, environment: Mapping[str, str]) -> str:
    if backend == "mpi":
        return _mpi_launcher(environment)
    if backend == "horovod":
        return _horovod_launcher(controller, environment)
    return "TF_CONFIG" if backend == "tf" else "alone"


def _mpi_launcher(environment: Mapping[str, str]) -> str:
    fix = "pip install 'distgrad[mpi]' brings one; on a cluster, load its MPI module"
    return mpi_kind(_require_program("mpirun", environment, fix))


def _horovod_launcher(controller: str | None, environment: Mapping[str, str]) -> str:
    _require_program("horovodrun", environment, ENGINES["horovod"].fix)
    mpirun = find_program("mpirun", environment)
    if controller == "gloo" or (controller is None and mpirun is None):
        return "horovodrun --gloo"
    kind = _mpi_launcher(environment)
    if kind == "MPICH":
        return "horovodrun --gloo"
    return "horovodrun --mpi" + (" on Open MPI 5" if kind == "Open MPI 5" else "")


def _require_program(program: str, environment: Mapping[str, str], fix: str) -> str:
    path = find_program(program, environment)
    if path is None:
        raise EngineMissing(f"{program} is not on PATH", fix)
    return path
