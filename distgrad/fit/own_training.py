"""Training and evaluation by a `train_step` or `test_step` of the user's own, over all workers.

build      the step is traced until all that it uses is built
ask        what its gradients, metrics, states and logs are of a batch: the first batch tells
step       own_step.py on each worker's rows; one sum for each call of an optimizer, one for all the rest
"""

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import keras
import tensorflow as tf

from distgrad.collectives import agreement
from distgrad.collectives.communicator import Communicator
from distgrad.collectives.vectors import joined
from distgrad.data.batch import one_row_at_least, row_count, rows_between, rows_of_zeros, spec_with_any_rows
from distgrad.fit.own_step import PART, Apply, Runner, intercepted, optimizers_of
from distgrad.fit.own_values import OwnValues
from distgrad.gradients.accumulate import LocalSums, over_micro_batches
from distgrad.gradients.flat_vector import FlatLayout
from distgrad.keras_internals import outside_stateless_scope, without_summing
from distgrad.objective.extra_sums import Asked, WorkerShare
from distgrad.objective.kinds import Evidence, Kind, Parts
from distgrad.objective.metrics import hold_plain_metrics
from distgrad.objective.trace import trace
from distgrad.objective.trial import Trial, taken_as_means
from distgrad.reports.report import GlobalGradientEntries
from distgrad.reports.statistics import Contents
from distgrad.step.config import StepConfig
from distgrad.step.distributed_step import DistributedStep
from distgrad.step.drift import Drift
from distgrad.step.evaluation import PACKING, Evaluate, Evaluation
from distgrad.step.optimizer_scope import optimizer_in_scope
from distgrad.step.start import require_same_settings
from distgrad.step.training_graph import Flags, StepOutput
from distgrad.step.update import loss_scale

BUILDS = 5  # traces of a step at most, until it creates no more variables


class GivenAsKeras:
    """A step of the model's own that is given its data in the form that Keras gives them."""

    takes_tuples = True
    _has_joined: bool

    def give_tuples(self, takes_tuples: bool) -> None:
        """Give the step tuples of a batch's parts, or the one part that there is, as its data have them."""
        if takes_tuples != self.takes_tuples:
            self.takes_tuples, self._has_joined = takes_tuples, False


class OwnTrainStep(GivenAsKeras, DistributedStep):
    """A `DistributedStep` whose graph runs the model's own `train_step`."""

    _plans = 0

    def _prepare(self, batch: tuple[Any, ...]) -> tuple["OwnPlan", "OwnTrainGraph"]:
        runner = Runner(self.comm, self.model, self.model.train_step, self.takes_tuples)
        optimizers = _optimizers_in_scope(self.comm, self.model)
        with intercepted(list(optimizers.values())):
            trial = _try_step(self.comm, self.model, runner, batch, self._trial)
        if self._trial is None:
            trial.tell(self._config.micro_batch_size)
        for apply in trial.applies:
            if not apply.optimizer.built:
                with self.comm.scope():
                    apply.optimizer.build(apply.variables)
        variables = self.model.trainable_variables
        described = [(variable.path, tuple(variable.shape)) for variable in variables]
        contents = Contents(described, {}, self.comm.size, self.comm.rank, frozenset(), divides=True)
        self._optimizers = optimizers
        plan = OwnPlan(contents, Drift(self.comm, self._compared), trial, self._plans)
        self._plans += 1
        return plan, OwnTrainGraph(self.comm, runner, self._config, plan, optimizers)

    def variables(self) -> list[keras.Variable]:
        """Return the weights and the state of all optimizers; none before the first step."""
        return self._state() if self._has_joined else []

    def _state(self) -> list[keras.Variable]:
        variables = [v for optimizer in self._optimizers.values() for v in optimizer.variables]
        return [*self.model.variables, *{id(v): v for v in variables}.values()]

    def _compared(self) -> list[keras.Variable]:
        return [variable for variable in self._state() if tf.as_dtype(variable.dtype).is_floating]


