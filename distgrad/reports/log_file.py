"""A file of JSON lines, one object for each step, for programs and for `distgrad report`."""

import contextlib
import logging
import sys
from logging.handlers import RotatingFileHandler
from pathlib import Path

from distgrad.errors import warn
from distgrad.reports.listeners import Listener
from distgrad.reports.report import StepReport

MEGABYTE = 1_000_000


class LogFile(Listener):
    """Appends every step to a file. If that cannot be written, training goes on, and one warning says so.

    Args:
        path: the file; its directory is made if it is missing.
        max_bytes: before the file grows beyond this, it is renamed PATH.1, and an older PATH.1 PATH.2, and so on.
        backups: number of renamed files that are kept.
    """

    def __init__(self, path: str | Path, max_bytes: int = 256 * MEGABYTE, backups: int = 9) -> None:
        self._handler = _Handler(path, max_bytes, backups)

    def hear(self, report: StepReport) -> None:
        """Append the step."""
        self._handler.handle(logging.makeLogRecord({"msg": report.as_json()}))

    def close(self) -> None:
        """Close the file; another step would open it again."""
        self._handler.close()


class _Handler(RotatingFileHandler):
    def __init__(self, path: str | Path, max_bytes: int, backups: int) -> None:
        self._warned = False
        super().__init__(path, maxBytes=max_bytes, backupCount=backups, encoding="utf-8", delay=True)

    def _open(self):  # type: ignore[no-untyped-def]  # the base class's type names a private class
        Path(self.baseFilename).parent.mkdir(parents=True, exist_ok=True)
        return super()._open()

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: ARG002, N802 (the base class's names)
        """Warn once, and drop the line that could not be written; the next step opens the file again."""
        if not self._warned:
            self._warned = True
            warn(f"{self.baseFilename} lacks steps from now on: {sys.exc_info()[1]}")
        stream, self.stream = self.stream, None
        with contextlib.suppress(OSError):
            if stream is not None:
                stream.close()
