"""The distributed step: the order of events.

    N = Σ_workers Σ_micro-batches Σ_examples (what the loss's reduction divides by)
    G = (1/N) Σ_workers Σ_micro-batches Σ_examples w · ∇loss(example)   +   ∇(regularisation), once

Every worker runs this; all the communication of a step is one sum of one vector:

    join      plan.py         once: what the step is made of; agreement.py: all workers mean the same, and start alike
    step      graph.py        local gradients, their one sum, its division, the optimizer: one compiled graph
    report    report.py       what came of it: one line from the root, and whoever listens
    guard     guards.py       whether it was skipped, the weights have drifted, or it is time to stop
"""

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, TypeAlias

import keras
import tensorflow as tf

import distgrad
from distgrad.collectives import agreement
from distgrad.collectives.communicator import Communicator
from distgrad.data.batch import any_rows, no_rows_like, one_row_like, symbolic, tensors
from distgrad.data.cursor import Position
from distgrad.errors import BadArgument, NonFiniteGradient, NoSamples, VersionMismatch
from distgrad.gradients.flat_vector import Layout
from distgrad.gradients.window_accumulator import accumulator_for
from distgrad.objective.extra_sums import Rider
from distgrad.objective.forward import Forward
from distgrad.objective.objective import Objective
from distgrad.reports.graph_statistics import Watch, chosen
from distgrad.reports.groups import pattern_of
from distgrad.reports.listeners import Listener, Listeners
from distgrad.reports.log_file import LogFile
from distgrad.reports.outputs import FORMATS, listeners_of
from distgrad.reports.report import StepReport, blame
from distgrad.reports.updates import Updates
from distgrad.step.drift import Drift
from distgrad.step.graph import StepGraph
from distgrad.step.guards import FLAGS, Guards
from distgrad.step.optimizer_scope import optimizer_in_scope
from distgrad.step.plan import Options, Plan

if TYPE_CHECKING:
    from distgrad.checkpoint.checkpoint import Checkpoint

