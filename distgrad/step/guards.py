"""Checks after each step: a request to stop, steps that skip for ever, weights that are no longer alike.

All three are known alike on every worker from what came with the step's sum. Values are looked at one step late, when
they are there without waiting for a device; only a comparison of the weights waits for its own, every so many steps.
"""

import functools

import tensorflow as tf

from distgrad.collectives.communicator import Communicator
from distgrad.errors import Stopped, TooManySkipped
from distgrad.reports.report import StepReport
from distgrad.step.config import StepConfig
from distgrad.step.drift import Drift
from distgrad.step.training_graph import Flags


class Guards:
    """The checks of one training."""

    def __init__(self, comm: Communicator, config: StepConfig) -> None:
        self._comm, self._check_every, self._max_skipped = comm, config.check_every, config.max_skipped
        self._last: StepReport | None = None
        self._skipped = 0

    def flags(self, more: bool) -> tf.Tensor:
        """Return (2,) float64, `Flags` of the next step."""
        return _flags(Flags(more, self._comm.liveness.stop.by is not None))

    def check(self, report: StepReport, drift: Drift) -> bool:
        """Check a step that was taken. Returns True if all workers stop now.

        Raises:
            Drifted: some worker's weights are not those of the others.
            TooManySkipped: nothing but skipped steps.
        """
        if self.compares(report.step) and report.drifted:
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
        """Return the error that ends the training."""
        by = f" by {self._comm.liveness.stop.by.name}" if self._comm.liveness.stop.by else ""
        what = "and saved" if saved else "but not saved: it has no Checkpoint"
        advice = "launch it again to go on from there" if saved else "give it one, and begin again"
        return Stopped(f"asked to stop{by}; step {step} is done {what}", advice, step=step, everywhere=True)

    def compares(self, step: int) -> bool:
        """Return whether the step of this number compares the weights of the workers."""
        return self._check_every > 0 and step % self._check_every == 0


@functools.cache
def _flags(flags: Flags) -> tf.Tensor:
    return tf.constant(flags, tf.float64)
