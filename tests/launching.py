"""Start real workers: each engine's own launcher, under a clock, with nothing left running afterwards."""

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import pytest

from distgrad.bench.jobs import tf_workers

ROOT = Path(__file__).resolve().parent.parent
BIN = Path(sys.executable).parent
# What a plain shell of the user would have: no launcher's variables, no distgrad settings.
CLEAN = {
    name: value
    for name, value in os.environ.items()
    if not name.startswith(("OMPI_", "PMI", "HOROVOD_", "SLURM_", "DISTGRAD_")) and name != "TF_CONFIG"
} | {
    "PATH": f"{BIN}:{os.environ['PATH']}",
    "OMPI_ALLOW_RUN_AS_ROOT": "1",
    "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
    "TF_CPP_MIN_LOG_LEVEL": "3",
    "TF_NUM_INTRAOP_THREADS": "1",
    "NO_COLOR": "1",
}
if shutil.which("ssh") is None:
    CLEAN["OMPI_MCA_plm"] = "isolated"  # mpirun would give up, although all workers are on this host


class Job(NamedTuple):
    """What came of one launch. A status below 0 is a signal; -9 after a timeout is the clock's."""

    status: int
    out: str
    err: str
    seconds: float

    def lines(self, start: str) -> list[str]:
        """The output lines that start so, without horovodrun's rank prefix, which it puts before every write."""
        plain = re.sub(r"\[[\d,]+\]<stdout>:", "", self.out)
        return [line for line in plain.splitlines() if line.startswith(start)]


def horovod_installed() -> bool:
    return shutil.which("horovodrun", path=CLEAN["PATH"]) is not None


needs_horovod = pytest.mark.skipif(not horovod_installed(), reason="Horovod is not installed")


def run(
    command: Sequence[str | Path], *, timeout: float = 120, env: Mapping[str, str] | None = None, cwd: Path = ROOT
) -> Job:
    """Run one command to its end, or to the clock's."""
    return finish(start(command, env or {}, cwd), timeout)


def start(command: Sequence[str | Path], env: Mapping[str, str], cwd: Path = ROOT) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [str(word) for word in command],
        env=CLEAN | dict(env),
        cwd=cwd,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )


def finish(process: subprocess.Popen[str], timeout: float) -> Job:
    began = time.monotonic()
    try:
        out, err = process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        out, err = _stop(process)
        err += f"\nstopped after {timeout} s"
    return Job(process.returncode, out, err, time.monotonic() - began)


def _stop(process: subprocess.Popen[str]) -> tuple[str, str]:
    """Ask first: a launcher that is killed outright leaves its ranks behind."""
    process.terminate()
    try:
        return process.communicate(timeout=10)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        return process.communicate()


def launch(
    engine: str, size: int, command: Sequence[str | Path], *, timeout: float = 120, env: Mapping[str, str] | None = None
) -> list[Job]:
    """Run a Python command line (`["-m", "pytest", ...]` or `[script, ...]`) on `size` workers of an engine.

    Returns:
        One job a process that was started from here: one, except for TensorFlow's workers.
    """
    env = {"DISTGRAD_TEST_SIZE": str(size), **(env or {})}
    python = [sys.executable, *command]
    if engine == "mwms":
        return _launch_tensorflow_workers(size, python, timeout, env)
    prefix, extra = {
        "solo": ([], {}),
        "mirrored": ([], {"DISTGRAD_BACKEND": "tf", "DISTGRAD_TEST_LOGICAL_CPUS": str(size)}),
        "mpi": (["mpirun", "--oversubscribe", "-np", str(size)], {}),
        "horovod-gloo": (["horovodrun", "--gloo", "-np", str(size)], {}),
        # To the workers, horovodrun over MPI looks like any mpirun.
        "horovod-mpi": (["horovodrun", "--mpi", "-np", str(size)], {"DISTGRAD_BACKEND": "horovod"}),
    }[engine]
    return [run([*prefix, *python], timeout=timeout, env=extra | env)]


def _launch_tensorflow_workers(size: int, python: list[str | Path], timeout: float, env: dict[str, str]) -> list[Job]:
    commands = tf_workers([str(word) for word in python], size)
    processes = [start(command, env | config) for command, config in commands]
    return [finish(process, timeout) for process in processes]
