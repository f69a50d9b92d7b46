"""Moving statistics: non-trainable variables that a forward pass assigns, such as those of batch normalization."""

from collections.abc import Sequence

import keras
import tensorflow as tf

from distgrad.objective.extra_sums import ExtraSum, Outcome, Pass


class MovingStatistics(ExtraSum):
    """The non-trainable float variables that a pass assigns.

    Each pass gives its change, and the step assigns the mean of all changes, weighted by rows. The mean that batch
    normalization keeps is so that of the global batch; the variance is the mean of those within the micro-batches.
    """

    def __init__(self, variables: Sequence[keras.Variable]) -> None:
        self._variables = variables

    def shapes(self) -> list[tf.TensorShape]:
        """Return the shapes of the variables."""
        return [tf.TensorShape(variable.shape) for variable in self._variables]

    def of_micro_batch(self, seen: Pass) -> list[tf.Tensor]:
        """Return rows times change, of each variable."""
        pairs = [(seen.scope.get_current_value(v), tf.convert_to_tensor(v.value)) for v in self._variables]
        return [tf.cast(seen.rows, old.dtype) * (new - old) for new, old in pairs]

    def settle(self, sums: Sequence[tf.Tensor], outcome: Outcome) -> dict[str, tf.Tensor]:
        """Assign the mean, unless the step is skipped."""
        for variable, total in zip(self._variables, sums, strict=True):
            change = total / tf.cast(tf.maximum(outcome.examples, 1), total.dtype)
            change = tf.where(outcome.applied, change, tf.zeros_like(change))
            variable.assign(variable.value + tf.cast(change, variable.dtype))
        return {}
