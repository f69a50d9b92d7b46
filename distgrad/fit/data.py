"""Data of `fit` and `evaluate`: this worker's share of them, as a dataset for Keras.

Arrays, PyDatasets and generators are global data, the same on every worker; each global batch is shared out by rank.
A `tf.data.Dataset` may be either (global_data.py); what `comm.shard(dataset)` gives is this worker's own.
"""

import json
import random
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import keras
import numpy as np
import tensorflow as tf

from distgrad.checkpoint.fit_progress import ResumableData
from distgrad.collectives.communicator import Communicator
from distgrad.data.pipeline import without_autotune
from distgrad.data.sharding import range_of_workers
from distgrad.fit.global_data import Sharing, is_shard, seeds_of, with_seeds
from distgrad.fit.order import GivenOrder, PassOrder, RowOrder, ShuffledBatches
from distgrad.keras_internals import CountedDataset, are_arrays, arrays_to_gather, data_adapter, gather_rows


class FitData(NamedTuple):
    """The data of one call of `fit` or `evaluate`, on this worker.

    Attributes:
        dataset: this worker's share of each batch.
        settings: what must be the same on all workers, as texts "name=value".
        order: for a checkpoint.
        adapter: Keras's reader of what was given, which is to be told when epochs begin and end.
    """

    dataset: CountedDataset
    settings: list[str]
    order: ResumableData
    adapter: Any


def fit_data(comm: Communicator, arguments: Mapping[str, Any]) -> FitData:
    """Prepare this worker's share of some data; every worker asks at the same time.

    Args:
        comm: the workers.
        arguments: x, y, sample_weight, batch_size, steps_per_epoch, shuffle, class_weight, as `fit` takes them; all but
            x may be left out.

    Raises:
        ValueError: Keras does not take such data.
    """
    x, shuffle = arguments["x"], arguments.get("shuffle", False)
    arguments = {**arguments, "shuffle": False}
    if isinstance(x, keras.utils.PyDataset) and shuffle:
        shuffled = ShuffledBatches(x, _seed_of_root(comm))
        return _shared_batches(comm, data_adapter({**arguments, "x": shuffled}), shuffled)
    if isinstance(x, tf.data.Dataset):
        keeps_iterator = arguments.get("steps_per_epoch") is not None
        return _dataset(comm, data_adapter(arguments), keeps_iterator)
    if are_arrays([arguments.get(name) for name in ("x", "y", "sample_weight")]):
        return _shared_arrays(comm, data_adapter(arguments), shuffle)
    return _shared_batches(comm, data_adapter(arguments), GivenOrder())


def _shared_arrays(comm: Communicator, adapter: Any, shuffle: bool | str) -> FitData:
    """Share out arrays: each worker gathers only its own rows of every global batch."""
    arrays = arrays_to_gather(adapter)
    no_rows = tf.data.Dataset.from_tensor_slices(gather_rows(arrays, np.arange(0))).batch(1)
    rows = int(next(array for array in keras.tree.flatten(arrays) if array is not None).shape[0])
    order = RowOrder(rows, adapter.batch_size, shuffle, _seed_of_root(comm) if shuffle else 0)
    settings = [f"number of rows={rows}", *_settings(adapter.num_batches, adapter.batch_size)]

    def batches() -> ArrayBatches:
        return ArrayBatches(comm, arrays, order.batches(), no_rows.element_spec)

    dataset = CountedDataset(no_rows, adapter.num_batches, iterate=batches)
    return FitData(dataset, settings, order, adapter)


class ArrayBatches:
    """An iterator over this worker's rows of each batch of one epoch of arrays.

    No tf.data: a worker that computes has no core to spare for the threads of a pipeline.

    Args:
        comm: the workers.
        arrays: what `arrays_to_gather` gave.
        batches: (b,) int64 row numbers, the same on every worker.
        element_spec: the type of a batch.
    """

    def __init__(self, comm: Communicator, arrays: Any, batches: Iterator[np.ndarray], element_spec: Any) -> None:
        self._comm, self._arrays, self._batches, self.element_spec = comm, arrays, batches, element_spec

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        rows, comm = next(self._batches), self._comm
        first, last = range_of_workers(len(rows), comm.rank, comm.rank + comm.span, comm.size)
        return gather_rows(self._arrays, rows[first:last])


def _shared_batches(comm: Communicator, adapter: Any, order: ResumableData) -> FitData:
    """Share out data that come batch by batch: each batch is whole on every worker, which cuts it."""
    dataset = CountedDataset(comm.shard(adapter.get_tf_dataset()), adapter.num_batches)
    return FitData(dataset, _settings(adapter.num_batches, adapter.batch_size), order, adapter)


def _dataset(comm: Communicator, adapter: Any, keeps_iterator: bool) -> FitData:
    """Take a dataset: global data if its first batch is the same on every worker, else this worker's own.

    Other workers' own data may have more or fewer batches; Keras counts to the most.
    """
    dataset = adapter.get_tf_dataset()
    seeds = [pair if any(pair) else (random.getrandbits(31), random.getrandbits(31)) for pair in seeds_of(dataset)]
    own = {"batches": adapter.num_batches, "is shard": is_shard(dataset), "seeds": seeds}
    found = [json.loads(text) for text in comm.exchange(json.dumps(own)).values()]
    batches = [one["batches"] for one in found]
    most = None if None in batches else max(batches)
    may_be_global = comm.size > 1 and not any(one["is shard"] for one in found)
    if may_be_global and any(one["seeds"] != found[0]["seeds"] for one in found):
        dataset = with_seeds(dataset, found[0]["seeds"])
    sharing = Sharing(comm, has_equal_passes=most is not None and set(batches) == {most}) if may_be_global else None
    dataset = CountedDataset(without_autotune(dataset), most, sharing)
    return FitData(dataset, _settings(most, None), PassOrder(dataset, keeps_iterator, warns=comm.is_root), adapter)


def _settings(batches: int | None, batch_size: int | None) -> list[str]:
    return [f"number of batches={batches}", f"batch size={batch_size}"]


def _seed_of_root(comm: Communicator) -> int:
    """Draw a number on the root, for every worker."""
    return int(comm.from_root(str(random.getrandbits(31)) if comm.is_root else ""))
