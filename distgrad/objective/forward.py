"""The forward pass, with what it would assign as values instead.

Layers assign during a pass: normalization its moving statistics, dropout the state of its random numbers. Taken as
values, moving statistics can be averaged over all micro-batches of all workers and assigned once a step (states.py), so
that a step moves them as far as it does in one process, however its batch is cut.

Random numbers: a worker draws from the root's seed plus its rank, so that no two workers drop the same units, a job
started again draws the same, and the root draws what one process would.
"""

from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from distgrad.data.batch import synthetic_batch
from distgrad.keras_internals import is_random_state

ROWS = 32  # of a made-up batch, many enough that what is random in it hardly shows


class Forward:
    """A model's forward pass in training or inference mode."""

    def __init__(self, model: keras.Model, training: bool) -> None:
        self._model, self._training = model, training

    def run(self, x: Any, worker: tf.Tensor, zeroed: Sequence[keras.Variable] = ()) -> tuple[Any, keras.StatelessScope]:
        """Run the model.

        Args:
            x: (b, ...) its input, or a nest of them.
            worker: () int32, this worker's number.
            zeroed: variables that read as zero during the pass.

        Returns:
            (the output, the scope that holds what would have been assigned and the losses that layers added).
        """
        offsets = [(v, tf.cast(tf.stack([worker, tf.zeros_like(worker)]), v.dtype)) for v in _seeds(self._model)]
        known = [(v, v.value + offset) for v, offset in offsets] + [(v, tf.zeros(v.shape, v.dtype)) for v in zeroed]
        with keras.StatelessScope(known, collect_losses=True) as scope:
            y_pred = self._model(x, training=self._training)
        return y_pred, scope

    def keep_states(self, scope: keras.StatelessScope, worker: tf.Tensor) -> None:
        """Assign what is this worker's own: the states of random numbers, without the rank, and integer counters."""
        for variable in self._model.non_trainable_variables:
            value = scope.get_current_value(variable)
            if value is None or is_float(variable):
                continue
            if is_random_state(variable):
                value -= tf.cast(tf.stack([worker, tf.zeros_like(worker)]), value.dtype)
            variable.assign(value)

    def assigned_floats(self, scope: keras.StatelessScope) -> list[keras.Variable]:
        """Return the float variables, not trainable, that a pass has assigned."""
        floats = [variable for variable in self._model.non_trainable_variables if is_float(variable)]
        return [variable for variable in floats if scope.get_current_value(variable) is not None]

    def added_sums(self, x: Any) -> list[bool]:
        """Return, for each loss that layers add, True if it is a sum over the rows rather than a mean.

        Its value does not tell. But where the same rows are shown twice over, a sum is twice as large.

        Args:
            x: a nest of `tf.TypeSpec`.
        """
        once = synthetic_batch(x, ROWS, lambda shape: np.random.default_rng(1).uniform(-1, 1, shape))
        twice = tf.nest.map_structure(lambda rows: tf.concat([rows, rows], 0), once)
        values = [
            np.array([float(tf.reduce_sum(loss)) for loss in self.run(rows, tf.constant(0))[1].losses])
            for rows in (once, twice)
        ]
        return [bool(abs(second) > np.sqrt(2) * abs(first)) for first, second in zip(*values, strict=True)]


def is_float(variable: keras.Variable) -> bool:
    """Return True for a variable of a float dtype."""
    return tf.as_dtype(variable.dtype).is_floating


def _seeds(model: keras.Model) -> list[keras.Variable]:
    return [variable for variable in model.non_trainable_variables if is_random_state(variable)]
