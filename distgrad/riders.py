"""Riders: what else is summed in a step, in the same vector as the gradients.

A rider turns each forward pass into a few numbers that may be added: over micro-batches, then over workers. When the
sum is back, it does with it whatever it is for, on every worker alike. The moving statistics of normalisation layers
ride in every step, the changes of metrics under `fit`.
"""

import itertools
from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

import keras
import tensorflow as tf


class Pass(NamedTuple):
    """One micro-batch's way through the model.

    Attributes:
        x, y, sample_weight: the micro-batch, (b, ...) each; y and sample_weight may be None.
        y_pred: (b, ...) the model's output, or a nest of them.
        terms: for each output that has a loss, () Σ loss over the micro-batch.
        rows: () int32, b.
        scope: what the pass would have assigned to Keras variables.
    """

    x: Any
    y: Any
    sample_weight: Any
    y_pred: Any
    terms: Sequence[tf.Tensor]
    rows: tf.Tensor
    scope: keras.StatelessScope


class Outcome(NamedTuple):
    """One step, once its sum is known; the same on every worker.

    Attributes:
        loss: () float64, the global batch's loss.
        gradient_sum, gradient_norm: () float64, of the global gradient.
        examples: () int64, rows of the global batch.
        weight: () float64, what the losses are divided by.
        applied: () bool, whether the weights change.
    """

    loss: tf.Tensor
    gradient_sum: tf.Tensor
    gradient_norm: tf.Tensor
    examples: tf.Tensor
    weight: tf.Tensor
    applied: tf.Tensor


class Rider(Protocol):
    """Something that rides along. Outside of a graph it is prepared once, inside one it does the rest."""

    @property
    def zeroed(self) -> Sequence[keras.Variable]:
        """What a pass shall find to be zero, so that its value afterwards is its change."""

    def prepare(self, like: Pass) -> Sequence[tf.TensorShape]:
        """Learn from a pass of `KerasTensor`s what the real ones will be like, and tell the shapes of the parts."""

    def parts(self, seen: Pass) -> Sequence[tf.Tensor]:
        """What one micro-batch adds to the sums, in these shapes."""

    def settle(self, sums: Sequence[tf.Tensor], outcome: Outcome) -> dict[str, tf.Tensor]:
        """Use the sums over all micro-batches of all workers; what is returned goes into the report's logs."""


class Riders:
    """All the riders of a step, as one flat vector."""

    def __init__(self, riders: Sequence[Rider]) -> None:
        self.riders = list(riders)

    def prepare(self, like: Pass) -> None:
        """Prepare each rider, and lay out the vector."""
        self._shapes = [list(rider.prepare(like)) for rider in self.riders]
        self.entries = sum(int(shape.num_elements()) for shapes in self._shapes for shape in shapes)

    @property
    def zeroed(self) -> list[keras.Variable]:
        """The variables that a pass shall find to be zero."""
        return [variable for rider in self.riders for variable in rider.zeroed]

    def part(self, seen: Pass, dtype: tf.DType) -> tf.Tensor:
        """(entries,) what one micro-batch adds."""
        parts = itertools.chain.from_iterable(rider.parts(seen) for rider in self.riders)
        return tf.concat([tf.zeros(0, dtype), *(tf.reshape(tf.cast(part, dtype), [-1]) for part in parts)], 0)

    def settle(self, flat: tf.Tensor, outcome: Outcome) -> dict[str, tf.Tensor]:
        """Hand each rider its sums out of the flat vector (entries,); returns all that they tell."""
        told: dict[str, tf.Tensor] = {}
        start = 0
        for rider, shapes in zip(self.riders, self._shapes, strict=True):
            sums = []
            for shape in shapes:
                size = int(shape.num_elements())
                sums.append(tf.reshape(flat[start : start + size], shape))
                start += size
            told |= rider.settle(sums, outcome)
        return told
