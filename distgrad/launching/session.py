"""The folder in which workers and their launcher leave word for each other.

    environment      what workers find in their environment, where the launcher would show it to everyone
    RANK.started     the keeper's process number
    RANK.joining     the worker is in `connect()`
    RANK.loaded      TensorFlow is loaded, and the worker waits for the others
    RANK.joined      they are all there
    RANK.spoke       it has printed an error of distgrad's
    RANK.ended       how it ended, as JSON

It is private to its user, and on other hosts there only if they share the folder. Its path is the mark that all
processes of the job carry in their environment.
"""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

MARK = "DISTGRAD_JOB"


class End(NamedTuple):
    """How a worker ended.

    Attributes:
        status: as `subprocess` has it: below 0 it is a signal.
        told: whether its launcher told it to end, so that it is not what went wrong.
        time: seconds since the epoch.
        host: where it ran.
        last_lines: of its standard error.
    """

    status: int
    told: bool
    time: float
    host: str
    last_lines: list[str]


class Session:
    """The folder, seen by either side.

    Attributes:
        memory: another, if there is one: for what the launcher's workers share as files in memory.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self.memory = Path("/dev/shm", self.folder.name)

    def say(self, rank: int, word: str, text: str = "") -> None:
        """Leave word, all at once; on a host that does not share the folder nobody hears it."""
        if self.folder.is_dir():
            # Each process its own: workers that also run alone all say that they are rank 0.
            draft = self.folder / f"{rank}.{word}.{os.getpid()}.draft"
            draft.write_text(text)
            draft.rename(self.folder / f"{rank}.{word}")

    def who(self, word: str) -> set[int]:
        """The ranks that have said so."""
        return {int(path.stem) for path in self.folder.glob(f"*.{word}")}

    def keepers(self) -> list[int]:
        """Process numbers of the keepers whose workers have not ended."""
        return [int((self.folder / f"{rank}.started").read_text()) for rank in self.who("started") - self.who("ended")]

    def end(self, rank: int, end: End) -> None:
        """Say how a worker ended."""
        self.say(rank, "ended", json.dumps(end))

    def ends(self) -> dict[int, End]:
        """How those workers ended that have."""
        return {rank: End(*json.loads((self.folder / f"{rank}.ended").read_text())) for rank in self.who("ended")}

    def hand_out(self, environment: Mapping[str, str]) -> None:
        """Leave an environment for the keepers; only this user can read it."""
        with os.fdopen(os.open(self.folder / "environment", os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            json.dump(dict(environment), file)

    def environment(self) -> dict[str, str]:
        """What was left for the keepers, or nothing."""
        file = self.folder / "environment"
        return json.loads(file.read_text()) if file.exists() else {}


def say_from_worker(rank: int, word: str) -> None:
    """Leave word if `distgrad run` launched this worker."""
    if MARK in os.environ:
        Session(os.environ[MARK]).say(rank, word)
