"""The pure parts of the sum: losses as numerator and divisor, micro-batches, the flat vector, its statistics."""

import functools
import itertools
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from distgrad import connect
from distgrad.collectives.moments import moments, rows, statistics, whole
from distgrad.errors import UnsupportedDtype, UnsupportedLoss
from distgrad.gradients.accumulate import Accumulated, Carried, accumulate, add
from distgrad.gradients.flat_vector import LANES, LARGE, Lanes, Layout
from distgrad.gradients.micro_batch import GradientSum, micro_batch_sum
from distgrad.gradients.window_accumulator import WindowAccumulator, accumulator_for
from distgrad.objective import loss as losses

settings.register_profile("tensorflow", deadline=None, max_examples=60)
settings.load_profile("tensorflow")

ROWS = 50
REDUCTIONS = ["sum_over_batch_size", "mean", "sum", "mean_with_sample_weight"]


# ---- the loss


@given(
    reduction=st.sampled_from(REDUCTIONS),
    tokens=st.booleans(),
    masked=st.booleans(),
    weights=st.sampled_from([None, "example", "token", "zero"]),
    seed=st.integers(0, 9999),
    cuts=st.lists(st.integers(1, 6), max_size=2),
)
def test_numerator_over_divisor_is_keras_however_the_batch_is_cut(
    reduction: str, tokens: bool, masked: bool, weights: str | None, seed: int, cuts: list[int]
) -> None:
    rng = np.random.default_rng(seed)
    shape = (7, 3) if tokens else (7,)
    y_true, y_pred = rng.normal(size=(*shape, 2)).astype("float32"), rng.normal(size=(*shape, 2)).astype("float32")
    mask = rng.integers(0, 2, shape).astype(bool) if masked else None
    weight_shape = shape if weights == "token" or not tokens else (7, 1)
    sample_weight = None if weights is None else rng.uniform(0, 2, weight_shape).astype("float32") * (weights != "zero")
    loss = keras.losses.MeanSquaredError(reduction=reduction)

    def cut(array: np.ndarray | None, rows: slice) -> Any:
        return None if array is None else tf.constant(array[rows])

    def prediction(rows: slice) -> tf.Tensor:
        tensor = tf.constant(y_pred[rows])
        if mask is not None:
            tensor._keras_mask = tf.constant(mask[rows])
        return tensor

    edges = [0, *sorted({min(7, sum(cuts[: i + 1])) for i in range(len(cuts))} - {7}), 7]
    parts = [slice(*edge) for edge in itertools.pairwise(edges)]
    sums = [losses.summed(loss, cut(y_true, p), prediction(p), cut(sample_weight, p))[:2] for p in parts]
    numerator = sum(float(numerator) for numerator, _ in sums)
    divisor = sum(float(divisor) for _, divisor in sums) if losses.divides(loss) else 1.0
    whole = slice(0, 7)
    expected = float(loss(y_true, prediction(whole), sample_weight))
    assert numerator / (divisor or 1.0) == pytest.approx(expected, rel=2e-5, abs=1e-6)


def test_names_functions_and_objects_mean_what_they_mean_to_compile() -> None:
    y_true, y_pred = tf.constant([[1.0], [0.0]]), tf.constant([[0.25], [0.5]])
    for loss in ("mse", "MeanSquaredError", keras.losses.mean_squared_error, keras.losses.MeanSquaredError()):
        numerator, divisor, *_ = losses.summed(losses.resolve(loss), y_true, y_pred, None)
        assert (float(numerator), int(divisor)) == (0.75**2 + 0.5**2, 2)


def test_labels_without_a_last_axis_meet_predictions_with_one() -> None:
    loss = losses.resolve(lambda y_true, y_pred: tf.abs(y_true - y_pred))
    term = losses.summed(loss, tf.constant([1, 2]), tf.constant([[0.0], [0.0]]), tf.constant([1.0, 3.0]))
    assert (float(term.loss), int(term.weight)) == (7.0, 2)


@pytest.mark.parametrize("loss", [None, ["mse", "mse"], {"a": "mse"}, 3])
def test_what_is_no_single_loss_is_refused(loss: Any) -> None:
    with pytest.raises(UnsupportedLoss, match="is no loss"):
        losses.resolve(loss)


# ---- micro-batches


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


