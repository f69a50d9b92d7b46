"""A Slurm of one node on this machine, from Debian's packages: slurm-wlm and munge. It takes root."""

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from support.launching import run

NEEDED = ("munged", "slurmctld", "slurmd", "sbatch")
CONFIGURATION = """
ClusterName=test
SlurmctldHost={name}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmdPort={ports[1]}
SlurmUser=root
AuthInfo=socket={folder}/munge.socket
MpiDefault=none
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
ReturnToService=2
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmdSpoolDir={folder}/spool
StateSaveLocation={folder}/state
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
NodeName={name} NodeAddr=127.0.0.1 CPUs=2 State=UNKNOWN
PartitionName=all Nodes=ALL Default=YES State=UP
"""


class CannotRun(Exception):
    """This system runs no Slurm for us."""


@contextlib.contextmanager
def one_node() -> Iterator[dict[str, str]]:
    """Gives what its commands need in their environment.

    Raises:
        CannotRun: no root, or the packages are not installed.
    """
    absent = [program for program in NEEDED if shutil.which(program) is None]
    if absent or os.geteuid() != 0:
        raise CannotRun(
            "Slurm takes root and Debian's slurm-wlm and munge: " + (f"no {absent[0]}" if absent else "no root")
        )
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o755)  # munge trusts no socket in a folder that others may not see
        _configure(folder)
        environment = {"SLURM_CONF": str(folder / "slurm.conf")}
        try:
            _start(folder, environment)
            yield environment
        finally:
            _stop(folder)


def _configure(folder: Path) -> None:
    with contextlib.ExitStack() as stack:
        listeners = [stack.enter_context(socket.socket()) for _ in range(2)]
        for listener in listeners:
            listener.bind(("127.0.0.1", 0))
        ports = [listener.getsockname()[1] for listener in listeners]
    name = socket.gethostname().split(".", maxsplit=1)[0]
    (folder / "slurm.conf").write_text(CONFIGURATION.format(name=name, ports=ports, folder=folder))
    for part in ("spool", "state"):
        (folder / part).mkdir()
    (folder / "munge.key").write_bytes(os.urandom(1024))
    (folder / "munge.key").chmod(0o400)


def _start(folder: Path, environment: dict[str, str]) -> None:
    files = {"socket": "socket", "key-file": "key", "pid-file": "pid", "log-file": "log", "seed-file": "seed"}
    munged = ["munged", "--force", *(f"--{option}={folder}/munge.{end}" for option, end in files.items())]
    for command in (munged, ["slurmctld", "-c"], ["slurmd"]):
        started = subprocess.run(
            command, env={**os.environ, **environment}, capture_output=True, text=True, check=False
        )
        if started.returncode:
            raise CannotRun(f"{command[0]}: {started.stderr.strip()}")
    end = time.monotonic() + 20
    while "idle" not in run(["sinfo", "--noheader", "--format=%T"], env=environment).out:
        if time.monotonic() > end:
            raise CannotRun(f"the node does not come up: {(folder / 'slurmctld.log').read_text()[-500:]}")
        time.sleep(0.5)


def _stop(folder: Path) -> None:
    for name in ("slurmd", "slurmctld", "munge"):
        with contextlib.suppress(OSError, ValueError):
            os.kill(int((folder / f"{name}.pid").read_text()), signal.SIGTERM)
    time.sleep(1)  # they tidy up the folder
