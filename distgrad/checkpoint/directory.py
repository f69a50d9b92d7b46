"""The directory with a training's checkpoints, as the root sees it: one file each, the newest whole one is used."""

import os
import re
from pathlib import Path

from distgrad.checkpoint import file
from distgrad.checkpoint.file import TEMPORARY, Archive, Damaged, Hostile
from distgrad.errors import HostileCheckpoint, NoCheckpointDirectory, NoValidCheckpoint, warn

NAME = re.compile(r"step-(\d+)\.npz")


class Shelf:
    """The files `step-NNNNNNNNNN.npz` of a directory.

    Args:
        directory: where they are.
        keep: how many of them stay.
    """

    def __init__(self, directory: Path, keep: int) -> None:
        self._directory, self._keep = directory, keep
        self._refused: set[Path] = set()  # which do not count among those kept

    def require(self) -> None:
        """Make sure that something can be written here, and clear away what killed processes left half-written.

        Raises:
            NoCheckpointDirectory: it cannot.
        """
        folder = self._directory
        if not folder.is_dir():
            raise NoCheckpointDirectory(
                f"checkpoint directory {folder} is missing", f"create it: mkdir -p {folder.absolute()}"
            )
        try:
            probe = folder / f"probe.{os.getpid()}{TEMPORARY}"
            probe.open("xb").close()
            probe.unlink()
            for left in folder.glob(f"*{TEMPORARY}"):
                if not left.name.endswith(f".{os.getpid()}{TEMPORARY}"):  # this process may be writing it
                    left.unlink(missing_ok=True)
        except OSError as error:
            raise NoCheckpointDirectory(
                f"nothing can be written into checkpoint directory {folder} ({error.strerror})",
                "make it writable, or give another directory",
            ) from None

    def paths(self) -> list[Path]:
        """The files, newest first; whether they are whole is not known."""
        found = [path for path in self._directory.glob("step-*") if NAME.fullmatch(path.name)]
        return sorted(found, key=_step_of, reverse=True)

    def good(self) -> list[Path]:
        """Those of them that have not been found damaged, newest first."""
        return [path for path in self.paths() if path not in self._refused]

    def put(self, step: int, content: Archive) -> None:
        """Write a file; once it is complete, remove those that are too many.

        Raises:
            OSError: it could not be written; nothing is left of it.
        """
        path = self._directory / f"step-{step:010d}.npz"
        file.write(path, content.arrays, content.meta)
        self._refused.discard(path)
        own = [path for path in self.good() if _step_of(path) <= step]
        for path in own[self._keep :]:
            path.unlink(missing_ok=True)

    def newest(self) -> Archive | None:
        """Read the newest file that is whole, and say which were not.

        Returns:
            None if there is no file.

        Raises:
            NoValidCheckpoint, HostileCheckpoint.
        """
        refused = []
        for path in self.paths():
            try:
                found = file.read(path)
            except Hostile as reason:
                raise HostileCheckpoint(
                    f"{path} is no checkpoint: {reason}; nothing of it was loaded",
                    "find out who put it there, and remove it",
                ) from None
            except (Damaged, OSError) as reason:
                refused.append(f"{path.name} is damaged ({reason})")
                self._refused.add(path)
                continue
            if refused:
                warn(f"checkpoint {', '.join(refused)}; {path.name} is used")
            return found
        if refused:
            raise NoValidCheckpoint(
                f"no checkpoint in {self._directory} is whole: {', '.join(refused)}",
                "bring back a copy of one, or begin again in another directory",
            )
        return None

    def warn_of_later(self, step: int) -> None:
        """Say if a resume would not take the file of this step, because there is that of a later one."""
        later = [path.name for path in self.good() if _step_of(path) > step]
        if later:
            warn(f"{self._directory} holds {later[0]} already, which a resume would take before that of step {step}")


def _step_of(path: Path) -> int:
    return int(path.stem.removeprefix("step-"))
