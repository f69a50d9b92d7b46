"""Which callbacks run where, and the one that starts all workers from the same place.

A callback that decides (EarlyStopping, ReduceLROnPlateau, a LambdaCallback) runs on every worker: it sees the same logs
and so decides the same. One that writes runs on the root alone.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import keras
from keras.src.callbacks.orbax_checkpoint import OrbaxCheckpoint

from distgrad.communicators import Communicator

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


class Together(keras.callbacks.Callback):
    """Once the others have begun: the root's epoch and weights, which it may just have restored, for everyone."""

    def __init__(self, comm: Communicator, start_alike: Callable[[], None]) -> None:
        super().__init__()
        self._comm, self._start_alike = comm, start_alike

    def on_train_begin(self, logs: Any = None) -> None:  # noqa: ARG002
        """Give every worker the root's first epoch now, and its weights before the next step."""
        epoch = int(self._comm.exchange(str(self.model._initial_epoch or 0))[0])
        self.model._initial_epoch = epoch or None
        self._start_alike()
