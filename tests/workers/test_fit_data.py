"""What `fit` takes as data, on every engine."""

import contextlib
from collections.abc import Iterator
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

import distgrad
from distgrad import Communicator
from distgrad.errors import FitMismatch
from support.fit_zoo import Fit
from support.fits import LOGGED, build, line, numbers, same, weights


class Batches(keras.utils.PyDataset):
    """The numbers in batches of 8, 8 and 4."""

    num_batches = 3

    def __getitem__(self, index: int) -> tuple[np.ndarray, ...]:
        return tuple(array[8 * index : 8 * index + 8] for array in numbers())


def generator() -> Iterator[tuple[np.ndarray, ...]]:
    return (Batches()[index] for index in range(3))


SOURCES = {
    "PyDataset": lambda _: {"x": Batches(), "shuffle": False},
    "generator": lambda _: {"x": generator(), "steps_per_epoch": 3, "epochs": 1},
    "sharded dataset": lambda comm: {"x": comm.shard(tf.data.Dataset.from_tensor_slices(numbers()).batch(8))},
    "arrays": lambda _: {"x": numbers()[0], "y": numbers()[1], "batch_size": 8, "shuffle": False},
}
SOURCES |= {"eagerly": SOURCES["arrays"], "compiled by XLA": SOURCES["arrays"]}


@pytest.mark.parametrize("source", SOURCES)
def test_data_of_every_kind(comm: Communicator, source: str) -> None:
    if source == "eagerly" and comm.backend == "tf":
        pytest.skip("a strategy's replicas run in a graph")
    model, oracle = line(comm), line(distgrad.connect("solo"))
    model.run_eagerly, model.jit_compile = source == "eagerly", source == "compiled by XLA"
    given = {"epochs": 2, "verbose": 0, **SOURCES[source](comm)}
    history = model.fit(**given)
    epochs = given["epochs"]
    expected = [oracle.fit(*numbers(), batch_size=8, shuffle=False, verbose=0).history for _ in range(epochs)]
    same(history.history, {"loss": [one["loss"][0] for one in expected]})
    np.testing.assert_allclose(weights(model), weights(oracle), rtol=1e-5)


class Total(keras.Model):
    """Takes ragged rows."""

    def __init__(self) -> None:
        super().__init__()
        self.out = keras.layers.Dense(1, kernel_initializer="ones")

    def call(self, rows: Any) -> Any:
        return self.out(tf.reduce_sum(rows, axis=1, keepdims=True) / 4)


def sparse_line() -> keras.Model:
    return keras.Sequential([keras.Input((3,), sparse=True), keras.layers.Dense(1)])


@pytest.mark.parametrize("form", ["sparse", "ragged"])
def test_sparse_and_ragged_rows(comm: Communicator, form: str) -> None:
    """Shuffled they are the same rows in every epoch, and as a dataset each worker's own."""
    rng = np.random.default_rng(3)
    dense, y = rng.integers(0, 3, (14, 3)).astype("float32"), rng.normal(size=(14, 1)).astype("float32")
    if form == "sparse":
        x, make = tf.sparse.from_dense(dense), sparse_line
    else:
        x, make = tf.RaggedTensor.from_tensor(dense, lengths=rng.integers(1, 4, 14)), Total
    case = Fit(make, lambda: {"optimizer": keras.optimizers.SGD(0.02), "loss": "mse"}, x, y)
    model, oracle = build(comm, case, micro_batch_size=2)
    for data in ((x, y), (comm.shard(tf.data.Dataset.from_tensor_slices((x, y)).batch(5)),)):
        how = {} if len(data) == 1 else {"batch_size": 5, "shuffle": False}
        expected = oracle.fit(x, y, batch_size=5, shuffle=False, epochs=2, verbose=0)
        same(model.fit(*data, **how, epochs=2, verbose=0).history, expected.history)
    assert model.evaluate(x, y, verbose=0) == pytest.approx(oracle.evaluate(x, y, verbose=0), rel=1e-5)
    model.optimizer.learning_rate = 0.0
    losses = model.fit(x, y, batch_size=3, epochs=2, verbose=0).history["loss"]
    np.testing.assert_allclose(losses, oracle.evaluate(x, y, verbose=0), rtol=1e-5)


