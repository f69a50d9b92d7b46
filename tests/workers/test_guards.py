"""Workers that differ in anything, generated: either the sum is right, or every worker is told, and nothing was summed.

DISTGRAD_TEST_MISMATCHES says how many.

    DISTGRAD_TEST_MISMATCHES=2000 DISTGRAD_TEST_SIZE=2 mpirun -np 2 python -m pytest tests/workers/test_guards.py
"""

import os

import keras
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

import distgrad
from distgrad import Communicator, sum_gradients
from distgrad.errors import Drifted, ModelMismatch, SettingsMismatch, VersionMismatch
from distgrad.step import start
from support.steps import linear, quiet

MISMATCHES = int(os.environ.get("DISTGRAD_TEST_MISMATCHES", "50"))
DTYPES = ("float32", "float64")
SHAPES = ((), (3,), (4,), (2, 2), (2, 3), (3, 2), (6,))
VARIABLE = st.tuples(st.sampled_from("abcd"), st.sampled_from(SHAPES), st.sampled_from(DTYPES))
VARIABLES = st.lists(VARIABLE, min_size=1, max_size=3)
SHARES = st.lists(st.sampled_from([-2.0, 0.0, 1.0, 3.0, float("nan"), float("inf")]), max_size=3)


World = list[tuple[list[tuple[str, tuple[int, ...], str]], list[float], int | None, set[int]]]


@st.composite
def worlds(draw: st.DrawFn, size: int) -> World:
    """For each worker its variables, its share, its micro-batch size, and the variables its loss leaves out."""
    common = draw(VARIABLES)
    alike = draw(st.sampled_from([True, False, False, False]))
    others = st.one_of(VARIABLES, st.permutations(common), st.just([*common, *common]), st.just([_other(common[0])]))
    return [
        (
            list(common if alike or rank == 0 else draw(others)),
            draw(SHARES),
            draw(st.sampled_from([None, 1, 2])),
            draw(st.sets(st.integers(0, 2), max_size=2)),
        )
        for rank in range(size)
    ]


def _other(variable: tuple[str, tuple[int, ...], str]) -> tuple[str, tuple[int, ...], str]:
    """One of the same size and another shape, as far as there is one."""
    name, shape, dtype = variable
    return name, shape[::-1] if len(shape) > 1 else (*shape, 1), dtype


@pytest.mark.fault(13, 14, 16, 17, 18)
@pytest.mark.usefixtures("several_processes")
def test_no_sum_is_wrong_without_a_word(comm: Communicator) -> None:
    if comm.span > 1 or comm.backend == "tf":
        pytest.skip("TensorFlow's own collectives fail before distgrad can say which worker differs")
    outcomes = {"summed": 0, "refused": 0}

    @seed(1)  # the same worlds on every worker
    @settings(
        max_examples=MISMATCHES,
        database=None,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(worlds(comm.size))
    def try_one(world: World) -> None:
        outcomes[outcome_of(comm, world)] += 1

    try_one()
    assert min(outcomes.values()) > MISMATCHES // 10, outcomes


@pytest.mark.fault(15)
@pytest.mark.usefixtures("several_processes")
def test_other_versions_and_micro_batches_are_refused(comm: Communicator, monkeypatch: pytest.MonkeyPatch) -> None:
    def step(**options: int) -> distgrad.DistributedStep:
        with comm.scope():
            model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(1)])
        return distgrad.DistributedStep(model, "mse", "sgd", comm=comm, log_every=0, **options)

    x, y = np.ones((2, 3), "float32"), np.ones((2, 1), "float32")
    with pytest.raises(SettingsMismatch, match="micro_batch_size=2' on rank 1 but 'micro_batch_size=1' on rank 0"):
        step(micro_batch_size=1 + comm.rank)(x, y)
    monkeypatch.setattr(start, "version", lambda _: f"0.{comm.rank}")
    with pytest.raises(VersionMismatch, match=r"distgrad=0\.1' on rank 1 but 'distgrad=0\.0' on rank 0"):
        step()(x, y)


@pytest.mark.every_engine
@pytest.mark.three_workers
def test_weights_that_differ_on_one_worker_are_named(comm: Communicator) -> None:
    """Also where the workers are replicas of one process, each with a copy of its own."""
    if comm.size == 1:
        pytest.skip("one worker differs from nobody")
    model = linear(comm)
    step = quiet(comm, model, "mse", "sgd", check_every=2)
    rows = np.ones((4, 2), "float32"), np.zeros((4, 1), "float32")
    step(*rows)
    copies = [model.weights[0].value]
    if comm.span > 1:
        copies = list(copies[0].values)
    if comm.rank + comm.span == comm.size:
        copies[-1].assign(copies[-1] + 1.0)
    with pytest.raises(Drifted, match="kernel" if comm.span == 1 else "variable") as found:
        step(*rows)
    assert found.value.step == 2


def outcome_of(comm: Communicator, world: World) -> str:
    described, share, micro_batch_size, left_out = world[comm.rank]
    variables = [tf.Variable(tf.ones(shape, dtype), name=name) for name, shape, dtype in described]

    def loss(row: tf.Tensor) -> tf.Tensor:
        used = [v for index, v in enumerate(variables) if index not in left_out]
        return tf.add_n([row, *(row * tf.cast(tf.reduce_sum(v), tf.float32) for v in used)])

    alike = all(variables == world[0][0] for variables, *_ in world)
    try:
        sums = sum_gradients(
            loss, variables, tf.constant(share, tf.float32), comm=comm, micro_batch_size=micro_batch_size
        )
    except ModelMismatch:
        assert not alike, "refused what fits"
        return "refused"
    assert alike, "summed what does not fit"
    for index, (_, shape, dtype) in enumerate(described):
        expected = sum(float(np.sum(np.array(rows, dtype))) for _, rows, _, out in world if index not in out)
        np.testing.assert_array_equal(sums.gradients[index].numpy(), np.full(shape, expected))
    assert float(sums.weight) == sum(len(rows) for _, rows, *_ in world)
    return "summed"
