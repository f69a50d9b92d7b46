"""What a checkpoint holds of a step, taken at one moment, and given back to all workers.

    variables   weights, moving statistics, optimizer state, loss scale: the same on every worker, so the root's
    metrics     under `fit`, in the middle of an epoch: what they have summed up so far
    random      each worker's own: the states of its layers' random numbers, its counters, and the state of Python's,
                NumPy's and Keras's generators
    position    the step's number, and how many batches of its data are done

A worker that did not exist when a snapshot was taken has the root's random numbers for its layers.
"""

import json
import random
import re
from collections.abc import Mapping, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from distgrad.checkpoint.file import Archive
from distgrad.checkpoint.fit_progress import Fitting
from distgrad.collectives import agreement
from distgrad.data.cursor import Position
from distgrad.errors import BadArgument, CheckpointMismatch
from distgrad.keras_internals import global_seed_generator, set_global_seed_generator
from distgrad.step.distributed_step import DistributedStep


def take(step: DistributedStep, fitting: Fitting | None) -> Archive:
    """Copy all that it takes to go on from here; every worker calls it, and the root's is the one to keep.

    Args:
        fitting: the call of `fit` that takes the steps, if one does.

    Raises:
        BadArgument: the model is not built; on every worker.
    """
    fit = None if fitting is None else fitting.as_dict()
    variables, metrics = step.variables(), _metrics(step) if fit and fit["batch"] else []
    if not variables:
        raise BadArgument("there is nothing to save", "call save() after a step", everywhere=True)
    seeds = step.position.seeds if fitting is None else fitting.share.seeds
    own = step.comm.exchange(json.dumps(_random_state(step.model) | {"data": seeds}))
    if not step.comm.is_root:
        return Archive({}, {})
    meta = {
        "step": step.steps,
        "workers": step.comm.size,
        "versions": {"tensorflow": tf.__version__, "keras": keras.__version__},
        "position": step.position.as_dict(),
        "fit": fit,
        "variables": [agreement.describe(variable) for variable in variables],
        "metrics": [agreement.describe(variable) for variable in metrics],
        "random": [json.loads(text or "null") for text in own],
    }
    return Archive(_arrays("variables", variables) | _arrays("metrics", metrics), meta)


class Return:
    """A step's way back to a snapshot.

    Values are given as soon as there are variables for them, and once: what the user changes between the resume and the
    next step, a learning rate perhaps, stays changed. What is a worker's own comes last, after all have become alike.

    Args:
        meta: the snapshot's, on every worker.
        arrays: the snapshot's, on the root.
        fitting: the call of `fit` that is to go on, if one is.

    Raises:
        CheckpointMismatch: it is one of other variables; on every worker, and nothing was assigned.
    """

    def __init__(
        self,
        step: DistributedStep,
        meta: Mapping[str, Any],
        arrays: Mapping[str, np.ndarray],
        fitting: Fitting | None,
    ) -> None:
        self._step, self._meta, self._arrays = step, meta, arrays
        self._given, self._with_metrics = False, fitting is not None and bool(meta["metrics"])
        ranks = meta["random"]
        self._own = ranks[step.comm.rank] if step.comm.rank < len(ranks) else None
        _set_global_random_state(self._own)
        seeds = None if self._own is None else self._own["data"]
        position = Position(**meta["position"], seeds=None if fitting else seeds, speaks=step.comm.is_root)
        step.go_to(meta["step"], position, self)
        if fitting is not None:
            fitting.go_to(meta["fit"], seeds)
        variables = step.variables()
        if variables:
            self._give(variables)
            _set_own_state(step.model, self._own)

    def __call__(self, variables: Sequence[keras.Variable]) -> None:
        """Make all workers alike, before the first step after the resume."""
        if self._given:
            self._step.comm.broadcast(variables)
        else:
            self._give(variables)
        _set_own_state(self._step.model, self._own)
        if self._with_metrics:
            self._assign("metrics", _metrics(self._step))

    def _give(self, variables: Sequence[keras.Variable]) -> None:
        self._assign("variables", variables)
        self._given = True

    def _assign(self, kind: str, variables: Sequence[keras.Variable]) -> None:
        _require_same(self._meta[kind], variables, self._meta["step"])
        values = [array for name, array in self._arrays.items() if name.startswith(f"{kind}/")]
        for variable, value in zip(variables, values, strict=False):  # only the root has any
            dtype = variable.numpy().dtype
            variable.assign(value if value.dtype == dtype else value.view(dtype))  # .npy has no bfloat16
        self._step.comm.broadcast(variables)


def _metrics(step: DistributedStep) -> list[keras.Variable]:
    return list(step.model.metrics_variables)


def _arrays(kind: str, variables: Sequence[keras.Variable]) -> dict[str, np.ndarray]:
    """Copies, by names that are no two variables' and keep their order."""
    return {f"{kind}/{i:05d}/{variable.path}": np.array(variable.numpy()) for i, variable in enumerate(variables)}


def _require_same(saved: Sequence[str], variables: Sequence[keras.Variable], step: int) -> None:
    """Keras numbers layers of one class through the process, so numbers in their names tell nothing."""
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
    generator = np.random.get_state(legacy=False)
    return {
        "own": [variable.numpy().tolist() for variable in _own(model)],
        "python": random.getstate(),
        "numpy": json.loads(json.dumps(generator, default=np.ndarray.tolist)),
        "keras": [state.numpy().tolist() for state in _global_seeds()],
    }


def _set_global_random_state(state: Mapping[str, Any] | None) -> None:
    if state is None:
        return
    version, words, gauss = state["python"]
    random.setstate((version, tuple(words), gauss))
    np.random.set_state(state["numpy"])
    for value in state["keras"]:
        if not _global_seeds():
            set_global_seed_generator(keras.random.SeedGenerator(0))
        _global_seeds()[0].assign(value)


def _set_own_state(model: keras.Model, state: Mapping[str, Any] | None) -> None:
    if state is not None:
        for variable, value in zip(_own(model), state["own"], strict=True):
            variable.assign(np.asarray(value, variable.numpy().dtype))


def _own(model: keras.Model) -> list[keras.Variable]:
    """What may differ between workers: see `Forward.keep_states`."""
    return [v for v in model.non_trainable_variables if not tf.as_dtype(v.dtype).is_floating]


def _global_seeds() -> list[keras.Variable]:
    """The state behind `keras.random` without a seed, once that was used."""
    generator = global_seed_generator()
    return [] if generator is None else [generator.state]
