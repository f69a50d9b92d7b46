"""States: variables that a forward pass assigns, such as the moving statistics of normalization.

Every micro-batch begins with the states as they were before the step, and gives their change. What becomes of the
changes depends on what they are of a batch (kinds.py):

    MEAN, ONCE   the mean of the changes, weighted by rows: moving means, step counters, normalized kernels
    SUM          what a pass over no rows does, once, and the sum of what rows add to that: rows that were seen, moving
                 sums such as those of a code book
    WHOLE        the mean, too, for want of a better: moving variances, which are means of those within micro-batches

States with one row for each row of the batch, those of stateful recurrent layers, stay with the worker that has the
rows.
"""

from collections.abc import Collection, Sequence

import keras
import tensorflow as tf

from distgrad.keras_internals import flat_layers, is_keras_variable
from distgrad.objective.extra_sums import Asked, ExtraSum, Outcome, Pass, TrialPasses
from distgrad.objective.forward import AssignedValues, is_float
from distgrad.objective.kinds import Evidence, Kind, Parts


class States(ExtraSum):
    """The variables that a pass assigns, except those of metrics and the states of random numbers.

    Args:
        variables: all of them that are the same on every worker.
        certain: the ids of those whose changes are known to be taken as means.
    """

    def __init__(self, variables: Sequence[keras.Variable], certain: Collection[int] = ()) -> None:
        self.variables = list(variables)
        self._kinds = [Kind.MEAN for _ in self.variables]
        self._asked = [number for number, v in enumerate(self.variables) if id(v) not in certain]

    def questions(self) -> list[str]:
        """Return names for the changes of the variables, and for what their rows add to those of no rows."""
        return [name for number in self._asked for name in _names(self.variables[number])]

    def ask(self, trial: TrialPasses) -> dict[str, Asked]:
        """Return the changes."""
        if trial.parts is None or trial.again is None:
            return {}
        found = {}
        changes = [self._changes(seen) for seen in (trial.whole, *trial.parts)]
        added = [self._added(seen) for seen in (trial.whole, *trial.parts, trial.again)]
        for number in self._asked:
            change, more = _names(self.variables[number])
            found[change] = Asked(Parts(*(one[number] for one in changes)), of_forward=True)
            whole, first, second, again = (one[number] for one in added)
            is_known = tf.reduce_all(tf.math.is_finite(whole + again))
            # Where no rows give no number, the values fit to no kind.
            one, two, three = (tf.where(is_known, v, c) for v, c in ((whole, 1), (first, 5), (second, 7)))
            found[more] = Asked(Parts(one, two, three, tf.stack([whole, again])), of_forward=True)
        return found

    def learn(self, evidence: Evidence) -> bool:
        """Learn which changes are sums."""
        before = list(self._kinds)
        for number in self._asked:
            change, more = _names(self.variables[number])
            kind = evidence.kind(change)
            is_sum = kind in (Kind.SUM, Kind.WHOLE) and evidence.kind(more, Kind.SUM) is Kind.SUM
            self._kinds[number] = Kind.SUM if is_sum else Kind.WHOLE if kind is Kind.SUM else kind
        return before != self._kinds

    @property
    def needs_nothing(self) -> bool:
        """True if passes over no rows are needed."""
        return Kind.SUM in self._kinds

    @property
    def taken_as_means(self) -> list[str]:
        """The paths of the variables that only all rows together would tell."""
        pairs = zip(self.variables, self._kinds, strict=True)
        return [variable.path for variable, kind in pairs if kind is Kind.WHOLE]

    def shapes(self) -> list[tf.TensorShape]:
        """Return the shapes of the variables; of sums, twice."""
        shapes = [tf.TensorShape(variable.shape) for variable in self.variables]
        return [*shapes, *(shapes[number] for number in self._sums)]

    @property
    def _sums(self) -> list[int]:
        return [number for number, kind in enumerate(self._kinds) if kind is Kind.SUM]

    def of_micro_batch(self, seen: Pass) -> list[tf.Tensor]:
        """Return the changes times the rows; of sums, those of no rows times the rows, and what the rows add."""
        changes, added = self._changes(seen), self._added(seen) if self._sums else []
        means = [
            change - added[number] if kind is Kind.SUM else change
            for number, (change, kind) in enumerate(zip(changes, self._kinds, strict=True))
        ]
        return [*(mean * tf.cast(seen.rows, mean.dtype) for mean in means), *(added[number] for number in self._sums)]

    def settle(self, sums: Sequence[tf.Tensor], outcome: Outcome) -> dict[str, tf.Tensor]:
        """Assign, unless the step is skipped."""
        added = dict(zip(self._sums, sums[len(self.variables) :], strict=True))
        for number, (variable, total) in enumerate(zip(self.variables, sums, strict=False)):
            change = total / tf.cast(tf.maximum(outcome.examples, 1), total.dtype) + added.get(number, 0)
            add_to(variable, tf.where(outcome.applied, change, tf.zeros_like(change)))
        return {}

    def _changes(self, seen: Pass) -> list[tf.Tensor]:
        """Return what the pass adds to each variable, in a float dtype."""
        return [self._value(seen.scope, v) - self._value(seen.start, v) for v in self.variables]

    def _added(self, seen: Pass) -> list[tf.Tensor]:
        """Return what the rows of a pass add to each variable, beyond what a pass over no rows does."""
        return [self._value(seen.scope, v) - self._value(seen.nothing, v) for v in self.variables]

    @staticmethod
    def _value(scope: AssignedValues | None, variable: keras.Variable) -> tf.Tensor:
        """Return the value that a pass has left, or that a variable holds, in a float dtype."""
        return as_float(tf.convert_to_tensor(variable.value if scope is None else scope.get_current_value(variable)))


def _names(variable: keras.Variable) -> tuple[str, str]:
    return f"state {variable.path}", f"rows of state {variable.path}"


def states_of_rows(model: keras.Model) -> list[keras.Variable]:
    """Return the states of stateful recurrent layers, which have one row for each row of the batch."""
    layers = [layer for layer in flat_layers(model) if getattr(layer, "stateful", False)]
    states = keras.tree.flatten([getattr(layer, "states", None) for layer in layers])
    return [state for state in states if is_keras_variable(state)]


def keep_states_of_rows(variables: Sequence[keras.Variable], scope: AssignedValues) -> None:
    """Assign the states that belong to this worker's rows."""
    for variable in variables:
        if id(variable) in scope.assigned:
            variable.assign(scope.get_current_value(variable))


def as_float(value: tf.Tensor) -> tf.Tensor:
    """Return a value in its own dtype if that is a float, else in float64."""
    return value if value.dtype.is_floating else tf.cast(value, tf.float64)


def add_to(variable: keras.Variable, change: tf.Tensor) -> None:
    """Add a change, of any numeric dtype, to a variable; one of integers or bools gets the nearest."""
    if is_float(variable):
        variable.assign(variable.value + tf.cast(change, variable.dtype))
        return
    total = tf.round(tf.cast(variable.value, tf.float64) + tf.cast(change, tf.float64))
    variable.assign(tf.cast(total, variable.dtype))
