"""The update of the weights: one function for plain optimizers and for those that scale the loss.

Keras's LossScaleOptimizer looks for NaN on its own and may not be applied outside a replica. Here the decision is
already made, on the reduced vector and so alike on every worker; what is left is its arithmetic.
"""

from collections.abc import Sequence
from typing import Any

import keras
import tensorflow as tf

from distgrad.gradients.checks import Gradient
from distgrad.gradients.micro_batch import tensor_of
from distgrad.keras_internals import without_summing


def loss_scale(optimizer: keras.optimizers.Optimizer) -> Any:
    """Return the factor on the loss before it is differentiated: () float32, a number, or None for none."""
    if isinstance(optimizer, keras.optimizers.LossScaleOptimizer):
        return tf.convert_to_tensor(optimizer.dynamic_scale)
    return optimizer.loss_scale_factor


def inner_optimizer(optimizer: keras.optimizers.Optimizer) -> keras.optimizers.Optimizer:
    """Return the optimizer that updates the weights: the one within one that scales the loss."""
    return optimizer.inner_optimizer if isinstance(optimizer, keras.optimizers.LossScaleOptimizer) else optimizer


def apply_gradient(
    optimizer: keras.optimizers.Optimizer, gradients: Sequence[Gradient], variables: Sequence[Any]
) -> None:
    """Let the optimizer clip and apply the gradient of the whole global batch.

    Args:
        gradients: unscaled, one per variable, its shape, dense or IndexedSlices in which no row occurs twice; they are
            cast to its dtype. None for a variable without one, as Keras gives it.
        variables: all that are trained.
    """
    optimizer = inner_optimizer(optimizer)
    # Keras divides by a static factor itself.
    factor = optimizer.loss_scale_factor or 1.0
    if not _leaves_other_rows_alone(optimizer):
        gradients = [_dense(gradient) for gradient in gradients]
    there = [number for number, gradient in enumerate(gradients) if gradient is not None]
    scaled = [gradients[number] if factor == 1.0 else gradients[number] * factor for number in there]
    # Keras wants them all from one graph, be it the one of a branch; a cast alone may leave them where they were.
    tensors = tf.identity_n(tf.nest.flatten(scaled, expand_composites=True))
    found = dict(zip(there, tf.nest.pack_sequence_as(scaled, tensors, expand_composites=True), strict=True))
    pairs = [
        (tf.cast(found[number], variable.dtype) if number in found else None, variable)
        for number, variable in enumerate(variables)
    ]
    # As Keras's own train_step does, so that an optimizer's own version of it is honoured.
    with without_summing(optimizer):
        optimizer.apply_gradients(pairs)
    for gradient, variable in zip(gradients, variables, strict=True):
        if isinstance(gradient, tf.IndexedSlices):
            # A variable that was written by rows is copied whenever it is read, until told otherwise.
            tf.raw_ops.DisableCopyOnRead(resource=tensor_of(variable).handle)


def _leaves_other_rows_alone(optimizer: keras.optimizers.Optimizer) -> bool:
    """Return True if IndexedSlices give what the dense gradient gives, and cost less.

    Plain gradient descent is the only one of Keras's optimizers that moves nothing but the rows which have a gradient:
    all others let moments decay everywhere. Keras clips by a global norm, and accumulates, densely in any case.
    """
    plain = type(optimizer) is keras.optimizers.SGD and optimizer.momentum == 0
    dense = (optimizer.global_clipnorm, optimizer.gradient_accumulation_steps, optimizer.loss_scale_factor)
    return plain and not any(dense)


def _dense(gradient: Gradient) -> tf.Tensor:
    if not isinstance(gradient, tf.IndexedSlices):
        return gradient
    return tf.scatter_nd(gradient.indices[:, tf.newaxis], gradient.values, gradient.dense_shape)


def adjust_loss_scale(optimizer: keras.optimizers.Optimizer, finite: tf.Tensor, counts: tf.Tensor) -> None:
    """Halve a dynamic loss scale after a non-finite gradient; double it after enough finite ones in a row.

    Args:
        finite: () bool, whether this step's gradient is.
        counts: () bool, False for a step that is taken again.
    """
    if not isinstance(optimizer, keras.optimizers.LossScaleOptimizer):
        return
    scale, counter = optimizer.dynamic_scale, optimizer.step_counter
    grows = finite & tf.equal(counter.value, optimizer.dynamic_growth_steps - 1)
    factor = tf.where(grows, 2.0, tf.where(finite, 1.0, 0.5))
    scale.assign(scale.value * tf.where(counts, factor, 1.0))
    count = tf.where(finite & ~grows, counter.value + 1, tf.zeros_like(counter.value))
    counter.assign(tf.where(counts, count, counter.value))
