"""The public `all_reduce_gradients()`: gradients of a tape of the user's own, reduced over all workers."""

import json
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import tensorflow as tf

from distgrad.collectives import agreement
from distgrad.collectives.communicator import Communicator, is_replica
from distgrad.collectives.moments import MOMENTS, moments, statistics
from distgrad.collectives.vectors import DividedSum, Division, joined
from distgrad.errors import BadArgument, GradientMismatch, ModelMismatch
from distgrad.gradients.checks import checked, with_checked_rows
from distgrad.gradients.flat_vector import SCALARS, WEIGHT_TERMS, FlatLayout, Scalars


class ReducedGradients(NamedTuple):
    """Gradients over all workers, the same on each of them.

    Attributes:
        gradients: one for each that was given, dense, in its shape and dtype; None where no worker has one.
        weight: () float64, the sum of the workers' weights.
        gradient_sum, gradient_norm: () float64, of all entries together.
        nonfinite: () float64, how many entries are NaN or infinite.
    """

    gradients: list[Any]
    weight: tf.Tensor
    gradient_sum: tf.Tensor
    gradient_norm: tf.Tensor
    nonfinite: tf.Tensor


def all_reduce_gradients(
    gradients: Sequence[Any], weight: Any, *, comm: Communicator, reduction: str = "mean"
) -> ReducedGradients:
    """Reduce gradients over all workers, in one reduction.

        mean:  Σ_workers weight · gradient / Σ_workers weight        sum:  Σ_workers gradient

    For a loop with a tape of its own, eagerly or in a `tf.function`. With the number of rows as the weight, the mean is
    the gradient of the mean loss over all rows of all workers, however many each of them has.

    Args:
        gradients: of the mean loss over this worker's rows (for "sum": of the sum), as a tape gives them: dense,
            IndexedSlices or None. All workers give the same shapes. A worker may have None where others have a
            gradient: it counts as zeros. Which ones are None stays the same from call to call.
        weight: () this worker's weight, 0 or more: the number of its rows, or the sum of their weights. The gradients
            of a worker of weight 0 do not count, whatever they hold.
        comm: what `distgrad.connect()` gave.
        reduction: "mean" or "sum".

    Raises:
        BadArgument: there is no gradient at all, or another reduction is asked for.
        ModelMismatch: the workers' gradients differ in number, shape or dtype; nothing was summed.
        GradientMismatch: rows of IndexedSlices are not in their `dense_shape`, or a shape is not known; nothing was
            summed. In a `tf.function`, rows are found by a `tf.errors.AbortedError` that says so.

    >>> from distgrad import connect
    >>> slope = tf.Variable(3.0)
    >>> with tf.GradientTape() as tape:
    ...     loss = tf.reduce_mean(tf.square(slope * tf.constant([1.0, 2.0])))
    >>> reduced = all_reduce_gradients(tape.gradient(loss, [slope]), 2, comm=connect("solo"))
    >>> float(reduced.gradients[0]), float(reduced.weight), float(reduced.gradient_norm)  # ∂/∂s of s²·(1 + 4)/2
    (15.0, 2.0, 15.0)
    """
    if reduction not in ("mean", "sum"):
        raise BadArgument(f"reduction={reduction!r}", 'give "mean" or "sum"', everywhere=True)
    with comm.liveness.explaining():
        given = [None if gradient is None else _dense(number, gradient) for number, gradient in enumerate(gradients)]
    own = json.dumps([None if one is None else [one.shape.as_list(), one.dtype.name] for one in given])
    # Replicas of a strategy run the same code, and could not exchange texts.
    texts = _together({0: own}) if is_replica(comm) else agreement.agree_once(comm, own, _together)
    specs = [None if one is None else tf.TensorSpec(*one, name=f"number {n}") for n, one in enumerate(texts)]
    there = [number for number, spec in enumerate(specs) if spec is not None]
    if not there:
        raise BadArgument(
            "there is no gradient: all of them are None on all workers",
            "check that the loss depends on the variables",
            everywhere=True,
        )
    kinds = [spec for spec in specs if spec is not None]
    layout = FlatLayout(kinds)
    with comm.liveness.explaining():
        total = _sum_and_divide(comm, layout, [given[number] for number in there], weight, reduction == "mean")
    found: list[Any] = [None] * len(given)
    for number, kept, gradient in zip(there, kinds, layout.unflatten(total.blocks), strict=True):
        found[number] = tf.cast(gradient, kept.dtype)
    described = tf.unstack(statistics(total.moments, total.divisor, layout.dtype), MOMENTS)
    scalars = layout.unpack(total.undivided)
    return ReducedGradients(found, scalars.weight, described[0], described[1], described[3])


