"""The state of a sharded optimizer: in slices while steps are taken, and as one process has it in between.

    start      before the first step: from the root's optimizer, if that has state
    gather     to the root's optimizer, where somebody may look at it: until the next step
    release    before that step: each worker takes its own slice of what it was given, and the rest is forgotten

What an optimizer has for each variable of the model is in lists, one for each kind (the momentums, say). A list travels
as the bytes of its slices.
"""

import json
from collections.abc import Sequence
from typing import Any, NamedTuple

import keras
import numpy as np
import tensorflow as tf

from distgrad.collectives.communicator import Communicator
from distgrad.gradients.flat_vector import Place
from distgrad.keras_internals import forget_variables, optimizer_scalars, optimizer_slots
from distgrad.step.slice_transfer import bring_together, send_out
from distgrad.step.slices import Run, Slices, overlaps


class Unit(NamedTuple):
    """A run of this worker's slice, and the variable that the optimizer has for it."""

    run: Run
    variable: keras.Variable


class ShardedState:
    """The state of an optimizer of slices.

    Args:
        comm: the workers.
        users: the user's optimizer, for the whole model. It is built only while it has the whole state.
        own: the optimizer of this worker's slice, which is built.
        variables: of the model.
        places: theirs in the flat vector.
        slices: of all workers.
        number: of this worker's slice, None if it has none.
        units: of this worker's slice.
    """

    def __init__(
        self,
        comm: Communicator,
        users: keras.optimizers.Optimizer,
        own: keras.optimizers.Optimizer,
        *,
        variables: Sequence[keras.Variable],
        places: Sequence[Place],
        slices: Slices,
        number: int | None,
        units: Sequence[Unit],
    ) -> None:
        self._comm, self._users, self._own, self._variables = comm, users, own, variables
        self._places, self._slices, self._number, self._units = places, slices, number, units
        self._is_gathered = False  # here, since the last step

    def start(self) -> None:
        """Begin with the root's state, if its optimizer has one, else as it is. Every worker calls it."""
        if json.loads(self._comm.from_root(json.dumps(bool(self._users.built)))):
            for name in self._names():
                self._assign_own(name, send_out(self._comm, self._all_bytes(name), self._number))
            own = optimizer_scalars(self._own)
            if self._comm.is_root:
                _assign_scalars(own, optimizer_scalars(self._users))
            self._comm.broadcast(list(own.values()))
        self._forget_whole()

    def gather(self, everywhere: bool) -> None:
        """Give the root's optimizer the whole state, or every worker's. Every worker calls it."""
        keeps = (everywhere or self._comm.is_root) and not self._users.built
        if not self._comm.process_sum(np.array([int(keeps)]))[0]:
            return
        if keeps:
            self.build_whole()
        for name in self._names():
            own = b"".join(slot.numpy().tobytes() for slot in self._own_slots(name))
            slices = bring_together(self._comm, own, self._number, len(self._slices.runs), keeps)
            if keeps:
                self._assign_whole(optimizer_slots(self._users)[name], slices)
        if keeps:
            _assign_scalars(optimizer_scalars(self._users), optimizer_scalars(self._own))
            self._is_gathered = True

    def release(self) -> None:
        """Take this worker's slice of what its optimizer was given, which others may have changed, and forget it."""
        if self._is_gathered and self._number is not None:
            for name in self._names():
                whole = optimizer_slots(self._users)[name]
                self._assign_own(name, self._bytes(whole, self._slices.runs[self._number]))
        self._forget_whole()

    def build_whole(self) -> None:
        """Build the user's optimizer, so that a state can be put into it."""
        if not self._users.built:
            self._users.build(self._variables)

    def _forget_whole(self) -> None:
        if self._users.built:
            forget_variables(self._users)
        self._is_gathered = False

    # ---- one kind of variables

    def _names(self) -> list[str]:
        return list(optimizer_slots(self._own))

    def _own_slots(self, name: str) -> list[keras.Variable]:
        slots = zip(self._units, optimizer_slots(self._own)[name], strict=True)
        return [slot for unit, slot in slots if slot is not None and unit.run.size]

    def _assign_own(self, name: str, data: bytes) -> None:
        offset = 0
        for slot in self._own_slots(name):
            offset += _assign(slot, data, offset)

    def _all_bytes(self, name: str) -> list[bytes]:
        """Return the bytes of each slice from the root's optimizer; none on the other workers."""
        if not self._comm.is_root:
            return []
        whole = optimizer_slots(self._users)[name]
        return [self._bytes(whole, runs) for runs in self._slices.runs]

    def _bytes(self, whole: Sequence[Any], runs: Sequence[Run]) -> bytes:
        """Return the bytes of runs.

        Args:
            whole: a variable for each one of the model, or None.
        """
        pieces: list[bytes] = []
        for run in runs:
            if run.kind.whole is not None:
                slot = whole[run.kind.whole]
                pieces.append(b"" if slot is None else slot.numpy().tobytes())
                continue
            values = np.zeros(run.size, _dtype_of(run))
            for number, of_variable, of_run in overlaps(self._places, run):
                values[of_run] = whole[number].numpy().ravel()[of_variable]
            pieces.append(values.tobytes())
        return b"".join(pieces)

    def _assign_whole(self, whole: Sequence[Any], slices: Sequence[bytes]) -> None:
        """Set all variables of one kind from the bytes of the slices."""
        values: dict[int, np.ndarray] = {}
        for runs, data in zip(self._slices.runs, slices, strict=True):
            offset = 0
            for run in runs:
                if run.kind.whole is not None:
                    slot = whole[run.kind.whole]
                    offset += 0 if slot is None else _assign(slot, data, offset)
                    continue
                found = np.frombuffer(data, _dtype_of(run), run.size, offset)
                offset += found.nbytes
                for number, of_variable, of_run in overlaps(self._places, run):
                    shape = whole[number].shape
                    values.setdefault(number, np.zeros(shape, found.dtype)).ravel()[of_variable] = found[of_run]
        for number, value in values.items():
            whole[number].assign(value)


def _dtype_of(run: Run) -> Any:
    return tf.as_dtype(run.kind.dtype).as_numpy_dtype


def _assign_scalars(scalars: dict[str, keras.Variable], values: dict[str, keras.Variable]) -> None:
    for name, variable in scalars.items():
        variable.assign(values[name])


def _assign(slot: keras.Variable, data: bytes, offset: int) -> int:
    """Set a variable from bytes, and return how many it takes."""
    dtype, size = tf.as_dtype(slot.dtype), int(np.prod(slot.shape))
    slot.assign(np.frombuffer(data, dtype.as_numpy_dtype, size, offset).reshape(slot.shape))
    return size * dtype.size
