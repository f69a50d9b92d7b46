"""Metrics of the global data: the change of their state is what is summed over the workers.

A Keras metric keeps sums and counts. A micro-batch is shown to it with its state at zero, so that the state afterwards
is what this micro-batch adds. What the global batch adds follows from its kind (kinds.py): the sum for metrics that
look at each row, the mean for a function that gives one number for a batch and is a mean. A metric that is known from
all rows only (a maximum, a Dice score over the batch) is shown the global batch. Results are then those of one process
that has seen all the data, the same on every worker.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import keras
import tensorflow as tf

from distgrad.data.batch import rows_of_zeros
from distgrad.keras_internals import (
    compile_loss,
    function_of_metric,
    hold_plain_value,
    is_of_keras,
    logged_factors,
    loss_tracker,
)
from distgrad.objective.extra_sums import Asked, ExtraSum, Outcome, Pass, PassSpecs, TrialPasses
from distgrad.objective.forward import AssignedValues, Scope
from distgrad.objective.kinds import Evidence, Kind, Parts
from distgrad.objective.terms import looks_at_rows_alone
from distgrad.objective.trace import trace


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
        self._own_logs = _OwnLogs(model) if type(model).compute_metrics is not keras.Model.compute_metrics else None

    def prepare(self, specs: PassSpecs) -> None:
        """Create the metrics' state, and find what is known of it."""
        model = self._model
        returned = trace(_compute_metrics, model, specs.x, specs.y, specs.y_pred, specs.sample_weight)
        hold_plain_metrics(model)
        # The mean losses are taken from the sums that are there anyway, unless the model computes its loss itself.
        has_own_loss = type(model).compute_loss is not keras.Model.compute_loss
        of_outputs = getattr(compile_loss(model), "metrics", [])
        self._means = [] if has_own_loss else of_outputs
        self._factors = logged_factors(compile_loss(model)) if self._means else []
        known = _ids([loss_tracker(model), *self._means])
        self._state = list(model.metrics_variables)
        self._summed = [variable for variable in self._state if id(variable) not in known]
        self._in_pass = {id(variable) for variable in self._summed} & specs.assigned
        self._kinds = [Kind.MEAN if id(v) in _ids(of_outputs) else Kind.SUM for v in self._summed]
        certain = _ids(of_outputs) | (_ids(_row_by_row(model)) - self._in_pass if self._own_logs is None else set())
        self._questions = {
            number: f"metric {_metric_of(model, variable).name}/{variable.name} {number}"
            for number, variable in enumerate(self._summed)
            if id(variable) not in certain
        }
        if self._own_logs is not None:
            self._own_logs.prepare(returned, specs)
        if self._logs_gradient:
            self._last_gradient = [tf.Variable(0.0, dtype=tf.float64, trainable=False) for _ in range(2)]

    @property
    def zeroed(self) -> list[keras.Variable]:
        """All of the metrics' state: no pass reads it."""
        return self._state

    def questions(self) -> list[str]:
        """Return the names of the variables, and of the logs, whose kinds are not known."""
        return [*self._questions.values(), *(self._own_logs.questions() if self._own_logs else [])]

    @property
    def asks_outputs(self) -> bool:
        """True if the kind of a metric, or of a log, is not known that is computed from outputs."""
        return self._own_logs is not None or any(id(self._summed[n]) not in self._in_pass for n in self._questions)

    def ask(self, trial: TrialPasses) -> dict[str, Asked]:
        """Return what the passes add to the variables."""
        zeros = [tf.zeros(variable.shape, variable.dtype) for variable in self._summed]
        whole, first, second = (self._after(zeros, seen) for seen in (trial.whole, *trial.cut))
        after = [self._after(whole, seen) for seen in trial.cut]
        again = [
            tf.stack([tf.stack(apart), tf.stack([one - before, other - before])])
            for apart, before, one, other in zip(zip(first, second, strict=True), whole, *after, strict=True)
        ]
        found = self._own_logs.ask(trial) if self._own_logs else {}
        for number, question in self._questions.items():
            variable = self._summed[number]
            if id(variable) not in self._in_pass:
                parts = Parts(whole[number], first[number], second[number], again[number])
                found[question] = Asked(parts, of_forward=False)
            elif trial.parts is not None:
                passes = (trial.whole, *trial.parts)
                parts = Parts(*[seen.scope.get_current_value(variable) for seen in passes])
                found[question] = Asked(parts, of_forward=True)
        return found

    def learn(self, evidence: Evidence) -> bool:
        """Learn which variables are sums, which are means, and which need the global batch."""
        before = list(self._kinds)
        for number, question in self._questions.items():
            self._kinds[number] = evidence.kind(question, Kind.SUM)
        has_changed = self._own_logs is not None and self._own_logs.learn(evidence)
        return has_changed or before != self._kinds

    @property
    def needs_whole(self) -> list[str]:
        """The metrics that need the global batch."""
        metrics = [_metric_of(self._model, self._summed[number]).name for number in self._of_whole(in_pass=False)]
        return [f"metric {name!r}" for name in dict.fromkeys(metrics)]

    @property
    def taken_as_means(self) -> list[str]:
        """Metrics that need the global batch, and are updated where it cannot be shown to them."""
        metrics = [_metric_of(self._model, self._summed[number]).name for number in self._of_whole(in_pass=True)]
        return [f"metric {name!r}" for name in dict.fromkeys(metrics)]

    def _of_whole(self, in_pass: bool) -> list[int]:
        """Return the numbers of the variables that need the global batch."""
        pairs = zip(self._summed, self._kinds, strict=True)
        found = [number for number, (_, kind) in enumerate(pairs) if kind is Kind.WHOLE]
        return [number for number in found if (id(self._summed[number]) in self._in_pass) == in_pass]

    def shapes(self) -> list[tf.TensorShape]:
        """Return the shapes of the metrics' state, the mean losses left out, and of logs of the model's own."""
        shapes = [tf.TensorShape(variable.shape) for variable in self._summed]
        return [*shapes, *(self._own_logs.shapes() if self._own_logs else [])]

    def of_micro_batch(self, seen: Pass) -> list[tf.Tensor]:
        """Return what the micro-batch adds to the metrics' state."""
        own = self._own_logs.of_micro_batch(seen) if self._own_logs else []
        with seen.scope:
            _compute_metrics(self._model, seen.x, seen.y, seen.y_pred, seen.sample_weight)
        terms = [seen.scope.get_current_value(variable) for variable in self._summed]
        for number, kind in enumerate(self._kinds):
            if self._is_mean(number, kind):
                terms[number] *= tf.cast(seen.rows, terms[number].dtype)
        numbers = self._of_whole(in_pass=False)
        if numbers and seen.whole is not None:
            first = tf.equal(seen.whole.start, 0) & (seen.rows > 0)
            variables = [self._summed[number] for number in numbers]
            zeros = [tf.zeros(variable.shape, variable.dtype) for variable in variables]
            changes = tf.cond(first, lambda: self._changes_by(seen, variables), lambda: zeros)
            for number, change in zip(numbers, tf.nest.flatten(changes), strict=True):
                terms[number] = change
        return [*terms, *own]

    def settle(self, sums: Sequence[tf.Tensor], outcome: Outcome) -> dict[str, tf.Tensor]:
        """Add to the metrics' state what all workers added, unless the step is skipped. Returns the results so far."""
        rows = tf.cast(tf.maximum(outcome.examples, 1), tf.float64)
        counts = tf.cast(outcome.applied, tf.float32)
        for number, (variable, change, kind) in enumerate(zip(self._summed, sums, self._kinds, strict=False)):
            added = tf.cast(change, tf.float64) / rows if self._is_mean(number, kind) else change
            added = tf.where(outcome.applied, added, tf.zeros_like(added))
            variable.assign(variable.value + tf.cast(added, variable.dtype))
        _update(loss_tracker(self._model), outcome.logged_loss, counts * tf.cast(outcome.examples, tf.float32))
        for mean, loss, factor in zip(self._means, outcome.outputs, self._factors, strict=True):
            # Keras counts each batch once, however many rows the last one has.
            _update(mean, loss if factor == 1 else factor * loss, counts)
        logs = dict(self._model.get_metrics_result())
        if self._own_logs is not None:
            logs = self._own_logs.results(sums[len(self._summed) :], rows)
        if self._logs_gradient:
            found = (outcome.gradient_sum, outcome.gradient_norm)
            for last, now in zip(self._last_gradient, found, strict=True):
                last.assign(tf.where(outcome.applied, now, last))
            logs |= dict(zip(("gradient_sum", "gradient_norm"), map(tf.identity, self._last_gradient), strict=True))
        return logs

    def _is_mean(self, number: int, kind: Kind) -> bool:
        """Return whether the change of a variable is summed as a mean, weighted by rows."""
        return kind in (Kind.MEAN, Kind.ONCE) or (kind is Kind.WHOLE and id(self._summed[number]) in self._in_pass)

    def _after(self, state: Sequence[tf.Tensor], seen: Pass) -> list[tf.Tensor]:
        """Return the state after a pass was shown to the metrics."""
        with AssignedValues(list(zip(self._summed, state, strict=True))) as scope:
            _compute_metrics(self._model, seen.x, seen.y, seen.y_pred, seen.sample_weight)
        return [scope.get_current_value(variable) for variable in self._summed]

    def _changes_by(self, seen: Pass, variables: Sequence[keras.Variable]) -> list[tf.Tensor]:
        """Return what the global batch adds to variables."""
        assert seen.whole is not None
        outputs = seen.whole.outputs
        with AssignedValues() as scope:
            _compute_metrics(self._model, outputs.x, outputs.y, outputs.y_pred, outputs.sample_weight)
        olds = [tf.convert_to_tensor(variable.value) for variable in variables]
        news = [tf.convert_to_tensor(scope.get_current_value(variable)) for variable in variables]
        return [tf.cast(new, old.dtype) - old for new, old in zip(news, olds, strict=True)]


