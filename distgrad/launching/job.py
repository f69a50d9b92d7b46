"""One launch: start it, watch which workers start and which fail, pass signals on, and see that it ends."""

import contextlib
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO

from distgrad.launching.cleanup import MEMORY, cleanup_process, end_marked_processes, signal_marked
from distgrad.launching.commands import Command
from distgrad.launching.job_folder import JOB_MARK, Event, JobFolder
from distgrad.launching.outcome import Outcome, outcome_of_job, workers_missing
from distgrad.launching.output import Explanations, PassOn, pass_on, write

TICK = 0.05  # seconds between two looks
LAUNCHER_GRACE = 8.0  # seconds for a launcher to end a job of which a worker has failed
STOP_GRACE = 30.0  # seconds for workers to finish their step and save, after a signal
DRAIN_LIMIT = 15.0  # seconds for the launcher's output to end after it has, unless others still hold it
FORWARDED_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
# The variables of Open MPI 4, and of 5.
OPEN_MPI_FOLDER = ("OMPI_MCA_orte_tmpdir_base", "PRTE_MCA_prte_tmpdir_base")
OPEN_MPI_MEMORY = ("OMPI_MCA_btl_vader_backing_directory", "OMPI_MCA_btl_sm_backing_directory")
TAG = re.compile(rb"\[\d+(?:,\d+)?\]<std(?:out|err)>:")  # what horovodrun writes before every line


