"""The public `sum_gradients()`: gradients summed over all examples of all workers, nothing divided or applied."""

from collections.abc import Callable, Sequence
from typing import Any

import tensorflow as tf

from distgrad.collectives import agreement
from distgrad.collectives.communicator import Communicator
from distgrad.collectives.vectors import Vector
from distgrad.data.batch import as_tensors, row_count
from distgrad.gradients.accumulate import LocalSums, MicroBatch, over_micro_batches
from distgrad.gradients.flat_vector import SCALARS, FlatLayout, Scalars
from distgrad.gradients.micro_batch import GradientSum, tensor_of, unweighted_sum
from distgrad.gradients.window_accumulator import accumulator_for


def sum_gradients(
    per_example_loss: Callable[..., tf.Tensor],
    variables: Sequence[Any],
    batch: Any,
    *,
    comm: Communicator,
    micro_batch_size: int | None = None,
) -> GradientSum:
    """Sum the gradients of any loss over all examples of all workers. Nothing is divided or applied.

        gradients_v = Σ_workers Σ_examples ∂loss(example)/∂v

    Usable in a loop of one's own, eagerly or, which is faster, inside a `tf.function`.

    Args:
        per_example_loss: takes this worker's (micro-)batch, as positional arguments if it is a tuple, and returns
            its losses, shape (b,) or (b, ...).
        variables: Keras or TensorFlow variables of any float dtype, the same on every worker.
        batch: nest of (b, ...) tensors or arrays; b may differ between workers and be 0.
        micro_batch_size: rows differentiated at once; None takes the whole batch.

    Returns:
        gradients: one per variable, summed in float32 (float64 if any variable is), zeros where the loss does not
        depend on it; loss: () float64; weight: () float64, the number of losses summed.

    Raises:
        ModelMismatch: the variables differ between workers; nothing was summed.
        GradientMismatch: a gradient's shape, rows or values are not its variable's; nothing was summed. In a
            `tf.function` of one's own, a `tf.errors.AbortedError` that says so where only the values tell.
        UnsupportedLoss: the loss is not per example.

    >>> from distgrad import connect
    >>> slope = tf.Variable(3.0)
    >>> loss = lambda x, y: tf.square(slope * x - y)
    >>> batch = tf.constant([1.0, 2.0, 4.0]), tf.constant([0.0, 0.0, 1.0])
    >>> sums = sum_gradients(loss, [slope], batch, comm=connect("solo"), micro_batch_size=2)
    >>> float(sums.gradients[0]), float(sums.loss), float(sums.weight)  # Σ 2x(3x - y), Σ (3x - y)², 3
    (118.0, 166.0, 3.0)
    """
    layout = FlatLayout(variables)
    agreement.require_same_variables_once(comm, variables)
    accumulator = accumulator_for(comm, layout)
    sources = [tensor_of(variable) for variable in variables]

    def local_sums(*share: Any) -> Vector:
        def add(sums: LocalSums, part: Any, is_first: tf.Tensor, is_last: tf.Tensor) -> LocalSums:
            with tf.GradientTape(watch_accessed_variables=False) as tape:
                tape.watch(sources)
                loss = unweighted_sum(per_example_loss(*part), getattr(per_example_loss, "__name__", "loss"))
            return sums.plus(MicroBatch(tape.gradient(loss.total, sources), loss), accumulator, is_first, is_last)

        sums = over_micro_batches(add, LocalSums.zeros(accumulator), share, micro_batch_size)
        rows, nobody = row_count(share), tf.zeros((), tf.float64)
        scalars = Scalars(sums.loss, sums.weight, rows, more=nobody, stop=nobody)
        return accumulator.vector(sums.gradients, rows > 0, layout.pack(scalars))

    with comm.liveness.explaining():
        total = comm.sum_over_workers(local_sums, as_tensors(batch if isinstance(batch, tuple) else (batch,)))
    scalars = layout.unpack(total[-SCALARS:])
    return GradientSum(layout.unflatten([total[:-SCALARS]]), scalars.loss, scalars.weight)