def _dense(number: int, gradient: Any) -> tf.Tensor:
    """Return a gradient as a tensor of a known shape; rows of IndexedSlices are checked before they are used."""
    shape = tf.get_static_value(gradient.dense_shape) if isinstance(gradient, tf.IndexedSlices) else None
    if shape is not None:
        name, of = repr(f"number {number}"), tf.TensorShape(shape.tolist())
        gradient = with_checked_rows(checked(gradient, name, of), name, of)
    tensor = tf.convert_to_tensor(gradient)
    if tensor.shape.is_fully_defined():
        return tensor
    raise GradientMismatch(
        f"gradient number {number} has the shape {tensor.shape}, which the trace does not tell",
        "give it its variable's shape with tf.ensure_shape",
    )


def _sum_and_divide(
    comm: Communicator, layout: FlatLayout, gradients: Sequence[Any], weight: Any, divides: bool
) -> DividedSum:
    """Sum weighted gradients and weights over the workers, and divide."""
    in_replica = is_replica(comm)

    def own() -> list[tf.Tensor]:
        counts, none = tf.cast(weight, tf.float64), tf.zeros((), tf.float64)
        if not in_replica:  # of several workers in this process, the first one speaks for all
            counts *= tf.cast(tf.equal(comm.worker(), comm.rank), tf.float64)
        factor = tf.cast(counts if divides else tf.cast(counts > 0, tf.float64), layout.dtype)
        weighted = [
            None
            if gradient is None
            else tf.where(factor > 0, tf.cast(gradient, layout.dtype) * factor, tf.zeros((), layout.dtype))
            for gradient in gradients
        ]
        return [*layout.flatten(weighted), layout.pack(Scalars(none, counts, tf.zeros((), tf.int64), none, none))]

    division = Division(SCALARS, tf.constant([0.0, *WEIGHT_TERMS] if divides else [1.0, *[0.0] * SCALARS], tf.float64))
    if not in_replica:
        return comm.sum_and_divide(own, (), division)
    total = comm.sum_within(joined(own()))
    summed, undivided = total[:-SCALARS], total[-SCALARS:]
    divisor = division.divisor(undivided)
    nothing = tf.zeros(0, tf.float64)
    return DividedSum([summed / tf.cast(divisor, summed.dtype)], undivided, divisor, moments(summed), nothing, nothing)


def _together(texts: Mapping[int, str]) -> list[Any]:
    """Return shape and dtype of each gradient that any worker has, else None.

    Raises:
        ModelMismatch: the workers' gradients do not fit together.
    """
    by_rank = {rank: json.loads(text) for rank, text in texts.items()}
    for rank, theirs in by_rank.items():
        if len(theirs) != len(by_rank[0]):
            raise _mismatch(rank, f"{len(theirs)} gradients on rank {rank} but {len(by_rank[0])} on rank 0")
    found_in_all: list[Any] = []
    for number in range(len(by_rank[0])):
        found = {rank: theirs[number] for rank, theirs in by_rank.items() if theirs[number] is not None}
        first = next(iter(found.values()), None)
        for rank, one in found.items():
            if one != first:
                raise _mismatch(rank, f"gradient {number} is {one} on rank {rank} but {first} on others")
        found_in_all.append(first)
    return found_in_all


def _mismatch(rank: int, what: str) -> ModelMismatch:
    advice = "give the gradients of the same variables in the same order on every worker"
    return ModelMismatch(what, advice, rank=rank, everywhere=True)
