"""Gradients of a tape of the user's own, reduced over the workers, on every engine."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

import distgrad
from distgrad import Communicator
from distgrad.errors import BadArgument, ModelMismatch

RUNS: list[Callable[[Any], Any]] = [lambda fn: fn, tf.function(autograph=False)]


def own_rows(comm: Communicator) -> int:
    """A number of rows that differs between the workers, 0 on the last of several."""
    return 0 if comm.rank == comm.size - 1 > 0 else 3 * comm.rank + 2


def rows_of_all(comm: Communicator) -> list[int]:
    return [0 if rank == comm.size - 1 > 0 else 3 * rank + 2 for rank in range(0, comm.size, comm.span)]


@pytest.mark.parametrize("run", RUNS, ids=["eagerly", "in a graph"])
def test_the_mean_is_weighted_and_exact(comm: Communicator, run: Callable[[Any], Any]) -> None:
    """Integers that depend on the rank; a worker without rows gives NaN, which does not count."""
    if comm.span > 1:
        pytest.skip("one process has several workers")
    rank, rows = comm.rank, own_rows(comm)
    values = np.arange(6, dtype="float32").reshape(2, 3) * (rank + 1)
    own = tf.constant(values if rows else np.full_like(values, np.nan))
    slices = tf.IndexedSlices(
        tf.constant([[1.0], [2.0], [4.0]]) * (rank + 1), tf.constant([0, 2, 2]), tf.constant([4, 1])
    )

    @run
    def reduce(dense: tf.Tensor, rows: tf.Tensor) -> Any:
        some = dense[0] if rank == 0 else None
        return distgrad.all_reduce_gradients([dense, None, slices, some], rows, comm=comm)

    reduced = reduce(own, tf.constant(rows))
    weights = np.array(rows_of_all(comm), np.float64)
    mean = sum(w * (r + 1) for r, w in enumerate(weights)) / weights.sum()
    np.testing.assert_allclose(reduced.gradients[0], np.arange(6).reshape(2, 3) * mean, rtol=1e-6)
    assert reduced.gradients[1] is None
    np.testing.assert_allclose(reduced.gradients[2], np.array([[1], [0], [6], [0]]) * mean, rtol=1e-6)
    first = np.arange(3) * weights[0] / weights.sum()
    np.testing.assert_allclose(reduced.gradients[3], first, rtol=1e-6)
    everything = np.concatenate([np.ravel(g) for g in reduced.gradients if g is not None])
    assert float(reduced.weight) == weights.sum()
    assert float(reduced.gradient_sum) == pytest.approx(everything.sum(), rel=1e-6)
    assert float(reduced.gradient_norm) == pytest.approx(np.linalg.norm(everything), rel=1e-6)
    assert float(reduced.nonfinite) == 0


def test_the_sum(comm: Communicator) -> None:
    if comm.span > 1:
        pytest.skip("one process has several workers")
    reduced = distgrad.all_reduce_gradients([tf.constant([1.0 + comm.rank])], 1, comm=comm, reduction="sum")
    assert float(reduced.gradients[0][0]) == sum(range(1, comm.size + 1))
    assert float(reduced.weight) == comm.size


def test_a_loop_by_hand_is_the_step_of_one_process(comm: Communicator) -> None:
    """The customary loop with one more line, on a global batch that is cut unevenly."""
    if comm.span > 1:
        pytest.skip("one process has several workers")
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(17, 3)).astype("float32"), rng.normal(size=(17, 1)).astype("float32")
    cut = np.linspace(0, 1, comm.size + 1) ** 2 * 17
    own = slice(int(cut[comm.rank]), int(cut[comm.rank + 1]))
    weights = [tf.Variable(np.ones((3, 1), "float32")) for _ in range(2)]
    for weight, rows, one in zip(weights, (own, slice(None)), (comm, distgrad.connect("solo")), strict=True):
        for _ in range(3):
            with tf.GradientTape() as tape:
                loss = tf.reduce_mean(tf.square(x[rows] @ weight - y[rows]))
            count = len(x[rows])
            gradients = [tape.gradient(loss, weight)]
            reduced = distgrad.all_reduce_gradients(gradients, count, comm=one)
            weight.assign_sub(0.1 * reduced.gradients[0])
    np.testing.assert_allclose(weights[0].numpy(), weights[1].numpy(), atol=1e-6)


def test_what_does_not_fit_together_is_refused(comm: Communicator) -> None:
    with pytest.raises(BadArgument, match="reduction='max'"):
        distgrad.all_reduce_gradients([tf.constant(1.0)], 1, comm=comm, reduction="max")
    with pytest.raises(BadArgument, match="no gradient"):
        distgrad.all_reduce_gradients([None], 1, comm=comm)
    if comm.size > comm.span:
        with pytest.raises(ModelMismatch, match="gradient 0 is"):
            distgrad.all_reduce_gradients([tf.zeros(3 + comm.rank)], 1, comm=comm)
        with pytest.raises(ModelMismatch, match="2 gradients on rank"):
            distgrad.all_reduce_gradients([tf.zeros(5)] * (1 + (comm.rank > 0)), 1, comm=comm)


@pytest.mark.usefixtures("several_processes")
def test_what_one_worker_has_agreed_on_before_may_not_fit_now(comm: Communicator) -> None:
    distgrad.all_reduce_gradients([tf.zeros(7)], 1, comm=comm)
    if comm.backend == "mpi":  # other engines end the job, see faults/
        with pytest.raises(ModelMismatch, match="unlike that of local rank 0"):
            distgrad.all_reduce_gradients([tf.zeros(7 + comm.rank)], 1, comm=comm)


def test_a_step_within_a_function_says_what_can_be_done(comm: Communicator) -> None:
    step = distgrad.DistributedStep(tf.keras.Sequential(), "mse", "sgd", comm=comm, log_every=0)
    with pytest.raises(BadArgument, match="all_reduce_gradients within the function"):
        tf.function(lambda x: step(x).values, autograph=False)(tf.zeros((2, 2)))


def test_within_the_replicas_of_a_strategy(comm: Communicator) -> None:
    """A loop that runs its step on each replica calls it there."""
    if comm.backend != "tf":
        pytest.skip("this engine has no strategy")

    def on_replica() -> Any:
        number = tf.cast(comm.worker(), tf.float32)
        return distgrad.all_reduce_gradients([tf.fill([3], number + 1), None], number + 1, comm=comm).gradients[0]

    found = tf.function(lambda: tf.distribute.get_strategy().run(on_replica), autograph=False)
    with comm.scope():
        results = tf.distribute.get_strategy().experimental_local_results(found())
    numbers = np.arange(1, comm.size + 1)
    for result in results:
        np.testing.assert_allclose(result, np.full(3, (numbers**2).sum() / numbers.sum()), rtol=1e-6)
