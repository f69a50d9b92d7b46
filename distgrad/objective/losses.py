"""The losses of a step as sums: of all of a model's outputs, and those that its layers add.

A loss is kept as numerator and divisor, because only they can be added over micro-batches and workers:

    reduction of the loss            N
    sum_over_batch_size (default)    number of per-example losses; with a mask, of the unmasked ones
    mean_with_sample_weight          Σ w·mask
    sum                              1: nothing is divided, see `divides`
    none                             as the default: the losses are per example

    L = Σ_terms weight_t · (Σ loss_t / N_t),   N_t = c_t · count_t

The divisor of most losses counts rows; of some, the entries that a mask leaves; a plain sum has none. Terms whose N_t
count the same thing form a group, which is one sum and one division:

    L = Σ_groups (Σ_terms weight_t / c_t · Σ loss_t) / count_g

Almost all models have one group. The divisor of a further one is known only once everything is summed, so it sends
gradients of its own: in the same vector, which is that much longer.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import keras
import tensorflow as tf

from distgrad.errors import UnsupportedLoss
from distgrad.gradients.micro_batch import LossSum, per_example
from distgrad.keras_internals import as_compile_loss, keras_mask, matched_losses, weighted_losses
from distgrad.objective.extra_sums import ExtraSum, Losses, Pass

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


class Weighted(NamedTuple):
    """One term of the objective, and its factor in it."""

    term: Term
    factor: Any = 1.0


class Means(NamedTuple):
    """The losses of the global batch.

    Attributes:
        loss: () float64, L.
        counts: for each group, () float64, the divisor of its sums.
        outputs: for each output, where a model has several, () float64, its mean loss.
    """

    loss: tf.Tensor
    counts: list[tf.Tensor]
    outputs: list[tf.Tensor]


class Objective(ExtraSum):
    """The loss that is differentiated. Sums and divisors beyond the first group's are an extra sum.

    Args:
        loss: what `DistributedStep` takes, or None, or what `compile` made of it.
        model: the model whose loss it is.

    Raises:
        UnsupportedLoss: it is no loss.
    """

    def __init__(self, loss: Any, model: keras.Model) -> None:
        compiled = as_compile_loss(loss, model)
        self._loss = _SingleLoss(loss) if compiled is None else _CompiledLosses(compiled)

    def learn(self, seen: Pass, are_sums: Sequence[bool]) -> None:
        """Find the groups.

        Args:
            seen: a pass, as tensors of a graph that is thrown away.
            are_sums: for each loss that layers add, True if it is a sum over the rows rather than a mean.

        Raises:
            UnsupportedLoss: there is no loss.
        """
        self._are_sums = list(are_sums)
        terms = self._terms(seen)
        if not terms:
            raise UnsupportedLoss("there is no loss", "give compile() one, or let a layer add one", everywhere=True)
        self._groups = _grouped(terms)
        self._is_plain_sum = [term.counted is NOTHING for term, _ in terms]

    @property
    def groups(self) -> int:
        """The number of gradient vectors that a step sends."""
        return len(self._groups)

    @property
    def divides(self) -> bool:
        """True if the first group is divided by anything."""
        return not self._is_plain_sum[self._groups[0][0]]

    def settings(self) -> list[str]:
        """Return what all workers must share, each as "name=value"."""
        added = ["sum" if is_sum else "mean" for is_sum in self._are_sums]
        return [*self._loss.settings(), f"groups={self._groups}", f"added losses={added}"]

    def losses(self, seen: Pass) -> Losses:
        """Sum the losses of one micro-batch."""
        terms = self._terms(seen)
        groups = [_sum_of([terms[number] for number in members]) for members in self._groups]
        return Losses(groups, [terms[number].term.over_each for number in range(self._loss.told_apart)])

    def _terms(self, seen: Pass) -> list[Weighted]:
        rows = tf.cast(seen.rows, tf.int64)
        added = [
            Term(loss, rows, NOTHING) if is_sum else Term(loss * tf.cast(rows, loss.dtype), rows)
            for loss, is_sum in zip(map(tf.reduce_sum, seen.scope.losses), self._are_sums, strict=True)
        ]
        return [*self._loss.terms(seen), *map(Weighted, added)]

    # ---- as an extra sum: sum and divisor of each further group, and of each output where there are several

    def shapes(self) -> list[tf.TensorShape]:
        """Return (pairs, 2), or nothing for a single loss."""
        pairs = self.groups - 1 + self._loss.told_apart
        return [tf.TensorShape([pairs, 2])] if pairs else []

    def of_micro_batch(self, seen: Pass) -> list[tf.Tensor]:
        """Return the sums and divisors of one micro-batch."""
        assert seen.losses is not None
        pairs = [*seen.losses.groups[1:], *seen.losses.outputs]
        return [tf.reshape([tf.cast(value, tf.float64) for pair in pairs for value in pair], [-1, 2])] if pairs else []

    def means(self, first: LossSum, extra: Sequence[tf.Tensor], divides: bool) -> Means:
        """Divide the sums over all workers.

        Args:
            first: () float64 each, sum and divisor of the first group.
            extra: what came back of `of_micro_batch`.
            divides: False leaves everything undivided.
        """
        pairs = [tf.unstack(pair) for part in extra for pair in tf.unstack(tf.cast(part, tf.float64))]
        sums = [first, *(LossSum(*pair) for pair in pairs)]
        terms = [*(members[0] for members in self._groups), *range(self._loss.told_apart)]
        counts = [
            _divisor(one.weight, divides and not self._is_plain_sum[term])
            for one, term in zip(sums, terms, strict=True)
        ]
        means = [one.total / count for one, count in zip(sums, counts, strict=True)]
        loss = means[0] if self.groups == 1 else tf.add_n(means[: self.groups])
        return Means(loss, counts[: self.groups], means[self.groups :])


class _SingleLoss:
    """One loss, of whatever the model gives, or none."""

    told_apart = 0  # outputs whose loss is reported, too

    def __init__(self, loss: Any) -> None:
        self._loss = None if loss is None else resolve(loss)

    def settings(self) -> list[str]:
        return [f"loss={self._loss.name} reduced by {self._loss.reduction}"] if self._loss else []

    def terms(self, seen: Pass) -> list[Weighted]:
        return [Weighted(summed(self._loss, seen.y, seen.y_pred, seen.sample_weight))] if self._loss else []


class _CompiledLosses:
    """The losses that `compile` was given: one for each of a model's outputs, with or without weights."""

    def __init__(self, compiled: Any) -> None:
        self._compiled = compiled

    @property
    def told_apart(self) -> int:
        count = len(weighted_losses(self._compiled))
        return count if count > 1 else 0

    def settings(self) -> list[str]:
        pairs = weighted_losses(self._compiled)
        return [f"loss={loss.name} reduced by {loss.reduction}, times {factor}" for loss, factor in pairs]

    def terms(self, seen: Pass) -> list[Weighted]:
        found = matched_losses(self._compiled, seen.y, seen.y_pred, seen.sample_weight)
        return [Weighted(summed(m.loss, m.y_true, m.y_pred, m.sample_weight), m.factor) for m in found]


