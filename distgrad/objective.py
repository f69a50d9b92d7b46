"""The losses of all of a model's outputs as one objective in sums.

    one loss        Σ w·loss and N as loss.py has them
    several         L = Σ_outputs weight_o · (Σ loss_o / N_o),   N_o = c_o · rows
                    so that   L = (Σ_outputs weight_o / c_o · Σ loss_o) / rows:   one sum and one division again

c_o is how many losses output o has a row. Where N_o depends on the data in another way (a mask, a sum of sample
weights), each output's gradient would need a sum and a division of its own; that is refused.
"""

from typing import Any, NamedTuple

import keras
import numpy as np
import tensorflow as tf
from keras.src.backend import compute_output_spec

# It knows how the outputs, targets, sample weights and losses of `compile` belong together.
from keras.src.trainers.compile_utils import CompileLoss

from distgrad import loss as losses
from distgrad.errors import UnsupportedLoss


class Sums(NamedTuple):
    """One micro-batch's loss.

    Attributes:
        loss: () Σ w·loss, of several outputs the weighted sum.
        weight: () N.
        terms: one () for each output, Σ loss_o / c_o, unweighted.
    """

    loss: tf.Tensor
    weight: tf.Tensor
    terms: list[tf.Tensor]


class OneLoss:
    """A single loss, of whatever the model gives."""

    names: tuple[str, ...] = ()  # of outputs that are told apart

    def __init__(self, loss: Any) -> None:
        self._loss = losses.resolve(loss)

    def prepare(self, y: Any, y_pred: Any, sample_weight: Any) -> None:
        """There is nothing to learn from the shapes."""

    @property
    def divides(self) -> bool:
        """Whether the gradient is divided by N."""
        return losses.divides(self._loss)

    def settings(self) -> list[str]:
        """What all workers must share."""
        return [f"loss={self._loss.name} reduced by {self._loss.reduction}"]

    def sums(self, y: Any, y_pred: Any, sample_weight: Any, rows: tf.Tensor) -> Sums:  # noqa: ARG002
        """The loss of one micro-batch."""
        loss, weight = losses.summed(self._loss, y, y_pred, sample_weight)
        return Sums(loss, weight, [])


class CompiledLosses:
    """What `compile` was given: a loss for each of a model's outputs, with or without weights."""

    def __init__(self, compiled: CompileLoss) -> None:
        self._compiled = compiled

    def prepare(self, y: Any, y_pred: Any, sample_weight: Any) -> None:
        """Let Keras find which loss belongs to which output.

        Args:
            y, y_pred, sample_weight: nests of `KerasTensor`s.

        Raises:
            UnsupportedLoss: some outputs' losses are means and others plain sums, or one is divided by its weights.
        """
        if not self._compiled.built:
            compute_output_spec(self._compiled, y, y_pred, sample_weight)
        self._losses = list(self._compiled._flat_losses)
        if self._several:
            self._require_one_division()

    def _require_one_division(self) -> None:
        for entry in self._losses:
            if losses.divides(entry.loss) != self.divides:
                _refuse(entry.name, "is reduced otherwise than that of another output", "give all losses one reduction")
            if entry.loss.reduction == "mean_with_sample_weight":
                _refuse(entry.name, "is divided by its sample weights", "use the reduction 'sum_over_batch_size'")

    @property
    def _several(self) -> bool:
        return len(self._losses) > 1

    @property
    def names(self) -> tuple[str, ...]:
        """The outputs that are told apart; none if there is only one."""
        return tuple(entry.name for entry in self._losses) if self._several else ()

    @property
    def divides(self) -> bool:
        """Whether the gradient is divided by N."""
        return losses.divides(self._losses[0].loss)

    def settings(self) -> list[str]:
        """What all workers must share."""
        return [f"loss={e.loss.name} reduced by {e.loss.reduction}, times {e.loss_weights}" for e in self._losses]

    def sums(self, y: Any, y_pred: Any, sample_weight: Any, rows: tf.Tensor) -> Sums:
        """The losses of one micro-batch."""
        found: list[tuple[tf.Tensor, tf.Tensor]] = []

        def collector(entry: Any) -> Any:
            def collect(y_true: Any, y_pred: Any, weight: Any = None) -> tf.Tensor:
                one = self._per_row if self._several else losses.summed
                found.append(one(entry.loss, y_true, y_pred, weight))
                return tf.zeros(())

            return entry._replace(loss=collect)

        keras_s = CompileLoss.__new__(CompileLoss)  # a shallow copy, which Keras's objects refuse to be
        vars(keras_s).update(vars(self._compiled))
        keras_s._flat_losses = [collector(entry) for entry in self._losses]
        keras_s._metrics = [None] * len(self._losses)  # each output's mean loss is taken from the global sums
        keras_s(y, y_pred, sample_weight)
        weighted = [
            numerator if entry.loss_weights is None else numerator * tf.cast(entry.loss_weights, numerator.dtype)
            for (numerator, _), entry in zip(found, self._losses, strict=True)
        ]
        if not self._several:
            return Sums(weighted[0], found[0][1], [])
        return Sums(tf.add_n([tf.cast(w, tf.float32) for w in weighted]), rows, [numerator for numerator, _ in found])

    def _per_row(self, loss: keras.losses.Loss, y_true: Any, y_pred: Any, weight: Any) -> tuple[tf.Tensor, Any]:
        """(Σ loss / c, c)."""
        name = self._losses[0].name
        name = next((entry.name for entry in self._losses if entry.loss is loss), name)
        shape, masked = losses.shape_and_mask(loss, y_true, y_pred)
        if masked and self.divides:
            _refuse(name, "is divided by the entries its mask leaves", "pass the mask as sample_weight instead")
        if not shape[1:].is_fully_defined():
            _refuse(name, f"has a variable number of entries a row, {shape}", "fix the shape of the output")
        numerator, _ = losses.summed(loss, y_true, y_pred, weight)
        per_row = float(np.prod(shape[1:].as_list())) if self.divides else 1.0
        return numerator / tf.cast(per_row, numerator.dtype), per_row


def of(loss: Any, model: keras.Model) -> OneLoss | CompiledLosses:
    """What `DistributedStep` was given as a loss.

    Raises:
        UnsupportedLoss: it is no loss.
    """
    if isinstance(loss, CompileLoss):
        return CompiledLosses(loss)
    if isinstance(loss, (list, tuple, dict)):
        return CompiledLosses(CompileLoss(loss, None, output_names=getattr(model, "output_names", None)))
    return OneLoss(loss)


def _refuse(name: str, why: str, fix: str) -> None:
    raise UnsupportedLoss(f"with several losses, that of output {name!r} {why}", fix, everywhere=True)
