"""Models and data in which each row of "what must hold" shows, and Keras in one process as their oracle."""

from collections.abc import Callable
from typing import Any, NamedTuple

import keras
import numpy as np
from keras import layers

from support.versions import KERAS

ROWS = 12  # the global batch
SHARES = {1: (12,), 2: (7, 5), 3: (7, 5, 0)}  # rows of each worker: unequal, and none at all


class Case(NamedTuple):
    """A model, its loss and a global batch."""

    build: Callable[[], keras.Model]
    loss: Any
    batch: Callable[[np.random.Generator], tuple[np.ndarray, ...]]
    clipping: dict[str, float]


def dense() -> keras.Model:
    return keras.Sequential([keras.Input((6,)), layers.Dense(8, activation="tanh"), layers.Dense(4)])


def convolution() -> keras.Model:
    return keras.Sequential(
        [
            keras.Input((6, 6, 2)),
            layers.Conv2D(4, 3, use_bias=False),
            layers.GroupNormalization(2),
            layers.Activation("gelu"),
            layers.Flatten(),
            layers.Dense(4),
        ]
    )


def tokens() -> keras.Model:
    words = keras.Input((5,), dtype="int32")
    x = layers.Embedding(11, 6, mask_zero=True)(words)
    x = layers.LSTM(5, return_sequences=True)(x)
    return keras.Model(words, layers.Dense(4)(x))


def attention() -> keras.Model:
    x = keras.Input((4, 6))
    y = layers.MultiHeadAttention(2, 3, use_bias=False, kernel_regularizer=keras.regularizers.L2(0.01))(x, x)
    y = layers.GlobalAveragePooling1D()(layers.LayerNormalization()(x + y))
    return keras.Model(x, layers.Dense(4, kernel_regularizer="l1")(y))


def with_idle_layer() -> keras.Model:
    """Two of its variables are trainable but have no gradient."""

    class Idle(keras.Model):
        def __init__(self) -> None:
            super().__init__()
            self.used, self.idle = layers.Dense(4), layers.Dense(3)

        def build(self, shape: tuple[int, ...]) -> None:
            self.used.build(shape)
            self.idle.build(shape)

        def call(self, x: Any) -> Any:
            return self.used(x)

    model = Idle()
    model.build((None, 6))
    return model


def classes(rng: np.random.Generator, shape: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    return rng.normal(size=(ROWS, *shape)).astype("float32"), rng.integers(0, 4, ROWS)


def sentences(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    words = rng.integers(1, 11, (ROWS, 5))
    for row, length in enumerate(rng.integers(1, 6, ROWS)):
        words[row, length:] = 0
    return words.astype("int32"), rng.integers(0, 4, (ROWS, 5))


def weighted(rng: np.random.Generator) -> tuple[np.ndarray, ...]:
    return (
        rng.normal(size=(ROWS, 6)).astype("float32"),
        rng.normal(size=(ROWS, 4)).astype("float32"),
        rng.uniform(0, 3, ROWS).astype("float32"),
    )


CROSSENTROPY = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
NORM = {"global_clipnorm": 0.5}
ZOO = {
    "dense": Case(dense, CROSSENTROPY, lambda rng: classes(rng, (6,)), NORM),
    "convolution": Case(convolution, CROSSENTROPY, lambda rng: classes(rng, (6, 6, 2)), NORM),
    "masked LSTM": Case(tokens, CROSSENTROPY, sentences, NORM),
    "regularised attention": Case(attention, CROSSENTROPY, lambda rng: classes(rng, (4, 6)), NORM),
    "sample weights": Case(dense, "mean_squared_error", weighted, NORM),
    "plain sum": Case(dense, keras.losses.MeanSquaredError(reduction="sum"), weighted, {"clipvalue": 0.5}),
    "idle layer": Case(with_idle_layer, CROSSENTROPY, lambda rng: classes(rng, (6,)), NORM),
}
if KERAS >= (3, 7):
    of_weights = keras.losses.MeanSquaredError(reduction="mean_with_sample_weight")
    ZOO["mean by sample weight"] = Case(dense, of_weights, weighted, {"clipnorm": 0.2})


def adam(clipping: dict[str, float]) -> keras.optimizers.Optimizer:
    return keras.optimizers.Adam(0.003, **clipping)


def batches(case: Case, seed: int = 5, count: int = 3) -> list[tuple[np.ndarray, ...]]:
    """Global batches; on every worker the same."""
    rng = np.random.default_rng(seed)
    return [case.batch(rng) for _ in range(count)]


def by_keras(model: keras.Model, case: Case, steps: list[tuple[np.ndarray, ...]]) -> list[float]:
    """Train in this process alone on whole global batches, and return the losses."""
    model.compile(adam(case.clipping), case.loss, run_eagerly=True)
    losses = []
    for batch in steps:
        model.reset_metrics()
        losses.append(float(model.train_on_batch(*batch)))
    return losses