def _grouped(terms: Sequence[Weighted]) -> list[list[int]]:
    """Return the numbers of the terms whose divisors count the same; plain sums, which have none, come last."""
    members: dict[int, list[int]] = {}
    for number, (term, _) in enumerate(terms):
        members.setdefault(id(term.counted), []).append(number)
    return sorted(members.values(), key=lambda group: terms[group[0]].term.counted is NOTHING)


def _sum_of(terms: Sequence[Weighted]) -> LossSum:
    """Sum the losses of a group, times their factors. A single term's divisor is its N; that of several, the count."""
    sums = [term.over_each for term, _ in terms] if len(terms) > 1 else [terms[0].term.sum]
    dtype = sums[0].total.dtype
    scaled = [tf.cast(one.total, dtype) * tf.cast(term.factor, dtype) for one, term in zip(sums, terms, strict=True)]
    return LossSum(tf.add_n(scaled), sums[0].weight)


def _divisor(count: tf.Tensor, divides: bool) -> tf.Tensor:
    """Return () float64: 1 where nothing is divided, and where all is masked: Keras takes 0 then, not 0/0."""
    one = tf.ones((), tf.float64)
    return tf.where(tf.equal(count, 0), one, count) if divides else one


# ---- one loss as numerator and divisor


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
    return Term(_weighted_sum(losses, weights), _weight_of(losses, weights, mask, loss.reduction), counted, each)


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
