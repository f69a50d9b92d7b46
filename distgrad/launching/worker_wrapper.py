"""The program around one worker: `python keeper.py FOLDER TAG COMMAND...`.

It gives the worker its cores and its GPU, passes its output on in whole lines and signals to it, and leaves word in
the session's folder when it starts and how it ended. If the keeper is killed, the kernel kills the worker.
"""

import collections
import contextlib
import ctypes
import os
import selectors
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from typing import IO

if __name__ == "__main__":  # Python runs isolated, so that no file of the script's folder passes for a module
    sys.path.append(os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))))

from distgrad.errors import DistgradError
from distgrad.launching.session import End, Session
from distgrad.launching.world import World

KEPT = 20  # lines of standard error that are remembered
PAUSE = 0.1  # seconds after which the beginning of a line is passed on by itself
DRAIN = 2.0  # seconds for the output to end after the worker has, unless its own children still hold it
FEWEST = 2  # cores that a worker is bound to
PASSED_ON = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2, signal.SIGHUP)
PARENT_DEATH_SIGNAL = 1  # prctl's PR_SET_PDEATHSIG


class Keeper:
    """One worker and what is known of it."""

    def __init__(self, world: World, session: Session, tag: bool) -> None:
        self.told = False
        self.last_lines: collections.deque[bytes] = collections.deque(maxlen=KEPT)
        self._world, self._session = world, session
        self._prefix = f"[{world.rank}] ".encode() if tag else b""
        self._pending: list[signal.Signals] = []
        self._child: subprocess.Popen[bytes] | None = None
        for number in PASSED_ON:
            signal.signal(number, self._pass_on)

    def run(self, command: list[str], environment: Mapping[str, str]) -> int:
        """Start the worker and wait for its end. Gives its status as `subprocess` has it."""
        pipe = subprocess.PIPE
        self._child = child = subprocess.Popen(
            command,
            env=environment,
            stdout=pipe,
            stderr=pipe,
            bufsize=0,
            preexec_fn=self._settle,  # noqa: PLW1509 (there are no other threads yet)
            close_fds=False,  # MPICH's launcher talks to its workers through one that it leaves open
        )
        for number in self._pending:
            child.send_signal(number)
        assert child.stdout is not None
        assert child.stderr is not None
        streams = {child.stdout: sys.stdout.buffer, child.stderr: sys.stderr.buffer}
        copying = threading.Thread(target=self._copy, args=(streams, child.stderr), daemon=True)
        copying.start()
        status = child.wait()
        copying.join(DRAIN)
        return status

    def _settle(self) -> None:
        """Within the worker, before its program begins."""
        os.setpgid(0, 0)  # launchers signal to whole groups, and a worker should hear once
        die_with_parent()
        mine = share(sorted(os.sched_getaffinity(0)), self._world)
        if mine:
            os.sched_setaffinity(0, mine)

    def _pass_on(self, number: int, _: object) -> None:
        self.told |= number in (signal.SIGTERM, signal.SIGINT)
        if self._child is None:
            self._pending.append(signal.Signals(number))
        else:
            self._child.send_signal(number)

    def _copy(self, streams: Mapping[IO[bytes], IO[bytes]], errors: IO[bytes]) -> None:
        begun = dict.fromkeys(streams, b"")
        with selectors.DefaultSelector() as selector:
            for stream in streams:
                selector.register(stream, selectors.EVENT_READ, stream)
            while selector.get_map():
                ready = [key.data for key, _ in selector.select(PAUSE if any(begun.values()) else None)]
                for stream in ready or streams:
                    data = os.read(stream.fileno(), 65536) if ready else b""
                    lines, begun[stream] = _cut(begun[stream] + data, last=not data)
                    self._say(lines, streams[stream], stream is errors)
                    if ready and not data:
                        selector.unregister(stream)

    def _say(self, lines: list[bytes], target: IO[bytes], are_errors: bool) -> None:
        if are_errors:
            self._remember(lines)
        if lines:
            with contextlib.suppress(OSError):  # nobody listens any more
                # All in one write, so that no other worker's line comes between.
                target.write(b"".join(self._prefix + line for line in lines))
                target.flush()

    def _remember(self, lines: list[bytes]) -> None:
        self.last_lines.extend(lines)
        if any(b"distgrad: error[" in line for line in lines):
            self._session.say(self._world.rank, "spoke")


def _cut(data: bytes, last: bool) -> tuple[list[bytes], bytes]:
    """Whole lines, those of progress bars included, and the beginning of the next; if `last`, that is a line, too."""
    lines = data.splitlines(keepends=True)
    begun = lines.pop() if lines and not last and not lines[-1].endswith((b"\n", b"\r")) else b""
    return lines, begun


def share(everything: list[int], world: World) -> list[int]:
    """This worker's cores out of its host's, neighbours by number; none where there are not two for each.

    On a single core a worker's threads, such as the one in which Horovod communicates, would keep each other waiting.

    >>> share([0, 1, 2, 3], World("Open MPI", "mpi", rank=3, size=4, local_rank=1, local_size=2))
    [2, 3]
    """
    each = len(everything) // world.local_size
    if each < FEWEST:
        return []
    return everything[world.local_rank * each : (world.local_rank + 1) * each]


def die_with_parent() -> None:
    """Ask the kernel to kill this process when the one that started it has gone."""
    ctypes.CDLL(None).prctl(PARENT_DEATH_SIGNAL, signal.SIGKILL)


def _gpu(environment: Mapping[str, str], world: World) -> dict[str, str]:
    """One GPU for each worker of a host, if there is one for each."""
    named = [part.strip() for part in environment.get("CUDA_VISIBLE_DEVICES", "").split(",") if part.strip()]
    return {"CUDA_VISIBLE_DEVICES": named[world.local_rank]} if world.local_rank < len(named) > 1 else {}


def _place(environment: Mapping[str, str]) -> World:
    try:
        return World.from_environment(environment)
    except DistgradError as error:
        print(error, file=sys.stderr, flush=True)
        sys.exit(error.status)


def main(folder: str, tag: str, *command: str) -> None:
    """Keep one worker, and end as it does."""
    die_with_parent()
    environment = Session(folder).environment() | os.environ
    world = _place(os.environ)
    session = Session(folder)
    keeper = Keeper(world, session, tag == "tag")
    session.say(world.rank, "started", str(os.getpid()))
    status = keeper.run(list(command), environment | _gpu(environment, world))
    lines = [line.decode(errors="replace").rstrip() for line in keeper.last_lines]
    session.end(world.rank, End(status, keeper.told, time.time(), socket.gethostname(), lines))
    os._exit(status if status >= 0 else 128 - status)


if __name__ == "__main__":
    main(*sys.argv[1:])
