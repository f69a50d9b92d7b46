"""Losses that layers add, several losses, and what is no loss, on every engine."""

from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

from distgrad import Communicator
from distgrad.errors import UnsupportedLoss
from support.step_zoo import ROWS, Case
from support.steps import TOLERANCE, build, integers, linear, own, quiet, weights
from support.versions import since_keras


def test_a_loss_may_be_a_mean_already(comm: Communicator) -> None:
    """A function that gives the mean over its rows trains as one that leaves the mean to Keras."""
    kinds = [lambda y, p: tf.square(y - p), lambda y, p: tf.reduce_mean(tf.square(y - p))]
    models = [linear(comm), linear(comm)]
    for model, loss in zip(models, kinds, strict=True):
        quiet(comm, model, loss, micro_batch_size=2)(*own(comm, integers()))
    assert np.abs(weights(models[0]) - weights(models[1])).max() <= TOLERANCE


class Adding(keras.layers.Layer):
    """Adds a loss that is a mean over the rows, one that is a sum, and one that is always the same."""

    def call(self, x: Any) -> Any:
        self.add_loss(keras.ops.mean(keras.ops.square(x)))
        self.add_loss(0.01 * keras.ops.sum(keras.ops.abs(x)))
        self.add_loss(keras.ops.convert_to_tensor(2.5))
        return x


@pytest.mark.parametrize("loss", ["mse", keras.losses.MeanSquaredError(reduction="sum")])
def test_losses_that_layers_add(comm: Communicator, loss: Any) -> None:
    """Means and constants count by rows and sums as they are, whatever the loss's own reduction."""
    penalties = {"activity_regularizer": "l2", "kernel_regularizer": "l2"}

    def adding() -> keras.Model:
        return keras.Sequential([keras.Input((2,)), keras.layers.Dense(3, **penalties), Adding()])

    model, oracle = build(comm, Case(adding, loss, lambda _: (), {}))
    oracle.compile("sgd", loss, run_eagerly=True)
    x, y = integers()
    step = quiet(comm, model, loss, micro_batch_size=2)
    for _ in range(2):
        expected = oracle.train_on_batch(x, np.tile(y, 3))
        oracle.reset_metrics()
        assert step(*own(comm, (x, np.tile(y, 3)))).loss == pytest.approx(expected, rel=1e-5)
    assert np.abs(weights(model) - weights(oracle)).max() <= 1e-5


def test_no_loss_at_all_is_refused(comm: Communicator) -> None:
    with pytest.raises(UnsupportedLoss, match="there is no loss"):
        quiet(comm, linear(comm), None)(*own(comm, integers()))


def two_outputs() -> keras.Model:
    x = keras.Input((2,))
    return keras.Model(x, [keras.layers.Dense(3, name="many")(x), keras.layers.Dense(1, name="one")(x)])


@pytest.mark.parametrize("reduction", ["sum_over_batch_size", "sum"])
def test_a_loss_for_each_output(comm: Communicator, reduction: str) -> None:
    losses = [keras.losses.MeanAbsoluteError(reduction=reduction), keras.losses.Huber(reduction=reduction)]
    model, oracle = build(comm, Case(two_outputs, losses, lambda _: (), {}))
    x, y = integers()
    targets = [np.tile(y, 3), y]
    oracle.compile("sgd", losses, run_eagerly=True)
    expected = oracle.train_on_batch(x, targets)[0]
    share, *own_targets = own(comm, (x, *targets))
    report = quiet(comm, model, losses, micro_batch_size=2)(share, own_targets)
    assert report.loss == pytest.approx(expected, rel=1e-6)
    assert np.abs(weights(model) - weights(oracle)).max() <= TOLERANCE


BY_WEIGHT = pytest.param("mean_with_sample_weight", marks=since_keras(3, 7))


@pytest.mark.parametrize("odd", ["sum", BY_WEIGHT, "sum_over_batch_size"])
def test_losses_with_a_divisor_each(comm: Communicator, odd: str) -> None:
    """One is divided by its rows, one by what a mask leaves, which differs, and one in another way still."""

    def masked() -> keras.Model:
        words = keras.Input((4,), dtype="int32")
        x = keras.layers.Embedding(5, 3, mask_zero=True)(words)
        each = [keras.layers.Dense(2, name=name)(x) for name in ("masked", "also")]
        return keras.Model(words, [keras.layers.GlobalAveragePooling1D()(x), *each])

    losses = ["mae", "mse", keras.losses.MeanSquaredError(reduction=odd)]
    model, oracle = build(comm, Case(masked, losses, lambda _: (), {}))
    rng = np.random.default_rng(6)
    x = rng.integers(1, 5, (ROWS, 4)).astype("int32") * (np.arange(4) < rng.integers(1, 5, (ROWS, 1)))
    y = [rng.normal(size=(ROWS, *shape)).astype("float32") for shape in ((3,), (4, 2), (4, 2))]
    weight = [rng.uniform(0.5, 2, shape).astype("float32") for shape in ((ROWS,), (ROWS, 4), (ROWS, 4))]
    oracle.compile("sgd", losses, run_eagerly=True)
    expected = oracle.train_on_batch(x, y, weight)[0]
    share, *rest = own(comm, (x, *y, *weight))
    step = quiet(comm, model, losses, micro_batch_size=2)
    report = step(share, rest[:3], rest[3:])
    assert step._objective.groups == (2 if odd == "sum_over_batch_size" else 3)
    assert report.loss == pytest.approx(expected, rel=1e-6)
    assert np.abs(weights(model) - weights(oracle)).max() <= TOLERANCE
