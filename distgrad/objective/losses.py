"""The losses of a step as sums: of all of a model's outputs, and those that its layers add.

A loss is kept as numerator and divisor (terms.py), because only they can be added over micro-batches and workers:

    L = Σ_terms weight_t · (Σ loss_t / N_t),   N_t = c_t · count_t

The divisor of most losses counts rows; of some, the entries that a mask leaves; a plain sum has none. Terms whose N_t
count the same thing form a group, which is one sum and one division:

    L = Σ_groups (Σ_terms weight_t / c_t · Σ loss_t) / count_g

Almost all models have one group. The divisor of a further one is known only once everything is summed, so it sends
gradients of its own: in the same vector, which is that much longer.

A loss may also be one number for a batch: a function of a user's own, what layers add, a `compute_loss` of the model's
own. Whether that number is a mean, a sum, or known from all rows only, the first batch tells (kinds.py).
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import keras
import tensorflow as tf

from distgrad.errors import UnsupportedLoss
from distgrad.gradients.micro_batch import LossSum
from distgrad.keras_internals import without_replica_scaling
from distgrad.objective.extra_sums import Asked, ExtraSum, Losses, Pass, TrialPasses
from distgrad.objective.kinds import Evidence, Kind, Parts
from distgrad.objective.loss_sources import of_batch, source_of
from distgrad.objective.terms import NOTHING, ROWS, Term, Weighted


class Means(NamedTuple):
    """The losses of the global batch.

    Attributes:
        loss: () float64, L.
        counts: for each group, () float64, the divisor of its sums.
        outputs: for each output, where a model has several, () float64, its mean loss.
        logged: () float64, L as Keras logs it: losses without a reduction as their mean.
    """

    loss: tf.Tensor
    counts: list[tf.Tensor]
    outputs: list[tf.Tensor]
    logged: tf.Tensor


class Objective(ExtraSum):
    """The loss that is differentiated. Sums and divisors beyond the first group's are an extra sum.

    Args:
        loss: what `DistributedStep` takes, or None, or what `compile` made of it.
        model: the model whose loss it is.
        training: True in training mode, for a `compute_loss` of the model's own.
        uses_model_loss: True to take the loss from the model's `compute_loss`, if it has one of its own.

    Attributes:
        is_of_model: True if the model's own `compute_loss` gives the loss, regularization included.

    Raises:
        UnsupportedLoss: it is no loss.
    """

    def __init__(self, loss: Any, model: keras.Model, training: bool = True, uses_model_loss: bool = False) -> None:
        self.is_of_model = uses_model_loss and type(model).compute_loss is not keras.Model.compute_loss
        self._loss = source_of(loss, model, training, is_of_model=self.is_of_model)

    def prepare_terms(self, seen: Pass) -> list[LossSum]:
        """Find the losses there are.

        Args:
            seen: a pass, as tensors of a graph that is thrown away.

        Returns:
            The sums of all of them.

        Raises:
            UnsupportedLoss: there is no loss.
        """
        self._kinds: list[Kind] = []
        self._added = 0 if self.is_of_model else len(seen.scope.losses)
        terms = self._terms(seen)
        if not terms:
            raise UnsupportedLoss("there is no loss", "give compile() one, or let a layer add one", everywhere=True)
        self._shape = [term._replace(total=None, weight=None, asked=None) for term, _ in terms]
        self._is_asked = [term.asked is not None for term, _ in terms]
        self._kinds = [term.prefers for term, _ in terms]
        self._group()
        return [term.sum for term, _ in terms]

    def _group(self) -> None:
        counted = [
            NOTHING
            if asked and kind is Kind.SUM and term.prefers is Kind.MEAN
            else ROWS
            if kind is Kind.WHOLE
            else term.counted
            for term, kind, asked in zip(self._shape, self._kinds, self._is_asked, strict=True)
        ]
        self._is_plain_sum = [what is NOTHING for what in counted]
        self._logs_mean = [
            term.logs_mean and (is_sum or kind is Kind.WHOLE)
            for term, is_sum, kind in zip(self._shape, self._is_plain_sum, self._kinds, strict=True)
        ]
        self._groups = _grouped(counted)

    def questions(self) -> list[str]:
        """Return the names of the losses that are one number for a batch, or may look at other rows."""
        return [f"loss {number}" for number, asked in enumerate(self._is_asked) if asked]

    @property
    def asks_outputs(self) -> bool:
        """True if the kind of an output's loss is not known."""
        return not self.is_of_model and any(self._is_asked[: len(self._shape) - self._added])

    @property
    def needs_parts(self) -> bool:
        """True if the loss is computed from inputs, too."""
        return self.is_of_model

    def take(self, seen: Pass) -> list[Weighted] | None:
        """Return what `compute_loss` gives, which may use what the model's `call` has left; None without one."""
        return self._asked(seen) if self.is_of_model else None

    def _asked(self, seen: Pass) -> list[Weighted]:
        """Return the losses as if nothing were known of them."""
        kinds, self._kinds = self._kinds, [term.prefers for term in self._shape]
        terms, self._kinds = self._terms(seen), kinds
        return terms

    def ask(self, trial: TrialPasses) -> dict[str, Asked]:
        """Return these losses."""
        # A loss that the model computes, and those that layers add, come of passes of their own.
        whole, *parts = [
            (seen.taken or {}).get(self) or self._asked(seen) for seen in (trial.whole, *(trial.parts or ()))
        ]
        cut = [] if self.is_of_model else [self._asked(seen) for seen in trial.cut]
        found = {}
        for number in (number for number, asked in enumerate(self._is_asked) if asked):
            of_forward = self.is_of_model or number >= len(self._shape) - self._added
            others = parts if of_forward else cut
            if others:
                values = [terms[number].term.asked for terms in (whole, *others)]
                found[f"loss {number}"] = Asked(Parts(*values), of_forward)
        return found

    def learn(self, evidence: Evidence) -> bool:
        """Learn which losses are means, which are sums, and which need the global batch."""
        before = list(self._kinds)
        for number, (term, asked) in enumerate(zip(self._shape, self._is_asked, strict=True)):
            if asked:
                kind = evidence.kind(f"loss {number}", term.prefers)
                is_row_by_row = term.prefers is Kind.SUM
                self._kinds[number] = Kind.WHOLE if is_row_by_row and kind is not Kind.SUM else kind
        self._group()
        return before != self._kinds

    @property
    def needs_whole(self) -> list[str]:
        """The losses of outputs that need the global batch."""
        own = len(self._shape) - self._added
        names = self._loss.names()
        return [f"loss {names[number]!r}" for number in range(own) if self._kinds[number] is Kind.WHOLE]

    @property
    def taken_as_means(self) -> list[str]:
        """Added losses that need the global batch, which they cannot be given."""
        own = len(self._shape) - self._added
        return [f"added loss {n - own}" for n in range(own, len(self._shape)) if self._kinds[n] is Kind.WHOLE]

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
        kinds = [kind.name for kind, asked in zip(self._kinds, self._is_asked, strict=True) if asked]
        return [*self._loss.settings(), f"groups={self._groups}", f"losses of a batch={kinds}"]

    def losses(self, seen: Pass) -> Losses:
        """Sum the losses of one micro-batch."""
        terms = self._terms(seen)
        groups = [_sum_of([terms[number] for number in members]) for members in self._groups]
        told = [terms[number].term.over_each for number in range(self._loss.told_apart)]
        logged = [_for_log(terms[number].term) for number, logs in enumerate(self._logs_mean) if logs]
        return Losses(groups, [*told, *logged])

    def _terms(self, seen: Pass) -> list[Weighted]:
        added = [] if self.is_of_model else list(map(tf.reduce_sum, seen.scope.losses))
        with without_replica_scaling():
            own = self._loss.terms(seen, self._kinds)
        terms = [*own, *(Weighted(of_batch(loss, seen)) for loss in added)]
        return [
            Weighted(_by_kind(term, kind, seen), factor)
            for (term, factor), kind in zip(terms, self._kinds or [Kind.MEAN] * len(terms), strict=True)
        ]

    # ---- as an extra sum: sum and divisor of each further group, of each output where there are several, and of the
    # plain sums that are logged as means

    def shapes(self) -> list[tf.TensorShape]:
        """Return (pairs, 2), or nothing for a single loss."""
        pairs = self.groups - 1 + self._loss.told_apart + sum(self._logs_mean)
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
        pairs = [LossSum(*tf.unstack(pair)) for part in extra for pair in tf.unstack(tf.cast(part, tf.float64))]
        told_apart, further = self._loss.told_apart, self.groups - 1
        sums = [first, *pairs[: further + told_apart]]
        terms = [*(members[0] for members in self._groups), *range(told_apart)]
        counts = [
            _divisor(
                one.weight, (divides and not self._is_plain_sum[term]) or (place > further and self._logs_mean[term])
            )
            for place, (one, term) in enumerate(zip(sums, terms, strict=True))
        ]
        means = [one.total / count for one, count in zip(sums, counts, strict=True)]
        loss = means[0] if self.groups == 1 else tf.add_n(means[: self.groups])
        logged = loss
        kinds = [kind for kind, logs in zip(self._kinds, self._logs_mean, strict=True) if logs]
        for one, kind in zip(pairs[further + told_apart :], kinds, strict=True):  # each is part of the loss as a sum
            logged += one.total / _divisor(one.weight, True) - (0 if kind is Kind.WHOLE else one.total)
        return Means(loss, counts[: self.groups], means[self.groups :], logged)


