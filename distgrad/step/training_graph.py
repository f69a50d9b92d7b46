"""One training step inside the compiled graph, on every worker alike.

local sums       forward and backward passes, micro-batch by micro-batch, into one flat vector
one reduction    its sum over the workers, divided once by the N that came with it
gradient         the global gradient and its statistics, regularization included
update           the optimizer clips and applies it, unless the step is skipped
"""

import functools
from typing import Any, NamedTuple

import keras
import tensorflow as tf

from distgrad.collectives.communicator import Communicator
from distgrad.collectives.compression import Compression
from distgrad.collectives.moments import SQUARES
from distgrad.collectives.vectors import Division, Vector
from distgrad.data.batch import one_row_at_least, row_count, zero_unless
from distgrad.gradients.accumulate import LocalSums, MicroBatch, over_micro_batches
from distgrad.gradients.flat_vector import SCALARS, WEIGHT_TERMS, FlatLayout, Scalars
from distgrad.gradients.global_gradient import GlobalGradient, GradientReader
from distgrad.gradients.micro_batch import LossSum, Scaling, change_values, regularization, tensor_of
from distgrad.gradients.window_accumulator import accumulator_for
from distgrad.objective.batch_normalization import moments_over_workers
from distgrad.objective.extra_sums import Outcome, Pass, WorkerShare
from distgrad.objective.forward import AssignedValues, gradients_of, no_rows_of
from distgrad.objective.global_batch import GlobalBatch, OutputsToGather, gather
from distgrad.objective.states import keep_states_of_rows
from distgrad.reports.graph_clock import seconds_since, start_clock
from distgrad.reports.report import GlobalGradientEntries
from distgrad.step.config import StepConfig
from distgrad.step.plan import Batch, StepPlan
from distgrad.step.sharded_update import ShardedUpdate
from distgrad.step.update import adjust_loss_scale, apply_gradient, loss_scale


class Flags(NamedTuple):
    """A worker's part in one step besides its batch: bools, or within the graph () float64.

    Attributes:
        more: it has another batch after this one.
        stop: it was asked to stop.
    """

    more: Any
    stop: Any


class Share(NamedTuple):
    """One worker's rows of the global batch, within the graph.

    Attributes:
        worker: () int32, the worker's number.
        rows: () int32, how many.
        is_present: () bool, False if its rows are made up; None if they never are.
        whole: the global batch, if anything of the model needs it and it is gathered beforehand.
    """

    worker: tf.Tensor
    rows: tf.Tensor
    is_present: tf.Tensor | None
    whole: GlobalBatch | None


class StepOutput(NamedTuple):
    """The result of the compiled step.

    Attributes:
        values: the step's numbers, packed as `Contents.packing` says.
        blocks, touched: the global gradient, for reports that tell it entry by entry; empty if it is not kept.
        logs: the entries of Keras's logs.
    """

    values: tf.Tensor
    blocks: list[tf.Tensor]
    touched: list[tf.Tensor]
    logs: dict[str, tf.Tensor]


