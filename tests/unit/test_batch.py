"""Batches of dense, ragged and sparse rows."""

import numpy as np
import pytest
import tensorflow as tf

from distgrad.data.batch import one_row_at_least

DENSE = np.array([[1.0, 2.0], [3.0, 0.0]], "float32")
ROWS = {
    "dense": tf.constant(DENSE),
    "ragged": tf.RaggedTensor.from_tensor(DENSE, lengths=[2, 1]),
    "sparse": tf.sparse.from_dense(DENSE),
    "text": tf.constant([["a", "b"], ["c", ""]]),
    "ragged text": tf.ragged.constant([["a", "b"], ["c"]]),
}


def as_dense(rows: tf.Tensor | tf.RaggedTensor | tf.SparseTensor) -> np.ndarray:
    if isinstance(rows, tf.Tensor):
        return rows.numpy()
    return (rows.to_tensor() if isinstance(rows, tf.RaggedTensor) else tf.sparse.to_dense(rows)).numpy()


@pytest.mark.parametrize("kind", ROWS)
def test_only_a_batch_without_rows_gets_one(kind: str) -> None:
    rows = ROWS[kind]
    none = tf.sparse.slice(rows, [0, 0], [0, 2]) if kind == "sparse" else rows[:0]
    for pad in (one_row_at_least, tf.function(one_row_at_least)):
        np.testing.assert_array_equal(as_dense(pad(rows)), as_dense(rows))
        made = as_dense(pad(none))
        assert made.shape[0] == 1
        assert (made == (b"1" if "text" in kind else 1)).all()
