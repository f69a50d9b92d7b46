"""One launch: start it, watch who starts and who fails, pass signals on, and see that it ends."""

import contextlib
import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import IO

from distgrad.launching.cleanup import end_all, watching
from distgrad.launching.commands import Command
from distgrad.launching.outcome import Verdict, judge, never_started
from distgrad.launching.session import MARK, Session

TICK = 0.05  # seconds between two looks
LAUNCHER_GRACE = 8.0  # seconds for a launcher to end a job of which a worker has failed
STOP_GRACE = 30.0  # seconds for workers to finish their step and save, after a signal
PASSED_ON = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
# Of Open MPI 4, and of 5.
OPEN_MPI_FOLDER = ("OMPI_MCA_orte_tmpdir_base", "PRTE_MCA_prte_tmpdir_base")
OPEN_MPI_MEMORY = ("OMPI_MCA_btl_vader_backing_directory", "OMPI_MCA_btl_sm_backing_directory")
TAG = re.compile(rb"\[\d+(?:,\d+)?\]<std(?:out|err)>:")  # what horovodrun writes before every line


class Job:
    """The processes of one launch.

    Args:
        commands: what to start; every worker in them has a keeper, to which `session` belongs.
        size: how many workers they make.
        session: the folder of this launch.
        start_timeout: seconds from the first worker that waits for the others to the last.
        within_reach: whether all workers run on this host, so that they leave word in the session.
        tags: whether the launcher puts a tag of its own before every line, which is then taken away.
    """

    def __init__(
        self,
        commands: Sequence[Command],
        size: int,
        session: Session,
        *,
        start_timeout: float,
        within_reach: bool,
        tags: bool,
    ) -> None:
        self._commands, self._size, self._session = commands, size, session
        self._start_timeout, self._within_reach, self._tags = start_timeout, within_reach, tags
        self._processes: list[subprocess.Popen[bytes]] = []
        self._relays: list[threading.Thread] = []
        self._stopped: signal.Signals | None = None
        self._began: dict[str, float] = {}  # stages of the start, in seconds after the launch
        self._deadline = float("inf")
        self._killed = False

    def run(self, environment: Mapping[str, str]) -> Verdict:
        """Start, wait for the end, and say how it was."""
        with self._listening():
            self._start(environment)
            verdict = self._watch()
            for relay in self._relays:
                relay.join()
        if verdict is None:
            launchers = [abs(process.returncode) if self._killed else process.returncode for process in self._processes]
            verdict = judge(self._session.ends(), self._session.who("started"), launchers, self._stopped)
        # One line about one failure: a worker that knew has said it already.
        return verdict._replace(error=None) if self._session.who("spoke") else verdict

    def _start(self, environment: Mapping[str, str]) -> None:
        pipe = subprocess.PIPE if self._tags else None
        for words, added in self._commands:
            # In a session of its own: a terminal's Ctrl-C comes here alone, and is passed on once.
            process = subprocess.Popen(
                words, env={**environment, **added}, stdout=pipe, stderr=pipe, start_new_session=True
            )
            self._processes.append(process)
            if process.stdout is not None and process.stderr is not None:
                self._relay(process.stdout, sys.stdout.buffer)
                self._relay(process.stderr, sys.stderr.buffer)

    def _relay(self, source: IO[bytes], target: IO[bytes]) -> None:
        def copy() -> None:
            for line in source:
                target.write(TAG.sub(b"", line))
                target.flush()

        self._relays.append(threading.Thread(target=copy, daemon=True))
        self._relays[-1].start()

    def _watch(self) -> Verdict | None:
        """Wait until all processes have ended, and see that they do. Gives a verdict if it was passed here."""
        launched = time.monotonic()
        while None in [process.poll() for process in self._processes]:
            missing = self._missing(time.monotonic() - launched)
            if missing:
                self._end(0.0)
                return never_started(self._size, missing, self._start_timeout)
            if self._someone_failed():
                self._hurry()
            if time.monotonic() > self._deadline:
                self._end(0.0)
            time.sleep(TICK)
        return None

    def _missing(self, seconds: float) -> set[int]:
        """Who has kept the others waiting for too long."""
        if not self._within_reach or self._stopped:
            return set()
        stage, awaited = self._stage()
        began = self._began.setdefault(stage, seconds)
        return awaited if seconds - began > self._start_timeout else set()

    def _stage(self) -> tuple[str, set[int]]:
        """What the start waits for, and from whom: the first to come anywhere waits for the last; then they go on."""
        who = self._session.who
        everyone = set(range(self._size)) - who("ended")
        if not who("joining"):
            return "started", everyone - who("started")
        if everyone - who("joining") or not who("loaded"):
            return "joining", everyone - who("joining")
        if everyone - who("loaded"):
            return "loaded", everyone - who("loaded")
        return "joined", everyone - who("joined")

    def _someone_failed(self) -> bool:
        statuses = [process.returncode for process in self._processes]
        return any(statuses) or any(end.status for end in self._session.ends().values())

    def _hurry(self) -> None:
        """A worker has failed: launchers end the others, and where there is none they are ended from here."""
        if self._deadline == float("inf"):
            self._deadline = time.monotonic() + LAUNCHER_GRACE
            if len(self._processes) > 1:
                self._signal(signal.SIGTERM)

    @contextlib.contextmanager
    def _listening(self) -> Iterator[None]:
        before = {number: signal.signal(number, self._stop) for number in PASSED_ON}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _stop(self, number: int, _: object) -> None:
        """Pass a signal on, so that all workers finish their step and save; the second Ctrl-C ends them at once."""
        if self._stopped == number == signal.SIGINT:
            self._deadline = 0.0
            return
        self._stopped = self._stopped or signal.Signals(number)
        self._deadline = min(self._deadline, time.monotonic() + STOP_GRACE)
        self._signal(signal.Signals(number))

    def _signal(self, number: signal.Signals) -> None:
        """To the keepers if they are here; mpirun passes SIGUSR1 to those of other hosts, and SIGTERM to nobody."""
        keepers = self._session.keepers() if self._within_reach else []
        for process in self._processes if not keepers else []:
            process.send_signal(number if self._within_reach else signal.SIGUSR1)
        for keeper in keepers:
            with contextlib.suppress(ProcessLookupError):
                os.kill(keeper, number)

    def _end(self, grace: float) -> None:
        self._killed = True
        end_all(str(self._session.folder), grace)


@contextlib.contextmanager
def session() -> Iterator[Session]:
    """A folder for one launch; at its end nothing of the launch is left, however it came about."""
    folder = Session(tempfile.mkdtemp(prefix="distgrad-job-"))
    with watching(str(folder.folder)):
        with contextlib.suppress(OSError):  # where there is no /dev/shm
            folder.memory.mkdir(mode=0o700)
        yield folder


def marked(environment: Mapping[str, str], folder: Session, within_reach: bool) -> dict[str, str]:
    """An environment that says to which launch a process belongs.

    Open MPI's own files are in the launch's folders then, and go with them even if mpirun is killed.
    """
    path = str(folder.folder)
    theirs = dict.fromkeys(OPEN_MPI_FOLDER, path) if within_reach else {}
    if within_reach and folder.memory.is_dir():
        theirs |= dict.fromkeys(OPEN_MPI_MEMORY, str(folder.memory))
    return {**theirs, **environment, MARK: path}
