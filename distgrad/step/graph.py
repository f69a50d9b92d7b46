"""One step inside the graph: what happens between a batch and a report, on every worker alike.

local sums        gradient.py, accumulate.py    my share, micro-batch by micro-batch -> one flat vector
sum and divide    communicators/                its sum over the workers, divided once, by the N that came along
G                 divided.py                    the global gradient, and what it is like
update            update.py                     the optimizer clips and applies G
"""

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import keras
import tensorflow as tf

from distgrad.collectives.communicator import Communicator
from distgrad.collectives.moments import NONFINITE
from distgrad.collectives.vectors import DividedSum, Division, Vector
from distgrad.data.batch import one_row_at_least, row_count, zero_unless
from distgrad.gradients.accumulate import Totals, accumulate
from distgrad.gradients.flat_vector import LANES, WEIGHT, Layout, Place
from distgrad.gradients.global_gradient import Divided, touched
from distgrad.gradients.micro_batch import Gradient, GradientSum, changed, micro_batch_sums, regularisation
from distgrad.gradients.sum_gradients import vector_of
from distgrad.objective.batch_normalization import over_workers
from distgrad.objective.extra_sums import Outcome, Pass, Riders
from distgrad.objective.forward import Forward
from distgrad.objective.objective import Objective
from distgrad.reports.graph_statistics import Watch
from distgrad.step.drift import Drift
from distgrad.step.guards import FLAGS
from distgrad.step.update import adjust_loss_scale, apply_gradient, loss_scale


class Policy(NamedTuple):
    """How a step is taken.

    Attributes:
        micro_batch_size, on_nonfinite, jit_compile: see `DistributedStep`.
        divides: whether the gradient is divided by N.
        synchronised: whether layers sum over the workers in the midst of a pass.
        keeps_gradient: whether G is given out, too.
    """

    micro_batch_size: int | None
    on_nonfinite: str
    jit_compile: bool
    divides: bool
    synchronised: bool
    keeps_gradient: bool


