"""Callbacks under `fit` and `evaluate`: which of the user's run where, and those that distgrad adds.

A callback that decides (EarlyStopping, ReduceLROnPlateau, a LambdaCallback) runs on every worker: it sees the same logs
and so decides the same. One that writes runs on the root alone.
"""

import json
from collections.abc import Callable
from typing import Any

import keras

from distgrad.checkpoint.checkpoint import Checkpoint
from distgrad.collectives.communicator import Communicator
from distgrad.errors import BadArgument
from distgrad.fit.data import FitData
from distgrad.keras_internals import (
    ends_before_first_epoch,
    initial_epoch,
    is_keras_variable,
    saves_after,
    set_initial_epoch,
)
from distgrad.step import DistributedStep
from distgrad.step.update import inner_optimizer

WRITERS = (
    keras.callbacks.BackupAndRestore,
    keras.callbacks.CSVLogger,
    keras.callbacks.ModelCheckpoint,
    *filter(None, [getattr(keras.callbacks, "OrbaxCheckpoint", None)]),  # older releases of Keras have none
    keras.callbacks.ProgbarLogger,
    keras.callbacks.RemoteMonitor,
    keras.callbacks.TensorBoard,
)

MANY = 1 << 60  # batches
# Those that save no optimizer.
NOT_SAVING = (
    keras.callbacks.CSVLogger,
    keras.callbacks.EarlyStopping,
    keras.callbacks.LearningRateScheduler,
    keras.callbacks.ProgbarLogger,
    keras.callbacks.ReduceLROnPlateau,
    keras.callbacks.RemoteMonitor,
    keras.callbacks.TensorBoard,
    keras.callbacks.TerminateOnNaN,
    Checkpoint,  # which gathers by itself
)


def running_callbacks(callbacks: Any, is_root: bool) -> list[keras.callbacks.Callback]:
    """List the callbacks that run on the root, or on another worker.

    Args:
        callbacks: what a user may give: None, one, a list, or Keras's own list of them.
        is_root: True for the root.
    """
    given = keras.tree.flatten(getattr(callbacks, "callbacks", callbacks) or [])
    return [callback for callback in given if is_root or not isinstance(callback, WRITERS)]


class EpochBegin(keras.callbacks.Callback):
    """Tells data that Keras is about to read them, once all other callbacks have prepared the epoch.

    Keras itself would tell a PyDataset. What it is given here is a dataset made of it, which is told nothing.
    """

    def __init__(self, training: FitData | None, evaluated: FitData | None) -> None:
        super().__init__()
        self._training, self._evaluated = training, evaluated

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:  # noqa: ARG002
        """Begin an epoch of the training data."""
        if self._training is not None:
            self._training.adapter.on_epoch_begin()

    def on_test_begin(self, logs: Any = None) -> None:  # noqa: ARG002
        """Begin a pass over the data that are evaluated."""
        if self._evaluated is not None:
            self._evaluated.adapter.on_epoch_begin()


class EpochEnd(keras.callbacks.Callback):
    """Tells data that Keras has read them, before any other callback looks at them; see `EpochBegin`.

    It does not where Keras is stopped within an epoch, and from Keras 3.7 on does so once before they are read for
    the first time, too: so does Keras itself.
    """

    def __init__(self, training: FitData | None, evaluated: FitData | None) -> None:
        super().__init__()
        self._training, self._evaluated = training, evaluated
        self._in_epoch = False

    def on_train_begin(self, logs: Any = None) -> None:  # noqa: ARG002
        """End what was before."""
        if self._training is not None and ends_before_first_epoch():
            self._training.adapter.on_epoch_end()

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:  # noqa: ARG002
        """Notice that there is an epoch to end."""
        self._in_epoch = True

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:  # noqa: ARG002
        """End an epoch of the training data, unless a validation did so."""
        self._end_training()

    def on_test_begin(self, logs: Any = None) -> None:  # noqa: ARG002
        """End the epoch of the training data that this validation belongs to, and what was before it."""
        self._end_training()
        if self._evaluated is not None and ends_before_first_epoch():
            self._evaluated.adapter.on_epoch_end()

    def on_test_end(self, logs: Any = None) -> None:  # noqa: ARG002
        """End a pass over the data that are evaluated."""
        if self._evaluated is not None and not self.model.stop_evaluating:
            self._evaluated.adapter.on_epoch_end()

    def _end_training(self) -> None:
        if self._training is not None and self._in_epoch and not self.model.stop_training:
            self._training.adapter.on_epoch_end()
        self._in_epoch = False


