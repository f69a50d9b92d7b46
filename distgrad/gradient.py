"""One micro-batch -> GradientSum. The only GradientTape of the package.

    gradients_v = Σ_examples w · ∂loss(example)/∂v,   loss = Σ_examples w · loss(example),   weight = N

where N is what the loss's own reduction would have divided by. Nothing is divided here.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeAlias

import keras
import tensorflow as tf

# A micro-batch (its tensors as positional arguments) -> (Σ w·loss, N), both scalars.
Objective = Callable[..., tuple[tf.Tensor, tf.Tensor]]
# What the tape gives for one variable: a dense tensor, IndexedSlices, or None.
Gradient: TypeAlias = Any


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


def micro_batch_sum(objective: Objective, variables: Sequence[Any], batch: Any, scale: Any = None) -> GradientSum:
    """Differentiate the summed loss of one micro-batch.

    Args:
        objective: the loss as a sum over examples, and its weight.
        variables: Keras or TensorFlow variables.
        batch: the micro-batch's tensors, (b, ...) each.
        scale: () factor on the gradients (loss scaling, so that float16 does not underflow), or None. The loss returned
            does not contain it.

    Returns:
        Gradients as the tape gives them: dense, IndexedSlices, or None where the loss does not depend on the variable.
    """
    sources = [tensor_of(variable) for variable in variables]
    with tf.GradientTape(watch_accessed_variables=False) as tape:
        tape.watch(sources)
        loss, weight = objective(*batch)
        if scale is not None:
            # Keras chooses scales for a mean: the gradient of a scaled sum would overflow float16 sooner.
            divisor = tf.maximum(tf.cast(weight, loss.dtype), 1)
            target = loss * tf.cast(scale, loss.dtype) / divisor
    if scale is None:
        return GradientSum(tape.gradient(loss, sources), loss, weight)
    return GradientSum([_times(gradient, divisor) for gradient in tape.gradient(target, sources)], loss, weight)


def _times(gradient: Gradient, factor: tf.Tensor) -> Gradient:
    if gradient is None:
        return None
    if isinstance(gradient, tf.IndexedSlices):
        return tf.IndexedSlices(_times(gradient.values, factor), gradient.indices, gradient.dense_shape)
    return tf.cast(gradient, factor.dtype) * factor


def regularisation(variables: Sequence[Any]) -> GradientSum:
    """The weights' own losses, a function of the weights alone and so counted once a step, not once an example.

    Returns:
        Gradients with None for variables without a regulariser; weight 1.
    """
    penalised = [variable for variable in variables if getattr(variable, "regularizer", None) is not None]

    def penalty() -> tuple[tf.Tensor, tf.Tensor]:
        losses = [tf.cast(tf.reduce_sum(variable.regularizer(variable)), tf.float64) for variable in penalised]
        return tf.add_n([tf.zeros((), tf.float64), *losses]), tf.ones((), tf.float64)

    return micro_batch_sum(penalty, variables, ())


def tensor_of(variable: Any) -> tf.Variable:
    """The TensorFlow variable behind a Keras variable, or the variable itself."""
    return variable.value if isinstance(variable, keras.Variable) else variable
