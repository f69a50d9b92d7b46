"""Scripts in the manner of Keras's guides, on real digits: with two more lines they give what they give without."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
from keras import layers

import distgrad
from distgrad import Communicator
from support.versions import since_keras

# The scripts have it build their model; here are the two lines, or nothing.
Distribute = Callable[[Callable[[], keras.Model]], keras.Model]
TOLD = {"gradient_sum", "gradient_norm"}
ROWS = 320


def digits() -> tuple[np.ndarray, np.ndarray]:
    from sklearn.datasets import load_digits  # noqa: PLC0415 (which takes a second, where this file is not run, too)

    found = load_digits()
    return found.data[:ROWS].astype("float32") / 16, found.target[:ROWS]


def classifier() -> keras.Model:
    inputs = keras.Input((64,), name="digits")
    x = layers.Dense(16, activation="relu")(inputs)
    return keras.Model(inputs, layers.Dense(10, activation="softmax", name="predictions")(x))


def compiled(model: keras.Model, optimizer: Any = "rmsprop", **options: Any) -> keras.Model:
    metrics = [keras.metrics.SparseCategoricalAccuracy(name="hits")]
    model.compile(optimizer, keras.losses.SparseCategoricalCrossentropy(), metrics=metrics, **options)
    return model


def both(comm: Communicator, script: Callable[[Distribute], Any]) -> tuple[Any, Any]:
    """What a script gives on all workers, and in one process."""

    def on_all(build: Callable[[], keras.Model]) -> keras.Model:
        with comm.scope():
            return distgrad.distribute(build(), comm, micro_batch_size=20)

    found = []
    for distribute in (on_all, lambda build: build()):
        keras.utils.set_random_seed(1)
        found.append(script(distribute))
    return found[0], found[1]


def same(found: dict[str, list[float]], expected: dict[str, list[float]]) -> None:
    assert set(found) - TOLD == set(expected) - TOLD
    for name, values in expected.items():
        np.testing.assert_allclose(found[name], values, rtol=2e-5, atol=1e-6, err_msg=name)


def test_train_and_evaluate(comm: Communicator) -> None:
    """Samples held back, weights for classes, epochs that begin later, validation now and then."""

    def script(distribute: Distribute) -> Any:
        x, y = digits()
        model = compiled(distribute(classifier))
        weights = dict.fromkeys(range(10), 1.0) | {5: 2.0}
        how = {"batch_size": 64, "validation_split": 0.2, "validation_freq": 2, "class_weight": weights}
        history = model.fit(x, y, epochs=4, initial_epoch=1, shuffle=False, verbose=0, **how)
        assert history.epoch == [1, 2, 3]
        scores = model.evaluate(x[:100], y[:100], batch_size=50, verbose=0, return_dict=True)
        return history.history, scores, model.predict(x[:7], verbose=0)

    (history, scores, predicted), expected = both(comm, script)
    same(history, expected[0])
    same(scores, expected[1])
    np.testing.assert_allclose(predicted, expected[2], atol=1e-5)


def test_a_list_of_callbacks(comm: Communicator, tmp_path: Path) -> None:
    """It stops early, keeps the best weights, and TensorBoard reads what it wrote: the root's, and nobody else's."""
    places = iter((tmp_path / "all", tmp_path / "alone"))

    def script(distribute: Distribute) -> Any:
        x, y = digits()
        where = next(places)
        model = compiled(distribute(classifier), keras.optimizers.SGD(0.5))
        callbacks = [
            keras.callbacks.EarlyStopping(monitor="val_loss", min_delta=0.3, patience=1, restore_best_weights=True),
            keras.callbacks.ModelCheckpoint(where / "model_{epoch}.keras", save_best_only=True, monitor="val_loss"),
            keras.callbacks.TensorBoard(where / "logs", update_freq="epoch"),
            keras.callbacks.CSVLogger(where.with_suffix(".csv")),
        ]
        held_out = {"validation_data": (x[256:], y[256:]), "callbacks": callbacks}
        model.fit(x[:256], y[:256], batch_size=64, epochs=9, shuffle=False, verbose=0, **held_out)
        return model.history.history, sorted(path.name for path in where.glob("*.keras")), model.get_weights()

    (history, saved, weights), expected = both(comm, script)
    assert 1 < len(history["loss"]) < 9
    same(history, expected[0])
    assert saved == (expected[1] if comm.is_root else [])
    assert (tmp_path / "all.csv").exists() == comm.is_root
    for one, other in zip(weights, expected[2], strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5)
    written = list((tmp_path / "all").glob("logs/train/events*"))
    assert len(written) == int(comm.is_root)
    if comm.is_root:
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator  # noqa: PLC0415 (likewise)

        events = EventAccumulator(str(written[0].parent), size_guidance={"tensors": 0}).Reload()
        for name in ("epoch_loss", "epoch_hits", "epoch_gradient_norm"):
            values = [float(np.frombuffer(e.tensor_proto.tensor_content, "<f4")[0]) for e in events.Tensors(name)]
            np.testing.assert_allclose(values, history[name.removeprefix("epoch_")], rtol=1e-5)


class Diary(keras.callbacks.Callback):
    """A callback of one's own, which writes down what it is told and ends the training."""

    def __init__(self) -> None:
        super().__init__()
        self.entries: list[Any] = []

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:  # noqa: ARG002
        self.entries.append(("epoch", epoch))

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        self.entries.append((batch, float(logs["loss"]), float(logs["hits"])))
        if len(self.entries) == 7:
            self.model.stop_training = True

    def on_test_end(self, logs: Any = None) -> None:
        self.entries.append(("test", float(logs["loss"]), 0.0))


