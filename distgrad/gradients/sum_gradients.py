"""The bare sum: gradients over all examples of all workers, with nothing divided or applied.

A step is made of the same parts, see step.py.
"""

from collections.abc import Callable, Sequence
from typing import Any

import tensorflow as tf

from distgrad.collectives import agreement
from distgrad.collectives.communicator import Communicator
from distgrad.collectives.vectors import Vector
from distgrad.data.batch import as_tensors, row_count
from distgrad.gradients.accumulate import Accumulated, Totals, accumulate
from distgrad.gradients.flat_vector import Lanes, Layout
from distgrad.gradients.micro_batch import GradientSum, micro_batch_sum
from distgrad.gradients.window_accumulator import accumulator_for
from distgrad.objective import loss as losses


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
        UnsupportedLoss: the loss is not per example.

    >>> from distgrad import connect
    >>> slope = tf.Variable(3.0)
    >>> loss = lambda x, y: tf.square(slope * x - y)
    >>> batch = tf.constant([1.0, 2.0, 4.0]), tf.constant([0.0, 0.0, 1.0])
    >>> sums = sum_gradients(loss, [slope], batch, comm=connect("solo"), micro_batch_size=2)
    >>> float(sums.gradients[0]), float(sums.loss), float(sums.weight)  # Σ 2x(3x - y), Σ (3x - y)², 3
    (118.0, 166.0, 3.0)
    """
    layout = Layout(variables)
    agreement.require_same_variables_once(comm, variables)
    totals = accumulator_for(comm, layout, riders=0)
    arguments = as_tensors(batch if isinstance(batch, tuple) else (batch,))

    def objective(*micro_batch: Any) -> tuple[tf.Tensor, tf.Tensor]:
        name = getattr(per_example_loss, "__name__", "loss")
        return losses.summed_values(per_example_loss(*micro_batch), name)

    def local_sums(*share: Any) -> Vector:
        nothing = tf.zeros(0, layout.dtype)
        sums = accumulate(
            lambda part: (micro_batch_sum(objective, variables, part), nothing),
            share,
            micro_batch_size,
            totals,
            len(variables),
            riders=nothing,
        )
        return vector_of(sums, layout, totals, row_count(share), flags=[tf.zeros((), tf.float64)] * 2)

    total = comm.sum_over_workers(local_sums, arguments)
    lanes = layout.lanes(total[layout.entries :])
    return GradientSum(layout.unflatten([total[: layout.entries]]), lanes.loss, lanes.weight)


def vector_of(sums: Accumulated, layout: Layout, totals: Totals, rows: tf.Tensor, flags: Sequence[tf.Tensor]) -> Vector:
    """What a worker sends: (s,) its sums and the lanes.

    Args:
        rows: () int32, of its share.
        flags: two () float64, 1 if it has another batch after this one, and if it was asked to stop.
    """
    more, stop = flags
    lanes = layout.flat_lanes(Lanes(sums.loss, sums.weight, rows, more, stop, sums.riders))
    return totals.vector(sums.carried, rows > 0, lanes)
