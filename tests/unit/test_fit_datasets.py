"""Data that have epochs of their own hear of them from `fit` and `evaluate` as they do without distgrad."""

from typing import Any

import keras
import numpy as np
import pytest

import distgrad
from support.versions import since_keras


class Batches(keras.utils.PyDataset):
    """Four batches, which write down what they hear."""

    num_batches = 4

    def __init__(self, name: str, heard: list[str], **options: Any) -> None:
        super().__init__(**options)
        self._name, self._heard = name, heard

    def __getitem__(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        rows = np.arange(3.0) + 3 * index
        return rows[:, np.newaxis], rows

    def on_epoch_begin(self) -> None:
        self._heard.append(f"{self._name} begins")

    def on_epoch_end(self) -> None:
        self._heard.append(f"{self._name} ends")


class Diary(keras.callbacks.Callback):
    def __init__(self, heard: list[str], stops: bool) -> None:
        super().__init__()
        self._heard, self._stops = heard, stops

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:  # noqa: ARG002
        self._heard.append(f"epoch {epoch} begins")

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:  # noqa: ARG002
        self._heard.append(f"epoch {epoch} ends")

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:  # noqa: ARG002
        self._heard.append(f"batch {batch}")
        if self._stops and batch == 1:
            self.model.stop_training = True

    def on_test_begin(self, logs: Any = None) -> None:  # noqa: ARG002
        self._heard.append("test begins")

    def on_test_end(self, logs: Any = None) -> None:  # noqa: ARG002
        self._heard.append("test ends")


WAYS: list[Any] = [
    {},
    {"steps_per_epoch": 2, "validation_steps": 2},
    pytest.param({"workers": 2}, marks=since_keras(3, 7)),  # before, its threads begin the next epoch at any moment
    {"stops": True},
    {"validation": False},
]


@pytest.mark.parametrize("options", WAYS, ids=str)
def test_a_pydataset_hears_of_its_epochs(options: dict[str, Any]) -> None:
    how = dict(options)
    stops, validation, workers = how.pop("stops", False), how.pop("validation", True), how.pop("workers", 1)

    def run(is_distributed: bool) -> tuple[list[str], list[float], list[np.ndarray]]:
        heard: list[str] = []
        model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1, kernel_initializer="zeros")])
        if is_distributed:
            distgrad.distribute(model, distgrad.connect("solo"))
        model.compile(keras.optimizers.SGD(0.001), "mse")
        diary = Diary(heard, stops)
        data = {"x": Batches("train", heard, workers=workers), "shuffle": False, "callbacks": [diary]}
        if validation:
            data["validation_data"] = Batches("validation", heard, workers=workers)
        losses = model.fit(**data, **how, epochs=2, verbose=0).history["loss"]
        losses.append(model.evaluate(Batches("test", heard), callbacks=[diary], verbose=0))
        return heard, losses, model.get_weights()

    (heard, losses, weights), expected = run(True), run(False)
    assert heard == expected[0]
    np.testing.assert_allclose(losses, expected[1], rtol=1e-6)
    np.testing.assert_allclose(weights[0], expected[2][0], rtol=1e-6)
