"""Sizes of the updates: how far a step moved the weights, against how large they are."""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from distgrad import native
from distgrad.gradients.flat_vector import FlatLayout


class UpdateRatios(NamedTuple):
    """|change| / |weights before|: of all variables together, and of each by its path. NaN where all weights are 0."""

    whole: float
    by_variable: dict[str, float]


class Updates:
    """Compares weights before and after a step, in this process. It keeps a copy of them, from its first use on."""

    def __init__(self, layout: FlatLayout, variables: Sequence[Any]) -> None:
        self._layout, self._variables = layout, variables
        self._paths = [variable.path for variable in variables]

    def before(self) -> tf.Tensor:
        """Copy the weights. Returns the address of the copy."""
        address = tf.constant(self._copy.ctypes.data, tf.int64)
        self._keep(address)
        return address

    def after(self, before: tf.Tensor) -> UpdateRatios:
        """Compare the weights with the copy."""
        change, weights = np.sqrt(self._compare(before).numpy())
        whole, *each = _ratios(*(np.append(np.linalg.norm(sizes), sizes) for sizes in (change, weights)))
        return UpdateRatios(whole, dict(zip(self._paths, each, strict=True)))

    @functools.cached_property
    def _copy(self) -> np.ndarray:
        return np.empty(sum(self._layout.sizes), self._layout.dtype.as_numpy_dtype)

    @functools.cached_property
    def _keep(self) -> Any:
        return self._compiled(_keep)

    @functools.cached_property
    def _compare(self) -> Any:
        return self._compiled(native.operations().distgrad_squared_change)

    def _compiled(self, operation: Callable[..., Any]) -> Any:
        """One of the core's operations on a place and all weights."""

        def run(place: tf.Tensor) -> Any:
            weights = [tf.cast(variable, self._layout.dtype) for variable in self._variables]
            return operation(place, weights, room=sum(self._layout.sizes))

        return tf.function(run, autograph=False).get_concrete_function(tf.TensorSpec((), tf.int64))


def _keep(place: tf.Tensor, weights: list[tf.Tensor], room: int) -> None:
    native.operations().distgrad_copy_to(place, weights, room=room)


def _ratios(change: np.ndarray, weights: np.ndarray) -> list[float]:
    found: list[float] = np.divide(change, weights, out=np.full_like(change, np.nan), where=weights > 0).tolist()
    return found
