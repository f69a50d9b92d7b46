"""The public `Checkpoint`.

The root alone reads and writes files. It tells every worker what it has read, or why it could not, so that all go on
from the same place, or raise the same error.
"""

import atexit
import json
import os
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import keras

from distgrad import errors
from distgrad.checkpoint import training_state
from distgrad.checkpoint.directory import CheckpointDirectory
from distgrad.checkpoint.file import CheckpointContent
from distgrad.checkpoint.fit_progress import FitProgress
from distgrad.collectives.communicator import Communicator
from distgrad.errors import BadArgument, CheckpointNotWritten, DistgradError, warn
from distgrad.keras_internals import set_initial_epoch
from distgrad.step.distributed_step import DistributedStep

Result = TypeVar("Result")


class Checkpoint(keras.callbacks.Callback):
    """Saves a training into a directory and resumes it from there: in a loop of your own, or as a callback of `fit`.

    Every worker makes one and calls its methods alike; the root reads and writes. A file `step-NNNNNNNNNN.npz` is there
    whole or not at all, and is used only if its SHA-256 holds. Restored, bit for bit as they were saved, are weights,
    optimizer, loss scale, random numbers, the step's number and the place in the data.

    As a callback it resumes when `fit` begins, and saves every `every` steps and at the end, or after each epoch.

    Args:
        directory: must exist and be writable on the root's host. One for each training.
        comm: what `distgrad.connect()` gave.
        keep: number of files that stay; older ones are removed once a new one is complete.
        every: under `fit`, the number of steps between saves; None saves after each epoch.

    Raises:
        BadArgument: a number is less than 1.
        NoCheckpointDirectory: the directory is missing, or nothing can be written into it; on every worker.
    """

    def __init__(
        self, directory: str | os.PathLike[str], comm: Communicator, keep: int = 3, *, every: int | None = None
    ) -> None:
        super().__init__()
        for name, value in (("keep", keep), ("every", every)):
            if value is not None and value < 1:
                raise BadArgument(f"{name}={value!r}", "give 1 or more", everywhere=True)
        self._comm, self._every = comm, every
        self._directory = CheckpointDirectory(Path(directory), keep)
        self._writer = ThreadPoolExecutor(1, "distgrad-checkpoint")
        self._writing: Future[None] | None = None
        self._failure, self._has_warned = "", True  # of the last save
        self._saved_step = self._resumed_step = 0
        self._fit_progress: FitProgress | None = None  # of the call of `fit` that is running
        self._has_resumed_fit = False
        self._run_on_root(self._directory.prepare)
        atexit.register(self.surface)

    # ---- what a user calls

    @property
    def latest(self) -> Path | None:
        """Path of the newest file as this host sees it; its checksum is not looked at."""
        self._wait_for_writer()
        return next(iter(self._directory.paths()), None)

    def save(self, step: DistributedStep) -> None:
        """Save a step as it is now. The values are copied, and written while training goes on.

        If they cannot be written, one warning says so before the next step; `wait` raises an error.

        Raises:
            BadArgument: nothing was trained yet.
        """
        step.checkpoint = self
        if step.steps and step.steps == self._resumed_step:
            return  # its file is there
        content = training_state.capture(step, self._fit_progress)
        self._wait_for_writer()
        self.surface()
        self._failure, self._saved_step = "", step.steps
        if content is not None:
            self._directory.warn_of_later(step.steps)
            self._writing = self._writer.submit(self._directory.write, step.steps, content)

    def resume(self, step: DistributedStep) -> int:
        """Resume the training from the newest file that is whole.

        Returns:
            Number of steps that had been taken; 0 if there is no file, and then nothing was changed.

        Raises:
            NoValidCheckpoint: there are files, and all of them are damaged.
            HostileCheckpoint: one was made to do harm.
            CheckpointMismatch: it is that of another model or optimizer.
        """
        self._wait_for_writer()
        step.checkpoint = self
        content = self._run_on_root(self._directory.read_newest)
        meta = json.loads(self._comm.from_root(json.dumps(content.meta if content else {})))
        if not meta:
            return 0
        arrays = content.arrays if content else {}
        training_state.restore(step, CheckpointContent(arrays, meta), self._fit_progress)
        self._saved_step = self._resumed_step = step.steps
        return step.steps

    def wait(self) -> None:
        """Wait until the last save is on the disk.

        Raises:
            CheckpointNotWritten: it could not be written.
        """
        self._wait_for_writer()
        self._run_on_root(self._raise_failure)

    def surface(self) -> None:
        """Warn once if the last save could not be written. The step calls it; nothing is exchanged with others."""
        if self._writing is not None and self._writing.done():
            self._wait_for_writer()
        if not self._has_warned:
            self._has_warned = True
            warn(f"{self._failure}; training goes on, and the last complete checkpoint is {self._last_complete()}")

    # ---- what fit calls

    def set_fit_progress(self, progress: FitProgress) -> None:
        """Save and resume a call of `fit`, from now until it ends."""
        self._fit_progress = progress

    def on_train_begin(self, logs: Any = None) -> None:  # noqa: ARG002
        """Resume, if this is the first call of `fit`.

        Raises:
            BadArgument: the model was not distributed.
        """
        if not self._has_resumed_fit:
            self.resume(self._in_fit.step)
            set_initial_epoch(self.model, self._in_fit.epoch)
        self._has_resumed_fit = True

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:  # noqa: ARG002
        """Note which epoch begins."""
        self._in_fit.begin_epoch(epoch)

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:  # noqa: ARG002
        """Save every `every` steps."""
        step = self._in_fit.step
        if self._every and step.steps // self._every > self._saved_step // self._every:
            self.save(step)

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:  # noqa: ARG002
        """Save after each epoch, if `every` is None."""
        self._in_fit.end_epoch()
        if self._every is None:
            self.save(self._in_fit.step)

    def on_train_end(self, logs: Any = None) -> None:  # noqa: ARG002
        """Save the end of training, if its last step is not saved yet."""
        if self._every and self._in_fit.step.steps > self._saved_step:
            self.save(self._in_fit.step)
        self._wait_for_writer()
        self.surface()
        self._fit_progress = None
        set_initial_epoch(self.model, 0)

    @property
    def _in_fit(self) -> FitProgress:
        """Progress of the call of `fit` that is running."""
        if self._fit_progress is None:
            raise BadArgument(
                "a Checkpoint among the callbacks of a model that is not distributed",
                "call distgrad.distribute(model, comm) before fit()",
            )
        return self._fit_progress

    # ---- the root's part

    def _wait_for_writer(self) -> None:
        """Wait until the file that is being written is complete, or could not be written."""
        writing, self._writing = self._writing, None
        if writing is None:
            return
        try:
            with self._comm.liveness.at_work():  # a large file takes its time
                writing.result()
        except OSError as error:
            self._has_warned = False
            self._failure = f"the checkpoint of step {self._saved_step} could not be written ({error.strerror})"

    def _raise_failure(self) -> None:
        if self._failure:
            self._has_warned = True
            fix = f"make room for it; the last complete checkpoint is {self._last_complete()}"
            raise CheckpointNotWritten(self._failure, fix, step=self._saved_step)

    def _last_complete(self) -> str:
        return next((path.name for path in self._directory.undamaged()), "none")

    def _run_on_root(self, function: Callable[[], Result]) -> Result | None:
        """Call a function on the root alone, and raise its error on every worker.

        Returns:
            Its result on the root, None on the other workers.
        """
        result: Result | None = None
        error: list[Any] | None = None
        if self._comm.is_root:
            try:
                result = function()
            except DistgradError as raised:
                error = [type(raised).__name__, raised.cause, raised.fix, raised.step]
        error = json.loads(self._comm.from_root(json.dumps(error)))
        if error is not None:
            kind, cause, fix, step = error
            raise getattr(errors, kind)(cause, fix, step=step, everywhere=True)
        return result
