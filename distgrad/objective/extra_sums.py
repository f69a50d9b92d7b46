"""Extra sums: everything besides gradients that is summed over the workers in a step, in the same vector.

An extra sum gives a few numbers that may be added: of each micro-batch, or once of each worker. Added up over the
micro-batches and the workers they come back to it, on every worker alike, and it does with them what it is for.

    losses with a divisor of their own      losses.py
    states that a forward pass assigns      states.py
    metrics                                 metrics.py
    checksums of the weights                step/drift.py
    what each worker tells of its share     reports/worker_table.py
"""

import itertools
from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

import keras
import tensorflow as tf

from distgrad.gradients.accumulate import LocalSums
from distgrad.gradients.micro_batch import LossSum
from distgrad.objective.forward import AssignedValues
from distgrad.objective.global_batch import GlobalBatch
from distgrad.objective.kinds import Evidence, Parts


class Losses(NamedTuple):
    """The losses of one micro-batch.

    Attributes:
        groups: those that are differentiated, one for each divisor (losses.py); the first is one of the scalars of
            the flat vector.
        outputs: the loss of each output, where a model has several.
    """

    groups: Sequence[LossSum]
    outputs: Sequence[LossSum]


class Pass(NamedTuple):
    """One micro-batch and its forward pass.

    Attributes:
        x, y, sample_weight: the micro-batch, (b, ...) each; y and sample_weight may be None.
        y_pred: (b, ...) the model's output, or a nest of them.
        rows: () int32, b.
        scope: the values that the pass would have assigned to Keras variables, and the losses that layers added.
        losses: None until they are computed.
        whole: the global batch and the outputs for it, if anything of the model needs them.
        nothing: the values that a pass over no rows would have assigned, if anything needs them.
        start: an earlier pass whose states this one began with; None if it began with those that variables hold.
        taken: what extra sums took of it right after it, see `ExtraSum.take`.
    """

    x: Any
    y: Any
    sample_weight: Any
    y_pred: Any
    rows: tf.Tensor
    scope: AssignedValues
    losses: Losses | None = None
    whole: GlobalBatch | None = None
    nothing: AssignedValues | None = None
    start: AssignedValues | None = None
    taken: "dict[ExtraSum, Any] | None" = None


class TrialPasses(NamedTuple):
    """The passes by which the kinds of values are found, see kinds.py.

    Attributes:
        whole: of a batch.
        parts: of its two parts; None if the model takes no other number of rows.
        cut: the same parts, whose outputs are rows of the outputs of `whole`.
        again: of the batch once more, beginning with the states that `whole` has left; None if nothing asks for it.
    """

    whole: Pass
    parts: tuple[Pass, Pass] | None
    cut: tuple[Pass, Pass]
    again: Pass | None = None


class Asked(NamedTuple):
    """A value whose kind is to be found.

    Attributes:
        values: of the passes.
        of_forward: True if it comes of forward passes, which may draw random numbers.
    """

    values: Parts
    of_forward: bool


class PassSpecs(NamedTuple):
    """What passes are like.

    Attributes:
        x, y, sample_weight, y_pred: the types of a batch and of the model's output for it: nests of `tf.TypeSpec`, or
            None.
        masks: likewise of the masks upon the output, None where it has none.
        assigned: the ids of the variables that a pass assigns.
    """

    x: Any
    y: Any
    sample_weight: Any
    y_pred: Any
    masks: Any = None
    assigned: frozenset[int] = frozenset()


class WorkerShare(NamedTuple):
    """One worker's share of a batch, once its micro-batches are added up.

    Attributes:
        worker: () int32, the worker's number.
        sums: of its micro-batches.
        began: () float64 seconds, when it began; 0 if no statistics need it.
        checksums: (workers, 2) float32, of the weights, in the rows of this process's workers; zeros in the steps that
            do not compare them.
    """

    worker: tf.Tensor
    sums: LocalSums
    began: tf.Tensor
    checksums: tf.Tensor


class Outcome(NamedTuple):
    """One step, once its sum is known; the same on every worker.

    Attributes:
        loss: () float64, the loss of the global batch.
        logged_loss: () float64, the same as Keras logs it, see `Means.logged`.
        examples: () int64, rows of the global batch.
        outputs: () float64 each, the mean loss of each output, where a model has several.
        applied: () bool, True if the weights change.
        gradient_sum, gradient_norm: () float64, of the global gradient; None in an evaluation.
    """

    loss: tf.Tensor
    logged_loss: tf.Tensor
    examples: tf.Tensor
    outputs: Sequence[tf.Tensor]
    applied: tf.Tensor
    gradient_sum: tf.Tensor | None = None
    gradient_norm: tf.Tensor | None = None


