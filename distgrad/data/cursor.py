"""The place of a training in its data, and the way back to it: skipping the batches that are done.

That needs no help from the data, and holds for any number of workers, as long as the data come in the same order again.
`tf.data` draws another order for every pass over a shuffled dataset. So after a resume, as many iterators are made as
there were passes before; nothing is read from them, which makes them cheap, and the next one has the right order.
"""

import itertools
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

from distgrad.data.pipeline import shuffle_seeds, shuffled_datasets, without_autotune
from distgrad.errors import warn


class DataPass(NamedTuple):
    """One pass over the data.

    Attributes:
        batches: those that are not done yet.
        last_skipped: the last one that was done before the resume; None if none was.
    """

    batches: Iterator[Any]
    last_skipped: Any


class DataCursor:
    """The place of a training in its data.

    Attributes:
        epochs: number of times that `DistributedStep.epoch` has come to an end.
        passes: number of passes over the same shuffled data that were begun before this one.
        taken: number of batches of this pass that are done.
        seeds: seeds of the data's shuffling; None if they are not known.

    Args:
        warns: True on the one worker that prints warnings.
    """

    def __init__(
        self,
        epochs: int = 0,
        passes: int = 0,
        taken: int = 0,
        seeds: Sequence[int] | None = None,
        warns: bool = True,
    ) -> None:
        self.epochs, self.passes, self.taken = epochs, passes, taken
        self.seeds, self._warns = seeds, warns
        self._shuffles: list[Any] | None = None  # of the previous pass in this process; None before the first one
        self._has_new_shuffles = False  # True if the dataset was made anew for this pass

    def as_dict(self) -> dict[str, int]:
        """Collect the fields that are the same on every worker, to be saved."""
        return {"epochs": self.epochs, "passes": self.passes, "taken": self.taken}

    def begin(self, data: Iterable[Any]) -> DataPass:
        """Begin a pass over the data; the first one after a resume skips the batches that were done before."""
        data, shuffles, seeds = without_autotune(data), shuffled_datasets(data), shuffle_seeds(data)
        if self._shuffles is None:
            self._begin_first_pass(data, seeds)
        else:
            self._begin_next_pass(shuffles)
        self._shuffles, self.seeds = shuffles, seeds
        batches = iter(data)
        last = deque(itertools.islice(batches, self.taken), 1)  # ends with the data, if there are fewer
        return DataPass(batches, last[0] if last else None)

    def advance(self, more: bool) -> None:
        """Count another batch as done.

        Args:
            more: True if any worker has a next one; the pass is over otherwise.
        """
        self.taken += 1
        if not more:
            passes = 0 if self._has_new_shuffles else self.passes + 1
            self.epochs, self.passes, self.taken = self.epochs + 1, passes, 0

    def _begin_first_pass(self, data: Any, seeds: list[int]) -> None:
        """Draw the orders of the passes before the resume, if there was one."""
        if self.seeds is not None and seeds != self.seeds:
            if self.taken and self._warns:
                warn_of_changed_seed()
            self.passes = 0
        for _ in range(self.passes if seeds else 0):
            iter(data)

    def _begin_next_pass(self, shuffles: list[Any]) -> None:
        # A dataset that is made anew for each pass draws its first order again.
        self._has_new_shuffles = shuffles != self._shuffles
        self.passes = 0 if self._has_new_shuffles else self.passes + bool(self.taken)
        self.taken = 0


def warn_of_changed_seed() -> None:
    """Warn that the data no longer come in the order that they had before the resume."""
    warn("the data are shuffled with another seed than before the resume; give shuffle() one, or TensorFlow")
