"""Timestamps inside the compiled step."""

from collections.abc import Sequence
from typing import Any

import tensorflow as tf


def start_clock(batch: Any) -> tuple[tf.Tensor, Any]:
    """Take the time before anything is computed of a batch.

    Returns:
        (() float64 seconds, the batch as tensors that depend on it, so that TensorFlow computes nothing of it earlier).
    """
    began = tf.timestamp()
    with tf.control_dependencies([began]):
        return began, tf.nest.map_structure(tf.identity, batch, expand_composites=True)


def seconds_since(began: tf.Tensor, computed: Sequence[tf.Tensor]) -> tf.Tensor:
    """Return () float64 seconds from `began` until some tensors were computed."""
    with tf.control_dependencies(computed):
        return tf.timestamp() - began
