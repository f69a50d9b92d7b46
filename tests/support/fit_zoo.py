"""Models in the style of Keras's own guides, small, with data and what is compiled.

Of a row that occurs twice in a batch, most of Keras's optimizers square, and its clipping measures, each occurrence's
gradient apart, where distgrad has their sum. So the oracle of models with embeddings is given dense gradients.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import keras
import numpy as np
from keras import layers, ops

ROWS, BATCH = 24, 10  # global rows and batch: the last of three batches is short
EVEN = 8  # where Keras counts each batch's loss once, all batches are full


class Fit(NamedTuple):
    """A model, and the arguments of compile and fit."""

    build: Callable[[], keras.Model]
    compiled: Callable[[], dict[str, Any]]
    x: Any
    y: Any
    fit: dict[str, Any] = {}  # noqa: RUF012
    batch_size: int = BATCH
    tolerance: float = 1e-5


RNG = np.random.default_rng(17)


def reals(*shape: int) -> np.ndarray:
    return RNG.normal(size=(ROWS, *shape)).astype("float32")


def ids(below: int, *shape: int) -> np.ndarray:
    return RNG.integers(0, below, (ROWS, *shape)).astype("int32")


def cnn() -> keras.Model:
    return keras.Sequential(
        [
            keras.Input((8, 8, 1)),
            layers.Conv2D(4, 3, activation="relu"),
            layers.MaxPooling2D(),
            layers.Flatten(),
            layers.Dense(3, activation="softmax", kernel_regularizer="l2"),
        ]
    )


def two_in_two_out() -> keras.Model:
    title, tags = keras.Input((4,), name="title"), keras.Input((3,), name="tags")
    x = layers.concatenate([layers.Dense(4, "tanh")(title), layers.Dense(4, "tanh")(tags)])
    outputs = {"priority": layers.Dense(1, name="priority")(x), "team": layers.Dense(3, "softmax", name="team")(x)}
    return keras.Model({"title": title, "tags": tags}, outputs)


class Transformer(keras.Model):
    """One block of attention, subclassed."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.places = layers.Embedding(13, 6), layers.Embedding(5, 6)
        self.attention = layers.MultiHeadAttention(2, 3)
        self.norm, self.out = layers.LayerNormalization(), layers.Dense(4)

    def call(self, tokens: Any) -> Any:
        x = self.words(tokens) + self.places(ops.arange(5))
        x = self.norm(x + self.attention(x, x, use_causal_mask=True))
        return self.out(ops.mean(x, axis=1))


def transformer() -> keras.Model:
    model = Transformer()
    model(np.zeros((1, 5), "int32"))
    return model


def masked_lstm() -> keras.Model:
    words = keras.Input((5,), dtype="int32")
    x = layers.LSTM(4, return_sequences=True)(layers.Embedding(9, 5, mask_zero=True)(words))
    return keras.Model(words, layers.Dense(3)(x))


def autoencoder() -> keras.Model:
    return keras.Sequential([keras.Input((6,)), layers.Dense(2, "tanh"), layers.Dense(6)])


def siamese() -> keras.Model:
    left, right = keras.Input((5,)), keras.Input((5,))
    shared = keras.Sequential([layers.Dense(6, "relu"), layers.Dense(3)])
    distance = layers.Lambda(lambda pair: ops.abs(pair[0] - pair[1]), output_shape=(3,))([shared(left), shared(right)])
    return keras.Model([left, right], layers.Dense(1, "sigmoid")(distance))


def recommender() -> keras.Model:
    user, item = keras.Input((1,), dtype="int32", name="user"), keras.Input((1,), dtype="int32", name="item")
    # Users are many: where an engine can, only the rows of a step's users are summed.
    users, items = layers.Embedding(5000, 4), layers.Embedding(20, 4)
    vectors = [layers.Flatten()(users(user)), layers.Flatten()(items(item))]
    return keras.Model([user, item], layers.Dot(axes=1)(vectors))


def half_precision() -> keras.Model:
    x = keras.Input((6,))
    y = layers.Dense(4, "tanh", dtype="mixed_float16")(x)
    return keras.Model(x, layers.Dense(3, dtype="float32")(y))


def multi_task() -> keras.Model:
    x = keras.Input((5,))
    trunk = layers.Dense(6, "tanh")(x)
    return keras.Model(x, [layers.Dense(2, name="box")(trunk), layers.Dense(1, "sigmoid", name="seen")(trunk)])


def frozen_backbone() -> keras.Model:
    backbone = keras.Sequential([keras.Input((5,)), layers.Dense(6, "relu"), layers.BatchNormalization()])
    backbone.trainable = False
    return keras.Sequential([backbone, layers.Dense(2)])


def normalised() -> keras.Model:
    return keras.Sequential(
        [
            keras.Input((6, 6, 1)),
            layers.Conv2D(3, 3, use_bias=False),
            layers.BatchNormalization(momentum=0.8),
            layers.ReLU(),
            layers.GlobalAveragePooling2D(),
            layers.Dense(2),
        ]
    )


class Code(layers.Layer):
    """A mean and a spread -> a draw, with the divergence from the standard normal added to the loss."""

    def call(self, mean: Any, spread: Any, noise: Any) -> Any:
        divergence = ops.square(mean) + ops.exp(spread) - spread - 1
        self.add_loss(0.5 * ops.mean(ops.sum(divergence, axis=-1)))
        return mean + ops.exp(0.5 * spread) * noise