class OwnTestStep(GivenAsKeras, Evaluation):
    """An `Evaluation` whose graph runs the model's own `test_step`."""

    def _prepare(self, batch: tuple[Any, ...]) -> Evaluate:
        runner = Runner(self._comm, self._model, self._model.test_step, self.takes_tuples)
        trial = _try_step(self._comm, self._model, runner, batch, self._trial)
        if self._trial is None:
            trial.tell(None)
        self._trial = trial
        return OwnTestGraph(self._comm, runner, trial).run


def _try_step(
    comm: Communicator, model: keras.Model, runner: "Runner", batch: tuple[Any, ...], before: Trial | None
) -> "OwnTrial":
    """Build all that a step uses, and ask what its values are of a batch. Every worker calls it."""
    build(comm, runner, batch)
    agreement.require_same_variables(comm, model.trainable_variables)
    hold_plain_metrics(model)
    trial = OwnTrial(comm, runner, before)
    trial.prepare(batch)
    trial.ask(batch)
    require_same_settings(comm, [f"model={type(model).__name__}", *trial.settings()])
    return trial


@dataclass(frozen=True)
class OwnPlan:
    """What a step of the model's own is made of, see `StepPlan`.

    Attributes:
        number: of plans that this step had before.
    """

    contents: Contents
    drift: Drift
    trial: "OwnTrial"
    number: int


def build(comm: Communicator, runner: Runner, batch: tuple[Any, ...]) -> None:
    """Create all variables that a step uses, on symbolic tensors: no row passes through the model."""
    specs = tf.nest.map_structure(spec_with_any_rows, batch)

    def run(*batch: Any) -> None:
        runner.run(batch, lambda _: None, tf.constant(0), assigns=False)

    for _ in range(BUILDS):
        before = runner.count_variables()
        error: Exception | None = None
        with comm.scope():
            try:
                trace(run, *specs)
            except Exception as failure:  # gradients of variables that have just been created
                error = failure
        if error is None or runner.count_variables() == before:
            break
    if error is not None:
        raise error


class OwnTrial(Trial):
    """Asks about the gradients, metrics, states and logs of a step of the model's own.

    Attributes:
        applies: the calls of optimizers that the step makes, in their order.
        values: its metrics, states and logs.
        assigned_weights: the trained variables that it assigns, by optimizers or itself.
    """

    is_random = False

    def __init__(self, comm: Communicator, runner: Runner, before: Trial | None) -> None:
        super().__init__(comm, before)
        self._runner = runner
        self.applies: list[Apply] = []

    def prepare(self, batch: tuple[Any, ...]) -> None:
        """Find the values there are."""

        def run(*batch: Any) -> OwnValues:
            self.applies.clear()
            ran = self._runner.run(batch, self.applies.append, tf.constant(0), assigns=False)
            self.is_random = self._runner.draws(ran.scope)
            updated = {id(v): v for apply in self.applies for v in apply.variables}
            self.assigned_weights = list((updated | ran.scope.weights).values())
            return OwnValues(self._runner.metrics, self._runner.states(ran.scope), list(ran.logs))

        self.values = trace(run, *tf.nest.map_structure(spec_with_any_rows, batch))
        self.kinds = [Kind.MEAN for _ in self.applies]

    def settings(self) -> list[str]:
        """Return what all workers must share, each as "name=value"."""
        updated = [[getattr(v, "path", v.name) for v in apply.variables] for apply in self.applies]
        return [f"optimizer calls={updated}", f"kinds={self.kinds}", f"values={self.values.settings()}"]

    def questions(self) -> list[str]:
        """Return the names of the values."""
        return [*(f"gradients {number}" for number in range(len(self.applies))), *self.values.questions()]

    def learn(self, evidence: Evidence) -> bool:
        """Learn which gradients are means, which are sums."""
        before = self.kinds
        self.kinds = [evidence.kind(f"gradients {number}") for number in range(len(self.applies))]
        return self.values.learn(evidence) or before != self.kinds

    def notes(self, micro_batch_size: int | None) -> list[str]:  # noqa: ARG002
        """Return what is known from all rows only."""
        gradients = [
            f"gradients for {a.optimizer.name}"
            for a, k in zip(self.applies, self.kinds, strict=True)
            if k is Kind.WHOLE
        ]
        names = [*gradients, *self.values.taken_as_means]
        return [taken_as_means(names)] if names else []

    def traced(self, batch: tuple[Any, ...], cut: tf.Tensor, has_parts: bool) -> dict[str, Asked]:
        """Run the step on the batch and on its parts; nothing is assigned."""
        whole = self._by_name(batch)
        if not has_parts:
            return {}
        rows = row_count(batch)
        parts = [
            self._by_name(tf.nest.map_structure(lambda tensor, ends=ends: rows_between(tensor, *ends), batch))
            for ends in ((tf.constant(0), cut), (cut, rows))
        ]
        return {name: Asked(Parts(value, *(part[name] for part in parts)), True) for name, value in whole.items()}

    def _by_name(self, batch: tuple[Any, ...]) -> dict[str, tf.Tensor]:
        applies: list[Apply] = []
        ran = self._runner.run(batch, applies.append, tf.constant(0), assigns=False)
        projected = {f"gradients {n}": _projected(apply.gradients) for n, apply in enumerate(applies)}
        return projected | self.values.by_name(ran)


