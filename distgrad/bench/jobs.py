"""Jobs: every engine's own launcher, and the ranks it started, which wait stopped until their turn comes.

The driver and each rank talk over a Unix socket, one JSON object a line.
"""

import contextlib
import importlib.util
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

from distgrad.bench.cases import Job
from distgrad.launching import commands, selection
from distgrad.launching.cleanup import cleanup_process, end_marked_processes
from distgrad.launching.commands import Command, JobSpec
from distgrad.launching.environment import fresh_environment, launcher_settings
from distgrad.launching.job_folder import JOB_MARK

START = 120.0  # seconds until all ranks of a job must have said hello
ANSWER = 300.0  # seconds until they must have done what they were told: tracing a deep model takes a while


class TurnFailed(Exception):
    """No rank of a job could do what it was told. They agree, so that the job can be told the next thing."""


class JobLost(TurnFailed):
    """A job did not start, or one of its ranks failed alone or fell silent; the others go on without it."""


class Rank(NamedTuple):
    """One process of a job, seen from the driver."""

    pid: int
    stream: Any


def why_absent(job: Job) -> str | None:
    """What this machine lacks for a job; None if nothing."""
    needs = {"mpirun": "mpi4py", "horovodrun": "horovod", "TF_CONFIG": "tensorflow", "torch": "torch"}
    program = job.launcher.split()[0]
    if importlib.util.find_spec(needs[program]) is None:
        return f"{needs[program]} is not installed"
    if program in ("mpirun", "horovodrun") and selection.find_program(program, os.environ) is None:
        return f"{program} is not on PATH"
    return None


