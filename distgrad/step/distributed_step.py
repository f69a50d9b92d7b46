"""`DistributedStep`: one training step over all workers, seen from outside the compiled graph.

    N = Σ_workers Σ_micro-batches Σ_examples (what the loss's reduction divides by)
    G = (1/N) Σ_workers Σ_micro-batches Σ_examples w · ∇loss(example)   +   ∇(regularization), once

Every worker runs this; all the communication of a step is one sum of one vector:

    join      plan.py             once: all workers agree on what the step is made of, and start from the same weights
    step      training_graph.py   local gradients, their one sum, its division, the optimizer: one compiled graph
    report    reports/report.py   one line from the root, and whoever listens
    check     guards.py           stop, skipped steps, weights that are no longer alike
"""

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn, Protocol, TypeAlias, TypeVar

import keras
import tensorflow as tf

from distgrad.collectives import agreement
from distgrad.collectives.communicator import Communicator
from distgrad.collectives.compression import Compression
from distgrad.data.batch import as_tensors, no_rows_like
from distgrad.data.cursor import DataCursor
from distgrad.errors import BadArgument, NonFiniteGradient, NoSamples
from distgrad.gradients.flat_vector import FlatLayout
from distgrad.objective.extra_sums import ExtraSum
from distgrad.objective.forward import is_float
from distgrad.objective.losses import Objective
from distgrad.objective.states import states_of_rows
from distgrad.objective.trial import Trial
from distgrad.reports.listeners import Listener, Listeners
from distgrad.reports.log_file import LogFile
from distgrad.reports.outputs import listeners_of
from distgrad.reports.report import GlobalGradientEntries, StepReport, blame
from distgrad.reports.statistics import Contents, chosen
from distgrad.reports.updates import Updates
from distgrad.step.assignments import Assignments
from distgrad.step.config import StepConfig, groups_of
from distgrad.step.drift import Drift
from distgrad.step.guards import Guards
from distgrad.step.optimizer_scope import optimizer_in_scope
from distgrad.step.plan import StepPlan, make_plan
from distgrad.step.sharded_update import ShardedUpdate
from distgrad.step.sharding import sharded_update
from distgrad.step.start import begin, build_model, compile_for_any_rows, require_built_in_rows
from distgrad.step.training_graph import Flags, StepOutput, TrainingGraph
from distgrad.step.wire import compression_for, take_next_step

Restore: TypeAlias = Callable[[Sequence[Any]], None]  # takes variables, and makes them the same on every worker


class Saves(Protocol):
    """The part of a checkpoint that a step uses."""

    def surface(self) -> None:
        """Warn once if what was saved could not be written."""

    def save(self, step: "DistributedStep") -> None:
        """Save a step as it is now."""

    def wait(self) -> None:
        """Wait until what was saved is on the disk."""


class Plan(Protocol):
    """What a step is made of, as far as it is seen from outside the graph."""

    @property
    def contents(self) -> Contents:
        """The contents of the reports."""

    @property
    def drift(self) -> Drift:
        """The comparison of the workers' weights."""

    @property
    def trial(self) -> Trial:
        """What is known of the model's values."""


class Graph(Protocol):
    """A step inside the compiled graph; see `TrainingGraph`."""

    def run(self, batch: tuple[Any, ...], flags: tf.Tensor, checksums: tf.Tensor) -> StepOutput:
        """Take one step."""

    def entries(self, output: StepOutput) -> GlobalGradientEntries | None:
        """Return the global gradient of a step that was taken, if it is kept."""