def _projected(gradients: Sequence[Any]) -> tf.Tensor:
    """Return (2 v,) numbers that are linear in gradients, and tell a mean from a sum as well as all entries do."""
    found = []
    for gradient in gradients:
        if gradient is not None:
            flat = tf.reshape(tf.convert_to_tensor(gradient), [-1])
            wave = tf.cos(tf.cast(tf.range(tf.size(flat)), flat.dtype))
            found += [tf.reduce_sum(flat), tf.reduce_sum(flat * wave)]
    return tf.stack(found) if found else tf.zeros(0)


class Applied(NamedTuple):
    """One update of weights, the same on all workers: () float64 each, and `finite` () bool."""

    total: tf.Tensor
    squares: tf.Tensor
    largest: tf.Tensor
    nonfinite: tf.Tensor
    finite: tf.Tensor


@dataclass
class Reduction:
    """Sums gradients over the workers wherever a step calls an optimizer.

    Args:
        rows: () float32, how many rows this worker has; 0 if they are made up.
        kinds: of the gradients of each call, in their order.
    """

    comm: Communicator
    config: StepConfig
    rows: tf.Tensor
    kinds: Sequence[Kind]
    applied: list[Applied] = field(default_factory=list)
    has_nonfinite: tf.Tensor = field(default_factory=lambda: tf.constant(False))  # gradients of this worker's own

    def __call__(self, apply: Apply) -> None:
        """Sum the gradients, and let the optimizer go on with the gradient of the global batch."""
        self.apply_sums(apply, self.weighted(apply, self.rows))

    def weighted(self, apply: Apply, rows: tf.Tensor) -> list[Any]:
        """Return gradients as they add up: those of a mean times the rows they are of.

        Args:
            rows: () float32; those of made-up rows, of which there are 0, do not count, whatever they hold.
        """
        weight = tf.cast(rows > 0, rows.dtype) if self._kind() is Kind.SUM else rows

        def weigh(gradient: tf.Tensor) -> tf.Tensor:
            wide = tf.cast(gradient, tf.float64 if gradient.dtype == tf.float64 else tf.float32)
            return tf.where(weight > 0, wide * tf.cast(weight, wide.dtype), tf.zeros_like(wide))

        return [None if gradient is None else weigh(tf.convert_to_tensor(gradient)) for gradient in apply.gradients]

    def apply_sums(self, apply: Apply, sums: Sequence[Any]) -> None:
        """Sum over the workers what `weighted` gave, divide, and let the optimizer go on."""
        there = [n for n, gradient in enumerate(sums) if gradient is not None]
        layout = FlatLayout([apply.variables[n] for n in there])
        pieces = [*layout.flatten([sums[n] for n in there]), tf.cast(self.rows, layout.dtype)[tf.newaxis]]
        self.has_nonfinite |= ~tf.reduce_all([tf.reduce_all(tf.math.is_finite(piece)) for piece in pieces])
        total = self.comm.sum_within(joined(pieces))
        divisor = tf.ones_like(total[-1]) if self._kind() is Kind.SUM else tf.maximum(total[-1], 1)
        flat = total[:-1] / divisor
        finite = self._describe(apply, flat)
        gradients: list[Any] = [None] * len(sums)
        for n, gradient in zip(there, layout.unflatten([flat]), strict=True):
            gradients[n] = tf.cast(gradient, apply.variables[n].dtype)
        self._go_on(apply, gradients, finite)

    def _kind(self) -> Kind:
        """Return the kind of the gradients of the call that comes next."""
        number = len(self.applied)
        return self.kinds[number] if number < len(self.kinds) else Kind.MEAN

    def _describe(self, apply: Apply, flat: tf.Tensor) -> tf.Tensor:
        scale = loss_scale(apply.optimizer)
        wide = tf.cast(flat, tf.float64) / tf.cast(1.0 if scale is None else scale, tf.float64)
        nonfinite = tf.cast(tf.math.count_nonzero(~tf.math.is_finite(wide)), tf.float64)
        finite = tf.equal(nonfinite, 0)
        if self.applied:
            finite &= self.applied[-1].finite
        largest = tf.reduce_max(tf.abs(wide)) if flat.shape != [0] else tf.zeros((), tf.float64)
        self.applied.append(Applied(tf.reduce_sum(wide), tf.reduce_sum(tf.square(wide)), largest, nonfinite, finite))
        return finite

    def _go_on(self, apply: Apply, gradients: list[Any], finite: tf.Tensor) -> None:
        looks_itself = isinstance(apply.optimizer, keras.optimizers.LossScaleOptimizer)
        with outside_stateless_scope():
            if self.comm.backend == "tf":
                with without_summing(apply.optimizer):  # the gradients are summed already
                    apply.call(gradients)
                return
            if looks_itself or self.config.on_nonfinite == "apply":
                apply.call(gradients)
                return
            there = [n for n, gradient in enumerate(gradients) if gradient is not None]

            def update() -> None:
                inner = list(gradients)
                # Keras wants them all from one graph, be it the one of a branch.
                for n, tensor in zip(there, tf.identity_n([gradients[n] for n in there]), strict=True):
                    inner[n] = tensor
                apply.call(inner)

            tf.cond(finite, update, lambda: None)


