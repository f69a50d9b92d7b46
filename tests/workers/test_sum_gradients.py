"""`sum_gradients()`, the sum without a step around it, on integers."""

import numpy as np
import pytest
import tensorflow as tf

from distgrad import Communicator, sum_gradients


@pytest.mark.every_world
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


def twice(comm: Communicator, weights: tf.Variable, turn: tf.Tensor) -> tf.Tensor:
    """By how much the sums of two calls in a row are not what they should be."""
    rows = tf.constant([[1.0], [2.0], [3.0]])
    factor = tf.cast(turn + 1, tf.float32)
    one, other = (
        sum_gradients(lambda x, f=f: tf.reduce_sum(f * x * weights, axis=1), [weights], rows, comm=comm)
        for f in (factor, 3 * factor)
    )
    wrong = tf.abs(other.gradients[0] - 3 * one.gradients[0])
    return wrong + tf.abs(one.gradients[0] - 6 * factor * comm.size / comm.span)


@pytest.mark.every_world
def test_sums_of_one_graph_keep_their_order(comm: Communicator) -> None:
    """Two in a row, again and again in a loop: none reads what another one has already begun to add up."""
    weights = tf.Variable(tf.range(40_000, dtype=tf.float32) % 5)

    @tf.function(autograph=False)
    def again_and_again() -> tf.Tensor:
        def more(turn: tf.Tensor, wrong: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
            return turn + 1, wrong + twice(comm, weights, turn)

        return tf.while_loop(lambda turn, _: turn < 20, more, (0, tf.zeros(40_000)))

    turns, wrong = again_and_again()
    assert (int(turns), float(tf.reduce_max(wrong))) == (20, 0)


def test_a_loop_may_be_written_in_python(comm: Communicator) -> None:
    """TensorFlow then rewrites all that is called in it."""
    weights = tf.Variable(tf.range(40_000, dtype=tf.float32) % 5)

    @tf.function
    def again_and_again(times: int) -> tf.Tensor:
        wrong = tf.zeros(40_000)
        for turn in tf.range(times):
            wrong += twice(comm, weights, turn)
        return wrong

    assert float(tf.reduce_max(again_and_again(20))) == 0


@pytest.mark.every_world
def test_sum_gradients_takes_nothing_at_all(comm: Communicator) -> None:
    sums = sum_gradients(tf.abs, [], np.ones(4, "float32"), comm=comm)
    assert sums.gradients == []
    assert float(sums.loss) == 4 * comm.size / comm.span
