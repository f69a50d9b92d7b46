"""Dtypes and loss scales: what is summed in which precision, on every engine."""

import keras
import numpy as np
import pytest

from distgrad import Communicator
from distgrad.errors import UnsupportedDtype
from support.steps import integers, linear, own, product, quiet, weights


def test_mixed_precision_scales_and_adjusts_alike(comm: Communicator) -> None:
    x, y = integers()
    with comm.scope():
        model = keras.Sequential(
            [
                keras.Input((2,)),
                keras.layers.Dense(1, use_bias=False, kernel_initializer="ones", dtype="mixed_float16"),
            ]
        )
        optimizer = keras.optimizers.LossScaleOptimizer(
            keras.optimizers.SGD(0.5), initial_scale=2.0**10, dynamic_growth_steps=2
        )
    step = quiet(comm, model, product, optimizer, micro_batch_size=3)
    expected = np.ones(2)
    for number, scale in enumerate([2.0**10, 2.0**11, 2.0**11, 2.0**10, 2.0**10], start=1):
        inputs = np.where(number == 4, np.float32(6e4), x)  # times its weight, more than float16 holds
        report = step(*own(comm, (inputs, y)))
        expected -= 0.5 * (x * y).mean(0) * report.applied
        assert report.applied == (number != 4)
        assert step.optimizer.dynamic_scale.numpy() == scale
    np.testing.assert_allclose(weights(model), expected, rtol=1e-3)


def test_static_loss_scale_is_taken_out_again(comm: Communicator) -> None:
    x, y = integers()
    model = linear(comm)
    report = quiet(comm, model, product, keras.optimizers.SGD(1.0, loss_scale_factor=1024.0))(*own(comm, (x, y)))
    assert report.gradient_sum == pytest.approx((x * y).mean(0).sum(), rel=1e-6)
    np.testing.assert_allclose(weights(model), 1 - (x * y).mean(0), rtol=1e-5)


def test_float64_model_is_summed_in_float64(comm: Communicator) -> None:
    x, y = integers()
    with comm.scope():
        model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1, use_bias=False, dtype="float64")])
    step = quiet(comm, model, keras.losses.MeanSquaredError(dtype="float64"), reduction="sum")
    start = model.get_weights()[0][:, 0]
    report = step(*own(comm, (x, y)))
    start = comm.process_sum(start if comm.is_root else np.zeros_like(start))  # every rank drew its own
    error = x.astype(float) @ start - y[:, 0]
    assert report.gradient_sum == pytest.approx((2 * error @ x.astype(float)).sum(), rel=1e-12)


def test_integer_variables_are_refused(comm: Communicator) -> None:
    class Counting(keras.layers.Dense):
        def build(self, shape: tuple[int, ...]) -> None:
            super().build(shape)
            self.counter = self.add_weight(shape=(), dtype="int32", initializer="zeros", name="counter")

    with comm.scope():
        model = keras.Sequential([keras.Input((2,)), Counting(1)])
    with pytest.raises(UnsupportedDtype, match=r"counter int32.*has no gradient"):
        quiet(comm, model, product)(*own(comm, integers()))
