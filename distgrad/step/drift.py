"""A check that the weights are still the same on every worker. A flipped bit, or a stray assignment, spreads silently.

Every so many steps each worker computes a checksum of all its weights and optimizer state, which rides in the step's
sum, in two entries of its own; and so does a worker whose program has set weights since the last step (assignments.py).
The checksum is the sum, modulo 2³², of the words that the values are made of, each variable's times an odd number: one
changed bit always changes it. Only where they differ do workers exchange the checksum of each variable.
"""

import collections
import functools
import json
from collections.abc import Callable, Sequence
from typing import Any

import keras
import tensorflow as tf

from distgrad.collectives.communicator import Communicator
from distgrad.errors import Drifted
from distgrad.objective.extra_sums import ExtraSum, WorkerShare
from distgrad.reports.report import StepReport
from distgrad.step.assignments import Assignments

HALF = 1 << 16  # each entry holds half of the checksum's bits, plus 1, which float32 does without rounding
WORDS = {2: tf.int16, 4: tf.int32, 8: tf.int64}  # by the size of a value in bytes


class Drift(ExtraSum):
    """The check.

    Args:
        variables: returns those that must be the same on every worker; called when they are all built.
        assignments: what the program does to the weights between two steps; None if that is not looked at.
    """

    once_per_worker = True

    def __init__(
        self, comm: Communicator, variables: Callable[[], Sequence[Any]], assignments: Assignments | None = None
    ) -> None:
        self._comm, self._get_variables, self._assignments = comm, variables, assignments
        self._has_assigned = False  # the program, before the last step

    def shapes(self) -> list[tf.TensorShape]:
        """Return (workers, 2): two halves of each worker's checksum."""
        return [tf.TensorShape([self._comm.size, 2])]

    def table(self, compares: bool) -> tf.Tensor:
        """Return what a step is given: (workers, 2) float32, the checksums of this process's workers in their rows.

        Args:
            compares: False gives zeros, for a step that does not compare; unless weights were assigned here.
        """
        if self._assignments is not None:
            self._has_assigned, self._assignments.noted = self._assignments.noted, False
        return self._compute_table() if compares or self._has_assigned else self._no_table

    def of_worker(self, share: WorkerShare) -> list[tf.Tensor]:
        """Return this worker's row of the table."""
        return [tf.one_hot(share.worker, self._comm.size)[:, tf.newaxis] * share.checksums]

    def differs(self, sums: Sequence[tf.Tensor]) -> tf.Tensor:
        """Return () bool from the summed checksums: True if the root told one, and not all others the same."""
        (table,) = sums
        return tf.reduce_any(tf.not_equal(table, table[:1])) & (table[0, 0] > 0)

    def was_assigned_on_root(self, report: StepReport) -> bool:
        """Return whether the root's program had set weights that others do not have. Every worker calls it.

        Args:
            report: of the step, which was not applied if so.
        """
        if self._assignments is None or not report.drifted:
            return False
        return self._comm.from_root(str(self._has_assigned)) == str(True)

    def forget_assignments(self) -> None:
        """Take the weights of now for those of all workers."""
        if self._assignments is not None:
            self._assignments.noted = False

    def blame(self, step: int) -> None:
        """Find the worker and its variable. Every worker calls it.

        Raises:
            Drifted: on all of them.
        """
        own = [int(checksum) for checksum in checksums(self._variables)]
        by_rank = {rank: json.loads(text) for rank, text in self._comm.exchange(json.dumps(own)).items()}
        rank, index = _odd_one(by_rank)
        path = getattr(self._variables[index], "path", self._variables[index].name)
        raise Drifted(
            f"variable {path} on rank {rank} is not what it is on the other workers",
            "set weights on the root, or on all workers alike; if nothing was set, check that rank's memory, and go on "
            "from the last checkpoint",
            rank=rank,
            step=step,
            everywhere=True,
        )

    @functools.cached_property
    def _compute_table(self) -> Any:
        def table() -> tf.Tensor:
            workers = range(self._comm.span)
            whole = [_checksum(checksums([_copy(v, worker) for v in self._variables])) for worker in workers]
            words = tf.bitcast(tf.stack(whole), tf.uint32)
            halves = tf.cast(1 + tf.stack([words // HALF, words % HALF], 1), tf.float32)
            before, after = self._comm.rank, self._comm.size - self._comm.rank - self._comm.span
            return tf.pad(halves, [[before, after], [0, 0]])

        return tf.function(table, autograph=False)

    @functools.cached_property
    def _no_table(self) -> tf.Tensor:
        return tf.zeros((self._comm.size, 2))

    @functools.cached_property
    def _variables(self) -> list[Any]:
        return [variable for variable in self._get_variables() if tf.as_dtype(variable.dtype).size in WORDS]


def _copy(variable: keras.Variable, worker: int) -> Any:
    """Return the copy of a variable that a worker of this process has, counted from 0."""
    value = variable.value
    return value.values[worker] if isinstance(value, tf.distribute.DistributedValues) else value


def checksums(variables: Sequence[Any]) -> list[tf.Tensor]:
    """Return () int32 for each variable of a dtype in WORDS: another number whenever one bit is another."""
    return [_sum_of_words(tf.convert_to_tensor(variable)) for variable in variables]


def _odd_one(by_rank: dict[int, list[int]]) -> tuple[int, int]:
    """Return the first rank unlike most, and its first variable that differs. Of two, the first rank is right."""
    common = json.loads(collections.Counter(map(json.dumps, by_rank.values())).most_common(1)[0][0])
    for rank, sums in by_rank.items():
        for index, (theirs, usual) in enumerate(zip(sums, common, strict=True)):
            if theirs != usual:
                return rank, index
    return 0, 0  # it differs between the workers of one process


def _sum_of_words(value: tf.Tensor) -> tf.Tensor:
    words = tf.bitcast(value, WORDS[value.dtype.size])
    if words.dtype == tf.int64:
        words = tf.bitcast(words, tf.int32)
    return tf.reduce_sum(tf.cast(words, tf.int32))


def _checksum(sums: Sequence[tf.Tensor]) -> tf.Tensor:
    return tf.add_n([tf.zeros((), tf.int32), *(one * (2 * index + 1) for index, one in enumerate(sums))])
