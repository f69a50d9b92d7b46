"""A gradient that is not like its variable is refused before anything is summed, and the variable is named."""

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

import distgrad
from distgrad import Communicator
from distgrad.collectives.vectors import Division
from distgrad.errors import GradientMismatch, ModelMismatch
from support.marks import usual_ones
from support.steps import product, quiet, weights

Make = Callable[[tf.Tensor], Any]  # upstream gradient -> what a custom gradient gives
SHAPES: dict[str, Make] = {
    "2 entries": lambda _: tf.ones(2),
    "6 entries": lambda _: tf.ones(6),
    "transposed": lambda _: tf.ones((2, 3)),
    "4194304 entries": lambda _: tf.ones(1 << 22),
    "int32": lambda _: tf.ones((3, 2), tf.int32),
    "rows too narrow": lambda _: tf.IndexedSlices(tf.ones((2, 1)), tf.constant([0, 1])),
    "rows too few": lambda _: tf.IndexedSlices(tf.ones((1, 2)), tf.constant([0, 1])),
}


def any_shape(tensor: tf.Tensor) -> tf.Tensor:
    """The tensor, of which a trace knows no shape."""
    return tf.raw_ops.PlaceholderWithDefault(input=tensor, shape=None)


def rows(numbers: list[int], values: int = 1) -> Make:
    return lambda _: tf.IndexedSlices(tf.ones((values, 2)), tf.constant(numbers, tf.int64), tf.constant([3, 2]))


IN_THE_GRAPH: dict[str, tuple[Make, str]] = {
    "shape": (lambda _: any_shape(tf.ones(6)), r"the shape \(6,\) instead of \(3, 2\)"),
    "no entries": (lambda _: any_shape(tf.ones(0)), r"the shape \(0,\) instead of \(3, 2\)"),
    "row behind the last": (rows([3]), "is of row 3, and the variable's are 0 to 2"),
    "row before the first": (rows([-1]), "is of row -1"),
    "row near 2^60": (rows([(1 << 60) - 1]), f"is of row {(1 << 60) - 1}"),
    "row near 2^63": (rows([(1 << 63) - 1]), f"is of row {(1 << 63) - 1}"),
    "lost values": (
        lambda _: tf.IndexedSlices(any_shape(tf.ones((1, 2))), any_shape(tf.zeros(15_000, tf.int64))),
        r"has 2 values for 15000 rows of 2|has the shape \(1, 2\) instead of \(15000, 2\)",
    ),
}


class Odd(keras.layers.Layer):
    """A product with a kernel whose gradient is made up."""

    def __init__(self, make: Make) -> None:
        super().__init__(name="odd")
        self._make = make

    def build(self, _: Any) -> None:
        self.kernel = self.add_weight(shape=(3, 2), name="kernel", initializer="ones")

    def call(self, x: tf.Tensor) -> tf.Tensor:
        make = self._make

        @tf.custom_gradient
        def with_odd_gradient(kernel: tf.Tensor) -> tuple[tf.Tensor, Make]:
            return tf.identity(kernel), make

        return x @ with_odd_gradient(self.kernel.value)


def odd_model(comm: Communicator, make: Make, kind: type[keras.Model] = keras.Model) -> keras.Model:
    with comm.scope():
        inputs = keras.Input((3,))
        return kind(inputs, Odd(make)(inputs), name="model")


DATA = np.ones((4, 3), "float32"), np.ones((4, 2), "float32")


