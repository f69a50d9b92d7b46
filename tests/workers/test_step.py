"""What must hold of a step, on every engine: the weights are those of Keras in one process on the whole batch."""

from collections.abc import Iterator
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from support.step_zoo import ROWS, ZOO, Case, adam, batches, by_keras
from support.steps import (
    COLLECTIVES,
    TOLERANCE,
    Lookup,
    build,
    integers,
    linear,
    own,
    product,
    quiet,
    weights,
)

from distgrad import Communicator, DistributedStep, StepReport, connect
from distgrad.errors import (
    BadArgument,
    ModelMismatch,
    NonFiniteGradient,
    NoSamples,
    SettingsMismatch,
    UnsupportedDtype,
    UnsupportedLoss,
)
from distgrad.step.guards import FLAGS


@pytest.mark.filterwarnings("ignore:Gradients do not exist")  # says the oracle of its idle layer
@pytest.mark.parametrize("micro_batch_size", [None, 3])
@pytest.mark.parametrize("name", ZOO)
def test_three_adam_steps_are_keras_on_the_whole_batch(
    comm: Communicator, name: str, micro_batch_size: int | None
) -> None:
    case = ZOO[name]
    model, oracle = build(comm, case)
    steps = batches(case)
    losses = by_keras(oracle, case, steps)
    step = quiet(comm, model, case.loss, adam(case.clipping), micro_batch_size=micro_batch_size)
    reports = [step(*own(comm, batch)) for batch in steps]
    np.testing.assert_allclose([report.loss for report in reports], losses, rtol=2e-6)
    assert np.abs(weights(model) - weights(oracle)).max() <= TOLERANCE
    assert [report.examples for report in reports] == [ROWS] * 3
    assert step.compiled.experimental_get_tracing_count() == 1


def test_exactly_one_reduction_a_step(comm: Communicator) -> None:
    model, _ = build(comm, ZOO["regularised attention"])
    step = quiet(comm, model, ZOO["dense"].loss, adam({"global_clipnorm": 1.0}), groups={"all": ""}, micro_batch_size=2)
    batch = own(comm, batches(ZOO["regularised attention"])[0])
    step(*batch)
    graph = step.compiled.get_concrete_function(batch, tf.zeros(FLAGS, tf.float64)).graph
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


def test_rows_that_are_all_masked_out_change_nothing(comm: Communicator) -> None:
    x, y = integers()
    loss = keras.losses.MeanSquaredError(reduction="mean_with_sample_weight")
    step = quiet(comm, linear(comm), loss)
    report = step(*own(comm, (x, y, np.zeros(ROWS, "float32"))))
    assert (report.loss, report.gradient_norm, report.weight, report.applied) == (0, 0, 0, True)


@pytest.mark.fault(18)
@pytest.mark.parametrize("poison", [np.nan, np.inf, -np.inf])
def test_nonfinite_on_one_worker_skips_the_step_on_all(comm: Communicator, poison: float) -> None:
    x, y = integers()
    x[0, 0] = poison
    model = linear(comm)
    report = quiet(comm, model, product)(*own(comm, (x, y)))
    assert (report.nonfinite, report.applied, report.nonfinite_ranks) == (1, False, [0])
    assert weights(model).tolist() == [1.0, 1.0]
    assert '"gradient_sum": null' in report.as_json()


@pytest.mark.fault(18)
def test_overflow_in_the_sum_alone_is_found(comm: Communicator) -> None:
    """Every worker's own sum is finite; only the total is not. One worker's sum is the total."""
    huge = np.full((comm.size, 2), 3e38 if comm.size > 1 else np.inf, "float32")
    first = comm.rank
    model = linear(comm, 0.0)
    step = quiet(comm, model, product, reduction="sum")
    report = step(huge[first : first + comm.span], np.ones((comm.span, 1), "float32"))
    assert (report.nonfinite, report.applied) == (2, False)
    assert report.nonfinite_ranks == ([] if comm.size > 1 else [0])
    assert weights(model).tolist() == [0.0, 0.0]


