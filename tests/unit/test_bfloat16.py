"""Conversion to bfloat16 and back: as ml_dtypes converts, and what rounding takes away is kept."""

import ml_dtypes
import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from distgrad import native

# Any bits at all: denormal numbers, both zeros, infinities, every NaN. Sizes that fill no register, and several chunks.
FLOATS = st.integers(0, 2100).flatmap(lambda size: arrays(np.uint32, size)).map(lambda bits: bits.view(np.float32))
TIES = np.array([0x3F808000, 0x3F818000, 0xBF808000, 0x3F80FFFF, 0x7F7FFFFF, 0x00008000], np.uint32).view(np.float32)


def at(array: np.ndarray) -> int:
    return array.ctypes.data


def rounded(values: np.ndarray, before: np.ndarray, divisor: float) -> tuple[np.ndarray, np.ndarray]:
    """Values as bfloat16, and what is kept."""
    found, after = np.empty(values.size, np.uint16), np.full(values.size, np.nan, np.float32)
    native.functions().distgrad_round(at(found), at(values), values.size, at(before), at(after), divisor)
    return found.view(ml_dtypes.bfloat16), after


def widened(values: np.ndarray) -> np.ndarray:
    found = np.full(values.size, np.nan, np.float32)
    native.functions().distgrad_widen(at(found), at(values), values.size)
    return found


def nearest(values: np.ndarray) -> np.ndarray:
    with np.errstate(over="ignore"):  # of what is nearer to infinity than to the largest number
        return values.astype(ml_dtypes.bfloat16)


def assert_same(found: np.ndarray, expected: np.ndarray) -> None:
    """The same bits, but for what a NaN is made of."""
    np.testing.assert_array_equal(np.isnan(found), np.isnan(expected))
    is_number = ~np.isnan(expected)
    np.testing.assert_array_equal(found[is_number].view(np.uint16), expected[is_number].view(np.uint16))


@given(FLOATS)
def test_rounds_to_nearest_even_and_back(values: np.ndarray) -> None:
    for each in (values, TIES):
        found, _ = rounded(each, np.zeros_like(each), 1.0)
        with np.errstate(invalid="ignore"):  # of a signalling NaN
            expected = nearest(each + np.float32(0))  # which makes -0 a 0
        assert_same(found, expected)
        np.testing.assert_array_equal(widened(found), found.astype(np.float32))


@given(arrays(np.float32, 300, elements=st.floats(-1e6, 1e6, width=32)), st.sampled_from([0.5, 1.0, 64.0]))
def test_what_rounding_takes_away_is_added_the_next_time(values: np.ndarray, divisor: float) -> None:
    first, kept = rounded(values, np.zeros_like(values), divisor)
    np.testing.assert_array_equal(kept, (values - first.astype(np.float32)) / np.float32(divisor))
    second, _ = rounded(np.zeros_like(values), kept, divisor)
    assert_same(second, nearest(np.float32(0) + kept * np.float32(divisor)))


def test_nothing_is_kept_of_what_is_not_finite() -> None:
    values = np.float32([np.nan, np.inf, -np.inf, np.finfo(np.float32).max, 1.001])
    found, kept = rounded(values, np.zeros_like(values), 1.0)
    assert_same(found, nearest(values))
    assert kept[:4].tolist() == [0] * 4
    assert kept[4] != 0


def test_without_a_divisor_all_stays_as_it_was() -> None:
    values, before = np.float32([0.0, 1.001, 3.0]), np.float32([0.5, -0.25, 0.0])
    for divisor in (0.0, -1.0, np.nan, np.inf):
        found, after = rounded(values, before, divisor)
        assert_same(found, nearest(values))
        np.testing.assert_array_equal(after, before)


@given(st.integers(1, 5), st.integers(0, 2100), st.integers(0, 1000))
def test_sums_of_parts_are_added_in_order_and_rounded_once(count: int, size: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    parts = nearest(rng.standard_normal((count, size)).astype(np.float32))
    before = rng.standard_normal(size).astype(np.float32)
    found, after = np.empty(size, np.uint16), np.empty(size, np.float32)
    native.functions().distgrad_round_sum(at(found), at(parts), count, size, at(before), at(after), 2.0)
    total = np.zeros(size, np.float32)
    for part in parts:
        total += part.astype(np.float32)
    total += before * np.float32(2)
    assert_same(found.view(ml_dtypes.bfloat16), nearest(total))
    np.testing.assert_array_equal(after, (total - nearest(total).astype(np.float32)) / np.float32(2))
