"""The directory with a training's checkpoints, one file each, as the root sees it."""

import re
from pathlib import Path

from distgrad.checkpoint import file, metadata
from distgrad.checkpoint.file import CheckpointContent, Damaged, Hostile
from distgrad.errors import HostileCheckpoint, NoCheckpointDirectory, NoValidCheckpoint, warn

NAME = re.compile(r"step-(?:[0-9]{10}|[1-9][0-9]{10,})\.npz")


class CheckpointDirectory:
    """The files `step-NNNNNNNNNN.npz` of a directory.

    Args:
        directory: their directory.
        keep: number of files that stay when another one is written.
    """

    def __init__(self, directory: Path, keep: int) -> None:
        self._directory, self._keep = directory, keep
        self._damaged: set[Path] = set()  # which do not count among those kept

    def prepare(self) -> None:
        """Make sure that files can be written, and remove what killed processes left half-written.

        No other file is touched, whatever its name ends in.

        Raises:
            NoCheckpointDirectory: the directory is missing, or nothing can be written into it.
        """
        folder = self._directory
        if not folder.is_dir():
            raise NoCheckpointDirectory(
                f"checkpoint directory {folder} is missing", f"create it: mkdir -p {folder.absolute()}"
            )
        try:
            probe = file.temporary_path(self._path(0))
            probe.open("xb").close()
            probe.unlink()
            for left in folder.iterdir():
                if file.is_left_over(left):
                    left.unlink(missing_ok=True)
        except OSError as error:
            raise NoCheckpointDirectory(
                f"nothing can be written into checkpoint directory {folder} ({error.strerror})",
                "make it writable, or give another directory",
            ) from None

    def paths(self) -> list[Path]:
        """List the files, newest first, without looking into them."""
        found = [path for path in self._directory.glob("step-*") if NAME.fullmatch(path.name) and not path.is_dir()]
        return sorted(found, key=_step_of, reverse=True)

    def undamaged(self) -> list[Path]:
        """List the files that have not been found damaged so far, newest first."""
        return [path for path in self.paths() if path not in self._damaged]

    def write(self, step: int, content: CheckpointContent) -> None:
        """Write the file of a step; once it is complete, remove the oldest ones beyond `keep`.

        Raises:
            OSError: it could not be written; nothing is left of it.
        """
        path = self._path(step)
        file.write(path, content)
        self._damaged.discard(path)
        until_now = [path for path in self.undamaged() if _step_of(path) <= step]
        for path in until_now[self._keep :]:
            path.unlink(missing_ok=True)

    def read_newest(self) -> CheckpointContent | None:
        """Read the newest file that is whole, and warn of newer ones that are damaged.

        Returns:
            Its content; None if there is no file.

        Raises:
            NoValidCheckpoint: there are files, and all of them are damaged.
            HostileCheckpoint: a file was made to do harm.
        """
        reasons = []
        for path in self.paths():
            try:
                found = file.read(path)
                metadata.require_state(found)
            except Hostile as reason:
                raise HostileCheckpoint(
                    f"{path} is no checkpoint: {reason}; nothing of it was loaded",
                    "find out who put it there, and remove it",
                ) from None
            except (Damaged, OSError) as reason:
                reasons.append(f"{path.name} is damaged ({reason})")
                self._damaged.add(path)
                continue
            if reasons:
                warn(f"checkpoint {', '.join(reasons)}; {path.name} is used")
            return found
        if reasons:
            raise NoValidCheckpoint(
                f"no checkpoint in {self._directory} is whole: {', '.join(reasons)}",
                "bring back a copy of one, or begin again in another directory",
            )
        return None

    def _path(self, step: int) -> Path:
        return self._directory / f"step-{step:010d}.npz"

    def warn_of_later(self, step: int) -> None:
        """Warn if there is the file of a later step, which a resume would read instead of this step's."""
        later = [path.name for path in self.undamaged() if _step_of(path) > step]
        if later:
            warn(f"{self._directory} holds {later[0]} already, which a resume would take before that of step {step}")


def _step_of(path: Path) -> int:
    return int(path.stem.removeprefix("step-"))