@given(
    parts=st.lists(st.lists(st.integers(0, ROWS - 1), max_size=6), max_size=4),
    few=st.booleans(),
    describes=st.booleans(),
)
def test_rows_collected_for_a_table_are_its_gradient(parts: list[list[int]], few: bool, describes: bool) -> None:
    """In micro-batches that touch any rows, the same again or none; of a row's number, its value is arithmetic."""
    expected = np.zeros((ROWS, 2), "float32")
    with connect("solo") as comm:
        totals = accumulator_for(comm, Layout([tf.Variable(tf.zeros((ROWS, 2)))]), 0, describes, candidates=[0])
        for number, part in enumerate([[], *parts]):
            rows = np.array(part, np.int64) % (3 if few else ROWS)
            values = np.stack([rows + 1.0, rows * number], axis=1).astype("float32")
            np.add.at(expected, rows, values)
            gradient = tf.IndexedSlices(tf.constant(values), tf.constant(rows))
            last = tf.constant(number == len(parts))
            _, found = totals.add([], [gradient], tf.constant(number == 0), last)
        lanes = tf.zeros(LANES)
        vector = totals.vector([], tf.constant(True), lanes)
        total = comm.sum_and_divide(lambda: vector, (), LANES, tf.constant([2.0], tf.float64))
        slices = total.tables[0]
        assert slices.indices.numpy().tolist() == sorted({row % (3 if few else ROWS) for part in parts for row in part})
        np.testing.assert_array_equal(tf.convert_to_tensor(slices).numpy(), expected / 2)
        row = [expected.sum(), np.square(expected).sum(), np.abs(expected).max(), 0, np.sum(expected == 0)]
        assert total.moments.numpy().tolist() == row[:4]
        assert total.rows.numpy().tolist() == [row]
        if describes:
            assert np.sum(found, axis=0)[1:].tolist() == row[:2]


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


# ---- the flat vector


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
    layout = Layout(variables)
    values = [tf.fill(variable.shape, tf.cast(i + 1, variable.dtype)) for i, variable in enumerate(variables)]
    given_values = [None if i in absent else value for i, value in enumerate(values)]
    lanes = Lanes(
        tf.constant(loss, tf.float64),
        tf.constant(weight, tf.int64),
        tf.constant(rows, tf.int64),
        tf.constant(1.0, tf.float64),
        tf.constant(2.0, tf.float64),
    )
    vector = tf.concat([*layout.flatten(given_values), layout.flat_lanes(lanes)], 0)
    assert vector.dtype == (tf.float64 if "float64" in dtypes[: len(shapes)] else tf.float32)
    entries, rest = tf.split(vector * 3, [layout.entries, LANES])  # as if three workers had sent the same
    back = layout.lanes(rest)
    for i, value in enumerate(layout.unflatten([entries])):
        np.testing.assert_array_equal(value.numpy(), np.full(variables[i].shape, 0 if i in absent else 3 * (i + 1)))
    assert (int(back.weight), int(back.examples), int(back.more), int(back.stop)) == (3 * weight, 3 * rows, 3, 6)
    assert float(back.loss) == pytest.approx(3 * loss, rel=3e-7, abs=1e-9)  # the loss travels in float32


def test_large_gradients_travel_as_they_are_and_small_ones_together() -> None:
    sizes = [3, 5, LARGE, 7, LARGE + 1, 2]
    layout = Layout([tf.Variable(tf.zeros(size)) for size in sizes])
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
    layout = Layout([])
    nothing = tf.zeros((), tf.float64)
    for loss in (np.inf, -np.inf, np.nan, 1e300):
        lanes = Lanes(tf.constant(loss, tf.float64), nothing, nothing, nothing, nothing)
        back = layout.lanes(layout.flat_lanes(lanes))
        np.testing.assert_equal(float(back.loss), np.inf if loss == 1e300 else loss)


@pytest.mark.parametrize("dtype", ["int32", "complex64", "bool"])
def test_what_is_no_float_is_refused(dtype: str) -> None:
    with pytest.raises(UnsupportedDtype, match=rf"odd:0 {dtype} \(2,\)"):
        Layout([tf.Variable(tf.zeros(2)), tf.Variable(tf.cast(tf.zeros(2), dtype), name="odd")])


# ---- its statistics


