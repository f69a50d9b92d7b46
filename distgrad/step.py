"""The distributed step: the order of events.

    N = Σ_workers Σ_micro-batches Σ_examples (what the loss's reduction divides by)
    G = (1/N) Σ_workers Σ_micro-batches Σ_examples w · ∇loss(example)   +   ∇(regularisation), once

Every worker runs this; all the communication of a step is one sum of one vector:

    local_sums            gradient.py, accumulate.py    my share, micro-batch by micro-batch -> one flat vector
    sum_and_divide        communicators/                its sum over the workers, divided once, by the N that came along
    apply                 update.py                     the optimizer clips and applies G, on every worker alike
    report                report.py                     one line from the root
"""

import functools
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, TypeAlias

import keras
import tensorflow as tf

import distgrad
from distgrad import agreement
from distgrad.accumulate import accumulate
from distgrad.batch import (
    any_rows,
    no_rows_like,
    one_row_at_least,
    one_row_like,
    row_count,
    symbolic,
    tensors,
    zero_unless,
)
from distgrad.communicators import Communicator, DividedSum, Vector
from distgrad.divided import Divided, touched
from distgrad.drift import Drift
from distgrad.errors import BadArgument, NonFiniteGradient, NoSamples, VersionMismatch, warn
from distgrad.forward import Forward, MovingStatistics
from distgrad.gradient import Gradient, GradientSum, changed, micro_batch_sums, regularisation
from distgrad.groups import members_of, pattern_of
from distgrad.guards import FLAGS, Guards
from distgrad.layout import LANES, WEIGHT, Layout, Place
from distgrad.normalisation import over_workers, require_single_pass, synchronised
from distgrad.objective import Objective
from distgrad.position import Position
from distgrad.report import StepReport, blame
from distgrad.riders import Outcome, Pass, Rider, Riders
from distgrad.seeing.listeners import Listener, Listeners
from distgrad.seeing.logfile import LogFile
from distgrad.seeing.told import Contents
from distgrad.seeing.updates import Updates
from distgrad.seeing.watch import Watch, chosen
from distgrad.seeing.where import FORMATS, listeners_of
from distgrad.sums import vector_of
from distgrad.tables import tables_of
from distgrad.update import adjust_loss_scale, apply_gradient, loss_scale