class DistributedStep:
    """One training step over all workers: gradients summed, divided once, applied alike everywhere.

    Args:
        model: a Keras model, the same on every worker; at the first step the root's weights are broadcast. Which
            variables are trainable is read then, too.
        loss: what `compile` takes (a name, a function, a Loss, or a list or dict of them for several outputs), or any
            callable (y_true, y_pred) -> per-example losses, shape (b,) or (b, ...).
        optimizer: a Keras optimizer or its name. Its clipping sees the gradient of the whole global batch.
        comm: what `distgrad.connect()` gave.
        micro_batch_size: rows differentiated at once; None takes a worker's whole share. Changes memory and speed,
            not the gradient.
        reduction: "mean" divides by N, "sum" does not.
        groups: {label: regular expression}, searched in the variables' paths; each adds statistics to the report.
        statistics: what else each report tells, see `StepReport.told`: some of "variables", "workers", "noise",
            "times", "updates", or "all".
        on_nonfinite: what NaN or infinity in G does on every worker: "skip" the update, "raise", or "apply" it.
        max_skipped: so many skipped steps in a row end the training; None skips for ever.
        check_every: every so many steps, weights and optimizer state are compared between the workers; 0 never does.
        log_every: print every so many steps; 0 never prints.
        log_format: "text" or "json" lines, or "live": a view that stays on the terminal.
        log_file: where every step is appended as a JSON line: a path, or a `distgrad.seeing.LogFile`.
        listeners: who hears every report, on the root alone: functions, or those of `distgrad.seeing`.
        jit_compile: compile a micro-batch's forward and backward pass with XLA.
        shard_update: True lets each worker update its own slice of the weights, and have the optimizer's state for that
            alone: under MPI on CPUs. "auto" does so where it is faster. The weights come out the same, and
            checkpoints are those of one process. Under `fit`, the root's optimizer has the whole state at the end, and
            where a callback may save it; in a loop, after `gather_optimizer`. At any other time it has none.
        compression: "bf16" sends gradients between hosts (under MPI) as bfloat16, half the bytes, and adds to each
            step's what rounding took away from the last one's; "auto" does so where it is faster, which the first
            steps find out; "none" does not. After a resume it begins with nothing to be added.

    Raises:
        BadArgument, UnsupportedLoss: on every worker, before anything is sent.
    """

    def __init__(
        self,
        model: keras.Model,
        loss: Any,
        optimizer: Any,
        *,
        comm: Communicator,
        micro_batch_size: int | None = None,
        reduction: str = "mean",
        groups: Mapping[str, str] | None = None,
        statistics: str | Iterable[str] = (),
        on_nonfinite: str = "skip",
        max_skipped: int | None = 100,
        check_every: int = 100,
        log_every: int = 1,
        log_format: str = "text",
        log_file: str | Path | LogFile | None = None,
        listeners: Sequence[Listener | Callable[[StepReport], Any]] = (),
        jit_compile: bool = False,
        shard_update: bool | str = "auto",
        compression: str = "none",
    ) -> None:
        self._config = StepConfig(
            micro_batch_size,
            reduction,
            groups_of(groups),
            chosen(statistics),
            on_nonfinite,
            max_skipped,
            check_every,
            log_every,
            log_format,
            jit_compile,
            shard_update,
            compression,
        )
        self.model, self.comm = model, comm
        self._objective = loss if isinstance(loss, Objective) else Objective(loss, model)
        self._extra: list[ExtraSum] = []
        with comm.scope():
            self.optimizer = optimizer_in_scope(comm, keras.optimizers.get(optimizer), model)
        self._guards = Guards(comm, self._config)
        outputs = listeners_of(log_every, log_format, log_file, listeners) if comm.is_root else Listeners(())
        self._listeners = outputs
        self.steps = 0  # how many were taken, before a resume included
        self.cursor = DataCursor()
        self.checkpoint: Saves | None = None  # where it was saved to or resumed from
        self._restore: Restore | None = None  # of what was saved, before the next step
        self._sharded: ShardedUpdate | None = None
        self._has_joined = self._is_in_sync = False
        self._trial: Trial | None = None
        self._compression: Compression | None = None
        self._first_trace: Any = None  # of the compiled step
        self.run_eagerly = False  # without a graph, to look inside
        self.keeps_gradient = True  # so that reports can tell it entry by entry
        self._last: StepReport | None = None

    # ---- what a user calls

    def __call__(self, x: Any, y: Any = None, sample_weight: Any = None) -> StepReport:
        """Take one step on this worker's share of a global batch, from the root's weights.

        Args:
            x, y, sample_weight: (b, ...) arrays or tensors, or nests of them; b may differ between workers and may
                be 0 on some.

        Returns:
            The report; the root has printed its line.

        Raises:
            BadArgument: it is called within a `tf.function`.
            NoSamples: b is 0 on every worker; nothing was applied.
            ModelMismatch, SettingsMismatch, VersionMismatch: at the first step, the workers differ; nothing was summed.
            GradientMismatch: a gradient's shape, rows or values are not its variable's; nothing was summed.
            Drifted: the weights are no longer the same on every worker, and the root's program has not set them.
            TooManySkipped: `max_skipped` steps in a row were skipped.
            Stopped: a signal asked for it; all workers have finished this step, and saved if they have a Checkpoint.
            NonFiniteGradient: with on_nonfinite="raise"; nothing was applied.
        """
        if not tf.executing_eagerly():
            raise BadArgument(
                "a step within a tf.function",
                "call it outside, it is compiled already; or use distgrad.all_reduce_gradients within the function",
                everywhere=True,
            )
        return self._take(as_tensors((x, y, sample_weight)), more=None)

    def epoch(self, dataset: Iterable[Any]) -> Iterator[StepReport]:
        """Take a step for every batch (x, y) or (x, y, sample_weight), until the worker with most batches is done.

        A worker that has run out goes on contributing nothing, so nobody waits for ever. After `Checkpoint.resume`, the
        first epoch passes over the batches that had been taken of it.
        """
        self._listeners.begin(_length(dataset))
        batches, passed = self.cursor.begin(dataset)
        like = getattr(dataset, "element_spec", None) if passed is None else as_tensors(passed)
        yield from until_all_are_done(self._take, batches, like)

    @property
    def epochs(self) -> int:
        """The number of times that `epoch` has come to its end, before a resume included."""
        return self.cursor.epochs

    @property
    def logs(self) -> Mapping[str, Any]:
        """The entries of Keras's logs after the last step."""
        return {} if self._last is None else self._last.keras_logs()

    def close(self) -> None:
        """Let the listeners finish what they are writing; the end of the process does, too."""
        self._listeners.close()

    def carry(self, extra: ExtraSum) -> None:
        """Sum something else along with the gradients; to be called before the first step."""
        self._extra.append(extra)

    def start_alike(self) -> None:
        """Before the next step, give every worker the root's weights and optimizer state again."""
        self._is_in_sync = False

    def shard_only_if_told(self) -> None:
        """Take shard_update="auto" for False, unless the first step is taken already."""
        if self._config.shard_update == "auto" and not self._has_joined:
            self._config = replace(self._config, shard_update=False)

    @property
    def is_sharded(self) -> bool:
        """True if each worker updates its own slice of the weights; known from the first step on."""
        return self._sharded is not None

    def gather_optimizer(self, everywhere: bool = False) -> None:
        """Give the root's optimizer its whole state, until the next step: to be saved with the model, for example.

        Where the update is not sharded, every worker's has it at all times. Every worker calls it.

        Args:
            everywhere: True gives it to every worker's optimizer.
        """
        if self._sharded is not None:
            self._sharded.state.gather(everywhere)

    # ---- what a checkpoint asks for

    def variables(self) -> list[keras.Variable]:
        """Return the weights and the optimizer's state, the loss scale included; none before the model is built.

        Where the update is sharded, only the root has all of the state, and only after `gather_optimizer`.
        """
        return self._state() if self.model.built else []

    def go_to(self, step: int, cursor: DataCursor, restore: Restore) -> None:
        """Count from another step and place in the data.

        Args:
            restore: called once before the next step with `variables()`: sets them to the same values on every worker.
        """
        self.steps, self.cursor, self._restore, self._is_in_sync = step, cursor, restore, False
        if self._sharded is not None:
            self._sharded.state.build_whole()
        if self._compression is not None:
            self._compression.sums.forget()

    def join(self, batch: tuple[Any, ...]) -> None:
        """Before the first step: make sure that all workers mean the same thing, start alike, and trace the step."""
        if not self._has_joined:
            self._join(batch)

    # ---- one step

    def _take(self, batch: tuple[Any, ...], more: bool | None) -> StepReport:
        if self.checkpoint is not None:
            self.checkpoint.surface()
        self.join(batch)
        if self._plan.trial.goes_on and self._plan.trial.ask(batch):
            self._join(batch)
        self._prepare_state()
        if self._last is not None:
            self._last.expire()
        before = self._updates.before() if self._compares_updates() else None
        report = self._last = self._run_from_same_weights(batch, more)
        if more is not None:
            # Whoever has a batch itself need not wait to hear whether others do.
            self.cursor.advance(more or report.more)
        self._raise_if_bad(report, batch)
        if before is not None:
            report.updates = self._updates.after(before)
        self._listeners.hear(report)
        if self._guards.check(report, self._plan.drift):
            self._stop()
        return report

    def _run_from_same_weights(self, batch: tuple[Any, ...], more: bool | None) -> StepReport:
        """Run the compiled step; again, if the root's program had set weights that the others did not have."""
        report = self._run(batch, more)
        if self._plan.drift.was_assigned_on_root(report):
            self._synchronize()
            self.steps -= 1
            report = self._run(batch, more)
        if self._compression is not None:
            take_next_step(self.comm, self._compression)
        return report

    def _run(self, batch: tuple[Any, ...], more: bool | None) -> StepReport:
        """Run the compiled step."""
        self.comm.liveness.step = self.steps + 1
        flags = self._guards.flags(bool(more))
        checksums = self._plan.drift.table(self._guards.compares(self.steps + 1))
        began = time.perf_counter()
        try:
            output = self._call(batch, flags, checksums)
        except tf.errors.OpError as error:
            raise self.comm.liveness.explain(error) from None
        seconds = time.perf_counter() - began
        self.steps += 1
        gradient = self._graph.entries(output)
        contents = self._plan.contents
        return StepReport(self.steps, self.comm.size, seconds, output.values, contents, gradient, output.logs)

    def _call(self, batch: tuple[Any, ...], flags: tf.Tensor, checksums: tf.Tensor) -> StepOutput:
        """Call the compiled step: its first trace, if that fits, which spares TensorFlow the search for one."""
        if self._first_trace is not None:
            try:
                return self._first_trace(batch, flags, checksums)
            except TypeError:  # a batch of another structure, dtype or shape
                self._first_trace = None
        return self.compiled(batch, flags, checksums)

    def _stop(self) -> NoReturn:
        if self.checkpoint is not None:
            self.checkpoint.save(self)
            self.checkpoint.wait()
        raise self._guards.stopped(self.steps, saved=self.checkpoint is not None)

    def _compares_updates(self) -> bool:
        """Return True if the next step's update is compared with the weights."""
        is_logged = (self.steps + 1) % max(1, self._config.log_every) == 0
        return is_logged and self.comm.is_root and "updates" in self._plan.contents.asked

    def _raise_if_bad(self, report: StepReport, batch: tuple[Any, ...]) -> None:
        require_samples(report, batch, report.step)
        if self._config.on_nonfinite == "raise" and report.nonfinite:
            variable = next(row.path for row in report.table() if row.nonfinite)
            raise NonFiniteGradient(
                f"{blame(report)}, first in variable {variable}",
                "lower the learning rate or clip, or let on_nonfinite='skip' leave such steps out",
                rank=report.nonfinite_ranks[0] if report.nonfinite_ranks else None,
                step=report.step,
                everywhere=True,
            )

    # ---- once, before the first step

    def _join(self, batch: tuple[Any, ...]) -> None:
        begin(self.comm)
        self._plan, self._graph = self._prepare(batch)
        self._trial = self._plan.trial
        variables = self.model.trainable_variables
        self._updates = Updates(FlatLayout(variables), variables)
        graph = self._graph
        self._synchronize()
        self.compiled: Any = graph.run
        self._first_trace = None
        if not self.run_eagerly:
            others = tf.TensorSpec(len(Flags._fields), tf.float64), tf.TensorSpec((self.comm.size, 2))
            self.compiled, self._first_trace = compile_for_any_rows(graph.run, self.model, batch, *others)
        self.comm.liveness.stop.listen(self.comm.liveness.timeout)
        self._has_joined = True

    def _prepare(self, batch: tuple[Any, ...]) -> tuple[Plan, Graph]:
        """Build the model, and learn what a step of it is made of. Every worker calls it."""
        build_model(self.comm, self.model, batch[0])
        require_built_in_rows(self.comm, self.model, batch, self._config.micro_batch_size)
        variables = self.model.trainable_variables
        agreement.require_same_variables(self.comm, variables)  # before a loss meets a model of another shape
        plan = make_plan(
            self.comm,
            self.model,
            self._objective,
            self._config,
            batch,
            extra=self._extra,
            drift=Drift(self.comm, self._compared, Assignments(self._compared_of_model())),
            is_eager=self.run_eagerly,
            keeps_gradient=self.keeps_gradient,
            before=self._trial,
        )
        if not self._has_joined:
            dtype = FlatLayout(plan.variables).dtype
            self._compression = compression_for(self.comm, self._config.compression, dtype)
        self._sharded = self._shard(plan)
        plan = plan if self._sharded is None else plan.without_sparse()
        graph = TrainingGraph(
            self.comm, self.optimizer, self._config, plan, sharded=self._sharded, compression=self._compression
        )
        return plan, graph

    def _shard(self, plan: StepPlan) -> ShardedUpdate | None:
        if self._sharded is not None:  # a plan that has changed, in the midst of a training
            self._sharded.state.gather(everywhere=False)
        return sharded_update(
            self.comm,
            self.optimizer,
            self._config.shard_update,
            plan.variables,
            plan.kinds.exists,
            has_sparse=bool(plan.kinds.sparse),
        )

    def _prepare_state(self) -> None:
        """Before a step: let all workers start alike, if they are to, and each have its own part of the state."""
        if not self._is_in_sync:
            self._synchronize()
        elif self._sharded is not None:
            self._sharded.state.release()
        self._restore = None

    def _synchronize(self) -> None:
        """Give all workers the same weights and optimizer state."""
        if self._restore is not None:
            if self._sharded is not None:
                self._sharded.state.build_whole()
            self._restore(self._state())
        elif self._sharded is None:
            self.comm.broadcast(self._state())
        else:
            self.comm.broadcast([*self._weights(), *self._sharded.shared])
        if self._sharded is not None:
            self._sharded.start()
        self._plan.drift.forget_assignments()
        self._is_in_sync = True

    def _weights(self) -> list[keras.Variable]:
        of_rows = set(map(id, states_of_rows(self.model)))
        return [variable for variable in self.model.variables if id(variable) not in of_rows]

    def _state(self) -> list[keras.Variable]:
        with self.comm.scope():
            if not self.optimizer.built and self._sharded is None:
                self.optimizer.build(self.model.trainable_variables)
        return [*self._weights(), *self.optimizer.variables]

    def _compared(self) -> list[keras.Variable]:
        """Return what must stay the same on all workers: no random numbers, and no counters of layers."""
        of_optimizer = self.optimizer.variables if self._sharded is None else self._sharded.shared
        return [*self._compared_of_model(), *of_optimizer]

    def _compared_of_model(self) -> list[keras.Variable]:
        of_rows = set(map(id, states_of_rows(self.model)))
        return [v for v in self.model.variables if is_float(v) and id(v) not in of_rows]