def test_nonfinite_can_raise_on_all_workers_or_be_applied(comm: Communicator) -> None:
    x, y = integers()
    x[0, 1] = np.nan
    model = linear(comm)
    step = quiet(comm, model, product, on_nonfinite="raise")
    with pytest.raises(NonFiniteGradient, match=r"rank=0 step=1: 1 non-finite.*kernel") as caught:
        step(*own(comm, (x, y)))
    assert caught.value.status == 65
    assert weights(model).tolist() == [1.0, 1.0]
    report = quiet(comm, model, product, on_nonfinite="apply")(*own(comm, (x, y)))
    assert report.applied
    assert np.isnan(weights(model)).tolist() == [False, True]


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


def test_mixed_precision_scales_and_adjusts_alike(comm: Communicator) -> None:
    x, y = integers()
    with comm.scope():
        model = keras.Sequential(
            [
                keras.Input((2,)),
                keras.layers.Dense(1, use_bias=False, kernel_initializer="ones", dtype="mixed_float16"),
            ]
        )
        optimizer = keras.optimizers.LossScaleOptimizer(
            keras.optimizers.SGD(0.5), initial_scale=2.0**10, dynamic_growth_steps=2
        )
    step = quiet(comm, model, product, optimizer, micro_batch_size=3)
    expected = np.ones(2)
    for number, scale in enumerate([2.0**10, 2.0**11, 2.0**11, 2.0**10, 2.0**10], start=1):
        inputs = np.where(number == 4, np.float32(6e4), x)  # times its weight, more than float16 holds
        report = step(*own(comm, (inputs, y)))
        expected -= 0.5 * (x * y).mean(0) * report.applied
        assert report.applied == (number != 4)
        assert step.optimizer.dynamic_scale.numpy() == scale
    np.testing.assert_allclose(weights(model), expected, rtol=1e-3)


def test_static_loss_scale_is_taken_out_again(comm: Communicator) -> None:
    x, y = integers()
    model = linear(comm)
    report = quiet(comm, model, product, keras.optimizers.SGD(1.0, loss_scale_factor=1024.0))(*own(comm, (x, y)))
    assert report.gradient_sum == pytest.approx((x * y).mean(0).sum(), rel=1e-6)
    np.testing.assert_allclose(weights(model), 1 - (x * y).mean(0), rtol=1e-5)


def test_float64_model_is_summed_in_float64(comm: Communicator) -> None:
    x, y = integers()
    with comm.scope():
        model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1, use_bias=False, dtype="float64")])
    step = quiet(comm, model, keras.losses.MeanSquaredError(dtype="float64"), reduction="sum")
    start = model.get_weights()[0][:, 0]
    report = step(*own(comm, (x, y)))
    start = comm.process_sum(start if comm.is_root else np.zeros_like(start))  # every rank drew its own
    error = x.astype(float) @ start - y[:, 0]
    assert report.gradient_sum == pytest.approx((2 * error @ x.astype(float)).sum(), rel=1e-12)


def test_integer_variables_are_refused(comm: Communicator) -> None:
    class Counting(keras.layers.Dense):
        def build(self, shape: tuple[int, ...]) -> None:
            super().build(shape)
            self.counter = self.add_weight(shape=(), dtype="int32", initializer="zeros", name="counter")

    with comm.scope():
        model = keras.Sequential([keras.Input((2,)), Counting(1)])
    with pytest.raises(UnsupportedDtype, match=r"counter int32.*has no gradient"):
        quiet(comm, model, product)(*own(comm, integers()))


def test_a_loss_that_is_already_a_mean_is_refused(comm: Communicator) -> None:
    with pytest.raises(UnsupportedLoss, match="one number for a whole micro-batch"):
        quiet(comm, linear(comm), lambda y_true, y_pred: tf.reduce_mean(y_true - y_pred))(*own(comm, integers()))


class Adding(keras.layers.Layer):
    """Adds a loss that is a mean over the rows, one that is a sum, and one that is always the same."""

    def call(self, x: Any) -> Any:
        self.add_loss(keras.ops.mean(keras.ops.square(x)))
        self.add_loss(0.01 * keras.ops.sum(keras.ops.abs(x)))
        self.add_loss(keras.ops.convert_to_tensor(2.5))
        return x


