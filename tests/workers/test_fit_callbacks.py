"""Callbacks under `fit`, and what is saved: the root writes, and everyone decides alike."""

from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest

import distgrad
from distgrad import Communicator
from distgrad.errors import BadArgument
from support.fits import line, numbers, same, weights


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
    assert len(set(comm.exchange(repr(seen)).values())) == 1
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
