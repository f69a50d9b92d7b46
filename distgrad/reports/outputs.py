"""The listeners that the arguments of a `DistributedStep` ask for."""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from distgrad.reports.lines import Lines
from distgrad.reports.listeners import Listener, Listeners
from distgrad.reports.live import Live
from distgrad.reports.log_file import LogFile
from distgrad.reports.report import StepReport

FORMATS = ("text", "json", "live")


def listeners_of(
    log_every: int,
    log_format: str,
    log_file: str | Path | LogFile | None,
    others: Iterable[Listener | Callable[[StepReport], Any]],
) -> Listeners:
    """Make the root's listeners; see `DistributedStep` for the arguments, where `others` are its `listeners`."""
    live = log_format == "live" and log_every
    listeners: list[Listener | Callable[[StepReport], Any]] = [
        Live(log_every) if live else Lines(log_every, as_json=log_format == "json")
    ]
    if log_file is not None:
        listeners.append(log_file if isinstance(log_file, LogFile) else LogFile(log_file))
    return Listeners([*listeners, *others])
