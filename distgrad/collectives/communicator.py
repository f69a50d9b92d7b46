"""A communicator is one idea: run this function on every worker's share, and give everyone the sum.

    total = comm.sum_over_workers(fn, args)     # Σ over workers r of fn(share of args on r)

An engine supplies that one method (or, where a worker is a process, just `all_sum`). All else a job needs is
built from it here, once: broadcasting is a sum to which only the root contributes, exchanging texts is a sum
of vectors with a slot a worker, a barrier is a sum of nothing. One worker is not special: its sum is its input.

    solo.py      one process, one device
    mpi.py       mpi4py, under mpirun
    hvd.py       Horovod, under horovodrun
    strategy.py  tf.distribute: MultiWorkerMirroredStrategy or MirroredStrategy
"""

import atexit
import contextlib
import functools
import os
import time
from collections.abc import Callable, Iterator, Sequence
from types import TracebackType
from typing import Any, NoReturn, cast

import keras
import numpy as np
import tensorflow as tf

from distgrad import native
from distgrad.collectives import agreement
from distgrad.collectives.moments import all_finite, moments, rows, whole
from distgrad.collectives.vectors import DividedSum, Vector, divisor_of, pieces_of
from distgrad.data.batch import share
from distgrad.data.pipeline import untuned
from distgrad.errors import BadArgument
from distgrad.liveness.peers import INSIDE, LEFT, TURN, Page, Peer, kill
from distgrad.liveness.stop_signals import StopRequest
from distgrad.liveness.watchdog import Watchdog

EXPLAINING = 5.0  # seconds
BUNDLE = 1 << 22  # entries of variables that are sent together


