"""The trial of the first batch: what it costs, and what it must cope with."""

from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import ops

import distgrad
from distgrad import Communicator
from support.steps import integers, own, quiet


class Counting(keras.layers.Layer):
    """Counts the rows that pass through it, in `rows`.

    Args:
        assigns: True assigns a state.
        takes: a number of rows; with any other the model fails.
    """

    def __init__(self, assigns: bool, takes: int | None = None) -> None:
        super().__init__()
        self.assigns, self.takes, self.rows = assigns, takes, list[int]()

    def build(self, _shape: tuple[int, ...]) -> None:
        self.state = self.add_weight(shape=(), initializer="zeros", trainable=False, name="state")

    def call(self, x: tf.Tensor) -> tf.Tensor:
        if self.assigns:
            self.state.assign(0.9 * self.state + 0.1 * keras.ops.mean(x))
        counted = tf.numpy_function(self._count, [tf.shape(x)[0]], tf.float32)
        return x + tf.reshape(counted, ())

    def _count(self, rows: np.ndarray) -> np.float32:
        self.rows.append(int(rows))
        if self.takes not in (None, rows):
            raise ValueError(f"{rows} rows")
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


def test_a_model_that_takes_no_parts_is_asked_once(comm: Communicator) -> None:
    """The loss is always 0: no batch will tell what it is."""
    counting = Counting(assigns=False, takes=6)
    with comm.scope():
        model = keras.Sequential([keras.Input((2,)), counting, keras.layers.Dense(1)])
    step = quiet(comm, model, lambda _, y_pred: tf.reduce_mean(0.0 * y_pred))
    batch = np.ones((6 * comm.span, 2), "float32"), np.ones((6 * comm.span, 1), "float32")
    step(*batch)
    counting.rows.clear()
    step(*batch)
    assert sum(counting.rows) == 6 * comm.span


class Adding(keras.layers.Layer):
    """Adds what a function gives of its input as a loss."""

    def __init__(self, function: Any) -> None:
        super().__init__()
        self.function = function

    def call(self, x: Any) -> Any:
        self.add_loss(self.function(x))
        return x


def test_values_that_do_not_decide_are_asked_of_batches_of_every_shape(comm: Communicator) -> None:
    """The added loss is always 0, which any kind of value may be."""
    nothing = Adding(lambda x: ops.sum(ops.relu(x - 99)))
    with comm.scope():
        pooled = [nothing, keras.layers.GlobalAveragePooling1D(), keras.layers.Dense(1)]
        model = keras.Sequential([keras.Input((None, 3)), *pooled])
    step = quiet(comm, model)
    for length in (5, 6, 7):
        batch = np.ones((12, length, 3), "float32"), np.ones((12, 1), "float32")
        assert step(*own(comm, batch)).applied


def test_one_row_for_each_worker(comm: Communicator) -> None:
    """The loss needs four values, of which a row has eight, and none has none."""

    def hardest(y_true: tf.Tensor, y_pred: tf.Tensor) -> tf.Tensor:
        return tf.reduce_mean(tf.math.top_k(tf.reshape(tf.square(y_true - y_pred), [-1]), k=4).values)

    with comm.scope():
        model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(8)])
    batch = np.ones((comm.span, 3), "float32"), np.ones((comm.span, 8), "float32")
    assert quiet(comm, model, hardest)(*batch).applied


class Penalised(keras.Model):
    """Has a loss of its own, of what its layers have added and of what its last call has left."""

    def __init__(self, added: Any) -> None:
        super().__init__()
        self.adding, self.dense = Adding(added), keras.layers.Dense(2, kernel_initializer="ones")

    def call(self, x: Any) -> Any:
        self.before = self.dense(self.adding(x))
        return ops.tanh(self.before)

    def compute_loss(self, x: Any, y: Any, y_pred: Any, sample_weight: Any = None, training: bool = True) -> Any:  # noqa: ARG002
        return ops.mean(ops.square(y - y_pred)) + ops.mean(ops.square(self.before)) + tf.add_n(self.losses)


def test_a_compute_loss_sees_the_pass_whose_loss_it_computes(
    comm: Communicator, capfd: pytest.CaptureFixture[str]
) -> None:
    """It is known for a mean from the first batch on."""
    x, y = np.random.default_rng(2).normal(size=(12, 5)).astype("float32"), np.ones((12, 2), "float32")
    keras.utils.set_random_seed(3)
    oracle = Penalised(lambda x: ops.mean(ops.square(x)))
    oracle.compile("sgd", run_eagerly=True)
    expected = oracle.fit(x, y, batch_size=6, shuffle=False, verbose=0, epochs=2).history["loss"]
    capfd.readouterr()
    with comm.scope():
        model = distgrad.distribute(Penalised(lambda x: ops.mean(ops.square(x))), comm, micro_batch_size=2)
    model.compile("sgd")
    found = model.fit(x, y, batch_size=6, shuffle=False, verbose=0, epochs=2).history["loss"]
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    assert "distgrad: note" not in capfd.readouterr().err


class Histogram(keras.layers.Layer):
    """Counts what it is given in a state, by an operation that does not tell how many numbers it gives."""

    def build(self, _shape: tuple[int, ...]) -> None:
        self.counts = self.add_weight(shape=(8,), initializer="zeros", trainable=False, name="counts")

    def call(self, x: tf.Tensor) -> tf.Tensor:
        numbers = tf.cast(tf.reshape(x, [-1]), tf.int32)
        self.counts.assign(self.counts + tf.math.bincount(numbers, minlength=8, maxlength=8, dtype=tf.float32))
        return x


def test_a_state_whose_new_value_has_no_static_shape(comm: Communicator) -> None:
    with comm.scope():
        model = keras.Sequential([keras.Input((2,)), Histogram(), keras.layers.Dense(1)])
    x = np.arange(24, dtype="float32").reshape(12, 2) % 8
    assert quiet(comm, model, micro_batch_size=2)(*own(comm, (x, np.ones((12, 1), "float32")))).applied
    np.testing.assert_array_equal(model.layers[0].counts.numpy(), np.full(8, 3.0))