class StartAlike(keras.callbacks.Callback):
    """Gives every worker the root's first epoch and its weights, which another callback may just have restored there.

    Args:
        comm: the workers.
        start_alike: called once all callbacks have begun.
    """

    def __init__(self, comm: Communicator, start_alike: Callable[[], None]) -> None:
        super().__init__()
        self._comm, self._start_alike = comm, start_alike

    def on_train_begin(self, logs: Any = None) -> None:  # noqa: ARG002
        """Set the first epoch now, and the weights before the next step."""
        set_initial_epoch(self.model, int(self._comm.from_root(str(initial_epoch(self.model)))))
        self._start_alike()


class GatherOptimizer(keras.callbacks.Callback):
    """Gives the root's optimizer its whole state where another callback may save it, and at the end.

    Keras saves from the root alone, when no other worker can be asked. So it comes before all other callbacks: after
    the batches after which Keras's own callbacks save, after each epoch if there are callbacks that may save then, and
    at the end of training. An optimizer with moving averages of the weights has them on every worker after each epoch
    and before each validation: there they are assigned.

    Args:
        step: takes the steps of this fit.
        callbacks: the user's that run on the root; those of other workers are not looked at.
    """

    def __init__(self, step: DistributedStep, callbacks: list[keras.callbacks.Callback]) -> None:
        super().__init__()
        self._step, self._callbacks = step, callbacks
        self._averages = bool(inner_optimizer(step.optimizer).use_ema)

    def on_train_begin(self, logs: Any = None) -> None:  # noqa: ARG002
        """Learn from the root's callbacks when they may save."""
        saving = [callback for callback in self._callbacks if type(callback) not in (*NOT_SAVING, WarmUp)]
        when = json.dumps([bool(saving), any(saves_after(callback, MANY) for callback in saving)])
        self._every_epoch, self._within_epochs = json.loads(self._step.comm.from_root(when))

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:  # noqa: ARG002
        """Gather if a callback of the root's saves now."""
        if self._within_epochs and self._step.is_sharded:
            saves = any(saves_after(callback, batch) for callback in self._callbacks)
            if json.loads(self._step.comm.from_root(json.dumps(saves))):
                self._step.gather_optimizer()

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:  # noqa: ARG002
        """Gather if a callback of the root's may save now, or the averages are about to be assigned."""
        if self._every_epoch or self._averages:
            self._step.gather_optimizer(everywhere=self._averages)

    def on_test_begin(self, logs: Any = None) -> None:  # noqa: ARG002
        """Gather if the averages may be assigned now."""
        if self._averages:
            self._step.gather_optimizer(everywhere=True)

    def on_train_end(self, logs: Any = None) -> None:  # noqa: ARG002
        """Gather the end."""
        self._step.gather_optimizer()


class WarmUp(keras.callbacks.Callback):
    """Learning rate for a larger batch: from `base` up to `scale` times it, in equal steps, then left alone.

        rate(step) = base · (1 + (scale - 1) · step / steps)      while step ≤ steps

    A callback and not a schedule, so that a saved model needs no distgrad to be loaded.

    Args:
        base: the learning rate that is right for one worker's batch.
        scale: by how much the global batch is larger, `comm.size` if it grows with the workers.
        steps: how many steps the way takes.
    """

    def __init__(self, base: float, scale: float, steps: int) -> None:
        super().__init__()
        self._base, self._scale, self._steps = base, scale, steps

    def on_train_begin(self, logs: Any = None) -> None:  # noqa: ARG002
        """Refuse an optimizer whose rate cannot be set.

        Raises:
            BadArgument: it follows a schedule.
        """
        optimizer = self.model.optimizer
        optimizer = getattr(optimizer, "inner_optimizer", optimizer)
        if not is_keras_variable(optimizer.learning_rate):
            raise BadArgument(
                "WarmUp cannot set the rate of an optimizer that follows a schedule",
                "give the optimizer a number, or put the warm-up into the schedule",
                everywhere=True,
            )

    def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:  # noqa: ARG002
        """Set the rate of the step that is about to be taken."""
        step = int(self.model.optimizer.iterations.numpy())
        if step <= self._steps:
            self.model.optimizer.learning_rate = self._base * (1 + (self._scale - 1) * step / self._steps)