@pytest.mark.parametrize("loss", ["mse", keras.losses.MeanSquaredError(reduction="sum")])
def test_losses_that_layers_add(comm: Communicator, loss: Any) -> None:
    """Means and constants count by rows and sums as they are, whatever the loss's own reduction."""
    penalties = {"activity_regularizer": "l2", "kernel_regularizer": "l2"}

    def adding() -> keras.Model:
        return keras.Sequential([keras.Input((2,)), keras.layers.Dense(3, **penalties), Adding()])

    model, oracle = build(comm, Case(adding, loss, lambda _: (), {}))
    oracle.compile("sgd", loss, run_eagerly=True)
    x, y = integers()
    step = quiet(comm, model, loss, micro_batch_size=2)
    for _ in range(2):
        expected = oracle.train_on_batch(x, np.tile(y, 3))
        oracle.reset_metrics()
        assert step(*own(comm, (x, np.tile(y, 3)))).loss == pytest.approx(expected, rel=1e-5)
    assert np.abs(weights(model) - weights(oracle)).max() <= 1e-5


def test_no_loss_at_all_is_refused(comm: Communicator) -> None:
    with pytest.raises(UnsupportedLoss, match="there is no loss"):
        quiet(comm, linear(comm), None)(*own(comm, integers()))


MISMATCHES = {
    "name": lambda odd: [keras.layers.Dense(3, name="odd" if odd else "even")],
    "shape": lambda odd: [keras.layers.Dense(2 if odd else 3, name="a"), keras.layers.Dense(3 if odd else 2, name="b")],
    "dtype": lambda odd: [keras.layers.Dense(3, name="a", dtype="float64" if odd else "float32")],
    "count": lambda odd: [keras.layers.Dense(3, name="a", use_bias=odd)],
}


@pytest.mark.fault(13, 14)
@pytest.mark.usefixtures("several_processes")
@pytest.mark.parametrize("difference", MISMATCHES)
def test_models_that_differ_are_found_before_anything_is_summed(comm: Communicator, difference: str) -> None:
    if comm.backend == "tf" and difference != "name":
        pytest.skip("TensorFlow's own collectives break down when workers create different variables")
    last = comm.rank == comm.size - 1
    with comm.scope():
        model = keras.Sequential([keras.Input((6,)), *MISMATCHES[difference](last)], name="differs")
    before = weights(model)
    with pytest.raises(ModelMismatch, match=f"rank {comm.size - 1}") as caught:
        quiet(comm, model, product)(np.ones((2, 6), "float32"), np.ones((2, 3), "float32"))
    assert (caught.value.code, caught.value.rank, caught.value.step) == ("DG020", comm.size - 1, 0)
    np.testing.assert_array_equal(weights(model), before)


@pytest.mark.fault(15)
@pytest.mark.usefixtures("several_processes")
def test_settings_that_differ_are_found(comm: Communicator) -> None:
    step = quiet(comm, linear(comm), product, reduction="mean" if comm.is_root else "sum")
    with pytest.raises(SettingsMismatch, match=r"reduction=sum' on rank 1 but 'reduction=mean' on rank 0"):
        step(*integers())


def test_the_first_step_broadcasts_weights_and_optimizer_state(comm: Communicator) -> None:
    x, y = integers()
    with comm.scope():
        model = linear(comm, 1.0 + comm.rank)
        optimizer = keras.optimizers.Adam(0.1)
        optimizer.build(model.trainable_variables)
        optimizer.iterations.assign(100 * (comm.rank + 1))
        optimizer.variables[2].assign(tf.fill((2, 1), float(comm.rank)))
    quiet(comm, model, product, optimizer)(*own(comm, (x, y)))
    assert optimizer.iterations.numpy() == 101
    state = np.concatenate([weights(model), np.ravel(optimizer.variables[2].numpy())]).astype("float64")
    processes = comm.size // comm.span
    np.testing.assert_allclose(comm.process_sum(state), processes * state, rtol=1e-12)


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


def test_an_unbuilt_model_is_built(comm: Communicator) -> None:
    with comm.scope():
        model = keras.Sequential([keras.layers.Dense(2)])
    report = quiet(comm, model, "mse")(*own(comm, (np.ones((ROWS, 3), "float32"), np.ones((ROWS, 2), "float32"))))
    assert report.applied
    assert model.count_params() == 8


def test_where_a_model_must_be_built(comm: Communicator) -> None:
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    if comm.backend == "tf":
        with pytest.raises(BadArgument, match=r"dense\w*/kernel was built outside comm.scope"):
            quiet(comm, model)
    else:
        assert quiet(comm, model)(*own(comm, integers())).applied


