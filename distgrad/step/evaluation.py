"""Evaluation: the losses and metrics of the global batch in inference mode; nothing is differentiated or updated."""

import functools
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple, TypeAlias

import keras
import numpy as np
import tensorflow as tf

from distgrad.collectives.communicator import Communicator
from distgrad.collectives.vectors import Vector
from distgrad.data.batch import as_tensors, row_count
from distgrad.gradients.accumulate import GraphAccumulator, LocalSums, MicroBatch, over_micro_batches
from distgrad.gradients.flat_vector import SCALARS, FlatLayout, Scalars
from distgrad.gradients.micro_batch import LossSum, regularization_loss
from distgrad.objective.extra_sums import ExtraSum, ExtraSums, Outcome, Pass
from distgrad.objective.forward import Forward, no_rows_of
from distgrad.objective.global_batch import GlobalBatch, OutputsToGather, gather
from distgrad.objective.losses import Objective
from distgrad.objective.trial import Trial
from distgrad.reports.packing import Packing
from distgrad.step.config import StepConfig
from distgrad.step.distributed_step import require_samples, until_all_are_done
from distgrad.step.plan import Batch, outputs_to_gather, trace_model, try_model
from distgrad.step.same_weights import share_weights
from distgrad.step.start import begin, build_model, compile_for_any_rows, require_built_in_rows, require_same_settings

PACKING = Packing({"examples": (), "more": ()})


class EvaluationReport:
    """One global batch, as every worker sees it. Values are fetched when one of them is read.

    Args:
        values: (2,) float64, see PACKING.
        logs: the values of the metrics so far.
    """

    def __init__(self, values: tf.Tensor, logs: Mapping[str, Any]) -> None:
        self._values, self._logs = values, logs

    @property
    def examples(self) -> int:
        """Rows of the global batch."""
        return int(PACKING.unpack(np.asarray(self._values))["examples"])

    @property
    def more(self) -> bool:
        """True if any worker said that it has another batch."""
        return bool(PACKING.unpack(np.asarray(self._values))["more"])

    def keras_logs(self) -> dict[str, Any]:
        """Return what callbacks see."""
        return dict(self._logs)


# (this worker's rows, () float64 1 if it has more) -> (packed values, logs) of an `EvaluationReport`.
Evaluate: TypeAlias = Callable[[tuple[Any, ...], tf.Tensor], tuple[tf.Tensor, dict[str, tf.Tensor]]]


class Evaluation:
    """Evaluates global batches, one call each; see `DistributedStep` for the arguments."""

    def __init__(
        self,
        model: keras.Model,
        loss: Any,
        *,
        comm: Communicator,
        micro_batch_size: int | None = None,
        reduction: str = "mean",
        jit_compile: bool = False,
        uses_model_loss: bool = False,
    ) -> None:
        self._model, self._comm = model, comm
        self._config = StepConfig(micro_batch_size, reduction, jit_compile=jit_compile)
        self._objective = Objective(loss, model, training=False, uses_model_loss=uses_model_loss)
        self._forward = Forward(model, training=False)
        self._carried: list[ExtraSum] = []
        self._has_joined = False
        self._trial: Trial | None = None
        self.run_eagerly = False  # without a graph, to look inside
        self.steps = 0

    def __call__(self, x: Any, y: Any = None, sample_weight: Any = None) -> EvaluationReport:
        """Evaluate this worker's share of one global batch.

        Raises:
            NoSamples: it has no rows on any worker.
        """
        return self._take(as_tensors((x, y, sample_weight)), more=False)

    def epoch(self, dataset: Iterable[Any]) -> Iterator[EvaluationReport]:
        """Evaluate every batch, until the worker with most batches is done."""
        yield from until_all_are_done(self._take, dataset, getattr(dataset, "element_spec", None))

    def carry(self, extra: ExtraSum) -> None:
        """Sum something else along with the losses; to be called before the first batch."""
        self._carried.append(extra)

    def _take(self, batch: tuple[Any, ...], more: bool) -> EvaluationReport:
        if self._trial is not None and self._trial.goes_on and self._trial.ask(batch):
            self._has_joined = False
        self.join(batch)
        self._comm.liveness.step = self.steps + 1
        try:
            report = EvaluationReport(*self._compiled(batch, tf.constant(float(more), tf.float64)))
        except tf.errors.OpError as error:
            raise self._comm.liveness.explain(error) from None
        self.steps += 1
        require_samples(report, batch, self.steps)
        return report

    def join(self, batch: tuple[Any, ...]) -> None:
        """Before the first batch: make sure that all workers mean the same thing, start alike, and trace it."""
        if self._has_joined:
            return
        begin(self._comm)
        run = self._prepare(batch)
        share_weights(self._comm, self._model)
        self._compiled: Any = run
        if not self.run_eagerly:
            self._compiled, _ = compile_for_any_rows(run, self._model, batch, tf.TensorSpec((), tf.float64))
        self._has_joined = True

    def _prepare(self, batch: tuple[Any, ...]) -> Evaluate:
        """Build the model, and learn what its evaluation is made of. Every worker calls it."""
        build_model(self._comm, self._model, batch[0])
        require_built_in_rows(self._comm, self._model, batch, self._config.micro_batch_size)
        traced = trace_model(self._forward, self._objective, (), batch)
        sums = [self._objective, *self._carried]
        trial = try_model(self._comm, self._model, self._forward, traced, batch, sums=sums, before=self._trial)
        trial.tell(self._config.micro_batch_size)
        self._trial = trial
        divides = self._config.reduction == "mean" and self._objective.divides
        settings = [f"reduction={'mean' if divides else 'sum'}", f"micro_batch_size={self._config.micro_batch_size}"]
        require_same_settings(self._comm, [*settings, *self._objective.settings()])
        return EvaluationGraph(
            self._comm,
            self._model,
            self._objective,
            self._forward,
            ExtraSums(trial.sums),
            outputs_to_gather(self._model, trial, traced.specs),
            divides,
            self._config.micro_batch_size,
            self._config.jit_compile,
        ).run


