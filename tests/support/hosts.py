"""Two hosts on one, or more: network namespaces, joined by cables of known speed that count their bytes and can be cut.

To the programs in it a namespace is a host of its own: what they send to the other one goes through the kernel's TCP
and over the cable, whose speed `tc` limits, and they do not see its processes. It takes root, and iproute2.
"""

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from distgrad.launching.commands import JobSpec, open_mpi_4
from distgrad.launching.hosts import Host
from support.launching import CLEAN, PATIENCE, Job, finish, start

CABLE = "cable0"  # the name of either end
SUBNET = "10.77.0.0/28"  # it meets no other network, so that every pair of hosts can have the same
ADDRESSES = ("10.77.0.1", "10.77.0.2")
PLACES = ",".join(f"{address}:1" for address in ADDRESSES)  # a worker on each, as launchers want to be told
# Runs within a worker: how much its host has sent so far.
SENT = f'int(open("/sys/class/net/{CABLE}/statistics/tx_bytes").read())'
# Runs a command on a host, called as mpirun and horovodrun call ssh, with options before the address or behind it.
SSH = """#!/bin/sh
address=
while :; do
    case "$1" in
        -[op]) shift 2 ;;
        -*) shift ;;
        *) [ -z "$address" ] || break; address="$1"; shift ;;
    esac
done
exec ip netns exec "{name}-${{address##*.}}" unshare --uts --pid --fork --mount-proc sh -c "{begin}$*"
"""
NAMESPACES = Path("/etc/netns")  # whose files `ip netns exec` puts in the place of those of /etc


class CannotMake(Exception):
    """This system makes no network namespaces for us."""


class Hosts:
    """Namespaces, while they exist.

    Attributes:
        ssh: a program that runs commands on either.
    """

    def __init__(self, name: str, ssh: Path, count: int) -> None:
        self.names = [f"{name}-{number}" for number in range(1, count + 1)]
        self.ssh = ssh
        self._settings = {
            "PATH": f"{ssh.parent}:{CLEAN['PATH']}",
            # Its folder is named after its process, whose number is small here: others' jobs may have the same.
            "OMPI_MCA_orte_tmpdir_base": str(ssh.parent),
            "OMPI_MCA_plm": "rsh",
            "OMPI_MCA_plm_rsh_agent": str(ssh),
            "OMPI_MCA_btl": "tcp,self",  # the hosts have one name and one memory, which must not be used
            "OMPI_MCA_btl_tcp_if_include": SUBNET,
            "OMPI_MCA_oob_tcp_if_include": SUBNET,
            "OMPI_MCA_mpi_yield_when_idle": "1",  # either daemon knows only of its own ranks
        }

    def run(
        self, ranks: int, command: Sequence[str], *, backend: str = "mpi", timeout: float = PATIENCE, **env: str
    ) -> Job:
        """Run a Python command line with so many ranks on each host."""
        return finish(self.start(mpirun(ranks, command, len(self.names)), DISTGRAD_BACKEND=backend, **env), timeout)

    def start(self, words: Sequence[str], host: int = 0, **env: str) -> subprocess.Popen[str]:
        """Start any program on a host, in whose environment it stands how launchers reach the other one."""
        apart = ["unshare", "--pid", "--fork", "--mount-proc"]
        return start(["ip", "netns", "exec", self.names[host], *apart, *words], self._settings | env)

    def processes(self) -> list[int]:
        """Numbers of those that run on either host."""
        return [process for name in self.names for process in _processes(name)]

    @contextlib.contextmanager
    def cut(self) -> Iterator[None]:
        """Nothing goes through the cable, and nobody is told."""
        _ip("-n", self.names[0], "link", "set", CABLE, "down")
        try:
            yield
        finally:
            _ip("-n", self.names[0], "link", "set", CABLE, "up")


def mpirun(ranks: int, command: Sequence[str], count: int = 2) -> list[str]:
    """What runs a Python command line with so many ranks on each of so many hosts."""
    hosts = [Host(_address(number), ranks) for number in range(count)]
    return list(open_mpi_4(JobSpec(["python", *command], count * ranks, hosts, oversubscribe=False))[0].words)


@contextlib.contextmanager
def joined_hosts(megabits: int | None = None, count: int = 2) -> Iterator[Hosts]:
    """Two hosts, and between them a cable that carries so many Mbit/s each way; or more, each with a cable to a switch.

    Raises:
        CannotMake: no root, no `ip`, or no right to make namespaces.
    """
    if os.geteuid() != 0 or shutil.which("ip") is None:
        raise CannotMake("network namespaces take root and the ip command")
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        ssh = Path(folder, "ssh")
        name = f"distgrad-{os.getpid()}"
        # Open MPI takes three daemons with one host's name for one.
        ssh.write_text(SSH.format(name=name, begin="hostname host${address##*.}; " if count > len(ADDRESSES) else ""))
        ssh.chmod(0o700)
        hosts = Hosts(name, ssh, count)
        switch = f"{name}-switch"
        try:
            _plug(hosts.names, switch, megabits)
            yield hosts
        finally:
            _unplug([*hosts.names, switch])


def _plug(names: Sequence[str], switch: str, megabits: int | None) -> None:
    for name in names:
        _ip("netns", "add", name)
        (NAMESPACES / name).mkdir(parents=True)
    if len(names) == len(ADDRESSES):
        _ip("link", "add", CABLE, "netns", names[0], "type", "veth", "peer", "name", CABLE, "netns", names[1])
    else:
        _plug_into_switch(names, switch)
    for number, name in enumerate(names):
        address = _address(number)
        _ip("-n", name, "address", "add", f"{address}/{SUBNET.partition('/')[2]}", "dev", CABLE)
        # Gloo listens where its host's name leads, and both have this one's.
        (NAMESPACES / name / "hosts").write_text(f"127.0.0.1 localhost\n{address} {socket.gethostname()}\n")
        for device in ("lo", CABLE):
            _ip("-n", name, "link", "set", device, "up")
        if megabits is not None:
            limit = f"tc qdisc add dev {CABLE} root tbf rate {megabits}mbit burst 256kb latency 50ms"
            _ip("netns", "exec", name, *limit.split())


def _plug_into_switch(names: Sequence[str], switch: str) -> None:
    _ip("netns", "add", switch)
    _ip("-n", switch, "link", "add", "bridge0", "type", "bridge")
    _ip("-n", switch, "link", "set", "bridge0", "up")
    for number, name in enumerate(names):
        port = f"port{number}"
        _ip("link", "add", CABLE, "netns", name, "type", "veth", "peer", "name", port, "netns", switch)
        _ip("-n", switch, "link", "set", port, "master", "bridge0", "up")


def _address(number: int) -> str:
    return f"10.77.0.{number + 1}"


def _unplug(names: Sequence[str]) -> None:
    """Remove the namespaces, and with them the cable, as far as they were made; end what still runs in them."""
    for name in names:
        for process in _processes(name):
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)
        subprocess.run(["ip", "netns", "delete", name], capture_output=True, check=False)
        shutil.rmtree(NAMESPACES / name, ignore_errors=True)


def _processes(name: str) -> list[int]:
    found = subprocess.run(["ip", "netns", "pids", name], capture_output=True, text=True, check=False)
    return [int(word) for word in found.stdout.split()]


def _ip(*words: str) -> None:
    done = subprocess.run(["ip", *words], capture_output=True, text=True, check=False)
    if done.returncode:
        raise CannotMake(f"ip {' '.join(words)}: {done.stderr.strip()}")
