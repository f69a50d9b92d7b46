"""Errors of distgrad: one class, one code and one exit status for each kind of failure.

An error is one line, `distgrad: error[DG020] rank=1 step=0: cause; what to do`, and ends the process with
the sysexits status of its class, so a scheduler can tell "fix the script" (64, 65, 78) from "try again" (75).
"""

import os
import re
import reprlib
import sys
import traceback
from collections.abc import Callable
from types import TracebackType
from typing import TextIO

INTERNAL_STATUS = 70
SHOWN_LENGTH = 80  # characters of a value that a message shows


class DistgradError(Exception):
    """Base class of all distgrad errors.

    Args:
        cause: what went wrong, naming the variable or setting.
        fix: what the reader can do about it.
        rank: the worker that is at fault, None where that is not one worker.
        step: the step during which it was found, None before the first.
        everywhere: True if every worker raises this same error, so that only one of them prints it.

    Attributes:
        code: the code of the error's class, "DG001" for instance.
        status: the exit status of a process that the error ends.
    """

    code = "DG070"
    status = INTERNAL_STATUS

    def __init__(
        self,
        cause: str,
        fix: str,
        *,
        rank: int | None = None,
        step: int | None = None,
        everywhere: bool = False,
    ) -> None:
        super().__init__(cause, fix)
        self.cause, self.fix, self.rank, self.step, self.everywhere = cause, fix, rank, step, everywhere

    def __str__(self) -> str:
        rank = "-" if self.rank is None else self.rank
        step = "-" if self.step is None else self.step
        return f"distgrad: error[{self.code}] rank={rank} step={step}: {self.cause}; {self.fix}"


class UnknownBackend(DistgradError):
    """A backend's name that is none of auto, solo, mpi, horovod, tf."""

    code, status = "DG001", os.EX_USAGE


class BadArgument(DistgradError):
    """An argument that no worker could use."""

    code, status = "DG002", os.EX_USAGE


class EngineMissing(DistgradError):
    """An engine, its library or its launcher that is not installed or does not load."""

    code, status = "DG003", os.EX_UNAVAILABLE


class BadEnvironment(DistgradError):
    """Environment variables that are broken or contradict each other."""

    code, status = "DG004", os.EX_CONFIG


class WorldMismatch(DistgradError):
    """Another number of workers than the launcher started, or than are expected."""

    code, status = "DG005", os.EX_PROTOCOL


class ModelMismatch(DistgradError):
    """Variables whose names, shapes, dtypes, order or count differ between workers."""

    code, status = "DG020", os.EX_DATAERR


class SettingsMismatch(DistgradError):
    """Settings of the step that differ between workers."""

    code, status = "DG021", os.EX_DATAERR


class Drifted(DistgradError):
    """Weights that have become different on one of the workers."""

    code, status = "DG022", INTERNAL_STATUS


class VersionMismatch(DistgradError):
    """Versions of a library that differ between workers."""

    code, status = "DG023", os.EX_PROTOCOL


class GradientMismatch(DistgradError):
    """A gradient whose shape, rows or values are not its variable's."""

    code, status = "DG024", os.EX_DATAERR


class UnsupportedDtype(DistgradError):
    """A variable or value whose dtype has no exact place in a float sum."""

    code, status = "DG030", os.EX_DATAERR


class UnsupportedLoss(DistgradError):
    """A loss whose sum over examples cannot be known from its value."""

    code, status = "DG031", os.EX_DATAERR


class NonFiniteGradient(DistgradError):
    """NaN or infinity in the global gradient under `on_nonfinite="raise"`."""

    code, status = "DG033", os.EX_DATAERR


class NoSamples(DistgradError):
    """A step for which no worker had a row."""

    code, status = "DG034", os.EX_DATAERR


class TooManySkipped(DistgradError):
    """NaN or infinity in the global gradient of `max_skipped` steps in a row."""

    code, status = "DG036", os.EX_DATAERR


class ReportExpired(DistgradError):
    """The per-variable table of a step, read after a later step."""

    code, status = "DG035", os.EX_USAGE


class UnsupportedModel(DistgradError):
    """A model that cannot be distributed, or whose batch cannot be cut."""

    code, status = "DG040", os.EX_DATAERR


class UnsupportedMetric(DistgradError):
    """A metric that is known from all rows of the global batch only, which cannot be gathered."""

    code, status = "DG041", os.EX_DATAERR


class ForeignOptimizer(DistgradError):
    """An optimizer whose state belongs to the variables of another model."""

    code, status = "DG043", os.EX_USAGE


class FitMismatch(DistgradError):
    """Arguments of `fit` or `evaluate` that differ between workers, callbacks included."""

    code, status = "DG044", os.EX_USAGE


class NoCheckpointDirectory(DistgradError):
    """A directory for checkpoints that is missing, or into which nothing can be written."""

    code, status = "DG050", os.EX_CANTCREAT


