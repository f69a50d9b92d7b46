"""Every launcher's command line for the same job.

A command starts `size` workers, or is one of several that do, and may add to the environment of whoever calls it.
No value of an environment variable stands in a command line, where every user of the machine could read it.
"""

import contextlib
import json
import socket
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from distgrad.launching.hosts import Host


class Order(NamedTuple):
    """What is to be started.

    Attributes:
        worker: the command line of one worker.
        size: how many of them.
        hosts: where; on this host if empty, or wherever a batch system says.
        oversubscribe: let there be more workers than the launcher counts slots.
        forwarded: names of the environment variables that workers on other hosts need.
    """

    worker: Sequence[str]
    size: int
    hosts: Sequence[Host] = ()
    oversubscribe: bool = True
    forwarded: Sequence[str] = ()


class Command(NamedTuple):
    """One process to start: its words, and what it needs in its environment besides."""

    words: list[str]
    environment: Mapping[str, str] = {}


def open_mpi_4(order: Order) -> list[Command]:
    """`--bind-to none`: a keeper gives its worker cores, as many as there are for each."""
    crowd = ["--oversubscribe"] if order.oversubscribe else []
    return [Command(["mpirun", *crowd, "--bind-to", "none", *_places(order, "-H"), *_x(order), *_count(order)])]


def open_mpi_5(order: Order) -> list[Command]:
    """Its launcher is PRRTE, which wants oversubscription as a way of mapping."""
    crowd = ["--map-by", ":OVERSUBSCRIBE"] if order.oversubscribe else []
    return [Command(["mpirun", *crowd, "--bind-to", "none", *_places(order, "-H"), *_x(order), *_count(order)])]


def mpich(order: Order) -> list[Command]:
    """Hydra hands its whole environment on by itself, and lets workers crowd."""
    return [Command(["mpirun", "-bind-to", "none", *_places(order, "-hosts"), *_count(order)])]


def horovodrun_gloo(order: Order) -> list[Command]:
    """Horovod's own launcher and rendezvous."""
    return [Command(["horovodrun", "--gloo", *_places(order, "-H"), *_count(order)])]


def horovodrun_mpi(order: Order) -> list[Command]:
    """Horovod's launcher over Open MPI 4. Its workers look like any mpirun's, so they are told who they are."""
    words = ["horovodrun", "--mpi", *_places(order, "-H"), *_count(order)]
    return [Command(words, {"DISTGRAD_BACKEND": "horovod"})]


def horovodrun_mpi_5(order: Order) -> list[Command]:
    """Horovod passes Open MPI flags with one dash that version 5 refuses, unless it is given others."""
    binding = "--binding-args=--bind-to none --map-by slot"
    words = ["horovodrun", "--mpi", binding, *_places(order, "-H"), *_count(order)]
    return [Command(words, {"DISTGRAD_BACKEND": "horovod"})]


def tf_workers(order: Order) -> list[Command]:
    """A process for each task of MultiWorkerMirroredStrategy, on ports of this host that are free now."""
    addresses = free_addresses(order.size)
    tasks = [{"type": "worker", "index": index} for index in range(order.size)]
    configs = [json.dumps({"cluster": {"worker": addresses}, "task": task}) for task in tasks]
    return [Command(list(order.worker), {"TF_CONFIG": config}) for config in configs]


def alone(order: Order) -> list[Command]:
    """No launcher."""
    return [Command(list(order.worker), {"DISTGRAD_BACKEND": "solo"})]


LAUNCHERS: dict[str, Callable[[Order], list[Command]]] = {
    "Open MPI 4": open_mpi_4,
    "Open MPI 5": open_mpi_5,
    "MPICH": mpich,
    "horovodrun --gloo": horovodrun_gloo,
    "horovodrun --mpi": horovodrun_mpi,
    "horovodrun --mpi on Open MPI 5": horovodrun_mpi_5,
    "TF_CONFIG": tf_workers,
    "alone": alone,
}


def _places(order: Order, option: str) -> list[str]:
    return [option, ",".join(map(str, order.hosts))] if order.hosts else []


def _x(order: Order) -> list[str]:
    return [word for name in order.forwarded for word in ("-x", name)]


def _count(order: Order) -> list[str]:
    return ["-np", str(order.size), *order.worker]


def free_addresses(count: int) -> list[str]:
    """Ports of the loopback that nobody listens on; all are held at once so that they differ."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [f"127.0.0.1:{one.getsockname()[1]}" for one in sockets]
