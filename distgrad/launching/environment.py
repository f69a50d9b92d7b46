"""What a worker finds in its environment, and what must not reach it."""

import os
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path

from distgrad.launching.hosts import ALLOCATIONS, cores
from distgrad.launching.session import MARK
from distgrad.launching.world import LAUNCHERS

# What workers on other hosts are sent.
FORWARDED = ("DISTGRAD_", "TF_", "KERAS_", "HOROVOD_", "NCCL_", "XLA_", "OMP_", "PYTHON")
# What a launcher itself needs.
NEEDED = ("PATH", "LD_LIBRARY_PATH", "PYTHONPATH", "HOME", "USER", "SHELL", "LANG", "TMPDIR", MARK)
SETTINGS = ("HOROVOD_", "OMPI_", "PRTE_", "LC_")
LAUNCHED_BY = {name for launcher in LAUNCHERS for name in launcher[2:6]} | {"TF_CONFIG"}


def search_path(environment: Mapping[str, str]) -> str:
    """Where launchers are looked for: first beside this Python, whose environment may not be activated."""
    here, path = str(Path(sys.executable).parent), environment.get("PATH", os.defpath)
    return path if path.split(os.pathsep)[0] == here else f"{here}{os.pathsep}{path}"


def plain(environment: Mapping[str, str]) -> dict[str, str]:
    """What a fresh shell would have: nothing that a launcher, a batch system or a person set for another job."""
    theirs = ("OMPI_", "PMI", "HOROVOD_", "SLURM_", "DISTGRAD_")
    return {
        name: value for name, value in environment.items() if not name.startswith(theirs) and name != "TF_CONFIG"
    } | {"PATH": search_path(environment)}


def launchable(environment: Mapping[str, str]) -> dict[str, str]:
    """What every MPI needs to start workers at all, here and on this host."""
    names = [f"{prefix}_ALLOW_RUN_AS_ROOT{ending}" for prefix in ("OMPI", "PRTE") for ending in ("", "_CONFIRM")]
    root = dict.fromkeys(names, "1") if os.geteuid() == 0 else {}  # it asks to be told twice
    # Without ssh Open MPI 4 would give up, although all workers are on this host.
    silent = {} if shutil.which("ssh", path=environment.get("PATH")) else {"OMPI_MCA_plm": "isolated"}
    return {"PATH": search_path(environment)} | root | ({} if allocated(environment) else silent)


def allocated(environment: Mapping[str, str]) -> bool:
    """Whether a batch system has chosen the hosts, which the launcher then asks itself."""
    return any(name in environment for name in ALLOCATIONS)


def for_workers(environment: Mapping[str, str], local_size: int, **settings: str) -> dict[str, str]:
    """The caller's environment, made one for the workers of a new job.

    Args:
        environment: the caller's.
        local_size: workers on the fullest host.
        settings: what the job sets in it.
    """
    inherited = {name: value for name, value in environment.items() if name not in LAUNCHED_BY}
    threads = str(max(1, cores() // local_size))  # more threads than cores only take turns
    defaults = {"TF_NUM_INTRAOP_THREADS": threads, "OMP_NUM_THREADS": threads, "TF_FORCE_GPU_ALLOW_GROWTH": "true"}
    if local_size > cores():
        defaults["OMPI_MCA_mpi_yield_when_idle"] = "1"  # who waits lets the others go on
    return defaults | inherited | launchable(environment) | settings


def for_launcher(environment: Mapping[str, str]) -> dict[str, str]:
    """The part that a launcher needs: none of a person's own variables, which horovodrun would show to everyone."""
    return {name: value for name, value in environment.items() if name in NEEDED or name.startswith(SETTINGS)}


def forwarded(environment: Mapping[str, str]) -> list[str]:
    """Names of the variables that workers on other hosts need."""
    return sorted(name for name in environment if name.startswith(FORWARDED))
