"""Batch normalization over all workers, for layers built with `BatchNormalization(synchronized=True)`.

    mean, variance = those of all rows of the global batch:   Σx, Σx² and the number of entries, summed over workers

That takes an all-reduce in the midst of the forward pass for each such layer, and one in the backward pass, besides the
one reduction of the step: the price of the exact gradient. Every worker has to take part. So a step is then a single
pass over a worker's whole share, and a worker without rows makes one up, which counts nowhere.
"""

import contextlib
import contextvars
from collections.abc import Iterator, Sequence
from typing import Any

import keras
import tensorflow as tf

from distgrad.collectives.communicator import Communicator
from distgrad.data.batch import zero_unless
from distgrad.errors import BadArgument
from distgrad.keras_internals import flat_layers, own_moments, replace_moments

# The replicas of a strategy are traced by threads, each of which has its own.
_workers: contextvars.ContextVar[Any] = contextvars.ContextVar("workers", default=None)


def synchronized_layers(model: keras.Model) -> list[keras.layers.BatchNormalization]:
    """Find the synchronized layers of a model, and replace their `_moments`, which `moments_over_workers` feeds."""
    kind = keras.layers.BatchNormalization
    found = [layer for layer in flat_layers(model) if isinstance(layer, kind) and layer.synchronized]
    for layer in found:
        replace_moments(layer, _Moments(layer))
    return found


def require_single_pass(layers: Sequence[keras.layers.Layer], micro_batch_size: int | None) -> None:
    """Check that each worker takes a single pass, if layers are synchronized.

    Raises:
        BadArgument: workers may take several passes, and not the same number.
    """
    if layers and micro_batch_size is not None:
        raise BadArgument(
            f"layer {layers[0].name!r} is synchronized, and micro_batch_size={micro_batch_size} cuts its batch",
            "leave micro_batch_size out, or build the layer with synchronized=False to normalise each micro-batch",
            everywhere=True,
        )


@contextlib.contextmanager
def moments_over_workers(comm: Communicator, present: tf.Tensor | None) -> Iterator[None]:
    """Let the synchronized layers normalize by the inputs of all workers while this context lasts.

    Args:
        present: () bool, True if this worker's rows are real ones; None if they always are.
    """
    token = _workers.set((comm, present))
    try:
        yield
    finally:
        _workers.reset(token)


class _Moments:
    """The replacement of a layer's `_moments`, which it calls for its mean and variance."""

    def __init__(self, layer: keras.layers.BatchNormalization) -> None:
        self._layer = layer

    def __call__(self, inputs: tf.Tensor, mask: tf.Tensor | None) -> tuple[tf.Tensor, tf.Tensor]:
        """Return ((c,) mean, (c,) variance) of the inputs (b, ...) of all workers."""
        if _workers.get() is None:
            return own_moments(self._layer)(inputs, mask)
        comm, present = _workers.get()
        axes, shape = list(range(inputs.shape.rank)), [1] * inputs.shape.rank
        del axes[self._layer.axis]
        shape[self._layer.axis] = channels = inputs.shape[self._layer.axis]
        # About the moving mean, which all workers share, so that squares of a mean far from 0 hide no small variance.
        about = tf.cast(tf.convert_to_tensor(self._layer.moving_mean), inputs.dtype)
        centred = inputs - tf.reshape(about, shape)
        count = tf.size(inputs) // channels
        if mask is not None:
            centred = tf.where(tf.cast(mask, tf.bool)[..., tf.newaxis], centred, tf.zeros_like(centred))
            count = tf.math.count_nonzero(mask, dtype=tf.int32)
        parts = [tf.reduce_sum(centred, axes), tf.reduce_sum(tf.square(centred), axes), [tf.cast(count, inputs.dtype)]]
        own = zero_unless(present, tf.concat(parts, 0))
        total = zero_unless(present, comm.sum_within(own))  # no gradient comes of rows that are made up
        mean, squares, _ = tf.split(total / tf.maximum(total[-1], 1), [channels, channels, 1])
        return about + mean, tf.maximum(squares - tf.square(mean), 0)
