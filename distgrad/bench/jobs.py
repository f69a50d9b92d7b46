"""The jobs of the benchmark: every engine's own launcher, and the ranks it started, stopped except in their turns.

The driver and each rank talk over a Unix socket, one JSON object a line.
"""

import contextlib
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
from distgrad.launching.cleanup import cleanup_process, end_marked_processes, signal_marked
from distgrad.launching.commands import COMMANDS, Command, JobSpec, free_addresses
from distgrad.launching.environment import fresh_environment, launcher_settings
from distgrad.launching.job_folder import JOB_MARK
from distgrad.launching.selection import missing_part, select

START_TIMEOUT = 120.0  # seconds until all ranks of a job must have connected
ANSWER_TIMEOUT = 300.0  # seconds until they must have done what they were told: tracing a deep model takes a while
# By launcher.
PACKAGES = {
    "mpirun": "mpi4py",
    "horovodrun": "horovod",
    "TF_CONFIG": "tensorflow",
    "none": "tensorflow",
    "torch": "torch",
}


class TurnFailed(Exception):
    """An order that failed on every rank of a job. They agree, so that the job can be given the next one."""


class JobLost(TurnFailed):
    """A job that did not start, or of which a rank failed alone or did not answer; the others go on without it."""


class RankProcess(NamedTuple):
    """One process of a job, as the driver sees it.

    Attributes:
        pid: its process number.
        stream: a text file: a line that is written is an order, a line that is read an answer.
    """

    pid: int
    stream: Any


def why_absent(job: Job) -> str | None:
    """Return what this machine lacks for a job; None if nothing."""
    launcher = job.launcher.split()[0]
    programs = [launcher] if launcher in ("mpirun", "horovodrun") else []
    return missing_part(PACKAGES[launcher], programs, os.environ)


class Jobs:
    """The jobs of a run, by name. A context: at its end none of their processes is left.

    Args:
        jobs: the jobs to start, by name.
        size: ranks of each that has more than one.

    Attributes:
        lost: why jobs take no part, by name.
    """

    def __init__(self, jobs: Mapping[str, Job], size: int) -> None:
        self.size = size
        reasons = {name: why_absent(job) for name, job in jobs.items()}
        self.lost: dict[str, str] = {name: reason for name, reason in reasons.items() if reason is not None}
        self._jobs = {name: job for name, job in jobs.items() if name not in self.lost}
        self._processes: dict[str, list[subprocess.Popen[bytes]]] = {}
        self._ranks: dict[str, list[RankProcess]] = {}
        self._folder = tempfile.mkdtemp(prefix="distgrad-bench-")
        self._cleanup = cleanup_process(self._folder)

    def __enter__(self) -> "Jobs":
        self._cleanup.__enter__()
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
        self._cleanup.__exit__(None, None, None)

    def __contains__(self, name: str) -> bool:
        return name in self._jobs and name not in self.lost

    def ask(self, name: str, **order: Any) -> list[dict[str, Any]]:
        """Wake a job, let its ranks carry out one order at the same time, and stop it again.

        Args:
            name: the job's name.
            order: see `worker.serve`.

        Returns:
            The answers, by rank.

        Raises:
            TurnFailed: every rank answered with an error.
            JobLost: some rank did, or ended, or did not answer in time, now or before.
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
        if len(errors) == len(answers):
            raise TurnFailed(errors[0])
        if errors:
            raise self._lose(name, errors[0])
        return answers

    def _lose(self, name: str, error: object) -> JobLost:
        """End a job and record why, with the last lines of its output. Returns the error to raise."""
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
            self._processes[name] = self._launch(name, job, address)
            self._ranks[name] = self._accept_ranks(listener, self._processes[name], self._size_of(job))
        self._pause(name)

    def _launch(self, name: str, job: Job, address: str) -> list[subprocess.Popen[bytes]]:
        worker = [sys.executable, "-m", "distgrad.bench.worker", job.engine, address]
        mark = {JOB_MARK: str(Path(address).parent)}
        with self._log(name).open("wb") as log:
            return [
                subprocess.Popen(
                    command,
                    env={**_environment(job.has_all_cores), **job.environment, **environment, **mark},
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    start_new_session=True,
                )
                for command, environment in _commands(job.launcher, JobSpec(worker, self._size_of(job)))
            ]

    def _size_of(self, job: Job) -> int:
        return 1 if job.has_all_cores else self.size

    def _accept_ranks(
        self, listener: socket.socket, processes: Sequence[subprocess.Popen[bytes]], size: int
    ) -> list[RankProcess]:
        """Wait until every rank has connected and sent its number."""
        ranks: dict[int, RankProcess] = {}
        end = time.monotonic() + START_TIMEOUT
        while len(ranks) < size:
            try:
                channel, _ = listener.accept()
            except TimeoutError:
                if time.monotonic() > end or any(process.poll() is not None for process in processes):
                    raise JobLost("it did not start") from None
                continue
            channel.settimeout(ANSWER_TIMEOUT)
            stream = channel.makefile("rw")
            channel.close()  # the stream keeps it open
            hello = json.loads(stream.readline())
            ranks[hello["rank"]] = RankProcess(hello["pid"], stream)
        return [ranks[rank] for rank in range(size)]

    def _address(self, name: str) -> str:
        """Return the socket of a job, in a folder of its own, whose path marks the job's processes."""
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
            signal_marked(rank.pid, str(Path(self._address(name)).parent), number)

    def _end(self, name: str) -> None:
        """Close the connections, which ends the ranks, and kill those that have not gone soon."""
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


def _environment(has_all_cores: bool) -> dict[str, str]:
    """Return a job's environment: few messages, no outer launcher's variables, one compute thread a rank or a core."""
    count = len(os.sched_getaffinity(0)) if has_all_cores else 1
    threads = dict.fromkeys(("TF_NUM_INTRAOP_THREADS", "OMP_NUM_THREADS"), str(count))
    quiet = {"TF_CPP_MIN_LOG_LEVEL": "3", "OMPI_MCA_plm": "isolated"}  # all ranks are on this host: no ssh is needed
    return fresh_environment(os.environ) | launcher_settings(os.environ) | threads | quiet


def _commands(launcher: str, job: JobSpec) -> list[Command]:
    if launcher == "torch":
        return _torch(job)
    if launcher == "none":
        return [Command(list(job.worker), {})]
    if launcher == "mpirun":
        launcher = select("mpi", job.size, None, os.environ).launcher
    return COMMANDS[launcher](job)


def _torch(job: JobSpec) -> list[Command]:
    host, port = free_addresses(1)[0].split(":")
    common = {"MASTER_ADDR": host, "MASTER_PORT": port, "WORLD_SIZE": str(job.size)}
    return [Command(list(job.worker), common | {"RANK": str(rank)}) for rank in range(job.size)]
