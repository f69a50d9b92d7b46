"""The flat vector on its way through the sum of real workers."""

import numpy as np
import pytest
import tensorflow as tf

from distgrad import Communicator
from distgrad.gradients.flat_vector import SCALARS, FlatLayout, Scalars

pytestmark = pytest.mark.every_world


def test_layout_carries_mixed_dtypes_scalars_and_none_on_odd_workers(comm: Communicator) -> None:
    dtypes = ("float16", "bfloat16", "float32", "float64")
    variables = [tf.Variable(tf.zeros(shape, dtype)) for dtype in dtypes for shape in ((), (3,), (2, 0), (2, 5))]
    layout = FlatLayout(variables)

    def fn() -> list[tf.Tensor]:
        worker = comm.worker()
        own = [tf.fill(variable.shape, tf.cast(worker + 1, variable.dtype)) for variable in variables]
        odd = layout.flatten([None if index % 2 else value for index, value in enumerate(own)])
        pieces = [tf.where(worker % 2 == 1, *pair) for pair in zip(odd, layout.flatten(own), strict=True)]
        scalars = Scalars(
            tf.constant(0.1, tf.float64),
            tf.constant(2**24 + 1, tf.int64),
            tf.constant(5),
            tf.cast(worker % 2, tf.float64),
            tf.cast(worker, tf.float64),
        )
        return [*pieces, layout.pack(scalars)]

    entries, rest = tf.split(comm.sum_over_workers(fn, ()), [layout.entries, SCALARS])
    total = layout.unpack(rest)
    everyone, even = sum(range(1, comm.size + 1)), sum(range(1, comm.size + 1, 2))
    for index, value in enumerate(layout.unflatten([entries])):
        np.testing.assert_array_equal(value.numpy(), np.full(variables[index].shape, even if index % 2 else everyone))
    assert int(total.weight) == comm.size * (2**24 + 1)
    assert int(total.examples) == 5 * comm.size
    assert (int(total.more), int(total.stop)) == (comm.size // 2, sum(range(comm.size)))
    assert float(total.loss) == pytest.approx(0.1 * comm.size, rel=1e-12)