class Jobs:
    """All jobs of a run, by name. A context: at its end none of their processes is left."""

    def __init__(self, jobs: Mapping[str, Job], size: int) -> None:
        self.size = size
        self.lost: dict[str, str] = {}  # by job: why it takes no part
        self._jobs = {name: job for name, job in jobs.items() if not self._is_absent(name, job)}
        self._processes: dict[str, list[subprocess.Popen[bytes]]] = {}
        self._ranks: dict[str, list[Rank]] = {}
        self._folder = tempfile.mkdtemp(prefix="distgrad-bench-")
        self._watched = cleanup_process(self._folder)

    def __enter__(self) -> "Jobs":
        self._watched.__enter__()
        # One after the other: what a rank does while it starts can ask for all cores.
        for name, job in self._jobs.items():
            try:
                self._start(name, job)
            except JobLost as error:
                self._lose(name, error)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for name in list(self._processes):
            self._end(name)
        self._watched.__exit__(None, None, None)

    def __contains__(self, name: str) -> bool:
        return name in self._jobs and name not in self.lost

    def ask(self, name: str, **order: Any) -> list[dict[str, Any]]:
        """Wake a job, let its ranks do one thing at the same time, and stop it again. Gives their answers by rank.

        Raises:
            TurnFailed: every rank answered with an error.
            JobLost: some rank did, or ended, or fell silent, now or before.
        """
        if name in self.lost:
            raise JobLost(self.lost[name])
        try:
            self._signal(name, signal.SIGCONT)
            for rank in self._ranks[name]:
                rank.stream.write(json.dumps(order) + "\n")
                rank.stream.flush()
            answers = [json.loads(rank.stream.readline()) for rank in self._ranks[name]]
            self._pause(name)
        except (OSError, ValueError) as error:
            raise self._lose(name, error) from None
        errors = [answer["error"] for answer in answers if "error" in answer]
        if len(errors) == self.size:
            raise TurnFailed(errors[0])
        if errors:
            raise self._lose(name, errors[0])
        return answers

    def _is_absent(self, name: str, job: Job) -> bool:
        reason = why_absent(job)
        if reason is not None:
            self.lost[name] = reason
        return reason is not None

    def _lose(self, name: str, error: object) -> JobLost:
        self._end(name)
        words = self._log(name).read_text(errors="replace").split("\n")
        self.lost[name] = f"{error}" + "".join(f"; its last words: {line}" for line in words[-2:] if line)
        return JobLost(self.lost[name])

    def _start(self, name: str, job: Job) -> None:
        with socket.socket(socket.AF_UNIX) as listener:
            address = self._address(name)
            listener.bind(address)
            listener.listen()
            listener.settimeout(1)
            worker = [sys.executable, "-m", "distgrad.bench.worker", job.engine, address]
            with self._log(name).open("wb") as log:
                self._processes[name] = [
                    subprocess.Popen(
                        command,
                        env=_environment()
                        | dict(job.environment)
                        | dict(environment)
                        | {JOB_MARK: str(Path(address).parent)},
                        stdin=subprocess.DEVNULL,
                        stdout=log,
                        stderr=log,
                        start_new_session=True,
                    )
                    for command, environment in _commands(job.launcher, JobSpec(worker, self.size))
                ]
            self._ranks[name] = self._hear(listener, self._processes[name])
        self._pause(name)

    def _hear(self, listener: socket.socket, processes: Sequence[subprocess.Popen[bytes]]) -> list[Rank]:
        """Wait until every rank has said who it is."""
        ranks: dict[int, Rank] = {}
        end = time.monotonic() + START
        while len(ranks) < self.size:
            try:
                channel, _ = listener.accept()
            except TimeoutError:
                if time.monotonic() > end or any(process.poll() is not None for process in processes):
                    raise JobLost("it did not start") from None
                continue
            channel.settimeout(ANSWER)
            stream = channel.makefile("rw")
            channel.close()  # the stream keeps it open
            hello = json.loads(stream.readline())
            ranks[hello["rank"]] = Rank(hello["pid"], stream)
        return [ranks[rank] for rank in range(self.size)]

    def _address(self, name: str) -> str:
        """Where the job's ranks call, in a folder of its own that marks its processes."""
        folder = Path(self._folder, str(list(self._jobs).index(name)))
        folder.mkdir(exist_ok=True)
        return str(folder / "socket")

    def _log(self, name: str) -> Path:
        return Path(self._folder, f"{name}.log")

    def _pause(self, name: str) -> None:
        if self._jobs[name].can_pause:
            self._signal(name, signal.SIGSTOP)

    def _signal(self, name: str, number: signal.Signals) -> None:
        for rank in self._ranks.get(name, []):
            with contextlib.suppress(ProcessLookupError):
                os.kill(rank.pid, number)

    def _end(self, name: str) -> None:
        """Hang up, which ends the ranks; whoever has not gone soon is killed."""
        self._signal(name, signal.SIGCONT)
        for rank in self._ranks.pop(name, []):
            with contextlib.suppress(OSError):
                rank.stream.write("null\n")
                rank.stream.close()
        processes = self._processes.pop(name, [])
        for process in processes:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(15)
        end_marked_processes(f"{Path(self._address(name)).parent}\0")
        for process in processes:
            process.wait()


def _environment() -> dict[str, str]:
    """The same for all: one compute thread a rank, no chatter, and no launcher's variables from outside."""
    threads = dict.fromkeys(("TF_NUM_INTRAOP_THREADS", "OMP_NUM_THREADS"), "1")
    quiet = {"TF_CPP_MIN_LOG_LEVEL": "3", "OMPI_MCA_plm": "isolated"}  # all ranks are on this host: no ssh is needed
    return fresh_environment(os.environ) | launcher_settings(os.environ) | threads | quiet


def _commands(launcher: str, order: JobSpec) -> list[Command]:
    if launcher == "torch":
        return _torch(order)
    if launcher == "mpirun":
        mpirun = selection.find_program("mpirun", os.environ)
        assert mpirun is not None  # why_absent has looked
        launcher = selection.mpi_kind(mpirun)
    return commands.COMMANDS[launcher](order)


def _torch(order: JobSpec) -> list[Command]:
    host, port = commands.free_addresses(1)[0].split(":")
    common = {"MASTER_ADDR": host, "MASTER_PORT": port, "WORLD_SIZE": str(order.size)}
    return [Command(list(order.worker), common | {"RANK": str(rank)}) for rank in range(order.size)]
