"""A sum that is divided by what comes along with it, and described on the way."""

import numpy as np
import pytest
import tensorflow as tf

from distgrad import Communicator
from distgrad.collectives.moments import NONFINITE
from distgrad.collectives.vectors import DividedSum, Division

pytestmark = pytest.mark.every_world


@pytest.mark.parametrize("size", [0, 5, 100_000])
@pytest.mark.parametrize("describe", [True, False])
def test_a_sum_is_divided_by_what_comes_along_and_described(comm: Communicator, size: int, describe: bool) -> None:
    def fn() -> list[tf.Tensor]:
        factor = tf.cast(comm.worker() + 1, tf.float32)
        return [factor * tf.cast(tf.range(size) % 7 - 2, tf.float32), factor * tf.constant([9.0, 2.0, 3.0])]

    def add() -> DividedSum:
        return comm.sum_and_divide(fn, (), Division(3, tf.constant([1.0, 10.0, 20.0], tf.float64), describe))

    everyone = comm.size * (comm.size + 1) / 2
    summed = everyone * (np.arange(size) % 7 - 2.0)
    for total in (add(), tf.function(add)()):
        assert float(total.divisor) == 1 + 10 * 2 * everyone + 20 * 3 * everyone
        np.testing.assert_array_equal(total.blocks[0].numpy(), summed.astype("float32") / np.float32(total.divisor))
        assert total.undivided.numpy().tolist() == [9 * everyone, 2 * everyone, 3 * everyone]
        moments = [summed.sum(), np.square(summed).sum(), np.abs(summed).max(initial=0), 0]
        np.testing.assert_allclose(total.moments.numpy(), np.multiply(moments, describe), rtol=1e-6)
        assert total.nonfinite_workers.numpy().tolist() == [0] * comm.size


def test_a_sum_is_not_divided_by_zero(comm: Communicator) -> None:
    total = comm.sum_and_divide(lambda: tf.constant([5.0, 0.0]), (), Division(1, tf.constant([0.0, 1.0], tf.float64)))
    assert total.blocks[0].numpy().tolist() == [5.0 * comm.size]


def test_a_bad_sum_names_who_made_it_so(comm: Communicator) -> None:
    def fn() -> tf.Tensor:
        last = tf.equal(comm.worker(), comm.size - 1)
        return tf.stack([1.0, 2.0, tf.where(last, np.inf, 1.0), tf.where(last, np.nan, 1.0)])

    total = comm.sum_and_divide(fn, (), Division(0, tf.constant([4.0], tf.float64)))
    assert total.moments.numpy()[NONFINITE] == 2
    assert total.nonfinite_workers.numpy().tolist() == [0] * (comm.size - 1) + [1]
