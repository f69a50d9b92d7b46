"""Start real workers: each engine's own launcher, under a clock, with nothing left running afterwards."""

import contextlib
import os
import re
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import pytest

from distgrad.launching.commands import COMMANDS, JobSpec
from distgrad.launching.environment import fresh_environment, launcher_settings

ROOT = Path(__file__).resolve().parent.parent.parent
TESTS = ROOT / "tests"
BIN = Path(sys.executable).parent
PATIENCE = 300.0  # seconds until a program is taken for hung; the machine may be slow, and have much else to do
# What makes a program load TensorFlow as users' programs do.
AS_IT_IS = {"PYTHONPATH": os.environ.get("PYTHONPATH", "")}
# What a plain shell of the user would have: no launcher's variables, no distgrad settings; and a line is one write,
# so that those of two workers do not run into each other.
CLEAN = (
    fresh_environment(os.environ)
    | launcher_settings(os.environ)
    | {"TF_CPP_MIN_LOG_LEVEL": "3", "TF_NUM_INTRAOP_THREADS": "1", "NO_COLOR": "1", "PYTHONUNBUFFERED": ""}
    # Where programs find `support`, and a quicker way of loading TensorFlow.
    | {"PYTHONPATH": os.pathsep.join(map(str, [TESTS, TESTS / "support" / "fast_start", *AS_IT_IS.values()]))}
)


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
    return (BIN / "horovodrun").exists()


def program(text: str) -> list[str]:
    """The Python command line of a worker that runs a text, which may be indented."""
    return ["-c", textwrap.dedent(text)]


def told_apart(hosts: str, text: str) -> list[str]:
    """The Python command line of MPI ranks of this host, each told that it is on the host with its digit in `hosts`.

    The text finds NumPy, TensorFlow, the `world` of mpi4py and the communicator `comm`.
    """
    start = f"""
        import numpy as np, tensorflow as tf
        from distgrad.collectives import mpi
        world = mpi.MPI.COMM_WORLD
        mpi._host_of = lambda world: world.Split(int("{hosts}"[world.rank]), world.rank)
        comm = mpi.Mpi(world)
    """
    return program(textwrap.dedent(start) + textwrap.dedent(text))


def recipe(name: str) -> Path:
    """The one file of that name under launch/, in whichever folder."""
    (found,) = (ROOT / "launch").rglob(name)
    return found


needs_horovod = pytest.mark.skipif(not horovod_installed(), reason="Horovod is not installed")


def run(
    command: Sequence[str | Path], *, timeout: float = PATIENCE, env: Mapping[str, str] | None = None, cwd: Path = ROOT
) -> Job:
    """Run one command until it ends, or the time is over."""
    return finish(start(command, env or {}, cwd), timeout)


def start(command: Sequence[str | Path], env: Mapping[str, str], cwd: Path = ROOT) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [str(word) for word in command],
        env=CLEAN | dict(env),
        cwd=cwd,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )
    _started.append(process)
    return process


_started: list[subprocess.Popen[str]] = []


def stop_what_was_left() -> None:
    """End all that was started and not waited for, as by a test that has failed."""
    while _started:
        process = _started.pop()
        if process.stdout and not process.stdout.closed:
            _stop(process)


def finish(process: subprocess.Popen[str], timeout: float = PATIENCE) -> Job:
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
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    try:
        return process.communicate(timeout=10)
    except subprocess.TimeoutExpired:  # somebody of another session holds the other ends
        for pipe in (process.stdout, process.stderr):
            if pipe is not None:
                pipe.close()
        return "", "its output was not read to its end\n"


def launch(
    engine: str,
    size: int,
    command: Sequence[str | Path],
    *,
    timeout: float = PATIENCE,
    env: Mapping[str, str] | None = None,
) -> list[Job]:
    """Run a Python command line (`["-m", "pytest", ...]` or `[script, ...]`) on `size` workers of an engine.

    Returns:
        One job a process that was started from here: one, except for TensorFlow's workers.
    """
    return [finish(process, timeout) for process in start_workers(engine, size, command, env=env)]


def start_workers(
    engine: str, size: int, command: Sequence[str | Path], *, env: Mapping[str, str] | None = None
) -> list[subprocess.Popen[str]]:
    """The same without waiting for their end."""
    launcher, settings = ENGINES[engine]
    env = {"DISTGRAD_TEST_SIZE": str(size), "DISTGRAD_TEST_LOGICAL_CPUS": str(size)} | settings | dict(env or {})
    commands = COMMANDS[launcher](JobSpec([sys.executable, *map(str, command)], size))
    return [start(words, dict(added) | env) for words, added in commands]


ENGINES: dict[str, tuple[str, dict[str, str]]] = {
    "solo": ("alone", {}),
    "mirrored": ("alone", {"DISTGRAD_BACKEND": "tf"}),
    "mpi": ("Open MPI 4", {}),
    "horovod-gloo": ("horovodrun --gloo", {}),
    "horovod-mpi": ("horovodrun --mpi", {}),
    "mwms": ("TF_CONFIG", {}),
}
