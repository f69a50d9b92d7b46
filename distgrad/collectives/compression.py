"""Whether the sums of one vector cross the wire between hosts as bfloat16, step by step."""

import json
import statistics
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import numpy as np
import tensorflow as tf

from distgrad.collectives.agreement import Exchange

WARM_UP = 2  # sums each way that do not count
MEASURED = 5  # sums each way that do
WORTHWHILE = 0.95  # of the time of a sum as it is: what a rounded one may take at most


class Sums(Protocol):
    """Rounded sums, and what their roundings took away."""

    def all_sum(self, ranks: Any, vector: np.ndarray, fill: Callable[[int, int], None], divisor: float) -> None:
        """Sum a vector over ranks; see rounded_sums.py."""

    def forget(self) -> None:
        """Begin with nothing kept."""

    def undo(self) -> None:
        """Keep what was kept before the last sum, which did not count."""


class Decision(NamedTuple):
    """What was measured: whether rounded sums are worthwhile, and the ms that a sum took as it is, and rounded."""

    rounds: bool
    exact_ms: float
    rounded_ms: float


class Compression:
    """The way in which sums of one vector cross the wire. Every worker makes the same ones, and takes the same steps.

    Args:
        number: the core's name of it, more than 0.
        sums: the rounded ones.
        measures: True to find out first which way is faster; each step then takes the other way than the last one.

    Attributes:
        rounds: True if the next sum is to be rounded.
    """

    def __init__(self, number: int, sums: Sums, measures: bool) -> None:
        self.number, self.sums, self.rounds = number, sums, not measures
        self._steps_left = 2 * (WARM_UP + MEASURED) if measures else 0
        self._seconds: dict[bool, list[float]] = {False: [], True: []}

    @property
    def measures(self) -> bool:
        """True until it is known which way is faster."""
        return self._steps_left > 0

    def took(self, seconds: float) -> None:
        """Hear how long a sum took."""
        if self.measures:
            self._seconds[self.rounds].append(seconds)

    def next_step(self, comm: Exchange) -> Decision | None:
        """Hear that a step is over; return what was decided after it, the same on every worker. All call it."""
        if not self.measures:
            return None
        self._steps_left -= 1
        self.rounds = not self.rounds
        if self._steps_left > 0:
            return None
        found = _decide([json.loads(text) for text in comm.exchange(json.dumps(list(self._seconds.values()))).values()])
        self.rounds = found.rounds
        if not found.rounds:
            self.sums.forget()
        return found

    def undo_unless(self, counts: tf.Tensor) -> None:
        """Within a graph: keep what was kept before the last sum, unless its step counts.

        Args:
            counts: () bool.
        """

        def undo() -> None:
            tf.numpy_function(self._undo, [], [], stateful=True)

        tf.cond(counts, lambda: None, undo)

    def _undo(self) -> None:
        if self.rounds:
            self.sums.undo()


def _decide(workers: list[tuple[list[float], list[float]]]) -> Decision:
    """Compare the seconds of each worker's sums as they are, and rounded; those that make none have none."""
    exact, rounded = (
        # Whoever came last has waited for nobody: its time is that of the sum alone.
        1000 * statistics.median(min(times) for times in list(zip(*ways, strict=True))[WARM_UP:])
        for ways in zip(*(ways for ways in workers if ways[0]), strict=True)
    )
    return Decision(rounded < WORTHWHILE * exact, exact, rounded)
