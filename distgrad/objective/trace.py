"""A throw-away trace: a function of a batch called on symbolic tensors, to learn what it gives."""

from collections.abc import Callable
from typing import Any, TypeVar

import keras
import tensorflow as tf

Result = TypeVar("Result")


def trace(function: Callable[..., Result], *specs: Any) -> Result:
    """Call a function in a graph that is thrown away. Nothing is computed, and no variable assigned.

    Args:
        function: takes tensors of the specs. Keras variables that it creates are initialized afterwards.
        specs: nests of `tf.TypeSpec`.

    Returns:
        What it returned. Tensors in it have shapes and types, and no values.
    """
    results: list[Result] = []

    def call(*tensors: Any) -> None:
        results.append(function(*tensors))

    with keras.StatelessScope():
        tf.function(call, autograph=False).get_concrete_function(*specs)
    return results[-1]
