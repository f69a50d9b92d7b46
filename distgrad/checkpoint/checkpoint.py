"""Checkpoints: where a training goes on bit for bit, whatever has ended it.

    archive.py     one file, there whole or not at all, believed only if its checksum holds
    shelf.py       the directory of such files
    training_state.py    what one holds of a step
    position.py    the place in the data

The root reads and writes. What it finds every worker hears, so that all go on from the same place, or fail alike.
"""

import atexit
import json
import os
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import keras

from distgrad import errors
from distgrad.checkpoint import training_state
from distgrad.checkpoint.directory import Shelf
from distgrad.checkpoint.file import Archive
from distgrad.checkpoint.fit_progress import Fitting
from distgrad.collectives.communicator import Communicator
from distgrad.errors import BadArgument, CheckpointNotWritten, DistgradError, warn
from distgrad.keras_internals import set_initial_epoch
from distgrad.step.distributed_step import DistributedStep


class Checkpoint(keras.callbacks.Callback):
    """Saves a training into a directory, and takes it up again from there: a loop's, or as a callback `fit`'s.

    Every worker makes one and calls its methods alike; the root reads and writes. A file `step-NNNNNNNNNN.npz` is there
    whole or not at all, and is used only if its SHA-256 holds. What is taken up is bit for bit what was saved: weights,
    optimizer, loss scale, random numbers, the step's number and the place in the data.

    As a callback it resumes when `fit` begins, and saves every `every` steps and at the end, or after each epoch.

    Args:
        directory: must exist and be writable on the root's host. One for each training.
        comm: what `distgrad.connect()` gave.
        keep: how many files stay; older ones are removed once a new one is complete.
        every: under `fit`, the number of steps between saves; None saves after each epoch.

    Raises:
        BadArgument: a number is less than 1.
        NoCheckpointDirectory: on every worker.
    """

    def __init__(
        self, directory: str | os.PathLike[str], comm: Communicator, keep: int = 3, *, every: int | None = None
    ) -> None:
        super().__init__()
        for name, value in (("keep", keep), ("every", every)):
            if value is not None and value < 1:
                raise BadArgument(f"{name}={value!r}", "give 1 or more", everywhere=True)
        self._comm, self._every = comm, every
        self._shelf = Shelf(Path(directory), keep)
        self._writer = ThreadPoolExecutor(1, "distgrad-checkpoint")
        self._writing: Future[None] | None = None
        self._failure, self._said = "", True
        self._fitting: Fitting | None = None
        self._fits = 0
        self._saved = self._resumed = 0  # at which step
        self._from_root(self._shelf.require)
        atexit.register(self.surface)

    # ---- what a user calls

    @property
    def latest(self) -> Path | None:
        """The newest file as this host sees it; its checksum is not looked at."""
        self._settle()
        return next(iter(self._shelf.paths()), None)

    def save(self, step: DistributedStep) -> None:
        """Save a step as it is now. The values are copied; they are written while training goes on.

        What goes wrong with writing is said once, as a warning before the next step; `wait` raises it.

        Raises:
            BadArgument: nothing was trained yet.
        """
        step.checkpoint = self
        if step.steps and step.steps == self._resumed:
            return  # it is there
        taken = training_state.take(step, self._fitting)
        self._settle()
        self.surface()
        self._failure, self._saved = "", step.steps
        if self._comm.is_root:
            self._shelf.warn_of_later(step.steps)
            self._writing = self._writer.submit(self._shelf.put, step.steps, taken)

    def resume(self, step: DistributedStep) -> int:
        """Take up the training from the newest file that is whole.

        Returns:
            How many steps had been taken; 0 if there is no file, and then nothing was changed.

        Raises:
            NoValidCheckpoint: there are files, and all of them are damaged.
            HostileCheckpoint: one was made to do harm.
            CheckpointMismatch: it is that of another model or optimizer.
        """
        self._settle()
        step.checkpoint = self
        found = Archive({}, {})

        def find() -> Mapping[str, Any]:
            nonlocal found
            found = self._shelf.newest() or found
            return found.meta

        meta = self._from_root(find)
        if not meta:
            return 0
        training_state.Return(step, meta, found.arrays, self._fitting)
        self._saved = self._resumed = step.steps
        return step.steps

    def wait(self) -> None:
        """Wait until what was saved is on the disk.

        Raises:
            CheckpointNotWritten: it is not.
        """
        self._settle()
        self._from_root(self._raise_failure)

    def surface(self) -> None:
        """Say once that what was saved could not be written. For one worker alone; the step calls it."""
        if self._writing is not None and self._writing.done():
            self._settle()
        if not self._said:
            self._said = True
            warn(f"{self._failure}; training goes on, and the last complete checkpoint is {self._last()}")

    # ---- what fit calls

    def follow(self, fitting: Fitting) -> None:
        """Belong to a call of `fit` from now until it ends."""
        self._fitting = fitting

    def on_train_begin(self, logs: Any = None) -> None:  # noqa: ARG002
        """Resume, the first time.

        Raises:
            BadArgument: the model was not distributed.
        """
        if not self._fits:
            self.resume(self._in_fit.step)
            set_initial_epoch(self.model, self._in_fit.epoch)
        self._fits += 1

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:  # noqa: ARG002
        """Know where fit is."""
        self._in_fit.begin_epoch(epoch)

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:  # noqa: ARG002
        """Save every so many steps."""
        step = self._in_fit.step
        if self._every and step.steps // self._every > self._saved // self._every:
            self.save(step)

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:  # noqa: ARG002
        """Save after each epoch."""
        self._in_fit.end_epoch()
        if self._every is None:
            self.save(self._in_fit.step)

    def on_train_end(self, logs: Any = None) -> None:  # noqa: ARG002
        """Save the end of training."""
        if self._every and self._in_fit.step.steps > self._saved:
            self.save(self._in_fit.step)
        self._settle()
        self.surface()
        self._fitting = None
        set_initial_epoch(self.model, 0)

    @property
    def _in_fit(self) -> Fitting:
        if self._fitting is None:
            raise BadArgument(
                "a Checkpoint among the callbacks of a model that is not distributed",
                "call distgrad.distribute(model, comm) before fit()",
            )
        return self._fitting

    # ---- the root's part

    def _settle(self) -> None:
        """Wait for what is being written."""
        writing, self._writing = self._writing, None
        if writing is None:
            return
        try:
            writing.result()
        except OSError as error:
            self._said = False
            self._failure = f"the checkpoint of step {self._saved} could not be written ({error.strerror})"

    def _raise_failure(self) -> None:
        if self._failure:
            self._said = True
            raise CheckpointNotWritten(
                self._failure, f"make room for it; the last complete checkpoint is {self._last()}", step=self._saved
            )

    def _last(self) -> str:
        return next((path.name for path in self._shelf.good()), "none")

    def _from_root(self, ask: Callable[[], Any]) -> Any:
        """Ask the root alone, and give every worker its answer, in a form that JSON knows, or raise its error."""
        answer: dict[str, Any] = {}
        if self._comm.is_root:
            try:
                answer["found"] = ask()
            except DistgradError as error:
                answer["error"] = [type(error).__name__, error.cause, error.fix, error.step]
        answer = json.loads(self._comm.from_root(json.dumps(answer)))
        if "error" in answer:
            kind, cause, fix, step = answer["error"]
            raise getattr(errors, kind)(cause, fix, step=step, everywhere=True)
        return answer["found"]
