"""The forward pass, with what it would assign as values instead.

Layers assign during a pass: normalisation its moving statistics, dropout the state of its random numbers. Taken as
values, moving statistics can be averaged over all micro-batches of all workers and assigned once a step, so that a
step moves them as far as it does in one process, however its batch is cut.

Random numbers: a worker draws from the root's seed plus its rank, so that no two workers drop the same units, a job
started again draws the same, and the root draws what one process would.
"""

from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from distgrad.data.batch import as_ragged, filled, row_count
from distgrad.keras_internals import is_random_state
from distgrad.objective.extra_sums import Outcome, Pass
from distgrad.objective.symbolic import output_spec

ROWS = 32  # of a made-up batch, many enough that what is random in it hardly shows


class Forward:
    """A model's forward pass in training or inference mode."""

    def __init__(self, model: keras.Model, training: bool) -> None:
        self._model, self._training = model, training

    def try_on(self, like: Sequence[Any], look: Callable[[Pass], None]) -> tuple[Any, list[keras.Variable]]:
        """What the model gives for such a batch, and which float variables such a pass would assign.

        Args:
            like: (x, [y, [sample_weight]]), nests of `KerasTensor`s.
            look: is shown the pass, as tensors of a graph that is thrown away.

        Returns:
            (a nest of `KerasTensor`s, variables that are not trainable). Nothing is computed or assigned.
        """
        found: list[keras.Variable] = []

        def trial(x: Any, y: Any = None, sample_weight: Any = None) -> Any:
            y_pred, scope = self.run(x, tf.constant(0))
            found[:] = [v for v in _floats(self._model) if scope.get_current_value(v) is not None]
            look(Pass(x, y, sample_weight, y_pred, row_count(x), scope))
            return y_pred

        return output_spec(trial, *like), found

    def added_sums(self, x: Any) -> list[bool]:
        """For each loss that layers add, whether it is a sum over the rows rather than a mean.

        Its value does not tell. But where the same rows are shown twice over, a sum is twice as large.

        Args:
            x: a nest of `KerasTensor`s.
        """
        once = filled(x, ROWS, lambda shape: np.random.default_rng(1).uniform(-1, 1, shape))
        twice = tf.nest.map_structure(lambda rows: tf.concat([rows, rows], 0), once)
        once, twice = (as_ragged(rows, x) for rows in (once, twice))
        values = [
            np.array([float(tf.reduce_sum(loss)) for loss in self.run(rows, tf.constant(0))[1].losses])
            for rows in (once, twice)
        ]
        return [bool(abs(second) > np.sqrt(2) * abs(first)) for first, second in zip(*values, strict=True)]

    def run(self, x: Any, worker: tf.Tensor, zeroed: Sequence[keras.Variable] = ()) -> tuple[Any, keras.StatelessScope]:
        """Run the model.

        Args:
            x: (b, ...) its input, or a nest of them.
            worker: () int32 this worker's number.
            zeroed: variables that the pass shall find to be zero.

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
            if value is None or _is_float(variable):
                continue
            if is_random_state(variable):
                value -= tf.cast(tf.stack([worker, tf.zeros_like(worker)]), value.dtype)
            variable.assign(value)


class MovingStatistics:
    """The non-trainable float variables that a pass assigns: a rider.

    Each pass gives its change, and the step assigns the mean of all changes, weighted by rows. The mean that batch
    normalisation keeps is so that of the global batch; the variance is the mean of those within the micro-batches.
    """

    zeroed: tuple[keras.Variable, ...] = ()

    def __init__(self, variables: Sequence[keras.Variable]) -> None:
        self._variables = variables

    def prepare(self, like: Pass) -> list[tf.TensorShape]:  # noqa: ARG002
        """Each change has the shape of its variable."""
        return [tf.TensorShape(variable.shape) for variable in self._variables]

    def parts(self, seen: Pass) -> list[tf.Tensor]:
        """Rows times change."""
        pairs = [(seen.scope.get_current_value(v), tf.convert_to_tensor(v.value)) for v in self._variables]
        return [tf.cast(seen.rows, old.dtype) * (new - old) for new, old in pairs]

    def settle(self, sums: Sequence[tf.Tensor], outcome: Outcome) -> dict[str, tf.Tensor]:
        """Assign the mean, unless the step is skipped."""
        for variable, total in zip(self._variables, sums, strict=True):
            change = total / tf.cast(tf.maximum(outcome.examples, 1), total.dtype)
            change = tf.where(outcome.applied, change, tf.zeros_like(change))
            variable.assign(variable.value + tf.cast(change, variable.dtype))
        return {}


def _floats(model: keras.Model) -> list[keras.Variable]:
    return [variable for variable in model.non_trainable_variables if _is_float(variable)]


def _is_float(variable: keras.Variable) -> bool:
    return tf.as_dtype(variable.dtype).is_floating


def _seeds(model: keras.Model) -> list[keras.Variable]:
    return [variable for variable in model.non_trainable_variables if is_random_state(variable)]
