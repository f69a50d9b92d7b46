"""Training and evaluation by a `train_step` or `test_step` of the user's own, over all workers.

ask    own_trial.py        what its gradients, metrics, states and logs are of a batch
step   own_step.py         on each worker's rows; own_passes.py, on micro-batches
sum    own_reduction.py    one for each call of an optimizer, and here one for all the rest
"""

import functools
from dataclasses import dataclass
from typing import Any, NamedTuple

import keras
import tensorflow as tf

from distgrad.collectives import agreement
from distgrad.collectives.communicator import Communicator
from distgrad.data.batch import one_row_at_least, row_count, rows_of_zeros
from distgrad.errors import note, warn
from distgrad.fit.own_passes import Passes
from distgrad.fit.own_reduction import Applied, Reduction
from distgrad.fit.own_step import PART, Runner, intercepted, optimizers_of
from distgrad.fit.own_trial import OwnTrial, build
from distgrad.fit.own_values import OwnValues
from distgrad.gradients.accumulate import LocalSums
from distgrad.gradients.checks import require_fitting
from distgrad.objective.extra_sums import WorkerShare
from distgrad.objective.metrics import hold_plain_metrics
from distgrad.objective.trial import Trial
from distgrad.reports.report import GlobalGradientEntries
from distgrad.reports.statistics import Contents
from distgrad.step.config import StepConfig
from distgrad.step.distributed_step import DistributedStep
from distgrad.step.drift import Drift
from distgrad.step.evaluation import PACKING, Evaluate, Evaluation
from distgrad.step.optimizer_scope import optimizer_in_scope
from distgrad.step.start import require_same_settings
from distgrad.step.training_graph import Flags, StepOutput


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
        if self._config.shard_update is True and self._plans == 0 and self.comm.is_root:
            warn(f"the update is not sharded: {type(self.model).__name__}.train_step is the model's own")
        runner = Runner(self.comm, self.model, self.model.train_step, self.takes_tuples)
        optimizers = _optimizers_in_scope(self.comm, self.model)
        with intercepted(list(optimizers.values())):
            trial = _try_step(self.comm, self.model, runner, batch, self._trial)
        trial.tell(self._config.micro_batch_size)
        unused = _unused(self._config)
        if unused and self._plans == 0 and self.comm.is_root:
            note(f"{', '.join(unused)}: without effect on a train_step of the model's own; its logs tell the gradients")
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
        trial.tell(None)
        self._trial = trial
        return OwnTestGraph(self._comm, runner, trial).run


def _unused(config: StepConfig) -> list[str]:
    """Return the arguments of `DistributedStep` that were given and that a step of the model's own has no use for."""
    given = {"groups": config.groups, "statistics": config.statistics, "jit_compile": config.jit_compile}
    others = {"reduction": config.reduction != "mean", "compression": config.compression == "bf16"}
    return [name for name, value in (given | others).items() if value]


def _try_step(
    comm: Communicator, model: keras.Model, runner: "Runner", batch: tuple[Any, ...], before: Trial | None
) -> "OwnTrial":
    """Build all that a step uses, and ask what its values are of a batch. Every worker calls it."""
    build(comm, runner, batch)
    agreement.require_same_variables(comm, model.trainable_variables)
    hold_plain_metrics(model)
    trial = OwnTrial(comm, runner, before)
    trial.prepare(batch)
    gradients = [gradient for apply in trial.applies for gradient in apply.gradients]
    require_fitting(comm, gradients, [variable for apply in trial.applies for variable in apply.variables])
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

    def run(self, batch: tuple[Any, ...], flags: tf.Tensor, checksums: tf.Tensor) -> StepOutput:
        """Take one step.

        Args:
            batch: this process's share.
            flags: (2,) float64, `Flags`.
            checksums: (workers, 2) float32, see `Drift.table`.
        """
        trial = self._plan.trial
        with intercepted(list(self._optimizers.values())):
            restored = self._values_before() if self._comm.backend == "tf" else []
            own_flags = Flags(*tf.unstack(flags, len(Flags._fields)))
            total = self._comm.sum_over_workers(functools.partial(self._on_worker, checksums), (batch, own_flags))
            counts, nonfinite_workers, updates, drift, values = tf.split(total, self._sizes)
            rows, more, stop = tf.unstack(counts)
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

    def _on_worker(self, checksums: tf.Tensor, batch: tuple[Any, ...], flags: Flags) -> tf.Tensor:
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
        share = WorkerShare(worker, no_sums, zero, checksums)
        wide = tf.cast(rows, tf.float64)
        parts = [
            tf.stack([wide, flags.more, flags.stop]),
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
