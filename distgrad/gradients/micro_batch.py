"""Gradients of one micro-batch, as sums over its examples.

    gradients_v = Σ_examples w · ∂loss(example)/∂v,   loss = Σ_examples w · loss(example),   weight = N

N is what the loss's own reduction would have divided by. Nothing is divided here.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import tensorflow as tf

from distgrad.errors import UnsupportedLoss
from distgrad.gradients.checks import Gradient, checked_against
from distgrad.keras_internals import is_keras_variable


class LossSum(NamedTuple):
    """A loss before its division: () Σ w·loss, and () N, what its mean divides by."""

    total: tf.Tensor
    weight: tf.Tensor


def unweighted_sum(losses: Any, name: str) -> LossSum:
    """Sum per-example losses (b, ...), and count them.

    Raises:
        UnsupportedLoss: they are one number for the whole micro-batch.
    """
    losses = per_example(losses, name)
    return LossSum(tf.reduce_sum(losses), tf.size(losses, tf.int64))


def per_example(losses: Any, name: str) -> tf.Tensor:
    """Return losses as a tensor (b, ...), see `unweighted_sum`."""
    losses = tf.convert_to_tensor(losses)
    if losses.shape.rank == 0:
        raise UnsupportedLoss(
            f"loss {name!r} gives one number for a whole micro-batch",
            "return one loss per example, shape (b,) or (b, ...), and leave the reduction to distgrad",
            everywhere=True,
        )
    return losses


class GradientSum(NamedTuple):
    """Sums over examples, to be added to others of their kind and divided, if at all, at the very end.

    Attributes:
        gradients: one per variable, the variable's shape.
        loss: () Σ w·loss.
        weight: () N, what a mean would divide by.
    """

    gradients: list[Any]
    loss: tf.Tensor
    weight: tf.Tensor


class Scaling(NamedTuple):
    """The target that is differentiated in place of a loss sum, and the way back to the gradient of that sum.

    A loss scale acts on the mean over the global batch, for which Keras chooses it: the gradient of a scaled sum, or of
    a micro-batch's own mean, would overflow float16 sooner.

    Attributes:
        scale: () factor that keeps float16 from underflowing, or None. Gradients keep it.
        fraction: () how much of the global batch the micro-batch is, in rows; near enough, as it is multiplied and
            divided out again.
        of_means: True leaves gradients divided by the weight, for a step that knows N before it has gradients.
    """

    scale: Any = None
    fraction: Any = 1.0
    of_means: bool = False

    def target(self, loss: LossSum) -> tf.Tensor:
        """Return () what is differentiated; to be called while the tape records."""
        total = loss.total if self.scale is None else loss.total * tf.cast(self.scale, loss.total.dtype)
        return total / self._divisor(loss) if self._divides else total

    def gradient_of_sum(self, gradient: Gradient, loss: LossSum) -> Gradient:
        """Turn a gradient of the target into that of the loss sum, scaled."""
        if self.of_means or not self._divides:
            return gradient
        divisor = self._divisor(loss)
        return change_values(gradient, lambda values: tf.cast(values, divisor.dtype) * divisor)

    @property
    def _divides(self) -> bool:
        return self.of_means or self.scale is not None

    def _divisor(self, loss: LossSum) -> tf.Tensor:
        weight = tf.cast(loss.weight, loss.total.dtype)
        weight = tf.where(tf.equal(weight, 0), tf.ones_like(weight), weight)
        return weight if self.of_means else weight / tf.cast(self.fraction, weight.dtype)


def change_values(gradient: Gradient, change: Callable[[tf.Tensor], tf.Tensor]) -> Gradient:
    """Return the gradient with its values changed, in whatever form it is."""
    if gradient is None:
        return None
    if isinstance(gradient, tf.IndexedSlices):
        return tf.IndexedSlices(change(gradient.values), gradient.indices, gradient.dense_shape)
    return change(gradient)


class Penalty(NamedTuple):
    """The regularization losses: () float64, and their gradients, None for variables without a regularizer."""

    loss: tf.Tensor
    gradients: list[Gradient]


def regularization(variables: Sequence[Any]) -> Penalty:
    """Differentiate the weights' own losses: a function of the weights alone, counted once a step.

    Raises:
        GradientMismatch: a gradient is not like its variable.
    """
    sources = [tensor_of(variable) for variable in variables if is_regularized(variable)]
    with tf.GradientTape(watch_accessed_variables=False) as tape:
        tape.watch(sources)
        loss = regularization_loss(variables)
    found = iter(tape.gradient(loss, sources) if sources else [])
    gradients = [next(found) if is_regularized(variable) else None for variable in variables]
    return Penalty(loss, [checked_against(*each) for each in zip(gradients, variables, strict=True)])


def regularization_loss(variables: Sequence[Any]) -> tf.Tensor:
    """Return () float64, the sum of the weights' own losses."""
    regularized = [variable for variable in variables if is_regularized(variable)]
    losses = [tf.cast(tf.reduce_sum(variable.regularizer(variable)), tf.float64) for variable in regularized]
    return tf.add_n(losses) if losses else tf.zeros((), tf.float64)


def is_regularized(variable: Any) -> bool:
    """Return True if the variable has a loss of its own."""
    return getattr(variable, "regularizer", None) is not None


def tensor_of(variable: Any) -> tf.Variable:
    """Return the TensorFlow variable behind a Keras variable, or the variable itself."""
    return variable.value if is_keras_variable(variable) else variable