class Reported(Protocol):
    """The report of one step or evaluation."""

    @property
    def more(self) -> bool:
        """True if any worker has another batch."""


Report = TypeVar("Report", bound=Reported)


def until_all_are_done(
    take: Callable[[tuple[Any, ...], bool], Report], batches: Iterable[Any], like: Any
) -> Iterator[Report]:
    """Take a step for every batch, until the worker with most batches is done.

    A worker that has run out goes on with empty batches, which contribute nothing.

    Args:
        take: (batch, True if another follows) -> the step's report.
        batches: (x, y) or (x, y, sample_weight) each.
        like: a batch, or its `element_spec`, for a worker that has none; None if it is not known.
    """
    coming = map(as_tensors, batches)
    batch = next(coming, None)
    nothing = no_rows_like(like if batch is None else batch)
    more = True
    while more:
        following = next(coming, None)
        report = take(nothing if batch is None else batch, following is not None)
        # Whoever has a batch itself need not wait to hear whether others do.
        more = following is not None or report.more
        batch = following
        yield report


def require_samples(report: Any, batch: tuple[Any, ...], step: int) -> None:
    """Check that some worker had rows.

    Raises:
        NoSamples: none had; every worker finds so in its own share: no value is fetched otherwise.
    """
    if tf.nest.flatten(batch)[0].shape[0] == 0 and report.examples == 0:
        raise NoSamples(
            "no samples on any worker",
            "check the dataset's filters and that its batches have rows",
            step=step,
            everywhere=True,
        )


def _length(dataset: Iterable[Any]) -> int | None:
    """Return how many batches there are, as far as that is known."""
    try:
        return len(dataset)  # type: ignore[arg-type]
    except TypeError:
        return None
