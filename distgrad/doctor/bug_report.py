"""`distgrad env`: the text to paste into a bug report. Only variables that are named here are shown."""

import os
import platform
from collections.abc import Mapping
from pathlib import Path

from distgrad.doctor.installed import versions
from distgrad.doctor.machine import shared_memory
from distgrad.errors import EngineMissing
from distgrad.launching.environment import RANK_VARIABLES
from distgrad.launching.hosts import core_count
from distgrad.launching.selection import find_program, mpi_kind

SHOWN = RANK_VARIABLES | {
    "CUDA_VISIBLE_DEVICES",
    "DISTGRAD_BACKEND",
    "DISTGRAD_EXPECT_SIZE",
    "DISTGRAD_TIMEOUT",
    "HOROVOD_CONTROLLER",
    "HOROVOD_CPU_OPERATIONS",
    "HOROVOD_CYCLE_TIME",
    "HOROVOD_FUSION_THRESHOLD",
    "KERAS_BACKEND",
    "LANG",
    "NCCL_DEBUG",
    "NCCL_SOCKET_IFNAME",
    "OMPI_MCA_btl",
    "OMPI_MCA_plm",
    "OMP_NUM_THREADS",
    "SLURM_JOB_NUM_NODES",
    "SLURM_NTASKS",
    "TF_CPP_MIN_LOG_LEVEL",
    "TF_ENABLE_ONEDNN_OPTS",
    "TF_FORCE_GPU_ALLOW_GROWTH",
    "TF_NUM_INTEROP_THREADS",
    "TF_NUM_INTRAOP_THREADS",
    "TF_USE_LEGACY_KERAS",
    "TF_XLA_FLAGS",
    "XLA_FLAGS",
}


def describe(environment: Mapping[str, str]) -> str:
    """Return one `name: value` a line, in a Markdown block: system, machine, versions, variables."""
    system = {"system": f"{_distribution()}, Linux {platform.release()}, {platform.machine()}"}
    machine = {
        "cores": f"{core_count()} of {os.cpu_count()}",
        "memory": _memory(),
        "shared memory": shared_memory().found,
    }
    facts = system | machine | versions() | {"mpirun": _mpirun(environment)} | _variables(environment)
    return "\n".join(["```text", *(f"{name}: {value}" for name, value in facts.items()), "```"])


def _variables(environment: Mapping[str, str]) -> dict[str, str]:
    return {name: environment[name] for name in sorted(SHOWN & set(environment))}


def _distribution() -> str:
    try:
        return platform.freedesktop_os_release()["PRETTY_NAME"]
    except OSError:
        return "unknown"


def _memory() -> str:
    lines = Path("/proc/meminfo").read_text().splitlines()
    return f"{int(lines[0].split()[1]) >> 20} GB"


def _mpirun(environment: Mapping[str, str]) -> str:
    path = find_program("mpirun", environment)
    if path is None:
        return "none"
    try:
        return mpi_kind(path)
    except EngineMissing as error:
        return error.cause
