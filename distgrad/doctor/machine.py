"""What the machine has and what its environment says: shared memory, GPUs, ports, a launcher outside."""

import contextlib
import json
import shutil
import socket
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from distgrad.doctor.finding import OK, PROBLEM, Failed, Finding, ask
from distgrad.errors import DistgradError
from distgrad.launching.hosts import core_count, require_gpus, visible_gpus
from distgrad.launching.world import World

SHARED = Path("/dev/shm")
ENOUGH = 256 << 20  # bytes; Docker gives 64 MB by default
CONNECT = """
import json, distgrad
try:
    with distgrad.connect():
        answer = None
except distgrad.DistgradError as error:
    answer = [error.cause, error.fix]
print(json.dumps(answer))
"""


def examine(size: int, environment: Mapping[str, str]) -> Iterator[Finding]:
    """All that can be seen without an engine, for a job of so many workers on this host."""
    yield shared_memory()
    yield devices(size, environment)
    yield host_name()
    yield ports(environment)
    yield launcher(environment)


def shared_memory(folder: Path = SHARED) -> Finding:
    """The sums of distgrad have memory without a name; Open MPI's and NCCL's own messages live in this folder."""
    if not folder.is_dir():
        return Finding("shared memory", PROBLEM, f"there is no {folder}", "mount a tmpfs there")
    total = shutil.disk_usage(folder).total
    found = f"{folder} has {total >> 20} MB"
    if total < ENOUGH:
        fix = "docker run --shm-size=1g; in Kubernetes mount an emptyDir of medium Memory there"
        return Finding("shared memory", PROBLEM, f"{found}; MPI and NCCL may crash for want of it", fix)
    return Finding("shared memory", OK, found)


def devices(size: int, environment: Mapping[str, str]) -> Finding:
    """Whether each worker has cores and a GPU for itself."""
    try:
        require_gpus(size, environment)
        gpus = visible_gpus(environment) or _gpus_of_this_host()
    except DistgradError as error:
        return Finding("devices", PROBLEM, error.cause, error.fix)
    found = f"{core_count()} cores, {len(gpus)} GPUs"
    if gpus and size > len(gpus):
        return Finding("devices", PROBLEM, f"{found}: {size} workers would share them", f"run {len(gpus)} here")
    if size > core_count():
        return Finding("devices", PROBLEM, f"{found}: {size} workers take turns", f"run {core_count()} here")
    return Finding("devices", OK, found)


def _gpus_of_this_host() -> Sequence[str]:
    return [path.name for path in Path("/dev").glob("nvidia[0-9]*")]


def host_name() -> Finding:
    """Gloo looks up its own host without asking whether that is known, as it may not be within a container."""
    name = socket.gethostname()
    try:
        socket.gethostbyname(name)
    except OSError:
        fix = f"add the line `127.0.0.1 {name}` to /etc/hosts"
        return Finding("host name", PROBLEM, f"{name} does not resolve; Horovod over Gloo crashes then", fix)
    return Finding("host name", OK, f"{name} resolves")


def ports(environment: Mapping[str, str]) -> Finding:
    """Whether a worker could listen where it is told to."""
    busy = [address for address in _own_addresses(environment) if not _is_free(address)]
    if busy:
        cause = f"port {busy[0].rpartition(':')[2]} of {busy[0]}, which TF_CONFIG gives to this worker, is in use"
        return Finding("ports", PROBLEM, cause, "end what listens there (ss -ltnp shows it), or choose another port")
    if not _is_free("127.0.0.1:0"):
        return Finding("ports", PROBLEM, "nothing can listen on the loopback", "bring it up: ip link set lo up")
    return Finding("ports", OK, "free")


def _own_addresses(environment: Mapping[str, str]) -> list[str]:
    """This task's address; a broken TF_CONFIG is the launcher's finding."""
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
    """Whether the workers that a launcher says it started find each other, where this is one of them."""
    try:
        world = World.from_environment(environment)
    except DistgradError as error:
        return Finding("launcher", PROBLEM, error.cause, error.fix)
    if world.size == 1:
        return Finding("launcher", OK, "none outside")
    try:
        wrong = ask(["-c", CONNECT])
    except Failed as failure:
        return Finding(
            "launcher", PROBLEM, f"a worker of {world.launcher} fails: {failure}", "run `distgrad run` instead"
        )
    if wrong:
        return Finding("launcher", PROBLEM, *wrong)
    return Finding("launcher", OK, f"{world.launcher}, {world.size} workers, which find each other")


def is_launched(environment: Mapping[str, str]) -> bool:
    """Whether a launcher has started this process as one of several, or has left something broken."""
    try:
        return World.from_environment(environment).size > 1
    except DistgradError:
        return True