class _OwnLogs:
    """The logs that a `compute_metrics` of the model's own returns.

    Most are functions of metrics. They are computed once the metrics hold what all workers have added. Others are
    computed from a batch, and are means or sums of those of its parts.
    """

    def __init__(self, model: keras.Model) -> None:
        self._model = model

    def prepare(self, returned: Mapping[str, Any], specs: PassSpecs) -> None:
        self._keys, self._specs = list(returned), specs
        self._kinds = dict.fromkeys(self._keys, Kind.ONCE)

    def questions(self) -> list[str]:
        return [f"log {key}" for key in self._keys]

    def ask(self, trial: TrialPasses) -> dict[str, Asked]:
        passes = [self._of(seen) for seen in (trial.whole, *trial.cut)]
        return {f"log {key}": Asked(Parts(*[logs[key] for logs in passes]), of_forward=False) for key in self._keys}

    def learn(self, evidence: Evidence) -> bool:
        before = self._kinds
        self._kinds = {key: evidence.kind(f"log {key}", Kind.ONCE) for key in self._keys}
        return before != self._kinds

    @property
    def _of_batch(self) -> list[str]:
        return [key for key, kind in self._kinds.items() if kind is not Kind.ONCE]

    def shapes(self) -> list[tf.TensorShape]:
        return [tf.TensorShape([]) for _ in self._of_batch]

    def of_micro_batch(self, seen: Pass) -> list[tf.Tensor]:
        if not self._of_batch:
            return []
        logs, rows = self._of(seen), tf.cast(seen.rows, tf.float32)
        return [logs[key] if self._kinds[key] is Kind.SUM else logs[key] * rows for key in self._of_batch]

    def results(self, sums: Sequence[tf.Tensor], rows: tf.Tensor) -> dict[str, tf.Tensor]:
        """Return all logs.

        Args:
            sums: what came back of `of_micro_batch`.
            rows: () float64, of the global batch.
        """
        parts = (self._specs.x, self._specs.y, self._specs.y_pred, self._specs.sample_weight)
        logs = self._computed(*tf.nest.map_structure(lambda spec: rows_of_zeros(1, spec), parts))
        for key, total in zip(self._of_batch, sums, strict=True):
            logs[key] = total if self._kinds[key] is Kind.SUM else tf.cast(total, tf.float64) / rows
        return logs

    def _of(self, seen: Pass) -> dict[str, tf.Tensor]:
        logs = self._computed(seen.x, seen.y, seen.y_pred, seen.sample_weight)
        return {key: tf.reduce_mean(tf.cast(value, tf.float32)) for key, value in logs.items()}

    def _computed(self, *batch: Any) -> dict[str, Any]:
        with _NothingAssigned():
            return dict(_compute_metrics(self._model, *batch))


