"""What every communicator does, with data of which each rank's part is known and the sum is arithmetic."""

import json
import time
from types import SimpleNamespace

import keras
import ml_dtypes
import numpy as np
import pytest
import tensorflow as tf

from distgrad import Communicator
from distgrad.collectives.communicator import BUNDLE
from distgrad.errors import BadArgument, ModelMismatch, UnsupportedDtype
from distgrad.liveness import liveness
from distgrad.liveness.status_page import WAITING

pytestmark = pytest.mark.every_world


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
        times = [json.loads(text) for text in comm.exchange(json.dumps([began, ended])).values()]
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


def test_exchange(comm: Communicator) -> None:
    assert set(comm.exchange("").values()) == {""}
    for length in (1, 31, 32, 100):  # on both sides of what is sent at once
        texts = comm.exchange("é" * comm.rank + "!" + "é" * length)
        assert texts == {rank: "é" * rank + "!" + "é" * length for rank in range(0, comm.size, comm.span)}


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


def test_nobody_leaves_a_barrier_before_the_last_one_has_come(comm: Communicator) -> None:
    time.sleep(0.1 * comm.rank)
    came = time.time()
    comm.barrier()
    left = time.time()
    times = [json.loads(text) for text in comm.exchange(json.dumps([came, left])).values()]
    assert max(came for came, _ in times) <= min(left for _, left in times)


def test_an_error_that_says_what_it_is_waits_for_no_watchdog(
    comm: Communicator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another thread may wait in a sum meanwhile, and its deadline would end the job before this error was seen."""
    monkeypatch.setattr(liveness, "time", SimpleNamespace(sleep=pytest.fail))
    page = comm.liveness.page
    page[WAITING] = 1
    try:
        text = "distgrad: error[DG002]: two threads use one communicator at once; let one thread take all steps\n"
        found = comm.liveness.explain(tf.errors.AbortedError(None, None, text))
    finally:
        page[WAITING] = 0
    assert isinstance(found, BadArgument)
    assert "two threads" in str(found)
