"""Gradients and scalars as one flat vector, and back."""

from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from distgrad.errors import UnsupportedDtype
from distgrad.gradients.flat_vector import LARGE, SCALARS, FlatLayout, Scalars


@given(
    shapes=st.lists(arrays.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4), max_size=5),
    dtypes=st.lists(st.sampled_from(["float16", "bfloat16", "float32", "float64"]), min_size=5, max_size=5),
    absent=st.sets(st.integers(0, 4)),
    weight=st.integers(0, 2**33),
    rows=st.integers(0, 2**31 - 1),
    loss=st.floats(-1e6, 1e6),
)
def test_the_vector_gives_back_what_went_in(
    shapes: Any, dtypes: Any, absent: set[int], weight: int, rows: int, loss: float
) -> None:
    variables = [tf.Variable(tf.zeros(shape, dtype)) for shape, dtype in zip(shapes, dtypes, strict=False)]
    layout = FlatLayout(variables)
    values = [tf.fill(variable.shape, tf.cast(i + 1, variable.dtype)) for i, variable in enumerate(variables)]
    given_values = [None if i in absent else value for i, value in enumerate(values)]
    scalars = Scalars(
        tf.constant(loss, tf.float64),
        tf.constant(weight, tf.int64),
        tf.constant(rows, tf.int64),
        tf.constant(1.0, tf.float64),
        tf.constant(2.0, tf.float64),
    )
    vector = tf.concat([*layout.flatten(given_values), layout.pack(scalars)], 0)
    assert vector.dtype == (tf.float64 if "float64" in dtypes[: len(shapes)] else tf.float32)
    entries, rest = tf.split(vector * 3, [layout.entries, SCALARS])  # as if three workers had sent the same
    back = layout.unpack(rest)
    for i, value in enumerate(layout.unflatten([entries])):
        np.testing.assert_array_equal(value.numpy(), np.full(variables[i].shape, 0 if i in absent else 3 * (i + 1)))
    assert (int(back.weight), int(back.examples), int(back.more), int(back.stop)) == (3 * weight, 3 * rows, 3, 6)
    assert float(back.loss) == pytest.approx(3 * loss, rel=3e-7, abs=1e-9)  # the loss travels in float32


def test_large_gradients_travel_as_they_are_and_small_ones_together() -> None:
    sizes = [3, 5, LARGE, 7, LARGE + 1, 2]
    layout = FlatLayout([tf.Variable(tf.zeros(size)) for size in sizes])
    assert layout.ranges() == [
        (0, 3),
        (3, 8),
        (16, 16 + LARGE),
        (16 + LARGE, 23 + LARGE),
        (32 + LARGE, 33 + 2 * LARGE),
        (48 + 2 * LARGE, 50 + 2 * LARGE),
    ]
    pieces = layout.flatten([tf.fill([size], float(index + 1)) for index, size in enumerate(sizes)])
    assert [piece.shape[0] for piece in pieces] == [16, LARGE, 16, LARGE + 16, 16]
    for blocks in (pieces, [tf.concat(pieces, 0)]):
        back = layout.unflatten(blocks)
        assert [float(tf.reduce_sum(part)) for part in back] == [size * (i + 1) for i, size in enumerate(sizes)]


def test_an_infinite_loss_travels_as_infinity() -> None:
    layout = FlatLayout([])
    nothing = tf.zeros((), tf.float64)
    for loss in (np.inf, -np.inf, np.nan, 1e300):
        scalars = Scalars(tf.constant(loss, tf.float64), nothing, nothing, nothing, nothing)
        back = layout.unpack(layout.pack(scalars))
        np.testing.assert_equal(float(back.loss), np.inf if loss == 1e300 else loss)


@pytest.mark.parametrize("dtype", ["int32", "complex64", "bool"])
def test_what_is_no_float_is_refused(dtype: str) -> None:
    with pytest.raises(UnsupportedDtype, match=rf"odd:0 {dtype} \(2,\)"):
        FlatLayout([tf.Variable(tf.zeros(2)), tf.Variable(tf.cast(tf.zeros(2), dtype), name="odd")])