class _StopHere(Exception):
    """Ends a pass where it has come to the call of an optimizer that is next."""


class Passes(NamedTuple):
    """A step of the model's own, taken on several micro-batches.

    Each call of an optimizer needs the gradients of all micro-batches before what follows it can be computed. So the
    step is run once for each call, up to there, on all micro-batches, and once more to its end, for metrics, states and
    logs. Every pass begins with the weights as they were before the step, and sees the updates that were made where
    they were made.
    """

    runner: Runner
    trial: OwnTrial
    reduction: Reduction
    worker: tf.Tensor
    micro_batch_size: int

    def run(self, batch: tuple[Any, ...], is_present: tf.Tensor) -> tf.Tensor:
        """Take the step. Returns (entries,) float64 the terms of `OwnValues`.

        Args:
            batch: this worker's rows, at least one.
            is_present: () bool, False if that is made up.
        """
        restored = self.trial.assigned_weights
        before = [tf.identity(variable.value) for variable in restored]
        updated: list[list[tf.Tensor]] = []
        places = tf.range(row_count(batch))

        def restore() -> None:
            for variable, value in zip(restored, before, strict=True):
                variable.assign(value)

        for number in range(len(self.trial.applies)):
            apply, sums = self._gradients(number, (batch, places), is_present, updated, restore)
            self.reduction.apply_sums(apply, sums)
            updated.append([tf.identity(tf.convert_to_tensor(variable)) for variable in apply.variables])

        def add(total: tf.Tensor, piece: Any, is_first: tf.Tensor, is_last: tf.Tensor) -> tf.Tensor:  # noqa: ARG001
            rows, numbers = piece
            part = self._part(numbers)
            restore()
            ran = self.runner.run(rows, self._replay(updated), self.worker, assigns=True, part=part)
            self.runner.keep_random_states(ran.scope, self.worker, part, is_last)
            count = tf.where(is_present, tf.cast(row_count(rows), tf.float64), 0.0)
            return total + self.trial.values.pack(ran, count)

        nothing = tf.zeros(self.trial.values.entries, tf.float64)
        return over_micro_batches(add, nothing, (batch, places), self.micro_batch_size)

    def _gradients(
        self,
        number: int,
        batch: Any,
        is_present: tf.Tensor,
        updated: Sequence[Sequence[tf.Tensor]],
        restore: Callable[[], None],
    ) -> tuple[Apply, list[Any]]:
        """Run all micro-batches up to a call of an optimizer. Returns it, and the weighted sums of its gradients."""
        expected, found = self.trial.applies[number], list[Apply]()
        there = [n for n, gradient in enumerate(expected.gradients) if gradient is not None]

        def stop(apply: Apply) -> None:
            found.append(apply)
            raise _StopHere

        def add(sums: list[tf.Tensor], part: Any, is_first: tf.Tensor, is_last: tf.Tensor) -> list[tf.Tensor]:  # noqa: ARG001
            rows, numbers = part
            restore()
            with contextlib.suppress(_StopHere):
                handler = self._replay(updated, stop)
                self.runner.run(rows, handler, self.worker, assigns=True, part=self._part(numbers))
            count = tf.where(is_present, tf.cast(row_count(rows), tf.float32), 0.0)
            weighted = self.reduction.weighted(found[-1], count)
            return [total + tf.cast(weighted[n], total.dtype) for total, n in zip(sums, there, strict=True)]

        shapes = [expected.variables[n] for n in there]
        wide = [tf.float64 if tf.as_dtype(variable.dtype) == tf.float64 else tf.float32 for variable in shapes]
        nothing = [tf.zeros(variable.shape, dtype) for variable, dtype in zip(shapes, wide, strict=True)]
        totals = over_micro_batches(add, nothing, batch, self.micro_batch_size)
        sums: list[Any] = [None] * len(expected.gradients)
        for n, total in zip(there, totals, strict=True):
            sums[n] = total
        return found[-1], sums

    def _replay(
        self, updated: Sequence[Sequence[tf.Tensor]], then: Callable[[Apply], None] | None = None
    ) -> Callable[[Apply], None]:
        """Return a handler that makes updates again that were made before, and hands on what comes after them."""
        calls = iter(updated)

        def handle(apply: Apply) -> None:
            values = next(calls, None)
            if values is None:
                if then is not None:
                    then(apply)
                return
            with outside_stateless_scope():
                for variable, value in zip(apply.variables, values, strict=True):
                    variable.assign(value)

        return handle

    def _part(self, numbers: tf.Tensor) -> tf.Tensor:
        """Return () int32 the number of a micro-batch."""
        return numbers[0] // self.micro_batch_size


