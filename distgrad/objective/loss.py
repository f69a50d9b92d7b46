"""A Keras loss as numerator and divisor: (Σ w·loss, N).

Keras defines a loss as a mean. Here its numerator and its divisor are kept apart, because only they can be added
over micro-batches and workers:

    reduction of the loss            N
    sum_over_batch_size (default)    number of per-example losses; with a mask, of the unmasked ones
    mean_with_sample_weight          Σ w·mask
    sum                              1: nothing is divided, see `divides`
    none                             as the default: the losses are per example
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import keras
import tensorflow as tf

from distgrad.errors import UnsupportedLoss
from distgrad.gradients.micro_batch import LossSum, per_example
from distgrad.keras_internals import keras_mask


class _PerExample(keras.losses.Loss):
    """A function (y_true, y_pred) -> per-example losses as a Keras loss, with the casts that compile() makes."""

    def __init__(self, fn: Callable[[Any, Any], Any]) -> None:
        super().__init__(name=getattr(fn, "__name__", "loss"))
        self._fn = fn

    def call(self, y_true: Any, y_pred: Any) -> Any:
        y_true, y_pred = _same_rank(y_true, y_pred)
        return self._fn(y_true, y_pred)


def resolve(loss: Any) -> keras.losses.Loss:
    """Turn a name, function or Loss into a Loss.

    Raises:
        UnsupportedLoss: several losses (a list or dict), or no loss at all.
    """
    found = loss if callable(loss) else keras.losses.get(loss) if isinstance(loss, str) else None
    if found is None:
        raise UnsupportedLoss(
            f"{loss!r} is no loss", "give one name, function or keras.losses.Loss, as to compile()", everywhere=True
        )
    return found if isinstance(found, keras.losses.Loss) else _PerExample(found)


def divides(loss: keras.losses.Loss) -> bool:
    """Return True if the loss is a mean of some kind, rather than a plain sum."""
    return loss.reduction != "sum"


ROWS, NOTHING = "rows", "nothing"  # counted by most divisors, and by that of a plain sum


class Term(NamedTuple):
    """The loss of one micro-batch as numerator and divisor.

    Attributes:
        total: () Σ w·mask·loss, in the loss's dtype.
        weight: () N.
        counted: the thing of which N counts the number, times `each`: ROWS, a mask, NOTHING (a plain sum), or an object
            that no other term shares. Losses that count the same thing share one gradient.
        each: N = each · count, in every micro-batch.
    """

    total: tf.Tensor
    weight: tf.Tensor
    counted: Any = ROWS
    each: float = 1.0

    @property
    def sum(self) -> LossSum:
        """The numerator and the divisor."""
        return LossSum(self.total, self.weight)

    @property
    def over_each(self) -> LossSum:
        """The same divided by `each`: (() Σ loss / each, () float64 count)."""
        return LossSum(self.total / self.each, tf.cast(self.weight, tf.float64) / self.each)


def summed(loss: keras.losses.Loss, y_true: Any, y_pred: Any, sample_weight: Any) -> Term:
    """Take the loss of one micro-batch apart.

    Args:
        loss: a Keras loss; its `reduction` decides the divisor, not the sum.
        y_true: (b, ...) targets.
        y_pred: (b, ...) the model's output, perhaps with a Keras mask.
        sample_weight: (b, ...) or None.

    Raises:
        UnsupportedLoss: the loss gives one number for the whole micro-batch.
    """
    values, mask = _values(loss, y_true, y_pred)
    losses = per_example(values, loss.name)
    weights = _both(None if sample_weight is None else _cast(sample_weight, loss.dtype), mask)
    counted, each = _counted(losses, weights, mask, loss.reduction)
    return Term(_weighted_sum(losses, weights), _divisor(losses, weights, mask, loss.reduction), counted, each)


def _counted(losses: tf.Tensor, weights: Any, mask: tf.Tensor | None, reduction: str | None) -> tuple[Any, float]:
    """Return `Term.counted` and `Term.each`; where N depends on the data, an object of its own, and 1."""
    if reduction == "sum":
        return NOTHING, 1.0
    entry = losses.shape[1 if mask is None else mask.shape.rank :]
    if (reduction == "mean_with_sample_weight" and weights is not None) or not entry.is_fully_defined():
        return object(), 1.0
    return ROWS if mask is None else mask, float(entry.num_elements())


def _values(loss: keras.losses.Loss, y_true: Any, y_pred: Any) -> tuple[Any, tf.Tensor | None]:
    """Return the values of the loss's own function, and the mask upon them."""
    values = loss.call(_cast(y_true, loss.dtype), _cast(y_pred, loss.dtype))
    return values, _both(keras_mask(y_pred), keras_mask(values))


def _weighted_sum(losses: tf.Tensor, weights: tf.Tensor | None) -> tf.Tensor:
    if weights is None:
        return tf.reduce_sum(losses)
    losses, weights = _same_rank(losses, tf.cast(weights, losses.dtype))
    return tf.reduce_sum(losses * weights)


def _divisor(losses: tf.Tensor, weights: tf.Tensor | None, mask: tf.Tensor | None, reduction: str | None) -> tf.Tensor:
    if reduction == "mean_with_sample_weight" and weights is not None:
        return tf.reduce_sum(tf.cast(weights, tf.float64))
    count = tf.size(losses, tf.int64)
    if mask is None:
        return count
    # A mask of fewer axes than the losses stands for several losses an entry.
    return tf.math.count_nonzero(mask) * (count // tf.maximum(tf.size(mask, tf.int64), 1))


def _cast(tensors: Any, dtype: str) -> Any:
    return tf.nest.map_structure(lambda tensor: tf.cast(tensor, dtype), tensors)


def _both(weights: tf.Tensor | None, mask: tf.Tensor | None) -> tf.Tensor | None:
    """Return the product of two weightings, either of which may be absent."""
    if weights is None or mask is None:
        return mask if weights is None else weights
    dtype = tf.float32 if weights.dtype == tf.bool else weights.dtype
    weights, mask = _same_rank(tf.cast(weights, dtype), tf.cast(mask, dtype))
    return weights * mask


def _same_rank(one: tf.Tensor, other: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Let (b,) and (b, 1) meet, as Keras does; other shapes are left to broadcasting."""
    if one.shape.rank == other.shape.rank + 1 and one.shape[-1] == 1:
        if other.shape.rank == 1:
            return one, other[:, tf.newaxis]
        return tf.squeeze(one, -1), other
    if other.shape.rank == one.shape.rank + 1 and other.shape[-1] == 1:
        if one.shape.rank == 1:
            return one[:, tf.newaxis], other
        return one, tf.squeeze(other, -1)
    return one, other
