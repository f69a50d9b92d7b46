"""The trial of the first batch: what it costs."""

from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

from distgrad import Communicator
from support.steps import integers, own, quiet


class Counting(keras.layers.Layer):
    """Counts the rows that pass through it, in `rows`; assigns a state if asked to."""

    def __init__(self, assigns: bool) -> None:
        super().__init__()
        self.assigns, self.rows = assigns, list[int]()

    def build(self, _shape: tuple[int, ...]) -> None:
        self.state = self.add_weight(shape=(), initializer="zeros", trainable=False, name="state")

    def call(self, x: tf.Tensor) -> tf.Tensor:
        if self.assigns:
            self.state.assign(0.9 * self.state + 0.1 * keras.ops.mean(x))
        counted = tf.numpy_function(self._count, [tf.shape(x)[0]], tf.float32)
        return x + tf.reshape(counted, ())

    def _count(self, rows: np.ndarray) -> np.float32:
        self.rows.append(int(rows))
        return np.float32(0)


def mean(y_true: tf.Tensor, y_pred: tf.Tensor) -> tf.Tensor:
    return tf.reduce_mean(tf.square(y_true - y_pred))


@pytest.mark.parametrize("loss", ["mse", mean])
@pytest.mark.parametrize("assigns", [False, True])
def test_it_costs_no_more_than_two_passes(comm: Communicator, assigns: bool, loss: Any) -> None:
    counting = Counting(assigns)
    with comm.scope():
        model = keras.Sequential([keras.Input((2,)), counting, keras.layers.Dense(1)])
    step, batch = quiet(comm, model, loss), own(comm, integers())
    counting.rows.clear()
    step(*batch)
    rows = len(batch[0])
    assert sum(counting.rows) <= 3 * max(rows, 1)
    counting.rows.clear()
    step(*batch)
    assert sum(counting.rows) <= max(rows, 1)
