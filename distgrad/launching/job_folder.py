"""The folder of one job, through which its workers and its launcher keep each other informed.

    environment         the workers' environment, where the launcher would show it to everyone
    RANK.started        the process number of the worker's wrapper
    RANK.joining        the worker is in `connect()`
    RANK.loaded         it has loaded TensorFlow and waits for the others
    RANK.joined         it is connected to all others
    RANK.error_printed  it has printed an error of distgrad's
    RANK.ended          how it ended, as JSON

It is private to its user, and on other hosts there only if they share the folder. One that anybody else has made, who
may know its name, is not used. Its path is the mark that all processes of the job carry in their environment.
"""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Literal, NamedTuple, TypeAlias

from distgrad.launching import private_folder

JOB_MARK = "DISTGRAD_JOB"
Event: TypeAlias = Literal["started", "joining", "loaded", "joined", "error_printed", "ended"]


class WorkerEnd(NamedTuple):
    """The end of a worker.

    Attributes:
        status: its exit status as `subprocess` has it: below 0 it is a signal.
        asked_to_end: True if its launcher sent SIGTERM or SIGINT first, so that it is not what went wrong.
        time: seconds since the epoch.
        host: the name of its host.
        last_lines: the last lines of its standard error.
    """

    status: int
    asked_to_end: bool
    time: float
    host: str
    last_lines: list[str]


class JobFolder:
    """The folder, as both sides see it.

    Attributes:
        path: where it is.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)

    def record(self, rank: int, event: Event, text: str = "") -> None:
        """Write the file of an event, whole or not at all; does nothing on a host that does not share the folder."""
        if private_folder.is_private(self.path):
            # Each process its own draft: workers that also run alone are rank 0 there.
            draft = self.path / f"{rank}.{event}.{os.getpid()}.draft"
            draft.write_text(text)
            draft.rename(self.path / f"{rank}.{event}")

    def ranks(self, event: Event) -> set[int]:
        """The ranks that have recorded an event."""
        return {int(path.stem) for path in self.path.glob(f"*.{event}")}

    def wrapper_pids(self) -> list[int]:
        """Process numbers of the wrappers whose workers have not ended."""
        running = self.ranks("started") - self.ranks("ended")
        return [int((self.path / f"{rank}.started").read_text()) for rank in running]

    def record_end(self, rank: int, end: WorkerEnd) -> None:
        """Record how a worker ended."""
        self.record(rank, "ended", json.dumps(end))

    def ends(self) -> dict[int, WorkerEnd]:
        """The recorded ends, by rank."""
        files = {rank: self.path / f"{rank}.ended" for rank in self.ranks("ended")}
        return {rank: WorkerEnd(*json.loads(file.read_text())) for rank, file in files.items()}

    def write_environment(self, environment: Mapping[str, str]) -> None:
        """Write the workers' environment into a file that only this user can read."""
        with os.fdopen(os.open(self.path / "environment", os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            json.dump(dict(environment), file)

    def read_environment(self) -> dict[str, str]:
        """The environment that was written for the workers; empty if none was."""
        file = self.path / "environment"
        return json.loads(file.read_text()) if private_folder.is_private(self.path) and file.exists() else {}


def record_from_worker(rank: int, event: Event) -> None:
    """Record an event of this worker if `distgrad run` launched it; else do nothing."""
    if JOB_MARK in os.environ:
        JobFolder(os.environ[JOB_MARK]).record(rank, event)
