"""The environment variables that launchers and workers get, and those that must not reach them."""

import os
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path

from distgrad.launching.hosts import BATCH_SYSTEM_VARIABLES, core_count
from distgrad.launching.job_folder import JOB_MARK
from distgrad.launching.world import LAUNCHER_VARIABLES

# Prefixes of the variables that are sent to workers on other hosts.
FORWARDED_PREFIXES = ("DISTGRAD_", "TF_", "KERAS_", "HOROVOD_", "NCCL_", "XLA_", "OMP_", "PYTHON")
# The variables that a launcher itself needs: these names, and these prefixes.
LAUNCHER_NAMES = ("PATH", "LD_LIBRARY_PATH", "PYTHONPATH", "HOME", "USER", "SHELL", "LANG", "TMPDIR", JOB_MARK)
LAUNCHER_PREFIXES = ("HOROVOD_", "OMPI_", "PRTE_", "LC_")
# The variables that make a process one of several workers.
RANK_VARIABLES = {"TF_CONFIG"} | {
    name
    for variables in LAUNCHER_VARIABLES
    for name in (variables.rank, variables.size, variables.local_rank, variables.local_size)
}


def search_path(environment: Mapping[str, str]) -> str:
    """Return the PATH on which launchers are looked for: this Python's folder first, as it may not be activated."""
    here, path = str(Path(sys.executable).parent), environment.get("PATH", os.defpath)
    return path if path.split(os.pathsep)[0] == here else f"{here}{os.pathsep}{path}"


def fresh_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """Return the environment without what a launcher, a batch system or a person set in it for another job."""
    prefixes = ("OMPI_", "PMI", "HOROVOD_", "SLURM_", "DISTGRAD_")
    return {
        name: value for name, value in environment.items() if not name.startswith(prefixes) and name != "TF_CONFIG"
    } | {"PATH": search_path(environment)}


def launcher_settings(environment: Mapping[str, str]) -> dict[str, str]:
    """Return the variables without which an MPI launcher may refuse to start workers on this host."""
    names = [f"{prefix}_ALLOW_RUN_AS_ROOT{ending}" for prefix in ("OMPI", "PRTE") for ending in ("", "_CONFIRM")]
    root = dict.fromkeys(names, "1") if os.geteuid() == 0 else {}  # it asks to be told twice
    # Without ssh Open MPI 4 would give up, although all workers are on this host.
    no_ssh = {} if shutil.which("ssh", path=environment.get("PATH")) else {"OMPI_MCA_plm": "isolated"}
    return {"PATH": search_path(environment)} | root | ({} if is_allocated(environment) else no_ssh)


def is_allocated(environment: Mapping[str, str]) -> bool:
    """True if a batch system has chosen the hosts, which the launcher then learns from it."""
    return any(name in environment for name in BATCH_SYSTEM_VARIABLES)


def worker_environment(environment: Mapping[str, str], local_size: int, settings: Mapping[str, str]) -> dict[str, str]:
    """Return the environment for the workers of a new job.

    Args:
        environment: the caller's.
        local_size: workers on the fullest host.
        settings: variables that the job sets.
    """
    inherited = {name: value for name, value in environment.items() if name not in RANK_VARIABLES}
    threads = str(max(1, core_count() // local_size))  # more threads than cores only take turns
    defaults = {"TF_NUM_INTRAOP_THREADS": threads, "OMP_NUM_THREADS": threads, "TF_FORCE_GPU_ALLOW_GROWTH": "true"}
    if local_size > core_count():
        defaults["OMPI_MCA_mpi_yield_when_idle"] = "1"  # a worker that waits lets the others go on
    return {**defaults, **inherited, **launcher_settings(environment), **settings}


def launcher_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """Return the variables that a launcher needs: none of a person's own, which horovodrun would show to everyone."""
    return {
        name: value
        for name, value in environment.items()
        if name in LAUNCHER_NAMES or name.startswith(LAUNCHER_PREFIXES)
    }


def forwarded_names(environment: Mapping[str, str]) -> list[str]:
    """Return the names of the variables that workers on other hosts need."""
    return sorted(name for name in environment if name.startswith(FORWARDED_PREFIXES))
