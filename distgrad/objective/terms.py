"""The loss of one micro-batch as a term: numerator and divisor, and what the divisor counts.

The divisor N depends on the loss's reduction:

    sum_over_batch_size (default)    number of per-example losses; with a mask, of the unmasked ones
    mean_with_sample_weight          Σ w·mask
    sum, none                        1: nothing is divided
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import keras
import tensorflow as tf

from distgrad.errors import UnsupportedLoss
from distgrad.gradients.micro_batch import LossSum
from distgrad.keras_internals import is_of_keras, keras_mask
from distgrad.objective.kinds import Kind

ROWS, NOTHING = "rows", "nothing"  # counted by most divisors, and by that of a plain sum
NO_REDUCTION = (None, "none")
COMPARE_ROWS = ("circle", "dice", "tversky")  # Keras's losses that do not look at each row by itself


class Term(NamedTuple):
    """The loss of one micro-batch as numerator and divisor.

    Attributes:
        total: () Σ w·mask·loss, in the loss's dtype.
        weight: () N.
        counted: the thing of which N counts the number, times `each`: ROWS, a mask, NOTHING (a plain sum), or an object
            that no other term shares. Losses that count the same thing share one gradient.
        each: N = each · count, in every micro-batch.
        asked: () the value by whose kind the term is summed, see `Kind`; None if that is known.
        prefers: the kind of `asked` that is taken while it is possible.
        logs_mean: True for a plain sum that Keras logs as a mean.
        entries: () how many numbers the sum is of, if it is of the global batch.
    """

    total: tf.Tensor
    weight: tf.Tensor
    counted: Any = ROWS
    each: float = 1.0
    asked: tf.Tensor | None = None
    prefers: Kind = Kind.MEAN
    logs_mean: bool = False
    entries: tf.Tensor | None = None

    @property
    def sum(self) -> LossSum:
        """The numerator and the divisor."""
        return LossSum(self.total, self.weight)

    @property
    def over_each(self) -> LossSum:
        """The same divided by `each`: (() Σ loss / each, () float64 count)."""
        return LossSum(self.total / self.each, tf.cast(self.weight, tf.float64) / self.each)


class Weighted(NamedTuple):
    """One term of the objective, and its factor in it."""

    term: Term
    factor: Any = 1.0


class _PerExample(keras.losses.Loss):
    """A function (y_true, y_pred) -> per-example losses as a Keras loss, with the casts that compile() makes."""

    def __init__(self, fn: Callable[[Any, Any], Any]) -> None:
        name = getattr(fn, "__name__", "")
        super().__init__(name=name if name.isidentifier() else "loss")
        self.fn = fn

    def call(self, y_true: Any, y_pred: Any) -> Any:
        y_true, y_pred = _same_rank(y_true, y_pred)
        return self.fn(y_true, y_pred)


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


def summed(
    loss: keras.losses.Loss,
    y_true: Any,
    y_pred: Any,
    sample_weight: Any,
    *,
    rows: tf.Tensor | None = None,
    is_whole: bool = False,
) -> Term:
    """Take the loss of one micro-batch apart.

    Args:
        loss: a Keras loss; its `reduction` decides the divisor, not the sum.
        y_true: (b, ...) targets.
        y_pred: (b, ...) the model's output, perhaps with a Keras mask.
        sample_weight: (b, ...) or None.
        rows: () int32, b; needed for a loss that is one number for a batch.
        is_whole: True if the rows are those of the global batch, and its value as Keras computes it is wanted.
    """
    values = mask = None
    if type(loss).__call__ is keras.losses.Loss.__call__ and not is_whole:
        values, mask = _values(loss, y_true, y_pred)
    if values is None or values.shape.rank == 0:
        value = tf.convert_to_tensor(loss(y_true, y_pred, sample_weight))
        total = tf.reduce_sum(value) if value.shape.rank else value
        count = tf.cast(tf.size(y_pred) if rows is None else rows, tf.int64)
        if value.shape.rank and not is_whole:
            return Term(total, count, NOTHING, 1.0, total, Kind.SUM, True)
        is_vector = value.shape.rank > 0
        return Term(total, count, asked=total, logs_mean=is_vector, entries=tf.size(value) if is_vector else None)
    weights = _both(None if sample_weight is None else _cast(sample_weight, loss.dtype), mask)
    counted, each = _counted(values, weights, mask, loss.reduction)
    total = _weighted_sum(values, weights)
    asked = None if looks_at_rows_alone(getattr(loss, "fn", loss)) else total
    weight = _weight_of(values, weights, mask, loss.reduction)
    return Term(total, weight, counted, each, asked, Kind.SUM, loss.reduction in NO_REDUCTION)


def looks_at_rows_alone(function: Any) -> bool:
    """Return whether a function (y_true, y_pred) -> values, or a Loss, is known to give each row values of its own."""
    name = getattr(function, "__name__", type(function).__name__)
    return is_of_keras(function) and name.lower() not in COMPARE_ROWS


def _counted(losses: tf.Tensor, weights: Any, mask: tf.Tensor | None, reduction: str | None) -> tuple[Any, float]:
    """Return `Term.counted` and `Term.each`; where N depends on the data, an object of its own, and 1."""
    if reduction == "sum" or reduction in NO_REDUCTION:
        return NOTHING, 1.0
    entry = losses.shape[1 if mask is None else mask.shape.rank :]
    if (reduction == "mean_with_sample_weight" and weights is not None) or not entry.is_fully_defined():
        return object(), 1.0
    return ROWS if mask is None else mask, float(entry.num_elements())


def _values(loss: keras.losses.Loss, y_true: Any, y_pred: Any) -> tuple[Any, tf.Tensor | None]:
    """Return the values of the loss's own function, and the mask upon them."""
    values = tf.convert_to_tensor(loss.call(_cast(y_true, loss.dtype), _cast(y_pred, loss.dtype)))
    return values, _both(keras_mask(y_pred), keras_mask(values))


def _weighted_sum(losses: tf.Tensor, weights: tf.Tensor | None) -> tf.Tensor:
    if weights is None:
        return tf.reduce_sum(losses)
    losses, weights = _same_rank(losses, tf.cast(weights, losses.dtype))
    return tf.reduce_sum(losses * weights)


def _weight_of(
    losses: tf.Tensor, weights: tf.Tensor | None, mask: tf.Tensor | None, reduction: str | None
) -> tf.Tensor:
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
