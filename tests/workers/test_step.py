"""What must hold of a step, on every engine: the weights are those of Keras in one process on the whole batch."""

import functools
from collections.abc import Iterator

import keras
import numpy as np
import pytest
import tensorflow as tf

from distgrad import Communicator, DistributedStep, StepReport
from distgrad.errors import NoSamples
from support.fits import from_root
from support.marks import one_for_every_engine
from support.step_zoo import ROWS, ZOO, adam, batches, by_keras
from support.steps import (
    COLLECTIVES,
    TOLERANCE,
    Lookup,
    build,
    integers,
    linear,
    no_flags,
    own,
    product,
    quiet,
    weights,
)
from support.versions import since_keras


@functools.cache
def keras_alone(comm: Communicator, name: str) -> tuple[list[float], np.ndarray]:
    """Losses and weights of the oracle, for which micro-batches make no difference."""

    def compute() -> tuple[list[float], np.ndarray]:
        keras.utils.set_random_seed(7)
        oracle = ZOO[name].build()
        return by_keras(oracle, ZOO[name], batches(ZOO[name])), weights(oracle)

    return from_root(comm, compute)


@pytest.mark.filterwarnings("ignore:Gradients do not exist")  # says the oracle of its idle layer
@pytest.mark.parametrize("micro_batch_size", [None, 3])
@pytest.mark.parametrize("name", one_for_every_engine(ZOO, "masked LSTM"))
def test_three_adam_steps_are_keras_on_the_whole_batch(
    comm: Communicator, name: str, micro_batch_size: int | None
) -> None:
    case, steps = ZOO[name], batches(ZOO[name])
    losses, expected = keras_alone(comm, name)
    keras.utils.set_random_seed(7 + comm.rank)
    with comm.scope():
        model = case.build()
    step = quiet(comm, model, case.loss, adam(case.clipping), micro_batch_size=micro_batch_size)
    reports = [step(*own(comm, batch)) for batch in steps]
    np.testing.assert_allclose([report.loss for report in reports], losses, rtol=2e-6)
    assert np.abs(weights(model) - expected).max() <= TOLERANCE
    assert [report.examples for report in reports] == [ROWS] * 3
    assert step.compiled.experimental_get_tracing_count() == 1


@pytest.mark.every_engine
def test_exactly_one_reduction_a_step(comm: Communicator) -> None:
    model, _ = build(comm, ZOO["regularised attention"])
    step = quiet(comm, model, ZOO["dense"].loss, adam({"global_clipnorm": 1.0}), groups={"all": ""}, micro_batch_size=2)
    batch = own(comm, batches(ZOO["regularised attention"])[0])
    step(*batch)
    graph = step.compiled.get_concrete_function(batch, *no_flags(comm)).graph
    nodes = [node.op for node in graph.as_graph_def().node]
    nodes += [node.op for function in graph.as_graph_def().library.function for node in function.node_def]
    collectives = [op for op in nodes if op in COLLECTIVES]
    assert len(collectives) == (0 if comm.size == comm.span and comm.backend == "tf" else 1)


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_integer_data_gives_the_exact_gradient(comm: Communicator, reduction: str) -> None:
    x, y = integers()
    step = quiet(comm, linear(comm), product, micro_batch_size=2, reduction=reduction, groups={"kernel": "kernel$"})
    report = step(*own(comm, (x, y)))
    gradient = (x * y).sum(0) / (ROWS if reduction == "mean" else 1)
    assert [row.gradient_sum for row in report.table()] == [np.float32(gradient).sum()]
    assert report.gradient_sum == pytest.approx(gradient.sum(), rel=1e-7)
    assert report.groups["kernel"].gradient_sum == pytest.approx(gradient.sum(), rel=1e-7)
    assert report.gradient_norm == pytest.approx(np.sqrt(np.square(gradient).sum()), rel=1e-6)
    assert report.gradient_max == np.abs(np.float32(gradient)).max()
    assert (report.weight, report.workers, report.applied) == (ROWS, comm.size, True)
    np.testing.assert_array_equal(weights(step.model), np.float32(1) - np.float32(0.01) * np.float32(gradient))


