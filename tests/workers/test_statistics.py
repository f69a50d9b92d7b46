"""What a step tells beyond its line: NumPy says the same in float64, on every engine and for any number of workers."""

from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

from distgrad import Communicator
from distgrad.reports.noise import GradientNoise, estimate
from support.step_zoo import ROWS, SHARES
from support.steps import COLLECTIVES, Lookup, constant, integers, no_flags, own, product, quiet

CLOSE = {"rel": 1e-6, "abs": 1e-6}
SIZE = 2  # rows of a micro-batch


def two_variables(comm: Communicator) -> keras.Model:
    """y = x·K + b, of which an example's gradient under `product` is its inputs and 1, times y_true."""
    with comm.scope():
        return keras.Sequential(
            [keras.Input((2,)), keras.layers.Dense(1, kernel_initializer=constant(1.0), name="dense")], name="m"
        )


def gradients(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """(rows, 3) float64 each example's gradient."""
    return np.concatenate([x, np.ones_like(x[:, :1])], axis=1).astype(float) * y


def shares(comm: Communicator, rows: np.ndarray) -> list[np.ndarray]:
    """The rows by worker."""
    sizes = SHARES[comm.size] if comm.span == 1 else [ROWS // comm.size] * comm.size
    return np.split(rows, np.cumsum(sizes)[:-1])


def micro_batches(comm: Communicator, rows: np.ndarray) -> list[np.ndarray]:
    parts = shares(comm, rows)
    return [part[start : start + SIZE] for part in parts for start in range(0, len(part), SIZE)]


def expected_noise(parts: list[np.ndarray]) -> GradientNoise:
    total = np.sum([part.sum(0) for part in parts], axis=0)
    between = sum(np.square(part.sum(0)).sum() / len(part) for part in parts)
    return estimate(between, float(np.square(total).sum()), sum(map(len, parts)), len(parts))


@pytest.mark.between_hosts
def test_all_that_can_be_asked_for(comm: Communicator) -> None:
    x, y = integers()
    x[:, 1] = 0
    step = quiet(comm, two_variables(comm), product, micro_batch_size=SIZE, statistics="all", groups={"b": "bias"})
    report = step(*own(comm, (x, y)))
    told, rows = report.told, gradients(x, y)
    gradient = rows.mean(0)
    kernel, bias = told.variables["m/dense/kernel"], told.variables["m/dense/bias"]
    assert kernel == pytest.approx((gradient[:2].sum(), abs(gradient[0]), abs(gradient[0]), 0, 0.5), **CLOSE)
    assert bias == pytest.approx((gradient[2], abs(gradient[2]), abs(gradient[2]), 0, 0.0), **CLOSE)
    assert told.groups["b"] == pytest.approx(bias, **CLOSE)
    assert (told.zeros, report.gradient_norm) == pytest.approx((1 / 3, np.linalg.norm(gradient)), **CLOSE)

    means = [part.mean(0) if len(part) else np.zeros(3) for part in shares(comm, rows)]
    assert [worker.gradient_sum for worker in told.workers] == pytest.approx([mean.sum() for mean in means], **CLOSE)
    norms = [np.linalg.norm(mean) for mean in means]
    assert [worker.gradient_norm for worker in told.workers] == pytest.approx(norms, **CLOSE)
    assert [worker.weight for worker in told.workers] == [len(part) for part in shares(comm, rows)]
    assert told.noise == pytest.approx(expected_noise(micro_batches(comm, rows)), **CLOSE)

    times = told.times
    assert min(times[:3]) >= 0
    assert sum(times[:3]) == pytest.approx(report.seconds, rel=1e-6)
    assert times.compute == told.workers[comm.rank].seconds > 0
    assert times.slowest in range(comm.size)


def test_single_examples_give_the_same_noise_on_any_number_of_workers(comm: Communicator) -> None:
    x, y = integers()
    report = quiet(comm, two_variables(comm), product, micro_batch_size=1, statistics="noise")(*own(comm, (x, y)))
    assert report.told.noise == pytest.approx(expected_noise(list(gradients(x, y)[:, np.newaxis])), **CLOSE)
    assert (report.told.workers, report.told.variables, report.told.times) == ([], {}, None)


def test_the_whole_batch_at_once_tells_no_noise_of_one_worker(comm: Communicator) -> None:
    report = quiet(comm, two_variables(comm), product, statistics="noise")(*own(comm, integers()))
    assert np.isnan(report.told.noise.scale) == (comm.size == 1)


def test_nan_stays_with_the_worker_that_brought_it(comm: Communicator) -> None:
    x, y = integers()
    x[0, 0] = np.nan
    report = quiet(comm, two_variables(comm), product, micro_batch_size=SIZE, statistics="all")(*own(comm, (x, y)))
    assert not report.applied
    assert [worker.gradient_norm for worker in report.told.workers][1:] == pytest.approx(
        [np.linalg.norm(part.mean(0)) if len(part) else 0 for part in shares(comm, gradients(x, y))][1:], **CLOSE
    )
    assert np.isnan(report.told.workers[0].gradient_norm)
    assert np.isnan(report.told.noise).all()
    assert [row.nonfinite for row in report.told.variables.values()] == [1, 0]


def test_embeddings_whose_rows_come_several_times(comm: Communicator) -> None:
    words = np.random.default_rng(2).integers(0, 4, (ROWS, 4))
    with comm.scope():
        ids = keras.Input((4,), dtype="int32")
        model = keras.Model(ids, Lookup(tf.gather)(ids))
    step = quiet(comm, model, product, micro_batch_size=SIZE, statistics="all", reduction="sum")
    report = step(*own(comm, (words, np.ones((ROWS, 4, 3), "float32"))))
    counts = np.stack([np.repeat(np.bincount(row, minlength=9), 3) for row in words]).astype(float)
    assert report.told.noise == pytest.approx(expected_noise_of_four(micro_batches(comm, counts)), **CLOSE)
    norms = [np.linalg.norm(part.sum(0)) for part in shares(comm, counts)]
    assert [worker.gradient_norm for worker in report.told.workers] == pytest.approx(norms, **CLOSE)
    assert report.told.zeros == pytest.approx(np.mean(counts.sum(0) == 0))


def expected_noise_of_four(parts: list[np.ndarray]) -> GradientNoise:
    """Where an example has four losses, which are what N counts."""
    total = np.sum([part.sum(0) for part in parts], axis=0)
    between = sum(np.square(part.sum(0)).sum() / (4 * len(part)) for part in parts)
    return estimate(between, float(np.square(total).sum()), 4 * sum(map(len, parts)), len(parts))


def test_regularisers_and_loss_scales(comm: Communicator) -> None:
    x, y = integers()
    model = two_variables(comm)
    model.layers[0].kernel.regularizer = keras.regularizers.L2(0.5)
    with comm.scope():
        optimizer = keras.optimizers.LossScaleOptimizer(keras.optimizers.SGD(), initial_scale=2.0**10)
    report = quiet(comm, model, product, optimizer, statistics="all", micro_batch_size=SIZE)(*own(comm, (x, y)))
    rows = gradients(x, y)
    assert report.told.variables["m/dense/kernel"].gradient_sum == pytest.approx(rows.mean(0)[:2].sum() + 2, **CLOSE)
    assert report.told.workers[0].gradient_sum == pytest.approx(shares(comm, rows)[0].mean(0).sum(), **CLOSE)
    assert report.told.noise == pytest.approx(expected_noise(micro_batches(comm, rows)), **CLOSE)


def operations(step: Any, batch: tuple[Any, ...]) -> list[str]:
    graph = step.compiled.get_concrete_function(batch, *no_flags(step.comm)).graph.as_graph_def()
    inner = [node.op for function in graph.library.function for node in function.node_def]
    return inner + [node.op for node in graph.node]


@pytest.mark.every_engine
def test_one_reduction_whatever_is_asked_for_and_nothing_for_what_is_not(comm: Communicator) -> None:
    batch = own(comm, integers())
    found = {}
    for asked in ("all", ()):
        step = quiet(comm, two_variables(comm), product, micro_batch_size=SIZE, statistics=asked)
        step(*batch)
        found[asked] = operations(step, batch)
    reductions = {asked: [op for op in ops if op in COLLECTIVES] for asked, ops in found.items()}
    assert reductions["all"] == reductions[()]
    assert len(reductions["all"]) <= 1
    assert "Timestamp" in found["all"]
    assert "Timestamp" not in found[()]
    in_place = comm.alone and "DistgradSum" not in found[()]  # where nobody sums, what is described stays where it is
    assert found[()].count("DistgradDescribe") == in_place