class ExtraSum(Protocol):
    """One extra sum. Its numbers come of micro-batches or, if `once_per_worker`, of a worker's whole share."""

    once_per_worker: bool = False

    @property
    def zeroed(self) -> Sequence[keras.Variable]:
        """Variables that read as zero during a forward pass, so that their value afterwards is their change."""
        return ()

    def prepare(self, specs: PassSpecs) -> None:  # noqa: ARG002 (a default)
        """Learn what batches are like, once, before the step is traced."""
        return

    def questions(self) -> Sequence[str]:
        """Return the names of the values whose kinds decide how they are summed; `prepare` comes first."""
        return ()

    @property
    def asks_outputs(self) -> bool:
        """True if some of these values are functions of outputs alone."""
        return False

    @property
    def needs_parts(self) -> bool:
        """True if these values come of forward passes, whatever the model's layers do."""
        return False

    def take(self, seen: Pass) -> Any:  # noqa: ARG002 (a default)
        """Return what must be computed right after a pass of the trial, before there is another."""
        return None

    def ask(self, trial: TrialPasses) -> dict[str, Asked]:  # noqa: ARG002 (a default)
        """Return those of these values that the passes tell."""
        return {}

    def learn(self, evidence: Evidence) -> bool:  # noqa: ARG002 (a default)
        """Learn the kinds of these values. Returns True if one is another than before."""
        return False

    @property
    def needs_nothing(self) -> bool:
        """True if each pass needs one over no rows beside it; `learn` comes first."""
        return False

    @property
    def needs_whole(self) -> Sequence[str]:
        """Names of the losses and metrics that are computed on the gathered global batch."""
        return ()

    @property
    def taken_as_means(self) -> Sequence[str]:
        """Names of the values that only the global batch would tell, and of which the mean over its parts is taken."""
        return ()

    def shapes(self) -> Sequence[tf.TensorShape]:
        """Return the shapes of what is summed; `learn` comes first."""
        ...

    def of_micro_batch(self, seen: Pass) -> Sequence[tf.Tensor]:  # noqa: ARG002 (a default)
        """Return the terms of one micro-batch, in these shapes."""
        return ()

    def of_worker(self, share: WorkerShare) -> Sequence[tf.Tensor]:  # noqa: ARG002 (a default)
        """Return the terms of one worker, in these shapes."""
        return ()

    def settle(self, sums: Sequence[tf.Tensor], outcome: Outcome) -> dict[str, tf.Tensor]:  # noqa: ARG002 (a default)
        """Use the sums over all workers, for example to assign them. Returns entries of the logs."""
        return {}


class ExtraSums:
    """The extra sums of a step as one flat vector: first those of micro-batches, then those of workers."""

    def __init__(self, sums: Sequence[ExtraSum]) -> None:
        self._sums = sorted(sums, key=lambda extra: extra.once_per_worker)
        self._shapes = [list(extra.shapes()) for extra in self._sums]
        self._sizes = [sum(int(shape.num_elements()) for shape in shapes) for shapes in self._shapes]
        self.entries = sum(self._sizes)
        pairs = zip(self._sums, self._sizes, strict=True)
        self.micro_batch_entries = sum(size for extra, size in pairs if not extra.once_per_worker)

    @property
    def zeroed(self) -> list[keras.Variable]:
        """Variables that read as zero during a forward pass."""
        return [variable for extra in self._sums for variable in extra.zeroed]

    @property
    def needs_nothing(self) -> bool:
        """True if each pass needs one over no rows beside it."""
        return any(extra.needs_nothing for extra in self._sums)

    def of_micro_batch(self, seen: Pass, dtype: tf.DType) -> tf.Tensor:
        """Return (micro_batch_entries,) the terms of one micro-batch."""
        return _flat([term for extra in self._sums for term in extra.of_micro_batch(seen)], dtype)

    def of_worker(self, share: WorkerShare, dtype: tf.DType) -> tf.Tensor:
        """Return (entries - micro_batch_entries,) the terms of one worker."""
        return _flat([term for extra in self._sums for term in extra.of_worker(share)], dtype)

    def split(self, flat: tf.Tensor) -> dict[ExtraSum, list[tf.Tensor]]:
        """Cut the flat vector (entries,) into the sums of each."""
        sizes = [int(shape.num_elements()) for shape in itertools.chain(*self._shapes)]
        parts = iter(tf.split(flat, sizes) if len(sizes) > 1 else [flat])
        return {
            extra: [tf.reshape(next(parts), shape) for shape in shapes]
            for extra, shapes in zip(self._sums, self._shapes, strict=True)
        }

    def settle(self, sums: dict[ExtraSum, list[tf.Tensor]], outcome: Outcome) -> dict[str, tf.Tensor]:
        """Hand each its sums. Returns the entries of the logs."""
        logs: dict[str, tf.Tensor] = {}
        for extra in self._sums:
            logs |= extra.settle(sums[extra], outcome)
        return logs


def _flat(terms: Sequence[tf.Tensor], dtype: tf.DType) -> tf.Tensor:
    flat = [tf.reshape(tf.cast(term, dtype), [-1]) for term in terms]
    return tf.concat(flat, 0) if flat else tf.zeros(0, dtype)
