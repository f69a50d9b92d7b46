"""The state of a training: captured from a step, and restored on all workers.

    variables   weights, moving statistics, optimizer state, loss scale: the same on every worker, so the root's
    metrics     under `fit`, in the middle of an epoch: what they have summed up so far
    random      each worker's own: the states of its layers' random numbers, its counters, and the states of Python's,
                NumPy's and Keras's generators
    position    the place in the data, beside the step's number

A worker that did not exist when the state was captured has the root's random numbers for its layers.
"""

import json
import random
import re
from collections.abc import Mapping, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from distgrad.checkpoint.file import CheckpointContent
from distgrad.checkpoint.fit_progress import FitProgress
from distgrad.checkpoint.metadata import TrainingState, array_name, as_json
from distgrad.collectives import agreement
from distgrad.data.cursor import DataCursor
from distgrad.errors import BadArgument, CheckpointMismatch
from distgrad.keras_internals import global_seed_generator, set_global_seed_generator
from distgrad.objective.forward import is_float
from distgrad.step.distributed_step import DistributedStep


def capture(step: DistributedStep, fit: FitProgress | None) -> CheckpointContent | None:
    """Copy everything that a training needs to go on from here. Every worker calls it.

    Args:
        fit: the call of `fit` that takes the steps, if one does.

    Returns:
        The content of a checkpoint on the root, None on the other workers.

    Raises:
        BadArgument: the model is not built; on every worker.
    """
    progress = None if fit is None else fit.as_dict()
    step.gather_optimizer()
    variables, metrics = step.variables(), _metrics(step) if progress and progress["batch"] else []
    if not variables:
        raise BadArgument("there is nothing to save", "call save() after a step", everywhere=True)
    seeds = step.cursor.seeds if fit is None else fit.data.seeds
    random_states = step.comm.exchange(json.dumps(_random_state(step.model) | {"data": seeds}))
    if not step.comm.is_root:
        return None
    state = TrainingState(
        step=step.steps,
        workers=step.comm.size,
        versions={"tensorflow": tf.__version__, "keras": keras.__version__},
        position=step.cursor.as_dict(),
        fit=progress,
        variables=[agreement.describe(variable) for variable in variables],
        metrics=[agreement.describe(variable) for variable in metrics],
        random=[json.loads(random_states.get(rank, "null")) for rank in range(step.comm.size)],
    )
    return CheckpointContent(_arrays("variables", variables) | _arrays("metrics", metrics), state._asdict())


def restore(step: DistributedStep, content: CheckpointContent, fit: FitProgress | None) -> None:
    """Take a step back to a captured state. Every worker calls it.

    Restored now: the random numbers of Python, NumPy and Keras, the step's number, the data cursor, the progress of
    `fit`, and, if the model is built, the variables: what the user changes before the next step, a learning rate
    perhaps, stays changed. Restored before the next step: the variables of a model that is not built yet, the metrics
    and, once all else is the same on every worker, the random numbers of its own layers.

    Args:
        content: that of a checkpoint. The other workers need no arrays: they receive the root's.
        fit: the call of `fit` that is to go on, if one is.

    Raises:
        CheckpointMismatch: the state is that of other variables, or not that of a `fit` with such data; on every
            worker, and no variable was assigned.
    """
    state = TrainingState(**content.meta)
    own = state.random[step.comm.rank] if step.comm.rank < len(state.random) else None
    _set_global_random_state(own)
    seeds = None if own is None else own["data"]
    cursor = DataCursor(**state.position, seeds=None if fit else seeds, warns=step.comm.is_root)
    restorer = _Restorer(step, state, content.arrays, own, with_metrics=fit is not None and bool(state.metrics))
    step.go_to(state.step, cursor, restorer.before_next_step)
    if fit is not None:
        fit.go_to(state.fit, seeds)
    restorer.now()