class OwnTrainGraph:
    """A step of the model's own inside the compiled graph."""

    def __init__(
        self,
        comm: Communicator,
        runner: Runner,
        config: StepConfig,
        plan: OwnPlan,
        optimizers: dict[str, keras.optimizers.Optimizer],
    ) -> None:
        self._comm, self._runner, self._config, self._plan = comm, runner, config, plan
        self._optimizers, self._packing = optimizers, plan.contents.packing
        self._replicas = 0  # that were traced
        calls = len(plan.trial.applies)
        self._sizes = [len(Flags._fields) + 1, comm.size, calls * len(Applied._fields), comm.size * 2]
        self._sizes.append(plan.trial.values.entries)

    def run(self, batch: tuple[Any, ...], flags: tf.Tensor) -> StepOutput:
        """Take one step.

        Args:
            batch: this process's share.
            flags: (3,) float64, `Flags`.
        """
        trial = self._plan.trial
        with intercepted(list(self._optimizers.values())):
            restored = self._values_before() if self._comm.backend == "tf" else []
            own_flags = Flags(*tf.unstack(flags, len(Flags._fields)))
            total = self._comm.sum_over_workers(self._on_worker, (batch, own_flags))
            counts, nonfinite_workers, updates, drift, values = tf.split(total, self._sizes)
            rows, more, stop, _ = tf.unstack(counts)
            width = len(Applied._fields)
            applied = [
                Applied(*tf.unstack(updates[start : start + width], width))
                for start in range(0, width * len(trial.applies), width)
            ]
            finite = tf.reduce_all([one.finite > 0 for one in applied] or [True])
            is_applied = (rows > 0) & (finite | (self._config.on_nonfinite == "apply"))
            for variable, before in restored:
                variable.assign(tf.where(is_applied, variable.value, before))
            logs: dict[str, Any] = trial.values.settle(values, rows, is_applied)
            logs = self._in_order(logs | logs_of_metrics(self._runner, trial.values, batch))
        zero = tf.zeros((), tf.float64)
        norm = tf.sqrt(tf.add_n([one.squares for one in applied] or [zero]))
        found = {
            "gradient_sum": tf.add_n([one.total for one in applied] or [zero]),
            "gradient_norm": norm,
            "gradient_max": tf.reduce_max([one.largest for one in applied] or [zero]),
            "nonfinite": tf.add_n([one.nonfinite for one in applied] or [zero]),
        }
        packed = self._packing.pack(
            {
                **found,
                "loss": _loss_in(logs),
                "examples": rows,
                "weight": rows,
                "more": more,
                "stop": stop,
                "applied": is_applied,
                "drifted": self._plan.drift.differs([tf.reshape(drift, [self._comm.size, 2])]),
                "nonfinite_workers": nonfinite_workers,
            }
        )
        logs |= {name: found[name] for name in ("gradient_sum", "gradient_norm")}
        if len(applied) > 1:
            for name, one in zip(self._names(), applied, strict=True):
                logs |= {f"gradient_sum_{name}": one.total, f"gradient_norm_{name}": tf.sqrt(one.squares)}
        return StepOutput(packed, [], [], logs)

    def entries(self, output: StepOutput) -> GlobalGradientEntries | None:  # noqa: ARG002
        """Return nothing: gradients are given to optimizers, and not kept."""
        return None

    def _on_worker(self, batch: tuple[Any, ...], flags: Flags) -> tf.Tensor:
        """Run the step on one worker's rows. Returns all that is summed afterwards, (s,) float64."""
        worker, rows = self._comm.worker(), row_count(batch)
        # Of several replicas in this graph, each adds to the seed of the one before it.
        _add_to_seed(1 if self._replicas % self._comm.span else self._comm.rank + PART * self._plan.number)
        self._replicas += 1
        reduction = Reduction(self._comm, self._config, tf.cast(rows, tf.float32), self._plan.trial.kinds)
        batch = one_row_at_least(batch)
        if self._config.micro_batch_size is None:
            ran = self._runner.run(batch, reduction, worker, assigns=True)
            self._runner.keep_random_states(ran.scope, worker)
            values = self._plan.trial.values.pack(ran, tf.cast(rows, tf.float64))
        else:
            passes = Passes(self._runner, self._plan.trial, reduction, worker, self._config.micro_batch_size)
            values = passes.run(batch, rows > 0)
        updates = [tf.cast(value, tf.float64) for one in reduction.applied for value in one]
        zero = tf.zeros((), tf.float64)
        no_sums = LocalSums([], zero, zero, tf.zeros(0), tf.zeros(0))
        share = WorkerShare(worker, no_sums, zero, tf.equal(flags.compares_weights, 1))
        wide = tf.cast(rows, tf.float64)
        parts = [
            tf.stack([wide, flags.more, flags.stop, tf.zeros((), tf.float64)]),
            tf.one_hot(worker, self._comm.size, dtype=tf.float64) * tf.cast(reduction.has_nonfinite, tf.float64),
            tf.stack(updates) * tf.cast(tf.equal(worker, 0), tf.float64) if updates else tf.zeros(0, tf.float64),
            tf.reshape(tf.cast(self._plan.drift.of_worker(share)[0], tf.float64), [-1]),
            values,
        ]
        return tf.concat(parts, 0)

    def _in_order(self, logs: dict[str, Any]) -> dict[str, Any]:
        return {key: logs[key] for key in self._plan.trial.values.log_keys}

    def _values_before(self) -> list[tuple[keras.Variable, tf.Tensor]]:
        variables = {id(v): v for o in self._optimizers.values() for v in o.variables}
        variables |= {id(v): v for v in self._plan.trial.assigned_weights}
        return [(variable, tf.identity(variable.value)) for variable in variables.values()]

    def _names(self) -> list[str]:
        """Return the name of the optimizer of each call."""
        by_id = {id(optimizer): name for name, optimizer in self._optimizers.items()}
        names = [by_id.get(id(apply.optimizer), apply.optimizer.name).lstrip("_") for apply in self._plan.trial.applies]
        return [name if names.count(name) == 1 else f"{name}_{number}" for number, name in enumerate(names)]


