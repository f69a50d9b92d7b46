"""An evaluation is a step that changes nothing: the same sums over micro-batches and workers, without gradients."""

from collections.abc import Sequence
from typing import Any

import keras
import tensorflow as tf

from distgrad.gradients.micro_batch import GradientSum, regularisation
from distgrad.step.distributed_step import DistributedStep
from distgrad.step.graph import StepGraph


class _Graph(StepGraph):
    def _penalty(self) -> GradientSum:
        return regularisation(self.model.trainable_variables)._replace(gradients=[])

    def _loss_scale(self) -> Any:
        return None

    def _update(self, gradients: Sequence[Any], finite: tf.Tensor, applied: tf.Tensor) -> None:
        """Leave the weights alone."""


class Evaluation(DistributedStep):
    """Losses and metrics of the global batch in inference mode; see `DistributedStep`."""

    _trains = False
    _kind = _Graph

    def _differentiated(self) -> list[keras.Variable]:
        return []

    def _state(self) -> list[keras.Variable]:
        return list(self.model.variables)
