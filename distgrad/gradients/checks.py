"""Gradients checked against their variables before anything is summed, the same on every engine.

What the tape tells of a gradient's shape is checked while the step is traced. The rest is checked within the graph, by
operations of the compiled core, where it is not known before; rows of a sparse gradient never are.
"""

import itertools
from collections.abc import Sequence
from typing import Any, TypeAlias

import tensorflow as tf

from distgrad import native
from distgrad.collectives.agreement import Workers, name_of
from distgrad.errors import GradientMismatch

# What a tape gives for one variable: a dense tensor, IndexedSlices, or None where the loss does not depend on it.
Gradient: TypeAlias = Any
FIX = "give it the variable's shape, where a tf.custom_gradient or code of your own makes it"


def require_fitting(comm: Workers, gradients: Sequence[Gradient], variables: Sequence[Any]) -> None:
    """Check that on every worker each gradient is like its variable, as far as a trace tells. Every worker calls it.

    Raises:
        GradientMismatch: on every worker, naming the first rank and variable.
    """
    pairs = zip(gradients, itertools.cycle(variables), strict=False)  # those of several losses, one after the other
    found = (_mismatch(gradient, name_of(v), tf.TensorShape(v.shape)) for gradient, v in pairs)
    own = next((cause for cause in found if cause), "")
    for rank, cause in comm.exchange(own).items():
        if cause:
            raise GradientMismatch(cause, FIX, rank=rank, step=0, everywhere=True)


def checked(gradient: Gradient, name: str, shape: tf.TensorShape) -> Gradient:
    """Return a gradient as it is; a dense one, with its variable's shape. In a graph it is checked before it is used.

    Of a sparse gradient, `with_checked_rows` checks the rest.

    Args:
        name: of the variable, from `name_of`.
        shape: of the variable.

    Raises:
        GradientMismatch: it is not like its variable. Within a graph, the operation fails with an error that
            `errors.error_within` turns into this one.
    """
    cause = _mismatch(gradient, name, shape)
    if cause:
        raise GradientMismatch(cause, FIX)
    if not isinstance(gradient, tf.Tensor) or gradient.shape.is_fully_defined():
        return gradient
    check = native.operations().distgrad_require_shape(
        tf.shape(gradient, tf.int64), variables=[name], shape=shape.as_list()
    )
    with tf.control_dependencies([check]):
        return tf.ensure_shape(gradient, shape)


def checked_against(gradient: Gradient, variable: Any) -> Gradient:
    """Return a gradient likewise, once its rows are checked, too."""
    name, shape = name_of(variable), tf.TensorShape(variable.shape)
    gradient = checked(gradient, name, shape)
    return with_checked_rows(gradient, name, shape) if isinstance(gradient, tf.IndexedSlices) else gradient


def with_checked_rows(gradient: tf.IndexedSlices, name: str, shape: tf.TensorShape) -> tf.IndexedSlices:
    """Return a sparse gradient as it is; before its rows are used, they are found to be the variable's.

    The window's operations find that themselves.
    """
    rows, values = tf.cast(gradient.indices, tf.int64), tf.shape(gradient.values, tf.int64)
    check = native.operations().distgrad_require_rows(rows, values, variables=[name], shape=shape.as_list())
    with tf.control_dependencies([check]):
        return tf.IndexedSlices(gradient.values, tf.identity(gradient.indices), gradient.dense_shape)


def _mismatch(gradient: Gradient, name: str, shape: tf.TensorShape) -> str:
    """Return what is wrong with a gradient, "" if nothing is as far as a trace tells."""
    if gradient is None:
        return ""
    of = f"the gradient of variable {name} has"
    if not gradient.dtype.is_floating:
        return f"{of} the dtype {gradient.dtype.name}"
    if not isinstance(gradient, tf.IndexedSlices):
        fits = gradient.shape.is_compatible_with(shape)
        return "" if fits else f"{of} the shape {gradient.shape} instead of {shape}"
    rows, values = gradient.indices.shape, gradient.values.shape
    if shape.rank and rows.is_compatible_with([None]) and values.is_compatible_with([*rows.with_rank(1), *shape[1:]]):
        return ""
    return f"{of} rows of the shape {values} for indices {rows}, and the variable has the shape {shape}"