@dataclass
class StepGraph:
    """All that a step is made of, once the workers have agreed on it.

    Attributes:
        variables: those that are differentiated.
        objective, forward: a micro-batch's losses.
        riders, drift, watch: what rides along in the sum.
        totals: where gradients are added up.
    """

    comm: Communicator
    model: keras.Model
    optimizer: keras.optimizers.Optimizer
    variables: Sequence[keras.Variable]
    objective: Objective
    forward: Forward
    riders: Riders
    drift: Drift
    watch: Watch
    totals: Totals
    policy: Policy

    def __post_init__(self) -> None:
        self._has_gradient: list[bool] | None = None

    def run(self, batch: tuple[Any, ...], flags: tf.Tensor) -> tuple[tf.Tensor, list[Any], dict[str, tf.Tensor]]:
        """The whole step as one graph.

        Returns:
            ((v,) float64 what a StepReport reads, G and its tables where they are kept, what riders tell).
        """
        began, batch = self.watch.begin(batch)
        total = self._sum_over_workers(batch, tf.unstack(flags, FLAGS))  # the only communication, and the one division
        lanes = self.sent.lanes(total.undivided)  # what rode along
        ridden = self.riders.cut(lanes.riders[: self.riders.entries])
        means = self.objective.means(lanes.loss, lanes.weight, ridden[0], self.policy.divides)
        penalty = self._penalty()  # a function of the weights alone, counted once
        g = self._divided.gradient(total, means.counts, penalty, self._scale())
        told = self.watch.told(total, g.by_variable, began, self._scale())
        finite = tf.equal(g.described[NONFINITE], 0)
        loss = means.loss + penalty.loss
        applied = (lanes.examples > 0) & (finite | (self.policy.on_nonfinite == "apply"))
        self._update(self.layout.unflatten(g.blocks, total.sparse), finite, applied)
        outcome = Outcome(loss, g.described[0], g.described[1], lanes.examples, means.outputs, applied)
        logs = self.riders.settle(ridden, outcome)
        first = self.riders.entries
        drifted = self.drift.differs(lanes.riders[first : first + self.drift.entries])
        told_first = (loss, lanes.examples, lanes.weight, lanes.more, applied, lanes.stop, drifted)
        head = [tf.cast(value, tf.float64) for value in told_first]
        values = tf.concat([head, g.described, tf.cast(total.nonfinite_workers, tf.float64), told], 0)
        return values, [list(g.blocks), touched(total)] if self.policy.keeps_gradient else [], logs

    def _sum_over_workers(self, batch: tuple[Any, ...], flags: Sequence[tf.Tensor]) -> DividedSum:
        if self.comm.window is None:
            return self.comm.sum_and_divide(self._local_sums, (batch, flags), self._division())
        vector = self._local_sums(batch, flags)  # makes the layout, on which the ranges depend
        return self.comm.sum_and_divide(lambda: vector, (), self._division())

    def _division(self) -> Division:
        return Division(self._undivided(), self._divisor(), ranges=self._ranges())

    def _undivided(self) -> int:
        """How many entries follow the gradients."""
        return LANES + self.riders.entries + self.drift.entries + self.watch.entries

    def _ranges(self) -> list[tuple[int, int]]:
        """What of the sum is described piece by piece: variables, if their statistics are wanted."""
        return self.sent.ranges() if self.watch.by_variable and self.objective.groups == 1 else []

    def _divisor(self) -> tf.Tensor:
        """What the gradient is divided by, as the terms of a `Division`: N times the loss scale, or that alone."""
        divides = self.policy.divides and not self._divides_loss
        terms = [0.0, *WEIGHT] if divides else [1.0, *[0.0] * LANES]
        divisor = tf.constant([*terms, *[0.0] * (self._undivided() - LANES)], tf.float64)
        return divisor if self._loss_scale() is None else divisor * self._scale()

    @property
    def _divides_loss(self) -> bool:
        """Whether N is known before there are gradients: then it divides the loss, and spares a pass over them."""
        all_at_once = self.comm.alone and self.policy.micro_batch_size is None
        return all_at_once and self.policy.divides and self.objective.groups == 1 and not self.watch.describes

    def _scale(self) -> tf.Tensor:
        """() float64, by which the gradients are larger on their way."""
        scale = self._loss_scale()
        return tf.cast(1.0 if scale is None else scale, tf.float64)

    def _local_sums(self, batch: tuple[Any, ...], flags: Sequence[tf.Tensor]) -> Vector:
        """Compute this worker's part of the one sum: (s,) the gradients of its share and the lanes."""
        own_rows, present = row_count(batch), None
        if self.policy.synchronised:  # the others wait for this worker's pass
            present, batch = own_rows > 0, one_row_at_least(batch)
        one = functools.partial(self._micro_batch_sum, self.comm.worker(), present)
        if self.policy.jit_compile and not self.policy.synchronised:  # XLA compiles no communication
            one = tf.function(one, jit_compile=True, autograph=False)
        began, batch = self.watch.begin(batch)
        riders = tf.zeros(self.riders.entries, self.layout.dtype)
        how = {"riders": riders, "describes": self.watch.describes, "single": present is not None}
        sums = accumulate(one, batch, self.policy.micro_batch_size, self.totals, len(self.sent.shapes), **how)
        self._depends = sums.depends
        fingerprint = self.drift.lanes(tf.equal(flags[2], 1), sums.riders.dtype)
        sums = sums._replace(riders=tf.concat([sums.riders, fingerprint], 0))
        sums = self.watch.brought(sums, began, self.layout.dtype)
        return vector_of(sums, self.sent, self.totals, own_rows, flags[:2])

    def _micro_batch_sum(
        self, worker: tf.Tensor, present: tf.Tensor | None, batch: tuple[Any, ...]
    ) -> tuple[GradientSum, tf.Tensor]:
        seen: list[Pass] = []
        losses = functools.partial(self._summed_losses, seen, worker, present)
        how = {"scale": self._loss_scale(), "means": self._divides_loss}
        groups = micro_batch_sums(losses, self.objective.groups, self.variables, batch, **how)
        self.forward.keep_states(seen[0].scope, worker)
        real = functools.partial(zero_unless, present)
        gradients = [changed(gradient, real) for group in groups for gradient in group.gradients]
        riders = self.riders.part(seen[0], self.layout.dtype)
        return groups[0]._replace(gradients=gradients), real(riders)

    def _summed_losses(
        self, seen: list[Pass], worker: tf.Tensor, present: tf.Tensor | None, x: Any, *rest: Any
    ) -> Sequence[tuple[tf.Tensor, tf.Tensor]]:
        with over_workers(self.comm, present):
            y_pred, scope = self.forward.run(x, worker, self.riders.zeroed)
        y, sample_weight = (*rest, None, None)[:2]
        one = Pass(x, y, sample_weight, y_pred, row_count(x), scope)
        sums = self.objective.sums(one)
        seen.append(one._replace(sums=sums))
        return zero_unless(present, sums.groups)

    def _penalty(self) -> GradientSum:
        return regularisation(self.variables)

    def _loss_scale(self) -> Any:
        return loss_scale(self.optimizer)

    def _update(self, gradients: Sequence[Gradient], finite: tf.Tensor, applied: tf.Tensor) -> None:
        tf.cond(applied, lambda: self._apply(gradients), lambda: None)
        adjust_loss_scale(self.optimizer, finite)

    def _apply(self, gradients: Sequence[Gradient]) -> None:
        parts = zip(gradients, self.variables, self._with_gradient(), strict=True)
        used = [(part, variable) for part, variable, has_gradient in parts if has_gradient]
        if used:
            apply_gradient(self.optimizer, *zip(*used, strict=True))

    def _with_gradient(self) -> list[bool]:
        """Which variables have a gradient on any worker. The others are not updated, as Keras would not.

        Asked of the other workers while the first trace is made; every worker makes it before its first step.
        """
        if self._has_gradient is None:
            count = len(self.variables)
            own = "".join("1" if any(self._depends[index::count]) else "0" for index in range(count))
            by_rank = self.comm.exchange(own).values()
            penalised = [getattr(variable, "regularizer", None) is not None for variable in self.variables]
            anywhere = ["1" in column for column in zip(*by_rank, strict=True)]
            self._has_gradient = [a or b for a, b in zip(anywhere, penalised, strict=True)]
        return self._has_gradient

    # ---- where things stand

    @property
    def sent(self) -> Layout:
        """Of what a worker sends; which variables are tables is known once the step was traced."""
        return self.totals.layout

    @property
    def layout(self) -> Layout:
        """Of G: of several groups' sums, one."""
        return self.sent if self.objective.groups == 1 else Layout(self.variables)

    @functools.cached_property
    def places(self) -> list[Place]:
        """Where each variable's part of G stands, once the step was traced."""
        return self.layout.places()

    @property
    def _divided(self) -> Divided:
        return Divided(self.sent, self.layout, self.watch.by_variable)
