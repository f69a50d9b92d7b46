"""Layouts that Python shares with the compiled core: what stands where, and which number means what.

The core has them in layout.h and status_page.h. Both lists are compared when the core is loaded, so that a core of
another version is an error instead of wrong numbers.
"""

import ctypes
import enum
from collections.abc import Iterator
from typing import NamedTuple

from distgrad.errors import EngineMissing

ALIGNMENT = 64  # bytes: of what a tensor may alias
NUMBER_SIZE = 8  # bytes: every field of a structure is an int64 or a float64


class Event(enum.IntEnum):
    """Requests of the core to Python in the midst of a sum, each with two numbers a and b.

    Attributes:
        GROW: more memory: a bytes for each vector.
        SUM_BETWEEN_HOSTS: the sum over the hosts of entries a..b of the result.
        MISMATCH: an error: local rank a brings b entries, unlike local rank 0.
        VOTE: an exchange of votes: a is 1 if this rank's own vector is not finite.
        OTHER_PARTS: an error: local rank a describes b ranges and tables, or others, unlike local rank 0.
        PUBLISH_BETWEEN_HOSTS: entries a..b of the publication for the other hosts, and theirs.
    """

    GROW = 0
    SUM_BETWEEN_HOSTS = 1
    MISMATCH = 2
    VOTE = 3
    OTHER_PARTS = 4
    PUBLISH_BETWEEN_HOSTS = 5


class StatusPage(enum.IntEnum):
    """Fields of the page that tells the processes of a host where this one is; each is an int64.

    Attributes:
        SUM_COUNT: how often the process has come to where all meet; the same on all of them.
        WAITING: 1 while it waits for the others, or may do so.
        BETWEEN_HOSTS: 1 while it sums between hosts.
        FINISHED: 1 if it needs no more of the others, 2 once its program has ended well.
        DUMPS_STACKS: 1 if it prints its stacks at a signal. The core does not use it, nor what follows.
        AT_WORK: 1 while it does what takes as long as it takes, outside a step: callbacks, for example.
        HEARTBEAT: a number that changes several times a second, unless the process is stopped.
        CALL: what it has called that all must call, see liveness/calls.py; 0 for a step.
    """

    SUM_COUNT = 0
    WAITING = 1
    BETWEEN_HOSTS = 2
    FINISHED = 3
    DUMPS_STACKS = 4
    AT_WORK = 5
    HEARTBEAT = 6
    CALL = 7


class Moments(enum.IntEnum):
    """Columns of what the core finds of some entries: Σ, Σ², max |entry|, and how many are not finite or zero."""

    TOTAL = 0
    SQUARES = 1
    LARGEST = 2
    NONFINITE = 3
    ZEROS = 4


class AddedSums(enum.IntEnum):
    """Columns of what is found while gradients are added: their Σ²; of the totals after the last ones Σ and Σ²."""

    SQUARES = 0
    TOTAL = 1
    TOTAL_SQUARES = 2


class MicroBatchNotes(enum.IntEnum):
    """Columns of a worker's notes: Σ |gradient|²/N, how many micro-batches had an N, Σ and Σ² of the totals."""

    BETWEEN = 0
    COUNT = 1
    TOTAL = 2
    TOTAL_SQUARES = 3


class WorkerRow(NamedTuple):
    """One worker's row in the table of workers, in the order in which the core writes it.

    Attributes:
        gradient_sum, gradient_norm: of the gradient of its share alone, Σ w·∇loss over its examples, scaled by the loss
            scale and not divided.
        between: sqrt(Σ_micro-batches |gradient|²/N), see reports/noise.py; scaled and not divided, too.
        micro_batches: how many of them had an N.
        weight: N of its share.
        seconds: that it computed, from the step's begin to where it was ready to meet the others.
    """

    gradient_sum: float
    gradient_norm: float
    between: float
    micro_batches: float
    weight: float
    seconds: float


STRUCTURES = (StatusPage, Moments, AddedSums, MicroBatchNotes)


class _Entry(ctypes.Structure):
    """A name and its number in the core's list, which ends with a name that is None."""

    _fields_ = (("name", ctypes.c_char_p), ("value", ctypes.c_int64))


def expected() -> dict[str, int]:
    """Return by name what the core must have: numbers, sizes of structures, offsets of their fields in bytes."""
    found = {"ALIGNMENT": ALIGNMENT} | {f"Event.{event.name}": int(event) for event in Event}
    structures = {kind.__name__: [name.lower() for name in kind.__members__] for kind in STRUCTURES}
    for structure, fields in {**structures, WorkerRow.__name__: WorkerRow._fields}.items():
        found[structure] = NUMBER_SIZE * len(fields)
        found |= {f"{structure}.{field}": NUMBER_SIZE * number for number, field in enumerate(fields)}
    return found


def require_same(core: ctypes.CDLL) -> None:
    """Compare the core's layouts with these.

    Raises:
        EngineMissing: they differ, or the core is too old to tell its own.
    """
    own, theirs = expected(), dict(_entries(core)) if hasattr(core, "distgrad_layout") else {}
    differing = sorted(name for name in own.keys() | theirs.keys() if own.get(name) != theirs.get(name))
    if differing:
        name = differing[0]
        raise EngineMissing(
            "distgrad's compiled core is of another version than its Python code "
            f"({name} is {theirs.get(name)} in the core and {own.get(name)} in Python)",
            "install distgrad again with pip, which compiles it",
            everywhere=True,
        )


def _entries(core: ctypes.CDLL) -> Iterator[tuple[str, int]]:
    core.distgrad_layout.restype = ctypes.POINTER(_Entry)
    core.distgrad_layout.argtypes = []
    for entry in core.distgrad_layout():
        if entry.name is None:
            return
        yield entry.name.decode(), entry.value
