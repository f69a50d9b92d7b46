"""What must hold of gradients that touch few rows of a table, on every engine: what holds of dense ones."""

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

from distgrad import Communicator, DistributedStep

TABLE, WORDS = (4200, 4), 3  # large enough that its rows are summed alone where an engine can


class Lookup(keras.Model):
    """(b, WORDS) numbers of rows -> (b, WORDS, 4) those rows, plus a dense variable."""

    def __init__(self, how: Callable[..., tf.Tensor]) -> None:
        super().__init__()
        self._how = how

    def build(self, _shape: tuple[int, ...]) -> None:
        self.table = self.add_weight(shape=TABLE, initializer=keras.initializers.RandomNormal(seed=1), name="table")
        self.offset = self.add_weight(shape=TABLE[1:], initializer="zeros", name="offset")

    def call(self, ids: tf.Tensor) -> tf.Tensor:
        return self._how(self.table.value, ids) + self.offset


def lookup(comm: Communicator, how: Callable[..., tf.Tensor] = tf.gather) -> Lookup:
    with comm.scope():
        model = Lookup(how)
        model.build((None, WORDS))
    return model


def product(y_true: tf.Tensor, y_pred: tf.Tensor) -> tf.Tensor:
    """A loss whose gradient by y_pred is y_true."""
    return tf.reduce_sum(y_true * y_pred, axis=(1, 2))


def gradients(ids: np.ndarray, y: np.ndarray) -> list[np.ndarray]:
    """Of the sum of that loss: table's, densely, and offset's."""
    table = np.zeros(TABLE, "float32")
    np.add.at(table, ids, y)
    return [table, y.sum((0, 1))]


def batch(seed: int, rows: int, below: int) -> tuple[np.ndarray, np.ndarray]:
    """The same on every worker: row numbers below a limit, and integers."""
    rng = np.random.default_rng(seed)
    ids = rng.integers(0, below, (rows, WORDS)).astype("int32")
    return ids, rng.integers(-4, 5, (rows, WORDS, TABLE[1])).astype("float32")


def own(comm: Communicator, *global_batch: np.ndarray) -> tuple[np.ndarray, ...]:
    """This process's share: the first worker has most, and the last may have none."""
    rows = len(global_batch[0])
    edges = [rows - rows // 2**worker for worker in range(comm.size)] + [rows]
    return tuple(array[edges[comm.rank] : edges[comm.rank + comm.span]] for array in global_batch)


def summing(comm: Communicator, **options: Any) -> DistributedStep:
    """A step that adds the summed gradient to the weights."""
    model, optimizer = lookup(comm), keras.optimizers.SGD(-1.0)
    return DistributedStep(model, product, optimizer, comm=comm, reduction="sum", log_every=0, **options)


# Rows, and below which number: few and often, almost none, and so many that the window has to grow.
BATCHES = [(12, 5), (1, 4200), (9, 4200), (700, 4200), (12, 2)]


def test_touched_rows_are_summed_exactly(comm: Communicator) -> None:
    step = summing(comm, micro_batch_size=4, groups={"table": "table"}, statistics="all")
    model = step.model
    expected = [np.round(weight * 8) for weight in model.get_weights()]
    model.set_weights(expected)
    for seed, size in enumerate(BATCHES):
        ids, y = batch(seed, *size)
        skips_a_row_that_is_not_finite(step, *own(comm, ids, y))
        report = step(*own(comm, ids, y))
        found = gradients(ids, y)
        expected = [weight + gradient for weight, gradient in zip(expected, found, strict=True)]
        for weight, value in zip(model.get_weights(), expected, strict=True):
            np.testing.assert_array_equal(weight, value)
        describes(report, np.concatenate([np.ravel(gradient) for gradient in found]))
        describes(report.groups["table"], found[0])
        assert report.told.noise is not None
        assert list(report.told.variables) == [variable.path for variable in model.trainable_variables]
        for told, gradient in zip(report.told.variables.values(), found, strict=True):
            describes(told, gradient)
            assert told.zeros == np.mean(gradient == 0)
        for row, gradient in zip(report.table(), found, strict=True):
            describes(row, gradient)


def skips_a_row_that_is_not_finite(step: DistributedStep, ids: np.ndarray, y: np.ndarray) -> None:
    poisoned = y.copy()
    if step.comm.is_root:
        poisoned[0, -1, -1] = np.nan
    report = step(ids, poisoned)
    assert (report.nonfinite, report.applied) == (2, False)  # of the table, and of the offset
    assert [rank // step.comm.span for rank in report.nonfinite_ranks] == [0]
    assert [row.nonfinite for row in report.table()] == [1, 1]


def describes(statistics: Any, gradient: np.ndarray) -> None:
    wide = gradient.astype("float64")
    assert statistics.gradient_sum == wide.sum()
    assert statistics.gradient_norm == pytest.approx(np.sqrt(np.square(wide).sum()), rel=1e-6)
    assert statistics.gradient_max == np.abs(wide).max()
    assert statistics.nonfinite == 0


OPTIMIZERS = {
    "SGD": lambda: keras.optimizers.SGD(0.1, clipnorm=0.5, weight_decay=0.01, use_ema=True),
    "momentum": lambda: keras.optimizers.SGD(0.1, momentum=0.9, global_clipnorm=0.5),
    "Adam": lambda: keras.optimizers.Adam(0.01),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_optimizers_do_what_they_do_with_the_dense_gradient(comm: Communicator, name: str) -> None:
    model, optimizer = lookup(comm), OPTIMIZERS[name]()
    oracle = [keras.Variable(weight) for weight in model.get_weights()]
    step = DistributedStep(model, product, OPTIMIZERS[name](), comm=comm, log_every=0, micro_batch_size=5)
    for seed in range(3):
        ids, y = batch(seed, 16, 12 if seed % 2 else TABLE[0])
        step(*own(comm, ids, y))
        optimizer.apply([gradient / len(ids) for gradient in gradients(ids, y)], oracle)
    for weight, value in zip(model.get_weights(), oracle, strict=True):
        np.testing.assert_allclose(weight, value.numpy(), atol=2e-6)


@pytest.mark.usefixtures("several_processes")
def test_a_gradient_may_be_sparse_on_some_workers_only(comm: Communicator) -> None:
    def densely(table: tf.Tensor, ids: tf.Tensor) -> tf.Tensor:
        return tf.one_hot(ids, TABLE[0]) @ table

    def not_at_all(table: tf.Tensor, ids: tf.Tensor) -> tf.Tensor:
        return tf.zeros([tf.shape(ids)[0], WORDS, TABLE[1]])

    how = [tf.gather, densely, not_at_all][comm.rank // comm.span]
    model = lookup(comm, how)
    before = model.table.numpy()
    step = DistributedStep(model, product, keras.optimizers.SGD(-1.0), comm=comm, reduction="sum", log_every=0)
    ids, y = batch(0, 4, 30)
    report = step(ids, y)
    processes = min(2, comm.size // comm.span)
    assert report.gradient_sum == y.sum() * (processes + comm.size // comm.span)
    np.testing.assert_allclose(model.table.numpy(), before + processes * gradients(ids, y)[0], atol=1e-5)
