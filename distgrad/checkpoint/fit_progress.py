"""Where a `fit` stands, for a checkpoint: Keras's epoch and batch, beside the step's own place in the data.

A `fit` that is resumed in the middle of an epoch goes through the batches before as if it trained on them, so that
Keras and its callbacks count as they would have; the step is not asked, and the logs are those that were saved.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from distgrad.errors import CheckpointMismatch
from distgrad.step.distributed_step import DistributedStep


class DataOrder(Protocol):
    """How the data of a `fit` come in the same order again after a resume."""

    @property
    def seeds(self) -> list[int]:
        """The seeds of this worker's own shuffling; they differ where a resume cannot have its order again."""

    def order(self, epoch_begun: bool, pass_begun: bool) -> list[int]:
        """Return the numbers that are to be saved; the same on every worker.

        Args:
            epoch_begun: True within an epoch of Keras.
            pass_begun: True if some batches of a pass over the data, but not all, are done.
        """

    def go_to(self, order: Sequence[int], seeds: Sequence[int] | None) -> None:
        """Have the order that was saved, before the first batch.

        Args:
            order: what `order` returned.
            seeds: this worker's `seeds` at that time; None if it had no part in the training then.
        """


class Fitting:
    """One call of `fit`.

    Attributes:
        epoch: the one in progress, or the next.
        ahead: how many batches of it are to be gone through without a step.
        logs: what is told of them.
        over: whether they are all that the data had.
    """

    def __init__(self, step: DistributedStep, share: DataOrder) -> None:
        self.step, self.share = step, share
        self.epoch = self.ahead = 0
        self.logs: Mapping[str, float] = {}
        self.over = False
        self._first = step.steps

    def begin_epoch(self, epoch: int) -> None:
        """Count its batches from here."""
        self.epoch, self._first = epoch, self.step.steps - self.ahead

    def end_epoch(self) -> None:
        """The next one has not begun."""
        self.epoch, self._first = self.epoch + 1, self.step.steps

    def as_dict(self) -> dict[str, Any]:
        """What is saved."""
        batch = self.step.steps - self._first
        logs = {name: float(value) for name, value in self.step.logs.items()} if batch else {}
        over = batch > 0 and self.step.position.taken == 0
        order = self.share.order(epoch_begun=batch > 0, pass_begun=self.step.position.taken > 0)
        return {"epoch": self.epoch, "batch": batch, "logs": logs, "over": over, "order": order}

    def go_to(self, saved: Mapping[str, Any] | None, seeds: Sequence[int] | None) -> None:
        """Stand where a fit was saved, before the first epoch; seeds are those that this worker's data had.

        Raises:
            CheckpointMismatch: no fit was.
        """
        if saved is None:
            raise CheckpointMismatch(
                "the checkpoint is that of a loop, not of fit()", "give another directory", everywhere=True
            )
        self.epoch, self.ahead, self.logs = saved["epoch"], saved["batch"], saved["logs"]
        self.over = saved["over"]
        self.share.go_to(saved["order"], seeds)

    def steps_of(self, steps: int) -> int:
        """How many of the next so many steps are to be taken."""
        passed = min(self.ahead, steps)
        self.ahead -= passed
        return steps - passed
