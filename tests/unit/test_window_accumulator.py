"""Micro-batches added up in the memory of a lone worker's window."""

from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given
from hypothesis import strategies as st

from distgrad import connect
from distgrad.collectives.vectors import Division
from distgrad.gradients.flat_vector import SCALARS, FlatLayout
from distgrad.gradients.window_accumulator import WindowAccumulator, accumulator_for

ROWS = 50


@given(
    parts=st.lists(st.lists(st.integers(0, ROWS - 1), max_size=6), max_size=4),
    few=st.booleans(),
    describes=st.booleans(),
)
def test_rows_collected_for_a_table_are_its_gradient(parts: list[list[int]], few: bool, describes: bool) -> None:
    """In micro-batches that touch any rows, the same again or none; of a row's number, its value is arithmetic."""
    expected = np.zeros((ROWS, 2), "float32")
    with connect("solo") as comm:
        totals = accumulator_for(comm, FlatLayout([tf.Variable(tf.zeros((ROWS, 2)))], [0]), 0, describes)
        for number, part in enumerate([[], *parts]):
            rows = np.array(part, np.int64) % (3 if few else ROWS)
            values = np.stack([rows + 1.0, rows * number], axis=1).astype("float32")
            np.add.at(expected, rows, values)
            gradient = tf.IndexedSlices(tf.constant(values), tf.constant(rows))
            last = tf.constant(number == len(parts))
            _, found = totals.add([], [gradient], tf.constant(number == 0), last)
        vector = totals.vector([], tf.constant(True), tf.zeros(SCALARS))
        total = comm.sum_and_divide(lambda: vector, (), Division(SCALARS, tf.constant([2.0], tf.float64)))
        slices = total.sparse[0]
        assert slices.indices.numpy().tolist() == sorted({row % (3 if few else ROWS) for part in parts for row in part})
        np.testing.assert_array_equal(tf.convert_to_tensor(slices).numpy(), expected / 2)
        row = [expected.sum(), np.square(expected).sum(), np.abs(expected).max(), 0, np.sum(expected == 0)]
        assert total.moments.numpy().tolist() == row[:4]
        assert total.by_range.numpy().tolist() == [row]
        if describes:
            assert np.sum(found, axis=0)[1:].tolist() == row[:2]


@pytest.mark.parametrize("size", [0, 1, 255, 256, 4097, 100_003])
@pytest.mark.parametrize("scale", [1.0, 1e-25, 1e25, np.nan])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_what_is_added_is_described_on_the_way(size: int, scale: float, dtype: str) -> None:
    """Within 1e-6, also where float32 has no room for the squares."""
    parts = np.random.default_rng(size).normal(1.0, 1.0, (3, size)).astype(dtype) * np.array(scale, dtype)
    with connect("solo") as comm:
        totals = in_window(comm, tf.Variable(parts[0]))
        found = []
        for number, part in enumerate(parts):
            first, last = tf.constant(number == 0), tf.constant(number == len(parts) - 1)
            found.append(np.sum(totals.add([], [tf.constant(part)], first, last)[1], axis=0))
    total = (parts[0] + parts[1] + parts[2]).astype("float64")
    squares = np.square(parts.astype("float64")).sum(1)
    np.testing.assert_allclose([three[0] for three in found], squares, rtol=1e-6)
    assert [three[1:].tolist() for three in found[:-1]] == [[0.0, 0.0]] * 2
    np.testing.assert_allclose(found[-1][1:], [total.sum(), np.square(total).sum()], rtol=1e-6)


def in_window(comm: Any, variable: tf.Variable) -> WindowAccumulator:
    """An accumulator that describes, in the memory of a lone worker's window."""
    return WindowAccumulator(comm.window, FlatLayout([variable]), 0, True)
