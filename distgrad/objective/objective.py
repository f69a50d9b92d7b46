"""The losses of a step as sums: of all of a model's outputs, and those that its layers add.

    L = Σ_terms weight_t · (Σ loss_t / N_t),   N_t = c_t · count_t

What is counted is the rows for most losses, the entries that a mask leaves, nothing for a plain sum. Terms whose N_t
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
from distgrad.keras_internals import as_compile_loss, matched_losses, weighted_losses
from distgrad.objective import loss as losses
from distgrad.objective.extra_sums import Outcome, Pass, Sums
from distgrad.objective.loss import NOTHING, Term

Pair = tuple[tf.Tensor, tf.Tensor]


class Weighted(NamedTuple):
    """One term of the objective, and its factor in it."""

    term: Term
    factor: Any = 1.0


class Means(NamedTuple):
    """The losses of the global batch.

    Attributes:
        loss: () float64, L.
        counts: for each group, () float64 what its sums are divided by.
        outputs: for each output that is told apart, () float64 its mean loss.
    """

    loss: tf.Tensor
    counts: list[tf.Tensor]
    outputs: list[tf.Tensor]


class Objective:
    """What is differentiated. It rides along with what the lanes have no place for.

    Args:
        loss: what `DistributedStep` takes, or None, or what `compile` made of it.
        model: whose loss it is.

    Raises:
        UnsupportedLoss: it is no loss.
    """

    zeroed: tuple[keras.Variable, ...] = ()

    def __init__(self, loss: Any, model: keras.Model) -> None:
        compiled = as_compile_loss(loss, model)
        self._loss = _One(loss) if compiled is None else _Compiled(compiled)

    def learn(self, seen: Pass, are_sums: Sequence[bool]) -> None:
        """Find the groups.

        Args:
            seen: a pass, as tensors of a graph that is thrown away.
            are_sums: for each loss that layers add, whether it is a sum over the rows rather than a mean.

        Raises:
            UnsupportedLoss: there is none.
        """
        self._are_sums = list(are_sums)
        terms = self._terms(seen)
        if not terms:
            raise UnsupportedLoss("there is no loss", "give compile() one, or let a layer add one", everywhere=True)
        self._groups = _grouped(terms)
        self._is_plain = [term.counted is NOTHING for term, _ in terms]

    @property
    def groups(self) -> int:
        """How many gradient vectors a step sends."""
        return len(self._groups)

    @property
    def divides(self) -> bool:
        """Whether the first group is divided by anything."""
        return not self._is_plain[self._groups[0][0]]

    def settings(self) -> list[str]:
        """What all workers must share."""
        added = ["sum" if is_sum else "mean" for is_sum in self._are_sums]
        return [*self._loss.settings(), f"groups={self._groups}", f"added losses={added}"]

    def sums(self, seen: Pass) -> Sums:
        """The losses of one micro-batch."""
        terms = self._terms(seen)
        pairs = [_sum_of([terms[number] for number in members]) for members in self._groups]
        outputs = [_over_each(terms[number].term) for number in range(self._loss.told_apart)]
        return Sums(pairs, outputs)

    def _terms(self, seen: Pass) -> list[Weighted]:
        rows = tf.cast(seen.rows, tf.int64)
        added = [
            Term(loss, rows, NOTHING) if is_sum else Term(loss * tf.cast(rows, loss.dtype), rows)
            for loss, is_sum in zip(map(tf.reduce_sum, seen.scope.losses), self._are_sums, strict=True)
        ]
        return [*self._loss.terms(seen), *map(Weighted, added)]

    # ---- as a rider

    def prepare(self, like: Pass) -> list[tf.TensorShape]:  # noqa: ARG002
        """Sum and divisor of each further group, and of each output that is told apart."""
        pairs = self.groups - 1 + self._loss.told_apart
        return [tf.TensorShape([pairs, 2])] if pairs else []

    def parts(self, seen: Pass) -> list[tf.Tensor]:
        """The same of one micro-batch."""
        pairs = [*seen.sums.groups[1:], *seen.sums.outputs]
        return [tf.reshape([tf.cast(value, tf.float64) for pair in pairs for value in pair], [-1, 2])] if pairs else []

    def means(self, loss: tf.Tensor, weight: tf.Tensor, sums: Sequence[tf.Tensor], divides: bool) -> Means:
        """Divide.

        Args:
            loss, weight: () float64, the first group's.
            sums: what came back of `parts`.
            divides: whether anything is divided.
        """
        further = [tf.unstack(pair) for part in sums for pair in tf.unstack(tf.cast(part, tf.float64))]
        terms = [*(members[0] for members in self._groups), *range(self._loss.told_apart)]
        totals, weights = zip((loss, weight), *further, strict=True)
        counts = [
            _divisor(weight, divides and not self._is_plain[term]) for weight, term in zip(weights, terms, strict=True)
        ]
        means = [total / count for total, count in zip(totals, counts, strict=True)]
        return Means(tf.add_n(means[: self.groups]), counts[: self.groups], means[self.groups :])

    def settle(self, sums: Sequence[tf.Tensor], outcome: Outcome) -> dict[str, tf.Tensor]:  # noqa: ARG002
        """All is said in `means`."""
        return {}


class _One:
    """A single loss, of whatever the model gives, or none."""

    told_apart = 0  # outputs

    def __init__(self, loss: Any) -> None:
        self._loss = None if loss is None else losses.resolve(loss)

    def settings(self) -> list[str]:
        return [f"loss={self._loss.name} reduced by {self._loss.reduction}"] if self._loss else []

    def terms(self, seen: Pass) -> list[Weighted]:
        return [Weighted(losses.summed(self._loss, seen.y, seen.y_pred, seen.sample_weight))] if self._loss else []


class _Compiled:
    """What `compile` was given: a loss for each of a model's outputs, with or without weights."""

    def __init__(self, compiled: Any) -> None:
        self._compiled = compiled

    @property
    def told_apart(self) -> int:
        count = len(weighted_losses(self._compiled))
        return count if count > 1 else 0

    def settings(self) -> list[str]:
        losses = weighted_losses(self._compiled)
        return [f"loss={loss.name} reduced by {loss.reduction}, times {factor}" for loss, factor in losses]

    def terms(self, seen: Pass) -> list[Weighted]:
        found = matched_losses(self._compiled, seen.y, seen.y_pred, seen.sample_weight)
        return [Weighted(losses.summed(m.loss, m.y_true, m.y_pred, m.sample_weight), m.factor) for m in found]