def variational_autoencoder() -> keras.Model:
    """Its noise is an input, so that the oracle meets the same."""
    x, noise = keras.Input((6,)), keras.Input((2,))
    hidden = layers.Dense(5, "relu", activity_regularizer=keras.regularizers.L1(0.01))(x)
    code = Code()(layers.Dense(2)(hidden), layers.Dense(2)(hidden), noise)
    return keras.Model([x, noise], layers.Dense(6)(code))


def two_taggers() -> keras.Model:
    words = keras.Input((5,), dtype="int32")
    x, last = layers.GRU(4, return_sequences=True, return_state=True)(layers.Embedding(9, 5, mask_zero=True)(words))
    tags = [layers.Dense(3, "softmax", name="part")(x), layers.Dense(2, name="span")(x)]
    return keras.Model(words, [*tags, layers.Dense(1, name="mood")(last)])


def averaged() -> keras.optimizers.Optimizer:
    return keras.optimizers.SGD(0.1, momentum=0.9, weight_decay=0.01, use_ema=True, ema_overwrite_frequency=2)


SPARSE = keras.losses.SparseCategoricalCrossentropy
FITS = {
    "sequential CNN": Fit(
        cnn,
        lambda: {"optimizer": "adam", "loss": "sparse_categorical_crossentropy", "metrics": ["accuracy"]},
        reals(8, 8, 1),
        ids(3),
        {"class_weight": {0: 1.0, 1: 2.0, 2: 0.5}},
    ),
    "two in, two out": Fit(
        two_in_two_out,
        lambda: {
            "optimizer": keras.optimizers.SGD(0.1, momentum=0.9),
            "loss": {"priority": "mse", "team": "sparse_categorical_crossentropy"},
            "metrics": {"team": ["acc"], "priority": [keras.metrics.R2Score(name="r2")]},
        },
        {"title": reals(4), "tags": reals(3)},
        {"priority": reals(1), "team": ids(3)},
        batch_size=EVEN,
    ),
    "subclassed transformer": Fit(
        transformer,
        lambda: {"optimizer": averaged(), "loss": SPARSE(from_logits=True), "metrics": ["accuracy"]},
        ids(13, 5),
        ids(4),
    ),
    "masked LSTM": Fit(
        masked_lstm,
        lambda: {
            "optimizer": keras.optimizers.Adam(keras.optimizers.schedules.ExponentialDecay(0.01, 2, 0.5)),
            "loss": SPARSE(from_logits=True),
            "weighted_metrics": [keras.metrics.SparseCategoricalAccuracy(name="hits")],
        },
        ids(9, 5) * (np.arange(5) < RNG.integers(1, 6, (ROWS, 1))),
        ids(3, 5),
    ),
    "autoencoder": Fit(
        autoencoder,
        lambda: {
            "optimizer": keras.optimizers.RMSprop(0.01, global_clipnorm=0.1),
            "loss": keras.losses.Huber(),
            "metrics": ["mae", keras.metrics.CosineSimilarity(axis=-1)],
            "steps_per_execution": 2,
        },
        SAME := reals(6),
        SAME,
    ),
    "siamese": Fit(
        siamese,
        lambda: {
            "optimizer": "adam",
            "loss": "binary_crossentropy",
            "metrics": [keras.metrics.AUC(num_thresholds=20, name="auc"), keras.metrics.Precision(name="precision")],
        },
        [reals(5), reals(5)],
        ids(2, 1),
    ),
    "recommender": Fit(
        recommender,
        lambda: {"optimizer": keras.optimizers.Adam(0.01, clipnorm=0.5), "loss": "mse", "weighted_metrics": ["mae"]},
        [ids(20, 1), ids(20, 1)],
        reals(1),
        {"sample_weight": RNG.uniform(0.2, 3, ROWS).astype("float32")},
    ),
    "mixed precision": Fit(
        half_precision,
        lambda: {
            "optimizer": keras.optimizers.LossScaleOptimizer(keras.optimizers.SGD(0.02), initial_scale=256.0),
            "loss": SPARSE(from_logits=True),
        },
        reals(6),
        ids(3),
        tolerance=2e-4,  # half of what float16 resolves
    ),
    "multi-task": Fit(
        multi_task,
        lambda: {
            "optimizer": "adam",
            "loss": ["mse", "binary_crossentropy"],
            "loss_weights": [0.3, 2.0],
            "metrics": [["mae"], ["accuracy", keras.metrics.F1Score(threshold=0.5)]],
        },
        reals(5),
        [reals(2), ids(2, 1)],
        batch_size=EVEN,
    ),
    "variational autoencoder": Fit(
        variational_autoencoder,
        lambda: {"optimizer": "adam", "loss": "mse", "metrics": ["mae"]},
        [reals(6), reals(2)],
        reals(6),
        {"sample_weight": RNG.uniform(0.2, 3, ROWS).astype("float32")},
        batch_size=EVEN,
    ),
    "two taggers": Fit(
        two_taggers,
        lambda: {
            "optimizer": "sgd",
            "loss": [SPARSE(), "mse", keras.losses.Huber(reduction="sum")],
            "loss_weights": [1.0, 0.5, 0.1],
            "weighted_metrics": [["accuracy"], [], []],
        },
        ids(9, 5) * (np.arange(5) < RNG.integers(1, 6, (ROWS, 1))),
        [ids(3, 5), reals(5, 2), reals(1)],
        batch_size=EVEN,
    ),
    "frozen backbone": Fit(
        frozen_backbone,
        lambda: {
            "optimizer": keras.optimizers.AdamW(weight_decay=0.1),
            "loss": SPARSE(from_logits=True, reduction="sum"),
            "metrics": ["accuracy"],
        },
        reals(5),
        ids(2),
    ),
}
