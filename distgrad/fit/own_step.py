"""A `train_step` or `test_step` of the user's own, run unchanged on each worker's rows.

    optimizer.apply, apply_gradients   the gradients, weighted by rows, are summed over the workers and divided: one sum
                                       for each call. The optimizer then sees the gradient of the global batch
    metrics                            what the step adds to their state is summed over the workers
    states                             what the step assigns to other variables that are not trained, likewise
    logs                               those that follow from metrics are computed from the metrics of all workers;
                                       others are means or sums of the workers' values

What a value is of a batch (a mean, a sum), the first batch tells, see objective/kinds.py. The step is run as a function
whose assignments are values: `OwnScope` holds them. Trained variables alone are assigned as the step says.
"""

import contextlib
import contextvars
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import keras
import tensorflow as tf

from distgrad.collectives.communicator import Communicator, is_replica
from distgrad.keras_internals import (
    flat_layers,
    global_seed_generator,
    is_random_state,
    optimized_variables,
    outside_stateless_scope,
    set_global_seed_generator,
    without_replica_scaling,
)
from distgrad.objective.forward import Scope

PART = 1_000_003  # how many draws the random numbers of two micro-batches are apart

Step = Callable[[Any], Any]  # data -> logs


class Apply(NamedTuple):
    """One call of an optimizer's `apply` or `apply_gradients`.

    Attributes:
        optimizer: whose.
        gradients: one per variable, as the step gives them; None where there is none.
        variables: those that are updated.
        call: gradients -> None; goes on with the call.
    """

    optimizer: keras.optimizers.Optimizer
    gradients: list[Any]
    variables: list[Any]
    call: Callable[[Sequence[Any]], Any]


_handler: contextvars.ContextVar[Callable[[Apply], Any] | None] = contextvars.ContextVar("handler", default=None)


class Held(NamedTuple):
    """An optimizer, and where a model holds it.

    Attributes:
        name: of the attribute, with the place in a list or dict.
        replace: puts another one in its place.
    """

    name: str
    optimizer: keras.optimizers.Optimizer
    replace: Callable[[Any], None]


def optimizers_of(model: keras.Model) -> list[Held]:
    """Find the optimizers that a model or its layers hold in attributes, or in lists and dicts there; each once."""
    found: dict[int, Held] = {}
    for layer in flat_layers(model):
        for name in [name for name in vars(layer) if not name.startswith("_self_")]:  # TensorFlow's own lists
            for held in _held(vars(layer)[name], name.lstrip("_"), functools.partial(setattr, layer, name)):
                found.setdefault(id(held.optimizer), held)
    return list(found.values())


def _held(value: Any, name: str, replace: Callable[[Any], None]) -> Iterator[Held]:
    """Find the optimizers in a value, at any depth of lists and dicts."""
    if isinstance(value, keras.optimizers.Optimizer):
        yield Held(name, value, replace)
    elif isinstance(value, (list, dict)):
        for place in range(len(value)) if isinstance(value, list) else list(value):
            yield from _held(value[place], f"{name}_{place}", functools.partial(value.__setitem__, place))


@contextlib.contextmanager
def intercepted(optimizers: Sequence[keras.optimizers.Optimizer]) -> Iterator[None]:
    """Let `handled_by` decide what becomes of the optimizers' calls while this context lasts."""
    for optimizer in optimizers:
        vars(optimizer)["apply"] = _Intercepted(optimizer, "apply")
        vars(optimizer)["apply_gradients"] = _Intercepted(optimizer, "apply_gradients")
    try:
        yield
    finally:
        for optimizer in optimizers:
            del vars(optimizer)["apply"], vars(optimizer)["apply_gradients"]


@contextlib.contextmanager
def handled_by(handler: Callable[[Apply], Any] | None) -> Iterator[None]:
    """Give calls of intercepted optimizers to a function; None lets them pass."""
    token = _handler.set(handler)
    try:
        yield
    finally:
        _handler.reset(token)


class _Intercepted:
    """A method of an optimizer that gives its calls to the handler."""

    def __init__(self, optimizer: keras.optimizers.Optimizer, method: str) -> None:
        self._optimizer, self._method = optimizer, method

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        own = getattr(type(self._optimizer), self._method)
        handler = _handler.get()
        if handler is None:
            return own(self._optimizer, *args, **kwargs)
        if self._method == "apply_gradients":
            gradients, variables = map(list, zip(*(args[0] if args else kwargs["grads_and_vars"]), strict=True))
        else:
            gradients = list(args[0] if args else kwargs["grads"])
            given = args[1] if len(args) > 1 else kwargs.get("trainable_variables")
            variables = list(optimized_variables(self._optimizer) if given is None else given)

        def call(gradients: Sequence[Any]) -> Any:
            with handled_by(None):
                if self._method == "apply_gradients":
                    return own(self._optimizer, list(zip(gradients, variables, strict=True)))
                return own(self._optimizer, list(gradients), variables)

        handler(Apply(self._optimizer, gradients, variables, call))
        return self._optimizer.iterations


