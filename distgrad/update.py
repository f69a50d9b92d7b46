"""The gradient -> the optimizer: one way in for plain optimizers and for those that scale the loss.

Keras's LossScaleOptimizer looks for NaN on its own and may not be applied outside a replica. Here the decision is
already made, on the reduced vector and so alike on every worker; what is left is its arithmetic.
"""

from collections.abc import Sequence
from typing import Any

import keras
import tensorflow as tf


def loss_scale(optimizer: keras.optimizers.Optimizer) -> Any:
    """The factor on the loss before it is differentiated: () float32, a number, or None for none."""
    if isinstance(optimizer, keras.optimizers.LossScaleOptimizer):
        return tf.convert_to_tensor(optimizer.dynamic_scale)
    return optimizer.loss_scale_factor


def apply_gradient(
    optimizer: keras.optimizers.Optimizer, gradients: Sequence[tf.Tensor], variables: Sequence[Any]
) -> None:
    """Let the optimizer clip and apply the gradient of the whole global batch.

    Args:
        gradients: unscaled, one per variable, its shape; they are cast to its dtype.
        variables: those that have a gradient; the others are left alone, as Keras leaves them.
    """
    if isinstance(optimizer, keras.optimizers.LossScaleOptimizer):
        optimizer = optimizer.inner_optimizer
    # Keras divides by a static factor itself.
    factor = optimizer.loss_scale_factor or 1.0
    scaled = [gradient if factor == 1.0 else gradient * factor for gradient in gradients]
    pairs = zip(scaled, variables, strict=True)
    optimizer.apply([tf.cast(gradient, variable.dtype) for gradient, variable in pairs], list(variables))


def adjust_loss_scale(optimizer: keras.optimizers.Optimizer, finite: tf.Tensor) -> None:
    """Halve a dynamic loss scale after a non-finite gradient; double it after enough finite ones in a row."""
    if not isinstance(optimizer, keras.optimizers.LossScaleOptimizer):
        return
    scale, counter = optimizer.dynamic_scale, optimizer.step_counter
    grows = finite & tf.equal(counter.value, optimizer.dynamic_growth_steps - 1)
    factor = tf.where(grows, 2.0, tf.where(finite, 1.0, 0.5))
    scale.assign(scale.value * factor)
    counter.assign(tf.where(finite & ~grows, counter.value + 1, tf.zeros_like(counter.value)))