class TrainingGraph:
    """A training step, once the workers have agreed on it. Every worker makes one at the same time.

    Attributes:
        sent: layout of what a worker sends: the gradients of each group of losses, one after the other.
        layout: of the global gradient.
    """

    def __init__(
        self,
        comm: Communicator,
        optimizer: keras.optimizers.Optimizer,
        config: StepConfig,
        plan: StepPlan,
        *,
        sharded: ShardedUpdate | None,
        compression: Compression | None,
    ) -> None:
        self._comm, self._optimizer, self._config, self._plan = comm, optimizer, config, plan
        self._sharded, self._compression = sharded, compression
        groups = plan.objective.groups
        self.sent = FlatLayout([*plan.variables] * groups, plan.kinds.sparse)
        self.layout = self.sent if groups == 1 else FlatLayout(plan.variables)
        self._reader = GradientReader(self.sent, self.layout, plan.contents.by_variable)
        self._accumulator = accumulator_for(comm, self.sent, plan.extra.entries, plan.contents.by_worker)
        self._packing, self._places = plan.contents.packing, self.layout.places()

    def run(self, batch: tuple[Any, ...], flags: tf.Tensor, checksums: tf.Tensor) -> StepOutput:
        """Take one step.

        Args:
            batch: this process's share, (x, [y, [sample_weight]]).
            flags: (2,) float64, `Flags`.
            checksums: (workers, 2) float32, see `Drift.table`.
        """
        began, batch = self._start_clock(batch)
        # The only communication of a step, and its one division. Every worker of this process gets scalars whole.
        own_flags = Flags(*tf.unstack(flags, len(Flags._fields)))
        local_sums = functools.partial(self._local_sums, checksums)
        total = self._comm.sum_and_divide(local_sums, (batch, own_flags), self._division())
        packed, extra_sums = tf.split(total.undivided, [SCALARS, self._plan.extra.entries])
        scalars, extra = self.sent.unpack(packed), self._plan.extra.split(extra_sums)
        losses = self._plan.objective.means(
            LossSum(scalars.loss, scalars.weight), extra[self._plan.objective], self._plan.contents.divides
        )
        # A function of the weights alone, counted once; a `compute_loss` of the model's own has counted it.
        penalty = regularization([] if self._plan.objective.is_of_model else self._plan.variables)
        gradient = self._reader.read(total, losses.counts, penalty.gradients, self._scale())

        finite = tf.equal(gradient.statistics.nonfinite, 0)
        alike = ~self._plan.drift.differs(extra[self._plan.drift])
        applied = (scalars.examples > 0) & (finite | (self._config.on_nonfinite == "apply")) & alike
        self._update(gradient, finite, alike, applied)
        if self._compression is not None:
            self._compression.undo_unless(applied)
        loss, found = losses.loss + penalty.loss, gradient.statistics
        logged = losses.logged + penalty.loss
        outcome = Outcome(
            loss, logged, scalars.examples, losses.outputs, applied, found.gradient_sum, found.gradient_norm
        )
        logs = self._plan.extra.settle(extra, outcome)

        values = {**scalars._asdict(), **found._asdict(), "loss": loss, "applied": applied, "drifted": ~alike}
        values |= {"nonfinite_workers": total.nonfinite_workers, "by_variable": gradient.by_variable}
        if self._plan.workers is not None:
            values |= {"scale": self._scale(), "summed_squares": total.moments[SQUARES]}
            values |= {"summed_after": seconds_since(began, total.blocks), "worker_table": extra[self._plan.workers][0]}
        blocks, touched = (list(gradient.blocks), gradient.touched) if self._plan.keeps_gradient else ([], [])
        return StepOutput(self._packing.pack(values), blocks, touched, logs)

    # ---- one worker's share

    def _local_sums(self, checksums: tf.Tensor, batch: tuple[Any, ...], flags: Flags) -> Vector:
        """Return this worker's part of the sum: its gradients, scalars and extra sums as one flat vector."""
        worker, rows, is_present, outputs = self._comm.worker(), row_count(batch), None, self._plan.outputs
        takes_one_pass = self._plan.is_synchronized or (outputs is not None and self._config.micro_batch_size is None)
        if takes_one_pass:  # the others wait for this worker's pass, even if it has no rows
            is_present, batch = rows > 0, one_row_at_least(batch)
        began, batch = self._start_clock(batch)
        whole = None if outputs is None or takes_one_pass else self._gather(worker, batch, outputs)
        differentiate = functools.partial(self._differentiate, Share(worker, rows, is_present, whole))
        if self._config.jit_compile and not self._plan.is_synchronized and outputs is None:
            # XLA compiles neither communication nor what is as long as the global batch.
            differentiate = tf.function(differentiate, jit_compile=True, autograph=False)

        def add(sums: LocalSums, part: Any, is_first: tf.Tensor, is_last: tf.Tensor) -> LocalSums:
            return sums.plus(differentiate(*part), self._accumulator, is_first, is_last)

        nothing = LocalSums.zeros(
            self._accumulator, self._plan.extra.micro_batch_entries, self._plan.contents.by_worker
        )
        parts = (batch, () if whole is None else whole.start + tf.range(rows))
        if takes_one_pass:
            sums = add(nothing, parts, tf.constant(True), tf.constant(True))
        else:
            sums = over_micro_batches(add, nothing, parts, self._config.micro_batch_size)
        share = WorkerShare(worker, sums, began, checksums)
        scalars = self.sent.pack(Scalars(sums.loss, sums.weight, rows, flags.more, flags.stop))
        rest = tf.concat([scalars, sums.extra, self._plan.extra.of_worker(share, self.sent.dtype)], 0)
        return self._accumulator.vector(sums.gradients, rows > 0, rest)

    def _gather(self, worker: tf.Tensor, batch: tuple[Any, ...], outputs: OutputsToGather) -> GlobalBatch:
        """Run all micro-batches forward, and gather the outputs of all workers. Random states stay as they are."""
        x, y, sample_weight = Batch(*batch)
        forward, before = self._plan.forward, self._plan.forward.random_states()

        def run(x: Any) -> Any:
            y_pred, scope = forward.run(x, worker, self._plan.extra.zeroed)
            forward.keep_random_states(scope, worker)
            return y_pred

        assert self._config.micro_batch_size is not None
        y_pred = outputs.of_micro_batches(run, batch, self._config.micro_batch_size)
        forward.set_random_states(before)
        return gather(self._comm, outputs.of_pass(x, y, sample_weight, y_pred), row_count(x))

    def _differentiate(self, share: Share, batch: tuple[Any, ...], numbers: Any = ()) -> MicroBatch:
        """Run one micro-batch forward and backward.

        Args:
            share: the batch that it is a part of.
            numbers: (b,) int32, the numbers of the rows in it.
        """
        x, y, sample_weight = Batch(*batch)
        sources = [tensor_of(variable) for variable in self._plan.variables]
        worker, is_present, whole = share.worker, share.is_present, share.whole
        scale = loss_scale(self._optimizer)
        of_global = 1.0 if scale is None else row_count(x) / (self._comm.size * tf.maximum(share.rows, 1))
        scaling = Scaling(scale, of_global, of_means=self._divides_loss)
        with tf.GradientTape(persistent=self._plan.objective.groups > 1, watch_accessed_variables=False) as tape:
            tape.watch(sources)
            with moments_over_workers(self._comm, is_present):
                y_pred, scope = self._plan.forward.run(x, worker, self._plan.extra.zeroed, tape.watch)
            rows = zero_unless(is_present, row_count(x))
            if whole is not None:
                whole = whole._replace(start=numbers[0])
            elif self._plan.outputs is not None:
                whole = gather(self._comm, self._plan.outputs.of_pass(x, y, sample_weight, y_pred), rows)
            seen = Pass(x, y, sample_weight, y_pred, rows, scope, whole=whole, nothing=self._nothing(x, worker))
            found = self._plan.objective.losses(seen)
            losses = zero_unless(is_present, list(found.groups))
            targets = [scaling.target(loss) for loss in losses]
        gradients = [
            change_values(scaling.gradient_of_sum(gradient, loss), functools.partial(zero_unless, is_present))
            for target, loss in zip(targets, losses, strict=True)
            for gradient in gradients_of(tape, target, self._plan.variables, scope)
        ]
        self._plan.forward.keep_random_states(scope, worker)
        keep_states_of_rows(self._plan.states_of_rows, scope)
        extra = self._plan.extra.of_micro_batch(seen._replace(losses=found), self.sent.dtype)
        return MicroBatch(gradients, losses[0], zero_unless(is_present, extra))

    def _nothing(self, x: Any, worker: tf.Tensor) -> AssignedValues | None:
        """Return what a pass over no rows would assign, if anything needs it."""
        if not self._plan.extra.needs_nothing:
            return None
        return self._plan.forward.run(no_rows_of(x), worker, self._plan.extra.zeroed)[1]

    # ---- the reduction

    def _division(self) -> Division:
        by_variable = self._plan.contents.by_variable and self._plan.objective.groups == 1
        ranges = self.sent.ranges() if by_variable else []
        number = 0 if self._compression is None else self._compression.number
        return Division(SCALARS + self._plan.extra.entries, self._divisor(), ranges=ranges, compression=number)

    def _divisor(self) -> tf.Tensor:
        """Return the terms of the divisor: N times the loss scale, or that alone."""
        divides = self._plan.contents.divides and not self._divides_loss
        scalars = [0.0, *WEIGHT_TERMS] if divides else [1.0, *[0.0] * SCALARS]
        divisor = tf.constant([*scalars, *[0.0] * self._plan.extra.entries], tf.float64)
        return divisor if loss_scale(self._optimizer) is None else divisor * self._scale()

    @property
    def _divides_loss(self) -> bool:
        """True if N is known before there are gradients: then it divides the loss, and spares a pass over them."""
        all_at_once = self._comm.alone and self._config.micro_batch_size is None
        return (
            all_at_once
            and self._plan.contents.divides
            and self._plan.objective.groups == 1
            and not self._plan.contents.by_worker
        )

    def _scale(self) -> tf.Tensor:
        """Return () float64, the loss scale that gradients have until they are divided."""
        scale = loss_scale(self._optimizer)
        return tf.cast(1.0 if scale is None else scale, tf.float64)

    # ---- the update

    def _update(self, gradient: GlobalGradient, finite: tf.Tensor, alike: tf.Tensor, applied: tf.Tensor) -> None:
        if any(self._plan.kinds.exists):
            apply = self._apply_whole if self._sharded is None else self._sharded.apply
            tf.cond(applied, lambda: apply(gradient), lambda: None)
        adjust_loss_scale(self._optimizer, finite, alike)

    def _apply_whole(self, gradient: GlobalGradient) -> None:
        gradients = self.layout.unflatten(gradient.blocks, gradient.sparse)
        found = [one if exists else None for one, exists in zip(gradients, self._plan.kinds.exists, strict=True)]
        apply_gradient(self._optimizer, found, self._plan.variables)

    # ---- what is told of it

    def entries(self, output: StepOutput) -> GlobalGradientEntries | None:
        """Return the global gradient of a step that was taken, if it is kept."""
        return GlobalGradientEntries(output.blocks, output.touched, self._places) if output.blocks else None

    def _start_clock(self, batch: Any) -> tuple[tf.Tensor, Any]:
        return start_clock(batch) if self._plan.contents.by_worker else (tf.zeros((), tf.float64), batch)
