"""The three ways people sum gradients by hand, against the step; and sums over subsets of the variables."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import distgrad


@pytest.fixture
def comm() -> distgrad.Communicator:
    return distgrad.connect("solo")


@pytest.fixture
def batch() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    return rng.normal(size=(24, 6)).astype("float32"), rng.integers(0, 3, 24)


def classifier() -> keras.Model:
    keras.utils.set_random_seed(1)
    layers = [keras.layers.Dense(8, activation="tanh", name="body"), keras.layers.Dense(3, name="head")]
    return keras.Sequential([keras.Input((6,)), *layers], name="classifier")


LOSS = keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def tape_gradients(model: keras.Model, x: np.ndarray, y: np.ndarray) -> list[tf.Tensor]:
    with tf.GradientTape() as tape:
        loss = LOSS(y, model(x, training=True))
    return tape.gradient(loss, model.trainable_variables)


def test_the_sum_of_a_tape_s_gradients_by_hand(
    comm: distgrad.Communicator, batch: tuple[np.ndarray, np.ndarray]
) -> None:
    model = classifier()
    gradients = tape_gradients(model, *batch)
    by_hand = tf.reduce_sum(tf.concat([tf.reshape(gradient, [-1]) for gradient in gradients], 0))
    report = distgrad.DistributedStep(model, LOSS, "sgd", comm=comm, log_every=0)(*batch)
    assert report.gradient_sum == pytest.approx(float(by_hand), rel=1e-5)
    assert report.gradient_norm == pytest.approx(float(tf.linalg.global_norm(gradients)), rel=1e-6)


@pytest.mark.parametrize("size", [4, 5, 24, 100])
def test_accumulating_mini_batches_and_averaging(
    comm: distgrad.Communicator, batch: tuple[np.ndarray, np.ndarray], size: int
) -> None:
    x, y = batch
    model = classifier()
    total = [tf.zeros(variable.shape) for variable in model.trainable_variables]
    for start in range(0, len(x), size):
        rows = slice(start, start + size)
        part = tape_gradients(model, x[rows], y[rows])
        total = [a + b * len(x[rows]) / len(x) for a, b in zip(total, part, strict=True)]
    step = distgrad.DistributedStep(model, LOSS, "sgd", comm=comm, micro_batch_size=size, log_every=0)
    report = step(x, y)
    assert report.gradient_sum == pytest.approx(sum(float(tf.reduce_sum(part)) for part in total), rel=1e-5)
    for row, part in zip(report.table(), total, strict=True):
        assert row.gradient_norm == pytest.approx(float(tf.norm(part)), rel=1e-5)


def test_the_optimizer_s_own_apply_counts_nothing_twice(
    comm: distgrad.Communicator, batch: tuple[np.ndarray, np.ndarray]
) -> None:
    by_optimizer, by_step = classifier(), classifier()
    optimizer = keras.optimizers.Adam(0.01)
    step = distgrad.DistributedStep(
        by_step, LOSS, keras.optimizers.Adam(0.01), comm=comm, micro_batch_size=7, log_every=0
    )
    for count in (1, 2, 3):
        optimizer.apply(tape_gradients(by_optimizer, *batch), by_optimizer.trainable_variables)
        step(*batch)
        assert step.optimizer.iterations.numpy() == optimizer.iterations.numpy() == count
    for one, other in zip(by_step.get_weights(), by_optimizer.get_weights(), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-6)


def test_sums_over_subsets_of_the_variables(
    comm: distgrad.Communicator, batch: tuple[np.ndarray, np.ndarray], capsys: pytest.CaptureFixture[str]
) -> None:
    model = classifier()
    gradients = tape_gradients(model, *batch)
    groups = {"body": "body/", "biases": "bias$", "everything": "", "nothing": "encoder"}
    report = distgrad.DistributedStep(model, LOSS, "sgd", comm=comm, groups=groups, log_every=0)(*batch)
    members = {"body": [0, 1], "biases": [1, 3], "everything": [0, 1, 2, 3], "nothing": []}
    for label, indices in members.items():
        chosen = np.concatenate([np.ravel(gradients[index]) for index in indices] or [np.zeros(0)])
        assert report.groups[label].gradient_sum == pytest.approx(chosen.sum(), abs=2e-6)
        assert report.groups[label].gradient_norm == pytest.approx(np.linalg.norm(chosen), rel=1e-5)
    assert [row.path for row in report.table()] == [variable.path for variable in model.trainable_variables]
    warning = capsys.readouterr().err
    assert "group 'nothing': no variable matches 'encoder'; there are classifier/body/kernel" in warning
