"""What tf.data keeps to itself: which parts of a pipeline shuffle, and the thread that tunes it."""

from typing import Any

import tensorflow as tf

from distgrad import keras_internals


def shuffles_of(data: Any) -> list[Any]:
    """The shuffled datasets that a dataset is made of: they know how often they were gone through."""
    if not isinstance(data, tf.data.Dataset):
        return []
    own = [data] if keras_internals.is_shuffle(data) else []
    return own + [found for part in keras_internals.inputs_of(data) for found in shuffles_of(part)]


def seeds_of(data: Any) -> list[int]:
    """Those of its shuffling: the same in the next run if `shuffle`, or TensorFlow, was given a seed."""
    return [seed for shuffle in shuffles_of(data) for seed in keras_internals.seeds_of_shuffle(shuffle)]


def untuned(data: Any) -> Any:
    """A dataset without its tuning thread; whatever else data are, they stay as they are.

    An iterator's end wakes that thread before it tells it to end, so that the thread may sleep on, for as long as the
    iterator has lived and up to a minute; and the interpreter sleeps with it, as do the workers that wait for this one.
    AUTOTUNE then means TensorFlow's defaults. Whoever sets `options.autotune.enabled` keeps it.
    """
    if not isinstance(data, tf.data.Dataset) or data.options().autotune.enabled is not None:
        return data
    options = tf.data.Options()
    options.autotune.enabled = False
    return data.with_options(options)
