"""Checks of the machine and of its environment variables: shared memory, GPUs, ports, an outer launcher."""

import contextlib
import json
import shutil
import socket
from collections.abc import Iterator, Mapping
from pathlib import Path

from distgrad.doctor.finding import OK, PROBLEM, Finding
from distgrad.doctor.processes import ProcessFailed, run_python
from distgrad.errors import DistgradError
from distgrad.launching.hosts import core_count, require_gpus, visible_gpus
from distgrad.launching.world import World

SHARED_MEMORY = Path("/dev/shm")
ENOUGH_MEMORY = 256 << 20  # bytes; Docker gives 64 MB by default
CONNECT_PROGRAM = """
import json, distgrad
try:
    with distgrad.connect():
        error = None
except distgrad.DistgradError as caught:
    error = {"cause": caught.cause, "fix": caught.fix}
print(json.dumps(error))
"""


def examine(size: int, environment: Mapping[str, str]) -> Iterator[Finding]:
    """Yield the findings that need no engine, for a job of `size` workers on this host."""
    yield shared_memory()
    yield devices(size, environment)
    yield host_name()
    yield ports(environment)
    yield launcher(environment)


def shared_memory() -> Finding:
    """Check the room for shared memory.

    distgrad's own sums do not need it, but the messages of Open MPI and NCCL do.
    """
    if not SHARED_MEMORY.is_dir():
        return Finding("shared memory", PROBLEM, f"there is no {SHARED_MEMORY}", "mount a tmpfs there")
    total = shutil.disk_usage(SHARED_MEMORY).total
    found = f"{SHARED_MEMORY} has {total >> 20} MB"
    if total < ENOUGH_MEMORY:
        fix = "docker run --shm-size=1g; in Kubernetes mount an emptyDir of medium Memory there"
        return Finding("shared memory", PROBLEM, f"{found}; MPI and NCCL may crash for want of it", fix)
    return Finding("shared memory", OK, found)


def devices(size: int, environment: Mapping[str, str]) -> Finding:
    """Check that each worker has cores and a GPU for itself."""
    try:
        require_gpus(size, environment)
        gpus = visible_gpus(environment) or [path.name for path in Path("/dev").glob("nvidia[0-9]*")]
    except DistgradError as error:
        return Finding("devices", PROBLEM, error.cause, error.fix)
    found = f"{core_count()} cores, {len(gpus)} GPUs"
    if gpus and size > len(gpus):
        return Finding("devices", PROBLEM, f"{found}: {size} workers would share them", f"run {len(gpus)} here")
    if size > core_count():
        return Finding("devices", PROBLEM, f"{found}: {size} workers take turns", f"run {core_count()} here")
    return Finding("devices", OK, found)


def host_name() -> Finding:
    """Check that this host's name resolves: Gloo crashes where it does not, as in some containers."""
    name = socket.gethostname()
    try:
        socket.gethostbyname(name)
    except OSError:
        fix = f"add the line `127.0.0.1 {name}` to /etc/hosts"
        return Finding("host name", PROBLEM, f"{name} does not resolve; Horovod over Gloo crashes then", fix)
    return Finding("host name", OK, f"{name} resolves")


def ports(environment: Mapping[str, str]) -> Finding:
    """Check that a worker can listen on the address that TF_CONFIG gives it, and on the loopback."""
    busy = [address for address in _task_addresses(environment) if not _is_free(address)]
    if busy:
        cause = f"port {busy[0].rpartition(':')[2]} of {busy[0]}, which TF_CONFIG gives to this worker, is in use"
        return Finding("ports", PROBLEM, cause, "end what listens there (ss -ltnp shows it), or choose another port")
    if not _is_free("127.0.0.1:0"):
        return Finding("ports", PROBLEM, "nothing can listen on the loopback", "bring it up: ip link set lo up")
    return Finding("ports", OK, "free")


def _task_addresses(environment: Mapping[str, str]) -> list[str]:
    """Return this task's address; none if TF_CONFIG is broken, which `launcher` reports."""
    with contextlib.suppress(ValueError, KeyError, IndexError, TypeError):
        config = json.loads(environment["TF_CONFIG"])
        return [config["cluster"][config["task"]["type"]][config["task"]["index"]]]
    return []


def _is_free(address: str) -> bool:
    host, _, port = address.rpartition(":")
    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((host, int(port)))
        except (OSError, ValueError):
            return False
    return True


def launcher(environment: Mapping[str, str]) -> Finding:
    """Check that the workers of a launcher that has started this process find each other."""
    try:
        world = World.from_environment(environment)
    except DistgradError as error:
        return Finding("launcher", PROBLEM, error.cause, error.fix)
    if world.size == 1:
        return Finding("launcher", OK, "none outside")
    try:
        found = run_python(["-c", CONNECT_PROGRAM])
    except ProcessFailed as failure:
        return Finding(
            "launcher", PROBLEM, f"a worker of {world.launcher} fails: {failure}", "run `distgrad run` instead"
        )
    if found:
        return Finding("launcher", PROBLEM, found["cause"], found["fix"])
    return Finding("launcher", OK, f"{world.launcher}, {world.size} workers, which find each other")


def is_launched(environment: Mapping[str, str]) -> bool:
    """True if a launcher has started this process as one of several, or has left broken variables."""
    try:
        return World.from_environment(environment).size > 1
    except DistgradError:
        return True
