"""Errors that workers meet together, and what they advise, taken by the same workers."""

from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

import distgrad
from distgrad import Communicator
from distgrad.collectives.vectors import Division
from distgrad.errors import BadArgument, Drifted, FitMismatch, ModelMismatch, SettingsMismatch, UnsupportedLoss
from support.advice import refused
from support.fits import line, numbers
from support.steps import linear, quiet

pytestmark = pytest.mark.usefixtures("several_processes", "under_mpi")
BATCH = np.ones((4, 2), "float32"), np.zeros((4, 1), "float32")


@pytest.fixture
def under_mpi(comm: Communicator) -> None:
    if comm.backend != "mpi":
        pytest.skip("an engine that is given different vectors ends the job")


def test_sums_of_different_things(comm: Communicator) -> None:
    def add(size: int, describes: bool = True) -> Any:
        division = Division(1, tf.constant([0.0, 1.0], tf.float64), describes)
        with comm.liveness.explaining():
            return comm.sum_and_divide(lambda: tf.ones(size), (), division)

    with refused(ModelMismatch, "sum the same variables, in the same order, on every worker"):
        add(20 + comm.rank)
    assert add(20).undivided.numpy() == comm.size
    advice = "sum the same variables, in the same order and with the same statistics, on every worker"
    with refused(ModelMismatch, advice):
        add(20, describes=comm.is_root)
    assert add(20).undivided.numpy() == comm.size


def test_gradients_of_different_things(comm: Communicator) -> None:
    with refused(ModelMismatch, "give the gradients of the same variables in the same order on every worker"):
        distgrad.all_reduce_gradients([tf.zeros(9 + comm.rank)], 1, comm=comm)
    assert distgrad.all_reduce_gradients([tf.zeros(9)], 1, comm=comm).weight == comm.size


def test_models_and_settings_that_differ(comm: Communicator) -> None:
    advice = "build the same model with the same settings and library versions on every worker"
    with refused(ModelMismatch, advice):
        quiet(comm, keras.Sequential([keras.Input((2,)), keras.layers.Dense(1 + comm.rank)]))(*BATCH)
    with refused(SettingsMismatch, advice):
        quiet(comm, linear(comm), reduction="mean" if comm.is_root else "sum")(*BATCH)
    assert quiet(comm, linear(comm))(*BATCH).applied


def test_weights_that_one_worker_has_set(comm: Communicator) -> None:
    step = quiet(comm, linear(comm), check_every=2)
    step(*BATCH)

    def double() -> None:
        step.model.set_weights([2 * value for value in step.model.get_weights()])

    if not comm.is_root:
        double()
    advice = (
        "set weights on the root, or on all workers alike; if nothing was set, check that rank's memory, and go on "
        "from the last checkpoint"
    )
    with refused(Drifted, advice):
        for _ in range(3):
            step(*BATCH)
    step = quiet(comm, linear(comm), check_every=1)
    step(*BATCH)
    double()
    assert step(*BATCH).applied
    if comm.is_root:
        double()
    assert step(*BATCH).applied
    assert step(*BATCH).applied


def distance_of_means(y: Any, outputs: Any) -> Any:
    """A loss that is known from all rows together only."""
    dense = y.to_tensor() if isinstance(y, tf.RaggedTensor) else y
    return tf.square(tf.reduce_mean(dense) - tf.reduce_mean(outputs))


def test_outputs_of_unknown_length(comm: Communicator) -> None:
    class First(keras.layers.Layer):
        """The first entries of each row, four of them."""

        def __init__(self, is_known: bool) -> None:
            super().__init__()
            self.is_known = is_known

        def call(self, x: Any) -> Any:
            return x[:, : 4 if self.is_known else 4 + tf.cast(tf.reduce_max(0 * x), tf.int32)]

    def trained(is_known: bool, micro_batch_size: int | None) -> Any:
        model = keras.Sequential([keras.Input((None, 3)), First(is_known), keras.layers.Dense(1)])
        model = distgrad.distribute(model, comm, micro_batch_size=micro_batch_size)
        model.compile("sgd", distance_of_means)
        rng = np.random.default_rng(2)
        x, y = rng.normal(size=(8, 5, 3)).astype("float32"), rng.normal(size=(8, 4, 1)).astype("float32")
        return model.fit(x, y, batch_size=8, verbose=0).history

    with refused(UnsupportedLoss, "leave micro_batch_size out, or pad"):
        trained(False, 2)
    assert trained(False, None)
    assert trained(True, 2)


def test_data_of_one_worker(comm: Communicator) -> None:
    alone, step = distgrad.connect("solo"), quiet(comm, linear(comm))
    with refused(BadArgument, "give a tf.data.Dataset, whose element_spec tells them"):
        next(quiet(alone, linear(alone)).epoch(iter([])))
    rows = tf.data.Dataset.from_tensor_slices(BATCH)
    own = rows.batch(2) if comm.is_root else rows.take(0).batch(2)
    assert [report.examples for report in step.epoch(own)] == [2, 2]


def test_data_that_are_shuffled_differently(comm: Communicator) -> None:
    """The first batch is the same everywhere; what follows is shuffled in Python, of which no seed is known."""
    rng = np.random.default_rng(4)
    x, y = rng.normal(size=(64, 3)).astype("float32"), rng.normal(size=(64, 1)).astype("float32")

    def rows(seed: int) -> tf.data.Dataset:
        order = [*range(8), *(8 + np.random.default_rng(seed).permutation(56))]
        return tf.data.Dataset.from_tensor_slices((x[order], y[order])).batch(4)

    with refused(FitMismatch, "give its shuffle a seed, or share it out with comm.shard(dataset)"):
        line(comm).fit(rows(comm.rank), verbose=0)
    for data in (rows(3), comm.shard(rows(3))):
        model = line(comm)
        model.fit(data, verbose=0)
        weights = np.float64(model.get_weights()[0])
        np.testing.assert_array_equal(comm.process_sum(weights), comm.size * weights)


def test_a_loss_of_all_rows_of_ragged_targets(comm: Communicator) -> None:
    model = line(comm)
    model.compile("sgd", distance_of_means)
    x, y = numbers(8)
    ragged = tf.RaggedTensor.from_tensor(y)
    with refused(UnsupportedLoss, "give dense targets and outputs, or a function that looks at each row by itself"):
        model.fit(tf.data.Dataset.from_tensors((x, ragged)), verbose=0)
    model.fit(tf.data.Dataset.from_tensor_slices((x, y)).batch(8), verbose=0)
