"""Where the losses of a model's outputs come from: one function or Loss, `compile`, or a `compute_loss` of its own."""

import inspect
from collections.abc import Sequence
from typing import Any, Protocol

import keras
import tensorflow as tf

from distgrad.keras_internals import as_compile_loss, matched_losses, weighted_losses
from distgrad.objective.extra_sums import Pass
from distgrad.objective.kinds import Kind
from distgrad.objective.terms import NOTHING, Term, Weighted, resolve, summed


class LossSource(Protocol):
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


def source_of(loss: Any, model: keras.Model, training: bool, *, is_of_model: bool) -> LossSource:
    """Return where the losses come from.

    Args:
        loss, model, training: see `Objective`.
        is_of_model: True for the model's own `compute_loss`.

    Raises:
        UnsupportedLoss: it is no loss.
    """
    compiled = as_compile_loss(loss, model)
    if is_of_model:
        return _ModelLoss(model, training)
    return _SingleLoss(loss) if compiled is None else _CompiledLosses(compiled)


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
        return [Weighted(of_batch(loss, seen))]


def _is_whole(kinds: Sequence[Kind]) -> bool:
    return Kind.WHOLE in kinds


def _shown(seen: Pass, kinds: Sequence[Kind]) -> tuple[Any, Any, Any]:
    """Return (y, y_pred, sample_weight) of the pass, or of the global batch for kind WHOLE."""
    if not _is_whole(kinds) or seen.whole is None:
        return seen.y, seen.y_pred, seen.sample_weight
    outputs = seen.whole.with_part(seen.y_pred, seen.rows)
    return outputs.y, outputs.y_pred, outputs.sample_weight


def of_batch(loss: Any, seen: Pass) -> Term:
    """Return a loss that is one number for the batch, or several whose sum is differentiated."""
    loss = tf.convert_to_tensor(loss)
    if loss.shape.rank:
        total = tf.reduce_sum(loss)
        return Term(total, tf.cast(seen.rows, tf.int64), NOTHING, 1.0, total, Kind.SUM, True)
    return Term(loss, tf.cast(seen.rows, tf.int64), asked=loss)