Restore: TypeAlias = Callable[[Sequence[Any]], None]  # takes variables, and makes them the same on every worker


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

    Raises:
        BadArgument, UnsupportedLoss: on every worker, before anything is sent.
    """

    _trains = True
    _kind: type[StepGraph] = StepGraph

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
    ) -> None:
        _require(micro_batch_size is None or micro_batch_size > 0, "micro_batch_size", micro_batch_size, "1 or more")
        _require(reduction in ("mean", "sum"), "reduction", reduction, '"mean" or "sum"')
        _require(on_nonfinite in ("skip", "raise", "apply"), "on_nonfinite", on_nonfinite, '"skip", "raise" or "apply"')
        _require(log_format in FORMATS, "log_format", log_format, '"text", "json" or "live"')
        _require(max_skipped is None or max_skipped > 0, "max_skipped", max_skipped, "1 or more, or None")
        _require(check_every >= 0, "check_every", check_every, "0 or more")
        _require(log_every >= 0, "log_every", log_every, "0 or more")
        self.model, self.comm = model, comm
        self._objective = Objective(loss, model)
        self._forward = Forward(model, training=self._trains)
        self._own_riders: list[Rider] = []
        with comm.scope():
            self.optimizer = optimizer_in_scope(comm, keras.optimizers.get(optimizer), model)
        patterns = {label: pattern_of(label, text) for label, text in (groups or {}).items()}
        asked = (reduction, patterns, chosen(statistics), on_nonfinite, jit_compile)
        self._options = Options(micro_batch_size, *asked, trains=self._trains)
        self._guards = Guards(comm, check_every, max_skipped) if self._trains else Guards(comm, 0, None)
        self._log_every = log_every
        speaks = comm.is_root and self._trains
        self._listeners = listeners_of(log_every, log_format, log_file, listeners) if speaks else Listeners(())
        self.steps = 0  # how many were taken, before a resume included
        self.position = Position()
        self.checkpoint: Checkpoint | None = None  # what it was saved to or resumed from
        self._set_alike: Restore = comm.broadcast
        self._joined = self._alike = False
        self.run_eagerly = False  # without a graph, to look inside
        self.keeps_gradient = True  # so that reports can tell it entry by entry
        self._last: StepReport | None = None

    # ---- what a user calls

    def __call__(self, x: Any, y: Any = None, sample_weight: Any = None) -> StepReport:
        """Take one step on this worker's share of a global batch.

        Args:
            x, y, sample_weight: (b, ...) arrays or tensors, or nests of them; b may differ between workers and may
                be 0 on some.

        Returns:
            The report; the root has printed its line.

        Raises:
            NoSamples: b is 0 on every worker; nothing was applied.
            ModelMismatch, SettingsMismatch, VersionMismatch: at the first step, the workers differ; nothing was summed.
            Drifted: the weights are no longer the same on every worker.
            TooManySkipped: `max_skipped` steps in a row were skipped.
            Stopped: a signal asked for it; all workers have finished this step, and saved if they have a Checkpoint.
            NonFiniteGradient: with on_nonfinite="raise"; nothing was applied.
        """
        given = (x, y, sample_weight)
        return self._take(tensors(given[: 3 if sample_weight is not None else 2 if y is not None else 1]), more=None)

    def epoch(self, dataset: Iterable[Any]) -> Iterator[StepReport]:
        """Take a step for every batch (x, y) or (x, y, sample_weight), until the worker with most batches is done.

        A worker that has run out goes on contributing nothing, so nobody waits for ever. After `Checkpoint.resume`, the
        first epoch passes over the batches that had been taken of it.
        """
        self._listeners.begin(_length(dataset))
        coming, passed = self.position.begin(dataset)
        batches = (tensors(batch) for batch in coming)
        batch = next(batches, None)
        like = getattr(dataset, "element_spec", None) if passed is None else tensors(passed)
        nothing = no_rows_like(like if batch is None else batch)
        more = True
        while more:
            following = next(batches, None)
            report = self._take(nothing if batch is None else batch, more=following is not None)
            more = following is not None or report.more
            batch = following
            yield report

    @property
    def epochs(self) -> int:
        """How often `epoch` has come to its end, before a resume included."""
        return self.position.epochs

    @property
    def logs(self) -> Mapping[str, Any]:
        """What the last step told a fit."""
        return {} if self._last is None else self._last.keras_logs()

    def close(self) -> None:
        """Let the listeners finish what they are writing; the end of the process does, too."""
        self._listeners.close()

    def carry(self, rider: Rider) -> None:
        """Let something else be summed along with the gradients; before the first step."""
        self._own_riders.append(rider)

    def start_alike(self) -> None:
        """Before the next step, give every worker the root's weights and optimizer state again."""
        self._alike = False

    # ---- what a checkpoint asks for

    def variables(self) -> list[keras.Variable]:
        """The weights and the optimizer's state, the loss scale included; none before the model is built."""
        if not self.model.built:
            return []
        if not self._joined:
            self._variables = self._differentiated()
        return self._state()

    def go_to(self, step: int, position: Position, restore: Restore) -> None:
        """Count from another step and place in the data; before the next step, `restore` sets what all start from."""
        self.steps, self.position, self._set_alike, self._alike = step, position, restore, False

    def join(self, batch: tuple[Any, ...]) -> None:
        """Before the first step: make sure that all workers mean the same thing, start alike, and trace the step."""
        if not self._joined:
            self._join(batch)

    # ---- one step, from outside the graph

    def _take(self, batch: tuple[Any, ...], more: bool | None) -> StepReport:
        if self.checkpoint is not None:
            self.checkpoint.surface()
        self.join(batch)
        if not self._alike:
            self._broadcast()
        self._set_alike = self.comm.broadcast
        if self._last is not None:
            self._last.expire()
        compared = self._updates.before() if self._compares() else None
        self.comm.liveness.step = self.steps + 1
        began = time.perf_counter()
        try:
            values, gradient, logs = self.compiled(batch, self._guards.flags(bool(more), self.steps + 1))
        except tf.errors.OpError as error:
            raise self.comm.liveness.explain(error) from None
        seconds = time.perf_counter() - began
        self.steps += 1
        parts = (values, self._plan.contents, gradient, self._graph.places, logs)
        report = StepReport(self.steps, self.comm.size, seconds, *parts)
        self._last = report
        if more is not None:
            # Whoever has a batch itself need not wait to hear whether others do.
            self.position.advance(more or report.more)
        self._raise_if_bad(report, batch)
        if compared is not None:
            report.updates = self._updates.after(compared)
        self._listeners.hear(report)
        if self._guards.look(report, self._drift) and self._trains:
            self._stop()
        return report

    def _stop(self) -> NoReturn:
        if self.checkpoint is not None:
            self.checkpoint.save(self)
            self.checkpoint.wait()
        raise self._guards.stopped(self.steps, saved=self.checkpoint is not None)

    def _compares(self) -> bool:
        """Whether the next step's update is set against the weights."""
        logged = (self.steps + 1) % max(1, self._log_every) == 0
        return logged and self.comm.is_root and "updates" in self._plan.contents.asked

    def _raise_if_bad(self, report: StepReport, batch: tuple[Any, ...]) -> None:
        # Where no worker has rows, each one sees it in its own share: no value is fetched otherwise.
        if tf.nest.flatten(batch)[0].shape[0] == 0 and report.examples == 0:
            raise NoSamples(
                "no samples on any worker",
                "check the dataset's filters and that its batches have rows",
                step=report.step,
                everywhere=True,
            )
        if self._options.on_nonfinite == "raise" and report.nonfinite:
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
        _require_outside_scope()
        self.comm.liveness.introduce()
        with self.comm.scope():
            if not self.model.built:
                self.model(one_row_like(batch[0]))
        self._variables = self._differentiated()
        agreement.require_same_variables(self.comm, self._variables)  # before a loss meets a model of another shape
        like = keras.tree.map_structure(symbolic, batch)
        how = (self._objective, self._forward, self._options)
        self._plan = plan = Plan(self.comm, self.model, *how, self._variables, like, self._own_riders)
        agreement.require_same_settings(self.comm, [*plan.settings(), *self._guards.settings()])
        agreement.require_same(self.comm, _versions(), "version", VersionMismatch)
        self._drift, self._updates = Drift(self.comm, self._same), Updates(Layout(self._variables), self._variables)
        self._graph = self._graph_of(plan)
        self._broadcast()
        self.compiled: Any = self._graph.run
        if not self.run_eagerly:
            self.compiled = tf.function(self._graph.run, reduce_retracing=True, autograph=False)
            # The first trace takes any number of rows, so that a short last batch needs no second one.
            first = tf.nest.map_structure(any_rows, batch)
            self.compiled.get_concrete_function(first, tf.TensorSpec(FLAGS, tf.float64))
        if self._trains:
            self.comm.liveness.stop.listen(self.comm.liveness.timeout)
        self._joined = True

    def _graph_of(self, plan: Plan) -> StepGraph:
        watch = Watch(self.comm, plan.contents)
        ride_along = plan.riders.entries + self._drift.entries + watch.entries
        totals = accumulator_for(self.comm, plan.sent, ride_along, watch.describes, self._may_be_tables(plan))
        parts = (plan.objective, plan.forward, plan.riders, self._drift, watch, totals)
        policy = plan.policy(self.keeps_gradient)
        return self._kind(self.comm, self.model, self.optimizer, self._variables, *parts, policy)

    def _may_be_tables(self, plan: Plan) -> list[int]:
        return [] if self.run_eagerly else plan.may_be_tables()

    def _broadcast(self) -> None:
        self._set_alike(self._state())
        self._alike = True

    def _differentiated(self) -> list[keras.Variable]:
        return self.model.trainable_variables

    def _state(self) -> list[keras.Variable]:
        """What all workers start from."""
        with self.comm.scope():
            if not self.optimizer.built:
                self.optimizer.build(self._variables)
        return [*self.model.variables, *self.optimizer.variables]

    def _same(self) -> list[keras.Variable]:
        """What must stay the same on all workers: not the state of random numbers, and no counters of a layer's own."""
        floats = [variable for variable in self.model.variables if tf.as_dtype(variable.dtype).is_floating]
        return [*floats, *self.optimizer.variables] if self._trains else []


def _versions() -> list[str]:
    return [f"{package.__name__}={package.__version__}" for package in (tf, keras, distgrad)]


def _length(dataset: Iterable[Any]) -> int | None:
    """How many batches there are, as far as that is known."""
    try:
        return len(dataset)  # type: ignore[arg-type]
    except TypeError:
        return None


def _require_outside_scope() -> None:
    # Keras's optimizers and TensorFlow's tapes find no replica there.
    if tf.distribute.in_cross_replica_context():
        raise BadArgument(
            "a step, a fit or an evaluate within comm.scope()",
            "build the model in there, and call them outside of it",
            everywhere=True,
        )


def _require(holds: bool, name: str, value: Any, allowed: str) -> None:
    if not holds:
        raise BadArgument(f"{name}={value!r}", f"give {allowed}", everywhere=True)
