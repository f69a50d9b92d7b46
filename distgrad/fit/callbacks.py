"""Which callbacks run where, and the one that starts all workers from the same place.

A callback that decides (EarlyStopping, ReduceLROnPlateau, a LambdaCallback) runs on every worker: it sees the same logs
and so decides the same. One that writes runs on the root alone.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import keras
from keras.src.callbacks.orbax_checkpoint import OrbaxCheckpoint

from distgrad.collectives.communicator import Communicator
from distgrad.errors import BadArgument

WRITERS = (
    keras.callbacks.BackupAndRestore,
    keras.callbacks.CSVLogger,
    keras.callbacks.ModelCheckpoint,
    keras.callbacks.ProgbarLogger,
    keras.callbacks.RemoteMonitor,
    keras.callbacks.TensorBoard,
    OrbaxCheckpoint,
)


class Kept(NamedTuple):
    """The callbacks of one worker, and their names in a form to compare."""

    callbacks: list[Any]
    names: list[str]


def on_this_worker(callbacks: Any, is_root: bool) -> Kept:
    """The callbacks that run on the root or on another worker.

    Args:
        callbacks: None, one, a list, or Keras's own list of them.
    """
    given: Sequence[Any] = getattr(callbacks, "callbacks", callbacks) or []
    listed = keras.tree.flatten(given)
    kept = [callback for callback in listed if is_root or not isinstance(callback, WRITERS)]
    return Kept(kept, [f"callback={type(callback).__name__}" for callback in kept])


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
        if not isinstance(optimizer._learning_rate, keras.Variable):
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


class Together(keras.callbacks.Callback):
    """Once the others have begun: the root's epoch and weights, which it may just have restored, for everyone."""

    def __init__(self, comm: Communicator, start_alike: Callable[[], None]) -> None:
        super().__init__()
        self._comm, self._start_alike = comm, start_alike

    def on_train_begin(self, logs: Any = None) -> None:  # noqa: ARG002
        """Give every worker the root's first epoch now, and its weights before the next step."""
        epoch = int(self._comm.from_root(str(self.model._initial_epoch or 0)))
        self.model._initial_epoch = epoch or None
        self._start_alike()
