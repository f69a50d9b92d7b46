"""`sum_gradients()`, the sum without a step around it, on integers."""

import numpy as np
import pytest
import tensorflow as tf

from distgrad import Communicator, sum_gradients

pytestmark = pytest.mark.every_world


def test_sum_gradients_is_exact_on_integers(comm: Communicator) -> None:
    rng = np.random.default_rng(3)
    x, y = rng.integers(-9, 10, (13, 4)).astype("float32"), rng.integers(-9, 10, 13).astype("float32")
    weights, unused = tf.Variable([1.0, -2.0, 3.0, 0.0]), tf.Variable([5.0])
    first, last = comm.rank * 13 // comm.size, (comm.rank + comm.span) * 13 // comm.size
    for micro_batch_size in (None, 1, 2, 5, 100):
        sums = sum_gradients(
            lambda x, y: tf.square(tf.linalg.matvec(x, weights) - y),
            [weights, unused],
            (x[first:last], y[first:last]),
            comm=comm,
            micro_batch_size=micro_batch_size,
        )
        error = x @ weights.numpy() - y
        np.testing.assert_array_equal(sums.gradients[0].numpy(), 2 * error @ x)
        assert sums.gradients[1].numpy().tolist() == [0.0]
        assert float(sums.loss) == float(np.square(error).sum())
        assert float(sums.weight) == 13


def test_sums_of_one_graph_keep_their_order(comm: Communicator) -> None:
    """Two in a row, again and again in a loop: none reads what another one has already begun to add up."""
    weights = tf.Variable(tf.range(40_000, dtype=tf.float32) % 5)
    rows = tf.constant([[1.0], [2.0], [3.0]])

    @tf.function
    def twice(times: int) -> tf.Tensor:
        differences = tf.zeros(40_000)
        for turn in tf.range(times):
            factor = tf.cast(turn + 1, tf.float32)
            one, other = (
                sum_gradients(lambda x, f=f: tf.reduce_sum(f * x * weights, axis=1), [weights], rows, comm=comm)
                for f in (factor, 3 * factor)
            )
            differences += tf.abs(other.gradients[0] - 3 * one.gradients[0]) + tf.abs(
                one.gradients[0] - 6 * factor * comm.size / comm.span
            )
        return differences

    assert float(tf.reduce_max(twice(20))) == 0


def test_sum_gradients_takes_nothing_at_all(comm: Communicator) -> None:
    sums = sum_gradients(tf.abs, [], np.ones(4, "float32"), comm=comm)
    assert sums.gradients == []
    assert float(sums.loss) == 4 * comm.size / comm.span
