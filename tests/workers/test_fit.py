"""What must hold of a distributed Keras model, on every engine: what Keras does in one process on the whole data."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from support.fit_zoo import FITS, Fit, normalised

import distgrad
from distgrad import Communicator
from distgrad.errors import (
    BadArgument,
    FitMismatch,
    ForeignOptimizer,
    TooFewSamples,
    UnsupportedMetric,
    UnsupportedModel,
)

LOGGED = {"gradient_sum", "gradient_norm"}


def weights(model: keras.Model) -> np.ndarray:
    return np.concatenate([np.ravel(value) for value in model.get_weights()])


def build(comm: Communicator, case: Fit, **options: Any) -> tuple[keras.Model, keras.Model]:
    """The distributed model, with other weights on every rank, and the oracle with those of rank 0."""
    keras.utils.set_random_seed(7)
    oracle = case.build()
    oracle.compile(**case.compiled(), run_eagerly=True)  # tracing would take longer
    densify(oracle.optimizer)
    keras.utils.set_random_seed(7 + comm.rank)
    with comm.scope():
        model = distgrad.distribute(case.build(), comm, **options)
    model.compile(**case.compiled())
    return model, oracle


def densify(optimizer: keras.optimizers.Optimizer) -> None:
    """Let it see each gradient densely."""
    apply = optimizer.apply

    def apply_densely(gradients: Any, variables: Any = None) -> None:
        dense = [gradient if gradient is None else tf.convert_to_tensor(gradient) for gradient in gradients]
        apply(dense, variables)

    optimizer.apply = apply_densely


def first(data: Any, rows: int) -> Any:
    return keras.tree.map_structure(lambda array: array[:rows], data)


def same(found: dict[str, Any], expected: dict[str, Any], tolerance: float = 1e-5) -> None:
    assert set(found) - LOGGED == set(expected) - LOGGED
    for name, values in expected.items():
        np.testing.assert_allclose(found[name], values, atol=tolerance, rtol=tolerance, err_msg=name)


@pytest.mark.filterwarnings("ignore:You are using a softmax over axis")
@pytest.mark.parametrize("name", FITS)
def test_two_epochs_are_those_of_keras_alone(comm: Communicator, name: str) -> None:
    case = FITS[name]
    model, oracle = build(comm, case, micro_batch_size=3)
    how = {"batch_size": case.batch_size, "epochs": 2, "shuffle": False, "verbose": 0, **case.fit}
    held_out = (first(case.x, 16), first(case.y, 16))
    expected = oracle.fit(case.x, case.y, validation_data=held_out, validation_batch_size=8, **how)
    history = model.fit(case.x, case.y, validation_data=held_out, validation_batch_size=8, **how)
    assert set(history.history) > LOGGED
    same(history.history, expected.history, case.tolerance)
    assert np.abs(weights(model) - weights(oracle)).max() <= case.tolerance
    results = [m.evaluate(case.x, case.y, batch_size=8, verbose=0, return_dict=True) for m in (model, oracle)]
    same(*results, case.tolerance)


def test_normalisation_is_by_micro_batch(comm: Communicator) -> None:
    """Workers' shares act like one worker's micro-batches; one share that is the whole batch is Keras's own."""
    how = {"batch_size": 12, "epochs": 2, "shuffle": False, "verbose": 0}
    rng = np.random.default_rng(8)
    x, y = rng.normal(size=(24, 6, 6, 1)).astype("float32"), rng.normal(size=(24, 2)).astype("float32")
    case = Fit(normalised, lambda: {"optimizer": "adam", "loss": "mse"}, x, y)
    model, oracle = build(comm, case)
    if comm.size > 1:
        oracle.run_eagerly = False
        distgrad.distribute(oracle, distgrad.connect("solo"), micro_batch_size=12 // comm.size)
    same(model.fit(x, y, **how).history, oracle.fit(x, y, **how).history)
    assert np.abs(weights(model) - weights(oracle)).max() <= 1e-5


def test_two_models_against_each_other_in_a_loop_of_one_s_own(comm: Communicator) -> None:
    """A GAN: the discriminator's step, then the generator's through a frozen discriminator."""

    def trained(comm: Communicator) -> np.ndarray:
        keras.utils.set_random_seed(3)
        with comm.scope():
            generator = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)])
            critic = keras.Sequential([keras.Input((2,)), keras.layers.Dense(4, "tanh"), keras.layers.Dense(1)])
            both = keras.Sequential([generator, critic])
        loss = keras.losses.BinaryCrossentropy(from_logits=True)
        judge, forge = (
            distgrad.DistributedStep(model, loss, keras.optimizers.SGD(0.5), comm=comm, log_every=0)
            for model in (critic, both)
        )
        noise = np.random.default_rng(4).normal(size=(12, 3)).astype("float32")
        real = np.random.default_rng(5).normal(2.0, 1.0, (12, 2)).astype("float32")
        part = slice(comm.rank * 12 // comm.size, (comm.rank + comm.span) * 12 // comm.size)
        ones, zeros = np.ones((12, 1), "float32")[part], np.zeros((12, 1), "float32")[part]
        for _ in range(3):
            fake = np.asarray(generator(noise[part]))
            critic.trainable = True
            judge(np.concatenate([real[part], fake]), np.concatenate([ones, zeros]))
            critic.trainable = False
            forge(noise[part], ones)
        return weights(both)

    np.testing.assert_allclose(trained(comm), trained(distgrad.connect("solo")), atol=1e-5)


# ---- where Keras alone goes wrong. It does not train under MultiWorkerMirroredStrategy at all, nor with accumulation
# ---- under MirroredStrategy, nor with Horovod's optimizer: each model of the zoo does here, in micro-batches.


def test_uneven_micro_batches_are_the_whole_batch(comm: Communicator) -> None:
    """16 rows as 6, 6 and 4, where the mean of means is another mean."""
    x, y = numbers(16)
    model, oracle = line(comm, micro_batch_size=6), line(distgrad.connect("solo"))
    for one in (model, oracle):
        one.fit(x, y, batch_size=16, epochs=3, shuffle=False, verbose=0)
    np.testing.assert_allclose(weights(model), weights(oracle), rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("scaled", [False, True])
def test_nan_on_one_worker_skips_the_batch_on_all(comm: Communicator, scaled: bool) -> None:
    """Also where the loss is scaled; then all workers halve the scale alike."""
    x, y = numbers(16)
    x[7] = np.nan  # the last worker's row of the first batch
    model, spared = line(comm), line(distgrad.connect("solo"))
    if scaled:
        with comm.scope():
            optimizer = keras.optimizers.LossScaleOptimizer(keras.optimizers.SGD(0.01), initial_scale=64.0)
            model.compile(optimizer, "mse")
    how = {"batch_size": 8, "shuffle": False, "verbose": 0}
    model.fit(x, y, **how)
    spared.fit(x[8:], y[8:], **how)
    assert np.abs(weights(spared)).max() > 0
    np.testing.assert_allclose(weights(model), weights(spared), atol=1e-6)
    assert not scaled or float(tf.convert_to_tensor(model.optimizer.dynamic_scale)) == 32.0


@pytest.mark.parametrize("clipping", [{"global_clipnorm": 0.5}, {"clipnorm": 0.5}, {"clipvalue": 0.3}])
def test_clipping_sees_the_whole_batch(comm: Communicator, clipping: dict[str, float]) -> None:
    """The workers' own gradients are large and point away from each other; their mean is smaller than the limit."""
    x = np.repeat([[1.0, 2.0, 3.0]], 12, axis=0).astype("float32")
    y = np.array([20.0] * 6 + [-19.9] * 6, "float32")[:, np.newaxis]
    layer = keras.layers.Dense(1, use_bias=False, kernel_initializer="zeros")
    models = [line(comm), keras.Sequential([keras.Input((3,)), layer])]
    for model in models:
        with comm.scope() if model is models[0] else contextlib.nullcontext():
            model.compile(keras.optimizers.SGD(0.1, **clipping), "mse", run_eagerly=model is models[1])
        model.fit(x, y, batch_size=12, shuffle=False, verbose=0)
    assert np.abs(weights(models[1])).max() > 0
    np.testing.assert_allclose(weights(models[0]), weights(models[1]), atol=1e-6)


# ---- what fit takes


def line(comm: Communicator, **options: Any) -> keras.Model:
    """y = x·w from w = 0, distributed."""
    with comm.scope():
        layer = keras.layers.Dense(1, use_bias=False, kernel_initializer="zeros")
        model = distgrad.distribute(keras.Sequential([keras.Input((3,)), layer]), comm, **options)
    model.compile("sgd", "mse")
    return model


def numbers(rows: int = 20) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(5)
    return rng.integers(-2, 3, (rows, 3)).astype("float32"), rng.integers(-2, 3, (rows, 1)).astype("float32")


class Batches(keras.utils.PyDataset):
    """The numbers in batches of 8, 8 and 4."""

    num_batches = 3

    def __getitem__(self, index: int) -> tuple[np.ndarray, ...]:
        return tuple(array[8 * index : 8 * index + 8] for array in numbers())


def generator() -> Iterator[tuple[np.ndarray, ...]]:
    return (Batches()[index] for index in range(3))


SOURCES = {
    "PyDataset": lambda _: {"x": Batches(), "shuffle": False},
    "generator": lambda _: {"x": generator(), "steps_per_epoch": 3, "epochs": 1},
    "sharded dataset": lambda comm: {"x": comm.shard(tf.data.Dataset.from_tensor_slices(numbers()).batch(8))},
    "arrays": lambda _: {"x": numbers()[0], "y": numbers()[1], "batch_size": 8, "shuffle": False},
}
SOURCES |= {"eagerly": SOURCES["arrays"], "compiled by XLA": SOURCES["arrays"]}


@pytest.mark.parametrize("source", SOURCES)
def test_data_of_every_kind(comm: Communicator, source: str) -> None:
    if source == "eagerly" and comm.backend == "tf":
        pytest.skip("a strategy's replicas run in a graph")
    model, oracle = line(comm), line(distgrad.connect("solo"))
    model.run_eagerly, model.jit_compile = source == "eagerly", source == "compiled by XLA"
    given = {"epochs": 2, "verbose": 0, **SOURCES[source](comm)}
    history = model.fit(**given)
    epochs = given["epochs"]
    expected = [oracle.fit(*numbers(), batch_size=8, shuffle=False, verbose=0).history for _ in range(epochs)]
    same(history.history, {"loss": [one["loss"][0] for one in expected]})
    np.testing.assert_allclose(weights(model), weights(oracle), rtol=1e-5)


class Total(keras.Model):
    """Takes ragged rows."""

    def __init__(self) -> None:
        super().__init__()
        self.out = keras.layers.Dense(1, kernel_initializer="ones")

    def call(self, rows: Any) -> Any:
        return self.out(tf.reduce_sum(rows, axis=1, keepdims=True) / 4)


def sparse_line() -> keras.Model:
    return keras.Sequential([keras.Input((3,), sparse=True), keras.layers.Dense(1)])


@pytest.mark.parametrize("form", ["sparse", "ragged"])
def test_sparse_and_ragged_rows(comm: Communicator, form: str) -> None:
    """Shuffled they are the same rows in every epoch, and as a dataset each worker's own."""
    rng = np.random.default_rng(3)
    dense, y = rng.integers(0, 3, (14, 3)).astype("float32"), rng.normal(size=(14, 1)).astype("float32")
    if form == "sparse":
        x, make = tf.sparse.from_dense(dense), sparse_line
    else:
        x, make = tf.RaggedTensor.from_tensor(dense, lengths=rng.integers(1, 4, 14)), Total
    case = Fit(make, lambda: {"optimizer": keras.optimizers.SGD(0.02), "loss": "mse"}, x, y)
    model, oracle = build(comm, case, micro_batch_size=2)
    for data in ((x, y), (comm.shard(tf.data.Dataset.from_tensor_slices((x, y)).batch(5)),)):
        how = {} if len(data) == 1 else {"batch_size": 5, "shuffle": False}
        expected = oracle.fit(x, y, batch_size=5, shuffle=False, epochs=2, verbose=0)
        same(model.fit(*data, **how, epochs=2, verbose=0).history, expected.history)
    assert model.evaluate(x, y, verbose=0) == pytest.approx(oracle.evaluate(x, y, verbose=0), rel=1e-5)
    model.optimizer.learning_rate = 0.0
    losses = model.fit(x, y, batch_size=3, epochs=2, verbose=0).history["loss"]
    np.testing.assert_allclose(losses, oracle.evaluate(x, y, verbose=0), rtol=1e-5)


def test_shuffling_is_the_same_on_every_worker(comm: Communicator) -> None:
    """Each row is seen once an epoch, in other batches each time, which depend on the root's seed alone."""
    x, y = numbers()

    def run(seed: int, **options: Any) -> list[float]:
        keras.utils.set_random_seed(seed if comm.is_root else 0)
        return line(comm).fit(**options, epochs=3, verbose=0).history["gradient_norm"]

    arrays = {"x": x, "y": y, "batch_size": 8}
    assert run(1, **arrays) == run(1, **arrays) != run(2, **arrays)
    assert run(1, x=Batches(), shuffle=True) == run(1, x=Batches(), shuffle=True)
    still = line(comm)
    still.optimizer.learning_rate = 0.0
    losses = still.fit(x, y, batch_size=4, epochs=3, verbose=0).history["loss"]
    np.testing.assert_allclose(losses, np.square(y).mean(), rtol=1e-6)


def test_workers_with_unequal_datasets(comm: Communicator) -> None:
    """It goes on until the last one is done, known lengths or not; logs are the same everywhere."""
    x, y = numbers()
    own = [2, 5, 0][comm.rank % 3]  # on three workers one has none at all
    for known in (True, False):
        dataset = tf.data.Dataset.from_tensor_slices((x[: 4 * own], y[: 4 * own])).batch(4)
        dataset = dataset if known else dataset.filter(lambda *_: True)
        model = line(comm)
        with contextlib.nullcontext() if known else pytest.warns(UserWarning, match="ran out of data"):
            history = model.fit(dataset, epochs=2, verbose=0, validation_data=dataset).history
        processes = range(0, comm.size, comm.span)
        assert model.optimizer.iterations.numpy() == 2 * max([2, 5, 0][rank % 3] for rank in processes)
        assert set(history) == {"loss", "val_loss", *LOGGED}
        assert len(set(comm.exchange(repr(history))) - {""}) == 1


def test_on_batch(comm: Communicator) -> None:
    x, y = numbers()
    model, oracle = line(comm), line(distgrad.connect("solo"))
    weight = np.linspace(0.5, 1.5, len(x), dtype="float32")
    for _ in range(2):
        assert model.train_on_batch(x, y, weight) == pytest.approx(oracle.train_on_batch(x, y, weight), rel=1e-6)
    assert model.test_on_batch(x, y) == pytest.approx(
        float(np.square(y - x @ weights(model)[:, None]).mean()), rel=1e-5
    )
    assert set(model.train_on_batch(x, y, return_dict=True)) == {"loss", *LOGGED}
    np.testing.assert_allclose(model.predict(x, verbose=0), x @ weights(model)[:, None], rtol=1e-5)


# ---- who does what


@pytest.mark.filterwarnings("ignore:__array__ implementation")  # says NumPy of what Keras saves
def test_callbacks(comm: Communicator, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The root writes; decisions are taken by everyone, and are the same."""
    x, y = numbers()
    seen: list[dict[str, float]] = []
    callbacks = [
        keras.callbacks.ModelCheckpoint(tmp_path / "best.keras", monitor="gradient_norm", mode="min"),
        keras.callbacks.CSVLogger(tmp_path / "log.csv"),
        keras.callbacks.EarlyStopping("val_loss", patience=1, min_delta=1e9),
        keras.callbacks.LearningRateScheduler(lambda epoch: 0.1 / (epoch + 1)),
        keras.callbacks.LambdaCallback(on_epoch_end=lambda _, logs: seen.append(logs)),
    ]
    model = line(comm)
    model.fit(x, y, batch_size=8, epochs=9, validation_split=0.2, callbacks=callbacks, verbose=2)
    assert len(seen) == 2
    assert len(set(comm.exchange(repr(seen))) - {""}) == 1
    assert model.optimizer.learning_rate.numpy() == np.float32(0.05)
    assert (tmp_path / "best.keras").exists() == (tmp_path / "log.csv").exists() == comm.is_root
    assert ("gradient_norm: " in capsys.readouterr().out) == comm.is_root


def test_the_rate_warms_up(comm: Communicator) -> None:
    seen: list[float] = []
    model = line(comm)

    def look(*_: Any, **__: Any) -> None:
        seen.append(float(model.optimizer.learning_rate.numpy()))

    looking = keras.callbacks.LambdaCallback(on_train_batch_end=look)
    model.fit(*numbers(), batch_size=4, epochs=2, callbacks=[distgrad.WarmUp(0.01, 3, steps=4), looking], verbose=0)
    np.testing.assert_allclose(seen, [0.01, 0.015, 0.02, 0.025, *[0.03] * 6], rtol=1e-6)
    model.compile(keras.optimizers.SGD(keras.optimizers.schedules.CosineDecay(0.1, 9)), "mse")
    with pytest.raises(BadArgument, match="follows a schedule"):
        model.fit(*numbers(), callbacks=[distgrad.WarmUp(0.01, 3, steps=4)], verbose=0)


@pytest.mark.filterwarnings("ignore:__array__ implementation")  # says NumPy of what Keras saves
def test_a_saved_model_knows_nothing_of_distgrad(comm: Communicator, tmp_path: Path) -> None:
    x, y = numbers()
    how = {"batch_size": 8, "shuffle": False, "verbose": 0}
    model = line(comm)
    model.compile(keras.optimizers.Adam(0.1), "mse", metrics=["mae"])
    model.fit(x, y, **how)
    model.save(tmp_path / "model.keras")
    with comm.scope():
        loaded = keras.models.load_model(tmp_path / "model.keras")
        assert type(loaded).fit is keras.Model.fit
        assert "fit" not in vars(loaded)
        again = distgrad.distribute(loaded, comm)
    same(again.fit(x, y, **how).history, model.fit(x, y, **how).history)
    np.testing.assert_allclose(weights(again), weights(model), rtol=1e-6)


@pytest.mark.filterwarnings("ignore:__array__ implementation")  # says NumPy of what Keras saves
def test_training_goes_on_where_the_root_left_off(comm: Communicator, tmp_path: Path) -> None:
    x, y = numbers()

    def run(epochs: int) -> keras.Model:
        model = line(comm)
        backup = keras.callbacks.BackupAndRestore(tmp_path, delete_checkpoint=False)
        model.fit(x, y, batch_size=8, shuffle=False, epochs=epochs, callbacks=[backup], verbose=0)
        return model

    whole = line(comm)
    whole.fit(x, y, batch_size=8, shuffle=False, epochs=3, verbose=0)
    run(1)
    model = run(3)
    assert len(model.history.epoch) == 2
    np.testing.assert_allclose(weights(model), weights(whole), rtol=1e-6)


# ---- what it refuses


class Largest(keras.metrics.Metric):
    """A maximum, which cannot be added up."""

    def __init__(self) -> None:
        super().__init__(name="largest")
        self.value = self.add_weight(shape=(), initializer="zeros", name="value")

    def update_state(self, _: Any, y_pred: Any, **__: Any) -> None:
        self.value.assign(tf.maximum(self.value.value, tf.reduce_max(y_pred)))

    def result(self) -> Any:
        return self.value.value


class OwnStep(keras.Sequential):
    def train_step(self, _: Any) -> Any:
        return {}


def test_what_cannot_be_distributed_is_refused(comm: Communicator) -> None:
    with pytest.raises(UnsupportedModel, match=r"has its own train_step\(\)"):
        distgrad.distribute(OwnStep(), comm)
    model = line(comm)
    model.compile("sgd", "mse", metrics=[Largest()])
    with pytest.raises(UnsupportedMetric, match="metric 'largest' keeps what cannot be added") as caught:
        model.fit(*numbers(), verbose=0)
    assert (caught.value.code, caught.value.status) == ("DG041", 65)
    model.compile("sgd", "mse")
    if comm.size > 1:
        with pytest.raises(TooFewSamples, match="1 samples for"):
            model.fit(*numbers(1), verbose=0)
    if comm.backend != "tf":
        used = keras.optimizers.SGD()
        used.build([keras.Variable(np.zeros(2))])
        model.compile(used, "mse")
        with pytest.raises(ForeignOptimizer, match="another model"):
            model.fit(*numbers(), verbose=0)


@pytest.mark.usefixtures("several_processes")
def test_workers_that_would_not_stay_together_are_found(comm: Communicator) -> None:
    callbacks = [keras.callbacks.EarlyStopping("loss")] if comm.is_root else []
    with pytest.raises(FitMismatch, match="callback=EarlyStopping"):
        line(comm).fit(*numbers(), callbacks=callbacks, verbose=0)
    with pytest.raises(FitMismatch, match="number of rows=8' on rank"):
        line(comm).fit(*numbers(12 if comm.is_root else 8), verbose=0)
