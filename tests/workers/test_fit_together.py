"""Workers that stay together: weights of the root, files of the root, and methods that all of them call."""

import time
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest

import distgrad
from distgrad import Communicator
from distgrad.errors import FitMismatch
from support.fits import line, numbers
from support.versions import KERAS


def change_on_root(comm: Communicator, model: keras.Model) -> list[np.ndarray]:
    """As after a `load_weights` on the root alone. Returns what the weights should be everywhere."""
    found = [np.full(weight.shape, 3.0, "float32") for weight in model.get_weights()]
    if comm.is_root:
        model.set_weights(found)
    return found


@pytest.mark.every_engine
@pytest.mark.parametrize("method", ["evaluate", "predict", "train_on_batch", "fit"])
def test_weights_that_the_root_alone_has_are_everybody_s(comm: Communicator, method: str) -> None:
    model = line(comm)
    x, y = numbers()
    model.fit(x, y, batch_size=8, verbose=0)
    changed = change_on_root(comm, model)
    if method == "predict":
        assert np.allclose(model.predict(x, verbose=0), x @ changed[0], rtol=1e-5)
    elif method == "evaluate":
        assert model.evaluate(x, y, verbose=0) == pytest.approx(np.mean((x @ changed[0] - y) ** 2), rel=1e-4)
    elif method == "train_on_batch":
        if KERAS < (3, 15):  # which does so by itself
            model.reset_metrics()
        assert model.train_on_batch(x, y) == pytest.approx(np.mean((x @ changed[0] - y) ** 2), rel=1e-4)
    else:
        history = model.fit(x, y, batch_size=len(x), verbose=0).history
        assert history["loss"][0] == pytest.approx(np.mean((x @ changed[0] - y) ** 2), rel=1e-4)


class Slow(keras.callbacks.ModelCheckpoint):
    """Takes its time to write."""

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        time.sleep(0.5)
        super().on_epoch_end(epoch, logs)


def test_what_the_root_writes_is_there_when_fit_returns(comm: Communicator, tmp_path: Path) -> None:
    path = comm.from_root(str(tmp_path / "best.weights.h5"))
    model = line(comm)
    model.fit(*numbers(), verbose=0, callbacks=[Slow(path, save_weights_only=True, monitor="loss")])
    trained = model.get_weights()
    model.load_weights(path)
    np.testing.assert_array_equal(model.get_weights()[0], trained[0])


@pytest.mark.usefixtures("several_processes")
def test_workers_in_different_methods_are_named(comm: Communicator) -> None:
    model = line(comm)
    model.fit(*numbers(), verbose=0)
    called = model.evaluate if comm.is_root else model.fit
    with pytest.raises(FitMismatch, match=r"evaluate\(\) on rank 0, fit\(\) on rank 1"):
        called(*numbers(), verbose=0)


def test_one_worker_may_predict_in_a_callback(comm: Communicator) -> None:
    model = line(comm)
    seen: list[int] = []

    def look(*_: Any) -> None:
        if comm.is_root:
            seen.append(len(model.predict(numbers()[0], verbose=0)))

    model.fit(*numbers(), epochs=2, verbose=0, callbacks=[keras.callbacks.LambdaCallback(on_epoch_end=look)])
    assert len(seen) == (2 if comm.is_root else 0)


def test_fewer_rows_than_workers(comm: Communicator) -> None:
    x, y = numbers()
    model, oracle = line(comm), line(distgrad.connect("solo"))
    history = [one.fit(x[:1], y[:1], epochs=2, verbose=0).history["loss"] for one in (model, oracle)]
    np.testing.assert_allclose(*history, rtol=1e-5)
    np.testing.assert_allclose(model.get_weights()[0], oracle.get_weights()[0], rtol=1e-5)


def test_a_skipped_step_leaves_no_trace(comm: Communicator) -> None:
    """Weights, metrics and logs are those of a training without the bad batch."""
    x, y = numbers()
    bad = np.concatenate([x[:8], np.full((8, 3), np.nan, "float32"), x[8:]]), np.concatenate([y[:8], y[:8], y[8:]])
    found = []
    for data in ((x, y), bad):
        model = line(comm)
        model.compile("sgd", "mse", metrics=["mae"])
        history = model.fit(*data, batch_size=8, shuffle=False, verbose=0).history
        found.append([*history.values(), model.get_weights()[0].ravel()])
    for clean, skipped in zip(*found, strict=True):
        np.testing.assert_allclose(skipped, clean, rtol=1e-6)
