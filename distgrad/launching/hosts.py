"""The hosts that workers run on: their slots, their cores and GPUs, and which of them can be reached."""

import os
import re
import shlex
import socket
import subprocess
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from distgrad.errors import BadArgument, BadEnvironment, shown

ANSWER_TIMEOUT = 10.0  # seconds for a host to answer
AGENT_VARIABLES = ("OMPI_MCA_plm_rsh_agent", "PRTE_MCA_plm_ssh_agent", "HYDRA_LAUNCHER_EXEC")  # they replace ssh
# A host's name or address, perhaps with a user's name, and its slots. No part begins as an option does.
HOST = re.compile(r"(?P<name>(?:\w[\w.-]{0,63}@)?\w[\w.-]{0,252})(?::(?P<slots>[0-9]{1,5}))?", re.ASCII)
GPU = re.compile(r"[\w./:-]{1,100}", re.ASCII)  # a number, or the name of a device or of a part of one
MOST_SLOTS = 65_536  # of a host
# Variables by which a batch system, or Kubernetes's MPI operator, gives the launcher its hosts.
BATCH_SYSTEM_VARIABLES = (
    "SLURM_JOB_ID",
    "PBS_NODEFILE",
    "LSB_HOSTS",
    "OMPI_MCA_orte_default_hostfile",
    "PRTE_MCA_prte_default_hostfile",
    "HYDRA_HOST_FILE",
)


class Host(NamedTuple):
    """A host and how many workers it takes: `h1:2`."""

    name: str
    slots: int

    def __str__(self) -> str:
        return f"{self.name}:{self.slots}"

    @property
    def is_local(self) -> bool:
        """True if it is named by a name of this machine."""
        return self.name in ("localhost", "127.0.0.1", "::1", socket.gethostname())


def parse_hosts(text: str) -> tuple[Host, ...]:
    """Parse `h1:2,h2:2`; a host without a number takes one worker.

    Raises:
        BadArgument: a name is missing or holds other characters than letters, digits, ".", "-", "_" and one "@", or a
            number is not from 1 to MOST_SLOTS.

    >>> parse_hosts("h1:2,h2")
    (Host(name='h1', slots=2), Host(name='h2', slots=1))
    """
    return tuple(_parse_host(part.strip()) for part in text.split(","))


def _parse_host(text: str) -> Host:
    found = HOST.fullmatch(text)
    slots = int(found["slots"] or 1) if found else 0
    if found is None or not 1 <= slots <= MOST_SLOTS:
        raise BadArgument(
            f"{shown(text)} is no host with a number of workers", f"write -H h1:2,h2:2, with 1 to {MOST_SLOTS} on each"
        )
    return Host(found["name"], slots)


def core_count() -> int:
    """Return how many cores this process may use."""
    return len(os.sched_getaffinity(0))


def visible_gpus(environment: Mapping[str, str]) -> list[str] | None:
    """Return the GPUs that CUDA_VISIBLE_DEVICES names, None where it is not set.

    Raises:
        BadEnvironment: a GPU is named twice, so that two workers would share it, or a name is none.
    """
    text = environment.get("CUDA_VISIBLE_DEVICES")
    if text is None:
        return None
    named = [part.strip() for part in text.split(",") if part.strip()]
    named = named[: named.index("-1")] if "-1" in named else named  # CUDA reads no further
    unknown = next((gpu for gpu in named if not GPU.fullmatch(gpu)), None)
    if unknown is not None:
        raise BadEnvironment(f"CUDA_VISIBLE_DEVICES names the GPU {shown(unknown)}", "name GPUs as 0,1")
    times = Counter(named)
    duplicate = next((gpu for gpu in named if times[gpu] > 1), None)
    if duplicate is not None:
        raise BadEnvironment(
            f"CUDA_VISIBLE_DEVICES={shown(text)} names GPU {duplicate} twice, and two workers would share it",
            "name each GPU once",
        )
    return named


def require_slots(size: int, hosts: Sequence[Host]) -> None:
    """Check that the hosts have a slot for each of `size` workers.

    Raises:
        BadArgument: they have fewer.
    """
    slots = sum(host.slots for host in hosts)
    if size > slots:
        room = f"-H {','.join(f'{host.name}:{-(-size // len(hosts))}' for host in hosts)}"
        raise BadArgument(
            f"{size} workers do not fit the {slots} slots of {', '.join(map(str, hosts))}",
            f"ask for at most -np {slots}, name more room with {room}, or say --oversubscribe",
        )


def require_gpus(workers: int, environment: Mapping[str, str]) -> None:
    """Check that this host has a GPU for each of its workers, or none at all.

    Raises:
        BadEnvironment: workers would share a GPU.
    """
    named = visible_gpus(environment)
    if named and workers > len(named):
        raise BadEnvironment(
            f"{workers} workers on this host would share its {len(named)} GPU(s) {','.join(named)}",
            f"run {len(named)} here, or set CUDA_VISIBLE_DEVICES= to compute on the CPU",
        )


def reachable_hosts(hosts: Sequence[Host], environment: Mapping[str, str]) -> tuple[Host, ...]:
    """Return the hosts that can be reached, in their order.

    Raises:
        BadEnvironment: the variable that names the program to reach them is no command line.
    """
    agent = _agent(environment)
    return tuple(host for host in hosts if host.is_local or _answers(agent, host.name, environment))


def _agent(environment: Mapping[str, str]) -> list[str]:
    """Return the command line that reaches a host whose name follows."""
    name = next((name for name in AGENT_VARIABLES if environment.get(name, "").strip()), None)
    if name is None:
        return ["ssh", "-o", "BatchMode=yes", "--"]  # what follows is no option
    try:
        return shlex.split(environment[name])
    except ValueError as error:
        raise BadEnvironment(
            f"{name}={shown(environment[name])} is no command line ({error})", f"correct {name}, or unset it"
        ) from None


def _answers(agent: list[str], name: str, environment: Mapping[str, str]) -> bool:
    command = [*agent, name, "true"]
    null = subprocess.DEVNULL
    try:
        done = subprocess.run(
            command, stdin=null, stdout=null, stderr=null, env=environment, timeout=ANSWER_TIMEOUT, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return False
    return done.returncode == 0
