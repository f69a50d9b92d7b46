"""A forward pass that is traced once and run on several batches in one graph, since tracing takes longer than running.

Only tensors leave the graph of a `tf.function`. What layers would have assigned, and the losses that they add, are
returned as tensors, and put back into a scope.
"""

from collections.abc import Sequence
from typing import Any

import keras
import tensorflow as tf

from distgrad.keras_internals import keras_mask, set_keras_mask
from distgrad.objective.forward import AssignedValues, Forward


class TracedForward:
    """The root's forward pass. Nothing is differentiated.

    Args:
        forward: the model's pass.
        states: the variables of which a pass may begin with other values than they hold.
        zeroed: variables that read as zero during a pass, unless `after` tells another value of them.
        spec: nest of `tf.TypeSpec`, the types of the model's input.
    """

    def __init__(
        self, forward: Forward, states: Sequence[keras.Variable], zeroed: Sequence[keras.Variable], spec: Any
    ) -> None:
        self._forward, self._states = forward, states
        self._zeroed = {id(variable): variable for variable in zeroed}
        specs = [spec, [tf.TensorSpec(variable.shape, variable.dtype) for variable in states]]
        self._traced = tf.function(self._run, autograph=False, input_signature=specs)

    def run(self, x: Any, after: AssignedValues | None = None) -> tuple[Any, AssignedValues]:
        """Run the model.

        Args:
            x: (b, ...) its input, or a nest of them.
            after: an earlier pass whose states this one begins with; None begins with those that the variables hold.

        Returns:
            (the output with the masks upon it, the scope that holds what would have been assigned and the losses that
            layers added).
        """
        y_pred, masks, assigned, losses = self._traced(x, [self._start(variable, after) for variable in self._states])
        tf.nest.map_structure(set_keras_mask, y_pred, masks)
        zeros = [(variable, tf.zeros(variable.shape, variable.dtype)) for variable in self._zeroed.values()]
        scope = AssignedValues([*zeros, *zip(self._assigned, assigned, strict=True)])
        scope.assigned = {id(variable): variable for variable in self._assigned}
        scope.losses.extend(losses)
        return y_pred, scope

    def _start(self, variable: keras.Variable, after: AssignedValues | None) -> tf.Tensor:
        if after is not None:
            return tf.convert_to_tensor(after.get_current_value(variable))
        return tf.zeros(variable.shape, variable.dtype) if id(variable) in self._zeroed else variable.value

    def _run(self, x: Any, states: Sequence[tf.Tensor]) -> tuple[Any, Any, list[tf.Tensor], list[tf.Tensor]]:
        begun = list(zip(self._states, states, strict=True))
        y_pred, scope = self._forward.run(x, tf.constant(0), [*self._zeroed.values()], states=begun)
        self._assigned = list(scope.assigned.values())
        assigned = [tf.convert_to_tensor(scope.get_current_value(variable)) for variable in self._assigned]
        losses = [tf.convert_to_tensor(loss) for loss in scope.losses]
        return y_pred, tf.nest.map_structure(keras_mask, y_pred), assigned, losses
