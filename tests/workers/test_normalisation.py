"""Batch normalisation and dropout over several workers and micro-batches."""

import keras
import numpy as np
import pytest

from distgrad import Communicator, connect
from distgrad.errors import BadArgument
from support.step_zoo import ROWS, Case
from support.steps import TOLERANCE, build, integers, own, quiet, weights


def synchronised(synchronized: bool) -> keras.Model:
    normalise = keras.layers.BatchNormalization
    words = keras.Input((4,), dtype="int32")
    x = keras.layers.Embedding(5, 3, mask_zero=True)(words)
    x = normalise(momentum=0.6, synchronized=synchronized)(x)  # of what the mask leaves
    x = keras.layers.Dense(12, "tanh")(keras.layers.GlobalAveragePooling1D()(x))
    x = keras.layers.Conv2D(2, 2, padding="same", use_bias=False)(keras.layers.Reshape((2, 2, 3))(x))
    x = normalise(axis=1, momentum=0.6, synchronized=synchronized)(x)
    return keras.Model(words, keras.layers.Dense(2)(keras.layers.GlobalAveragePooling2D()(x)))


def test_synchronised_normalisation_is_that_of_the_whole_batch(comm: Communicator) -> None:
    """However unequal the shares, one of them empty."""
    x = np.random.default_rng(6).integers(1, 5, (ROWS, 4)).astype("int32") * (np.arange(ROWS)[:, np.newaxis] % 4 > 0)
    x[:, 0] = 3
    y = np.random.default_rng(7).normal(size=(ROWS, 2)).astype("float32")
    case = Case(lambda: synchronised(True), "mse", lambda _: (), {})
    model, oracle = build(comm, case)
    for layer in oracle.layers:
        layer.synchronized = False
    oracle.compile(keras.optimizers.SGD(0.1), "mse", run_eagerly=True)
    expected = [oracle.train_on_batch(x, y)]
    for _ in range(2):
        oracle.reset_metrics()
        expected.append(oracle.train_on_batch(x, y))
    step = quiet(comm, model, "mse", keras.optimizers.SGD(0.1))
    np.testing.assert_allclose([step(*own(comm, (x, y))).loss for _ in range(3)], expected, rtol=1e-5)
    assert np.abs(weights(model) - weights(oracle)).max() <= TOLERANCE
    with pytest.raises(BadArgument, match="is synchronized, and micro_batch_size=3 cuts"):
        quiet(comm, model, micro_batch_size=3)(*own(comm, (x, y)))


def normalised() -> keras.Model:
    return keras.Sequential(
        [keras.Input((2,)), keras.layers.BatchNormalization(momentum=0.5), keras.layers.Dense(1, use_bias=False)]
    )


def test_moving_statistics_are_the_mean_over_all_micro_batches(comm: Communicator) -> None:
    """One process with micro-batches that are the workers' shares takes the same step, and its mean is Keras's."""
    x, y = integers()
    model, alone = build(comm, Case(normalised, "mse", lambda _: (), {}))
    rows = ROWS // comm.size
    part = slice(comm.rank * rows, (comm.rank + comm.span) * rows)
    step, oracle = quiet(comm, model), quiet(connect("solo"), alone, micro_batch_size=rows)
    for _ in range(3):
        step(x[part], y[part])
        oracle(x, y)
    np.testing.assert_allclose(weights(model), weights(alone), atol=TOLERANCE)
    np.testing.assert_allclose(np.asarray(model.layers[0].moving_mean), x.mean(0) * (1 - 0.5**3), rtol=1e-5)


def test_a_skipped_step_leaves_moving_statistics_alone(comm: Communicator) -> None:
    x, y = integers()
    x[0, 0] = np.nan
    with comm.scope():
        model = normalised()
    assert not quiet(comm, model)(*own(comm, (x, y))).applied
    assert np.asarray(model.layers[0].moving_mean).tolist() == [0.0, 0.0]


def test_workers_drop_different_units_in_a_way_that_repeats(comm: Communicator) -> None:
    def losses() -> list[float]:
        """Each worker's row of 100 ones, of which about half are dropped, times a number that tells whose it is."""
        with comm.scope():
            layers = [
                keras.layers.Dropout(0.5, seed=3),
                keras.layers.Dense(1, use_bias=False, kernel_initializer="ones"),
            ]
            model = keras.Sequential([keras.Input((100,)), *layers])
        step = quiet(comm, model, lambda y_true, y_pred: y_true * y_pred, reduction="sum")
        ranks = np.arange(comm.rank, comm.rank + comm.span)[:, np.newaxis]
        return [step(np.ones((comm.span, 100), "float32"), 1000.0**ranks).loss for _ in range(2)]

    first, second = losses()
    assert losses() == [first, second]
    assert first != second
    sums = [first // 1000**rank % 1000 for rank in range(comm.size)]
    assert len(set(sums)) == comm.size


def test_normalisation_and_dropout_in_one_model(comm: Communicator) -> None:
    """Statistics are of what is not dropped; a unit is dropped in one step and not in another, of equal rows alike."""
    x, y = np.tile(np.float32([[3.0, -1.0]]), (ROWS, 1)), np.ones((ROWS, 1), "float32")
    with comm.scope():
        normalise = keras.layers.BatchNormalization(momentum=0.5, beta_initializer="ones")
        layers = [normalise, keras.layers.Dropout(0.5), keras.layers.Dense(1, kernel_initializer="ones")]
        model = keras.Sequential([keras.Input((2,)), *layers])
    step = quiet(comm, model, optimizer=keras.optimizers.SGD(0.0), micro_batch_size=2)
    losses = [step(*own(comm, (x, y))).loss for _ in range(3)]
    np.testing.assert_allclose(np.asarray(normalise.moving_mean), x[0] * (1 - 0.5**3), rtol=1e-6)
    np.testing.assert_allclose(np.asarray(normalise.moving_variance), [0.5**3] * 2, atol=1e-6)
    # Normalised, every entry is 1, which dropout makes 0 or 2: a row's prediction is 0, 2 or 4, and its loss 1 or 9.
    assert len(set(losses)) > 1
    assert all((loss - 1) * ROWS / 8 == pytest.approx(round((loss - 1) * ROWS / 8), abs=1e-3) for loss in losses)
    assert all(1 <= loss <= 9 for loss in losses)
