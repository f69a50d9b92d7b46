"""The shuffles of a `tf.data` pipeline, which TensorFlow keeps private, its autotuning thread, and its functions."""

from collections.abc import Callable
from typing import Any

import tensorflow as tf

from distgrad import keras_internals


def shuffled_datasets(data: Any) -> list[Any]:
    """List the shuffles in a pipeline, as `tf.data.Dataset`s; each counts the iterators that were made of it.

    Args:
        data: a dataset; anything else has none.
    """
    if not isinstance(data, tf.data.Dataset):
        return []
    own = [data] if keras_internals.is_shuffle(data) else []
    return own + [found for part in keras_internals.inputs_of(data) for found in shuffled_datasets(part)]


def shuffle_seeds(data: Any) -> list[int]:
    """Seeds of a pipeline's shuffles, two each: the same in the next run if `shuffle`, or TensorFlow, was given one."""
    return [seed for shuffle in shuffled_datasets(data) for seed in keras_internals.seeds_of_shuffle(shuffle)]


def without_autotune(data: Any) -> Any:
    """Return a dataset without its autotuning thread, and anything that is no dataset as it is.

    When an iterator ends, TensorFlow wakes that thread before it tells it to end, so the thread may go back to sleep,
    for as long as the iterator has lived and up to a minute. The interpreter waits for it, and the other workers for
    this one. Without the thread, AUTOTUNE means TensorFlow's defaults. A dataset whose `options.autotune.enabled` was
    set by the user keeps it.
    """
    if not isinstance(data, tf.data.Dataset) or data.options().autotune.enabled is not None:
        return data
    options = tf.data.Options()
    options.autotune.enabled = False
    return data.with_options(options)


def unconverted(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return a function for a pipeline's `map` that autograph leaves as it is.

    Autograph would write a file for it, which stays when this process is killed.
    """
    return tf.autograph.experimental.do_not_convert(function)
