"""What `fit` and `evaluate` are given -> this worker's share of it, as a Keras data adapter.

    arrays, PyDataset, generators    the global data, the same on every worker; each global batch is shared out by rank
    tf.data.Dataset                  this worker's own data, as comm.shard(dataset) gives it

Arrays are shuffled in one order, drawn from the root's random numbers; with `keras.utils.set_random_seed` it is the
same in every run.
"""

import random
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import keras
import tensorflow as tf
from keras.src.trainers.data_adapters import array_slicing, get_data_adapter
from keras.src.trainers.data_adapters.array_data_adapter import ArrayDataAdapter
from keras.src.trainers.data_adapters.data_adapter import DataAdapter
from keras.src.trainers.data_adapters.tf_dataset_adapter import TFDatasetAdapter

from distgrad.collectives.communicator import Communicator
from distgrad.data.cursor import warn_of_changed_seed
from distgrad.data.pipeline import shuffle_seeds, without_autotune
from distgrad.data.sharding import rows_of_workers
from distgrad.errors import TooFewSamples

READY = 2  # batches that wait for their step


def share_of(comm: Communicator, given: Mapping[str, Any]) -> "Share":
    """This worker's share of some data; every worker asks at the same time.

    Args:
        given: the arguments of Keras's `get_data_adapter`.

    Raises:
        TooFewSamples: there are fewer rows than workers.
    """
    shuffle, x = given["shuffle"], given["x"]
    if isinstance(x, keras.utils.PyDataset):
        order = _Shuffled(x, seed_of_root(comm)) if shuffle else None
        return Share(comm, get_data_adapter(**{**given, "x": order or x, "shuffle": False}), order)
    if isinstance(x, tf.data.Dataset) or not array_slicing_suits(given):
        whole = get_data_adapter(**{**given, "shuffle": False})
        if isinstance(whole, TFDatasetAdapter):
            return OwnData(comm, whole, keeps_iterator=given["steps_per_epoch"] is not None)
        return Share(comm, whole)
    return SharedArrays(comm, get_data_adapter(**given), seed_of_root(comm) if shuffle else None)


def array_slicing_suits(given: Mapping[str, Any]) -> bool:
    """Whether all of the data are arrays or tensors."""
    arrays = keras.tree.flatten((given["x"], given["y"], given["sample_weight"]))
    return all(array_slicing.can_slice_array(array) for array in arrays)


def seed_of_root(comm: Communicator) -> int:
    """A number that the root draws, on every worker."""
    return int(comm.from_root(str(random.getrandbits(31)) if comm.is_root else ""))


class Share(DataAdapter):
    """This worker's slice of every batch of global data."""

    def __init__(self, comm: Communicator, whole: DataAdapter, shuffled: "_Shuffled | None" = None) -> None:
        self._comm, self._whole, self._shuffled = comm, whole, shuffled

    def get_tf_dataset(self) -> tf.data.Dataset:
        """The batches, cut."""
        return self._comm.shard(self._whole.get_tf_dataset())

    @property
    def num_batches(self) -> int | None:
        """The same on every worker; None where it is not known."""
        return self._whole.num_batches

    @property
    def batch_size(self) -> int | None:
        """Rows of a global batch."""
        return self._whole.batch_size

    @property
    def has_partial_batch(self) -> bool | None:
        """Whether the last one is smaller."""
        return None

    @property
    def partial_batch_size(self) -> int | None:
        """How many rows it has."""
        return None

    def on_epoch_begin(self) -> None:
        """Tell the data."""
        self._whole.on_epoch_begin()

    def on_epoch_end(self) -> None:
        """Tell the data."""
        self._whole.on_epoch_end()

    def settings(self) -> list[str]:
        """What all workers must share, as texts "name=value"."""
        return [f"number of batches={self.num_batches}", f"batch size={self.batch_size}"]

    def order(self, epoch_begun: bool, pass_begun: bool) -> list[int]:  # noqa: ARG002
        """What it takes to have the batches in the same order again.

        Args:
            epoch_begun: whether Keras is in the middle of an epoch.
            pass_begun: whether some batches of these data, but not all, are done.
        """
        return [] if self._shuffled is None else [self._shuffled.seed, self._shuffled.drawn]

    def go_to(self, order: Sequence[int], seeds: Sequence[int] | None) -> None:  # noqa: ARG002
        """Have that order, before the first pass; seeds are those that this worker had before."""
        if self._shuffled is not None:
            self._shuffled.go_to(*order)

    @property
    def seeds(self) -> list[int]:
        """Those of shuffling that is not done here."""
        return []


