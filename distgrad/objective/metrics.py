"""Metrics of the global data: the change of their state is what is summed over the workers.

A Keras metric keeps sums and counts. A micro-batch is shown to it with its state at zero, so that the state afterwards
is what this micro-batch adds; added over micro-batches and workers it is what the global batch adds. Results are then
those of one process that has seen all the data, the same on every worker. A metric whose state cannot be added (a
maximum, say) is refused.
"""

from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from distgrad.data.batch import synthetic_batch
from distgrad.errors import UnsupportedMetric
from distgrad.keras_internals import compile_loss, hold_plain_value, loss_tracker
from distgrad.objective.extra_sums import ExtraSum, Outcome, Pass, PassSpecs
from distgrad.objective.trace import trace

ROWS = 6  # of the made-up batches on which metrics are tried


class MetricSums(ExtraSum):
    """The metrics of a compiled model, the mean loss among them.

    Args:
        model: a compiled model.
        logs_gradient: True to log the gradient's sum and norm, too.
    """

    def __init__(self, model: keras.Model, logs_gradient: bool) -> None:
        self._model, self._logs_gradient = model, logs_gradient
        self._state: list[keras.Variable] = []
        self._summed: list[keras.Variable] = []  # the part of it that is summed over the workers

    def prepare(self, specs: PassSpecs) -> None:
        """Create the metrics' state, and try if it can be added.

        Raises:
            UnsupportedMetric: it cannot.
        """
        model = self._model
        trace(model.compute_metrics, specs.x, specs.y, specs.y_pred, specs.sample_weight)
        for variable in model.metrics_variables:
            _hold_the_sum(variable)
        # The mean losses are taken from the sums that are there anyway.
        compiled = compile_loss(model)
        self._means = [] if compiled is None else compiled.metrics
        known = {id(v) for mean in [loss_tracker(model), *self._means] for v in mean.variables}
        self._state = list(model.metrics_variables)
        self._summed = [variable for variable in self._state if id(variable) not in known]
        self._require_sums(specs)

    @property
    def zeroed(self) -> list[keras.Variable]:
        """All of the metrics' state: no pass reads it."""
        return self._state

    def shapes(self) -> list[tf.TensorShape]:
        """Return the shapes of the metrics' state, the mean losses left out."""
        return [tf.TensorShape(variable.shape) for variable in self._summed]

    def of_micro_batch(self, seen: Pass) -> list[tf.Tensor]:
        """Return what the micro-batch adds to the metrics' state."""
        with seen.scope:
            self._model.compute_metrics(seen.x, seen.y, seen.y_pred, sample_weight=seen.sample_weight)
        return [seen.scope.get_current_value(variable) for variable in self._summed]

    def settle(self, sums: Sequence[tf.Tensor], outcome: Outcome) -> dict[str, tf.Tensor]:
        """Add to the metrics' state what all workers added. Returns the results so far."""
        for variable, change in zip(self._summed, sums, strict=True):
            variable.assign(variable.value + tf.cast(change, variable.dtype))
        loss_tracker(self._model).update_state(
            tf.cast(outcome.loss, tf.float32), sample_weight=tf.cast(outcome.examples, tf.float32)
        )
        for mean, loss in zip(self._means, outcome.outputs, strict=True):
            # Keras counts each batch once, however many rows the last one has.
            mean.update_state(tf.cast(loss, tf.float32))
        logs = dict(self._model.get_metrics_result())
        if self._logs_gradient:
            logs |= {"gradient_sum": outcome.gradient_sum, "gradient_norm": outcome.gradient_norm}
        return logs

    def _require_sums(self, specs: PassSpecs) -> None:
        """Show the metrics two made-up batches, apart and one after the other."""
        nothing = [tf.zeros(variable.shape, variable.dtype) for variable in self._summed]
        one, other = (_made_up(specs, seed) for seed in (1, 2))
        alone = self._after(nothing, other)
        first = self._after(nothing, one)
        both = self._after(first, other)
        at_reset = self._at_reset()
        for variable, *values in zip(self._summed, first, alone, both, at_reset, strict=True):
            a, b, together, fresh = (np.asarray(value, np.float64) for value in values)
            if fresh.any() or not np.allclose(a + b, together, rtol=1e-4, atol=1e-6, equal_nan=True):
                self._refuse(variable)

    def _after(self, state: Sequence[tf.Tensor], batch: Sequence[Any]) -> list[tf.Tensor]:
        x, y, y_pred, sample_weight = batch
        with keras.StatelessScope(list(zip(self._summed, state, strict=True))) as scope:
            self._model.compute_metrics(x, y, y_pred, sample_weight=sample_weight)
        return [scope.get_current_value(variable) for variable in self._summed]

    def _at_reset(self) -> list[tf.Tensor]:
        with keras.StatelessScope([(v, tf.ones(v.shape, v.dtype)) for v in self._summed]) as scope:
            self._model.reset_metrics()
        return [scope.get_current_value(variable) for variable in self._summed]

    def _refuse(self, variable: keras.Variable) -> None:
        metrics = single_metrics(self._model)
        name = next(metric.name for metric in metrics if any(v is variable for v in metric.variables))
        raise UnsupportedMetric(
            f"metric {name!r} keeps what cannot be added up over workers, in its variable {variable.name!r}",
            "write it as a sum and a count, or compute it from model.predict() after training",
            everywhere=True,
        )


def single_metrics(model: keras.Model) -> list[keras.metrics.Metric]:
    """List a model's metrics in their order; those that `compile` was given one by one."""
    return [inner for metric in model.metrics for inner in getattr(metric, "metrics", None) or [metric]]


def _hold_the_sum(variable: keras.Variable) -> None:
    """Make a metric's variable a plain one. Under a strategy it is one a replica, which each read adds up."""
    if isinstance(variable.value, tf.distribute.DistributedValues):
        hold_plain_value(variable)


def _made_up(like: PassSpecs, seed: int) -> tuple[Any, ...]:
    """Make up a batch: zeros, targets of 0 and 1, predictions and weights between 0 and 1."""
    rng = np.random.default_rng(seed)

    return (
        synthetic_batch(like.x, ROWS, np.zeros),
        synthetic_batch(like.y, ROWS, lambda shape: rng.integers(0, 2, shape)),
        synthetic_batch(like.y_pred, ROWS, lambda shape: rng.uniform(0.05, 0.95, shape)),
        synthetic_batch(like.sample_weight, ROWS, lambda shape: rng.uniform(0.5, 1.5, shape)),
    )
