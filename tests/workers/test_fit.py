"""What must hold of a distributed Keras model, on every engine: what Keras does in one process on the whole data."""

import contextlib
from typing import Any, NamedTuple

import keras
import numpy as np
import pytest
import tensorflow as tf

import distgrad
from distgrad import Communicator
from support.fit_zoo import FITS, Fit, normalised
from support.fits import (
    LOGGED,
    build,
    build_distributed,
    build_oracle,
    first,
    from_root,
    line,
    numbers,
    same,
    weights,
)
from support.marks import one_for_every_engine
from support.versions import KERAS


@pytest.mark.filterwarnings("ignore:You are using a softmax over axis")
@pytest.mark.filterwarnings(f"{'error' if KERAS >= (3, 7) else 'ignore'}:Your input ran out of data")  # says old Keras
@pytest.mark.parametrize("name", one_for_every_engine(FITS, "recommender"))
def test_two_epochs_are_those_of_keras_alone(comm: Communicator, name: str) -> None:
    case = FITS[name]
    expected = from_root(comm, lambda: trained(build_oracle(case), case))
    found = trained(build_distributed(comm, case, micro_batch_size=3), case)
    assert set(found.history) > LOGGED
    same(found.history, expected.history, case.tolerance)
    assert np.abs(found.weights - expected.weights).max() <= case.tolerance
    same(found.scores, expected.scores, case.tolerance)


class Trained(NamedTuple):
    """What a training leaves: weights, logs by epoch, and what evaluate gives."""

    weights: np.ndarray
    history: dict[str, Any]
    scores: dict[str, Any]


def trained(model: keras.Model, case: Fit) -> Trained:
    held_out = (first(case.x, 16), first(case.y, 16))
    how = {"batch_size": case.batch_size, "epochs": 2, "shuffle": False, "verbose": 0, **case.fit}
    history = model.fit(case.x, case.y, validation_data=held_out, validation_batch_size=8, **how).history
    scores = model.evaluate(case.x, case.y, batch_size=8, verbose=0, return_dict=True)
    return Trained(weights(model), history, scores)