def test_shuffling_is_the_same_on_every_worker(comm: Communicator) -> None:
    """Each row is seen once an epoch, in other batches each time, which depend on the root's seed alone."""
    x, y = numbers()

    def run(seed: int, **options: Any) -> list[float]:
        keras.utils.set_random_seed(seed if comm.is_root else 0)
        return line(comm).fit(**options, epochs=3, verbose=0).history["gradient_norm"]

    arrays = {"x": x, "y": y, "batch_size": 8}
    assert run(1, **arrays) == run(1, **arrays) != run(2, **arrays)
    assert run(1, x=Batches(), shuffle=True) == run(1, x=Batches(), shuffle=True)
    still = line(comm)
    still.optimizer.learning_rate = 0.0
    losses = still.fit(x, y, batch_size=4, epochs=3, verbose=0).history["loss"]
    np.testing.assert_allclose(losses, np.square(y).mean(), rtol=1e-6)


def test_workers_with_unequal_datasets(comm: Communicator) -> None:
    """It goes on until the last one is done, known lengths or not; logs are the same everywhere."""
    x, y = numbers()
    own = [2, 5, 0][comm.rank % 3]  # on three workers one has none at all
    for known in (True, False):
        dataset = tf.data.Dataset.from_tensor_slices((x[: 4 * own], y[: 4 * own])).batch(4)
        dataset = dataset if known else dataset.filter(lambda *_: True)
        model = line(comm)
        with contextlib.nullcontext() if known else pytest.warns(UserWarning, match="ran out of data"):
            history = model.fit(dataset, epochs=2, verbose=0, validation_data=dataset).history
        processes = range(0, comm.size, comm.span)
        assert model.optimizer.iterations.numpy() == 2 * max([2, 5, 0][rank % 3] for rank in processes)
        assert set(history) == {"loss", "val_loss", *LOGGED}
        assert len(set(comm.exchange(repr(history)).values())) == 1


def rows_of(shuffle: bool, seed: int | None = None) -> tf.data.Dataset:
    """Global batches, not shared out; a map captures a tensor."""
    scale = tf.constant(2.0)
    dataset = tf.data.Dataset.from_tensor_slices(numbers())
    if shuffle:
        dataset = dataset.shuffle(20, seed=seed)
    return dataset.map(lambda x, y: (x * scale, y)).batch(8)


@pytest.mark.every_engine
@pytest.mark.parametrize("shuffle", ["not", "by a seed", "by no seed"])
def test_a_dataset_that_is_the_same_everywhere_is_shared_out(
    comm: Communicator, capfd: pytest.CaptureFixture[str], shuffle: str
) -> None:
    """Also where its shuffle draws another order on each worker, from TensorFlow's seed there or from none."""
    x, y = numbers()
    seed, rate = (7, 0.01) if shuffle == "by a seed" else (None, 0.0)
    histories = []
    for workers in (comm, distgrad.connect("solo")):
        model = line(workers)
        model.compile(keras.optimizers.SGD(rate), "mse")
        keras.utils.set_random_seed(3 if seed else 3 + comm.rank)
        data, validation = rows_of(shuffle != "not", seed), rows_of(shuffle=False)
        histories.append(model.fit(data, epochs=2, verbose=0, validation_data=validation).history)
        if workers is comm:
            is_said = "its batches are global ones" in capfd.readouterr().err
            assert is_said == (comm.is_root and comm.size > 1)
            evaluated = model.evaluate(rows_of(shuffle=False), verbose=0)
            assert evaluated == pytest.approx(float(np.mean((2 * x @ weights(model) - y.ravel()) ** 2)), rel=1e-4)
    if shuffle == "by no seed":  # another order; what is the same is the mean over all rows, of weights that stay
        histories = [{"loss": history["loss"]} for history in histories]
    same(*histories)


@pytest.mark.usefixtures("several_processes")
def test_a_dataset_that_differs_later_on_is_refused(comm: Communicator) -> None:
    x, y = np.ones((64, 3), "float32"), np.ones((64, 1), "float32")
    x[8:] += comm.rank
    with pytest.raises(FitMismatch, match="a later one is not"):
        line(comm).fit(tf.data.Dataset.from_tensor_slices((x, y)).batch(4), verbose=0)


@pytest.mark.usefixtures("several_processes")
def test_a_dataset_that_differs_is_the_worker_s_own(comm: Communicator) -> None:
    x, y = numbers()
    own = tf.data.Dataset.from_tensor_slices((x, y)).shard(comm.size, comm.rank).batch(4)
    model, oracle = line(comm), line(distgrad.connect("solo"))
    model.fit(own, verbose=0)
    for start in range(0, -(-len(x) // comm.size), 4):
        rows = np.concatenate([np.arange(r, len(x), comm.size)[start : start + 4] for r in range(comm.size)])
        oracle.train_on_batch(x[rows], y[rows])
    np.testing.assert_allclose(weights(model), weights(oracle), rtol=1e-5)
