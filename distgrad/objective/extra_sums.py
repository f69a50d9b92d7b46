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


class Sums(NamedTuple):
    """The losses of one micro-batch; each is (() Σ loss, () what it will be divided by).

    Attributes:
        groups: those that are differentiated, see objective.py; the first one has lanes of its own.
        outputs: those of the outputs that are told apart.
    """

    groups: Sequence[tuple[tf.Tensor, tf.Tensor]]
    outputs: Sequence[tuple[tf.Tensor, tf.Tensor]]


class Pass(NamedTuple):
    """One micro-batch's way through the model.

    Attributes:
        x, y, sample_weight: the micro-batch, (b, ...) each; y and sample_weight may be None.
        y_pred: (b, ...) the model's output, or a nest of them.
        rows: () int32, b.
        scope: what the pass would have assigned to Keras variables, and the losses that layers added.
        sums: its losses, once they are known.
    """

    x: Any
    y: Any
    sample_weight: Any
    y_pred: Any
    rows: tf.Tensor
    scope: keras.StatelessScope
    sums: Any = None


class Outcome(NamedTuple):
    """One step, once its sum is known; the same on every worker.

    Attributes:
        loss: () float64, the global batch's loss.
        gradient_sum, gradient_norm: () float64, of the global gradient.
        examples: () int64, rows of the global batch.
        outputs: for each output that is told apart, () float64 its mean loss.
        applied: () bool, whether the weights change.
    """

    loss: tf.Tensor
    gradient_sum: tf.Tensor
    gradient_norm: tf.Tensor
    examples: tf.Tensor
    outputs: Sequence[tf.Tensor]
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

    def cut(self, flat: tf.Tensor) -> list[list[tf.Tensor]]:
        """Each rider's sums, out of the flat vector (entries,)."""
        sizes = [int(shape.num_elements()) for shape in itertools.chain(*self._shapes)]
        parts = iter(tf.split(flat, sizes) if sizes else [])
        return [[tf.reshape(next(parts), shape) for shape in shapes] for shapes in self._shapes]

    def settle(self, sums: Sequence[Sequence[tf.Tensor]], outcome: Outcome) -> dict[str, tf.Tensor]:
        """Hand each rider its sums; returns all that they tell."""
        told: dict[str, tf.Tensor] = {}
        for rider, own in zip(self.riders, sums, strict=True):
            told |= rider.settle(own, outcome)
        return told
