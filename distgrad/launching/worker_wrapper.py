"""The program around one worker: `main(folder, options, *command)`, started by isolated.py.

It gives the worker its cores and its GPU, passes on its output in whole lines, passes signals on to it, and records in
the job's folder when it starts and how it ended. If the wrapper is killed, the kernel kills the worker.
"""

import collections
import ctypes
import functools
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Mapping

from distgrad.errors import DistgradError
from distgrad.launching.job_folder import JobFolder, WorkerEnd
from distgrad.launching.output import pass_on, without_greetings, write
from distgrad.launching.world import World

LAST_LINES = 20  # lines of standard error that are kept for the launcher
DRAIN_LIMIT = 2.0  # seconds for the output to end after the worker has, unless its own children still hold it
FEWEST_CORES = 2  # with fewer for each worker, none is bound to cores
FORWARDED_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2, signal.SIGHUP)
PARENT = os.getppid()  # as early as it can be asked for
PARENT_DEATH_SIGNAL = 1  # prctl's PR_SET_PDEATHSIG


class WorkerWrapper:
    """One worker's process, its output and its signals.

    Args:
        world: the worker's rank and size.
        folder: the job's folder.
        tag: True if each line of output is to begin with the rank.
        verbose: True to pass on all that TensorFlow logs.

    Attributes:
        asked_to_end: True once SIGTERM or SIGINT has come.
        last_lines: the last lines of the worker's standard error.
    """

    def __init__(self, world: World, folder: JobFolder, *, tag: bool, verbose: bool) -> None:
        self.asked_to_end = False
        self.last_lines: collections.deque[bytes] = collections.deque(maxlen=LAST_LINES)
        self._world, self._folder, self._verbose = world, folder, verbose
        self._prefix = f"[{world.rank}] ".encode() if tag else b""
        self._pending: list[signal.Signals] = []  # signals that came before the worker was started
        self._worker: subprocess.Popen[bytes] | None = None
        for number in FORWARDED_SIGNALS:
            signal.signal(number, self._forward_signal)

    def run(self, command: list[str], environment: Mapping[str, str]) -> int:
        """Start the worker, wait for its end and return its status as `subprocess` has it."""
        pipe = subprocess.PIPE
        self._worker = worker = subprocess.Popen(
            command,
            env=environment,
            stdout=pipe,
            stderr=pipe,
            bufsize=0,
            preexec_fn=functools.partial(self._set_up_worker, os.getpid()),  # noqa: PLW1509 (there are no other threads yet)
            close_fds=False,  # MPICH's launcher talks to its workers through one that it leaves open
        )
        for number in self._pending:
            worker.send_signal(number)
        assert worker.stdout is not None
        assert worker.stderr is not None
        streams = {worker.stdout: self._pass_on_output, worker.stderr: self._pass_on_errors}
        copying = threading.Thread(target=pass_on, args=(streams,), daemon=True)
        copying.start()
        status = worker.wait()
        copying.join(DRAIN_LIMIT)
        return status

    def _set_up_worker(self, wrapper: int) -> None:
        """Set up the worker's process; runs in it, before its program begins. `wrapper`: this process's number."""
        os.setpgid(0, 0)  # launchers signal to whole groups, and a worker should get each signal once
        die_with(wrapper)
        cores = cores_of_worker(sorted(os.sched_getaffinity(0)), self._world)
        if cores:
            os.sched_setaffinity(0, cores)

    def _forward_signal(self, number: int, _: object) -> None:
        self.asked_to_end |= number in (signal.SIGTERM, signal.SIGINT)
        if self._worker is None:
            self._pending.append(signal.Signals(number))
        else:
            self._worker.send_signal(number)

    def _pass_on_output(self, lines: list[bytes]) -> None:
        write(sys.stdout.buffer, [self._prefix + line for line in lines])

    def _pass_on_errors(self, lines: list[bytes]) -> None:
        """Pass on standard error, keep its last lines, and record an error of distgrad's among them."""
        lines = lines if self._verbose else without_greetings(lines)
        self.last_lines.extend(lines)
        if any(b"distgrad: error[" in line for line in lines):
            self._folder.record(self._world.rank, "error_printed")
        write(sys.stderr.buffer, [self._prefix + line for line in lines])


def cores_of_worker(cores: list[int], world: World) -> list[int]:
    """Return this worker's part of its host's cores, neighbours by number; none where there are not two for each.

    On a single core a worker's threads, such as the one in which Horovod communicates, would keep each other waiting.

    >>> cores_of_worker([0, 1, 2, 3], World("Open MPI", "mpi", rank=3, size=4, local_rank=1, local_size=2))
    [2, 3]
    """
    each = len(cores) // world.local_size
    if each < FEWEST_CORES:
        return []
    return cores[world.local_rank * each : (world.local_rank + 1) * each]


def die_with(parent: int) -> None:
    """Ask the kernel to kill this process when the one that started it has ended; if it has already, end now.

    Args:
        parent: its process number.
    """
    ctypes.CDLL(None).prctl(PARENT_DEATH_SIGNAL, signal.SIGKILL)
    if os.getppid() != parent:  # the kernel says nothing of an end that was before
        os.kill(os.getpid(), signal.SIGKILL)


def _gpu_of_worker(environment: Mapping[str, str], world: World) -> dict[str, str]:
    """Return the variable that gives this worker one GPU, if its host has one for each; else nothing."""
    named = [part.strip() for part in environment.get("CUDA_VISIBLE_DEVICES", "").split(",") if part.strip()]
    return {"CUDA_VISIBLE_DEVICES": named[world.local_rank]} if world.local_rank < len(named) > 1 else {}


def _world_or_exit() -> World:
    try:
        return World.from_environment(os.environ)
    except DistgradError as error:
        print(error, file=sys.stderr, flush=True)
        sys.exit(error.status)


def main(path: str, options: str, *command: str) -> None:
    """Run one worker, and end with its status.

    Args:
        path: the job's folder.
        options: "tag", "verbose", both with a comma between, or none; see `WorkerWrapper`.
        command: the worker's command line.
    """
    die_with(PARENT)
    folder = JobFolder(path)
    environment = folder.read_environment() | os.environ
    world = _world_or_exit()
    chosen = options.split(",")
    wrapper = WorkerWrapper(world, folder, tag="tag" in chosen, verbose="verbose" in chosen)
    folder.record(world.rank, "started", str(os.getpid()))
    status = wrapper.run(list(command), environment | _gpu_of_worker(environment, world))
    last_lines = [line.decode(errors="replace").rstrip() for line in wrapper.last_lines]
    end = WorkerEnd(status, wrapper.asked_to_end, time.time(), socket.gethostname(), last_lines)
    folder.record_end(world.rank, end)
    os._exit(status if status >= 0 else 128 - status)
