"""Datasets that are the same on every worker: recognised by their first batch, and shared out.

A `tf.data.Dataset` is global data if its first batch has the same digest on every worker, and a worker's own data if it
differs. `comm.shard(dataset)` says that it is cut already. Some batches of every later pass are compared, too.

A shuffle without a seed, or with another one on each worker, draws another order on each. It is given the root's.
"""

import hashlib
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import tensorflow as tf
from tensorflow.core.framework import graph_pb2

from distgrad.collectives.communicator import Communicator
from distgrad.data.pipeline import shuffle_seeds
from distgrad.data.sharding import rows_of_workers
from distgrad.errors import FitMismatch, note
from distgrad.keras_internals import inputs_of

COMPARED = 8  # batches 1, 8, 64, 512, ... of each pass are compared with those of the other workers
KEEP_STATE = 1  # of `DatasetToGraphV2`: lookup tables and the like are written as they are


def is_shard(data: Any) -> bool:
    """Return whether a dataset was made from what `comm.shard` gave."""
    return getattr(data, "is_shard", False) or any(is_shard(part) for part in inputs_of(data))


def with_seeds(dataset: tf.data.Dataset, seeds: Sequence[tuple[int, int]]) -> tf.data.Dataset:
    """Give a dataset's shuffles other seeds; returns it as it is where TensorFlow cannot.

    Args:
        seeds: of each shuffle, in the order of `seeds_of`.
    """
    try:
        written = tf.raw_ops.DatasetToGraphV2(
            input_dataset=tf.data.experimental.to_variant(dataset), external_state_policy=KEEP_STATE
        )
        graph = graph_pb2.GraphDef.FromString(written.numpy())
        nodes = {node.name: node for node in graph.node}
        shuffles = [node for node in graph.node if node.op.startswith("ShuffleDataset")]
        for node, pair in zip(shuffles, reversed(seeds), strict=True):  # in a graph, inputs come first
            for name, seed in zip(node.input[2:4], pair, strict=True):
                nodes[name].attr["value"].tensor.CopyFrom(tf.make_tensor_proto(seed, tf.int64))
            # What draws by the old seeds is named in the graph; this name is nobody's, and so is made anew.
            node.input[4] = graph.node.add(op="DummySeedGenerator", name=f"{node.name}/seeds").name
        variant = tf.raw_ops.DatasetFromGraph(graph_def=graph.SerializeToString())
    except (tf.errors.OpError, ValueError, TypeError):  # Python functions, or more than a graph can hold
        return dataset
    return tf.data.experimental.from_variant(variant, dataset.element_spec)


def seeds_of(dataset: tf.data.Dataset) -> list[tuple[int, int]]:
    """Return the two seeds of each shuffle, the last shuffle first; (0, 0) where none was given."""
    seeds = shuffle_seeds(dataset)
    return list(zip(seeds[::2], seeds[1::2], strict=True))


class Sharing:
    """Decides, at the first batch, whether batches are global ones, and cuts them if they are.

    Args:
        comm: the workers.
        has_equal_passes: True if all workers have equally many batches in a pass, as far as that is known beforehand.
    """

    def __init__(self, comm: Communicator, has_equal_passes: bool) -> None:
        self._comm, self._has_equal_passes = comm, has_equal_passes
        self._is_global: bool | None = None  # None before the first batch

    def share_out(self, batches: Any) -> "SharedBatches":
        """Return this worker's rows of each batch of one pass. Every worker begins a pass at the same time."""
        return SharedBatches(self, batches)

    def is_compared(self, number: int) -> bool:
        """Return whether a batch of a pass, the first is 1, is compared on every worker."""
        while self._is_global and self._has_equal_passes and number > 1 and number % COMPARED == 0:
            number //= COMPARED
        return number == 1

    def compare(self, batch: Any) -> None:
        """Compare a batch with those of the other workers. Every worker calls it.

        Args:
            batch: None if this worker has none.

        Raises:
            FitMismatch: data that were the same on every worker before are no longer.
        """
        is_same = len(set(self._comm.exchange(_digest(batch)).values())) == 1
        if self._is_global is None:
            self._is_global = is_same and batch is not None
            if self._is_global and self._comm.is_root:
                note(
                    "the dataset's first batch is the same on every worker: its batches are global ones, and each "
                    "worker takes its rows of them; comm.shard(dataset) says so without looking"
                )
        elif self._is_global and not is_same:
            raise FitMismatch(
                "the dataset's first batch was the same on every worker, and a later one is not",
                "give its shuffle a seed, or share it out with comm.shard(dataset)",
                everywhere=True,
            )

    def cut(self, batch: Any) -> Any:
        """Return this worker's rows of a batch."""
        if not self._is_global:
            return batch
        first, last, size = self._comm.rank, self._comm.rank + self._comm.span, self._comm.size
        return tf.nest.map_structure(lambda tensor: rows_of_workers(tensor, first, last, size), batch)


class SharedBatches:
    """An iterator over this worker's rows of each batch."""

    def __init__(self, sharing: Sharing, batches: Any) -> None:
        self._sharing, self._batches = sharing, iter(batches)
        self.element_spec = batches.element_spec
        self._taken = 0

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        batch = next(self._batches, None)
        self._taken += 1
        if self._sharing.is_compared(self._taken):
            self._sharing.compare(batch)
        if batch is None:
            raise StopIteration
        return self._sharing.cut(batch)


def _digest(batch: Any) -> str:
    if batch is None:
        return ""
    digest = hashlib.sha256()
    for tensor in tf.nest.flatten(batch, expand_composites=True):
        array = np.asarray(tensor)
        digest.update(f"{array.dtype} {array.shape}".encode())
        digest.update(repr(array.tolist()).encode() if array.dtype == object else array.tobytes())
    return digest.hexdigest()
