"""The order in which data of `fit` come: the same on every worker, and the same again after a resume.

Orders are drawn one after the other from a seed, and counted; a checkpoint saves the count. What is shuffled here is
drawn from a seed of the root's, which `keras.utils.set_random_seed` makes the same in every run.
"""

import random
from collections.abc import Iterator, Sequence
from typing import Any

import keras
import numpy as np

from distgrad.data.cursor import warn_of_changed_seed
from distgrad.data.pipeline import shuffle_seeds
from distgrad.keras_internals import CountedDataset


class GivenOrder:
    """The order of data that nobody shuffles here."""

    @property
    def seeds(self) -> list[int]:
        """No seeds."""
        return []

    def order(self, epoch_begun: bool, pass_begun: bool) -> list[int]:  # noqa: ARG002
        """Return nothing: there is nothing to save."""
        return []

    def go_to(self, order: Sequence[int], seeds: Sequence[int] | None) -> None:
        """Leave the order as it is."""


class PassOrder:
    """The order of a dataset of the worker's own, of whose shuffles each iterator draws another one.

    Args:
        dataset: counts its iterators.
        keeps_iterator: True if Keras goes on with an iterator in the next epoch; it does so where `fit` was told how
            many steps an epoch has.
        warns: True on the one worker that prints warnings.
    """

    def __init__(self, dataset: CountedDataset, keeps_iterator: bool, warns: bool) -> None:
        self._dataset, self._keeps_iterator, self._warns = dataset, keeps_iterator, warns

    @property
    def seeds(self) -> list[int]:
        """The seeds of this worker's shuffles."""
        return shuffle_seeds(self._dataset)

    def order(self, epoch_begun: bool, pass_begun: bool) -> list[int]:  # noqa: ARG002
        """Return the number of iterators before the one that goes on."""
        return [self._dataset.iterators - (epoch_begun or self._keeps_iterator)]

    def go_to(self, order: Sequence[int], seeds: Sequence[int] | None) -> None:
        """Make that many iterators, and warn if they do not draw what they drew before."""
        if seeds is not None and seeds != self.seeds and self._warns:
            warn_of_changed_seed()
        for _ in range(*order):
            iter(self._dataset)


class ShuffledBatches(keras.utils.PyDataset):
    """The batches of another PyDataset, each epoch in another order, which is the same on every worker.

    Args:
        batches: the other one.
        seed: what all orders are drawn from, one after the other.
    """

    def __init__(self, batches: keras.utils.PyDataset, seed: int) -> None:
        super().__init__(batches.workers, batches.use_multiprocessing, batches.max_queue_size)
        self._batches = batches
        self.go_to([seed, 1], None)

    @property
    def seeds(self) -> list[int]:
        """No seeds of this worker's own."""
        return []

    def order(self, epoch_begun: bool, pass_begun: bool) -> list[int]:  # noqa: ARG002
        """Return the seed, and the number of orders that were drawn."""
        return [self._seed, self._drawn]

    def go_to(self, order: Sequence[int], seeds: Sequence[int] | None) -> None:  # noqa: ARG002
        """Draw the same orders again."""
        self._seed, drawn = order
        self._drawn, self._random = 0, random.Random(self._seed)
        self._indices = list(range(self._batches.num_batches or 0))
        for _ in range(drawn):
            self._draw()

    def _draw(self) -> None:
        self._random.shuffle(self._indices)
        self._drawn += 1

    @property
    def num_batches(self) -> int | None:
        """As many as the other one has."""
        return self._batches.num_batches

    def __getitem__(self, index: int) -> Any:
        return self._batches[self._indices[index] if self._indices else index]

    def on_epoch_begin(self) -> None:
        """Tell the other one."""
        self._batches.on_epoch_begin()

    def on_epoch_end(self) -> None:
        """Tell the other one, and draw the next order."""
        self._batches.on_epoch_end()
        self._draw()


class RowOrder:
    """The order of the rows in each epoch, drawn from one seed and so the same on every worker.

    Args:
        rows: how many there are.
        batch_size: rows of a global batch.
        shuffle: True for all rows, "batch" for those of each batch, False for none.
        seed: what all orders are drawn from, one after the other.
    """

    def __init__(self, rows: int, batch_size: int, shuffle: bool | str, seed: int) -> None:
        self._rows, self._batch_size, self._shuffle = rows, batch_size, shuffle
        self._seed, self._drawn = seed, 0
        self._draws_per_epoch = -(-rows // batch_size) if shuffle == "batch" else 1

    def batches(self) -> Iterator[np.ndarray]:
        """Yield the batches of one epoch, (b,) int64 row numbers each; every call draws another order."""
        rows = np.arange(self._rows)
        if self._shuffle and self._shuffle != "batch":
            rows = self._shuffled(rows)
        for start in range(0, self._rows, self._batch_size):
            batch = rows[start : start + self._batch_size]
            yield self._shuffled(batch) if self._shuffle == "batch" else batch

    def _shuffled(self, rows: np.ndarray) -> np.ndarray:
        """Draw the next order of some rows. TensorFlow's own shuffles would depend on this worker's seed, too."""
        self._drawn += 1
        return np.random.default_rng((self._seed, self._drawn)).permutation(rows)

    @property
    def seeds(self) -> list[int]:
        """No seeds of this worker's own."""
        return []

    def order(self, epoch_begun: bool, pass_begun: bool) -> list[int]:  # noqa: ARG002
        """Return the seed, and how often it was drawn from before this pass."""
        per_epoch = self._draws_per_epoch
        return [self._seed, (self._drawn - pass_begun) // per_epoch * per_epoch]

    def go_to(self, order: Sequence[int], seeds: Sequence[int] | None) -> None:  # noqa: ARG002
        """Draw from the same seed, from that draw on."""
        self._seed, self._drawn = order