class OwnTestGraph(NamedTuple):
    """An evaluation by the model's own `test_step` inside the compiled graph."""

    comm: Communicator
    runner: Runner
    trial: OwnTrial

    def run(self, batch: tuple[Any, ...], more: tf.Tensor) -> tuple[tf.Tensor, dict[str, tf.Tensor]]:
        """Evaluate one global batch. Returns the packed values and the logs of an `EvaluationReport`."""
        values = self.trial.values
        total = self.comm.sum_over_workers(self._on_worker, (batch, more))
        counts, packed = tf.split(total, [2, values.entries])
        rows, more = tf.unstack(counts)
        logs = values.settle(packed, rows, rows > 0) | logs_of_metrics(self.runner, values, batch)
        return PACKING.pack({"examples": rows, "more": more}), {key: logs[key] for key in values.log_keys}

    def _on_worker(self, batch: tuple[Any, ...], more: tf.Tensor) -> tf.Tensor:
        worker, rows = self.comm.worker(), tf.cast(row_count(batch), tf.float64)
        ran = self.runner.run(one_row_at_least(batch), lambda _: None, worker, assigns=False)
        self.runner.keep_random_states(ran.scope, worker)
        return tf.concat([tf.stack([rows, more]), self.trial.values.pack(ran, rows)], 0)


