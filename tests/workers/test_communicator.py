"""What every communicator does, with data of which each rank's part is known and the sum is arithmetic."""

import json
import time

import keras
import ml_dtypes
import numpy as np
import pytest
import tensorflow as tf

from distgrad import Communicator, DistgradError, sum_gradients
from distgrad.collectives.communicator import BUNDLE
from distgrad.collectives.vectors import DividedSum
from distgrad.errors import BadArgument, ModelMismatch, UnsupportedDtype
from distgrad.gradients.flat_vector import LANES, Lanes, Layout


def part(worker: tf.Tensor, size: int, dtype: tf.DType) -> tf.Tensor:
    """An integer-valued vector that no two workers share: (worker + 1)·(3i + 1)."""
    return tf.cast(worker + 1, dtype) * tf.cast(3 * tf.range(size) + 1, dtype)


def total(size: int, workers: int) -> np.ndarray:
    return workers * (workers + 1) // 2 * (3 * np.arange(size) + 1)


def test_knows_its_place(comm: Communicator) -> None:
    assert 0 <= comm.rank < comm.size
    assert 0 <= comm.local_rank < comm.local_size <= comm.size
    assert comm.is_root == (comm.rank == 0)


@pytest.mark.parametrize("dtype", ["float32", "float64", "int32", "int64"])
@pytest.mark.parametrize("size", [0, 1, 7, 4097])
def test_sums_exactly(comm: Communicator, size: int, dtype: str) -> None:
    result = comm.sum_over_workers(lambda: part(comm.worker(), size, tf.as_dtype(dtype)), ())
    assert result.dtype == dtype
    np.testing.assert_array_equal(result.numpy(), total(size, comm.size))


def test_sums_a_large_vector_in_a_graph_again_and_again(comm: Communicator) -> None:
    @tf.function
    def step(offset: tf.Tensor) -> tf.Tensor:
        return comm.sum_over_workers(lambda value: part(comm.worker(), 100_003, tf.float64) + value, (offset,))

    for offset in range(5):
        result = step(tf.constant(float(offset), tf.float64))
        np.testing.assert_array_equal(result.numpy(), total(100_003, comm.size) + offset * comm.size)


def test_takes_a_vector_in_pieces(comm: Communicator) -> None:
    sizes = (0, 5, 100_000, 1, 0)

    def pieces() -> list[tf.Tensor]:
        return tf.split(part(comm.worker(), sum(sizes), tf.float64), sizes)

    result = tf.function(lambda: comm.sum_over_workers(pieces, ()))()
    np.testing.assert_array_equal(result.numpy(), total(sum(sizes), comm.size))


def test_a_constant_is_summed_whenever_it_is_asked_for(comm: Communicator) -> None:
    add = tf.function(lambda: comm.sum_over_workers(lambda: tf.ones(7), ()))
    for _ in range(2):
        time.sleep(0.1 * comm.rank)
        began = time.time()
        np.testing.assert_array_equal(add().numpy(), np.full(7, comm.size))
        ended = time.time()
        times = [json.loads(text) for text in comm.exchange(json.dumps([began, ended])) if text]
        assert max(began for began, _ in times) <= min(ended for _, ended in times)


def test_a_sum_never_shows_a_later_one(comm: Communicator) -> None:
    """However many of them are kept, and although an engine may hand out its own buffer."""
    add = tf.function(
        lambda offset: comm.sum_over_workers(lambda x: part(comm.worker(), 5000, tf.int64) + x, (offset,))
    )
    kept = [add(tf.constant(offset, tf.int64)) for offset in range(9)]
    for offset, result in enumerate(kept):
        np.testing.assert_array_equal(result.numpy(), total(5000, comm.size) + offset * comm.size)


def test_a_sum_may_be_computed_with_in_place(comm: Communicator) -> None:
    """TensorFlow reuses memory at a tensor's last use; what the other workers read must not change."""

    @tf.function
    def quarter(x: tf.Tensor) -> tf.Tensor:
        return comm.sum_over_workers(lambda x: part(comm.worker(), 1 << 16, tf.float32) + x, (x,)) / 2 / 2

    @tf.function
    def quarter_of_half(x: tf.Tensor, borrow: bool) -> tf.Tensor:
        vector = comm.sum_over_workers(lambda x: part(comm.worker(), 1 << 16, tf.float32) + x, (x,), borrow)
        return vector[: 1 << 15] / 2 / 2

    for offset in range(20):
        expected = (total(1 << 16, comm.size) + offset * comm.size) / 4
        np.testing.assert_array_equal(quarter(tf.constant(float(offset))).numpy(), expected)
        for borrow in (False, True):
            found = quarter_of_half(tf.constant(float(offset)), borrow)
            np.testing.assert_array_equal(found.numpy(), expected[: 1 << 15])


