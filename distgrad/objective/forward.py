"""The forward pass, with what it would assign as values instead.

Layers assign during a pass: normalization its moving statistics, dropout the state of its random numbers, spectral
normalization its kernel. Taken as values, states can be put together over all micro-batches of all workers and assigned
once a step (states.py), so that a step moves them as far as it does in one process, however its batch is cut.

Random numbers: a worker draws from the root's seed plus its rank, so that no two workers drop the same units, a job
started again draws the same, and the root draws what one process would.
"""

import functools
import inspect
from collections.abc import Callable, Sequence
from typing import Any

import keras
import tensorflow as tf

from distgrad.data.batch import rows_between
from distgrad.gradients.accumulate import add
from distgrad.gradients.checks import Gradient, checked_against
from distgrad.gradients.micro_batch import tensor_of
from distgrad.keras_internals import flat_layers, is_random_state, outside_stateless_scope


class Scope(keras.StatelessScope):
    """A stateless scope that tells the value of every variable, as regularizers want it, and not only of known ones."""

    def get_current_value(self, variable: keras.Variable) -> Any:
        """Return the value that a variable has been given in this scope, or else its own."""
        value = super().get_current_value(variable)
        if value is None:
            with outside_stateless_scope():
                value = variable.value
        return value


class AssignedValues(Scope):
    """The values that a pass would have assigned to Keras variables, and the losses that layers added.

    A value assigned to a trainable variable is differentiated from there on, as a variable that is read after it was
    assigned is, and not as a function of what it was computed from.

    Attributes:
        assigned: the ids of the variables that were assigned.
        sources: the values assigned to trainable variables, each with its variable.

    Args:
        known: variables that have another value during the pass, each with that.
        watch: lets a tape record what follows from a tensor; None if nothing is differentiated.
    """

    def __init__(
        self,
        known: Sequence[tuple[keras.Variable, tf.Tensor]] = (),
        watch: Callable[[tf.Tensor], None] | None = None,
    ) -> None:
        super().__init__(list(known), collect_losses=True)
        self._watch = watch
        self.assigned: set[int] = set()
        self.sources: list[tuple[keras.Variable, tf.Tensor]] = []

    def add_update(self, update: tuple[keras.Variable, Any]) -> None:
        """Take the value of an assignment."""
        variable, value = update
        if variable.trainable and is_float(variable):
            value = tf.stop_gradient(tf.cast(value, variable.dtype))
            if self._watch is not None:
                self._watch(value)
                self.sources.append((variable, value))
        self.assigned.add(id(variable))
        super().add_update((variable, value))


class Forward:
    """A model's forward pass in training or inference mode.

    Attributes:
        model: the model.
        training: True in training mode.
    """

    def __init__(self, model: keras.Model, training: bool) -> None:
        self.model, self.training = model, training

    def run(
        self,
        x: Any,
        worker: tf.Tensor,
        zeroed: Sequence[keras.Variable] = (),
        watch: Callable[[tf.Tensor], None] | None = None,
        after: "AssignedValues | None" = None,
    ) -> tuple[Any, AssignedValues]:
        """Run the model.

        Args:
            x: (b, ...) its input, or a nest of them.
            worker: () int32, this worker's number.
            zeroed: variables that read as zero during the pass.
            watch: see `AssignedValues`.
            after: an earlier pass whose states this one begins with; None begins with those that the variables hold.

        Returns:
            (the output, the scope that holds what would have been assigned and the losses that layers added).
        """
        offsets = [(v, tf.cast(tf.stack([worker, tf.zeros_like(worker)]), v.dtype)) for v in self._seeds()]
        known = [(v, v.value + offset) for v, offset in offsets] + [(v, tf.zeros(v.shape, v.dtype)) for v in zeroed]
        if after is not None:
            known += [(v, tf.ensure_shape(after.get_current_value(v), v.shape)) for v in self.states(after)]
        with AssignedValues(known, watch) as scope:
            y_pred = call_as_keras_does(self.model, x, self.training)
        return y_pred, scope

    def keep_random_states(self, scope: keras.StatelessScope, worker: tf.Tensor) -> None:
        """Assign the states of random numbers, without the rank."""
        for variable in self._seeds():
            if id(variable) not in scope.assigned:
                continue
            value = scope.get_current_value(variable)
            variable.assign(value - tf.cast(tf.stack([worker, tf.zeros_like(worker)]), value.dtype))

    def random_states(self) -> list[tf.Tensor]:
        """Return the states of random numbers."""
        return [tf.identity(variable.value) for variable in self._seeds()]

    def set_random_states(self, values: Sequence[tf.Tensor]) -> None:
        """Assign the states of random numbers."""
        for variable, value in zip(self._seeds(), values, strict=True):
            variable.assign(value)

    def states(self, scope: AssignedValues) -> list[keras.Variable]:
        """Return the variables of the model that a pass has assigned, except random states."""
        seeds = {id(variable) for variable in self._seeds()}
        return [variable for variable in self.model.variables if id(variable) in scope.assigned - seeds]

    def is_random(self, scope: AssignedValues) -> bool:
        """Return whether a pass has drawn random numbers."""
        return any(id(variable) in scope.assigned for variable in self._seeds())

    def _seeds(self) -> list[keras.Variable]:
        return [variable for variable in self.model.non_trainable_variables if is_random_state(variable)]


def gradients_of(
    tape: tf.GradientTape, target: tf.Tensor, variables: Sequence[Any], scope: AssignedValues
) -> list[Gradient]:
    """Differentiate with respect to variables, also where a pass has assigned them before it used them."""
    found = tape.gradient(target, [*map(tensor_of, variables), *[value for _, value in scope.sources]])
    gradients, further = found[: len(variables)], found[len(variables) :]
    numbers = {id(variable): number for number, variable in enumerate(variables)}
    for (variable, value), gradient in zip(scope.sources, further, strict=True):
        if gradient is not None and id(variable) in numbers:
            number = numbers[id(variable)]
            both = [checked_against(one, variable) for one in (gradients[number], gradient)]
            gradients[number] = functools.reduce(add, both, tf.zeros_like(value))
    return gradients


def built_in_rows(model: keras.Model) -> int | None:
    """Return the number of rows that a model with stateful layers is built for; None if it takes any number."""
    stateful = [layer for layer in flat_layers(model) if getattr(layer, "stateful", False) and layer.built]
    states = keras.tree.flatten([getattr(layer, "states", None) for layer in stateful])
    return next((int(state.shape[0]) for state in states if state is not None), None)


def no_rows_of(x: Any) -> Any:
    """Return the input of a pass over no rows."""
    return tf.nest.map_structure(lambda tensor: rows_between(tensor, 0, 0), x)


def call_as_keras_does(model: keras.Model, x: Any, training: bool) -> Any:
    """Call a model: `training` is given to a `call` that has such an argument, and to no other."""
    return model(x, training=training) if "training" in inspect.signature(model.call).parameters else model(x)


def is_float(variable: keras.Variable) -> bool:
    """Return True for a variable of a float dtype."""
    return tf.as_dtype(variable.dtype).is_floating
