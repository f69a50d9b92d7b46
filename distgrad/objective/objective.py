"""The losses of a step as sums: of all of a model's outputs, and those that its layers add.

    L = Σ_terms weight_t · (Σ loss_t / N_t),   N_t = c_t · count_t

The divisor of most losses counts rows; of some, the entries that a mask leaves; a plain sum has none. Terms whose N_t
count the same thing form a group, which is one sum and one division:

    L = Σ_groups (Σ_terms weight_t / c_t · Σ loss_t) / count_g

Almost all models have one group. The divisor of a further one is known only once everything is summed, so it sends
gradients of its own: in the same vector, which is that much longer.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import keras
import tensorflow as tf

from distgrad.errors import UnsupportedLoss
from distgrad.gradients.micro_batch import LossSum
from distgrad.keras_internals import as_compile_loss, matched_losses, weighted_losses
from distgrad.objective import loss as losses
from distgrad.objective.extra_sums import ExtraSum, Losses, Pass
from distgrad.objective.loss import NOTHING, Term


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
        self._loss = None if loss is None else losses.resolve(loss)

    def settings(self) -> list[str]:
        return [f"loss={self._loss.name} reduced by {self._loss.reduction}"] if self._loss else []

    def terms(self, seen: Pass) -> list[Weighted]:
        return [Weighted(losses.summed(self._loss, seen.y, seen.y_pred, seen.sample_weight))] if self._loss else []


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
        return [Weighted(losses.summed(m.loss, m.y_true, m.y_pred, m.sample_weight), m.factor) for m in found]


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
