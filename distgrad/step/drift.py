"""Are the weights still the same on every worker? A flipped bit, or a worker that has assigned one, spreads silently.

Every so many steps each worker brings a checksum of all its weights and optimizer state, in two lanes of its own. It
is the sum, modulo 2³², of the words that the values are made of, each variable's times an odd number: one changed bit
always changes it. Only where they differ do workers tell each other the checksum of each variable.
"""

import collections
import functools
import json
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import tensorflow as tf

from distgrad.errors import Drifted

if TYPE_CHECKING:
    from distgrad.collectives.communicator import Communicator

HALF = 1 << 16  # each lane holds so many bits of the checksum, which float32 does without rounding
WORDS = {2: tf.int16, 4: tf.int32, 8: tf.int64}  # by the size of a value in bytes


class Drift:
    """The check.

    Args:
        variables: gives those that are to be the same on every worker; asked when they are all built.
    """

    def __init__(self, comm: "Communicator", variables: Callable[[], Sequence[Any]]) -> None:
        self._comm, self._get_variables = comm, variables
        self.entries = 2 * comm.size  # of the vector

    def lanes(self, checks: tf.Tensor, dtype: tf.DType) -> tf.Tensor:
        """(entries,) this worker's checksum in its lanes, or zeros where () bool `checks` is False."""
        worker = self._comm.worker()

        def own() -> tf.Tensor:
            whole = tf.bitcast(_checksum(self._checksums()), tf.uint32)
            halves = tf.cast(tf.stack([whole // HALF, whole % HALF]), dtype)
            return tf.reshape(tf.one_hot(worker, self._comm.size, dtype=dtype)[:, tf.newaxis] * halves, [self.entries])

        # TensorFlow passes by every operation of a branch that is not taken, but for those of a function of its own.
        apart = tf.function(own, autograph=False, experimental_attributes={"_noinline": True})
        return tf.cond(checks, apart, lambda: tf.zeros(self.entries, dtype))

    def differs(self, lanes: tf.Tensor) -> tf.Tensor:
        """() bool, from the summed lanes."""
        table = tf.reshape(lanes, (self._comm.size, 2))
        return tf.reduce_any(tf.not_equal(table, table[:1]))

    def blame(self, step: int) -> None:
        """Find the worker and its variable. Every worker calls it.

        Raises:
            Drifted: on all of them.
        """
        own = [int(checksum) for checksum in self._checksums()]
        by_rank = {rank: json.loads(text) for rank, text in self._comm.exchange(json.dumps(own)).items()}
        rank, index = _odd_one(by_rank)
        path = getattr(self._variables[index], "path", self._variables[index].name)
        raise Drifted(
            f"variable {path} on rank {rank} is not what it is on the other workers",
            "assign weights on all workers alike, check that rank's memory, and go on from the last checkpoint",
            rank=rank,
            step=step,
            everywhere=True,
        )

    @functools.cached_property
    def _variables(self) -> list[Any]:
        return [variable for variable in self._get_variables() if tf.as_dtype(variable.dtype).size in WORDS]

    def _checksums(self) -> list[tf.Tensor]:
        """() int32 for each variable."""
        return [_sum_of_words(tf.convert_to_tensor(variable)) for variable in self._variables]


def _odd_one(by_rank: dict[int, list[int]]) -> tuple[int, int]:
    """The first rank unlike most, and the first variable that differs. Of two, the first one counts as right."""
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