if TYPE_CHECKING:
    from distgrad.checkpoint import Checkpoint

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
            self.optimizer = comm.adopt(keras.optimizers.get(optimizer), model)
        self._micro_batch_size = micro_batch_size
        self._reduction = reduction
        self._groups = {label: pattern_of(label, text) for label, text in (groups or {}).items()}
        self._statistics = chosen(statistics)
        self._on_nonfinite = on_nonfinite
        self._guards = Guards(comm, check_every, max_skipped) if self._trains else Guards(comm, 0, None)
        self._log_every = log_every
        speaks = comm.is_root and self._trains
        self._listeners = listeners_of(log_every, log_format, log_file, listeners) if speaks else Listeners(())
        self._jit_compile = jit_compile
        self.steps = 0  # how many were taken, before a resume included
        self.position = Position()
        self.checkpoint: Checkpoint | None = None  # what it was saved to or resumed from
        self._set_alike: Restore = comm.broadcast
        self._joined = self._alike = False
        self.run_eagerly = False  # without a graph, to look inside
        self.keeps_gradient = True  # so that reports can tell it entry by entry
        self._has_gradient: list[bool] | None = None
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
        self.comm.step = self.steps + 1
        began = time.perf_counter()
        try:
            values, gradient, logs = self.compiled(batch, self._guards.flags(bool(more), self.steps + 1))
        except tf.errors.OpError as error:
            raise self.comm.reason(error) from None
        seconds = time.perf_counter() - began
        self.steps += 1
        report = StepReport(self.steps, self.comm.size, seconds, values, self._contents, gradient, self._places, logs)
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
        return logged and self.comm.is_root and "updates" in self._contents.asked

    def _raise_if_bad(self, report: StepReport, batch: tuple[Any, ...]) -> None:
        # Where no worker has rows, each one sees it in its own share: no value is fetched otherwise.
        if tf.nest.flatten(batch)[0].shape[0] == 0 and report.examples == 0:
            raise NoSamples(
                "no samples on any worker",
                "check the dataset's filters and that its batches have rows",
                step=report.step,
                everywhere=True,
            )
        if self._on_nonfinite == "raise" and report.nonfinite:
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
        self.comm.introduce()
        with self.comm.scope():
            if not self.model.built:
                self.model(one_row_like(batch[0]))
        self._variables = self._differentiated()
        agreement.require_same_variables(self.comm, self._variables)  # before a loss meets a model of another shape
        self._synchronised = synchronised(self.model) if self._trains else []
        require_single_pass(self._synchronised, self._micro_batch_size)
        self._prepare(keras.tree.map_structure(symbolic, batch))
        sent = Layout(self._variables * self._objective.groups)  # of each group's sums
        self._contents = self._reported()
        self._watch, self._updates = Watch(self.comm, self._contents), Updates(Layout(self._variables), self._variables)
        agreement.require_same_settings(self.comm, self._settings())
        agreement.require_same(self.comm, _versions(), "version", VersionMismatch)
        self._drift = Drift(self.comm, self._same)
        ride_along = self._riders.entries + self._drift.entries + self._watch.entries
        self._totals = self.comm.totals(sent, ride_along, self._watch.describes, self._may_be_tables())
        self._broadcast()
        self.compiled: Any = self._one_step
        if not self.run_eagerly:
            self.compiled = tf.function(self._one_step, reduce_retracing=True, autograph=False)
            # The first trace takes any number of rows, so that a short last batch needs no second one.
            first = tf.nest.map_structure(any_rows, batch)
            self.compiled.get_concrete_function(first, tf.TensorSpec(FLAGS, tf.float64))
        if self._trains:
            self.comm.stop.listen(self.comm.timeout)
        self._joined = True

    def _prepare(self, like: tuple[Any, ...]) -> None:
        """Learn from a batch of `KerasTensor`s what the model will give, and who rides along."""

        def look(seen: Pass) -> None:
            are_sums: list[bool] = []
            if seen.scope.losses:
                with tf.init_scope(), self.comm.scope():
                    are_sums = self._forward.added_sums(like[0])
            self._objective.learn(seen, are_sums)

        y_pred, moving = self._forward.try_on(like, look)
        self._divides = self._reduction == "mean" and self._objective.divides
        self._riders = Riders([self._objective, MovingStatistics(moving if self._trains else []), *self._own_riders])
        x, y, sample_weight = (*like, None, None)[:3]
        self._riders.prepare(Pass(x, y, sample_weight, y_pred, keras.KerasTensor(()), keras.StatelessScope()))

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

    def _settings(self) -> list[str]:
        policy = [f"reduction={'mean' if self._divides else 'sum'}", f"on_nonfinite={self._on_nonfinite}"]
        policy += [f"micro_batch_size={self._micro_batch_size}", *self._guards.settings()]
        asked = f"statistics={','.join(sorted(self._contents.asked))}"
        described = f"by variable={self._contents.by_variable}"
        return [*policy, asked, described, *self._objective.settings()]

    def _reported(self) -> Contents:
        """What the reports will tell."""
        variables = [(variable.path, tuple(variable.shape)) for variable in self._variables]
        groups = members_of(self._groups, [path for path, _ in variables], self.comm) if self._trains else {}
        return Contents(variables, groups, self.comm.size, self.comm.rank, self._asked(), self._divides)

    def _asked(self) -> frozenset[str]:
        """What statistics there will be of those that were asked for."""
        of_one_sum = self._statistics & {"workers", "noise"}
        if not self._trains:
            return frozenset()
        if self._objective.groups == 1 or not of_one_sum:
            return self._statistics
        if self.comm.is_root:
            warn(f"no statistics {', '.join(sorted(of_one_sum))}: the losses are divided by several numbers")
        return self._statistics - of_one_sum

    def _may_be_tables(self) -> list[int]:
        """Variables of whose gradients the touched rows alone are summed, if they turn out to be sparse."""
        return [] if self.run_eagerly or self._objective.groups > 1 else tables_of(self.model, self._variables)

    @property
    def _sent(self) -> Layout:
        """Of what a worker sends; which variables are tables is known once the step was traced."""
        return self._totals.layout

    @property
    def _layout(self) -> Layout:
        """Of G: of several groups' sums, one."""
        return self._sent if self._objective.groups == 1 else Layout(self._variables)

    @functools.cached_property
    def _places(self) -> list[Place]:
        return self._layout.places()

    @property
    def _divided(self) -> Divided:
        return Divided(self._sent, self._layout, self._watch.by_variable)

    # ---- one step, inside the graph

    def _one_step(self, batch: tuple[Any, ...], flags: tf.Tensor) -> tuple[tf.Tensor, list[Any], dict[str, tf.Tensor]]:
        """The whole step as one graph.

        Returns:
            ((v,) float64 what a StepReport reads, G and its tables where they are kept, what riders tell).
        """
        began, batch = self._watch.begin(batch)
        total = self._sum_over_workers(batch, tf.unstack(flags, FLAGS))  # the only communication, and the one division
        lanes = self._sent.lanes(total.rest)  # what rode along
        ridden = self._riders.cut(lanes.riders[: self._riders.entries])
        means = self._objective.means(lanes.loss, lanes.weight, ridden[0], self._divides)
        penalty = self._penalty()  # a function of the weights alone, counted once
        g = self._divided.gradient(total, means.counts, penalty, self._scale())
        told = self._watch.told(total, g.by_variable, began, self._scale())
        finite = tf.equal(g.described[3], 0)
        loss = means.loss + penalty.loss
        applied = (lanes.examples > 0) & (finite | (self._on_nonfinite == "apply"))
        self._update(self._layout.unflatten(g.blocks, total.tables), finite, applied)
        outcome = Outcome(loss, g.described[0], g.described[1], lanes.examples, means.outputs, applied)
        logs = self._riders.settle(ridden, outcome)
        first = self._riders.entries
        drifted = self._drift.differs(lanes.riders[first : first + self._drift.entries])
        told_first = (loss, lanes.examples, lanes.weight, lanes.more, applied, lanes.stop, drifted)
        head = [tf.cast(value, tf.float64) for value in told_first]
        values = tf.concat([head, g.described, tf.cast(total.nonfinite, tf.float64), told], 0)
        return values, [list(g.blocks), touched(total)] if self.keeps_gradient else [], logs

    def _sum_over_workers(self, batch: tuple[Any, ...], flags: Sequence[tf.Tensor]) -> DividedSum:
        return self.comm.sum_and_divide(
            self._local_sums, (batch, flags), self._undivided(), self._divisor(), ranges=self._ranges
        )

    def _undivided(self) -> int:
        """How many entries follow the gradients."""
        return LANES + self._riders.entries + self._drift.entries + self._watch.entries

    def _ranges(self) -> list[tuple[int, int]]:
        """What of the sum is described piece by piece: variables, if their statistics are wanted."""
        return self._sent.ranges() if self._watch.by_variable and self._objective.groups == 1 else []

    def _divisor(self) -> tf.Tensor:
        """What the gradient is divided by, as `sum_and_divide` takes it: N times the loss scale, or that alone."""
        divides = self._divides and not self._divides_loss
        terms = [0.0, *WEIGHT] if divides else [1.0, *[0.0] * LANES]
        divisor = tf.constant([*terms, *[0.0] * (self._undivided() - LANES)], tf.float64)
        return divisor if self._loss_scale() is None else divisor * self._scale()

    @property
    def _divides_loss(self) -> bool:
        """Whether N is known before there are gradients: then it divides the loss, and spares a pass over them."""
        all_at_once = self.comm.alone and self._micro_batch_size is None
        return all_at_once and self._divides and self._objective.groups == 1 and not self._watch.describes

    def _scale(self) -> tf.Tensor:
        """() float64, by which the gradients are larger on their way."""
        scale = self._loss_scale()
        return tf.cast(1.0 if scale is None else scale, tf.float64)

    def _local_sums(self, batch: tuple[Any, ...], flags: Sequence[tf.Tensor]) -> Vector:
        """Compute this worker's part of the one sum: (s,) the gradients of its share and the lanes."""
        own_rows, present = row_count(batch), None
        if self._synchronised:  # the others wait for this worker's pass
            present, batch = own_rows > 0, one_row_at_least(batch)
        one = functools.partial(self._micro_batch_sum, self.comm.worker(), present)
        if self._jit_compile and not self._synchronised:  # XLA compiles no communication
            one = tf.function(one, jit_compile=True, autograph=False)
        began, batch = self._watch.begin(batch)
        riders = tf.zeros(self._riders.entries, self._layout.dtype)
        how = {"riders": riders, "describes": self._watch.describes, "single": present is not None}
        sums = accumulate(one, batch, self._micro_batch_size, self._totals, len(self._sent.shapes), **how)
        self._depends = sums.depends
        fingerprint = self._drift.lanes(tf.equal(flags[2], 1), sums.riders.dtype)
        sums = sums._replace(riders=tf.concat([sums.riders, fingerprint], 0))
        sums = self._watch.brought(sums, began, self._layout.dtype)
        return vector_of(sums, self._sent, self._totals, own_rows, flags[:2])

    def _micro_batch_sum(
        self, worker: tf.Tensor, present: tf.Tensor | None, batch: tuple[Any, ...]
    ) -> tuple[GradientSum, tf.Tensor]:
        seen: list[Pass] = []
        losses = functools.partial(self._summed_losses, seen, worker, present)
        how = {"scale": self._loss_scale(), "means": self._divides_loss}
        groups = micro_batch_sums(losses, self._objective.groups, self._variables, batch, **how)
        self._forward.keep_states(seen[0].scope, worker)
        real = functools.partial(zero_unless, present)
        gradients = [changed(gradient, real) for group in groups for gradient in group.gradients]
        riders = self._riders.part(seen[0], self._layout.dtype)
        return groups[0]._replace(gradients=gradients), real(riders)

    def _summed_losses(
        self, seen: list[Pass], worker: tf.Tensor, present: tf.Tensor | None, x: Any, *rest: Any
    ) -> Sequence[tuple[tf.Tensor, tf.Tensor]]:
        with over_workers(self.comm, present):
            y_pred, scope = self._forward.run(x, worker, self._riders.zeroed)
        y, sample_weight = (*rest, None, None)[:2]
        one = Pass(x, y, sample_weight, y_pred, row_count(x), scope)
        sums = self._objective.sums(one)
        seen.append(one._replace(sums=sums))
        return zero_unless(present, sums.groups)

    def _penalty(self) -> GradientSum:
        return regularisation(self._variables)

    def _loss_scale(self) -> Any:
        return loss_scale(self.optimizer)

    def _update(self, gradients: Sequence[Gradient], finite: tf.Tensor, applied: tf.Tensor) -> None:
        tf.cond(applied, lambda: self._apply(gradients), lambda: None)
        adjust_loss_scale(self.optimizer, finite)

    def _apply(self, gradients: Sequence[Gradient]) -> None:
        parts = zip(gradients, self._variables, self._with_gradient(), strict=True)
        used = [(part, variable) for part, variable, has_gradient in parts if has_gradient]
        if used:
            apply_gradient(self.optimizer, *zip(*used, strict=True))

    def _with_gradient(self) -> list[bool]:
        """Which variables have a gradient on any worker. The others are not updated, as Keras would not.

        Asked of the other workers while the first trace is made; every worker makes it before its first step.
        """
        if self._has_gradient is None:
            count = len(self._variables)
            own = "".join("1" if any(self._depends[index::count]) else "0" for index in range(count))
            by_rank = [text for text in self.comm.exchange(own) if text]
            penalised = [getattr(variable, "regularizer", None) is not None for variable in self._variables]
            anywhere = ["1" in column for column in zip(*by_rank, strict=True)]
            self._has_gradient = [a or b for a, b in zip(anywhere, penalised, strict=True)]
        return self._has_gradient


def _versions() -> list[str]:
    return [f"{package.__name__}={package.__version__}" for package in (tf, keras, distgrad)]


def _length(dataset: Iterable[Any]) -> int | None:
    """How many batches there are, as far as that is known."""
    try:
        return len(dataset)  # type: ignore[arg-type]
    except TypeError:
        return None


def _require(holds: bool, name: str, value: Any, allowed: str) -> None:
    if not holds:
        raise BadArgument(f"{name}={value!r}", f"give {allowed}", everywhere=True)
