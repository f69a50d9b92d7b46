"""Who am I? Rank and size of this process as its launcher's environment tells them.

Pure reading of variables: no engine and no TensorFlow is imported, so errors come within milliseconds and
before any process waits for another.
"""

import json
from collections.abc import Mapping
from typing import NamedTuple

from distgrad.errors import BadEnvironment


class Launcher(NamedTuple):
    """The environment variables one kind of launcher sets, and the backend that fits it."""

    name: str
    backend: str
    rank: str
    size: str
    local_rank: str
    local_size: str
    starts_anything: bool = False  # it is used for programs of one process too, which then need no engine


# In order of preference: an inner launcher (horovodrun's own Gloo workers) before an outer one (Slurm's step).
LAUNCHERS = (
    Launcher("horovodrun", "horovod", "HOROVOD_RANK", "HOROVOD_SIZE", "HOROVOD_LOCAL_RANK", "HOROVOD_LOCAL_SIZE"),
    Launcher(
        "Open MPI",
        "mpi",
        "OMPI_COMM_WORLD_RANK",
        "OMPI_COMM_WORLD_SIZE",
        "OMPI_COMM_WORLD_LOCAL_RANK",
        "OMPI_COMM_WORLD_LOCAL_SIZE",
    ),
    Launcher("MPICH", "mpi", "PMI_RANK", "PMI_SIZE", "MPI_LOCALRANKID", "MPI_LOCALNRANKS"),
    Launcher("srun", "mpi", "SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID", "SLURM_STEP_TASKS_PER_NODE", True),
    # No engine of ours joins torchrun's workers; knowing its variables keeps n of them from training alone.
    Launcher("torchrun", "solo", "RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", True),
)


class World(NamedTuple):
    """What the launcher says: its name (None when there is none), the backend it suits, ranks and sizes."""

    launcher: str | None
    backend: str
    rank: int
    size: int
    local_rank: int
    local_size: int

    @classmethod
    def from_environment(cls, environment: Mapping[str, str]) -> "World":
        """Read the launcher's variables; without any, this is a world of one.

        Raises:
            BadEnvironment: a variable is missing beside its partner, no integer, or out of range (status 78).

        >>> World.from_environment({"HOROVOD_RANK": "1", "HOROVOD_SIZE": "4"})
        World(launcher='horovodrun', backend='horovod', rank=1, size=4, local_rank=1, local_size=4)
        """
        if "TF_CONFIG" in environment:
            return _from_tf_config(environment["TF_CONFIG"])
        for launcher in LAUNCHERS:
            if launcher.rank in environment and launcher.size in environment:
                return _from_launcher(launcher, environment)
        return ALONE

    @property
    def speaks(self) -> bool:
        """Whether this process prints what all processes of its host would print alike."""
        return self.local_rank == 0


ALONE = World(None, "solo", 0, 1, 0, 1)


def _from_launcher(launcher: Launcher, environment: Mapping[str, str]) -> World:
    rank = _integer(environment, launcher.rank)
    size = _integer(environment, launcher.size)
    if size == 1 and launcher.starts_anything:
        return ALONE
    if not 0 <= rank < size:
        raise BadEnvironment(
            f"{launcher.rank}={rank} does not fit {launcher.size}={size}",
            f"ranks go from 0 to {launcher.size}-1; unset both to run alone",
            rank=rank,
        )
    local_rank = _integer(environment, launcher.local_rank, default=rank)
    local_size = _integer(environment, launcher.local_size, default=size)
    return World(launcher.name, launcher.backend, rank, size, local_rank, local_size)


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
        own = cluster[kind][index]
    except (ValueError, KeyError, IndexError, TypeError, AttributeError) as error:
        raise BadEnvironment(
            f"TF_CONFIG is broken ({type(error).__name__}: {error})",
            'set it to {"cluster": {"worker": ["host:port", ...]}, "task": {"type": "worker", "index": 0}}',
        ) from None
    if kind not in ("chief", "worker") or index < 0:
        raise BadEnvironment(
            f"TF_CONFIG names the task {kind} {index}", "run distgrad on tasks of type chief or worker, from index 0"
        )
    return _tf_world(addresses, own, rank)


def _tf_world(addresses: list[str], own: str, rank: int) -> World:
    duplicates = sorted({address for address in addresses if addresses.count(address) > 1})
    if duplicates:
        raise BadEnvironment(
            f"TF_CONFIG gives two workers the address {duplicates[0]}", "give every worker its own port"
        )
    host = own.rpartition(":")[0]
    neighbours = [address for address in addresses if address.rpartition(":")[0] == host]
    return World("TF_CONFIG", "tf", rank, len(addresses), neighbours.index(own), len(neighbours))
