"""What the workers' tests of a step share: a global batch, each worker's rows of it, and small models."""

from typing import Any

import keras
import numpy as np
import tensorflow as tf

from distgrad import Communicator, DistributedStep
from distgrad.step.training_graph import Flags
from support.step_zoo import ROWS, SHARES, Case

TOLERANCE = 5e-6
COLLECTIVES = {
    "DistgradSum",
    "EagerPyFunc",
    "PyFunc",
    "PyFuncStateless",
    "HorovodAllreduce",
    "CollectiveReduceV2",
    "NcclAllReduce",
}


def own(comm: Communicator, batch: tuple[Any, ...]) -> tuple[Any, ...]:
    """This process's rows: 7, 5 and 0 of 12 for three workers."""
    if comm.span == comm.size:
        return batch
    first = sum(SHARES[comm.size][: comm.rank])
    return tuple(array[first : first + SHARES[comm.size][comm.rank]] for array in batch)


def weights(model: keras.Model) -> np.ndarray:
    return np.concatenate([np.ravel(value) for value in model.get_weights()])


def quiet(comm: Communicator, model: keras.Model, loss: Any = "mse", optimizer: Any = "sgd", **options: Any) -> Any:
    return DistributedStep(model, loss, optimizer, comm=comm, log_every=0, **options)


def no_flags(comm: Communicator) -> tuple[tf.Tensor, tf.Tensor]:
    """What the compiled step takes besides a batch."""
    return tf.zeros(len(Flags._fields), tf.float64), tf.zeros((comm.size, 2))


def build(comm: Communicator, case: Case) -> tuple[keras.Model, keras.Model]:
    """The distributed model, with other weights on every rank, and the oracle with those of rank 0."""
    keras.utils.set_random_seed(7)
    oracle = case.build()
    keras.utils.set_random_seed(7 + comm.rank)
    with comm.scope():
        model = case.build()
    return model, oracle


def linear(comm: Communicator, value: float = 1.0) -> keras.Model:
    """y = x·w with w = (value, value), whose gradients are short sums."""
    with comm.scope():
        return keras.Sequential(
            [keras.Input((2,)), keras.layers.Dense(1, use_bias=False, kernel_initializer=constant(value))]
        )


def constant(value: float) -> keras.initializers.Initializer:
    return keras.initializers.Constant(value)


def product(y_true: tf.Tensor, y_pred: tf.Tensor) -> tf.Tensor:
    """A loss whose gradient by y_pred is y_true."""
    return tf.reduce_sum(y_true * y_pred, axis=-1)


def integers(rows: int = ROWS) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(11)
    return rng.integers(-5, 6, (rows, 2)).astype("float32"), rng.integers(1, 4, (rows, 1)).astype("float32")


class Lookup(keras.layers.Layer):
    """An embedding whose way of looking up is given."""

    def __init__(self, lookup: Any) -> None:
        super().__init__(name="lookup")
        self.lookup = lookup

    def build(self, _shape: tuple[int, ...]) -> None:
        self.table = self.add_weight(shape=(9, 3), initializer="normal", name="table")

    def call(self, ids: tf.Tensor) -> tf.Tensor:
        return self.lookup(self.table.value, ids)