def test_normalisation_is_by_micro_batch(comm: Communicator) -> None:
    """Workers' shares act like one worker's micro-batches; one share that is the whole batch is Keras's own."""
    how = {"batch_size": 12, "epochs": 2, "shuffle": False, "verbose": 0}
    rng = np.random.default_rng(8)
    x, y = rng.normal(size=(24, 6, 6, 1)).astype("float32"), rng.normal(size=(24, 2)).astype("float32")
    case = Fit(normalised, lambda: {"optimizer": "adam", "loss": "mse"}, x, y)
    model, oracle = build(comm, case)
    if comm.size > 1:
        oracle.run_eagerly = False
        distgrad.distribute(oracle, distgrad.connect("solo"), micro_batch_size=12 // comm.size)
    same(model.fit(x, y, **how).history, oracle.fit(x, y, **how).history)
    assert np.abs(weights(model) - weights(oracle)).max() <= 1e-5


def test_two_models_against_each_other_in_a_loop_of_one_s_own(comm: Communicator) -> None:
    """A GAN: the discriminator's step, then the generator's through a frozen discriminator."""

    def trained(comm: Communicator) -> np.ndarray:
        keras.utils.set_random_seed(3)
        with comm.scope():
            generator = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)])
            critic = keras.Sequential([keras.Input((2,)), keras.layers.Dense(4, "tanh"), keras.layers.Dense(1)])
            both = keras.Sequential([generator, critic])
        loss = keras.losses.BinaryCrossentropy(from_logits=True)
        judge, forge = (
            distgrad.DistributedStep(model, loss, keras.optimizers.SGD(0.5), comm=comm, log_every=0)
            for model in (critic, both)
        )
        noise = np.random.default_rng(4).normal(size=(12, 3)).astype("float32")
        real = np.random.default_rng(5).normal(2.0, 1.0, (12, 2)).astype("float32")
        part = slice(comm.rank * 12 // comm.size, (comm.rank + comm.span) * 12 // comm.size)
        ones, zeros = np.ones((12, 1), "float32")[part], np.zeros((12, 1), "float32")[part]
        for _ in range(3):
            fake = np.asarray(generator(noise[part]))
            critic.trainable = True
            judge(np.concatenate([real[part], fake]), np.concatenate([ones, zeros]))
            critic.trainable = False
            forge(noise[part], ones)
        return weights(both)

    np.testing.assert_allclose(trained(comm), trained(distgrad.connect("solo")), atol=1e-5)


def test_uneven_micro_batches_are_the_whole_batch(comm: Communicator) -> None:
    """16 rows as 6, 6 and 4, where the mean of means is another mean."""
    x, y = numbers(16)
    model, oracle = line(comm, micro_batch_size=6), line(distgrad.connect("solo"))
    for one in (model, oracle):
        one.fit(x, y, batch_size=16, epochs=3, shuffle=False, verbose=0)
    np.testing.assert_allclose(weights(model), weights(oracle), rtol=1e-6, atol=1e-7)


@pytest.mark.every_engine
@pytest.mark.parametrize("scaled", [False, True])
def test_nan_on_one_worker_skips_the_batch_on_all(comm: Communicator, scaled: bool) -> None:
    """Also where the loss is scaled; then all workers halve the scale alike."""
    x, y = numbers(16)
    x[7] = np.nan  # the last worker's row of the first batch
    model, spared = line(comm), line(distgrad.connect("solo"))
    if scaled:
        with comm.scope():
            optimizer = keras.optimizers.LossScaleOptimizer(keras.optimizers.SGD(0.01), initial_scale=64.0)
            model.compile(optimizer, "mse")
    how = {"batch_size": 8, "shuffle": False, "verbose": 0}
    model.fit(x, y, **how)
    spared.fit(x[8:], y[8:], **how)
    assert np.abs(weights(spared)).max() > 0
    np.testing.assert_allclose(weights(model), weights(spared), atol=1e-6)
    assert not scaled or float(tf.convert_to_tensor(model.optimizer.dynamic_scale)) == 32.0


@pytest.mark.parametrize("clipping", [{"global_clipnorm": 0.5}, {"clipnorm": 0.5}, {"clipvalue": 0.3}])
def test_clipping_sees_the_whole_batch(comm: Communicator, clipping: dict[str, float]) -> None:
    """The workers' own gradients are large and point away from each other; their mean is smaller than the limit."""
    x = np.repeat([[1.0, 2.0, 3.0]], 12, axis=0).astype("float32")
    y = np.array([20.0] * 6 + [-19.9] * 6, "float32")[:, np.newaxis]
    layer = keras.layers.Dense(1, use_bias=False, kernel_initializer="zeros")
    models = [line(comm), keras.Sequential([keras.Input((3,)), layer])]
    for model in models:
        with comm.scope() if model is models[0] else contextlib.nullcontext():
            model.compile(keras.optimizers.SGD(0.1, **clipping), "mse", run_eagerly=model is models[1])
        model.fit(x, y, batch_size=12, shuffle=False, verbose=0)
    assert np.abs(weights(models[1])).max() > 0
    np.testing.assert_allclose(weights(models[0]), weights(models[1]), atol=1e-6)


def test_on_batch(comm: Communicator) -> None:
    x, y = numbers()
    model, oracle = line(comm), line(distgrad.connect("solo"))
    weight = np.linspace(0.5, 1.5, len(x), dtype="float32")
    for _ in range(2):
        assert model.train_on_batch(x, y, weight) == pytest.approx(oracle.train_on_batch(x, y, weight), rel=1e-6)
    if KERAS < (3, 15):  # which does so by itself
        model.reset_metrics()
    assert model.test_on_batch(x, y) == pytest.approx(
        float(np.square(y - x @ weights(model)[:, None]).mean()), rel=1e-5
    )
    assert set(model.train_on_batch(x, y, return_dict=True)) == {"loss", *LOGGED}
    np.testing.assert_allclose(model.predict(x, verbose=0), x @ weights(model)[:, None], rtol=1e-5)
