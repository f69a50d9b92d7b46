"""Progress of a call of `fit`: Keras's epoch and batch, which a checkpoint saves beside the step's own cursor.

A `fit` that is resumed in the middle of an epoch gets the batches before once more, so that Keras and its callbacks
count as they would have. No step is taken for them, and their logs are those that were saved.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from distgrad.errors import CheckpointMismatch
from distgrad.step.distributed_step import DistributedStep


class ResumableData(Protocol):
    """The data of a call of `fit`, which can give their batches in the same order again."""

    @property
    def seeds(self) -> list[int]:
        """Seeds of the shuffling that `order` does not describe."""

    def order(self, epoch_begun: bool, pass_begun: bool) -> list[int]:
        """Describe the order of the batches in numbers, to be given to `go_to` after a resume.

        Args:
            epoch_begun: True if some batches of Keras's epoch are done.
            pass_begun: True if some batches of the data, but not all, are done.
        """

    def go_to(self, order: Sequence[int], seeds: Sequence[int] | None) -> None:
        """Return to an order, before the first pass over the data.

        Args:
            seeds: those that this worker's data had when `order` was saved; None if they are not known.
        """


class FitProgress:
    """The progress of one call of `fit`.

    Attributes:
        epoch: Keras's epoch in progress, or the next one between two epochs.
        batches_to_skip: number of batches of that epoch that were trained on before the resume and are still to pass.
        logs: the saved logs of those batches.
        data_exhausted: True if those batches are all that the data have.

    Args:
        step: the step that `fit` takes.
        data: the data that `fit` was given.
    """

    def __init__(self, step: DistributedStep, data: ResumableData) -> None:
        self.step, self.data = step, data
        self.epoch = self.batches_to_skip = 0
        self.logs: Mapping[str, float] = {}
        self.data_exhausted = False
        self._steps_before_epoch = step.steps

    def begin_epoch(self, epoch: int) -> None:
        """Count the batches of an epoch from here, those to be skipped included."""
        self.epoch, self._steps_before_epoch = epoch, self.step.steps - self.batches_to_skip

    def end_epoch(self) -> None:
        """Move on to the next epoch, no batch of which is done."""
        self.epoch, self._steps_before_epoch = self.epoch + 1, self.step.steps

    def as_dict(self) -> dict[str, Any]:
        """Collect what `go_to` needs, in a form that JSON knows."""
        batch, pass_begun = self.step.steps - self._steps_before_epoch, self.step.cursor.taken > 0
        return {
            "epoch": self.epoch,
            "batch": batch,
            "logs": {name: float(value) for name, value in self.step.logs.items()} if batch else {},
            "over": batch > 0 and not pass_begun,
            "order": self.data.order(epoch_begun=batch > 0, pass_begun=pass_begun),
        }

    def go_to(self, saved: Mapping[str, Any] | None, seeds: Sequence[int] | None) -> None:
        """Return to a saved progress, before the first epoch.

        Args:
            saved: what `as_dict` gave.
            seeds: those that this worker's data had then; None if they are not known.

        Raises:
            CheckpointMismatch: `saved` is None, because the checkpoint is not that of a `fit`, or the order in it is
                that of another kind of data.
        """
        if saved is None:
            raise CheckpointMismatch(
                "the checkpoint is that of a loop, not of fit()", "give another directory", everywhere=True
            )
        if len(saved["order"]) != len(self.data.order(epoch_begun=False, pass_begun=False)):
            raise CheckpointMismatch(
                "the data of fit() are of another kind than those in the checkpoint",
                "give arrays, a PyDataset or a dataset as before, or another directory",
                everywhere=True,
            )
        self.epoch, self.batches_to_skip, self.logs = saved["epoch"], saved["batch"], saved["logs"]
        self.data_exhausted = saved["over"]
        self.data.go_to(saved["order"], seeds)

    def skip(self, batches: int) -> int:
        """Skip as many of the next batches as were trained on before the resume.

        Returns:
            How many of the `batches` are left to be trained on.
        """
        skipped = min(self.batches_to_skip, batches)
        self.batches_to_skip -= skipped
        return batches - skipped