class _Restorer:
    """Assigns the saved values, as soon as there are variables for them, and once.

    Args:
        random_state: this worker's own; None if there was no such worker.
        with_metrics: True if metrics are to be restored, too.
    """

    def __init__(
        self,
        step: DistributedStep,
        state: TrainingState,
        arrays: Mapping[str, np.ndarray],
        random_state: Mapping[str, Any] | None,
        *,
        with_metrics: bool,
    ) -> None:
        self._step, self._state, self._arrays = step, state, arrays
        self._random_state, self._with_metrics = random_state, with_metrics
        self._has_assigned = False

    def now(self) -> None:
        """Assign the variables if the model is built."""
        variables = self._step.variables()
        if variables:
            self._assign_variables(variables)
            _set_layer_random_state(self._step.model, self._random_state)

    def before_next_step(self, variables: Sequence[keras.Variable]) -> None:
        """Make all workers start the next step from the same values; see `DistributedStep.go_to`."""
        if self._has_assigned:
            self._step.comm.broadcast(variables)
        else:
            self._assign_variables(variables)
        _set_layer_random_state(self._step.model, self._random_state)
        if self._with_metrics:
            metrics = _metrics(self._step)
            _require_same(self._state.metrics, metrics, self._state.step)
            self._assign("metrics", self._state.metrics, metrics)

    def _assign_variables(self, variables: Sequence[keras.Variable]) -> None:
        """Assign weights and optimizer state, once all that was saved is known to be that of this model."""
        _require_same(self._state.variables, variables, self._state.step)
        self._require_layer_states()
        self._assign("variables", self._state.variables, variables)
        self._has_assigned = True

    def _require_layer_states(self) -> None:
        """Compare all workers' saved states of layers with this model's, so that all workers raise alike."""
        states = [variable.numpy() for variable in _layer_states(self._step.model)]
        for rank, saved in enumerate(self._state.random):
            if saved is not None and not _have_form_of(states, saved["own"]):
                raise CheckpointMismatch(
                    f"the random numbers and counters of worker {rank}'s layers are not those of this model's layers",
                    "resume with the model that was saved, or give another directory",
                    step=self._state.step,
                    everywhere=True,
                )

    def _assign(self, kind: str, saved: Sequence[str], variables: Sequence[keras.Variable]) -> None:
        """Assign the root's arrays of a kind, and give every worker its values."""
        if self._step.comm.is_root:
            for index, (variable, description) in enumerate(zip(variables, saved, strict=True)):
                value, dtype = self._arrays[array_name(kind, index, description)], variable.numpy().dtype
                variable.assign(value if value.dtype == dtype else value.view(dtype))  # .npy has no bfloat16
        self._step.comm.broadcast(variables)


def _metrics(step: DistributedStep) -> list[keras.Variable]:
    return list(step.model.metrics_variables)


def _arrays(kind: str, variables: Sequence[keras.Variable]) -> dict[str, np.ndarray]:
    """Copy the values, by the names of their arrays."""
    described = [(variable, agreement.describe(variable)) for variable in variables]
    return {array_name(kind, i, text): np.array(variable.numpy()) for i, (variable, text) in enumerate(described)}


def _require_same(saved: Sequence[str], variables: Sequence[keras.Variable], step: int) -> None:
    """Compare the saved descriptions with the variables', but for numbers in their names.

    Keras numbers the layers of a class through the whole process, so these numbers depend on what was built before.
    """
    found = [agreement.describe(variable) for variable in variables]
    for index in range(max(len(saved), len(found))):
        theirs, ours = (lines[index] if index < len(lines) else "missing" for lines in (saved, found))
        if re.sub(r"_\d+", "", theirs) != re.sub(r"_\d+", "", ours):
            raise CheckpointMismatch(
                f"variable {index} is {theirs!r} in the checkpoint but {ours!r} in the model or optimizer",
                "resume with the model and optimizer that were saved, or give another directory",
                step=step,
                everywhere=True,
            )


# ---- random numbers


def _random_state(model: keras.Model) -> dict[str, Any]:
    """Read all of this worker's random numbers: "own" are those of the model's layers."""
    generator = np.random.get_state(legacy=False)
    return {
        "own": [variable.numpy().tolist() for variable in _layer_states(model)],
        "python": random.getstate(),
        "numpy": as_json(generator),
        "keras": [state.numpy().tolist() for state in _global_seeds()],
    }


def _set_global_random_state(state: Mapping[str, Any] | None) -> None:
    if state is None:
        return
    saved, found = state["numpy"]["bit_generator"], np.random.get_state(legacy=False)["bit_generator"]
    if saved != found:
        raise CheckpointMismatch(
            f"NumPy's random numbers come from {found}, and from {saved} in the checkpoint",
            f"call numpy.random.set_bit_generator(numpy.random.{saved}()) before resume()",
            everywhere=True,
        )
    version, words, gauss = state["python"]
    random.setstate((version, tuple(words), gauss))
    np.random.set_state(state["numpy"])
    for value in state["keras"]:
        if not _global_seeds():
            set_global_seed_generator(keras.random.SeedGenerator(0))
        _global_seeds()[0].assign(value)


def _set_layer_random_state(model: keras.Model, state: Mapping[str, Any] | None) -> None:
    if state is not None:
        for variable, value in zip(_layer_states(model), state["own"], strict=True):
            variable.assign(np.asarray(value, variable.numpy().dtype))


def _have_form_of(states: Sequence[np.ndarray], saved: Sequence[Any]) -> bool:
    """True if saved values, one for each state, have its shape and fit its dtype."""
    if len(saved) != len(states):
        return False
    try:
        read = [np.asarray(value, state.dtype) for value, state in zip(saved, states, strict=True)]
    except (ValueError, OverflowError):  # lists of unequal lengths; integers out of range
        return False
    return all(
        array.shape == state.shape and array.tolist() == value
        for array, state, value in zip(read, states, saved, strict=True)
    )


def _layer_states(model: keras.Model) -> list[keras.Variable]:
    """Random states and integer counters of layers, which may differ between workers: see `Forward.keep_states`."""
    return [variable for variable in model.non_trainable_variables if not is_float(variable)]


def _global_seeds() -> list[keras.Variable]:
    """State of the generator behind `keras.random` without a seed; none if it was never used."""
    generator = global_seed_generator()
    return [] if generator is None else [generator.state]
