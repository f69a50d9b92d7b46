"""Rank and size of this process, as its launcher's environment variables give them.

Nothing is done but reading variables: no engine and no TensorFlow is imported, so errors come within milliseconds and
before any process waits for another.
"""

import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from distgrad.errors import BadEnvironment, WorldMismatch, shown
from distgrad.launching.tf_config import parse_tf_config

INTEGER = re.compile(r"-?[0-9]{1,9}")
TASKS_PER_NODE = re.compile(r"(?P<tasks>[0-9]{1,9})(?:\(x(?P<nodes>[0-9]{1,9})\))?")


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
BY_LAUNCHER = {variables.launcher: variables for variables in LAUNCHER_VARIABLES}


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
            BadEnvironment: a variable is no integer, or out of range (status 78).
            WorldMismatch: the variables of two launchers contradict each other (76).

        >>> World.from_environment({"HOROVOD_RANK": "1", "HOROVOD_SIZE": "4"})
        World(launcher='horovodrun', backend='horovod', rank=1, size=4, local_rank=1, local_size=4)
        """
        places = _places(environment)
        several = [place for place in places if place.size > 1]
        if "TF_CONFIG" in environment:
            world = cls("TF_CONFIG", "tf", *parse_tf_config(environment["TF_CONFIG"]))
            _require_agreement(Place("TF_CONFIG", world.rank, world.size), several)
            return world
        if several:
            _require_agreement(several[0], several[1:])
        first = next(iter(several or places), None)
        return SINGLE_PROCESS if first is None else _world(first, environment)

    @property
    def prints_for_host(self) -> bool:
        """True if this process prints what all processes of its host would print alike."""
        return self.local_rank == 0


SINGLE_PROCESS = World(None, "solo", 0, 1, 0, 1)


class Place(NamedTuple):
    """What one launcher says of this process: that it is worker `rank` of `size`."""

    launcher: str
    rank: int
    size: int


def _places(environment: Mapping[str, str]) -> list[Place]:
    """Return what each launcher says whose variables are there, in their order of preference.

    Left out is srun where another launcher numbers the workers: its daemons, or one job in each of its tasks, are what
    srun has started. So are srun's own PMI variables.
    """
    places = [
        _place(variables, environment)
        for variables in LAUNCHER_VARIABLES
        if variables.rank in environment and variables.size in environment
    ]
    outer = [place[1:] for place in places if place.launcher == "srun"]
    inner = [place for place in places if place.launcher not in ("srun", "MPICH") or place[1:] not in outer]
    return inner if {"horovodrun", "Open MPI", "MPICH"} & {place.launcher for place in inner} else places


def _place(variables: LauncherVariables, environment: Mapping[str, str]) -> Place:
    rank, size = _integer(environment, variables.rank), _integer(environment, variables.size)
    if size != 1 or not variables.starts_anything:
        _require_fit(variables.rank, rank, variables.size, size, rank)
    return Place(variables.launcher, rank, size)


def _require_agreement(one: Place, others: Sequence[Place]) -> None:
    """Check that all launchers say the same; several processes would otherwise take themselves for the same worker.

    Raises:
        WorldMismatch: one says something else.
    """
    for other in others:
        if other[1:] != one[1:]:
            raise WorldMismatch(
                f"{one.launcher} says that this is worker {one.rank} of {one.size}, but {other.launcher} says worker "
                f"{other.rank} of {other.size}",
                f"launch with one of them alone; unset {_names(one)}, or {_names(other)}, if another job has left them",
            )


def _names(place: Place) -> str:
    """Return the names of the variables that say it."""
    variables = BY_LAUNCHER.get(place.launcher)
    return f"{variables.rank} and {variables.size}" if variables else place.launcher


def _world(place: Place, environment: Mapping[str, str]) -> World:
    """Return the world of a place, with the place among the workers of its host."""
    variables, rank, size = BY_LAUNCHER[place.launcher], place.rank, place.size
    if size == 1 and variables.starts_anything:
        return SINGLE_PROCESS
    if variables.local_rank not in environment:
        return World(variables.launcher, variables.backend, rank, size, rank, size)
    local_rank, local_size = _integer(environment, variables.local_rank), _local_size(variables, environment, size)
    _require_fit(variables.local_rank, local_rank, variables.local_size, local_size, rank)
    if local_size > size:
        raise BadEnvironment(
            f"{variables.local_size}={local_size} does not fit {variables.size}={size}",
            "no host has more workers than there are; unset all that the launcher has set to run alone",
            rank=rank,
        )
    return World(variables.launcher, variables.backend, rank, size, local_rank, local_size)


def _require_fit(rank_name: str, rank: int, size_name: str, size: int, worker: int) -> None:
    if not 0 <= rank < size:
        raise BadEnvironment(
            f"{rank_name}={rank} does not fit {size_name}={size}",
            f"ranks go from 0 to {size_name}-1; unset all that the launcher has set to run alone",
            rank=worker,
        )


def _integer(environment: Mapping[str, str], name: str, default: int | None = None) -> int:
    text = environment.get(name)
    if text is None and default is not None:
        return default
    if not INTEGER.fullmatch(text or ""):
        raise BadEnvironment(f"{name}={shown(text)} is no integer", f"let the launcher set {name}, or unset it")
    return int(text or "")


def _local_size(variables: LauncherVariables, environment: Mapping[str, str], size: int) -> int:
    """Return the number of workers of this worker's host; `size` where the launcher does not say it.

    Slurm writes those of all hosts: "2(x3),1" for two tasks on each of three nodes and one on a fourth.
    """
    text = environment.get(variables.local_size)
    if text is None or variables.launcher != "srun":
        return _integer(environment, variables.local_size, default=size)
    node, tasks, nodes = _integer(environment, "SLURM_NODEID", default=0), 0, 0
    for part in text.split(","):
        found = TASKS_PER_NODE.fullmatch(part)
        if found is None:
            raise BadEnvironment(
                f"{variables.local_size}={shown(text)} is no list of integers",
                f"let the launcher set {variables.local_size}, or unset it",
            )
        tasks, nodes = int(found["tasks"]), nodes + int(found["nodes"] or 1)
        if node < nodes:
            break
    return tasks