def _by_kind(term: Term, kind: Kind, seen: Pass) -> Term:
    """Turn a loss that is one number for a batch into a numerator, as its kind says."""
    if term.asked is None or (term.prefers is Kind.SUM and kind is not Kind.WHOLE):
        return term
    rows = tf.cast(seen.rows, term.total.dtype)
    if kind is Kind.SUM:
        return term._replace(counted=NOTHING)
    if kind is not Kind.WHOLE or seen.whole is None:
        return term._replace(total=term.total * rows)
    # Its value counts by rows, like a mean. Its gradient is that of this part, which adds up to the whole one.
    value, scaled = tf.stop_gradient(term.asked), term.asked * tf.cast(seen.whole.rows, term.asked.dtype)
    total = value * tf.cast(rows, value.dtype) + (scaled - tf.stop_gradient(scaled))
    return term._replace(total=total, weight=tf.cast(seen.rows, tf.int64), counted=ROWS, each=1.0)


def _for_log(term: Term) -> LossSum:
    """Return what Keras's log has of a plain sum: it and its count; or, of the global batch, how far their mean is."""
    if term.entries is None:
        return term.sum
    value = tf.stop_gradient(term.asked)
    apart = value / tf.cast(term.entries, value.dtype) - value
    return LossSum(apart * tf.cast(term.weight, value.dtype), term.weight)


def _grouped(counted: Sequence[Any]) -> list[list[int]]:
    """Return the numbers of the terms whose divisors count the same; plain sums, which have none, come last."""
    members: dict[int, list[int]] = {}
    for number, what in enumerate(counted):
        members.setdefault(id(what), []).append(number)
    return sorted(members.values(), key=lambda group: counted[group[0]] is NOTHING)


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