@since_keras(3, 7)  # before, Keras itself runs out of data where the last execution has fewer steps
def test_a_callback_of_one_s_own(comm: Communicator) -> None:
    """It is called after every two steps, as Keras documents of `steps_per_execution`."""

    def script(distribute: Distribute) -> Any:
        x, y = digits()
        diary = Diary()
        model = compiled(distribute(classifier), steps_per_execution=2)
        held_out = {"validation_data": (x[:50], y[:50]), "validation_batch_size": 50}
        model.fit(x, y, batch_size=64, epochs=3, shuffle=False, verbose=0, callbacks=[diary], **held_out)
        return diary.entries

    found, expected = both(comm, script)
    assert [entry[0] for entry in found] == [entry[0] for entry in expected]
    numbers = [[entry[1:] for entry in entries if len(entry) == 3] for entries in (found, expected)]
    np.testing.assert_allclose(*numbers, rtol=2e-5, atol=1e-6)


def test_learning_rates_that_change(comm: Communicator) -> None:
    def script(distribute: Distribute) -> Any:
        x, y = digits()
        model = compiled(distribute(classifier), keras.optimizers.Adam(0.02))
        callbacks = [
            keras.callbacks.LearningRateScheduler(lambda epoch, rate: rate if epoch < 1 else rate * 0.5),
            keras.callbacks.ReduceLROnPlateau(monitor="loss", min_delta=9.0, patience=1, factor=0.2),
            keras.callbacks.TerminateOnNaN(),
        ]
        how = {"batch_size": 80, "epochs": 4, "shuffle": False, "verbose": 0}
        return model.fit(x, y, callbacks=callbacks, **how).history

    found, expected = both(comm, script)
    assert len(set(found["learning_rate"])) == 4
    same(found, expected)


class Digits(keras.utils.PyDataset):
    """Batches made by several threads."""

    def __init__(self, **how: Any) -> None:
        super().__init__(**how)
        self.x, self.y = digits()

    def __len__(self) -> int:
        return 5

    def __getitem__(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        rows = slice(64 * index, 64 * index + 64)
        return self.x[rows], self.y[rows]


def endless() -> Iterator[tuple[np.ndarray, np.ndarray]]:
    while True:
        yield from (Digits()[index] for index in range(5))


# Before, Keras itself runs out of data with a PyDataset for validation.
PY_DATASET = pytest.param("PyDataset", marks=since_keras(3, 7))


@pytest.mark.parametrize("kind", [PY_DATASET, "generator"])
def test_data_that_come_bit_by_bit(comm: Communicator, kind: str) -> None:
    def script(distribute: Distribute) -> Any:
        model = compiled(distribute(classifier))
        train, held_out = (endless(), endless()) if kind == "generator" else (Digits(workers=2), Digits())
        how = {"steps_per_epoch": 5, "validation_steps": 2, "shuffle": False, "verbose": 0}
        return model.fit(train, epochs=2, validation_data=held_out, **how).history

    same(*both(comm, script))


def test_terms_that_only_layers_add(comm: Communicator) -> None:
    """A model with an endpoint layer, which takes the targets as an input, and no loss to compile."""

    class Endpoint(layers.Layer):
        def call(self, logits: Any, targets: Any) -> Any:
            self.add_loss(keras.ops.mean(keras.losses.sparse_categorical_crossentropy(targets, logits, True)))
            return keras.ops.softmax(logits)

    def build() -> keras.Model:
        inputs, targets = keras.Input((64,), name="inputs"), keras.Input((), dtype="int64", name="targets")
        outputs = Endpoint()(layers.Dense(10)(layers.Dropout(0.0)(inputs)), targets)
        return keras.Model({"inputs": inputs, "targets": targets}, outputs)

    def script(distribute: Distribute) -> Any:
        model = distribute(build)
        model.compile(optimizer="adam")
        x, y = digits()
        return model.fit({"inputs": x, "targets": y}, batch_size=80, epochs=2, shuffle=False, verbose=0).history

    same(*both(comm, script))


def test_a_model_that_is_not_built_yet(comm: Communicator) -> None:
    def script(distribute: Distribute) -> Any:
        drawn = keras.initializers.RandomNormal(seed=1)
        model = distribute(lambda: keras.Sequential([layers.Dense(10, "softmax", kernel_initializer=drawn)]))
        compiled(model)
        return model.fit(*digits(), batch_size=64, shuffle=False, verbose=0).history

    same(*both(comm, script))
    model = classifier()
    if comm.is_root:  # one worker may predict alone, by Keras's own method: nobody waits
        assert keras.Model.predict(model, digits()[0], verbose=0).shape == (ROWS, 10)
