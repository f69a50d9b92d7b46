"""Every launcher's command line for the same job.

No value of an environment variable stands in a command line, where every user of the machine could read it.
"""

import contextlib
import json
import socket
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from distgrad.launching.hosts import Host


class JobSpec(NamedTuple):
    """A job to be started.

    Attributes:
        worker: the command line of one worker.
        size: how many workers there are.
        hosts: where they run; if empty, on this host or wherever a batch system says.
        oversubscribe: True allows more workers than the launcher counts slots.
        forwarded: names of the environment variables that workers on other hosts need.
    """

    worker: Sequence[str]
    size: int
    hosts: Sequence[Host] = ()
    oversubscribe: bool = True
    forwarded: Sequence[str] = ()


class Command(NamedTuple):
    """One process to start.

    Attributes:
        words: its command line.
        environment: variables to add to its environment.
    """

    words: list[str]
    environment: Mapping[str, str] = {}


def open_mpi_4(job: JobSpec) -> list[Command]:
    """Return Open MPI 4's command."""
    return _open_mpi(job, ["--oversubscribe"])


def open_mpi_5(job: JobSpec) -> list[Command]:
    """Return Open MPI 5's command; its launcher, PRRTE, takes oversubscription as a way of mapping."""
    return _open_mpi(job, ["--map-by", ":OVERSUBSCRIBE"])


def _open_mpi(job: JobSpec, oversubscribe: list[str]) -> list[Command]:
    """`--bind-to none`: the worker's wrapper gives it its cores."""
    crowded = oversubscribe if job.oversubscribe else []
    exported = [word for name in job.forwarded for word in ("-x", name)]
    return [Command(["mpirun", *crowded, "--bind-to", "none", *_hosts(job, "-H"), *exported, *_workers(job)])]


def mpich(job: JobSpec) -> list[Command]:
    """Return MPICH's command; its launcher, Hydra, forwards its whole environment and needs no oversubscription."""
    return [Command(["mpirun", "-bind-to", "none", *_hosts(job, "-hosts"), *_workers(job)])]


def horovodrun_gloo(job: JobSpec) -> list[Command]:
    """Return the command of Horovod's own launcher and rendezvous."""
    return [Command(["horovodrun", "--gloo", *_hosts(job, "-H"), *_workers(job)])]


def horovodrun_mpi(job: JobSpec) -> list[Command]:
    """Return the command of Horovod's launcher over Open MPI 4."""
    return _horovodrun_mpi(job, [])


def horovodrun_mpi_5(job: JobSpec) -> list[Command]:
    """Return the command of Horovod's launcher over Open MPI 5.

    By itself it gives Open MPI flags with one dash, which version 5 refuses.
    """
    return _horovodrun_mpi(job, ["--binding-args=--bind-to none --map-by slot"])


def _horovodrun_mpi(job: JobSpec, binding: list[str]) -> list[Command]:
    words = ["horovodrun", "--mpi", *binding, *_hosts(job, "-H"), *_workers(job)]
    return [Command(words, {"DISTGRAD_BACKEND": "horovod"})]  # the workers see mpirun's variables alone


def tf_workers(job: JobSpec) -> list[Command]:
    """Return a command for each task of MultiWorkerMirroredStrategy, on ports of this host that are free now."""
    addresses = free_addresses(job.size)
    tasks = [{"type": "worker", "index": index} for index in range(job.size)]
    configs = [json.dumps({"cluster": {"worker": addresses}, "task": task}) for task in tasks]
    return [Command(list(job.worker), {"TF_CONFIG": config}) for config in configs]


def alone(job: JobSpec) -> list[Command]:
    """Return the worker's own command: no launcher."""
    return [Command(list(job.worker), {"DISTGRAD_BACKEND": "solo"})]


COMMANDS: dict[str, Callable[[JobSpec], list[Command]]] = {
    "Open MPI 4": open_mpi_4,
    "Open MPI 5": open_mpi_5,
    "MPICH": mpich,
    "horovodrun --gloo": horovodrun_gloo,
    "horovodrun --mpi": horovodrun_mpi,
    "horovodrun --mpi on Open MPI 5": horovodrun_mpi_5,
    "TF_CONFIG": tf_workers,
    "alone": alone,
}


def _hosts(job: JobSpec, option: str) -> list[str]:
    return [option, ",".join(map(str, job.hosts))] if job.hosts else []


def _workers(job: JobSpec) -> list[str]:
    return ["-np", str(job.size), *job.worker]


def free_addresses(count: int) -> list[str]:
    """Return `count` addresses `127.0.0.1:port` on which nothing listens."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]  # all open at once, so that they differ
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [f"127.0.0.1:{one.getsockname()[1]}" for one in sockets]