class EvaluationGraph(NamedTuple):
    """An evaluation inside the compiled graph.

    Attributes:
        extra: all extra sums; the objective is among them.
        outputs: what is gathered of all workers before a loss is computed; None if nothing is.
        divides: True if the loss is divided by N.
    """

    comm: Communicator
    model: keras.Model
    objective: Objective
    forward: Forward
    extra: ExtraSums
    outputs: OutputsToGather | None
    divides: bool
    micro_batch_size: int | None
    jit_compile: bool

    def run(self, batch: tuple[Any, ...], more: tf.Tensor) -> tuple[tf.Tensor, dict[str, tf.Tensor]]:
        """Evaluate one global batch. Returns the packed values and the logs of an `EvaluationReport`."""
        total = self.comm.sum_over_workers(self._local_sums, (batch, more))
        scalars, extra = LAYOUT.unpack(total[:SCALARS]), self.extra.split(total[SCALARS:])
        losses = self.objective.means(LossSum(scalars.loss, scalars.weight), extra[self.objective], self.divides)
        penalized = [] if self.objective.is_of_model else self.model.trainable_variables
        penalty = regularization_loss(penalized)
        outcome = Outcome(
            losses.loss + penalty,
            losses.logged + penalty,
            scalars.examples,
            losses.outputs,
            applied=scalars.examples > 0,
        )
        logs = self.extra.settle(extra, outcome)
        return PACKING.pack(scalars._asdict()), logs

    def _local_sums(self, batch: tuple[Any, ...], more: tf.Tensor) -> Vector:
        """Return this worker's scalars and extra sums as one flat vector."""
        rows, accumulator, whole = row_count(batch), GraphAccumulator(LAYOUT), None
        worker = self.comm.worker()
        if self.outputs is not None:
            whole = self._gather(worker, batch, self.outputs)
        evaluate = functools.partial(self._evaluate, worker, whole)
        if self.jit_compile and whole is None:
            evaluate = tf.function(evaluate, jit_compile=True, autograph=False)

        def add(sums: LocalSums, part: Any, is_first: tf.Tensor, is_last: tf.Tensor) -> LocalSums:
            return sums.plus(evaluate(*part), accumulator, is_first, is_last)

        nothing = LocalSums.zeros(accumulator, self.extra.micro_batch_entries)
        parts = (batch, () if whole is None else whole.start + tf.range(rows))
        sums = over_micro_batches(add, nothing, parts, self.micro_batch_size)
        scalars = Scalars(sums.loss, sums.weight, rows, more, stop=tf.zeros((), tf.float64))
        return tf.concat([LAYOUT.pack(scalars), sums.extra], 0)

    def _gather(self, worker: tf.Tensor, batch: tuple[Any, ...], outputs: OutputsToGather) -> GlobalBatch:
        """Run all rows forward, and gather the outputs of all workers."""
        x, y, sample_weight = Batch(*batch)
        size = tf.maximum(row_count(x), 1) if self.micro_batch_size is None else self.micro_batch_size
        y_pred = outputs.of_micro_batches(lambda x: self.forward.run(x, worker, self.extra.zeroed)[0], batch, size)
        return gather(self.comm, outputs.of_pass(x, y, sample_weight, y_pred), row_count(x))

    def _evaluate(
        self, worker: tf.Tensor, whole: GlobalBatch | None, batch: tuple[Any, ...], numbers: Any = ()
    ) -> MicroBatch:
        """Run one micro-batch forward."""
        x, y, sample_weight = Batch(*batch)
        y_pred, scope = self.forward.run(x, worker, self.extra.zeroed)
        whole = None if whole is None else whole._replace(start=numbers[0])
        needs_nothing = self.extra.needs_nothing
        nothing = self.forward.run(no_rows_of(x), worker, self.extra.zeroed)[1] if needs_nothing else None
        seen = Pass(x, y, sample_weight, y_pred, row_count(x), scope, whole=whole, nothing=nothing)
        losses = self.objective.losses(seen)
        self.forward.keep_random_states(scope, worker)
        extra = self.extra.of_micro_batch(seen._replace(losses=losses), LAYOUT.dtype)
        return MicroBatch([], losses.groups[0], extra)


LAYOUT = FlatLayout([])  # no gradients: scalars and extra sums alone