class OwnData(Share):
    """A dataset that is this worker's own; others may have more or fewer batches."""

    def __init__(self, comm: Communicator, whole: TFDatasetAdapter, keeps_iterator: bool) -> None:
        super().__init__(comm, whole)
        self._passes, self._keeps = _Passes(without_autotune(whole.get_tf_dataset())), keeps_iterator
        own = whole.num_batches
        texts = comm.exchange("-1" if own is None else str(own)).values()
        self._most = None if "-1" in texts else max(map(int, texts))

    def get_tf_dataset(self) -> tf.distribute.DistributedDataset:
        """The batches as they are."""
        return self._passes

    def order(self, epoch_begun: bool, pass_begun: bool) -> list[int]:  # noqa: ARG002
        """How many iterators there were before the one that goes on; shuffling draws an order for each."""
        # Keras keeps its iterator over the end of an epoch if it was told how many steps that has.
        return [self._passes.begun - (epoch_begun or self._keeps)]

    def go_to(self, order: Sequence[int], seeds: Sequence[int] | None) -> None:
        """Begin so many."""
        if seeds is not None and seeds != self.seeds and self._comm.is_root:
            warn_of_changed_seed()
        for _ in range(*order):
            iter(self._passes)

    @property
    def seeds(self) -> list[int]:
        """Those of this worker's shuffling."""
        return shuffle_seeds(self._whole.get_tf_dataset())

    @property
    def num_batches(self) -> int | None:
        """Those of the worker that has most."""
        return self._most

    @property
    def batch_size(self) -> int | None:
        """Each worker's own."""
        return None


