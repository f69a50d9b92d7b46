"""The losses of a step as sums: of all of a model's outputs, and those that its layers add.

A loss is kept as numerator and divisor, because only they can be added over micro-batches and workers:

    reduction of the loss            N
    sum_over_batch_size (default)    number of per-example losses; with a mask, of the unmasked ones
    mean_with_sample_weight          Σ w·mask
    sum, none                        1: nothing is divided, see `divides`

    L = Σ_terms weight_t · (Σ loss_t / N_t),   N_t = c_t · count_t

The divisor of most losses counts rows; of some, the entries that a mask leaves; a plain sum has none. Terms whose N_t
count the same thing form a group, which is one sum and one division:

    L = Σ_groups (Σ_terms weight_t / c_t · Σ loss_t) / count_g

Almost all models have one group. The divisor of a further one is known only once everything is summed, so it sends
gradients of its own: in the same vector, which is that much longer.

A loss may also be one number for a batch: a function of a user's own, what layers add, a `compute_loss` of the model's
own. Whether that number is a mean, a sum, or known from all rows only, the first batch tells (kinds.py).
"""

import inspect
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

import keras
import tensorflow as tf

from distgrad.errors import UnsupportedLoss
from distgrad.gradients.micro_batch import LossSum
from distgrad.keras_internals import (
    as_compile_loss,
    is_of_keras,
    keras_mask,
    matched_losses,
    weighted_losses,
    without_replica_scaling,
)
from distgrad.objective.extra_sums import Asked, ExtraSum, Losses, Pass, TrialPasses
from distgrad.objective.kinds import Evidence, Kind, Parts

ROWS, NOTHING = "rows", "nothing"  # counted by most divisors, and by that of a plain sum
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
        compiled = as_compile_loss(loss, model)
        self._loss: _Source
        if self.is_of_model:
            self._loss = _ModelLoss(model, training)
        else:
            self._loss = _SingleLoss(loss) if compiled is None else _CompiledLosses(compiled)

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

    def ask(self, trial: TrialPasses) -> dict[str, Asked]:
        """Return these losses."""
        kinds, self._kinds = self._kinds, [term.prefers for term in self._shape]
        whole = self._terms(trial.whole)
        # A loss that the model computes, and those that layers add, come of passes of their own.
        parts = [self._terms(seen) for seen in trial.parts or ()]
        cut = [] if self.is_of_model else [self._terms(seen) for seen in trial.cut]
        self._kinds = kinds
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
        terms = [*own, *(Weighted(_of_batch(loss, seen)) for loss in added)]
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


class _Source(Protocol):
    """The losses of a model's outputs."""

    @property
    def told_apart(self) -> int:
        """The number of outputs whose loss is reported, too."""
        ...

    def names(self) -> list[str]:
        """Return the names of the losses."""
        ...

    def settings(self) -> list[str]:
        """Return what all workers must share, each as "name=value"."""
        ...

    def terms(self, seen: Pass, kinds: Sequence[Kind]) -> list[Weighted]:
        """Return the losses of a micro-batch; those of kind WHOLE are of the global batch."""
        ...


class _SingleLoss:
    """One loss, of whatever the model gives, or none."""

    told_apart = 0

    def __init__(self, loss: Any) -> None:
        self._loss = None if loss is None else resolve(loss)

    def names(self) -> list[str]:
        return [self._loss.name] if self._loss else []

    def settings(self) -> list[str]:
        return [f"loss={self._loss.name} reduced by {self._loss.reduction}"] if self._loss else []

    def terms(self, seen: Pass, kinds: Sequence[Kind]) -> list[Weighted]:
        if self._loss is None:
            return []
        y, y_pred, sample_weight = _shown(seen, kinds[:1])
        return [Weighted(summed(self._loss, y, y_pred, sample_weight, rows=seen.rows, is_whole=_is_whole(kinds[:1])))]


class _CompiledLosses:
    """The losses that `compile` was given: one for each of a model's outputs, with or without weights."""

    def __init__(self, compiled: Any) -> None:
        self._compiled = compiled

    @property
    def told_apart(self) -> int:
        count = len(weighted_losses(self._compiled))
        return count if count > 1 else 0

    def names(self) -> list[str]:
        return [loss.name for loss, _ in weighted_losses(self._compiled)]

    def settings(self) -> list[str]:
        pairs = weighted_losses(self._compiled)
        return [f"loss={loss.name} reduced by {loss.reduction}, times {factor}" for loss, factor in pairs]

    def terms(self, seen: Pass, kinds: Sequence[Kind]) -> list[Weighted]:
        found = matched_losses(self._compiled, seen.y, seen.y_pred, seen.sample_weight)
        of_whole = found
        if _is_whole(kinds[: len(found)]):
            of_whole = matched_losses(self._compiled, *_shown(seen, kinds[: len(found)]))
        return [
            Weighted(summed(m.loss, m.y_true, m.y_pred, m.sample_weight, rows=seen.rows, is_whole=is_whole), m.factor)
            for m, is_whole in (
                (whole, True) if _is_whole(kinds[number : number + 1]) else (own, False)
                for number, (own, whole) in enumerate(zip(found, of_whole, strict=True))
            )
        ]


class _ModelLoss:
    """The loss that a `compute_loss` of the model's own gives: one number, regularization included."""

    told_apart = 0

    def __init__(self, model: keras.Model, training: bool) -> None:
        self._model = model
        takes_training = "training" in inspect.signature(model.compute_loss).parameters
        self._arguments = {"training": training} if takes_training else {}

    def names(self) -> list[str]:
        return [f"{type(self._model).__name__}.compute_loss"]

    def settings(self) -> list[str]:
        return [f"loss={self.names()[0]}"]

    def terms(self, seen: Pass, kinds: Sequence[Kind]) -> list[Weighted]:
        y, y_pred, sample_weight = _shown(seen, kinds)
        x = seen.whole.outputs.x if _is_whole(kinds) and seen.whole else seen.x
        with seen.scope:
            loss = self._model.compute_loss(x, y, y_pred, sample_weight, **self._arguments)
        return [Weighted(_of_batch(loss, seen))]


def _is_whole(kinds: Sequence[Kind]) -> bool:
    return Kind.WHOLE in kinds


def _shown(seen: Pass, kinds: Sequence[Kind]) -> tuple[Any, Any, Any]:
    """Return (y, y_pred, sample_weight) of the pass, or of the global batch for kind WHOLE."""
    if not _is_whole(kinds) or seen.whole is None:
        return seen.y, seen.y_pred, seen.sample_weight
    outputs = seen.whole.with_part(seen.y_pred, seen.rows)
    return outputs.y, outputs.y_pred, outputs.sample_weight


def _of_batch(loss: Any, seen: Pass) -> Term:
    """Return a loss that is one number for the batch, or several whose sum is differentiated."""
    loss = tf.convert_to_tensor(loss)
    if loss.shape.rank:
        total = tf.reduce_sum(loss)
        return Term(total, tf.cast(seen.rows, tf.int64), NOTHING, 1.0, total, Kind.SUM, True)
    return Term(loss, tf.cast(seen.rows, tf.int64), asked=loss)


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


# ---- one loss as numerator and divisor


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


NO_REDUCTION = (None, "none")


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