class OwnScope(Scope):
    """The values that a step assigns.

    Attributes:
        changes: by the id of a metric's variable, what the step adds to it. Metrics read as they were.
        assigned: other variables that are not trained and were assigned, by their ids.
        weights: trained variables whose assignment was dropped, by their ids.

    Args:
        metrics: variables whose assignments are changes.
        known: variables that have another value during the step, each with that.
        assigns: True to assign trained variables as the step says; False drops that.
    """

    def __init__(
        self,
        metrics: Sequence[keras.Variable],
        known: Sequence[tuple[keras.Variable, tf.Tensor]],
        assigns: bool,
    ) -> None:
        super().__init__(list(known), collect_losses=True)
        self._metrics = set(map(id, metrics))
        self._assigns = assigns
        self.changes: dict[int, tf.Tensor] = {}
        self.assigned: dict[int, keras.Variable] = {}
        self.weights: dict[int, keras.Variable] = {}

    def add_update(self, update: tuple[keras.Variable, Any]) -> None:
        """Take the value of an assignment."""
        variable, value = update
        if id(variable) in self._metrics:
            change = tf.cast(value, variable.dtype) - tf.cast(variable.value, variable.dtype)
            before = self.changes.get(id(variable))
            self.changes[id(variable)] = change if before is None else before + change
        elif not variable.trainable:
            self.assigned[id(variable)] = variable
            super().add_update((variable, tf.cast(value, variable.dtype)))
        elif not self._assigns:
            self.weights[id(variable)] = variable
        else:
            with outside_stateless_scope():
                variable.assign(value)


class Ran(NamedTuple):
    """A step that was run on one worker's rows.

    Attributes:
        logs: what it returned.
        scope: what it assigned.
    """

    logs: dict[str, Any]
    scope: OwnScope


class Runner:
    """Runs a step of a model's own on one worker.

    Args:
        comm: the workers.
        model: whose step it is.
        step: its `train_step` or `test_step`.
        takes_tuples: True if it is given a tuple of a batch's parts, even of one; else the one part that there is.
    """

    def __init__(self, comm: Communicator, model: keras.Model, step: Step, takes_tuples: bool) -> None:
        self._comm, self.model, self._step, self.takes_tuples = comm, model, step, takes_tuples
        if global_seed_generator() is None:  # the step may draw from it, and a graph could not make it
            with comm.scope():
                set_global_seed_generator(keras.random.SeedGenerator())
        self._generator = global_seed_generator()

    @property
    def metrics(self) -> list[keras.Variable]:
        """The variables of the model's metrics."""
        return list(self.model.metrics_variables)

    def run(
        self,
        batch: tuple[Any, ...],
        handler: Callable[[Apply], Any],
        worker: tf.Tensor,
        *,
        assigns: bool,
        zeroed: bool = True,
        part: tf.Tensor | int = 0,
    ) -> Ran:
        """Run the step.

        Args:
            batch: this worker's rows, (x, [y, [sample_weight]]).
            handler: decides what becomes of calls of optimizers.
            worker: () int32, this worker's number.
            assigns: False if nothing is to be assigned, not even to trained variables.
            zeroed: False lets metrics read what they hold.
            part: () int32, the number of the micro-batch, each of which draws other random numbers.
        """
        set_global_seed_generator(self._generator)  # Keras has one for each thread, and replicas have threads
        metrics = self.metrics
        known = [(v, tf.zeros(v.shape, v.dtype)) for v in metrics] if zeroed else []
        known += [(v, v.value + _offset(worker, v, part)) for v in self.seeds()]
        with (
            _as_replica(self._comm),
            OwnScope(metrics, known, assigns) as scope,
            handled_by(handler),
            without_replica_scaling(),
        ):
            logs = self._step(batch if self.takes_tuples else batch[0])
        return Ran(_as_logs(logs), scope)

    def count_variables(self) -> int:
        """Return how many variables the model has."""
        return len(self.model.variables) + len(self.model.metrics_variables)

    def seeds(self) -> list[keras.Variable]:
        """Return the states of random numbers: the model's, and that behind `keras.random` without a seed."""
        own = [variable for variable in self.model.non_trainable_variables if is_random_state(variable)]
        return own if self._generator is None else [*own, self._generator.state]

    def keep_random_states(
        self, scope: OwnScope, worker: tf.Tensor, part: tf.Tensor | int = 0, is_last: tf.Tensor | bool = True
    ) -> None:
        """Assign the states of random numbers, without rank and part, after the last micro-batch."""
        for variable in self.seeds():
            if id(variable) in scope.assigned:
                value = scope.get_current_value(variable) - _offset(worker, variable, part)
                variable.assign(tf.where(is_last, value, tf.convert_to_tensor(variable.value)))

    def draws(self, scope: OwnScope) -> bool:
        """Return whether the step has drawn random numbers by Keras."""
        return any(is_random_state(variable) for variable in scope.assigned.values())

    def states(self, scope: OwnScope) -> list[keras.Variable]:
        """Return the variables, neither trained nor of metrics, that the step has assigned."""
        return [variable for variable in scope.assigned.values() if not is_random_state(variable)]


def _offset(worker: tf.Tensor, variable: keras.Variable, part: tf.Tensor | int = 0) -> tf.Tensor:
    """Return (2,) what is added to a random state: the rank to its seed, and a long way for each micro-batch."""
    return tf.cast(tf.stack([worker, tf.cast(part, worker.dtype) * PART]), variable.dtype)


def _as_logs(logs: Any) -> dict[str, Any]:
    """Return what a step has returned as Keras's loops take it: a loss alone, or a dict, whose dicts are opened."""
    if logs is None:
        return {}
    if not isinstance(logs, Mapping):
        return {"loss": logs}
    found: dict[str, Any] = {}
    for key, value in logs.items():
        found |= _as_logs(value) if isinstance(value, Mapping) else {key: value}
    return found


def _as_replica(comm: Communicator) -> contextlib.AbstractContextManager[Any]:
    """Return the context of one replica of a strategy, in which tapes find variables; none where this is one."""
    if comm.backend != "tf" or is_replica(comm):
        return contextlib.nullcontext()
    with comm.scope():
        strategy = tf.distribute.get_strategy()
    return tf.distribute.ReplicaContext(strategy, 0)