@given(
    values=arrays.arrays(
        np.float32,
        st.integers(0, 40),
        elements=st.floats(width=32, allow_nan=True, allow_infinity=True, allow_subnormal=False),
    )
)
def test_statistics_are_numpy_s_in_float64(values: np.ndarray) -> None:
    check_statistics(values, moments(tf.constant(values)).numpy())
    check_statistics(values, core_moments(values))
    assert core_moments(values)[4] == np.count_nonzero(values == 0)


def core_moments(values: np.ndarray) -> np.ndarray:
    """The moments as the compiled core finds them while it adds."""
    return rows([tf.constant(values)]).numpy()[0]


def check_statistics(values: np.ndarray, raw: np.ndarray) -> None:
    found = statistics(tf.constant(raw)).numpy()
    assert found[3] == np.count_nonzero(~np.isfinite(values))
    if found[3] == 0:
        wide = values.astype("float64")
        assert found[0] == pytest.approx(wide.sum(), abs=1e-5 * np.abs(wide).sum(), rel=1e-6) or np.isinf(found[0])
        assert found[1] == pytest.approx(np.sqrt(np.square(wide).sum()), rel=1e-5)
        assert found[2] == np.abs(wide).max(initial=0)


def test_a_whole_is_described_by_its_parts() -> None:
    parts = [tf.range(10.0), tf.constant([np.nan, -20.0, 0.0]), tf.zeros(0)]
    assert whole(rows(parts)[:1]).numpy().tolist() == [45.0, 285.0, 9.0, 0.0, 1.0]
    np.testing.assert_array_equal(whole(rows(parts)), rows([tf.concat(parts, 0)])[0])
    assert whole(rows([])).numpy().tolist() == [0.0] * 5


def test_large_float64_entries_are_finite() -> None:
    for found in (moments(tf.constant([1e100, -1e100], tf.float64)), core_moments(np.array([1e100, -1e100]))):
        assert statistics(found).numpy().tolist()[:4] == [0.0, pytest.approx(2**0.5 * 1e100), 1e100, 0.0]
    assert core_moments(np.array([1e200, 1.0])).tolist() == [1e200, np.inf, 1e200, 0.0, 0.0]


def test_what_a_report_shows_is_divided_once() -> None:
    raw = np.array([[[3.0, 16.0, 4.0, 0.0, 7.0], [1.0, 4.0, 1e38, 5.0, 0.0]]])
    assert statistics(tf.constant(raw), 2.0).numpy().tolist() == [
        [[1.5, 2.0, 2.0, 0.0, 7.0], [0.5, 1.0, 5e37, 5.0, 0.0]]
    ]
    assert statistics(tf.constant(raw), 0.1, tf.float32).numpy()[0, :, 3].tolist() == [0.0, 5.0]
    assert statistics(tf.constant(raw[..., :4]), 1e-38, tf.float32).numpy()[0, :, 3].tolist() == [1.0, 5.0]
    assert statistics(tf.zeros((0, 5), tf.float64)).shape == (0, 5)


def test_small_entries_keep_their_squares() -> None:
    tiny = np.full(40, 1e-30, np.float32)  # whose squares vanish in float32
    for found in (moments(tf.constant(tiny)).numpy(), core_moments(tiny)):
        assert found[1] == pytest.approx(4e-59, rel=1e-6)
    assert core_moments(np.zeros(10, np.float32)).tolist() == [0.0, 0.0, 0.0, 0.0, 10.0]


@pytest.mark.parametrize("size", [0, 1, 7, 8, 9, 4095, 4096, 4097, 100_003])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_the_core_describes_every_entry(size: int, dtype: str) -> None:
    values = np.random.default_rng(size).normal(size=size).astype(dtype)
    wide = values.astype("float64")
    expected = [wide.sum(), np.square(wide).sum(), np.abs(wide).max(initial=0), 0, 0]
    np.testing.assert_allclose(core_moments(values), expected, rtol=1e-12, atol=1e-9)
    for bad in (np.nan, np.inf):
        if size:
            values[-1] = bad
            assert core_moments(values)[3] == 1


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
    """Totals that describe, in the memory of a lone worker's window."""
    return WindowAccumulator(comm.window, Layout([variable]), 0, True, candidates=[], exchange=comm.exchange)