class _NothingAssigned(Scope):
    """Assignments have no effect: metrics give their results without an update."""

    def add_update(self, update: Any) -> None:
        """Drop an assignment."""


def _compute_metrics(model: keras.Model, x: Any, y: Any, y_pred: Any, sample_weight: Any) -> Any:
    return model.compute_metrics(x, y, y_pred, sample_weight=sample_weight)


def single_metrics(model: keras.Model) -> list[keras.metrics.Metric]:
    """List a model's metrics in their order; those that `compile` was given one by one."""
    return [inner for metric in model.metrics for inner in getattr(metric, "metrics", None) or [metric]]


def _row_by_row(model: keras.Model) -> list[keras.metrics.Metric]:
    """List the metrics given to `compile` that are known to look at each row by itself: most of Keras's own."""
    compiled = [inner for metric in model.metrics for inner in getattr(metric, "metrics", [])]
    functions = [(metric, function_of_metric(metric)) for metric in compiled if is_of_keras(metric)]
    return [metric for metric, function in functions if function is None or looks_at_rows_alone(function)]


def _metric_of(model: keras.Model, variable: keras.Variable) -> keras.metrics.Metric:
    return next(metric for metric in single_metrics(model) if any(v is variable for v in metric.variables))


def _ids(metrics: Sequence[keras.metrics.Metric]) -> set[int]:
    return {id(variable) for metric in metrics for variable in metric.variables}


def _update(mean: keras.metrics.Metric, value: tf.Tensor, weight: tf.Tensor) -> None:
    """Show a value to a `Mean`; with weight 0, not at all."""
    value = tf.where(weight > 0, value, tf.zeros_like(value))
    mean.update_state(tf.cast(value, tf.float32), sample_weight=weight)


def hold_plain_metrics(model: keras.Model) -> None:
    """Make the variables of a model's metrics plain ones, see `_hold_the_sum`."""
    for variable in model.metrics_variables:
        _hold_the_sum(variable)


def _hold_the_sum(variable: keras.Variable) -> None:
    """Make a metric's variable a plain one. Under a strategy it is one a replica, which each read adds up."""
    if isinstance(variable.value, tf.distribute.DistributedValues):
        hold_plain_value(variable)
