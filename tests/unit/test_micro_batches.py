"""Micro-batches, and how their gradients are added up."""

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow as tf
from hypothesis import given
from hypothesis import strategies as st

from distgrad.gradients.accumulate import Accumulated, Carried, accumulate, add
from distgrad.gradients.flat_vector import Layout
from distgrad.gradients.micro_batch import GradientSum, micro_batch_sum


@given(rows=st.integers(0, 13), size=st.none() | st.integers(1, 15), indexed=st.booleans())
def test_any_cut_into_micro_batches_is_the_whole(rows: int, size: int | None, indexed: bool) -> None:
    table = tf.Variable(tf.reshape(tf.range(12.0), (4, 3)))
    unused = tf.Variable(1.0)
    ids = np.arange(rows) * 7 % 4

    def objective(ids: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        looked_up = tf.gather(table, ids) if indexed else tf.one_hot(ids, 4) @ table
        return tf.reduce_sum(tf.square(looked_up)), tf.size(ids)

    one = functools.partial(micro_batch_sum, objective, [table, unused])
    totals = Carried(Layout([table, unused]))
    run = tf.function(lambda ids: accumulate(with_rows(one), (ids,), size, totals, 2, riders=tf.zeros(1))[:4])
    sums = Accumulated(*run(tf.constant(ids)), [], [])
    assert sums.riders.numpy().tolist() == [rows]
    counts = np.bincount(ids, minlength=4)[:, None]
    np.testing.assert_array_equal(sums.carried[0].numpy(), 2 * table.numpy() * counts)
    assert float(sums.carried[1]) == 0
    assert float(sums.loss) == float((np.square(table.numpy()) * counts).sum())
    assert float(sums.weight) == rows


def with_rows(one: Callable[[Any], GradientSum]) -> Callable[[Any], tuple[GradientSum, tf.Tensor]]:
    """The number of rows rides along."""
    return lambda batch: (one(batch), tf.cast([tf.size(batch[0])], tf.float32))


def test_it_tells_which_variables_the_loss_depends_on() -> None:
    used, unused = tf.Variable(2.0), tf.Variable(3.0)
    one = functools.partial(micro_batch_sum, lambda x: (tf.reduce_sum(used * x), tf.size(x)), [used, unused])
    sums = accumulate(with_rows(one), (tf.ones(5),), 2, Carried(Layout([used, unused])), 2, riders=tf.zeros(1))
    assert sums.depends == [True, False]


def test_half_precision_gradients_are_added_in_float32() -> None:
    total = tf.constant([2048.0])
    assert add(total, tf.constant([1.0], tf.float16)).numpy().tolist() == [2049.0]  # float16 has no 2049
    rows = tf.IndexedSlices(tf.constant([1.0, 1.0], tf.bfloat16), tf.constant([0, 0]))
    assert add(total, rows).numpy().tolist() == [2050.0]


def test_scaled_gradients_do_not_overflow_before_they_are_summed() -> None:
    """64 examples of gradient 1 at scale 2^14 sum to 2^20, sixteen times what float16 holds."""
    variable = tf.Variable(1.0)

    def objective(x: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        half = tf.cast(variable, tf.float16) * x
        return tf.reduce_sum(tf.cast(half, tf.float32)), tf.size(x)

    sums = micro_batch_sum(objective, [variable], (tf.ones(64, tf.float16),), scale=2.0**14)
    assert float(sums.gradients[0]) == 64 * 2.0**14