def endless_share(comm: Communicator, lengths: list[int]) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Batches of 4 rows, as many as this process's length says."""
    x, y = integers()
    return ((x[:4], y[:4]) for _ in range(lengths[comm.rank // comm.span]))


@pytest.mark.fault(16, 20)
def test_an_epoch_lasts_until_the_last_worker_is_done(comm: Communicator) -> None:
    x, y = (array[:4] for array in integers())
    lengths = [2, 5, 0][: comm.size // comm.span]
    spec = (tf.TensorSpec((None, 2)), tf.TensorSpec((None, 1)))
    dataset = tf.data.Dataset.from_generator(lambda: endless_share(comm, lengths), output_signature=spec)
    step = quiet(comm, linear(comm), product)
    reports = list(step.epoch(dataset))
    assert len(reports) == max(lengths)
    active = [sum(length > number for length in lengths) for number in range(max(lengths))]
    assert [report.examples for report in reports] == [4 * workers for workers in active]
    assert [report.gradient_sum for report in reports] == [pytest.approx((x * y).mean(0).sum(), rel=1e-6)] * len(active)


@pytest.mark.fault(20)
def test_no_rows_anywhere_is_an_error_and_applies_nothing(comm: Communicator) -> None:
    model = linear(comm)
    step = quiet(comm, model, product, keras.optimizers.SGD(0.1, weight_decay=0.5))
    with pytest.raises(NoSamples) as caught:
        step(*integers(0))
    assert (caught.value.code, caught.value.status) == ("DG034", 65)
    assert weights(model).tolist() == [1.0, 1.0]
    empty = tf.data.Dataset.from_tensor_slices(integers()).take(0).batch(4)
    with pytest.raises(NoSamples):
        list(step.epoch(empty))
    assert step.optimizer.iterations.numpy() == 0


@since_keras(3, 7)
@pytest.mark.every_engine
def test_rows_that_are_all_masked_out_change_nothing(comm: Communicator) -> None:
    x, y = integers()
    loss = keras.losses.MeanSquaredError(reduction="mean_with_sample_weight")
    step = quiet(comm, linear(comm), loss)
    report = step(*own(comm, (x, y, np.zeros(ROWS, "float32"))))
    assert (report.loss, report.gradient_norm, report.weight, report.applied) == (0, 0, 0, True)


@pytest.mark.parametrize("clipping", [{"clipnorm": 1.0}, {"global_clipnorm": 1.0}, {"clipvalue": 1.0}])
def test_clipping_comes_after_the_reduction(comm: Communicator, clipping: dict[str, float]) -> None:
    """Gradients 10 and -9 on two workers: clipped first they cancel, summed first they are 1."""
    x = np.array([[10.0, 0.0], [-9.0, 0.0]], "float32")
    first, last = comm.rank * 2 // comm.size, (comm.rank + comm.span) * 2 // comm.size
    model = linear(comm)
    step = quiet(comm, model, product, keras.optimizers.SGD(1.0, **clipping), reduction="sum")
    step(x[first:last], np.ones((last - first, 1), "float32"))
    np.testing.assert_allclose(weights(model), [0.0, 1.0], atol=1e-7)


@pytest.mark.fault(17)
@pytest.mark.usefixtures("several_processes")
def test_a_gradient_on_some_workers_only_is_zeros_from_the_others(comm: Communicator) -> None:
    class Half(keras.Model):
        """Its second variable takes part on even ranks only."""

        def build(self, _shape: tuple[int, ...]) -> None:
            self.always = self.add_weight(shape=(1,), initializer="ones", name="always")
            self.sometimes = self.add_weight(shape=(1,), initializer="ones", name="sometimes")

        def call(self, x: tf.Tensor) -> tf.Tensor:
            return x * (self.always + self.sometimes if comm.rank % 2 == 0 else self.always)

    with comm.scope():
        model = Half()
    step = quiet(comm, model, product, keras.optimizers.SGD(1.0), reduction="sum")
    step(np.ones((2, 1), "float32"), np.ones((2, 1), "float32"))
    processes = comm.size // comm.span
    assert weights(model).tolist() == [1.0 - 2 * processes, 1.0 - 2 * ((processes + 1) // 2)]


def test_indexed_slices_are_the_same_as_dense(comm: Communicator) -> None:
    words = np.random.default_rng(2).integers(0, 9, (ROWS, 4))
    results = []
    for lookup in (tf.gather, lambda table, ids: tf.one_hot(ids, 9) @ table):
        keras.utils.set_random_seed(4)
        with comm.scope():
            ids = keras.Input((4,), dtype="int32")
            model = keras.Model(ids, Lookup(lookup)(ids))
        step = quiet(comm, model, product, keras.optimizers.Adam(0.01), micro_batch_size=5)
        for _ in range(2):
            step(*own(comm, (words, np.ones((ROWS, 4, 3), "float32"))))
        results.append(weights(model))
    np.testing.assert_allclose(*results, atol=1e-6)


def test_no_more_than_two_traces_whatever_the_shapes(comm: Communicator) -> None:
    with comm.scope():
        model = keras.Sequential([keras.Input((None, 2)), keras.layers.Dense(1)])
    step = quiet(comm, model, "mse", micro_batch_size=2)
    for rows, length in ((5, 3), (4, 3), (1, 3), (5, 4), (2, 7), (3, 5)):
        step(np.ones((rows, length, 2), "float32"), np.ones((rows, length, 1), "float32"))
    assert step.compiled.experimental_get_tracing_count() <= 2


def test_xla_compiles_the_local_part(comm: Communicator) -> None:
    case = ZOO["dense"]
    model, oracle = build(comm, case)
    steps = batches(case)
    by_keras(oracle, case, steps)
    step = quiet(comm, model, case.loss, adam(case.clipping), micro_batch_size=3, jit_compile=True)
    for batch in steps:
        step(*own(comm, batch))
    assert np.abs(weights(model) - weights(oracle)).max() <= TOLERANCE


def test_only_the_root_prints(comm: Communicator, capsys: pytest.CaptureFixture[str]) -> None:
    step = DistributedStep(linear(comm), product, "sgd", comm=comm, log_every=2, groups={"w": "kernel"})
    reports: list[StepReport] = [step(*own(comm, integers())) for _ in range(4)]
    assert capsys.readouterr().out == ("".join(f"{reports[i]}\n" for i in (1, 3)) if comm.is_root else "")


@pytest.mark.every_engine
@pytest.mark.parametrize("check_every", [0, 2])
def test_weights_that_the_root_alone_has_are_everybody_s_in_the_next_step(comm: Communicator, check_every: int) -> None:
    """Told by the step's own sum: no other communication while nobody sets weights."""
    model = linear(comm)
    step = quiet(comm, model, "mse", keras.optimizers.SGD(0.25, momentum=0.5), check_every=check_every)
    oracle = keras.models.clone_model(model)
    rows = np.ones((2, 2), "float32"), np.zeros((2, 1), "float32")
    step(*rows)
    for setting in (2.0, 3.0, None, 4.0):
        if setting is not None and comm.is_root:
            model.set_weights([np.full(weight.shape, setting, "float32") for weight in model.get_weights()])
        before = step.steps
        oracle.set_weights(from_root(comm, model.get_weights))
        expected = float(np.mean(np.square(oracle(rows[0]).numpy())))
        report = step(*rows)
        assert report.applied
        assert report.loss == pytest.approx(expected)
        assert (report.step, step.steps) == (before + 1, before + 1)
        found = str([weight.tolist() for weight in model.get_weights()])
        assert set(comm.exchange(found).values()) == {found}


def test_weights_that_all_workers_set_alike_cost_no_second_step(
    comm: Communicator, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = linear(comm)
    step = quiet(comm, model, "mse", "sgd")
    rows = np.ones((2, 2), "float32"), np.zeros((2, 1), "float32")
    step(*rows)
    monkeypatch.setattr(comm, "broadcast", lambda _: pytest.fail("weights were sent"))
    for _ in range(2):
        model.set_weights([np.full(weight.shape, 2.0, "float32") for weight in model.get_weights()])
        assert step(*rows).applied


def test_weights_of_the_root_alone_are_everybody_s_after_start_alike(comm: Communicator) -> None:
    model = linear(comm)
    step = quiet(comm, model, "mse", keras.optimizers.SGD(0.0))
    rows = np.ones((2, 2), "float32"), np.zeros((2, 1), "float32")
    step(*rows)
    if comm.is_root:
        model.set_weights([np.full(weight.shape, 2.0, "float32") for weight in model.get_weights()])
    step.start_alike()
    expected = float(np.mean(np.square(model(rows[0]).numpy()))) if comm.is_root else 0.0
    assert step(*rows).loss == pytest.approx(float(comm.from_root(repr(expected))))
