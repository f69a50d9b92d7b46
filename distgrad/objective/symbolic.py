"""Functions of a batch of which only shapes and types are known."""

from collections.abc import Callable
from typing import Any

import keras
import tensorflow as tf


def output_spec(function: Callable[..., Any], *like: Any) -> Any:
    """Trace a function into a graph that is thrown away: nothing is computed, and no Keras variable assigned.

    Args:
        function: takes and returns nests of tensors.
        like: its arguments, as nests of `KerasTensor`s, or None.

    Returns:
        What the function gives, as a nest of `KerasTensor`s.
    """
    specs = keras.tree.map_structure(_spec, like)
    with keras.StatelessScope():
        traced = tf.function(function, autograph=False).get_concrete_function(*specs)
    return keras.tree.map_structure(_keras_tensor, traced.structured_outputs)


def _spec(tensor: keras.KerasTensor | None) -> tf.TypeSpec | None:
    if tensor is None:
        return None
    if tensor.ragged:
        return tf.RaggedTensorSpec(tensor.shape, tensor.dtype, tensor.ragged_rank, tensor.row_splits_dtype or tf.int64)
    return (tf.SparseTensorSpec if tensor.sparse else tf.TensorSpec)(tensor.shape, tensor.dtype)


def _keras_tensor(spec: Any) -> Any:
    if not hasattr(spec, "shape"):
        return spec
    ragged = {"ragged": True, "ragged_rank": spec.ragged_rank} if isinstance(spec, tf.RaggedTensorSpec) else {}
    return keras.KerasTensor(spec.shape, spec.dtype.name, sparse=isinstance(spec, tf.SparseTensorSpec), **ragged)
