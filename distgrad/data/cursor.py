"""How far a training has come in its data, and how to get there again: by passing over the batches it has had.

That needs no help from the data, and holds for any number of workers, as long as the data come in the same order again.
`tf.data`'s shuffling draws another order for every pass; as many passes as there were are begun, which costs nothing,
before the one that goes on.
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from distgrad.data.pipeline import seeds_of, shuffles_of, untuned
from distgrad.errors import warn


class Position:
    """Where the next batch comes from.

    Attributes:
        epochs: how often `DistributedStep.epoch` has come to an end.
        passes: how many passes over the same shuffled data have gone before this one.
        taken: how many batches of this pass are done.
        seeds: those of its shuffling; None where they are not known.
        speaks: whether this worker warns of others.
    """

    def __init__(
        self,
        epochs: int = 0,
        passes: int = 0,
        taken: int = 0,
        seeds: Sequence[int] | None = None,
        speaks: bool = True,
    ) -> None:
        self.epochs, self.passes, self.taken = epochs, passes, taken
        self.seeds, self._speaks = seeds, speaks
        self._shuffles: list[Any] | None = None  # until there was a pass in this process
        self._renewed = False

    def as_dict(self) -> dict[str, int]:
        """What is the same on every worker."""
        return {"epochs": self.epochs, "passes": self.passes, "taken": self.taken}

    def begin(self, data: Iterable[Any]) -> tuple[Iterator[Any], Any]:
        """Begin a pass; the first one after a resume goes on where the last was left.

        Returns:
            (the batches to come, the last one passed over or None).
        """
        data, shuffles, seeds = untuned(data), shuffles_of(data), seeds_of(data)
        if self._shuffles is None:
            self._return(data, seeds)
        else:
            self._follow(shuffles)
        self._shuffles, self.seeds = shuffles, seeds
        batches, passed = iter(data), None
        for _ in range(self.taken):
            passed = next(batches, passed)
        return batches, passed

    def advance(self, more: bool) -> None:
        """Another batch is done; `more` says whether any worker has a next one."""
        self.taken += 1
        if not more:
            self.epochs, self.passes, self.taken = self.epochs + 1, 0 if self._renewed else self.passes + 1, 0

    def _return(self, data: Any, seeds: list[int]) -> None:
        """The first pass in this process; after a resume there were others before."""
        if self.seeds is not None and seeds != self.seeds:
            if self.taken and self._speaks:
                warn_of_seed()
            self.passes = 0
        for _ in range(self.passes if seeds else 0):
            iter(data)

    def _follow(self, shuffles: list[Any]) -> None:
        """A further pass."""
        self._renewed = shuffles != self._shuffles  # whoever makes the dataset anew for each pass starts it anew
        self.passes = 0 if self._renewed else self.passes + bool(self.taken)
        self.taken = 0


def warn_of_seed() -> None:
    """The order of the data before a resume cannot be had again."""
    warn("the data are shuffled with another seed than before the resume; give shuffle() one, or TensorFlow")
