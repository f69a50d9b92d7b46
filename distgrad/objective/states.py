"""States: variables that a forward pass assigns, such as the moving statistics of normalization.

Every micro-batch begins with the states as they were before the step, and gives their change. What becomes of the
changes depends on what they are of a batch (kinds.py):

    MEAN, ONCE   the mean of the changes, weighted by rows: moving means, step counters, normalized kernels
    SUM          their sum: rows that were seen
    WHOLE        the mean, too, for want of a better: moving variances, which are means of those within micro-batches

States with one row for each row of the batch, those of stateful recurrent layers, stay with the worker that has the
rows.
"""

from collections.abc import Sequence

import keras
import tensorflow as tf

from distgrad.keras_internals import flat_layers
from distgrad.objective.extra_sums import Asked, ExtraSum, Outcome, Pass, TrialPasses
from distgrad.objective.forward import AssignedValues, is_float
from distgrad.objective.kinds import Evidence, Kind, Parts


class States(ExtraSum):
    """The variables that a pass assigns, except those of metrics and the states of random numbers.

    Args:
        variables: all of them.

    Attributes:
        variables: those that are the same on every worker.
    """

    def __init__(self, variables: Sequence[keras.Variable]) -> None:
        self.variables = list(variables)
        self._kinds = [Kind.MEAN for _ in self.variables]

    def questions(self) -> list[str]:
        """Return the paths of the variables."""
        return [variable.path for variable in self.variables]

    def ask(self, trial: TrialPasses) -> dict[str, Asked]:
        """Return the changes."""
        if trial.parts is None:
            return {}
        changes = [self._changes(seen) for seen in (trial.whole, *trial.parts)]
        return {
            variable.path: Asked(Parts(*parts), of_forward=True)
            for variable, *parts in zip(self.variables, *changes, strict=True)
        }

    def learn(self, evidence: Evidence) -> bool:
        """Learn which changes are sums."""
        before = self._kinds
        self._kinds = [evidence.kind(variable.path) for variable in self.variables]
        return before != self._kinds

    @property
    def taken_as_means(self) -> list[str]:
        """The paths of the variables that only all rows together would tell."""
        pairs = zip(self.variables, self._kinds, strict=True)
        return [variable.path for variable, kind in pairs if kind is Kind.WHOLE]

    def shapes(self) -> list[tf.TensorShape]:
        """Return the shapes of the variables."""
        return [tf.TensorShape(variable.shape) for variable in self.variables]

    def of_micro_batch(self, seen: Pass) -> list[tf.Tensor]:
        """Return the changes; of means, times the rows."""
        pairs = zip(self._changes(seen), self._kinds, strict=True)
        return [one if kind is Kind.SUM else one * tf.cast(seen.rows, one.dtype) for one, kind in pairs]

    def settle(self, sums: Sequence[tf.Tensor], outcome: Outcome) -> dict[str, tf.Tensor]:
        """Assign, unless the step is skipped."""
        for variable, total, kind in zip(self.variables, sums, self._kinds, strict=True):
            rows = tf.cast(tf.maximum(outcome.examples, 1), total.dtype)
            change = total if kind is Kind.SUM else total / rows
            change = tf.where(outcome.applied, change, tf.zeros_like(change))
            add_to(variable, change)
        return {}

    def _changes(self, seen: Pass) -> list[tf.Tensor]:
        """Return what the pass adds to each variable, in a float dtype."""
        pairs = [(seen.scope.get_current_value(v), tf.convert_to_tensor(v.value)) for v in self.variables]
        return [_as_float(new) - _as_float(old) for new, old in pairs]


def states_of_rows(model: keras.Model) -> list[keras.Variable]:
    """Return the states of stateful recurrent layers, which have one row for each row of the batch."""
    layers = [layer for layer in flat_layers(model) if getattr(layer, "stateful", False)]
    states = keras.tree.flatten([getattr(layer, "states", None) for layer in layers])
    return [state for state in states if isinstance(state, keras.Variable)]


def keep_states_of_rows(variables: Sequence[keras.Variable], scope: AssignedValues) -> None:
    """Assign the states that belong to this worker's rows."""
    for variable in variables:
        if id(variable) in scope.assigned:
            variable.assign(scope.get_current_value(variable))


def _as_float(value: tf.Tensor) -> tf.Tensor:
    return value if value.dtype.is_floating else tf.cast(value, tf.float64)


def add_to(variable: keras.Variable, change: tf.Tensor) -> None:
    """Add a change, of any numeric dtype, to a variable; one of integers or bools gets the nearest."""
    if is_float(variable):
        variable.assign(variable.value + tf.cast(change, variable.dtype))
        return
    total = tf.round(tf.cast(variable.value, tf.float64) + tf.cast(change, tf.float64))
    variable.assign(tf.cast(total, variable.dtype))