def test_only_building_belongs_into_the_scope(comm: Communicator) -> None:
    step, batch = quiet(comm, linear(comm)), own(comm, integers())
    with comm.scope():
        if comm.backend == "tf":
            with pytest.raises(BadArgument, match=r"within comm.scope\(\); build the model in there"):
                step(*batch)
        else:
            step(*batch)
    assert step(*batch).applied


def two_outputs() -> keras.Model:
    x = keras.Input((2,))
    return keras.Model(x, [keras.layers.Dense(3, name="many")(x), keras.layers.Dense(1, name="one")(x)])


@pytest.mark.parametrize("reduction", ["sum_over_batch_size", "sum"])
def test_a_loss_for_each_output(comm: Communicator, reduction: str) -> None:
    losses = [keras.losses.MeanAbsoluteError(reduction=reduction), keras.losses.Huber(reduction=reduction)]
    model, oracle = build(comm, Case(two_outputs, losses, lambda _: (), {}))
    x, y = integers()
    targets = [np.tile(y, 3), y]
    oracle.compile("sgd", losses, run_eagerly=True)
    expected = oracle.train_on_batch(x, targets)[0]
    share, *own_targets = own(comm, (x, *targets))
    report = quiet(comm, model, losses, micro_batch_size=2)(share, own_targets)
    assert report.loss == pytest.approx(expected, rel=1e-6)
    assert np.abs(weights(model) - weights(oracle)).max() <= TOLERANCE


@pytest.mark.parametrize("odd", ["sum", "mean_with_sample_weight", "sum_over_batch_size"])
def test_losses_with_a_divisor_each(comm: Communicator, odd: str) -> None:
    """One is divided by its rows, one by what a mask leaves, which differs, and one in another way still."""

    def masked() -> keras.Model:
        words = keras.Input((4,), dtype="int32")
        x = keras.layers.Embedding(5, 3, mask_zero=True)(words)
        each = [keras.layers.Dense(2, name=name)(x) for name in ("masked", "also")]
        return keras.Model(words, [keras.layers.GlobalAveragePooling1D()(x), *each])

    losses = ["mae", "mse", keras.losses.MeanSquaredError(reduction=odd)]
    model, oracle = build(comm, Case(masked, losses, lambda _: (), {}))
    rng = np.random.default_rng(6)
    x = rng.integers(1, 5, (ROWS, 4)).astype("int32") * (np.arange(4) < rng.integers(1, 5, (ROWS, 1)))
    y = [rng.normal(size=(ROWS, *shape)).astype("float32") for shape in ((3,), (4, 2), (4, 2))]
    weight = [rng.uniform(0.5, 2, shape).astype("float32") for shape in ((ROWS,), (ROWS, 4), (ROWS, 4))]
    oracle.compile("sgd", losses, run_eagerly=True)
    expected = oracle.train_on_batch(x, y, weight)[0]
    share, *rest = own(comm, (x, *y, *weight))
    step = quiet(comm, model, losses, micro_batch_size=2)
    report = step(share, rest[:3], rest[3:])
    assert step._objective.groups == (2 if odd == "sum_over_batch_size" else 3)
    assert report.loss == pytest.approx(expected, rel=1e-6)
    assert np.abs(weights(model) - weights(oracle)).max() <= TOLERANCE


def synchronised(synchronized: bool) -> keras.Model:
    normalise = keras.layers.BatchNormalization
    words = keras.Input((4,), dtype="int32")
    x = keras.layers.Embedding(5, 3, mask_zero=True)(words)
    x = normalise(momentum=0.6, synchronized=synchronized)(x)  # of what the mask leaves
    x = keras.layers.Dense(12, "tanh")(keras.layers.GlobalAveragePooling1D()(x))
    x = keras.layers.Conv2D(2, 2, padding="same", use_bias=False)(keras.layers.Reshape((2, 2, 3))(x))
    x = normalise(axis=1, momentum=0.6, synchronized=synchronized)(x)
    return keras.Model(words, keras.layers.Dense(2)(keras.layers.GlobalAveragePooling2D()(x)))


