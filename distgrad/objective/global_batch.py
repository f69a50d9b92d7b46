"""The global batch on every worker: for losses and metrics that compare rows, and so are not known from parts.

The outputs of all workers and micro-batches are gathered, and every worker computes the loss of the whole global batch.
It differentiates the loss with respect to its own rows only; the gradients of all workers add up to that of the loss:

    dL/dw = sum over parts of  dL/d(outputs of the part) . d(outputs of the part)/dw

Where a worker takes several micro-batches, the outputs of all of them must be known before the first one is
differentiated. They take a forward pass of their own (Gao et al. 2021, "Scaling Deep Contrastive Learning Batch Size
under Memory Limited Setup").
"""

import json
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from distgrad.collectives.communicator import Communicator
from distgrad.data.batch import row_count
from distgrad.errors import DistgradError, UnsupportedLoss, UnsupportedMetric
from distgrad.gradients.accumulate import over_micro_batches
from distgrad.keras_internals import keras_mask, set_keras_mask

# What is summed in place of what: all engines sum these.
CARRIERS = {
    tf.float16: tf.float32,
    tf.bfloat16: tf.float32,
    tf.bool: tf.int32,
    tf.int8: tf.int32,
    tf.uint8: tf.int32,
    tf.int16: tf.int32,
    tf.uint16: tf.int32,
    tf.uint32: tf.int64,
}


class Outputs(NamedTuple):
    """Rows of a batch and a model's outputs for them: nests of (b, ...) tensors; y and sample_weight may be None."""

    x: Any
    y: Any
    sample_weight: Any
    y_pred: Any


class GlobalBatch(NamedTuple):
    """The rows of all workers.

    Attributes:
        outputs: (N, ...) each; nothing in it is differentiated.
        start: () int32, the number of the first row of the micro-batch in question.
        rows: () int32, N.
    """

    outputs: Outputs
    start: tf.Tensor
    rows: tf.Tensor

    def with_part(self, y_pred: Any, rows: tf.Tensor) -> Outputs:
        """Return the global batch in which the outputs of one micro-batch can be differentiated.

        Args:
            y_pred: (b, ...) those outputs.
            rows: () int32, b; 0 if they are of a row that is made up.
        """

        def replaced(whole: tf.Tensor, part: tf.Tensor) -> tf.Tensor:
            part = tf.cast(part[:rows], whole.dtype)
            joined = tf.concat([whole[: self.start], part, whole[self.start + rows :]], 0)
            set_keras_mask(joined, keras_mask(whole))
            return joined

        return self.outputs._replace(y_pred=tf.nest.map_structure(replaced, self.outputs.y_pred, y_pred))


class OutputsToGather(NamedTuple):
    """What is gathered.

    Attributes:
        y_pred, masks: the types of a model's output and of the masks upon it, see `PassSpecs`.
        uses_x: True if inputs are gathered, too.
        needed_by: what needs them, each as a text for people.
    """

    y_pred: Any
    masks: Any
    uses_x: bool
    needed_by: Sequence[str]

    def require_numbers(self, parts: Any) -> None:
        """Check that parts of a batch, a nest of tensors or None, can be gathered.

        Raises:
            UnsupportedLoss, UnsupportedMetric: one is no dense tensor of numbers.
        """
        for part in tf.nest.flatten(parts):
            if part is not None and (not isinstance(part, tf.Tensor) or part.dtype == tf.string):
                advice = "give dense targets and outputs, or a function that looks at each row by itself"
                raise self._unsupported("a part of them is no dense tensor of numbers", advice)

    def _unsupported(self, reason: str, advice: str) -> DistgradError:
        kind = UnsupportedMetric if all(name.startswith("metric") for name in self.needed_by) else UnsupportedLoss
        what = f"{' and '.join(self.needed_by)} needs all rows of the global batch, and {reason}"
        return kind(what, advice, everywhere=True)

    def of_pass(self, x: Any, y: Any, sample_weight: Any, y_pred: Any) -> Outputs:
        """Return what is gathered of a pass."""
        self.require_numbers((y, sample_weight, y_pred))
        return Outputs(x if self.uses_x else (), y, sample_weight, y_pred)

    def of_micro_batches(self, run: Callable[[Any], Any], batch: Any, micro_batch_size: int) -> Any:
        """Return a model's outputs (b, ...) for all rows of a batch, computed a micro-batch at a time.

        Args:
            run: x -> the output.
            batch: nest of (b, ...) tensors, x first.

        Raises:
            UnsupportedLoss, UnsupportedMetric: the output has an axis of unknown length.
        """
        rows = row_count(batch)
        specs = [spec for spec in tf.nest.flatten((self.y_pred, self.masks)) if spec is not None]
        if not all(spec.shape[1:].is_fully_defined() for spec in specs):
            raise self._unsupported("the output has axes of unknown length", "leave micro_batch_size out, or pad")

        def add(found: list[tf.Tensor], part: Any, is_first: tf.Tensor, is_last: tf.Tensor) -> list[tf.Tensor]:  # noqa: ARG001
            inputs, numbers = part
            y_pred = run(inputs[0])
            flat = tf.nest.flatten((y_pred, tf.nest.map_structure(keras_mask, y_pred)))
            values = [value for value in flat if value is not None]
            places = numbers[:, tf.newaxis]
            return [
                tf.ensure_shape(tf.tensor_scatter_nd_update(one, places, value), one.shape)
                for one, value in zip(found, values, strict=True)
            ]

        nothing = [tf.zeros([rows, *spec.shape[1:]], spec.dtype) for spec in specs]
        nothing = [tf.ensure_shape(one, spec.shape) for one, spec in zip(nothing, specs, strict=True)]
        outputs: list[tf.Tensor] = over_micro_batches(add, nothing, (batch, tf.range(rows)), micro_batch_size)
        found = iter(outputs)
        y_pred, masks = tf.nest.map_structure(
            lambda spec: None if spec is None else next(found), (self.y_pred, self.masks)
        )
        tf.nest.map_structure(set_keras_mask, y_pred, masks)
        return y_pred


