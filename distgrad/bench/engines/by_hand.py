"""The step as a careful user writes it without distgrad, given the peer's reduction.

One compiled graph, micro-batches in a loop, one reduction of the sums, one division, Keras's own optimizer. It has
neither statistics nor checks, which is in its favour.
"""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from distgrad.bench import models
from distgrad.bench.cases import WITH_ADAM
from distgrad.bench.data import LEARNING_RATE, MICRO_BATCH, MICRO_BATCHES, examples, project
from distgrad.bench.worker import Prepared

Reduce = Callable[[list[tf.Tensor]], list[tf.Tensor]]  # this rank's sums -> all ranks' sums


def batch(case: str, rank: int, micro_batches: int = MICRO_BATCHES) -> tuple[tf.Tensor, tf.Tensor]:
    """Return a rank's examples of every global batch: (b, ...) inputs and (b,) or (b, LENGTH) classes."""
    x, y = examples(case, rank, MICRO_BATCH * micro_batches)
    return tf.constant(x), tf.constant(y)


def optimizer_of(case: str, model: keras.Model) -> keras.optimizers.Optimizer:
    """Return the optimizer that all steps of a case use."""
    kind = keras.optimizers.Adam if case == WITH_ADAM else keras.optimizers.SGD
    optimizer = kind(LEARNING_RATE)
    optimizer.build(model.trainable_variables)
    return optimizer


def local_sums(model: keras.Model, x: tf.Tensor, y: tf.Tensor, *, add: bool = True) -> list[tf.Tensor]:
    """Return the gradient of the loss summed over all micro-batches of a rank.

    Args:
        add: False returns the last micro-batch's gradient instead, and so costs the passes alone.
    """
    loss = models.loss(reduction="none")  # under a strategy Keras would divide a mean by the replicas, too
    variables = [variable.value for variable in model.trainable_variables]

    def micro_batch(start: tf.Tensor, *sums: tf.Tensor) -> tuple[tf.Tensor, ...]:
        rows = slice(start, start + MICRO_BATCH)
        with tf.GradientTape() as tape:
            total = tf.reduce_mean(loss(y[rows], model(x[rows], training=True))) * float(MICRO_BATCH)
        gradients = tape.gradient(total, variables)
        dense = [tf.convert_to_tensor(gradient) for gradient in gradients]
        # A product over (b, t) hides its gradient's shape, and the loop's totals must keep theirs even unadded.
        shaped = [tf.ensure_shape(a, total.shape) for a, total in zip(dense, sums, strict=True)]
        kept = [a + b for a, b in zip(sums, shaped, strict=True)] if add else shaped
        return (start + MICRO_BATCH, *kept)

    zeros = [tf.zeros(variable.shape) for variable in variables]
    end = tf.shape(x)[0]
    _, *sums = tf.while_loop(lambda start, *_: start < end, micro_batch, (0, *zeros), parallel_iterations=1)
    return sums


def prepare(case: str, rank: int, size: int, reduce: Reduce) -> Prepared:
    """Prepare a step over `size` ranks, whose sums `reduce` adds; size 1 and the identity are for one rank alone."""
    model = models.build(case)
    optimizer = optimizer_of(case, model)
    x, y = batch(case, rank)
    global_batch = float(size * MICRO_BATCH * MICRO_BATCHES)

    def step() -> None:
        sums = reduce(local_sums(model, x, y))
        optimizer.apply([total / global_batch for total in sums], model.trainable_variables)

    compiled = tf.function(step, autograph=False)
    return Prepared(compiled, evidence(model, compiled))


def bare(case: str, rank: int, micro_batches: int) -> Prepared:
    """Prepare the forward and backward passes of `micro_batches` micro-batches and nothing else."""
    model = models.build(case)
    x, y = batch(case, rank, micro_batches)

    def passes() -> list[tf.Tensor]:
        return local_sums(model, x, y, add=False)

    return Prepared(tf.function(passes, autograph=False))


def oracle(case: str, size: int) -> Prepared:
    """Prepare, as evidence, what a step must do to the weights: one process, the whole global batch, float64."""
    with _float64():
        model = models.build(case)
        optimizer = optimizer_of(case, model)
    batches = [batch(case, rank) for rank in range(size)]
    x, y = (tf.concat(of_ranks, 0) for of_ranks in zip(*batches, strict=True))
    with tf.GradientTape() as tape:
        loss = models.loss()(y, model(x, training=True))
    gradients = tape.gradient(loss, [variable.value for variable in model.trainable_variables])
    dense = [tf.convert_to_tensor(gradient) for gradient in gradients]
    return Prepared(lambda: None, evidence(model, lambda: optimizer.apply(dense, model.trainable_variables)))


@contextlib.contextmanager
def _float64() -> Iterator[None]:
    usual = keras.config.dtype_policy()
    keras.config.set_dtype_policy("float64")
    try:
        yield
    finally:
        keras.config.set_dtype_policy(usual)


def evidence(model: keras.Model, step: Callable[[], Any]) -> list[float]:
    """Take one step and return what it did to the weights: two projections of each variable's change, in float64."""
    before = [variable.numpy().astype(np.float64) for variable in model.trainable_variables]
    step()
    changes = [new.numpy() - old for new, old in zip(model.trainable_variables, before, strict=True)]
    return project(changes)


def flattened(reduce: Callable[[tf.Tensor], tf.Tensor]) -> Reduce:
    """Turn the reduction of one vector into one of a list of tensors, which are joined before and split after."""

    def of_list(sums: list[tf.Tensor]) -> list[tf.Tensor]:
        sizes = [int(np.prod(total.shape)) for total in sums]
        flat = reduce(tf.concat([tf.reshape(total, [-1]) for total in sums], 0))
        pieces = tf.split(flat, sizes)
        return [tf.reshape(piece, total.shape) for piece, total in zip(pieces, sums, strict=True)]

    return of_list