class Job:
    """The processes of one launch.

    Args:
        commands: the commands to start; every worker in them runs inside a wrapper, which writes to `folder`.
        size: how many workers they start.
        folder: the job's folder.
        start_timeout: seconds from the first worker that waits for the others to the last.
        on_this_host: True if all workers run on this host, so that this process sees their files in the folder.
        launcher: horovodrun's tags before every line are removed, and Open MPI's explanations held back.
        verbose: True to show them, too.
    """

    def __init__(
        self,
        commands: Sequence[Command],
        size: int,
        folder: JobFolder,
        *,
        start_timeout: float,
        on_this_host: bool,
        launcher: str,
        verbose: bool,
    ) -> None:
        self._commands, self._size, self._folder = commands, size, folder
        self._start_timeout, self._on_this_host = start_timeout, on_this_host
        self._has_tags, self._verbose = launcher.startswith("horovodrun"), verbose
        self._explains, self._explanations = launcher.startswith(("Open MPI", "horovodrun")), Explanations()
        self._processes: list[subprocess.Popen[bytes]] = []
        self._output_threads: list[threading.Thread] = []
        self._stop_signal: signal.Signals | None = None
        self._waiting_since: dict[Event, float] = {}  # seconds after the launch
        self._deadline = float("inf")
        self._killed = False

    def run(self, environment: Mapping[str, str]) -> Outcome:
        """Start the commands in this environment, wait for their end, and return how the job ended."""
        with self._signals_handled():
            self._start(environment)
            missing = self._watch()
            for thread in self._output_threads:
                thread.join(DRAIN_LIMIT)
        outcome = workers_missing(self._size, missing, self._start_timeout) if missing else self._outcome()
        # One line about one failure: the worker has printed it already.
        if self._folder.ranks("error_printed"):
            return outcome._replace(error=None)
        if outcome.status and outcome.error is None:
            write(sys.stderr.buffer, self._explanations.held)
        return outcome

    def _outcome(self) -> Outcome:
        statuses = [process.returncode for process in self._processes]
        return outcome_of_job(
            self._folder.ends(),
            started=self._folder.ranks("started"),
            # Below 0 only if somebody else has killed them.
            launcher_statuses=[abs(status) for status in statuses] if self._killed else statuses,
            stop_signal=self._stop_signal,
        )

    def _start(self, environment: Mapping[str, str]) -> None:
        output = subprocess.PIPE if self._has_tags else None
        errors = subprocess.PIPE if self._has_tags or (self._explains and not self._verbose) else None
        for words, added in self._commands:
            # In a session of its own: a terminal's Ctrl-C comes here alone, and is passed on once.
            process = subprocess.Popen(
                words, env={**environment, **added}, stdout=output, stderr=errors, start_new_session=True, bufsize=0
            )
            self._processes.append(process)
            streams = {process.stdout: self._pass_on_output, process.stderr: self._pass_on_errors}
            self._output_threads.append(threading.Thread(target=self._copy, args=(streams,), daemon=True))
            self._output_threads[-1].start()

    def _copy(self, streams: Mapping[IO[bytes] | None, PassOn]) -> None:
        """Pass on what the launcher prints, as far as it comes by here."""
        pass_on({stream: lines for stream, lines in streams.items() if stream is not None})
        write(sys.stderr.buffer, self._explanations.rest())

    def _pass_on_output(self, lines: list[bytes]) -> None:
        write(sys.stdout.buffer, [TAG.sub(b"", line) for line in lines])

    def _pass_on_errors(self, lines: list[bytes]) -> None:
        lines = [TAG.sub(b"", line) for line in lines] if self._has_tags else lines
        write(sys.stderr.buffer, lines if self._verbose else self._explanations.without(lines))

    def _watch(self) -> set[int]:
        """Wait until all processes have ended, and see that they do. Returns the workers that did not start in time."""
        launched = time.monotonic()
        while None in [process.poll() for process in self._processes]:
            missing = self._overdue(time.monotonic() - launched)
            if missing:
                self._kill()
                return missing
            statuses = [process.returncode for process in self._processes]
            if any(statuses) or any(end.status for end in self._folder.ends().values()):
                self._expect_end()
            if time.monotonic() > self._deadline:
                self._kill()
            time.sleep(TICK)
        return set()

    def _overdue(self, seconds: float) -> set[int]:
        """Return the workers that have kept the others waiting for too long, `seconds` after the launch."""
        if not self._on_this_host or self._stop_signal:
            return set()
        event, awaited = self._awaited()
        since = self._waiting_since.setdefault(event, seconds)
        return awaited if seconds - since > self._start_timeout else set()

    def _awaited(self) -> tuple[Event, set[int]]:
        """Return the event that the start waits for, and the workers without it.

        The first worker that reaches an event waits until the last has; then all go on to the next.
        """
        ranks = self._folder.ranks
        running = set(range(self._size)) - ranks("ended")
        if not ranks("joining"):
            return "started", running - ranks("started")
        if running - ranks("joining") or not ranks("loaded"):
            return "joining", running - ranks("joining")
        if running - ranks("loaded"):
            return "loaded", running - ranks("loaded")
        return "joined", running - ranks("joined")

    def _expect_end(self) -> None:
        """Set a deadline after a worker's failure. A launcher ends the other workers; without one they are asked."""
        if self._deadline == float("inf"):
            self._deadline = time.monotonic() + LAUNCHER_GRACE
            if len(self._processes) > 1:
                self._signal_workers(signal.SIGTERM)

    @contextlib.contextmanager
    def _signals_handled(self) -> Iterator[None]:
        before = {number: signal.signal(number, self._stop) for number in FORWARDED_SIGNALS}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _stop(self, number: int, _: object) -> None:
        """Pass a signal on, so that all workers finish their step and save; the second Ctrl-C ends them at once."""
        if self._stop_signal == number == signal.SIGINT:
            self._deadline = 0.0
            return
        self._stop_signal = self._stop_signal or signal.Signals(number)
        self._deadline = min(self._deadline, time.monotonic() + STOP_GRACE)
        self._signal_workers(signal.Signals(number))

    def _signal_workers(self, number: signal.Signals) -> None:
        """Signal to the wrappers if they are on this host, else to the launcher.

        To workers of other hosts mpirun passes SIGUSR1 on, but not SIGTERM.
        """
        wrappers = self._folder.wrapper_pids() if self._on_this_host else []
        for process in self._processes if not wrappers else []:
            process.send_signal(number if self._on_this_host else signal.SIGUSR1)
        for wrapper in wrappers:
            signal_marked(wrapper, str(self._folder.path), number)

    def _kill(self) -> None:
        self._killed = True
        end_marked_processes(str(self._folder.path), grace=0.0)


@contextlib.contextmanager
def temporary_job_folder() -> Iterator[JobFolder]:
    """Make the folder of one launch. At the end of the context, however it comes, nothing of the launch is left."""
    folder = JobFolder(tempfile.mkdtemp(prefix="distgrad-job-"))
    with cleanup_process(str(folder.path)):
        yield folder


def with_job_mark(environment: Mapping[str, str], folder: JobFolder, on_this_host: bool) -> dict[str, str]:
    """Add the job's mark to an environment, by which the job's processes are found.

    On this host Open MPI's own files go into the job's folders, too: there they are removed even if mpirun is killed,
    and no other user can put a link where Open MPI, which follows links, is about to make a file.
    """
    path = str(folder.path)
    open_mpi = dict.fromkeys(OPEN_MPI_FOLDER, path) if on_this_host else {}
    if on_this_host:
        open_mpi |= dict.fromkeys(OPEN_MPI_MEMORY, _folder_in_memory(folder.path))
    return {**open_mpi, **environment, JOB_MARK: path}


def _folder_in_memory(folder: Path) -> str:
    """Make the job's second folder, which the cleanup process finds; returns the first where it cannot be made."""
    try:
        return tempfile.mkdtemp(prefix=f"{folder.name}-", dir=MEMORY)
    except OSError:
        return str(folder)
