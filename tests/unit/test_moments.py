"""Statistics of a gradient: NumPy says the same in float64."""

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from distgrad.collectives.moments import merged, moments, moments_of_each, statistics


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
    return moments_of_each([tf.constant(values)]).numpy()[0]


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
    assert merged(moments_of_each(parts)[:1]).numpy().tolist() == [45.0, 285.0, 9.0, 0.0, 1.0]
    np.testing.assert_array_equal(merged(moments_of_each(parts)), moments_of_each([tf.concat(parts, 0)])[0])
    assert merged(moments_of_each([])).numpy().tolist() == [0.0] * 5


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