def test_synchronised_normalisation_is_that_of_the_whole_batch(comm: Communicator) -> None:
    """However unequal the shares, one of them empty."""
    x = np.random.default_rng(6).integers(1, 5, (ROWS, 4)).astype("int32") * (np.arange(ROWS)[:, np.newaxis] % 4 > 0)
    x[:, 0] = 3
    y = np.random.default_rng(7).normal(size=(ROWS, 2)).astype("float32")
    case = Case(lambda: synchronised(True), "mse", lambda _: (), {})
    model, oracle = build(comm, case)
    for layer in oracle.layers:
        layer.synchronized = False
    oracle.compile(keras.optimizers.SGD(0.1), "mse", run_eagerly=True)
    expected = [oracle.train_on_batch(x, y)]
    for _ in range(2):
        oracle.reset_metrics()
        expected.append(oracle.train_on_batch(x, y))
    step = quiet(comm, model, "mse", keras.optimizers.SGD(0.1))
    np.testing.assert_allclose([step(*own(comm, (x, y))).loss for _ in range(3)], expected, rtol=1e-5)
    assert np.abs(weights(model) - weights(oracle)).max() <= TOLERANCE
    with pytest.raises(BadArgument, match="is synchronized, and micro_batch_size=3 cuts"):
        quiet(comm, model, micro_batch_size=3)(*own(comm, (x, y)))


def normalised() -> keras.Model:
    return keras.Sequential(
        [keras.Input((2,)), keras.layers.BatchNormalization(momentum=0.5), keras.layers.Dense(1, use_bias=False)]
    )


def test_moving_statistics_are_the_mean_over_all_micro_batches(comm: Communicator) -> None:
    """One process with micro-batches that are the workers' shares takes the same step, and its mean is Keras's."""
    x, y = integers()
    model, alone = build(comm, Case(normalised, "mse", lambda _: (), {}))
    rows = ROWS // comm.size
    part = slice(comm.rank * rows, (comm.rank + comm.span) * rows)
    step, oracle = quiet(comm, model), quiet(connect("solo"), alone, micro_batch_size=rows)
    for _ in range(3):
        step(x[part], y[part])
        oracle(x, y)
    np.testing.assert_allclose(weights(model), weights(alone), atol=TOLERANCE)
    np.testing.assert_allclose(np.asarray(model.layers[0].moving_mean), x.mean(0) * (1 - 0.5**3), rtol=1e-5)


def test_a_skipped_step_leaves_moving_statistics_alone(comm: Communicator) -> None:
    x, y = integers()
    x[0, 0] = np.nan
    with comm.scope():
        model = normalised()
    assert not quiet(comm, model)(*own(comm, (x, y))).applied
    assert np.asarray(model.layers[0].moving_mean).tolist() == [0.0, 0.0]


def test_workers_drop_different_units_in_a_way_that_repeats(comm: Communicator) -> None:
    def losses() -> list[float]:
        """Each worker's row of 100 ones, of which about half are dropped, times a number that tells whose it is."""
        with comm.scope():
            layers = [
                keras.layers.Dropout(0.5, seed=3),
                keras.layers.Dense(1, use_bias=False, kernel_initializer="ones"),
            ]
            model = keras.Sequential([keras.Input((100,)), *layers])
        step = quiet(comm, model, lambda y_true, y_pred: y_true * y_pred, reduction="sum")
        ranks = np.arange(comm.rank, comm.rank + comm.span)[:, np.newaxis]
        return [step(np.ones((comm.span, 100), "float32"), 1000.0**ranks).loss for _ in range(2)]

    first, second = losses()
    assert losses() == [first, second]
    assert first != second
    sums = [first // 1000**rank % 1000 for rank in range(comm.size)]
    assert len(set(sums)) == comm.size


def test_normalisation_and_dropout_run(comm: Communicator) -> None:
    with comm.scope():
        layers = [keras.layers.BatchNormalization(), keras.layers.Dropout(0.5), keras.layers.Dense(1)]
        model = keras.Sequential([keras.Input((2,)), *layers])
    assert quiet(comm, model, micro_batch_size=2)(*own(comm, integers())).applied


def test_only_the_root_prints(comm: Communicator, capsys: pytest.CaptureFixture[str]) -> None:
    step = DistributedStep(linear(comm), product, "sgd", comm=comm, log_every=2, groups={"w": "kernel"})
    reports: list[StepReport] = [step(*own(comm, integers())) for _ in range(4)]
    assert capsys.readouterr().out == ("".join(f"{reports[i]}\n" for i in (1, 3)) if comm.is_root else "")