@pytest.mark.fault(38)
@pytest.mark.parametrize("shape", usual_ones(SHAPES, ["4194304 entries", "rows too few"], "6 entries"))
def test_a_shape_that_the_trace_tells(comm: Communicator, shape: str) -> None:
    """Of the last worker alone: all of them say so."""
    odd = comm.rank == comm.size - comm.span
    model = odd_model(comm, SHAPES[shape] if odd else lambda _: tf.ones((3, 2)))
    with pytest.raises(GradientMismatch, match="the gradient of variable 'odd/kernel' has") as caught:
        quiet(comm, model, product)(*DATA)
    last = comm.size - comm.span
    assert (caught.value.rank, caught.value.status, caught.value.everywhere) == (last, 65, True)
    assert weights(model).tolist() == [1] * 6
    assert comm.process_sum(np.ones(1)).tolist() == [comm.size // comm.span]  # and nobody waits for anybody


@pytest.mark.fault(38)
@pytest.mark.every_engine
def test_a_shape_in_sum_gradients(comm: Communicator) -> None:
    with comm.scope():
        kernel = tf.Variable(tf.ones((3, 2)), name="kernel")
    odd = tf.custom_gradient(lambda value: (tf.identity(value), lambda _: tf.ones(2)))
    with pytest.raises(GradientMismatch, match="variable 'kernel:0' has the shape") as caught:
        distgrad.sum_gradients(lambda x: tf.reduce_sum(x @ odd(kernel.value()), 1), [kernel], DATA[0], comm=comm)
    assert caught.value.rank is not None


class OwnStep(keras.Model):
    """A model with a train_step of its own."""

    def train_step(self, data: Any) -> dict[str, Any]:
        x, y = data
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean(tf.square(self(x, training=True) - y))
        self.optimizer.apply(tape.gradient(loss, self.trainable_variables), self.trainable_variables)
        return {"loss": loss}


@pytest.mark.fault(38)
@pytest.mark.every_engine
def test_a_shape_in_a_train_step_of_ones_own(comm: Communicator) -> None:
    model = distgrad.distribute(odd_model(comm, SHAPES["6 entries"], OwnStep), comm, log_every=0)
    model.compile("sgd")
    with pytest.raises(GradientMismatch, match="the gradient of variable 'odd/kernel' has the shape"):
        model.fit(*DATA, batch_size=4, verbose=0)


@pytest.mark.fault(38)
@pytest.mark.parametrize("fault", IN_THE_GRAPH)
@pytest.mark.parametrize("micro_batch_size", [None, pytest.param(1, marks=pytest.mark.thorough)])
def test_what_only_the_graph_tells(comm: Communicator, fault: str, micro_batch_size: int | None) -> None:
    if comm.backend == "tf":
        pytest.skip("a graph that fails breaks TensorFlow's own collectives; jobs/test_gradients.py has it")
    make, said = IN_THE_GRAPH[fault]
    model = odd_model(comm, make)
    with pytest.raises(GradientMismatch, match=f"the gradient of variable 'odd/kernel' .*{said}") as caught:
        quiet(comm, model, product, micro_batch_size=micro_batch_size)(*DATA)
    assert (caught.value.rank, caught.value.step) == (comm.rank, 1)
    assert weights(model).tolist() == [1] * 6
    comm.barrier()


def test_lost_values_of_a_gradient_that_is_described(comm: Communicator) -> None:
    """Its equal rows are summed first."""
    if comm.backend == "tf":
        pytest.skip("a graph that fails breaks TensorFlow's own collectives")
    make, said = IN_THE_GRAPH["lost values"]
    step = quiet(comm, odd_model(comm, make), product, statistics="workers")
    with pytest.raises(GradientMismatch, match=f"the gradient of variable 'odd/kernel' .*{said}"):
        step(*DATA)
    comm.barrier()


class OddTable(keras.layers.Layer):
    """A large table of which two rows are looked up, and whose gradient is of a row that it has not."""

    def build(self, _: Any) -> None:
        self.table = self.add_weight(shape=(20_000, 2), name="table", initializer="zeros")

    def call(self, x: tf.Tensor) -> tf.Tensor:
        @tf.custom_gradient
        def looked_up(table: tf.Tensor) -> tuple[tf.Tensor, Make]:
            row = tf.constant([20_000], tf.int64)
            return table[:2], lambda _: tf.IndexedSlices(tf.ones((1, 2)), row, tf.constant([20_000, 2]))

        return x[:, :1] * tf.reduce_sum(looked_up(self.table.value), 0)


@pytest.mark.fault(38)
def test_a_row_that_a_table_has_not(comm: Communicator) -> None:
    if comm.backend == "tf":
        pytest.skip("a graph that fails breaks TensorFlow's own collectives")
    with comm.scope():
        inputs = keras.Input((3,))
        model = keras.Model(inputs, OddTable(name="rows")(inputs))
    with pytest.raises(GradientMismatch, match="'rows/table' is of row 20000, and the variable's are 0 to 19999"):
        quiet(comm, model, product)(*DATA)
    comm.barrier()


@pytest.mark.usefixtures("several_processes")
def test_workers_that_describe_other_ranges_are_told(comm: Communicator) -> None:
    if comm.window is None:
        pytest.skip("the workers of this engine do not share a description out")
    ranges = [(0, 4), (4, 8)] if comm.is_root else [(0, 8)]
    division = Division(0, tf.constant([1.0], tf.float64), ranges=ranges)
    with pytest.raises(tf.errors.AbortedError) as caught:
        comm.sum_and_divide(lambda: tf.ones(8), (), division)
    error = comm.liveness.explain(caught.value)
    assert isinstance(error, ModelMismatch)
    assert "local rank 1 divides or describes other parts of its vector than local rank 0, 1 by themselves" in str(
        error
    )
    comm.liveness.fail(None)
    assert comm.process_sum(np.ones(1)).tolist() == [comm.size]


@pytest.mark.fault(38)
@pytest.mark.parametrize("row", [3, -1])
def test_a_row_outside_of_a_reduced_gradient(comm: Communicator, row: int) -> None:
    gradient = tf.IndexedSlices(tf.ones((1, 2)), tf.constant([row]), tf.constant([3, 2]))
    with pytest.raises(GradientMismatch, match=f"variable 'number 0' is of row {row}, and the variable's are 0 to 2"):
        distgrad.all_reduce_gradients([gradient], 1, comm=comm)


def test_a_reduced_gradient_of_unknown_shape(comm: Communicator) -> None:
    if comm.backend == "tf":
        pytest.skip("a strategy's replicas call it within a function of theirs")

    @tf.function(input_signature=[tf.TensorSpec(None)], autograph=False)
    def reduce(gradient: tf.Tensor) -> Any:
        return distgrad.all_reduce_gradients([gradient], 1, comm=comm).gradients

    with pytest.raises(GradientMismatch, match="number 0 has the shape <unknown>, which the trace does not tell"):
        reduce(tf.ones(2))