class Communicator:
    """The workers of one job, seen from one of them.

    Attributes:
        backend: "solo", "mpi", "horovod" or "tf".
        rank: number of this process's first worker, from 0.
        size: how many workers' gradients are summed.
        local_rank, local_size: the same among the workers of this host.
        span: how many workers this process runs; more than 1 only under a strategy with several local devices.
        alone: whether what this worker brings is known to be all there is.
        window: the memory through which sums go (window.py), None where the engine has none.
    """

    backend = "solo"
    span = 1
    alone = False
    window: Any = None

    def __init__(self, rank: int, size: int, local_rank: int, local_size: int) -> None:
        self.rank, self.size, self.local_rank, self.local_size = rank, size, local_rank, local_size
        self.page = Page.new()  # where this process is in the sums, for the watchdogs of its host
        self.step: int | None = None  # that is under way, for their messages
        self.stop = StopRequest(functools.partial(self.leave, together=False))
        self.timeout = 60.0
        self._watchdog: Watchdog | None = None
        self.failure: Exception | None = None  # raised inside a graph, which would hide its class
        self.agreed: set[str] = set()  # lists of variables that all workers are known to share

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
        """Leave the job. Every worker calls it; the communicator is of no use afterwards."""
        self._need_nobody()
        self.stop.close()
        if self._watchdog:
            self._watchdog.close()

    def part(self) -> None:
        """Wait until all workers are about to end; a launcher kills the others when the first one does."""
        self.barrier()

    def abort(self, status: int) -> None:
        """End the other workers, which may be waiting in a sum that this one will never reach."""

    def tidy(self) -> None:
        """Remove what the launcher leaves behind on this host, now that it is gone."""

    def end_stuck(self, peers: Sequence[Peer]) -> None:
        """End workers of this host that do not listen, before this one ends."""
        kill(peers)

    def roll_call(self) -> list[int]:
        """The ranks that do not wait, asked by one that waits; empty where an engine has no way to ask."""
        return []

    # ---- what keeps a job from waiting for ever

    def watch(self, timeout: float) -> None:
        """From now on, end the job when a worker is gone, or not in a sum within so many seconds of this one."""
        self.timeout = timeout
        self._watchdog = Watchdog(self, timeout)
        self._watchdog.start()
        atexit.register(self._need_nobody)

    def introduce(self) -> None:
        """Let the workers of a host know one another. Every worker calls it."""
        if self._watchdog and not self._watchdog.has_met:
            self._watchdog.meet(self.exchange)

    def leave(self, status: int, together: bool) -> NoReturn:
        """End this process after an error it has told of; `together` says that every worker is doing the same."""
        if together:
            self._need_nobody()
            self.part()
        elif self._watchdog:
            self._watchdog.peers.may_speak()  # the others have nothing to add
            self.abort(status)
        os._exit(status)

    def reason(self, error: Exception) -> Exception:
        """What to raise for an error within a graph.

        Another worker may be at fault. If so, the watchdog knows, and ends this process; an engine that gave up a sum
        before the watchdog did does not wait any longer for one that has not arrived.
        """
        if self.failure is None and self._watchdog and self.page[INSIDE] and not self.page[LEFT]:
            time.sleep(EXPLAINING)
            self._watchdog.hurry()
        return self.failure or error

    def marked(self, begins: bool) -> contextlib.AbstractContextManager[Any]:
        """Note, in a graph or not, that a sum begins or has ended, before whatever is computed in this context."""
        return tf.control_dependencies(
            [native.operations().distgrad_mark_sum(page=self.page.address, begins=int(begins))]
        )

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        """For the time that this process waits for the others, other than in a sum. All do so alike."""
        self.page[TURN] += 1
        self.page[INSIDE] = 1
        yield
        self.page[INSIDE] = 0

    def _need_nobody(self) -> None:
        """Let the others not miss this process."""
        self.page[LEFT] = 1

    # ---- the idea

    def sum_over_workers(self, fn: Callable[..., Vector], args: Sequence[Any], borrow: bool = False) -> tf.Tensor:
        """Run `fn` on each worker's share and return the sum of its results on every worker.

        Args:
            fn: takes `args`, returns a vector (s,) with the same s on every worker, whole or as a list of 1-D pieces.
            args: this process's tensors, or nests of them. A strategy that runs several workers in this process
                cuts those of rank 1 and more into contiguous row ranges, one a worker.
            borrow: take the engine's own buffer instead of a copy, if it has one. It is good until the next sum.

        Returns:
            (s,) Σ over all workers of `fn(*share)`.
        """
        return self.all_sum(pieces_of(fn(*args)), borrow)

    def sum_and_divide(
        self,
        fn: Callable[..., Vector],
        args: Sequence[Any],
        rest: int,
        divisor: tf.Tensor,
        describe: bool = True,
        *,
        ranges: Callable[[], Sequence[tuple[int, int]]] = tuple,
    ) -> DividedSum:
        """The same, with the one division of a step, and what the sum was like: in one reduction.

        Args:
            rest: how many entries, at the end, are not divided.
            divisor: (1 + r,) float64; the first of these numbers plus Σ the others times the last r entries of the sum
                is what it is divided by, unless that is 0.
            describe: whether moments and nonfinite are wanted; zeros if not.
            ranges: gives, once `fn` has run, [first, last) of divided entries in ascending order, to be described one
                by one. What lies between them is zero.

        Returns:
            The sum, which may be the engine's own buffer, good until the next one.
        """

        def with_vote(*share: Any) -> list[tf.Tensor]:
            pieces = pieces_of(fn(*share))
            vote = tf.cast(~all_finite(pieces), pieces[0].dtype) if describe else tf.zeros((), pieces[0].dtype)
            return [*pieces, tf.one_hot(self.worker(), self.size, dtype=vote.dtype) * vote]

        voted = self.sum_over_workers(with_vote, args, borrow=True)
        cut = -self.size - rest
        summed, undivided = voted[:cut], voted[cut : -self.size]
        by = divisor_of(divisor, undivided)
        by_range = rows([summed[first:last] for first, last in ranges()])
        unranged = moments(summed) if describe and not ranges() else tf.zeros(4, tf.float64)
        found = whole(by_range)[:4] if ranges() else unranged
        return DividedSum([summed / tf.cast(by, summed.dtype)], undivided, by, found, voted[-self.size :], by_range)

    def sum_within(self, vector: tf.Tensor) -> tf.Tensor:
        """Sum (s,) over the workers in the midst of `fn`, in a way that can be differentiated.

        Not part of the one reduction: where it stands, every worker waits for the others.

        Returns:
            (s,) the sum. What is done with it on all workers counts in its gradient.
        """

        def summed(part: tf.Tensor) -> tuple[tf.Tensor, Callable[[tf.Tensor], tf.Tensor]]:
            return self.all_sum([part]), lambda upstream: self.all_sum([upstream])

        return tf.custom_gradient(summed)(vector)

    def worker(self) -> tf.Tensor:
        """() int32: the number of the worker that runs this code, in 0..size-1. Within `fn` only."""
        return tf.constant(self.rank)

    # ---- what follows from it

    @property
    def is_root(self) -> bool:
        """Whether this process speaks for the job."""
        return self.rank == 0

    def scope(self) -> contextlib.AbstractContextManager[Any]:
        """Where a model is built; does nothing except under tf.distribute."""
        return contextlib.nullcontext()

    def adopt(self, optimizer: keras.optimizers.Optimizer, model: keras.Model) -> keras.optimizers.Optimizer:
        """The optimizer to use for this model in this job: the given one, wherever they could be created."""
        return optimizer

    def shard(self, dataset: tf.data.Dataset) -> tf.data.Dataset:
        """Give this process its contiguous slice of every global batch.

        Args:
            dataset: batches of any structure; its batches are the global ones, the same on every worker.

        Returns:
            A dataset of as many batches, each with rows [rank·b/size, (rank+span)·b/size) of the global b rows.
        """
        if not isinstance(dataset, tf.data.Dataset):
            raise BadArgument(
                f"shard() takes a tf.data.Dataset of global batches, not {type(dataset).__name__}",
                "wrap arrays with tf.data.Dataset.from_tensor_slices(...).batch(...)",
            )

        def cut(rows: tf.Tensor) -> tf.Tensor:
            return share(rows, self.rank, self.rank + self.span, self.size)

        def cut_batch(*batch: Any) -> Any:
            whole = batch if isinstance(dataset.element_spec, tuple) else batch[0]
            return tf.nest.map_structure(cut, whole)

        # Autograph would write a file, which stays when this process is killed.
        return untuned(dataset.map(tf.autograph.experimental.do_not_convert(cut_batch)))

    def process_sum(self, part: np.ndarray) -> np.ndarray:
        """Sum one array a process, at once and outside any graph.

        Args:
            part: any shape, a SUMMABLE dtype; the same shape in every process.

        Returns:
            The sum, same shape.
        """
        with tf.init_scope():
            try:
                total = self._sum_rows(tf.constant(part.reshape(1, -1)))
            except tf.errors.OpError as error:
                raise self.reason(error) from None
        return cast(np.ndarray, total.numpy()).reshape(part.shape)

    @functools.cached_property
    def _sum_rows(self) -> Callable[[tf.Tensor], tf.Tensor]:
        """(1, s) -> (s,): one row, so that where a process runs several workers just one of them has it."""

        def sum_rows(row: tf.Tensor) -> tf.Tensor:
            return self.sum_over_workers(lambda rows: tf.reduce_sum(rows, axis=0), (row,))

        return tf.function(sum_rows, autograph=False, reduce_retracing=True)

    def exchange(self, text: str) -> list[str]:
        """Give every process every process's text.

        Returns:
            `size` texts by rank; ranks that share a process with a lower rank have "".
        """
        own = np.frombuffer(text.encode(), np.uint8)
        lengths = np.zeros(self.size, np.int32)
        lengths[self.rank] = own.size
        lengths = self.process_sum(lengths)
        slots = np.zeros((self.size, int(lengths.max())), np.int32)
        slots[self.rank, : own.size] = own
        slots = self.process_sum(slots).astype(np.uint8)
        return [slot[:length].tobytes().decode() for slot, length in zip(slots, lengths, strict=True)]

    def from_root(self, text: str) -> str:
        """Give every process the root's text."""
        own = text.encode() if self.is_root else b""
        length = int(self.process_sum(np.array([len(own)], np.int64))[0])
        return self._root_bytes(own.ljust(length, b"\0"))[:length].decode()

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
        packed = self._root_bytes(b"".join(value.tobytes() for value in values))
        offset = 0
        for variable, value in zip(variables, values, strict=True):
            root_value = np.frombuffer(packed, value.dtype, value.size, offset).reshape(value.shape)
            variable.assign(root_value)
            offset += value.nbytes

    def _root_bytes(self, own: bytes) -> bytes:
        """The root's bytes, of which every process has as many; up to 3 more follow."""
        words = np.frombuffer(own + bytes(-len(own) % 4), np.int32)
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


def _bundles(variables: Sequence[Any]) -> Iterator[list[Any]]:
    """The variables in groups to be sent together: few messages for small ones, little memory for large ones."""
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
