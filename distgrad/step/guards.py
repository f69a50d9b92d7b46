"""What a step looks at besides its gradient: whether it was asked to stop, skips for ever, or its weights drift.

All three are known alike on every worker from what came along in the step's sum. Values are looked at one step late,
when they are there without waiting for a device; only a drift check waits for its own, every so many steps.
"""

import functools
from typing import TYPE_CHECKING

import tensorflow as tf

from distgrad.errors import Stopped, TooManySkipped
from distgrad.reports.report import StepReport
from distgrad.step.drift import Drift

if TYPE_CHECKING:
    from distgrad.collectives.communicator import Communicator

FLAGS = 3  # `more` and `stop`, which travel, and whether to check for drift


class Guards:
    """The guards of one step.

    Args:
        check_every: steps between two checks for drift; 0 never checks.
        max_skipped: so many skipped steps in a row are an error; None bears any number.
    """

    def __init__(self, comm: "Communicator", check_every: int, max_skipped: int | None) -> None:
        self._comm, self._check_every, self._max_skipped = comm, check_every, max_skipped
        self._last: StepReport | None = None
        self._skipped = 0

    def settings(self) -> list[str]:
        """What must be the same on every worker."""
        return [f"check_every={self._check_every}", f"max_skipped={self._max_skipped}"]

    def flags(self, more: bool, step: int) -> tf.Tensor:
        """(FLAGS,) float64, for the step of this number."""
        return _flags(more, self._comm.liveness.stop.by is not None, self._checks(step))

    def look(self, report: StepReport, drift: Drift) -> bool:
        """Look at what a step has brought. Returns whether all workers stop now.

        Raises:
            Drifted: some worker's weights are not those of the others.
            TooManySkipped: nothing but skipped steps.
        """
        if self._checks(report.step) and report.drifted:
            drift.blame(report.step)
        last, self._last = self._last, report
        if last is None:
            return False
        self._skipped = 0 if last.applied else self._skipped + 1
        if self._max_skipped is not None and self._skipped >= self._max_skipped:
            raise TooManySkipped(
                f"{self._skipped} steps in a row were skipped, their gradients were not finite",
                "lower the learning rate, clip, or look for NaN in the data; max_skipped=None goes on for ever",
                step=last.step,
                everywhere=True,
            )
        return last.stop

    def stopped(self, step: int, saved: bool) -> Stopped:
        """The error that ends the training."""
        by = f" by {self._comm.liveness.stop.by.name}" if self._comm.liveness.stop.by else ""
        what = "and saved" if saved else "but not saved: it has no Checkpoint"
        return Stopped(
            f"asked to stop{by}; step {step} is done {what}",
            "launch it again to go on from there",
            step=step,
            everywhere=True,
        )

    def _checks(self, step: int) -> bool:
        return self._check_every > 0 and step % self._check_every == 0


@functools.cache
def _flags(*flags: bool) -> tf.Tensor:
    return tf.constant(flags, tf.float64)
