"""Micro-batches, and how their gradients are added up."""

import numpy as np
import tensorflow as tf
from hypothesis import given
from hypothesis import strategies as st

from distgrad.gradients.accumulate import GraphAccumulator, LocalSums, MicroBatch, add, over_micro_batches
from distgrad.gradients.flat_vector import FlatLayout
from distgrad.gradients.micro_batch import LossSum, Scaling


@given(rows=st.integers(0, 13), size=st.none() | st.integers(1, 15), indexed=st.booleans())
def test_any_cut_into_micro_batches_is_the_whole(rows: int, size: int | None, indexed: bool) -> None:
    table = tf.Variable(tf.reshape(tf.range(12.0), (4, 3)))
    unused = tf.Variable(1.0)
    ids = np.arange(rows) * 7 % 4

    accumulator = GraphAccumulator(FlatLayout([table, unused]))

    def add_one(sums: LocalSums, ids: tf.Tensor, is_first: tf.Tensor, is_last: tf.Tensor) -> LocalSums:
        with tf.GradientTape() as tape:
            looked_up = tf.gather(table, ids) if indexed else tf.one_hot(ids, 4) @ table
            loss = LossSum(tf.reduce_sum(tf.square(looked_up)), tf.size(ids))
        extra = tf.cast([tf.size(ids)], tf.float32)
        one = MicroBatch(tape.gradient(loss.total, [table, unused]), loss, extra)
        return sums.plus(one, accumulator, is_first, is_last)

    run = tf.function(lambda ids: over_micro_batches(add_one, LocalSums.zeros(accumulator, 1), ids, size))
    sums = run(tf.constant(ids))
    assert sums.extra.numpy().tolist() == [rows]
    counts = np.bincount(ids, minlength=4)[:, None]
    np.testing.assert_array_equal(sums.gradients[0].numpy(), 2 * table.numpy() * counts)
    assert float(sums.gradients[1]) == 0
    assert float(sums.loss) == float((np.square(table.numpy()) * counts).sum())
    assert float(sums.weight) == rows


def test_half_precision_gradients_are_added_in_float32() -> None:
    total = tf.constant([2048.0])
    assert add(total, tf.constant([1.0], tf.float16)).numpy().tolist() == [2049.0]  # float16 has no 2049
    rows = tf.IndexedSlices(tf.constant([1.0, 1.0], tf.bfloat16), tf.constant([0, 0]))
    assert add(total, rows).numpy().tolist() == [2050.0]


def test_scaled_gradients_do_not_overflow_before_they_are_summed() -> None:
    """64 examples of gradient 1 at scale 2^14 sum to 2^20, sixteen times what float16 holds."""
    variable = tf.Variable(1.0)

    scaling, x = Scaling(scale=2.0**14), tf.ones(64, tf.float16)
    with tf.GradientTape() as tape:
        half = tf.cast(variable, tf.float16) * x
        loss = LossSum(tf.reduce_sum(tf.cast(half, tf.float32)), tf.size(x))
        target = scaling.target(loss)
    assert float(scaling.gradient_of_sum(tape.gradient(target, variable), loss)) == 64 * 2.0**14
