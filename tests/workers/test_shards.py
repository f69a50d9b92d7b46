"""`Communicator.shard()`: the workers' rows are the global batch, each once."""

import numpy as np
import pytest
import tensorflow as tf

from distgrad import Communicator
from distgrad.errors import BadArgument

pytestmark = pytest.mark.every_world


def test_shards_are_the_global_batches(comm: Communicator) -> None:
    numbers = np.arange(1, 24)
    dataset = tf.data.Dataset.from_tensor_slices((numbers, {"twice": 2 * numbers})).batch(7)
    for batch, (own, named) in enumerate(comm.shard(dataset)):
        whole = numbers[7 * batch : 7 * batch + 7]
        np.testing.assert_array_equal(named["twice"].numpy(), 2 * own.numpy())
        assert abs(own.shape[0] - comm.span * len(whole) / comm.size) < 1 + comm.span
        seen = np.zeros(24, np.int32)
        seen[own.numpy()] += 1
        assert set(np.flatnonzero(comm.process_sum(seen) == 1)) == set(whole)


def test_shard_refuses_arrays(comm: Communicator) -> None:
    with pytest.raises(BadArgument, match="not ndarray"):
        comm.shard(np.zeros(3))