def gather(comm: Communicator, outputs: Outputs, rows: tf.Tensor) -> GlobalBatch:
    """Gather the rows of all workers, in the order of the workers. Every worker calls it, within a sum.

    Args:
        outputs: of this worker.
        rows: () int32, how many of its rows are real; those come first.
    """
    counts = comm.sum_within(tf.one_hot(comm.worker(), comm.size, dtype=tf.int32) * rows)
    start, total = tf.reduce_sum(counts[: comm.worker()]), tf.reduce_sum(counts)
    masks = tf.nest.map_structure(keras_mask, outputs.y_pred)
    parts = (outputs, masks)
    flat = tf.nest.flatten(parts)
    gathered: list[Any] = [None] * len(flat)
    carriers = [None if tensor is None else CARRIERS.get(tensor.dtype, tensor.dtype) for tensor in flat]
    for carrier in sorted({dtype for dtype in carriers if dtype is not None}, key=lambda dtype: dtype.name):
        numbers = [number for number, dtype in enumerate(carriers) if dtype == carrier]
        found = _gather_alike(comm, [tf.cast(flat[number], carrier) for number in numbers], rows, start, total)
        for number, tensor in zip(numbers, found, strict=True):
            gathered[number] = tf.cast(tensor, flat[number].dtype)
    whole, masks = tf.nest.pack_sequence_as(parts, gathered)
    tf.nest.map_structure(set_keras_mask, whole.y_pred, masks)
    return GlobalBatch(whole, start, total)


def gather_at_once(comm: Communicator, parts: Any, rows: int) -> tuple[Any, int] | None:
    """Gather the rows of all processes outside of any graph. Every worker calls it.

    Args:
        parts: nest of (b, ...) tensors, or None.
        rows: b, which may differ between processes.

    Returns:
        The nest of (N, ...) tensors, and N; None if they are no dense tensors of numbers with a row for each of the
        batch, or too few or of other forms on other workers.
    """
    flat = [
        None if part is None or not isinstance(part, tf.Tensor) else part.numpy() for part in tf.nest.flatten(parts)
    ]
    is_dense = all(
        part is None or (array is not None and array.dtype != object and array.shape[:1] == (rows,))
        for part, array in zip(tf.nest.flatten(parts), flat, strict=True)
    )
    forms = [[str(array.dtype), array.shape[1:]] for array in flat if array is not None]
    texts = [json.loads(text) for text in comm.exchange(json.dumps([rows, is_dense, forms])).values()]
    counts, total = [count for count, *_ in texts], sum(count for count, *_ in texts)
    if total <= 1 or not all(dense for _, dense, _ in texts) or any(theirs != texts[0][2] for *_, theirs in texts):
        return None
    start = sum(counts[: comm.rank // comm.span])
    whole: list[Any] = []
    for array in flat:
        if array is None:
            whole.append(None)
            continue
        carrier = CARRIERS.get(tf.as_dtype(array.dtype), tf.as_dtype(array.dtype)).as_numpy_dtype
        padded = np.zeros((total, *array.shape[1:]), carrier)
        padded[start : start + rows] = array
        whole.append(tf.constant(comm.process_sum(padded).astype(array.dtype)))
    return tf.nest.pack_sequence_as(parts, whole), total


def _gather_alike(
    comm: Communicator, tensors: list[tf.Tensor], rows: tf.Tensor, start: tf.Tensor, total: tf.Tensor
) -> list[tf.Tensor]:
    """Gather tensors of one dtype: each worker has zeros where the others have their rows."""
    padded = []
    for tensor in tensors:
        ends = [[start, total - start - rows], *[[0, 0]] * (tensor.shape.rank - 1)]
        padded.append(tf.pad(tensor[:rows], ends))
    shapes = [tf.shape(tensor) for tensor in padded]
    summed = comm.sum_within(tf.stop_gradient(tf.concat([tf.reshape(tensor, [-1]) for tensor in padded], 0)))
    cut = tf.split(summed, [tf.reduce_prod(shape) for shape in shapes])
    whole = [tf.reshape(part, shape) for part, shape in zip(cut, shapes, strict=True)]
    return [tf.ensure_shape(one, [None, *tensor.shape[1:]]) for one, tensor in zip(whole, tensors, strict=True)]
