"""A communicator is one idea: run this function on every worker's share, and give everyone the sum.

    total = comm.sum_over_workers(fn, args)     # Σ over workers r of fn(share of args on r)

An engine supplies that one method (or, where a worker is a process, just `all_sum`). All else that a job needs is
built from it here, once: a broadcast is a sum to which only the root contributes, exchanging texts is a sum of vectors
with a slot for each worker, a barrier is a sum of zeros. One worker is not special: its sum is its input.
"""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from types import TracebackType
from typing import Any, cast

import numpy as np
import tensorflow as tf

from distgrad.collectives import agreement
from distgrad.collectives.moments import MOMENTS, all_finite, merged, moments, moments_of_each
from distgrad.collectives.vectors import DividedSum, Division, Vector, pieces_of
from distgrad.collectives.window import Window
from distgrad.data.sharding import shard_dataset
from distgrad.liveness.engine_hooks import EngineHooks
from distgrad.liveness.liveness import Liveness

BUNDLE = 1 << 22  # entries of variables that are sent together
SHORT = 64  # bytes of a text that are sent along with its length


class Communicator:
    """The workers of one job, seen from one of them.

    One thread of a process uses it: sums must come in the same order on every worker, and two threads would make
    another order on each. Through the compiled core's window (alone on a CPU, or under MPI), sums of two threads of a
    lone worker come one after the other, each right; under MPI a second thread that comes in the midst of a sum ends
    both with a `BadArgument`. Threads that never overlap are not noticed.

    Attributes:
        backend: "solo", "mpi", "horovod" or "tf".
        rank: number of this process's first worker, from 0.
        size: how many workers' gradients are summed.
        local_rank, local_size: rank and size among the workers of this host.
        span: how many workers this process runs; more than 1 only under a strategy with several local devices.
        alone: True if there is no other worker.
        window: the memory through which sums go (window.py), None where the engine has none.
        liveness: keeps this process from waiting for ever, and ends the job when it cannot go on.
    """

    backend = "solo"
    span = 1
    alone = False
    window: Window | None = None

    def __init__(self, rank: int, size: int, local_rank: int, local_size: int) -> None:
        self.rank, self.size, self.local_rank, self.local_size = rank, size, local_rank, local_size
        self.liveness = Liveness(rank, size // self.span, self._engine_hooks())
        self._sums: dict[tf.DType, Callable[[tf.Tensor], tf.Tensor]] = {}  # compiled, for `process_sum`
        self._agreed: dict[str, Any] = {}  # what all workers are known to have agreed on, by this worker's text

    # ---- what an engine supplies

    def all_sum(self, pieces: Sequence[tf.Tensor], borrow: bool = False) -> tf.Tensor:
        """Sum a vector over all workers.

        Args:
            pieces: this worker's vector as 1-D tensors, to be read one after the other, so that an engine with a
                buffer of its own need not have them joined first. The same on every worker: the total size s, and
                the dtype, one of SUMMABLE.
            borrow: see `sum_over_workers`.

        Returns:
            (s,) the sum, the same bits on every worker.
        """
        raise NotImplementedError

    def close(self) -> None:
        """Leave the job. Every worker calls it; the communicator is of no use afterwards.

        A process that was forked from a worker has no part in the job, and nothing to leave.
        """
        if not self.liveness.in_child:
            self.liveness.close()
            self._close_engine()

    def _close_engine(self) -> None:
        """Release what the engine holds. Every worker calls it."""

    def _engine_hooks(self) -> EngineHooks:
        """Return the functions of this engine that liveness needs."""
        return EngineHooks(exchange=self.exchange, leave_together=self.barrier)

    # ---- sums

    def sum_over_workers(self, fn: Callable[..., Vector], args: Sequence[Any], borrow: bool = False) -> tf.Tensor:
        """Run `fn` on each worker's share and return the sum of its results on every worker.

        Args:
            fn: takes `args`, returns a vector (s,) with the same s on every worker, whole or as a list of 1-D pieces.
            args: this process's tensors, or nests of them. A strategy that runs several workers in this process
                cuts those of rank 1 and more into contiguous row ranges, one a worker.
            borrow: True to get the engine's own buffer instead of a copy, if it has one. It is good until the next sum.

        Returns:
            (s,) Σ over all workers of `fn(*share)`.
        """
        return self.all_sum(pieces_of(fn(*args)), borrow)

    def sum_and_divide(self, fn: Callable[..., Vector], args: Sequence[Any], division: Division) -> DividedSum:
        """Sum over workers likewise, with the one division of a step and a description of the sum: in one reduction.

        Args:
            fn, args: see `sum_over_workers`.
            division: what is divided, by what, and what of it is described.

        Returns:
            The sum, which may be the engine's own buffer, good until the next one.
        """

        def with_nonfinite_flag(*share: Any) -> list[tf.Tensor]:
            pieces = pieces_of(fn(*share))
            dtype = pieces[0].dtype
            flag = tf.cast(~all_finite(pieces), dtype) if division.describe else tf.zeros((), dtype)
            return [*pieces, tf.one_hot(self.worker(), self.size, dtype=dtype) * flag]

        flagged = self.sum_over_workers(with_nonfinite_flag, args, borrow=True)
        cut = -self.size - division.undivided
        summed, undivided = flagged[:cut], flagged[cut : -self.size]
        divisor = division.divisor(undivided)
        by_range = moments_of_each([summed[first:last] for first, last in division.ranges])
        unranged = moments(summed) if division.describe and not division.ranges else tf.zeros(MOMENTS, tf.float64)
        return DividedSum(
            blocks=[summed / tf.cast(divisor, summed.dtype)],
            undivided=undivided,
            divisor=divisor,
            moments=merged(by_range)[:MOMENTS] if division.ranges else unranged,
            nonfinite_workers=flagged[-self.size :],
            by_range=by_range,
        )

    def sum_within(self, vector: tf.Tensor) -> tf.Tensor:
        """Sum a vector over the workers in the midst of `fn`, in a way that can be differentiated.

        This is no part of the one reduction of a step: every worker waits for the others here.

        Args:
            vector: (s,) of this worker.

        Returns:
            (s,) the sum. Its gradient is the sum of all workers' gradients with respect to it.
        """

        def with_gradient(vector: tf.Tensor) -> tuple[tf.Tensor, Callable[[tf.Tensor], tf.Tensor]]:
            return self.all_sum([vector]), lambda upstream: self.all_sum([upstream])

        return tf.custom_gradient(with_gradient)(vector)

    def worker(self) -> tf.Tensor:
        """() int32 number of the worker that runs this code, in 0..size-1; for use within `fn` only."""
        return tf.constant(self.rank)

    # ---- what follows from a sum

    @property
    def is_root(self) -> bool:
        """True in the one process that speaks for the job."""
        return self.rank == 0

    def scope(self) -> contextlib.AbstractContextManager[Any]:
        """Return the context in which a model is built; it does nothing except under tf.distribute."""
        return contextlib.nullcontext()

    def shard(self, dataset: tf.data.Dataset) -> tf.data.Dataset:
        """Give this process its contiguous slice of every global batch.

        Args:
            dataset: batches of any structure; its batches are the global ones, the same on every worker.

        Returns:
            A dataset of as many batches, each with rows [rank·b/size, (rank+span)·b/size) of the global b rows.
        """
        return shard_dataset(dataset, self.rank, self.rank + self.span, self.size)

    def process_sum(self, array: np.ndarray) -> np.ndarray:
        """Sum one array a process, at once and outside any graph.

        Args:
            array: any shape, a SUMMABLE dtype; the same shape in every process.

        Returns:
            The sum, same shape.
        """
        with tf.init_scope():
            try:
                row = tf.constant(array.reshape(1, -1))
                total = self._sum_of_rows(row.dtype)(row)
            except tf.errors.OpError as error:
                raise self.liveness.explain(error) from None
        return cast(np.ndarray, total.numpy()).reshape(array.shape)

    def _sum_of_rows(self, dtype: tf.DType) -> Callable[[tf.Tensor], tf.Tensor]:
        """Return the compiled sum of one row (1, s) a process as (s,), for any s."""

        def sum_rows(row: tf.Tensor) -> tf.Tensor:
            # Of the workers that a process runs just one has the row.
            return self.sum_over_workers(lambda rows: tf.reduce_sum(rows, axis=0), (row,))

        if dtype not in self._sums:
            self._sums[dtype] = tf.function(
                sum_rows, autograph=False, input_signature=[tf.TensorSpec((1, None), dtype)]
            )
        return self._sums[dtype]

    def exchange(self, text: str) -> dict[int, str]:
        """Give every process every process's text.

        Returns:
            The texts by rank, in ascending order; of each process, by the rank of its first worker.
        """
        encoded = np.frombuffer(text.encode(), np.uint8)
        heads = self._rows_of_processes(np.concatenate([[encoded.size], encoded[:SHORT]]), 1 + SHORT)
        lengths = heads[:, 0]
        rest = max(0, int(lengths.max()) - SHORT)
        tails = self._rows_of_processes(encoded[SHORT:], rest) if rest else heads[:, :0]
        texts = np.concatenate([heads[:, 1:], tails], axis=1).astype(np.uint8)
        return {rank: texts[rank, : lengths[rank]].tobytes().decode() for rank in range(0, self.size, self.span)}

    def _rows_of_processes(self, own: np.ndarray, width: int) -> np.ndarray:
        """Return (size, width) int32: each process's integers, filled up with zeros, in the row of its first worker."""
        rows = np.zeros((self.size, width), np.int32)
        rows[self.rank, : own.size] = own
        return self.process_sum(rows)

    def from_root(self, text: str) -> str:
        """Give every process the root's text."""
        encoded = text.encode() if self.is_root else b""
        length = int(self.process_sum(np.array([len(encoded)], np.int64))[0])
        return self._bytes_of_root(encoded.ljust(length, b"\0"))[:length].decode()

    def broadcast(self, variables: Sequence[Any]) -> None:
        """Set the variables to the root's values, bit for bit.

        Args:
            variables: Keras or TensorFlow variables of any numeric dtype, in the same order on every worker.

        Raises:
            ModelMismatch: names, shapes, dtypes, order or count differ; nothing is assigned.
        """
        agreement.require_same_variables(self, variables)
        for bundle in _bundles(variables):
            self._broadcast(bundle)

    def _broadcast(self, variables: Sequence[Any]) -> None:
        values = [np.asarray(variable.numpy()) for variable in variables]
        packed = self._bytes_of_root(b"".join(value.tobytes() for value in values))
        offset = 0
        for variable, value in zip(variables, values, strict=True):
            variable.assign(np.frombuffer(packed, value.dtype, value.size, offset).reshape(value.shape))
            offset += value.nbytes

    def _bytes_of_root(self, data: bytes) -> bytes:
        """Return the root's data, followed by up to 3 more bytes; every process gives data of the same length."""
        words = words_of(data)
        # In parts: a buffer need not become as large as the largest variable, of which a step may touch little.
        parts = [words[start : start + BUNDLE] for start in range(0, max(1, words.size), BUNDLE)]
        return b"".join(self.process_sum(part if self.is_root else np.zeros_like(part)).tobytes() for part in parts)

    def barrier(self) -> None:
        """Wait until every worker has called this."""
        self.process_sum(np.zeros(1, np.int32))

    def __enter__(self) -> "Communicator":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # After an exception the others may be anywhere: leaving together would wait for them.
        if kind is None:
            self.close()


def is_replica(comm: Communicator) -> bool:
    """Return whether this code is run by one replica of the communicator's strategy; False if it has none."""
    return comm.backend == "tf" and tf.distribute.has_strategy() and not tf.distribute.in_cross_replica_context()


def words_of(data: bytes) -> np.ndarray:
    """Return data as int32, in sums of which, with zeros of the other workers, every bit arrives as it was."""
    return np.frombuffer(data + bytes(-len(data) % 4), np.int32)


def _bundles(variables: Sequence[Any]) -> Iterator[list[Any]]:
    """Group variables to be sent together: few messages for small ones, little memory for large ones."""
    bundle: list[Any] = []
    entries = 0
    for variable in variables:
        entries += int(np.prod(variable.shape))
        if bundle and entries > BUNDLE:
            yield bundle
            bundle, entries = [], int(np.prod(variable.shape))
        bundle.append(variable)
    if bundle:
        yield bundle
