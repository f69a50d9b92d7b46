"""Rank and size of this process, as its launcher's environment variables give them.

Nothing is done but reading variables: no engine and no TensorFlow is imported, so errors come within milliseconds and
before any process waits for another.
"""

import json
from collections.abc import Mapping
from typing import NamedTuple

from distgrad.errors import BadEnvironment


class LauncherVariables(NamedTuple):
    """The environment variables that one kind of launcher sets for each worker.

    Attributes:
        launcher: the launcher's name.
        backend: the backend that suits it.
        rank, size, local_rank, local_size: names of the variables.
        starts_anything: True if it is used for programs of one process too, which then need no engine.
    """

    launcher: str
    backend: str
    rank: str
    size: str
    local_rank: str
    local_size: str
    starts_anything: bool = False


# In order of preference: an inner launcher (horovodrun's own Gloo workers) before an outer one (Slurm's step).
LAUNCHER_VARIABLES = (
    LauncherVariables(
        "horovodrun", "horovod", "HOROVOD_RANK", "HOROVOD_SIZE", "HOROVOD_LOCAL_RANK", "HOROVOD_LOCAL_SIZE"
    ),
    LauncherVariables(
        "Open MPI",
        "mpi",
        "OMPI_COMM_WORLD_RANK",
        "OMPI_COMM_WORLD_SIZE",
        "OMPI_COMM_WORLD_LOCAL_RANK",
        "OMPI_COMM_WORLD_LOCAL_SIZE",
    ),
    LauncherVariables("MPICH", "mpi", "PMI_RANK", "PMI_SIZE", "MPI_LOCALRANKID", "MPI_LOCALNRANKS"),
    LauncherVariables(
        "srun",
        "mpi",
        "SLURM_PROCID",
        "SLURM_STEP_NUM_TASKS",
        "SLURM_LOCALID",
        "SLURM_STEP_TASKS_PER_NODE",
        starts_anything=True,
    ),
    # No engine of ours joins torchrun's workers; knowing its variables keeps n of them from training alone.
    LauncherVariables("torchrun", "solo", "RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", starts_anything=True),
)


class World(NamedTuple):
    """The job that a process belongs to, as its launcher's variables describe it.

    Attributes:
        launcher: its name; None for a process that no launcher started.
        backend: the backend that suits the launcher.
        rank: this worker's number, from 0.
        size: how many workers there are.
        local_rank: this worker's number among those of its host.
        local_size: how many workers its host has.
    """

    launcher: str | None
    backend: str
    rank: int
    size: int
    local_rank: int
    local_size: int

    @classmethod
    def from_environment(cls, environment: Mapping[str, str]) -> "World":
        """Read the launcher's variables; without any, this is a job of one process.

        Raises:
            BadEnvironment: a variable is missing beside its partner, no integer, or out of range (status 78).

        >>> World.from_environment({"HOROVOD_RANK": "1", "HOROVOD_SIZE": "4"})
        World(launcher='horovodrun', backend='horovod', rank=1, size=4, local_rank=1, local_size=4)
        """
        if "TF_CONFIG" in environment:
            return _from_tf_config(environment["TF_CONFIG"])
        for variables in LAUNCHER_VARIABLES:
            if variables.rank in environment and variables.size in environment:
                return _from_variables(variables, environment)
        return SINGLE_PROCESS

    @property
    def prints_for_host(self) -> bool:
        """True if this process prints what all processes of its host would print alike."""
        return self.local_rank == 0


SINGLE_PROCESS = World(None, "solo", 0, 1, 0, 1)


def _from_variables(variables: LauncherVariables, environment: Mapping[str, str]) -> World:
    rank = _integer(environment, variables.rank)
    size = _integer(environment, variables.size)
    if size == 1 and variables.starts_anything:
        return SINGLE_PROCESS
    if not 0 <= rank < size:
        raise BadEnvironment(
            f"{variables.rank}={rank} does not fit {variables.size}={size}",
            f"ranks go from 0 to {variables.size}-1; unset both to run alone",
            rank=rank,
        )
    local_rank = _integer(environment, variables.local_rank, default=rank)
    local_size = _integer(environment, variables.local_size, default=size)
    return World(variables.launcher, variables.backend, rank, size, local_rank, local_size)


def _integer(environment: Mapping[str, str], name: str, default: int | None = None) -> int:
    text = environment.get(name)
    if text is None and default is not None:
        return default
    # Slurm writes "2(x3)" for two tasks on each of three nodes.
    digits = (text or "").split("(")[0].split(",")[0]
    try:
        return int(digits)
    except ValueError:
        raise BadEnvironment(f"{name}={text!r} is no integer", f"let the launcher set {name}, or unset it") from None


def _from_tf_config(text: str) -> World:
    try:
        config = json.loads(text)
        cluster, task = config["cluster"], config["task"]
        kind, index = task["type"], task["index"]
        # MultiWorkerMirroredStrategy counts the chief first.
        addresses = [*cluster.get("chief", []), *cluster.get("worker", [])]
        rank = index + (len(cluster.get("chief", [])) if kind == "worker" else 0)
        address = cluster[kind][index]
    except (ValueError, KeyError, IndexError, TypeError, AttributeError) as error:
        raise BadEnvironment(
            f"TF_CONFIG is broken ({type(error).__name__}: {error})",
            'set it to {"cluster": {"worker": ["host:port", ...]}, "task": {"type": "worker", "index": 0}}',
        ) from None
    if kind not in ("chief", "worker") or index < 0:
        raise BadEnvironment(
            f"TF_CONFIG names the task {kind} {index}", "run distgrad on tasks of type chief or worker, from index 0"
        )
    return _tf_world(addresses, address, rank)


def _tf_world(addresses: list[str], address: str, rank: int) -> World:
    """Count the workers of this worker's host by their addresses."""
    duplicates = sorted({one for one in addresses if addresses.count(one) > 1})
    if duplicates:
        raise BadEnvironment(
            f"TF_CONFIG gives two workers the address {duplicates[0]}", "give every worker its own port"
        )
    host = address.rpartition(":")[0]
    same_host = [one for one in addresses if one.rpartition(":")[0] == host]
    return World("TF_CONFIG", "tf", rank, len(addresses), same_host.index(address), len(same_host))