def _grouped(terms: Sequence[Weighted]) -> list[list[int]]:
    """The numbers of the terms whose divisors count the same; plain sums, which have none, come last."""
    members: dict[int, list[int]] = {}
    for number, (term, _) in enumerate(terms):
        members.setdefault(id(term.counted), []).append(number)
    return sorted(members.values(), key=lambda group: terms[group[0]].term.counted is NOTHING)


def _sum_of(terms: Sequence[Weighted]) -> Pair:
    """(() the weighted sum of the losses of a group, () its divisor). One term's is N; that of several, the count."""
    pairs = [_over_each(term) for term, _ in terms] if len(terms) > 1 else [terms[0].term[:2]]
    dtype = pairs[0][0].dtype
    sums = [tf.cast(loss, dtype) * tf.cast(term.factor, dtype) for (loss, _), term in zip(pairs, terms, strict=True)]
    return tf.add_n(sums), pairs[0][1]


def _over_each(term: Term) -> Pair:
    """(() Σ loss / c, () count)."""
    return term.loss / term.each, tf.cast(term.weight, tf.float64) / term.each


def _divisor(count: tf.Tensor, divides: bool) -> tf.Tensor:
    """() float64: 1 where nothing is divided, and where all is masked: Keras takes 0 then, not 0/0."""
    one = tf.ones((), tf.float64)
    return tf.where(tf.equal(count, 0), one, count) if divides else one
