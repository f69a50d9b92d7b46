"""A step of the user's own taken on several micro-batches: a pass for each call of an optimizer, and one to the end."""

import contextlib
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import tensorflow as tf

from distgrad.data.batch import row_count
from distgrad.fit.own_reduction import Reduction
from distgrad.fit.own_step import Apply, Runner
from distgrad.fit.own_trial import OwnTrial
from distgrad.gradients.accumulate import over_micro_batches
from distgrad.keras_internals import outside_stateless_scope


class _StopHere(Exception):
    """Ends a pass where it has come to the call of an optimizer that is next."""


class Passes(NamedTuple):
    """A step of the model's own, taken on several micro-batches.

    Each call of an optimizer needs the gradients of all micro-batches before what follows it can be computed. So the
    step is run once for each call, up to there, on all micro-batches, and once more to its end, for metrics, states and
    logs. Every pass begins with the weights as they were before the step, and sees the updates that were made where
    they were made.
    """

    runner: Runner
    trial: OwnTrial
    reduction: Reduction
    worker: tf.Tensor
    micro_batch_size: int

    def run(self, batch: tuple[Any, ...], is_present: tf.Tensor) -> tf.Tensor:
        """Take the step. Returns (entries,) float64 the terms of `OwnValues`.

        Args:
            batch: this worker's rows, at least one.
            is_present: () bool, False if that is made up.
        """
        restored = self.trial.assigned_weights
        before = [tf.identity(variable.value) for variable in restored]
        updated: list[list[tf.Tensor]] = []
        places = tf.range(row_count(batch))

        def restore() -> None:
            for variable, value in zip(restored, before, strict=True):
                variable.assign(value)

        for number in range(len(self.trial.applies)):
            apply, sums = self._gradients(number, (batch, places), is_present, updated, restore)
            self.reduction.apply_sums(apply, sums)
            updated.append([tf.identity(tf.convert_to_tensor(variable)) for variable in apply.variables])

        def add(total: tf.Tensor, piece: Any, is_first: tf.Tensor, is_last: tf.Tensor) -> tf.Tensor:  # noqa: ARG001
            rows, numbers = piece
            part = self._part(numbers)
            restore()
            ran = self.runner.run(rows, self._replay(updated), self.worker, assigns=True, part=part)
            self.runner.keep_random_states(ran.scope, self.worker, part, is_last)
            count = tf.where(is_present, tf.cast(row_count(rows), tf.float64), 0.0)
            return total + self.trial.values.pack(ran, count)

        nothing = tf.zeros(self.trial.values.entries, tf.float64)
        return over_micro_batches(add, nothing, (batch, places), self.micro_batch_size)

    def _gradients(
        self,
        number: int,
        batch: Any,
        is_present: tf.Tensor,
        updated: Sequence[Sequence[tf.Tensor]],
        restore: Callable[[], None],
    ) -> tuple[Apply, list[Any]]:
        """Run all micro-batches up to a call of an optimizer. Returns it, and the weighted sums of its gradients."""
        expected, found = self.trial.applies[number], list[Apply]()
        there = [n for n, gradient in enumerate(expected.gradients) if gradient is not None]

        def stop(apply: Apply) -> None:
            found.append(apply)
            raise _StopHere

        def add(sums: list[tf.Tensor], part: Any, is_first: tf.Tensor, is_last: tf.Tensor) -> list[tf.Tensor]:  # noqa: ARG001
            rows, numbers = part
            restore()
            with contextlib.suppress(_StopHere):
                handler = self._replay(updated, stop)
                self.runner.run(rows, handler, self.worker, assigns=True, part=self._part(numbers))
            count = tf.where(is_present, tf.cast(row_count(rows), tf.float32), 0.0)
            weighted = self.reduction.weighted(found[-1], count)
            return [total + tf.cast(weighted[n], total.dtype) for total, n in zip(sums, there, strict=True)]

        shapes = [expected.variables[n] for n in there]
        wide = [tf.float64 if tf.as_dtype(variable.dtype) == tf.float64 else tf.float32 for variable in shapes]
        nothing = [tf.zeros(variable.shape, dtype) for variable, dtype in zip(shapes, wide, strict=True)]
        totals = over_micro_batches(add, nothing, batch, self.micro_batch_size)
        sums: list[Any] = [None] * len(expected.gradients)
        for n, total in zip(there, totals, strict=True):
            sums[n] = total
        return found[-1], sums

    def _replay(
        self, updated: Sequence[Sequence[tf.Tensor]], then: Callable[[Apply], None] | None = None
    ) -> Callable[[Apply], None]:
        """Return a handler that makes updates again that were made before, and hands on what comes after them."""
        calls = iter(updated)

        def handle(apply: Apply) -> None:
            values = next(calls, None)
            if values is None:
                if then is not None:
                    then(apply)
                return
            with outside_stateless_scope():
                for variable, value in zip(apply.variables, values, strict=True):
                    variable.assign(value)

        return handle

    def _part(self, numbers: tf.Tensor) -> tf.Tensor:
        """Return () int32 the number of a micro-batch."""
        return numbers[0] // self.micro_batch_size