class SharedArrays(Share):
    """Arrays, of which each worker gathers only its own rows of every global batch."""

    def __init__(self, comm: Communicator, whole: ArrayDataAdapter, seed: int | None) -> None:
        super().__init__(comm, whole)
        self._rows, self._shuffle = whole._num_samples, whole._shuffle
        self._seed, self._drawn = (tf.Variable(v, dtype=tf.int64, trainable=False) for v in (seed or 0, 0))
        if self._rows < comm.size:
            raise TooFewSamples(
                f"{self._rows} samples for {comm.size} workers",
                "give every worker all the data, which distgrad shares out, or start fewer workers",
                everywhere=True,
            )

    def get_tf_dataset(self) -> tf.data.Dataset:
        """The batches of an epoch; each epoch in another order if they are shuffled."""
        arrays = array_slicing.convert_to_sliceable(self._whole._inputs, target_backend="tensorflow")
        arrays = keras.tree.lists_to_tuples(arrays)
        batches = self._orders().flat_map(lambda rows: tf.data.Dataset.from_tensor_slices(rows).batch(self.batch_size))
        if self._shuffle == "batch":
            batches = tf.data.Dataset.zip(batches, self._seeds(self._whole._size)).map(_shuffled)
        # An element is a batch of row numbers. The arrays come as a dataset of one element: what a function captures
        # becomes a constant of its graph, which would be copied and written out for every iterator.
        with_arrays = tf.data.Dataset.zip(batches, tf.data.Dataset.from_tensors(arrays).repeat())
        return without_autotune(with_arrays.map(self._own_rows).prefetch(READY)).with_options(_plain())

    def _own_rows(self, rows: tf.Tensor, arrays: Any) -> Any:
        """This worker's rows of a batch of row numbers."""
        own = rows_of_workers(rows, self._comm.rank, self._comm.rank + self._comm.span, self._comm.size)

        def gather(part: Any) -> Any:
            if isinstance(part, array_slicing.TensorflowSparseWrapper):
                return array_slicing.slice_tensorflow_sparse_wrapper(part, own)
            return None if keras.tree.is_nested(part) else tf.gather(part, own)

        return keras.tree.traverse(gather, arrays)

    def _orders(self) -> tf.data.Dataset:
        """One element an epoch, (n,) int64 the order of its rows."""
        rows = tf.range(self._rows, dtype=tf.int64)
        if not self._shuffle or self._shuffle == "batch":
            return tf.data.Dataset.from_tensors(rows)
        return self._seeds(1).map(lambda seed: _shuffled(rows, seed))

    def _seeds(self, count: int) -> tf.data.Dataset:
        """So many pairs of numbers, others in every epoch. TensorFlow's own would depend on this worker's seed, too.

        They are counted, not drawn in Python: an iterator's threads that wait for the interpreter, and an interpreter
        that waits for the end of an iterator, would wait for each other.
        """
        return tf.data.Dataset.range(count).map(lambda _: tf.stack([self._seed, self._drawn.assign_add(1)]))

    def settings(self) -> list[str]:
        """What all workers must share."""
        return [f"number of rows={self._rows}", *super().settings()]

    def order(self, epoch_begun: bool, pass_begun: bool) -> list[int]:  # noqa: ARG002
        """The seed, and how many numbers were drawn with it before this pass."""
        of_pass = self._whole._size if self._shuffle == "batch" else 1
        return [int(self._seed), (int(self._drawn) - pass_begun) // of_pass * of_pass]

    def go_to(self, order: Sequence[int], seeds: Sequence[int] | None) -> None:  # noqa: ARG002
        """Draw what was drawn from there on."""
        for variable, value in zip((self._seed, self._drawn), order, strict=True):
            variable.assign(value)


class _Passes(tf.distribute.DistributedDataset):
    """A dataset that counts its iterators. Keras takes it as it is, because of its class."""

    def __init__(self, dataset: tf.data.Dataset) -> None:
        self._dataset, self.begun = dataset, 0

    def __iter__(self) -> Iterator[Any]:
        self.begun += 1
        return iter(self._dataset)


def _plain() -> tf.data.Options:
    """Nothing is rewritten: there is little to gain."""
    options = tf.data.Options()
    options.experimental_optimization.apply_default_optimizations = False
    return options


def _shuffled(rows: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
    return tf.random.experimental.stateless_shuffle(rows, seed)


class _Shuffled(keras.utils.PyDataset):
    """The batches of another PyDataset, each epoch in another order, which is the same on every worker."""

    def __init__(self, inner: keras.utils.PyDataset, seed: int) -> None:
        super().__init__(inner.workers, inner.use_multiprocessing, inner.max_queue_size)
        self._inner, self.seed = inner, seed
        self.go_to(seed, 1)

    def go_to(self, seed: int, drawn: int) -> None:
        """Have the order that is drawn so many times from a seed."""
        self.seed, self.drawn, self._random = seed, 0, random.Random(seed)
        self._order = list(range(self._inner.num_batches or 0))
        for _ in range(drawn):
            self._draw()

    def _draw(self) -> None:
        self._random.shuffle(self._order)
        self.drawn += 1

    @property
    def num_batches(self) -> int | None:
        return self._inner.num_batches

    def __getitem__(self, index: int) -> Any:
        return self._inner[self._order[index] if self._order else index]

    def on_epoch_begin(self) -> None:
        self._inner.on_epoch_begin()

    def on_epoch_end(self) -> None:
        self._inner.on_epoch_end()
        self._draw()