def test_gives_rows_to_exactly_one_worker(comm: Communicator) -> None:
    rows = tf.range(5) + 10 * comm.rank
    result = comm.sum_over_workers(lambda own: tf.stack([tf.reduce_sum(own), tf.size(own)]), (rows,))
    first_workers = range(0, comm.size, comm.span)
    assert result.numpy().tolist() == [sum(10 + 50 * rank for rank in first_workers), 5 * len(first_workers)]


def test_refuses_what_no_engine_sums_exactly(comm: Communicator) -> None:
    for dtype in (tf.float16, tf.bfloat16, tf.complex64, tf.bool):
        with pytest.raises(UnsupportedDtype, match=dtype.name):
            comm.sum_over_workers(lambda dtype=dtype: tf.zeros(3, dtype), ())


@pytest.mark.parametrize("size", [0, 5, 100_000])
@pytest.mark.parametrize("describe", [True, False])
def test_a_sum_is_divided_by_what_comes_along_and_described(comm: Communicator, size: int, describe: bool) -> None:
    def fn() -> list[tf.Tensor]:
        factor = tf.cast(comm.worker() + 1, tf.float32)
        return [factor * tf.cast(tf.range(size) % 7 - 2, tf.float32), factor * tf.constant([9.0, 2.0, 3.0])]

    def add() -> DividedSum:
        return comm.sum_and_divide(fn, (), 3, tf.constant([1.0, 10.0, 20.0], tf.float64), describe)

    everyone = comm.size * (comm.size + 1) / 2
    summed = everyone * (np.arange(size) % 7 - 2.0)
    for total in (add(), tf.function(add)()):
        assert float(total.divisor) == 1 + 10 * 2 * everyone + 20 * 3 * everyone
        np.testing.assert_array_equal(total.blocks[0].numpy(), summed.astype("float32") / np.float32(total.divisor))
        assert total.rest.numpy().tolist() == [9 * everyone, 2 * everyone, 3 * everyone]
        moments = [summed.sum(), np.square(summed).sum(), np.abs(summed).max(initial=0), 0]
        np.testing.assert_allclose(total.moments.numpy(), np.multiply(moments, describe), rtol=1e-6)
        assert total.nonfinite.numpy().tolist() == [0] * comm.size


def test_a_sum_is_not_divided_by_zero(comm: Communicator) -> None:
    total = comm.sum_and_divide(lambda: tf.constant([5.0, 0.0]), (), 1, tf.constant([0.0, 1.0], tf.float64))
    assert total.blocks[0].numpy().tolist() == [5.0 * comm.size]


def test_a_bad_sum_names_who_made_it_so(comm: Communicator) -> None:
    def fn() -> tf.Tensor:
        last = tf.equal(comm.worker(), comm.size - 1)
        return tf.stack([1.0, 2.0, tf.where(last, np.inf, 1.0), tf.where(last, np.nan, 1.0)])

    total = comm.sum_and_divide(fn, (), 0, tf.constant([4.0], tf.float64))
    assert total.moments.numpy()[3] == 2
    assert total.nonfinite.numpy().tolist() == [0] * (comm.size - 1) + [1]


