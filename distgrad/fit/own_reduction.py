"""The gradients that a step of the user's own gives to an optimizer, summed over the workers: one sum for each call."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import keras
import tensorflow as tf

from distgrad.collectives.communicator import Communicator
from distgrad.collectives.vectors import joined
from distgrad.fit.own_step import Apply
from distgrad.gradients.accumulate import add
from distgrad.gradients.checks import checked_against
from distgrad.gradients.flat_vector import FlatLayout
from distgrad.keras_internals import outside_stateless_scope, without_summing
from distgrad.objective.kinds import Kind
from distgrad.step.config import StepConfig
from distgrad.step.update import loss_scale


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

        Raises:
            GradientMismatch: a gradient is not like its variable.
        """
        weight = tf.cast(rows > 0, rows.dtype) if self._kind() is Kind.SUM else rows

        def weigh(gradient: Any, variable: Any) -> Any:
            gradient = checked_against(gradient, variable)
            if gradient is None:
                return None
            if isinstance(gradient, tf.IndexedSlices):
                gradient = add(tf.zeros(variable.shape, gradient.dtype), gradient)
            wide = tf.cast(gradient, tf.float64 if gradient.dtype == tf.float64 else tf.float32)
            return tf.where(weight > 0, wide * tf.cast(weight, wide.dtype), tf.zeros_like(wide))

        return [weigh(*each) for each in zip(apply.gradients, apply.variables, strict=True)]

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
