"""The models that steps are measured on."""

import keras
import tensorflow as tf
from keras import layers

from distgrad.bench.cases import EMBEDDINGS, FITTED
from distgrad.bench.data import HIDDEN_UNITS, LENGTH, LONG, VOCABULARY, WORDS, weights

WIDTH, HEADS, BLOCKS = 64, 4, 2  # the transformer's; the first is the embeddings', too


def build(name: str) -> keras.Model:
    """Return one of the models, with the same weights in every process. Its outputs are logits."""
    model = _MAKERS.get(name, _mlp)(name)
    model.set_weights(weights([tuple(weight.shape) for weight in model.weights], model.get_weights()))
    return model


def loss(reduction: str = "sum_over_batch_size") -> keras.losses.Loss:
    """Return the loss of all models: integer classes against logits."""
    return keras.losses.SparseCategoricalCrossentropy(from_logits=True, reduction=reduction)


def _mlp(name: str) -> keras.Model:
    hidden = [layers.Dense(units, activation="relu") for units in HIDDEN_UNITS[name]]
    return keras.Sequential([keras.Input((784,)), *hidden, layers.Dense(10)])


def _cnn(name: str) -> keras.Model:
    convolutions = [layers.Conv2D(filters, 3, strides=2, activation="relu") for filters in (16, 32)]
    return keras.Sequential([keras.Input((28, 28, 1)), *convolutions, layers.Flatten(), layers.Dense(10)], name=name)


class _Positions(layers.Layer):
    """Adds a learned vector to each position of (b, t, WIDTH)."""

    def build(self, shape: tuple[int, ...]) -> None:
        self.vectors = self.add_weight(shape=shape[1:], name="vectors")

    def call(self, x: tf.Tensor) -> tf.Tensor:
        return x + self.vectors


def _larger_cnn(_: str) -> keras.Model:
    parts = [(layers.Conv2D(filters, 3, activation="relu"), layers.MaxPooling2D()) for filters in (32, 64)]
    hidden = [layer for part in parts for layer in part]
    return keras.Sequential([keras.Input((28, 28, 1)), *hidden, layers.Flatten(), layers.Dense(10)])


def _lstm(_: str) -> keras.Model:
    return keras.Sequential([keras.Input((40, 16)), layers.LSTM(64), layers.Dense(10)])


def _transformer(name: str) -> keras.Model:
    tokens = keras.Input((LONG if name in FITTED else LENGTH,), dtype="int32")
    x = _Positions()(layers.Embedding(VOCABULARY, WIDTH)(tokens))
    for _ in range(BLOCKS):
        normal = layers.LayerNormalization()(x)
        x = x + layers.MultiHeadAttention(HEADS, WIDTH // HEADS)(normal, normal, use_causal_mask=True)
        x = x + layers.Dense(WIDTH)(layers.Dense(4 * WIDTH, activation="gelu")(layers.LayerNormalization()(x)))
    outputs = layers.Dense(VOCABULARY)(layers.LayerNormalization()(x))
    return keras.Model(tokens, outputs, name=name.replace(" ", "_"))


def _embedding(name: str) -> keras.Model:
    words = layers.Embedding(EMBEDDINGS[name], WIDTH)
    return keras.Sequential([keras.Input((WORDS,), dtype="int32"), words, layers.Flatten(), layers.Dense(10)])


_MAKERS = {
    "cnn": _cnn,
    "CNN 128": _larger_cnn,
    "LSTM 128": _lstm,
    "transformer": _transformer,
    "transformer 64": _transformer,
    **dict.fromkeys(EMBEDDINGS, _embedding),
}