def logs_of_metrics(runner: Runner, values: OwnValues, batch: tuple[Any, ...]) -> dict[str, Any]:
    """Return the logs that follow from what metrics hold now."""
    wanted = values.logs_of_metrics
    if not wanted:
        return {}
    row = tf.nest.map_structure(lambda tensor: rows_of_zeros(1, tensor), batch)
    ran = runner.run(row, lambda _: None, tf.constant(0), assigns=False, zeroed=False)
    return {key: ran.logs[key] for key in wanted}


def _add_to_seed(number: int) -> None:
    """Let TensorFlow's own random numbers be others in this graph, as far as the user has seeded them."""
    graph = tf.compat.v1.get_default_graph()
    if not tf.executing_eagerly() and graph.seed is not None:
        graph.seed += number


def _loss_in(logs: dict[str, Any]) -> tf.Tensor:
    """Return the loss of a report: the log of that name, or the first whose name has it; NaN without one."""
    names = [name for name in logs if name == "loss"] or [name for name in logs if "loss" in name]
    return tf.cast(logs[names[0]], tf.float64) if names else tf.constant(float("nan"), tf.float64)


def _optimizers_in_scope(comm: Communicator, model: keras.Model) -> dict[str, keras.optimizers.Optimizer]:
    """Return the model's optimizers; under tf.distribute those that were created elsewhere are created again."""
    found = {}
    for held in optimizers_of(model):
        with comm.scope():
            found[held.name] = optimizer_in_scope(comm, held.optimizer, model)
        if found[held.name] is not held.optimizer:
            held.replace(found[held.name])
    return found