def test_layout_carries_mixed_dtypes_scalars_and_none_on_odd_workers(comm: Communicator) -> None:
    dtypes = ("float16", "bfloat16", "float32", "float64")
    variables = [tf.Variable(tf.zeros(shape, dtype)) for dtype in dtypes for shape in ((), (3,), (2, 0), (2, 5))]
    layout = Layout(variables)

    def fn() -> list[tf.Tensor]:
        worker = comm.worker()
        own = [tf.fill(variable.shape, tf.cast(worker + 1, variable.dtype)) for variable in variables]
        odd = layout.flatten([None if index % 2 else value for index, value in enumerate(own)])
        pieces = [tf.where(worker % 2 == 1, *pair) for pair in zip(odd, layout.flatten(own), strict=True)]
        lanes = Lanes(
            tf.constant(0.1, tf.float64),
            tf.constant(2**24 + 1, tf.int64),
            tf.constant(5),
            tf.cast(worker % 2, tf.float64),
            tf.cast(worker, tf.float64),
        )
        return [*pieces, layout.flat_lanes(lanes)]

    entries, rest = tf.split(comm.sum_over_workers(fn, ()), [layout.entries, LANES])
    lanes = layout.lanes(rest)
    everyone, even = sum(range(1, comm.size + 1)), sum(range(1, comm.size + 1, 2))
    for index, value in enumerate(layout.unflatten([entries])):
        np.testing.assert_array_equal(value.numpy(), np.full(variables[index].shape, even if index % 2 else everyone))
    assert int(lanes.weight) == comm.size * (2**24 + 1)
    assert int(lanes.examples) == 5 * comm.size
    assert (int(lanes.more), int(lanes.stop)) == (comm.size // 2, sum(range(comm.size)))
    assert float(lanes.loss) == pytest.approx(0.1 * comm.size, rel=1e-12)


def test_sum_gradients_is_exact_on_integers(comm: Communicator) -> None:
    rng = np.random.default_rng(3)
    x, y = rng.integers(-9, 10, (13, 4)).astype("float32"), rng.integers(-9, 10, 13).astype("float32")
    weights, unused = tf.Variable([1.0, -2.0, 3.0, 0.0]), tf.Variable([5.0])
    first, last = comm.rank * 13 // comm.size, (comm.rank + comm.span) * 13 // comm.size
    for micro_batch_size in (None, 1, 2, 5, 100):
        sums = sum_gradients(
            lambda x, y: tf.square(tf.linalg.matvec(x, weights) - y),
            [weights, unused],
            (x[first:last], y[first:last]),
            comm=comm,
            micro_batch_size=micro_batch_size,
        )
        error = x @ weights.numpy() - y
        np.testing.assert_array_equal(sums.gradients[0].numpy(), 2 * error @ x)
        assert sums.gradients[1].numpy().tolist() == [0.0]
        assert float(sums.loss) == float(np.square(error).sum())
        assert float(sums.weight) == 13


def test_sums_of_one_graph_keep_their_order(comm: Communicator) -> None:
    """Two in a row, again and again in a loop: none reads what another one has already begun to add up."""
    weights = tf.Variable(tf.range(40_000, dtype=tf.float32) % 5)
    rows = tf.constant([[1.0], [2.0], [3.0]])

    @tf.function
    def twice(times: int) -> tf.Tensor:
        differences = tf.zeros(40_000)
        for turn in tf.range(times):
            factor = tf.cast(turn + 1, tf.float32)
            one, other = (
                sum_gradients(lambda x, f=f: tf.reduce_sum(f * x * weights, axis=1), [weights], rows, comm=comm)
                for f in (factor, 3 * factor)
            )
            differences += tf.abs(other.gradients[0] - 3 * one.gradients[0]) + tf.abs(
                one.gradients[0] - 6 * factor * comm.size / comm.span
            )
        return differences

    assert float(tf.reduce_max(twice(20))) == 0


def test_sum_gradients_takes_nothing_at_all(comm: Communicator) -> None:
    sums = sum_gradients(tf.abs, [], np.ones(4, "float32"), comm=comm)
    assert sums.gradients == []
    assert float(sums.loss) == 4 * comm.size / comm.span


def test_exchange(comm: Communicator) -> None:
    texts = comm.exchange("é" * comm.rank + "!")
    assert texts == ["é" * rank + "!" if rank % comm.span == 0 else "" for rank in range(comm.size)]


def test_broadcast_is_bit_exact(comm: Communicator) -> None:
    special = np.array([0.0, -0.0, np.nan, np.inf, 1e-45, 1 + 2**-23], "float32")
    root = [
        special,
        np.array(2**53 + 1, "int64"),
        np.array([2**32 - 1, 7], "uint32"),
        np.array([True, False, True]),
        np.array([1.5, -2.0, 3.0], ml_dtypes.bfloat16),
        np.zeros((0, 3), "float64"),
        np.arange(BUNDLE + 5, dtype="int32"),  # too many entries to be sent with others, or at once
        np.array([7], "int16"),
    ]
    # Outside the scope: TensorFlow's own collectives cannot create uint32 or bfloat16 variables.
    variables = [tf.Variable(value if comm.is_root else np.zeros_like(value)) for value in root]
    with comm.scope():
        variables.append(keras.Variable(keras.ops.full((2,), float(comm.rank + 1)), name="keras"))
    comm.broadcast(variables)
    for variable, expected in zip(variables, [*root, np.ones(2, "float32")], strict=True):
        assert variable.numpy().tobytes() == expected.tobytes()


@pytest.mark.usefixtures("several_processes")
def test_broadcast_of_different_variables_assigns_nothing(comm: Communicator) -> None:
    shape = (2, 3) if comm.rank < comm.size - 1 else (3, 2)
    variable = tf.Variable(tf.fill(shape, float(comm.rank)), name="kernel")
    with pytest.raises(ModelMismatch, match=rf"kernel.*float32 \(3, 2\)' on rank {comm.size - 1}") as caught:
        comm.broadcast([variable])
    assert (caught.value.code, caught.value.status, caught.value.rank) == ("DG020", 65, comm.size - 1)
    assert np.all(variable.numpy() == comm.rank)


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


def test_barrier_and_context_manager(comm: Communicator) -> None:
    comm.barrier()
    assert issubclass(BadArgument, DistgradError)
