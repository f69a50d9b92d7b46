"""A Keras loss as numerator and divisor."""

import itertools
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given
from hypothesis import strategies as st

from distgrad.errors import UnsupportedLoss
from distgrad.objective import terms
from support.versions import KERAS

REDUCTIONS = ["sum_over_batch_size", "sum", *(["mean", "mean_with_sample_weight"] if KERAS >= (3, 7) else [])]


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
    sums = [terms.summed(loss, cut(y_true, p), prediction(p), cut(sample_weight, p))[:2] for p in parts]
    numerator = sum(float(numerator) for numerator, _ in sums)
    divisor = sum(float(divisor) for _, divisor in sums) if loss.reduction != "sum" else 1.0
    whole = slice(0, 7)
    expected = float(loss(y_true, prediction(whole), sample_weight))
    assert numerator / (divisor or 1.0) == pytest.approx(expected, rel=2e-5, abs=1e-6)


def test_names_functions_and_objects_mean_what_they_mean_to_compile() -> None:
    y_true, y_pred = tf.constant([[1.0], [0.0]]), tf.constant([[0.25], [0.5]])
    for loss in ("mse", "MeanSquaredError", keras.losses.mean_squared_error, keras.losses.MeanSquaredError()):
        numerator, divisor, *_ = terms.summed(terms.resolve(loss), y_true, y_pred, None)
        assert (float(numerator), int(divisor)) == (0.75**2 + 0.5**2, 2)


def test_labels_without_a_last_axis_meet_predictions_with_one() -> None:
    loss = terms.resolve(lambda y_true, y_pred: tf.abs(y_true - y_pred))
    term = terms.summed(loss, tf.constant([1, 2]), tf.constant([[0.0], [0.0]]), tf.constant([1.0, 3.0]))
    assert (float(term.total), int(term.weight)) == (7.0, 2)


@pytest.mark.parametrize("loss", [None, ["mse", "mse"], {"a": "mse"}, 3])
def test_what_is_no_single_loss_is_refused(loss: Any) -> None:
    with pytest.raises(UnsupportedLoss, match="is no loss"):
        terms.resolve(loss)
