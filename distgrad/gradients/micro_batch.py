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
    return micro_batch_sums(lambda *tensors: [objective(*tensors)], 1, variables, batch, scale=scale)[0]


def micro_batch_sums(
    objectives: Callable[..., Sequence[tuple[tf.Tensor, tf.Tensor]]],
    count: int,
    variables: Sequence[Any],
    batch: Any,
    *,
    scale: Any = None,
    means: bool = False,
) -> list[GradientSum]:
    """The same of so many objectives, which come of one forward pass.

    Args:
        means: leave the gradients divided by their weights, where those are not 0.
    """
    sources = [tensor_of(variable) for variable in variables]
    with tf.GradientTape(persistent=count > 1, watch_accessed_variables=False) as tape:
        tape.watch(sources)
        pairs = objectives(*batch)
        # Keras chooses scales for a mean: the gradient of a scaled sum would overflow float16 sooner.
        divided = means or scale is not None
        divisors = [_divisor(weight, loss.dtype) if divided else None for loss, weight in pairs]
        targets = [_scaled(loss, scale, divisor) for (loss, _), divisor in zip(pairs, divisors, strict=True)]
    found = [tape.gradient(target, sources) for target in targets]
    return [
        GradientSum([gradient if means else _times(gradient, divisor) for gradient in gradients], loss, weight)
        for gradients, divisor, (loss, weight) in zip(found, divisors, pairs, strict=True)
    ]


def _divisor(weight: tf.Tensor, dtype: tf.DType) -> tf.Tensor:
    weight = tf.cast(weight, dtype)
    return tf.where(tf.equal(weight, 0), tf.ones_like(weight), weight)


def _scaled(loss: tf.Tensor, scale: Any, divisor: tf.Tensor | None) -> tf.Tensor:
    scaled = loss if scale is None else loss * tf.cast(scale, loss.dtype)
    return scaled if divisor is None else scaled / divisor


def _times(gradient: Gradient, factor: tf.Tensor | None) -> Gradient:
    return gradient if factor is None else changed(gradient, lambda values: tf.cast(values, factor.dtype) * factor)


def changed(gradient: Gradient, change: Callable[[tf.Tensor], tf.Tensor]) -> Gradient:
    """The gradient with other values, whatever form it has."""
    if gradient is None:
        return None
    if isinstance(gradient, tf.IndexedSlices):
        return tf.IndexedSlices(change(gradient.values), gradient.indices, gradient.dense_shape)
    return change(gradient)


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