class CheckpointNotWritten(DistgradError):
    """A checkpoint that could not be written; the one before is kept."""

    code, status = "DG051", os.EX_IOERR


class NoValidCheckpoint(DistgradError):
    """A directory whose checkpoints are all damaged."""

    code, status = "DG052", os.EX_IOERR


class HostileCheckpoint(DistgradError):
    """A file in the place of a checkpoint that was made to do harm: a pickle, say."""

    code, status = "DG053", os.EX_NOPERM


class CheckpointMismatch(DistgradError):
    """A checkpoint of another model or optimizer."""

    code, status = "DG054", os.EX_DATAERR


class WorkerLost(DistgradError):
    """A worker whose process has ended while the others needed it."""

    code, status = "DG060", os.EX_TEMPFAIL


class NotArrived(DistgradError):
    """A worker that did not come to a sum within `connect(timeout=...)` seconds."""

    code, status = "DG061", os.EX_TEMPFAIL


class LauncherLost(DistgradError):
    """A job whose launcher has ended."""

    code, status = "DG062", os.EX_TEMPFAIL


class TooLittleMemory(DistgradError):
    """Less memory than the sum of the gradients takes."""

    code, status = "DG065", os.EX_TEMPFAIL


class Stopped(DistgradError):
    """A job that a signal has asked to stop; all workers have stopped after the same step."""

    code, status = "DG064", 85


class WorkerFailed(DistgradError):
    """A worker that ended with a status of its own, which becomes the job's."""

    code = "DG063"


def shown(value: object) -> str:
    """Return a value from outside as a message may show it: cut short, and with its control characters escaped."""
    form = reprlib.Repr()
    form.maxstring = form.maxother = form.maxlong = SHOWN_LENGTH
    text = form.repr(value)
    return text if len(text) <= 2 * SHOWN_LENGTH else f"{text[: 2 * SHOWN_LENGTH]}..."


def reason_of(error: Exception) -> str:
    """Return the text of a library's error about what came from outside, which it may quote, on one short line."""
    text = str(error) or type(error).__name__
    return text if text.isprintable() and len(text) <= 2 * SHOWN_LENGTH else shown(text)


# How the compiled core writes an error into an operation's message (native/problem.h), and how TensorFlow shows one of
# a function that it has converted: code, cause, and what to do.
_IN_A_MESSAGE = re.compile(r"distgrad: error\[(DG\d{3})\](?: rank=\S+ step=\S+)?: (.*); (.*)(?:\n|$)")


def error_within(message: str, rank: int | None, step: int | None) -> DistgradError | None:
    """Return the error of distgrad's that the message of an operation holds; None if it holds none.

    Args:
        rank: the worker whose operation has failed.
        step: the step during which it did.
    """
    found = _IN_A_MESSAGE.search(message)
    if found is None:
        return None
    kinds: list[type[DistgradError]] = [DistgradError, *DistgradError.__subclasses__()]
    code, cause, fix = found.groups()
    kind = next((kind for kind in kinds if kind.code == code), DistgradError)
    return kind(cause, fix, rank=rank, step=step)


def warn(message: str) -> None:
    """Print one warning line on stderr, on whichever workers call this."""
    print_line(f"distgrad: warning: {message}", sys.stderr)


def note(message: str) -> None:
    """Print one line on stderr that says what is done, on whichever workers call this."""
    print_line(f"distgrad: note: {message}", sys.stderr)


def print_line(line: str, stream: TextIO) -> None:
    """Print a line in one write.

    An unbuffered stream, such as horovodrun sets up, writes `print`'s newline by itself, and the launcher puts another
    rank's line, or its own prefix, between the two.
    """
    print(f"{line}\n", end="", file=stream, flush=True)


def end_process_on_uncaught(prints: bool, leave: Callable[[int, bool], None]) -> None:
    """Turn an uncaught exception into one line or one traceback, and an exit status that the launcher sees.

    Python itself would end with status 1 whatever the error says, and under MPI one rank's exception would
    leave the other ranks waiting for ever. Does nothing in an interactive session.

    Args:
        prints: True if this worker prints an error that every worker raises.
        leave: ends this worker (second argument True) or the whole job, with the status.
    """
    if hasattr(sys, "ps1"):
        return

    def hook(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        if isinstance(error, KeyboardInterrupt):
            sys.__excepthook__(kind, error, trace)
            return
        if not isinstance(error, DistgradError):
            error = error_within(str(error), rank=None, step=None) or error
        known = isinstance(error, DistgradError)
        everywhere = isinstance(error, DistgradError) and error.everywhere
        if prints or not everywhere:
            text = str(error) if known else "".join(traceback.format_exception(kind, error, trace))
            print_line(text.rstrip(), sys.stderr)
        sys.stdout.flush()
        sys.stderr.flush()
        leave(error.status if isinstance(error, DistgradError) else INTERNAL_STATUS, everywhere)

    sys.excepthook = hook
